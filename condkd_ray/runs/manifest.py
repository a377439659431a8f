"""What an experiment sets out to do: its question, trials, teachers, data, and what to know of them."""

import datetime
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from condkd_ray import models
from condkd_ray.core.records import MANIFEST, Manifest, read_manifest
from condkd_ray.methods.condensation import Imported
from condkd_ray.methods.supervised import TeacherConfig
from condkd_ray.report.statistics import Baseline
from condkd_ray.trial.artifacts import Workshop
from condkd_ray.trial.config import TrialConfig
from condkd_ray.trial.plan import Plan, PlannedTrial


def describe_experiment(
    experiment: str,
    question: str,
    trials: Sequence[PlannedTrial],
    workshop: Workshop,
    out: Path,
    *,
    baseline: Baseline = "none",
) -> Manifest:
    """What the experiment sets out to do. Trials planned in the same folder before stay, unless asked for anew.

    `baseline` names the arm that every other is compared with, or for each arm its own.
    """
    plans = [trial.plan for trial in trials]
    config = plans[0].config
    dataset, teachers = workshop.data(config), _teachers(plans, workshop)
    labels = {teacher["label"] for teacher in teachers}
    planned = _planned_before(out)
    for trial in trials:
        place = {"arm": trial.plan.arm, "ipc": trial.plan.ipc, "seed": trial.plan.seed}
        planned[tuple(place.values())] = place | {"config_hash": trial.key}
    return Manifest(
        experiment=experiment,
        question=question.strip().split("\n")[0],
        command=shlex.join([Path(sys.executable).name, *sys.argv]),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        baseline=baseline,
        planned=list(planned.values()),
        teacher=teachers[0] if len(labels) == 1 else {"label": f"{len(labels)} networks"},
        teachers=teachers if len(teachers) > 1 else [],
        dataset={
            "name": dataset.name,
            "hash": dataset.digest,
            "num_classes": dataset.num_classes,
            "image_shape": list(dataset.image_shape),
            "test_size": len(dataset.test),
            "notes": list(dataset.notes),
        },
        test_labels=dataset.test.labels.tolist(),
        notes=_notes(plans, dataset.val is not None),
    )


def _teachers(plans: Sequence[Plan], workshop: Workshop) -> list[dict[str, Any]]:
    """Label, seed, hash and accuracies of each teacher of the plans, once."""
    configs: dict[TeacherConfig, TrialConfig] = {}
    for plan in plans:
        configs.setdefault(plan.config.teacher, plan.config)
    return [
        {
            "label": models.label(config.teacher.network),
            "seed": config.teacher.seed,
            "hash": workshop.prepare(config).hashes["teacher"],
            **workshop.teacher_accuracy(config),
        }
        for config in configs.values()
    ]


def _planned_before(out: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    if not (out / MANIFEST).is_file():
        return {}
    return {(trial["arm"], trial["ipc"], trial["seed"]): trial for trial in read_manifest(out).planned}


def _notes(plans: Sequence[Plan], has_val: bool) -> list[str]:
    used = {plan.config.condensation for plan in plans if plan.config.condensation is not None}
    held_out = "the proxy images" + (" and the validation images" if has_val else "")
    notes = []
    if any(isinstance(method, Imported) for method in used):
        notes.append(
            "The condensed set was made elsewhere, from train images we do not know: it may have seen "
            f"{held_out}, and the test images too where these were held out of train here."
        )
    if any(method.needs_teacher for method in used):
        notes.append("The condensed set was made of the teacher: it adds nothing that the teacher does not know.")
    return notes


def teacher_line(manifest: Manifest) -> str:
    """The teacher and its accuracy, for the terminal; a line each where one network has several, of other seeds."""
    several = manifest.teachers if "hash" in manifest.teacher else []
    return "\n".join(_told(teacher, seed=bool(several)).lower() for teacher in several or [manifest.teacher])


def _told(teacher: Mapping[str, Any], *, seed: bool = False) -> str:
    named = {"test_accuracy": "test", "val_accuracy": "val"}
    parts = [f"{teacher[key]:.2%} {name}" for key, name in named.items() if key in teacher]
    which = f"{teacher['label']} seed {teacher['seed']}" if seed else teacher["label"]
    return f"Teacher {which}{': accuracy ' if parts else ''}{', '.join(parts)}"
