"""(i) Segmentation: DFAD's recipe for CamVid and a guided arm, a hundredth of its rounds, with an untrained teacher."""

import time
from dataclasses import replace
from functools import partial
from typing import Any, get_args

from condkd_ray.core import compilation
from condkd_ray.core.environment import clean_process, peak_bytes
from condkd_ray.core.method import InputError
from condkd_ray.data.datasets import load
from condkd_ray.methods.condensation import RandomReal
from condkd_ray.methods.guidance import AnyGuidance, Discriminator, Gaussian, NoGuidance
from condkd_ray.methods.targets import Layouts
from condkd_ray.trial.config import Prepared, TrialConfig
from condkd_ray.trial.evaluation import compare_pixels, score_on_device
from condkd_ray.trial.loop import distil, own_images
from condkd_ray.trial.run import OutOfTimeError, local_store, run_trial, with_images_on_device
from condkd_ray.trial.synthesis import arithmetic, new_student
from gpu import world
from gpu.parts import Box, Setup, SkippedError, Verdict
from gpu.recipes import Watch
from gpu.sizes import SHARE
from gpu.steps import BY_TIME, COMPILED, EAGER
from gpu.timing import milliseconds
from gpu.waits import check_rounds, no_waits, place_of

ROWS: dict[str, dict[str, Any]] = {name: fields for name, fields in (EAGER | COMPILED).items() if name != BY_TIME}
"""Changed fields of the trial's config, by row name, as in (d)."""
PLAIN = ("float32", "bfloat16")
"""Rows without compilation and graphs, in the order in which they are measured."""
NEAR = 0.05
"""Largest accepted difference between the losses of two rows, as a share of the loss (our choice)."""
COMPARED = 3
"""Rounds whose losses are compared: a CUDA graph is replayed from the third on."""
TERMS = ("inversion/adv", "inversion/oh", "inversion/guide", "kd/loss")
"""Compared losses. Their sum is not compared, because terms of different signs may cancel."""
TRACING = 60.0
"""Seconds without which no compiled row or graph is begun: tracing the networks takes about as long (not measured)."""
ARMS = 0.8
"""Share of the time left after the first checks that the arms may take together."""


def segmentation(setup: Setup, box: Box) -> Verdict:
    """Check waits and losses, then run the arms, each for as many rounds as fit, then compiled rows and graphs.

    Fails if something waits in a step, if a row's losses differ or cannot be computed, or if an arm fails. There is no
    goal for the speed.
    """
    what = inputs(setup, box)
    published, guided = trials(setup)
    faults = wait_faults(published, guided, what, box)
    losses: dict[str, list[dict[str, float]]] = {}
    faults += _rows(setup, box, guided, what, losses, PLAIN)
    texts = []
    for name, config, share in (("published", published, ARMS / 2), ("guided", guided, ARMS)):
        text, fault = _arm(setup, box, name, config, what, share * box.left)
        texts.append(text)
        faults += [fault] if fault else []
    faults += _rows(setup, box, guided, what, losses, tuple(name for name in ROWS if name not in PLAIN))
    if faults:
        return Verdict(False, f"{len(faults)} faults: {'; '.join(faults)}")
    checked = "nothing waits" if setup.device.type == "cuda" else "without CUDA, waits were not checked"
    return Verdict(True, f"{', '.join(texts)}; {checked}; losses agree within {NEAR:.0%}; the speed has no goal")


def inputs(setup: Setup, box: Box) -> Prepared:
    """Return an untrained teacher with images of CamVid if --data-root has a folder `camvid`, else with random ones."""
    dense = setup.sizes.dense
    root = None if setup.data_root is None else setup.data_root / "camvid"
    there = root is not None and root.is_dir()
    dataset = load(replace(dense.recipe.data, root=root, size=dense.shape[1:])) if there else None
    classes = dense.classes if dataset is None else dataset.num_classes
    found = world.teacher(dense.recipe.teacher.network, dense.shape, classes, setup.device)
    kind = "random" if dataset is None else dataset.name
    if dataset is None:
        guides, test, names = (*(world.masked_images(found, *one) for one in ((dense.guides, 1), (dense.tests, 2))), ())
    else:
        guides, test, names = dataset.train[: dense.guides], dataset.test[: dense.tests], dataset.class_names
    box.note("images", {"kind": kind, "classes": classes, "test": len(test), "guides": len(guides)})
    return world.dense_prepared(found, guides, test, names)


