"""`TrialConfig`, all that determines a trial's numbers, its YAML form, and `Prepared`, what others have made for it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
import yaml
from torch import Tensor

from condkd_ray.core.compilation import Compile
from condkd_ray.core.config import Tree, build, read_tree, to_tree
from condkd_ray.core.families import check_plugins
from condkd_ray.core.method import Method, require
from condkd_ray.core.records import Record
from condkd_ray.core.samples import Samples
from condkd_ray.data.datasets import AnyData, DataConfig, Dataset, RealImages
from condkd_ray.methods.condensation import AnyCondensation
from condkd_ray.methods.distiller import Distiller
from condkd_ray.methods.guidance import AnyGuidance, NoGuidance
from condkd_ray.methods.inversion import AnyInversion, Fast, NoInversion
from condkd_ray.methods.memory import AnyMemory, Growing
from condkd_ray.methods.supervised import Precision, TeacherConfig
from condkd_ray.methods.targets import AnyTargets, Balanced
from condkd_ray.methods.weighing import AnyWeighing, Equal
from condkd_ray.models import AnyNetwork, ResNet
from condkd_ray.models.teacher import Teacher
from condkd_ray.trial.diagnosis import Landmarks
from condkd_ray.trial.subset import TestRounds

STARTING = "0; or an inversion that optimises pixels or latents: fast, cmi, nayer, deep_inversion, soft_target"
TYING = (
    "false; or an oh_weight > 0, or a guidance of classes with a weight > 0 (of a discriminator also "
    "adversarial_weight, or with the class head class_weight): else labels say nothing of images"
)
HEARING = "balanced; or an inversion that takes soft targets, such as fast, cmi, deep_inversion, soft_target"


@dataclass(frozen=True, kw_only=True)
class Pipeline(Method):
    """Inversion goes on while the student learns. Staleness is exact, so that timing decides nothing: a run repeats.

    Rounds are counted from 0. Producers take turns, each with an inversion, a guidance and random streams of its own;
    one alone has those of a trial without a pipeline. A round is made with the student (and, for a weighing that reads
    the memory, the class counts) as `staleness` rounds before, or as at the very start. So staleness 0 and one producer
    are the numbers of a trial without a pipeline, and so are one producer and any staleness where nobody asks the
    student or the memory.
    """

    ours: ClassVar[tuple[str, ...]] = ("producers", "staleness")
    producers: int = 1
    """How many make images. Under Ray each is a process beside the trial's own, on its share of a GPU."""
    staleness: int = 1
    """Rounds by which the student that an inversion asks may be behind; as many are made ahead. 0: none is."""

    def __post_init__(self) -> None:
        require(self.producers >= 1, "pipeline producers", self.producers, "an integer >= 1")
        require(self.staleness >= 0, "pipeline staleness", self.staleness, "an integer >= 0")
        # Beyond that some would only ever wait: no more rounds are in the making at a time.
        most = self.staleness + 1
        require(self.producers <= most, "pipeline producers", self.producers, f"at most {most}, the staleness + 1")

    def producer(self, round: int) -> int:
        """Who makes `round`."""
        return round % self.producers

    def shown(self, round: int) -> int:
        """After how many rounds the student was what the producer of `round` is shown."""
        return max(0, round - self.staleness)


