"""What trials, teachers and condensed sets will take, measured on a little of each. Nothing made here is kept."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from condkd_ray.core.environment import clean_process, peak_bytes
from condkd_ray.core.method import Metrics, NonFiniteError
from condkd_ray.core.records import Record, grid_path, record_path, write_record
from condkd_ray.core.rng import Streams
from condkd_ray.methods.condensation import AnyCondensation
from condkd_ray.methods.supervised import bf16_pays
from condkd_ray.report.figures.image_grids import write_grid
from condkd_ray.report.tensorboard.embeddings import points_path
from condkd_ray.runs.images import PER_STORED_BYTE, most_bytes
from condkd_ray.runs.products import kept_path
from condkd_ray.runs.recorder import make_record
from condkd_ray.trial.artifacts import Workshop
from condkd_ray.trial.config import Prepared, TrialConfig
from condkd_ray.trial.loop import run_round, start
from condkd_ray.trial.outcome import product_path
from condkd_ray.trial.plan import Plan
from condkd_ray.trial.run import local_store, run_trial
from condkd_ray.trial.synthesis import answers

ROUNDS = 3
"""Of a probe; the first, in which much happens for the first time, counts once, the others for all that follow."""
STEPS = 20
"""Of a teacher's training, in its probe."""
IMAGES = 2048
"""Real images, at most, that a condenser sees in its probe."""
UNITS = {"iterations": 2, "epochs": 1, "expert_epochs": 1}
"""Fields of a condenser in proportion to which it works, and how much more of each is tried."""
LEAST = {"iterations": 1, "epochs": 1, "expert_epochs": 1, "ahead": 1, "max_start": 0}


@dataclass(frozen=True)
class Span:
    """A quantity that lies between two bounds."""

    low: float = 0.0
    high: float = 0.0

    def __add__(self, other: Span) -> Span:
        return Span(self.low + other.low, self.high + other.high)

    def __mul__(self, factor: float | Span) -> Span:
        factors = factor if isinstance(factor, Span) else Span(factor, factor)
        return Span(self.low * factors.low, self.high * factors.high)


PROBED, RECORDED = Span(0.7, 1.7), Span(0.8, 1.4)
"""What a measurement is multiplied by: a probe is short and alone on the machine, and trials differ by their seeds."""


def hull(values: Iterable[float | Span]) -> Span:
    """The smallest span that holds all of them."""
    spans = [value if isinstance(value, Span) else Span(value, value) for value in values]
    return Span(min(span.low for span in spans), max(span.high for span in spans))


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one trial. Seconds and bytes."""

    wall: Span
    cpu: Span
    kept: Span
    """Record and image grid."""
    product: Span
    """Student and synthetic images, kept of the best trial of an arm and IPC."""
    working: Span
    """Checkpoint and chunks, while it runs."""
    memory: Span
    """Its processes, or the GPU's, at the peak."""

    @classmethod
    def nothing(cls) -> Cost:
        """Of what does not run."""
        return cls(**{field.name: Span() for field in fields(cls)})


def join(costs: Sequence[Cost]) -> Cost:
    """What holds all of them."""
    return Cost(**{field.name: hull(getattr(cost, field.name) for cost in costs) for field in fields(Cost)})


def probe_trial(plan: Plan, prepared: Prepared, folder: Path) -> Cost:
    """Run the first rounds of a trial with its files under `folder`. Raises `NonFiniteError` where it diverges."""
    config, whole = _short(plan.config), plan.config
    clean_process(torch.get_num_threads())
    wall, cpu = time.perf_counter(), time.process_time()
    place = {"checkpoint": folder / "state", "product": product_path(folder), "checkpoint_seconds": 0.0}
    outcome = run_trial(config, prepared, local_store(config, prepared, folder), **place)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    if outcome.status != "finished":
        raise NonFiniteError(outcome.reason)
    first, *others = outcome.history
    rest = max(0.0, wall - sum(row["time/wall_seconds"] for row in outcome.history))
    rounds = hull(_seconds(row, whole) for row in others)
    # At the end, of all the rounds whose images the memory still has.
    asking = whole.total_rounds * _asking_seconds(whole, prepared)
    seconds = Span(rest + rounds.low, rest + first["time/wall_seconds"] + rounds.high + asking) * PROBED
    record = make_record("explain", plan, "probe", prepared, outcome)
    write_record(folder, record)
    if outcome.images is not None and outcome.images_per_class:
        write_grid(grid_path(folder, "probe"), outcome.images, outcome.images_per_class)
    left, chunks = whole.total_rounds - ROUNDS, _bytes(folder / "chunks") / ROUNDS
    row = _bytes(record_path(folder, "probe")) - len(str(outcome.predictions))
    kept = _bytes(folder / "records") + _bytes(folder / "grids")
    product, state = _bytes(place["product"]), _bytes(place["checkpoint"])
    # A product has logits whether they are stored or not.
    logits = 0 if whole.keeps_logits else 2 * prepared.teacher.num_classes * whole.inversion.images_per_round
    peak = peak_bytes(prepared.teacher.device)
    crew, ahead = (0, 0) if whole.pipeline is None else (whole.pipeline.producers, whole.pipeline.staleness)
    return Cost(
        # Here producers work in turn with the student, there beside it.
        wall=seconds * Span(1 / (1 + min(crew, ahead)), 1),
        cpu=seconds * min(1.0, cpu / wall),
        kept=Span(kept, kept + max(0, left) * row / ROUNDS),
        product=Span(product, product + max(0, left) * (chunks + logits) + most_bytes(prepared.teacher)),
        working=Span(state, state + whole.total_rounds * chunks),
        memory=Span(peak * 0.7, (1 + crew) * peak * 1.5 + whole.total_rounds * chunks),
    )