def trials(setup: Setup) -> tuple[TrialConfig, TrialConfig]:
    """Return DFAD as published, and the guided arm: layouts, class prior, discriminator, labelled images in batches."""
    dense = setup.sizes.dense
    published = dense.recipe
    guided = replace(
        published,
        condensation=RandomReal(ipc=dense.guides),
        targets=Layouts(),
        inversion=replace(published.inversion, conditional=True, oh_weight=1.0),  # type: ignore[call-arg]
        guidance=Discriminator(weight=1.0),
        distiller=replace(published.distiller, condensed_share=0.25),
    )
    return published, guided


def wait_checks(published: TrialConfig, guided: TrialConfig, what: Prepared) -> dict[str, Any]:
    """Return functions, by name, that run small rounds or an evaluation and raise an error if the host waits.

    Every guidance is checked with the guided arm, whose student leaves out void pixels.
    """

    def small(config: TrialConfig) -> TrialConfig:
        inversion = replace(config.inversion, batch=4, images_per_round=16)  # type: ignore[call-arg]
        return replace(config, inversion=inversion, distiller=replace(config.distiller, steps=2, batch=8))

    kinds = [kind for kind in get_args(AnyGuidance) if kind is not NoGuidance]
    # A covariance is that of two images of a class or more, which few random masks need not have.
    forms = [kind(**({"covariance": "none"} if kind is Gaussian else {})) for kind in kinds]
    checks = {"published": small(published)} | {form.name: small(replace(guided, guidance=form)) for form in forms}
    rounds = {name: partial(check_rounds, config, what) for name, config in checks.items()}
    return {**rounds, "evaluation": partial(check_evaluation, published, what)}


def wait_faults(published: TrialConfig, guided: TrialConfig, what: Prepared, box: Box) -> list[str]:
    """Note the number of checks, and return a sentence for each that found a wait or failed."""
    faults = []
    checks = wait_checks(published, guided, what)
    for name, check in checks.items():
        try:
            check()
        except Exception as error:
            faults.append(f"{name}: {error} at {place_of(error)}".splitlines()[0][:300])
    box.note("waits", {"run": len(checks), "failed": len(faults), "checked": what.teacher.device.type == "cuda"})
    return faults


def check_evaluation(config: TrialConfig, what: Prepared) -> None:
    """Compare a student with the teacher and measure its mean IoU; raise the error of an operation that waits.

    A trial copies the results to the host once, at the end of a round.
    """
    student, seen = new_student(config, what.teacher).eval(), with_images_on_device(what)
    assert seen.test is not None

    def measure() -> None:
        compare_pixels(student, seen.proxy, seen.teacher)
        score_on_device(student, seen.test, seen.teacher)  # type: ignore[arg-type]

    measure()  # one-time work may wait
    with no_waits(what.teacher.device):
        measure()


def _rows(
    setup: Setup,
    box: Box,
    config: TrialConfig,
    what: Prepared,
    losses: dict[str, list[dict[str, float]]],
    names: tuple[str, ...],
) -> list[str]:
    """Note losses and time of rounds in each of the rows `names`, add the losses to `losses`, and return the faults."""
    faults = []
    for name in names:
        try:
            fault = _row(setup, box, replace(config, **ROWS[name]), what, losses, name)
        except Exception as error:
            fault = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            box.note(name, {"failed": fault})
        compilation.clear_compiled()
        faults += [f"{name}: {fault}"] if fault else []
    clean_process(1)
    return faults