@dataclass(frozen=True, kw_only=True)
class TrialConfig(Method):
    """All that determines a trial's numbers. As a file it is a run; with open leaves it is a search space."""

    seed: int = 0
    """Of everything in the trial but the data split and the teacher, which have their own."""
    data: AnyData = DataConfig()
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
    precision: Precision | None = None
    """Of the networks' arithmetic (autocast); losses are float32 always. Null: bfloat16 on a GPU that has it, else
    float32; a record holds the one that was chosen."""
    compile: Compile = "off"
    """Whether PyTorch's compiler builds what a step does: `default` fuses operations, `max-autotune` also tries kernels
    out, which takes minutes. Numbers differ in the last bits. It needs a C++ compiler, on a GPU Triton too."""
    graphs: bool = False
    """Whether steps are replayed as CUDA graphs, which spares a GPU the wait for its host; with `compile: off` too."""

    def __post_init__(self) -> None:
        require(self.seed >= 0, "seed", self.seed, "an integer >= 0")
        require(self.rounds >= 1, "rounds", self.rounds, "an integer >= 1")
        require(self.evaluate_every >= 1, "evaluate_every", self.evaluate_every, "an integer >= 1")
        self.distiller.check_rounds(self.rounds)
        share, condensed = self.distiller.condensed_share, self.condensation is not None
        require(condensed or share == 0, "condensed_share without a condensation", share, "0, or a condensation")
        guided = not isinstance(self.guidance, NoGuidance)
        name = self.guidance.name
        require(condensed or not guided, "guidance without a condensation", name, "none, or a condensation")
        idle, least = isinstance(self.inversion, NoInversion), share * self.distiller.share_schedule.smallest
        require(not idle or not guided, "guidance without an inversion", name, "none, or an inversion")
        require(not idle or not self.distiller.needs_synthetic, "condensed_share without inversion", least, "1")
        takes = not self.targets.soft or self.inversion.hears == "answers"
        require(takes, f"targets {self.targets.name} for inversion {self.inversion.name}", "soft", HEARING)
        temperature = getattr(self.inversion, "oh_temperature", 1.0)
        accepted = "1: soft targets have a temperature of their own, which is that of the class prior then"
        fits = temperature == 1 or not self.targets.soft
        require(fits, f"inversion oh_temperature beside targets {self.targets.name}", temperature, accepted)
        require(not idle or self.pipeline is None, "pipeline without an inversion", self.pipeline, "none")
        self._check_labels_and_starts()
        several = self.producers > 1 and self.inversion.warm_up > 0
        require(not several, "pipeline producers for an inversion that warms up", self.producers, "1, who does so")
        entry, made = getattr(self.memory, "entry_size", 0), self.inversion.images_per_round
        require(idle or entry <= made, "memory entry_size", entry, f"at most {made}, the images of a round")

    def _check_labels_and_starts(self) -> None:
        inversion, guidance = self.inversion, self.guidance
        share, starts = guidance.from_guides.share, inversion.starts_from_images
        require(starts or share == 0, f"from_guides share for inversion {inversion.name}", share, STARTING)
        pulls = guidance.tells_classes and guidance.weight * guidance.schedule.largest > 0
        tied = pulls or getattr(inversion, "oh_weight", 0.0) > 0
        conditional = getattr(inversion, "conditional", False)
        require(tied or not conditional, f"conditional for inversion {inversion.name}", conditional, TYING)

    @property
    def producers(self) -> int:
        """How many make the trial's images, in turn."""
        return 1 if self.pipeline is None else self.pipeline.producers

    @property
    def idle(self) -> tuple[str, ...]:
        """What is set and does nothing, and why."""
        return self.guidance.idle + self.distiller.idle

    @property
    def keeps_logits(self) -> bool:
        """Whether the teacher's logits of the trial's images are made with them and stored.

        They are where the student's step, the weighing or the memory reads them, and where the teacher is asked for the
        labels anyway. Elsewhere nobody asks before the trial's end; see `outcome.remembered_logits`.
        """
        read = not self.distiller.asks_teacher or self.weighing.reads_memory or self.memory.reads_logits
        return read or self.inversion.labels_by_teacher

    @property
    def ipc(self) -> int:
        """Condensed images per class; 0 where there is no condensed set, or one of another kind."""
        return getattr(self.condensation, "ipc", 0)

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


def from_tree(tree: Tree, source: str = "config") -> TrialConfig:
    """The config a tree describes; leaves not given keep their defaults.

    Raises `InputError` with the first bad key, its value and what is accepted; `source` names the file.
    """
    return build(TrialConfig, tree, source)


def read(path: Path) -> TrialConfig:
    """The config in a YAML file; see `from_tree`."""
    return from_tree(read_tree(path), str(path))


def of_record(record: Record) -> TrialConfig:
    """Return the config of a record. Raises `InputError` if a plug-in that it was made with is not here."""
    source = f"record {record.config_hash[:12]}"
    check_plugins(record.plugins, source)
    return from_tree(record.config, source)


def dump(config: TrialConfig) -> str:
    """The complete config as YAML."""
    return yaml.safe_dump(to_tree(config), sort_keys=False)


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
    own_module: str | None = None
    """The user's function that made the teacher's network, whose code other machines may not have."""


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


def tensor_digest(tensors: Mapping[str, Tensor]) -> str:
    """16 hex digits of the SHA-256 of named tensors: names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}/{tensor.dtype}/{tuple(tensor.shape)}/".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
