"""(g) The full published recipe of Fast; (h) mixed, mixed_prior and guided at a hundredth of it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from condkd_ray.core.method import Metrics
from condkd_ray.core.records import Outcome
from condkd_ray.methods.condensation import RandomReal
from condkd_ray.methods.guidance import Discriminator
from condkd_ray.methods.supervised import bf16_pays
from condkd_ray.runs.arms import Arm, arm
from condkd_ray.runs.presets import scaled
from condkd_ray.trial.config import TrialConfig
from condkd_ray.trial.plan import trial_hash
from condkd_ray.trial.run import OutOfTimeError, local_store, run_trial
from gpu.parts import Box, Setup, SkippedError, Verdict
from gpu.settings import choose, write
from gpu.teacher import Kept, data_config, kept, read, workshop

SECONDS, ACCURACY = 600.0, 0.9405
"""Goals of (g): seconds and test accuracy."""
SHARE = 0.01
"""Share of the published optimiser steps that (h) runs."""
RESERVE, LEAST = 0.1, 10.0
"""Share of a box, and largest number of seconds, before its end in which no round starts, so that the last is saved."""
NOTE_EVERY = 5.0
"""Seconds between two notes of a trial's progress."""
CHECKPOINT = "state.safetensors"
RECENT = 10
"""Number of latest rounds from which the end is projected."""
TAKEN = ("inversion", "memory", "distillation", "diagnosis", "evaluation")
"""Parts of a round whose times are noted."""


def published(setup: Setup, box: Box) -> Verdict:
    """Run Fast's recipe with the teacher of (f), from its checkpoint if there is one; note progress and speed.

    The setting is the fastest that (d) has measured, or the setting of the checkpoint.
    """
    plain, by = config_of(setup)
    # The folder is named by the recipe without the setting, so that it is found whatever was chosen.
    folder = _folder(setup, plain)
    setting = choose(box, plain, folder if (folder / CHECKPOINT).is_file() else None)
    write(setting, folder)
    box.note("setting", {"row": setting.row, **setting.fields, "because": setting.because})
    box.note("teacher", {"epochs": by.epochs, "of_the_recipe": by.of})
    config = replace(plain, **setting.fields)
    watch = Watch(box, config)
    outcome = _run(setup, box, config, watch, folder)
    figures = watch.figures()
    box.note(watch.name, figures)
    if outcome is None:
        return unfinished(setup, figures, by)
    if outcome.status != "finished":
        return Verdict(False, f"the trial has {outcome.status}: {outcome.reason}")
    found, seconds = outcome.metrics["student/test_accuracy"], figures["seconds"]
    of_teacher = workshop(setup.work, str(setup.device)).teacher_scores(config)["test_accuracy"]
    box.note("student", {"test_accuracy": found, "teacher_accuracy": of_teacher})
    met, goal = found >= ACCURACY and seconds <= SECONDS, f"{ACCURACY:.2%} in {SECONDS:.0f} s"
    return setup.verdict(met, f"{found:.2%} in {seconds:.0f} s, {by.text}, which has {of_teacher:.2%}", goal)


def unfinished(setup: Setup, figures: dict[str, Any], by: Kept) -> Verdict:
    """Fail if the projected end misses the goal. Raises `SkippedError` if it does not, or cannot be projected yet."""
    projected: float | None = figures.get("projected_seconds")
    end = "no end can be projected yet" if projected is None else f"projected end at {projected:.0f} s"
    text = f"{figures['rounds']} of {figures['of']} rounds, {end}, {by.text}; the same command continues"
    if projected is None or projected <= SECONDS:
        raise SkippedError(f"time: {text}")
    return setup.verdict(False, text, f"{SECONDS:.0f} s")


def arms(setup: Setup, box: Box) -> Verdict:
    """Note accuracies of one seed per arm, with the same few random real images; there is no goal at this scale."""
    texts = []
    for name, config in arms_of(setup, config_of(setup)[0]).items():
        watch = Watch(box, config, name)
        outcome = _run(setup, box, config, watch, _folder(setup, config))
        if outcome is None:
            raise SkippedError(f"time: {name} reached round {len(watch.rounds)} of {config.total_rounds}")
        if outcome.status != "finished":
            return Verdict(False, f"{name} has {outcome.status}: {outcome.reason}")
        found = outcome.metrics["student/test_accuracy"]
        box.note(name, watch.figures() | {"test_accuracy": found})
        texts.append(f"{name} {found:.2%}")
    return Verdict(True, f"{', '.join(texts)}; one seed each, no goal")


