"""What determines a trial's numbers, as one value, and what it needs that others have made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from condkd_ray.core.method import Method, require
from condkd_ray.core.samples import Samples
from condkd_ray.data.datasets import DataConfig, Dataset, RealImages
from condkd_ray.methods.condensation import AnyCondensation
from condkd_ray.methods.distiller import Distiller
from condkd_ray.methods.guidance import AnyGuidance, NoGuidance
from condkd_ray.methods.inversion import AnyInversion, Fast, NoInversion
from condkd_ray.methods.memory import AnyMemory, Growing
from condkd_ray.methods.supervised import TeacherConfig
from condkd_ray.methods.targets import AnyTargets, Balanced
from condkd_ray.methods.weighing import AnyWeighing, Equal
from condkd_ray.models import AnyNetwork, ResNet
from condkd_ray.models.teacher import Teacher
from condkd_ray.models.weights import tensor_digest
from condkd_ray.trial.diagnosis import Landmarks
from condkd_ray.trial.evaluation import TestRounds
from condkd_ray.trial.pipeline import Pipeline

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
    pipeline: Pipeline | None = None
    """Null: images are made and learnt from in turn (our choice; the papers' loops)."""
    rounds: int = 12
    """Rounds in which the student learns; those of the inversion's warm-up come before."""
    evaluate_every: int = 1
    """Rounds between two measurements of the student; the last round is always measured."""
    test_rounds: TestRounds = "subset"
    """Test images in each of these measurements: `subset`, at most 1000 (our choice); `full`, all, as PRE-DFKD's mean
    and variance over rounds."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the networks' arithmetic (autocast); losses are float32 always."""

    def __post_init__(self) -> None:
        require(self.seed >= 0, "seed", self.seed, "an integer >= 0")
        require(self.rounds >= 1, "rounds", self.rounds, "an integer >= 1")
        require(self.evaluate_every >= 1, "evaluate_every", self.evaluate_every, "an integer >= 1")
        self.distiller.check_rounds(self.rounds)
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
        require(not idle or self.pipeline is None, "pipeline without an inversion", self.pipeline, "none")
        several = self.producers > 1 and self.inversion.warm_up > 0
        require(not several, "pipeline producers for an inversion that warms up", self.producers, "1, who does so")
        entry, made = getattr(self.memory, "entry_size", 0), self.inversion.images_per_round
        require(idle or entry <= made, "memory entry_size", entry, f"at most {made}, the images of a round")

    @property
    def producers(self) -> int:
        """How many make the trial's images, in turn."""
        return 1 if self.pipeline is None else self.pipeline.producers

    @property
    def keeps_logits(self) -> bool:
        """Whether the teacher's logits of the trial's images are made with them and stored.

        They are where the student's step, the weighing or the memory reads them, and where the teacher is asked for the
        labels anyway. Elsewhere nobody asks before the trial's end; see `outcome.remembered_logits`.
        """
        read = not self.distiller.asks_teacher or self.weighing.reads_memory or self.memory.reads_logits
        return read or self.inversion.labels_by_teacher

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
    test: RealImages | None
    """None: not to be looked at."""
    val: RealImages | None
    condensed: Samples | None
    proxy: Samples
    hashes: dict[str, str] = field(default_factory=dict)
    """Content hashes: data, teacher, condensed, proxy."""
    landmarks: Landmarks | None = None
    """What synthetic images are compared with, for the report alone; without them nothing is."""


def digests(dataset: Dataset, teacher: Teacher, condensed: Samples | None, proxy: Samples) -> dict[str, str]:
    """The `hashes` of what is `Prepared`."""
    return {
        "data": dataset.digest,
        "teacher": tensor_digest(teacher.network.state_dict()),
        "condensed": "" if condensed is None else _digest(condensed),
        "proxy": _digest(proxy),
    }


def _digest(samples: Samples) -> str:
    return tensor_digest({"images": samples.images, "labels": samples.labels})