def _row(
    setup: Setup,
    box: Box,
    config: TrialConfig,
    what: Prepared,
    losses: dict[str, list[dict[str, float]]],
    name: str,
) -> str:
    """Note a row, and return its fault, or an empty string."""
    if config.compile != "off" and not setup.sizes.compiled:
        box.note(name, {"skipped": "tiny: compiling takes longer than all other measurements"})
        return ""
    try:
        compilation.check(config.compile, config.graphs, setup.device)
    except InputError as refused:
        box.note(name, {"refused": str(refused)})
        return ""
    if (config.compile != "off" or config.graphs) and box.left < TRACING:
        box.note(name, {"skipped": f"time: less than {TRACING:.0f} s left; --only i"})
        return ""
    losses[name] = found = round_losses(config, what)
    # bfloat16 is compared with float32 before weights differ, compiled rows and graphs with bfloat16 in all rounds.
    plain, count = ("float32", 1) if name in PLAIN else ("bfloat16", COMPARED)
    if plain not in losses:
        return f"its losses cannot be compared: {plain} failed"
    difference = largest_difference(found[:count], losses[plain][:count])
    running = world.Running(config, what)

    def one_round() -> None:
        running.add(running.images())
        with arithmetic(config, setup.device):
            distil(config, what, running.state, running.store)

    taken = milliseconds(one_round, setup.device, repeats=COMPARED, warm_up=2)
    box.note(name, {"round_ms": taken, "difference": difference, "from": plain, "losses": found[0]})
    return "" if difference <= NEAR else f"losses differ from {plain} by {difference:.1%}"


def round_losses(config: TrialConfig, what: Prepared) -> list[dict[str, float]]:
    """Return `TERMS` of the first rounds, of one student step each; its small rate keeps differences small."""
    config = replace(config, distiller=replace(config.distiller, steps=1, lr=1e-4))
    trial, found = world.Running(config, what, rounds=0), []
    for _ in range(COMPARED):
        with arithmetic(config, what.teacher.device):
            fresh, terms = own_images(config, what, trial.state, trial.store)
            trial.add(fresh)
            terms |= distil(config, what, trial.state, trial.store)
        found.append({name: terms[name] for name in TERMS if name in terms})
    return found


def largest_difference(found: list[dict[str, float]], wanted: list[dict[str, float]]) -> float:
    """Return the largest difference of two losses, as a share of the loss in `wanted`."""
    pairs = [(row[name], other[name]) for row, other in zip(found, wanted, strict=True) for name in other]
    return max(abs(one - other) / max(abs(other), 1e-6) for one, other in pairs)


def _arm(
    setup: Setup, box: Box, name: str, config: TrialConfig, what: Prepared, seconds: float
) -> tuple[str, str | None]:
    """Run an arm for as many rounds as fit; note times, images per second and peak memory; return a text and a fault.

    Raises `SkippedError` if not even one round fits.
    """
    clean_process(1)
    config = replace(config, precision="bfloat16" if setup.device.type == "cuda" else "float32")
    watch, store = Watch(box, config, name), local_store(config, what, None)
    try:
        outcome = run_trial(config, what, store, on_round=watch, deadline=time.time() + seconds)
    except OutOfTimeError:
        outcome = None
    if outcome is not None and outcome.status != "finished":
        return name, f"{name} has {outcome.status}: {outcome.reason}"
    if not watch.rounds:
        raise SkippedError(f"time: no round of {name} was begun")
    figures = watch.figures()
    rounds, spent = figures["rounds"], figures["seconds"]
    split = {
        f"{part}_ms_per_round": 1000 * figures[f"{part}_seconds"] / rounds for part in ("inversion", "distillation")
    }
    made = rounds * config.inversion.images_per_round / figures["inversion_seconds"]
    figures |= split | {"made_images_per_second": made, "peak_gib": peak_bytes(setup.device) / 2**30}
    if not setup.sizes.tiny:
        figures["seconds_of_the_whole_recipe"] = config.rounds / SHARE * spent / rounds
    if outcome is not None:
        figures["test_miou"] = outcome.metrics["student/test_miou"]
    box.note(name, figures)
    return f"{name} {rounds} of {config.rounds} rounds, {spent / rounds:.3g} s each", None