def arms_of(setup: Setup, whole: TrialConfig) -> dict[str, TrialConfig]:
    """Return the arms by name, with the same student steps and the same share of condensed images."""
    base = whole if setup.sizes.tiny else scaled(whole, SHARE)
    base = replace(
        base,
        condensation=RandomReal(ipc=setup.sizes.per_class),
        guidance=Discriminator(),
        distiller=replace(base.distiller, condensed_share=0.5),
    )
    names: tuple[Arm, ...] = ("mixed", "mixed_prior", "guided")
    return {name: arm(base, name, setup.sizes.per_class, 0).config for name in names}


@dataclass
class Watch:
    """Collects the metrics of a trial's rounds, and notes its progress every few seconds."""

    box: Box
    config: TrialConfig
    name: str = "progress"
    rounds: list[Metrics] = field(default_factory=list)
    _noted: float = 0.0

    def __call__(self, metrics: Metrics) -> None:
        """Add the metrics of a round; rounds before the checkpoint are passed, too."""
        self.rounds.append(metrics)
        if time.monotonic() - self._noted >= NOTE_EVERY:
            self._noted = time.monotonic()
            self.box.note(self.name, self.figures())

    def figures(self) -> dict[str, Any]:
        """Return rounds and seconds so far, including earlier runs; times by part; accuracy; projected end."""
        spent = [metrics["time/wall_seconds"] for metrics in self.rounds]
        found: dict[str, Any] = {"rounds": len(spent), "of": self.config.total_rounds, "seconds": sum(spent)}
        found |= {f"{part}_seconds": self._sum(f"time/{part}_seconds") for part in TAKEN}
        images = self.config.distiller.steps * self.config.distiller.batch
        if learning := spent[self.config.inversion.warm_up :]:
            found["student_images_per_second"] = images / median(learning[-RECENT:])
            left = self.config.total_rounds - len(spent)
            found["projected_seconds"] = sum(spent) + left * median(learning[-RECENT:])
        measured = [metrics["student/test_accuracy"] for metrics in self.rounds if "student/test_accuracy" in metrics]
        return found | ({"accuracy_on_a_subset": measured[-1]} if measured else {})

    def _sum(self, name: str) -> float:
        return sum(metrics.get(name, 0.0) for metrics in self.rounds)


def _folder(setup: Setup, config: TrialConfig) -> Path:
    """Return the folder of a trial's checkpoint."""
    prepared = workshop(setup.work, str(setup.device)).prepare(config)
    folder = setup.work / "trials" / trial_hash(config, prepared)[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _run(setup: Setup, box: Box, config: TrialConfig, watch: Callable[[Metrics], None], folder: Path) -> Outcome | None:
    """Return the trial's outcome; None if the time ended first, after a checkpoint in `folder`."""
    prepared = workshop(setup.work, str(setup.device)).prepare(config)
    deadline = time.time() + box.left - min(LEAST, RESERVE * box.left)
    store = local_store(config, prepared, folder)
    try:
        return run_trial(config, prepared, store, checkpoint=folder / CHECKPOINT, on_round=watch, deadline=deadline)
    except OutOfTimeError:
        return None


def config_of(setup: Setup) -> tuple[TrialConfig, Kept]:
    """Return the recipe without compilation or graphs, with the data, and the teacher of (f).

    Raises `SkippedError` if data or teacher do not exist.
    """
    data, found = data_config(setup), kept(setup, read(setup))
    if found is None:
        raise SkippedError("needs the teacher of (f)")
    plain = setup.sizes.fast(precision="bfloat16" if bf16_pays(setup.device) else "float32")
    return replace(plain, data=data, teacher=replace(setup.sizes.teacher, weights=found.path, force=True)), found
