"""The training loop of one trial, without Ray: synthesise, store, distil, evaluate."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from condkd_ray.core.method import Meter, Metrics
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import Samples
from condkd_ray.methods.distiller import DistillerState, next_batch
from condkd_ray.methods.memory import Store
from condkd_ray.trial.config import Prepared, TrialConfig
from condkd_ray.trial.diagnosis import diagnose
from condkd_ray.trial.evaluation import evaluate
from condkd_ray.trial.synthesis import Pipelined, Production, arithmetic, begin, make_round, new_student, produce


@dataclass
class TrialState:
    """All mutable state of a trial, and so its checkpoint after a round; the images are in the store only."""

    production: Production | Pipelined | None
    """None if the images come from elsewhere."""
    distiller: DistillerState
    memory: Any
    streams: Streams
    round: int = 0
    num_ids: int = 0
    """Number of ids that the store had assigned."""
    history: list[dict[str, float]] = field(default_factory=list)


Source = Callable[[TrialConfig, Prepared, TrialState, Store], tuple[Samples, Metrics]]
"""Function that returns the encoded-and-decoded images of a round and the means of their loss terms."""


def start(config: TrialConfig, prepared: Prepared, *, produces: bool = True) -> TrialState:
    """Return the state before the first round, on the teacher's device; `produces`: the trial makes its own images."""
    teacher, streams = prepared.teacher, Streams(config.seed, prepared.teacher.device)
    production = Pipelined() if config.pipeline is not None else begin(config, prepared) if produces else None
    return TrialState(
        production=production,
        distiller=config.distiller.init(new_student(config, teacher), config.rounds),
        memory=config.memory.init(teacher, streams),
        streams=streams,
    )


def own_images(config: TrialConfig, prepared: Prepared, state: TrialState, store: Store) -> tuple[Samples, Metrics]:
    """Synthesise the images of the next round within this trial; see `produce`."""
    assert state.production is not None, "a trial that produces nothing needs another source"
    if isinstance(state.production, Pipelined):
        return make_round(
            *(config, prepared, state.production, state.round), state.distiller.student, store.class_counts
        )
    return produce(config, prepared, state.production, state.distiller.student, store.class_counts)


def run_round(
    config: TrialConfig, prepared: Prepared, state: TrialState, store: Store, source: Source = own_images
) -> Metrics:
    """Run one round; append its metrics to the history; return them. Raises `NonFiniteError` before images are kept."""
    metrics: Metrics = {"round": state.round + 1}
    student, measured = state.distiller.student, config.measures(state.round)
    wall, cpu = time.perf_counter(), time.process_time()
    with arithmetic(config, prepared.teacher.device):
        with _timed(metrics, "time/inversion_seconds"):
            fresh, terms = source(config, prepared, state, store)
            metrics |= terms
        if len(fresh):
            if prepared.landmarks is not None and measured:
                with _timed(metrics, "time/diagnosis_seconds"):
                    metrics |= diagnose(fresh, prepared.landmarks, teacher=prepared.teacher, student=student)
            with _timed(metrics, "time/memory_seconds"):
                metrics |= config.memory.add(state.memory, store, fresh, teacher=prepared.teacher, rng=state.streams)
        if state.round >= config.inversion.warm_up:
            with _timed(metrics, "time/distillation_seconds"):
                metrics |= distil(config, prepared, state, store)
    with _timed(metrics, "time/evaluation_seconds"):
        if measured:
            seen = {"proxy": prepared.proxy, "val": prepared.val, "test": prepared.test}
            metrics |= evaluate(student, teacher=prepared.teacher, test_rounds=config.test_rounds, **seen)
    metrics["memory/bytes"] = store.num_bytes + config.memory.held_bytes(state.memory)
    metrics["time/wall_seconds"] = time.perf_counter() - wall
    metrics["time/cpu_seconds"] = time.process_time() - cpu
    state.round, state.num_ids = state.round + 1, store.num_ids
    state.history.append(metrics)
    return metrics


def distil(config: TrialConfig, prepared: Prepared, state: TrialState, store: Store) -> Metrics:
    """Train the student for one round; return the means of its loss terms."""
    state.distiller.student.train()
    meter, progress = Meter("kd"), config.progress(state.round)
    for _ in range(config.distiller.steps):
        batch, weights, ids = next_batch(
            *(config.distiller, config.memory, state.memory, store, prepared.condensed),
            progress=progress,
            teacher=prepared.teacher,
            rng=state.streams,
        )
        step = config.distiller.step(
            *(state.distiller, batch, weights),
            teacher=prepared.teacher,
            rng=state.streams,
            condensed=len(batch) - config.distiller.num_synthetic(progress),
        )
        config.memory.feedback(state.memory, ids, step.gap[: len(ids)])
        meter.add(**step.terms)
    return meter.read()


@contextmanager
def _timed(metrics: Metrics, name: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    metrics[name] = time.perf_counter() - begin
