"""One trial: synthesise, remember, distil, evaluate. The whole loop on one screen, without Ray.

Letters: B batch, C channels, H W height and width, K classes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from condkd_ray.condensation import AnyCondensation
from condkd_ray.data import DataConfig, RealImages
from condkd_ray.diagnosis import Landmarks, diagnose
from condkd_ray.distiller import Distiller, DistillerState, next_batch
from condkd_ray.evaluation import evaluate
from condkd_ray.guidance import AnyGuidance, NoGuidance
from condkd_ray.inversion import AnyInversion, Fast, NoInversion
from condkd_ray.memory import AnyMemory, Growing, Store
from condkd_ray.method import Meter, Method, Metrics, require
from condkd_ray.networks import AnyNetwork, ResNet
from condkd_ray.samples import Codec, Samples
from condkd_ray.streams import Streams
from condkd_ray.supervised import TeacherConfig
from condkd_ray.targets import AnyTargets, Balanced
from condkd_ray.teacher import Teacher
from condkd_ray.weighing import AnyWeighing, Equal

HEARING = "balanced; or an inversion that takes soft targets, such as fast, cmi, deep_inversion, soft_target"


@dataclass(frozen=True, kw_only=True)
class TrialConfig(Method):
    """All that determines a trial's numbers. As a file it is a run; with open leaves it is a search space."""

    seed: int = 0
    """Of everything in the trial but the data split and the teacher, which have their own."""
    data: DataConfig = DataConfig()
    teacher: TeacherConfig = TeacherConfig()
    student: AnyNetwork = ResNet(depth=8, width=8)
    condensation: AnyCondensation | None = None
    """Null: no condensed set at all (IPC 0)."""
    targets: AnyTargets = Balanced()
    weighing: AnyWeighing = Equal()
    inversion: AnyInversion = Fast()
    guidance: AnyGuidance = NoGuidance()
    memory: AnyMemory = Growing()
    distiller: Distiller = Distiller()
    rounds: int = 12
    """Rounds in which the student learns; those of the inversion's warm-up come before."""
    evaluate_every: int = 1
    """Rounds between two measurements of the student; the last round is always measured."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the networks' arithmetic (autocast); losses are float32 always."""

    def __post_init__(self) -> None:
        require(self.seed >= 0, "seed", self.seed, "an integer >= 0")
        require(self.rounds >= 1, "rounds", self.rounds, "an integer >= 1")
        require(self.evaluate_every >= 1, "evaluate_every", self.evaluate_every, "an integer >= 1")
        share, condensed = self.distiller.condensed_share, self.condensation is not None
        require(condensed or share == 0, "condensed_share without a condensation", share, "0, or a condensation")
        guided = not isinstance(self.guidance, NoGuidance)
        require(
            condensed or not guided, "guidance without a condensation", self.guidance.name, "none, or a condensation"
        )
        idle, least = isinstance(self.inversion, NoInversion), share * self.distiller.share_schedule.smallest
        require(not idle or not guided, "guidance without an inversion", self.guidance.name, "none, or an inversion")
        require(not idle or not self.distiller.needs_synthetic, "condensed_share without inversion", least, "1")
        takes = not self.targets.soft or self.inversion.hears == "answers"
        require(takes, f"targets {self.targets.name} for inversion {self.inversion.name}", "soft", HEARING)
        entry, made = getattr(self.memory, "entry_size", 0), self.inversion.images_per_round
        require(idle or entry <= made, "memory entry_size", entry, f"at most {made}, the images of a round")

    @property
    def total_rounds(self) -> int:
        """Those of the warm-up included."""
        return self.inversion.warm_up + self.rounds

    def progress(self, round: int) -> float:
        """Where in the schedules the round after `round` others stands: 0 up to the student's first, 1 at the last."""
        return max(round - self.inversion.warm_up, 0) / max(self.rounds - 1, 1)

    def measures(self, round: int) -> bool:
        """Whether the student is measured in the round after `round` others: never while the inversion warms up."""
        learnt = round + 1 - self.inversion.warm_up
        return learnt >= 1 and (learnt % self.evaluate_every == 0 or learnt >= self.rounds)


@dataclass(frozen=True)
class Prepared:
    """What a trial needs and does not make: made once, cached, shared by all trials of a sweep."""

    teacher: Teacher
    test: RealImages
    val: RealImages | None
    condensed: Samples | None
    proxy: Samples
    hashes: dict[str, str] = field(default_factory=dict)
    """Content hashes: data, teacher, condensed, proxy."""
    landmarks: Landmarks | None = None
    """What synthetic images are compared with, for the report alone; without them nothing is."""


@dataclass
class TrialState:
    """All that changes. Saved as it stands after a round, it is the checkpoint; images stay in the store."""

    distiller: DistillerState
    inversion: Any
    guidance: Any
    memory: Any
    streams: Streams
    round: int = 0
    num_ids: int = 0
    """Ids the store had given out."""
    history: list[dict[str, float]] = field(default_factory=list)