def _asking_seconds(config: TrialConfig, prepared: Prepared) -> float:
    """Of the teacher's answers on a round's images, where they are not made with the round but at the trial's end."""
    if config.keeps_logits:
        return 0.0
    teacher = prepared.teacher
    images = torch.zeros(config.inversion.images_per_round, *teacher.image_shape, device=teacher.device)
    return _time(lambda: answers(teacher, images))


def round_seconds(plan: Plan, prepared: Prepared) -> float:
    """Wall time of one round of a trial, measured on its first ones. Raises `NonFiniteError` where it diverges."""
    config = _short(plan.config)
    clean_process(torch.get_num_threads())
    outcome = run_trial(config, prepared, local_store(config, prepared, None))
    if outcome.status != "finished":
        raise NonFiniteError(f"{plan.label}, tried for {ROUNDS} rounds: {outcome.reason}")
    return max(row["time/wall_seconds"] for row in outcome.history[1:])


def trial_cpu_seconds(config: TrialConfig, prepared: Prepared) -> float:
    """CPU time of all rounds of a trial. Raises `NonFiniteError` where it diverges."""
    clean_process(torch.get_num_threads())
    state, store = start(config, prepared), local_store(config, prepared, None)
    return sum(run_round(config, prepared, state, store)["time/cpu_seconds"] for _ in range(config.total_rounds))


def recorded(records: Sequence[Record], out: Path) -> Cost:
    """What finished trials say of others like them."""
    return join([_recorded(record, out) for record in records])


def _recorded(record: Record, out: Path) -> Cost:
    key, held = record.config_hash, record.metrics.get("memory/bytes", 0.0)
    kept, product = _bytes(record_path(out, key)) + _bytes(grid_path(out, key)), _bytes(kept_path(out, key))
    return Cost(
        wall=Span(record.outcome.wall_seconds, record.outcome.wall_seconds) * RECORDED,
        cpu=Span(record.outcome.cpu_seconds, record.outcome.cpu_seconds) * RECORDED,
        kept=Span(kept, kept),
        product=Span(product or held, (product or held) + PER_STORED_BYTE * _bytes(points_path(out, key))),
        working=Span(held, 2 * held + 2 * product),
        memory=Span(record.outcome.peak_bytes, record.outcome.peak_bytes) * RECORDED,
    )


def _short(config: TrialConfig) -> TrialConfig:
    names = {field.name for field in fields(config.inversion)}
    inversion = replace(config.inversion, **({"warm_up": 0} if "warm_up" in names else {}))
    distiller = config.distiller.within(ROUNDS)
    return replace(config, rounds=ROUNDS, evaluate_every=1, inversion=inversion, distiller=distiller)


def _seconds(row: Metrics, config: TrialConfig) -> float:
    """Of all rounds of a trial, if each part takes as long as in this one."""
    measured = sum(config.measures(number) for number in range(config.total_rounds))
    times = {"distillation": config.rounds, "evaluation": measured, "diagnosis": measured}
    parts = {name: row.get(f"time/{name}_seconds", 0.0) for name in times}
    always = row["time/wall_seconds"] - sum(parts.values())
    return config.total_rounds * always + sum(parts[name] * count for name, count in times.items())


def probe_teacher(config: TrialConfig, workshop: Workshop) -> Span:
    """Seconds of a teacher's training, from some of its steps."""
    dataset, recipe = workshop.data(config), replace(config.teacher.training, epochs=1)
    few = dataset.train[: STEPS * recipe.batch]
    rest: dict[str, Any] = {"mean": dataset.mean, "std": dataset.std, "flip_ok": dataset.flip_ok}
    rest |= {"precision": "bfloat16" if bf16_pays(workshop.device) else "float32", "rng": Streams(0, workshop.device)}
    network = config.teacher.build(dataset).to(workshop.device)
    images, labels = few.pixels.to(workshop.device), few.labels.to(workshop.device)
    taken = hull(_time(lambda: recipe.train(network, images, labels, **rest)) for _ in range(2))
    return taken * (config.teacher.training.epochs * len(dataset.train) / len(few)) * PROBED


def probe_set(config: TrialConfig, method: AnyCondensation, workshop: Workshop) -> Span:
    """Seconds of the making of a condensed set, from what a little of each kind of its work takes."""
    dataset, names = workshop.data(config), {field.name for field in fields(method)}
    order = torch.randperm(len(dataset.train), generator=torch.Generator().manual_seed(0))[:IMAGES]
    real = dataset.train[order].samples(dataset.mean, dataset.std).to(workshop.device)
    more: dict[str, Any] = {"teacher": workshop.teacher(config)} if method.needs_teacher else {}
    more |= {"num_classes": dataset.num_classes, "flip_ok": dataset.flip_ok}

    def seconds(tried: AnyCondensation) -> float:
        rng = Streams(config.seed, workshop.device)
        return _time(lambda: tried.condense(real, mean=dataset.mean, std=dataset.std, rng=rng, **more))

    least = replace(method, **{name: value for name, value in LEAST.items() if name in names})
    seconds(least)
    base = seconds(least)
    total, portion = base, len(dataset.train) / len(real)
    for name, step in UNITS.items():
        if name in names:
            slope = max(0.0, seconds(replace(least, **{name: 1 + step})) - base) / step
            total += slope * (getattr(method, name) - 1) * (portion if "epochs" in name else 1)
    return Span(total, total) * PROBED


def _time(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    # So little of a training may well diverge where the whole does not.
    with contextlib.suppress(NonFiniteError):
        work()
    return time.perf_counter() - begin


def _bytes(path: Path) -> int:
    """Of a file, or of all below a folder; 0 where there is nothing."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