def start(config: TrialConfig, prepared: Prepared) -> TrialState:
    """The state before the first round, on the teacher's device."""
    teacher, streams = prepared.teacher, Streams(config.seed, prepared.teacher.device)
    with streams.forked("init/student"):
        student = config.student.build(teacher.image_shape, teacher.num_classes)
    student = student.to(teacher.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return TrialState(
        distiller=config.distiller.init(student, config.rounds),
        inversion=config.inversion.init(teacher, streams),
        guidance=config.guidance.start(teacher, prepared.condensed, streams),
        memory=config.memory.init(teacher, streams),
        streams=streams,
    )


def codec(config: TrialConfig, teacher: Teacher) -> Codec:
    """How this trial's samples are kept."""
    return Codec(config.inversion.pixel_space, teacher.mean, teacher.std)


def run_round(config: TrialConfig, prepared: Prepared, state: TrialState, store: Store) -> Metrics:
    """One round; its metrics, also appended to the state's history. Raises `NonFiniteError` before anything is kept."""
    metrics: Metrics = {"round": state.round + 1}
    wall, cpu = time.perf_counter(), time.process_time()
    with _precision(config, prepared.teacher.device):
        with _timed(metrics, "time/inversion_seconds"):
            fresh, terms = synthesise(config, prepared, state, store)
            metrics |= terms
        if len(fresh):
            settled = settle(fresh, store.codec, prepared.teacher)
            if prepared.landmarks is not None and config.measures(state.round):
                with _timed(metrics, "time/diagnosis_seconds"):
                    student = state.distiller.student
                    metrics |= diagnose(settled, prepared.landmarks, teacher=prepared.teacher, student=student)
            with _timed(metrics, "time/memory_seconds"):
                metrics |= config.memory.add(state.memory, store, settled, teacher=prepared.teacher, rng=state.streams)
        if state.round >= config.inversion.warm_up:
            with _timed(metrics, "time/distillation_seconds"):
                metrics |= distil(config, prepared, state, store)
    with _timed(metrics, "time/evaluation_seconds"):
        metrics |= measure(config, prepared, state)
    metrics["memory/bytes"] = store.num_bytes + config.memory.held_bytes(state.memory)
    metrics["time/wall_seconds"] = time.perf_counter() - wall
    metrics["time/cpu_seconds"] = time.process_time() - cpu
    state.round, state.num_ids = state.round + 1, store.num_ids
    state.history.append(metrics)
    return metrics


def synthesise(config: TrialConfig, prepared: Prepared, state: TrialState, store: Store) -> tuple[Samples, Metrics]:
    """A round of guided inversion."""
    teacher, rng = prepared.teacher, state.streams
    guide = config.guidance.bind(
        state.guidance,
        teacher=teacher,
        condensed=prepared.condensed,
        host_augment=lambda images, stream: config.inversion.augment(images, teacher=teacher, rng=stream),
        rng=rng,
        progress=config.progress(state.round),
    )
    targets = config.targets.sample(config.inversion.images_per_round, teacher, rng=rng)
    fresh, terms = config.inversion.synthesize(
        state.inversion,
        targets,
        teacher=teacher,
        student=state.distiller.student.eval(),
        guide=guide,
        weigh=config.weighing.bind(store.class_counts.to(teacher.device)),
        rng=rng,
    )
    return fresh, terms | config.guidance.read(guide)


@torch.no_grad()
def settle(samples: Samples, code: Codec, teacher: Teacher) -> Samples:
    """Samples as any store will give them back, with the teacher's logits on just these images."""
    images = code.decode(code.encode(samples)).images
    logits = torch.cat([teacher.logits(part) for part in images.split(512)])
    return Samples(images, samples.labels, logits)


def distil(config: TrialConfig, prepared: Prepared, state: TrialState, store: Store) -> Metrics:
    """The student's steps of a round."""
    state.distiller.student.train()
    meter = Meter("kd")
    for _ in range(config.distiller.steps):
        batch, weights, ids = next_batch(
            *(config.distiller, config.memory, state.memory, store, prepared.condensed),
            progress=config.progress(state.round),
            teacher=prepared.teacher,
            rng=state.streams,
        )
        step = config.distiller.step(state.distiller, batch, weights, teacher=prepared.teacher, rng=state.streams)
        config.memory.feedback(state.memory, ids, step.gap[: len(ids)])
        meter.add(**step.terms)
    return meter.read()


def measure(config: TrialConfig, prepared: Prepared, state: TrialState) -> Metrics:
    """Where this round is one to be measured, how good the student is by now."""
    if not config.measures(state.round):
        return {}
    student, teacher = state.distiller.student, prepared.teacher
    return evaluate(student, teacher=teacher, proxy=prepared.proxy, val=prepared.val, test=prepared.test)


@contextmanager
def _timed(metrics: Metrics, name: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    metrics[name] = time.perf_counter() - begin


def _precision(config: TrialConfig, device: torch.device) -> torch.autocast:
    # Without its cache: within one context it would go on with the weights of before the optimiser's first step.
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16", cache_enabled=False)
