"""`TrialConfig`, the complete configuration of a trial, and its YAML form; `Prepared`, the artifacts of a trial."""

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
from condkd_ray.core.families import Family, check_plugins
from condkd_ray.core.method import Method, require
from condkd_ray.core.records import Record
from condkd_ray.core.samples import Samples
from condkd_ray.core.task import BOTH, Task, is_dense
from condkd_ray.data.datasets import AnyData, DataConfig, Dataset, DataSource, RealImages
from condkd_ray.methods.condensation import CONDENSATIONS, AnyCondensation
from condkd_ray.methods.distiller import Distiller
from condkd_ray.methods.guidance import GUIDANCES, AnyGuidance, Guidance, NoGuidance
from condkd_ray.methods.inversion import INVERSIONS, AnyInversion, Fast, NoInversion
from condkd_ray.methods.losses.kd import KD_LOSSES
from condkd_ray.methods.memory import MEMORIES, AnyMemory, Growing
from condkd_ray.methods.supervised import Precision, TeacherConfig
from condkd_ray.methods.targets import TARGETS, AnyTargets, Balanced
from condkd_ray.methods.weighing import WEIGHINGS, AnyWeighing, Equal
from condkd_ray.models import NETWORKS, AnyNetwork, ResNet, Torchvision, label
from condkd_ray.models.teacher import Teacher
from condkd_ray.trial.diagnosis import Landmarks
from condkd_ray.trial.subset import TestRounds

STARTS = "0; or an inversion that optimises pixels or latents: fast, cmi, nayer, deep_inversion, soft_target"
CONDITIONAL = (
    "false; or an oh_weight > 0; or a class-conditional guidance with a weight > 0 (a discriminator also needs an "
    "adversarial_weight > 0, or with the class head a class_weight > 0): otherwise images are independent of their "
    "labels"
)
LAYOUTS = "a condensation: its masks are the layouts; or targets balanced"
SOFT = "balanced; or an inversion that takes soft targets, such as fast, cmi, deep_inversion, soft_target"


@dataclass(frozen=True, kw_only=True)
class Pipeline(Method):
    """Runs the inversion in parallel with the student's training. Staleness is exact, so a run is repeatable.

    Rounds are counted from 0. Producers take turns; each has its own inversion, guidance and random streams, and a
    single one has those of a trial without a pipeline. A round is made with the student (and, if the weighing reads the
    memory, the class counts) from `staleness` rounds earlier, or from the very start. Therefore one producer gives the
    numbers of a trial without a pipeline if `staleness` is 0, or if neither the student nor the memory influences the
    images.
    """

    ours: ClassVar[tuple[str, ...]] = ("producers", "staleness")
    producers: int = 1
    """Number of image producers. Under Ray each is a separate process, with its own share of a GPU."""
    staleness: int = 1
    """Number of rounds by which the student of an inversion lags, fewer only in the first rounds. 0: no lag."""

    def __post_init__(self) -> None:
        require(self.producers >= 1, "pipeline producers", self.producers, "an integer >= 1")
        require(self.staleness >= 0, "pipeline staleness", self.staleness, "an integer >= 0")
        # More producers would only wait, because at most `staleness` + 1 rounds are in progress at a time.
        most = self.staleness + 1
        require(self.producers <= most, "pipeline producers", self.producers, f"at most {most}, the staleness + 1")

    def producer(self, round: int) -> int:
        """Return the number of the producer of `round`."""
        return round % self.producers

    def student_round(self, round: int) -> int:
        """Return the number of finished rounds of the student snapshot that is used for `round`."""
        return max(0, round - self.staleness)


@dataclass(frozen=True, kw_only=True)
class TrialConfig(Method):
    """The complete configuration of a trial, which determines its numbers. With open leaves it is a search space."""

    tasks = BOTH
    seed: int = 0
    """Seed of everything in the trial except the data split and the teacher, which have their own seeds."""
    data: AnyData = DataConfig()
    """Real images: for the teacher's training, for condensation and for tests."""
    teacher: TeacherConfig = TeacherConfig()
    """The network that is inverted and distilled, and how it is trained or loaded."""
    student: AnyNetwork = ResNet(depth=8, width=8)
    """Architecture of the student."""
    condensation: AnyCondensation | None = None
    """Method that makes the condensed set. Null: no condensed set (IPC 0)."""
    targets: AnyTargets = Balanced()
    """Targets of the synthetic images: labels, or soft targets."""
    weighing: AnyWeighing = Equal()
    """Weights of the images in the loss of the inversion."""
    inversion: AnyInversion = Fast()
    """Method that synthesises images from the teacher."""
    guidance: AnyGuidance = NoGuidance()
    """Penalty that moves synthetic images towards condensed images; the inversion is its host."""
    memory: AnyMemory = Growing()
    """Replay memory, which selects the synthetic images to keep and to draw."""
    distiller: Distiller = Distiller()
    """Training of the student."""
    pipeline: Pipeline | None = None
    """Null: inversion and distillation alternate, as in the papers."""
    rounds: int = 12
    """Rounds in which the student learns; the rounds of the inversion's warm-up come before them."""
    evaluate_every: int = 1
    """Number of rounds between two measurements of the student; the last round is always measured."""
    test_rounds: TestRounds = "subset"
    """Test images in each of these measurements: `subset`, at most 1000, in segmentation 100 (our choice); `full`, all,
    as for PRE-DFKD's mean and variance over rounds."""
    precision: Precision | None = None
    """Precision of the networks (autocast); losses are always float32. Null: bfloat16 on a GPU with hardware support,
    otherwise float32; the record contains the precision in use."""
    compile: Compile = "off"
    """Compilation of the steps by PyTorch: `default` fuses operations, `max-autotune` also measures kernels, which
    takes minutes. Numbers differ in the last bits. Requires a C++ compiler, and Triton on a GPU."""
    store_logits: bool = False
    """In segmentation, whether the teacher's logits of synthetic images are stored for the student's step. By default
    the teacher is asked again, because the logits of all pixels take K float16 values each, more than the image; the
    metric `memory/bytes` shows what either takes. In classification logits that are read are always stored."""
    graphs: bool = False
    """Replay steps as CUDA graphs, so that the GPU does not wait for the CPU; also possible with `compile: off`."""

    def __post_init__(self) -> None:
        require(self.seed >= 0, "seed", self.seed, "an integer >= 0")
        require(self.rounds >= 1, "rounds", self.rounds, "an integer >= 1")
        require(self.evaluate_every >= 1, "evaluate_every", self.evaluate_every, "an integer >= 1")
        self._check_task()
        self.distiller.check_rounds(self.rounds)
        share, condensed = self.distiller.condensed_share, self.condensation is not None
        require(condensed or share == 0, "condensed_share without a condensation", share, "0, or a condensation")
        guided = not isinstance(self.guidance, NoGuidance)
        name = self.guidance.name
        require(condensed or not guided, "guidance without a condensation", name, "none, or a condensation")
        idle, least = isinstance(self.inversion, NoInversion), share * self.distiller.share_schedule.smallest
        require(not idle or not guided, "guidance without an inversion", name, "none, or an inversion")
        what = "smallest condensed_share without an inversion"
        require(not idle or not self.distiller.needs_synthetic, what, least, "1")
        takes = not self.targets.soft or self.inversion.uses_targets == "soft"
        require(takes, f"targets {self.targets.name} for inversion {self.inversion.name}", "soft", SOFT)
        temperature = getattr(self.inversion, "oh_temperature", 1.0)
        accepted = "1: soft targets have their own temperature, which the class prior then uses as well"
        fits = temperature == 1 or not self.targets.soft
        require(fits, f"inversion oh_temperature with targets {self.targets.name}", temperature, accepted)
        require(not idle or self.pipeline is None, "pipeline without an inversion", self.pipeline, "null")
        self._check_labels_and_starts()
        several = self.producers > 1 and self.inversion.warm_up > 0
        require(not several, "pipeline producers for an inversion that warms up", self.producers, "1")
        entry, made = getattr(self.memory, "entry_size", 0), self.inversion.images_per_round
        require(idle or entry <= made, "memory entry_size", entry, f"at most {made}, the images of a round")

    def _check_task(self) -> None:
        """Raise `InputError` for a part that does not work for the task of the data."""
        if not isinstance(self.data, DataSource):
            return  # a config built in Python with values of other types: whoever runs it checks them
        # A default network may stand for a teacher that is given later as an object: see `check_teacher_network`.
        if self.teacher.network != TeacherConfig().network:
            self.check_teacher_network()
        parts: dict[str, tuple[Method | None, Family]] = {
            "student": (self.student, NETWORKS),
            "condensation": (self.condensation, CONDENSATIONS),
            "targets": (self.targets, TARGETS),
            "weighing": (self.weighing, WEIGHINGS),
            "inversion": (self.inversion, INVERSIONS),
            "guidance": (self.guidance, GUIDANCES),
            "memory": (self.memory, MEMORIES),
            "distiller.loss": (self.distiller.loss, KD_LOSSES),
        }
        for what, (method, family) in parts.items():
            if method is not None:
                self._require_task(what, method, family)
        task = self.data.task
        if not is_dense(task):
            accepted = "false: in classification logits that are read are always stored"
            return require(not self.store_logits, "store_logits", self.store_logits, accepted)
        reads = not self.store_logits or not self.distiller.runs_teacher
        require(reads, "store_logits for a distiller that augments", self.store_logits, "false, or augment false")
        augment = self.distiller.condensed_augment
        require(augment == "batch", f"distiller.condensed_augment for {task}", augment, "batch: dsa moves no labels")
        self.guidance.check_dense()
        layouts = self.targets.needs_condensed
        require(not layouts or self.condensation is not None, "targets layouts without a condensation", None, LAYOUTS)
        used = self.inversion.uses_targets != "none"
        accepted = "balanced, which is then not used; or an inversion that uses targets, such as dfad with conditional"
        require(not layouts or used, f"targets for inversion {self.inversion.name}", self.targets.name, accepted)

    def check_teacher_network(self) -> None:
        """Raise `InputError` unless the teacher's network works for the task of the data, or is not used."""
        if self.teacher.module is None:
            self._require_task("teacher.network", self.teacher.network, NETWORKS)

    def _require_task(self, what: str, method: Method, family: Family) -> None:
        if not isinstance(method, Method):
            return  # as above
        task, name = self.data.task, getattr(method, "name", type(method).__name__)
        name = label(method) if isinstance(method, Torchvision) else name
        require(task in method.tasks, f"{what} for {task} (data {self.data.name})", name, _working(family, task))

    def _check_labels_and_starts(self) -> None:
        inversion, guidance = self.inversion, self.guidance
        share, starts = guidance.from_guides.share, inversion.starts_from_images
        require(starts or share == 0, f"from_guides share for inversion {inversion.name}", share, STARTS)
        pulls = guidance.class_conditional and guidance.weight * guidance.schedule.largest > 0
        tied = pulls or getattr(inversion, "oh_weight", 0.0) > 0
        conditional = getattr(inversion, "conditional", False)
        require(tied or not conditional, f"conditional for inversion {inversion.name}", conditional, CONDITIONAL)

    @property
    def producers(self) -> int:
        """Number of producers that make the trial's images in turn."""
        return 1 if self.pipeline is None else self.pipeline.producers

    @property
    def idle(self) -> tuple[str, ...]:
        """Settings that have no effect, with the reason."""
        regions = getattr(self.guidance, "regions", Guidance.regions)
        unused = regions != Guidance.regions and not is_dense(self.data.task)
        found = (f"guidance regions {regions} in classification",) if unused else ()
        return self.guidance.idle + self.distiller.idle + found

    @property
    def keeps_logits(self) -> bool:
        """True if the teacher's logits of the trial's images are computed and stored together with them.

        This is the case if the distillation step, the weighing or the memory reads the logits, or if the labels are
        computed from them. Otherwise the logits are computed only at the end of the trial; see
        `outcome.memory_logits`. In segmentation labels and class counts need no stored logits; see `store_logits`.
        """
        step = not self.distiller.runs_teacher
        if is_dense(self.data.task):
            return self.memory.reads_logits or (step and self.store_logits)
        read = step or self.weighing.reads_memory or self.memory.reads_logits
        return read or self.inversion.labels_by_teacher

    @property
    def shares_logits(self) -> bool:
        """True if samples that trials share are stored with the teacher's logits.

        In segmentation they are only if the trial reads them, and trials that do not read them share other samples.
        """
        return self.keeps_logits or not is_dense(self.data.task)

    @property
    def ipc(self) -> int:
        """Condensed images per class; 0 without a condensed set, or with one that has no such number."""
        return getattr(self.condensation, "ipc", 0)

    @property
    def total_rounds(self) -> int:
        """Number of rounds, including the warm-up."""
        return self.inversion.warm_up + self.rounds

    def progress(self, round: int) -> float:
        """Return the position in schedules after `round` rounds: 0 up to the student's first round, 1 at its last."""
        return max(round - self.inversion.warm_up, 0) / max(self.rounds - 1, 1)

    def measures(self, round: int) -> bool:
        """Return whether the student is measured in the round after `round` rounds; never during the warm-up."""
        learnt = round + 1 - self.inversion.warm_up
        return learnt >= 1 and (learnt % self.evaluate_every == 0 or learnt >= self.rounds)


def _working(family: Family, task: Task) -> str:
    """Return the names of the family's members that work for `task`, for a message."""
    kinds = {name: kind for name, kind in family.members().items() if task in kind.tasks}
    names = [f"{name} with a model for {task}" if kind is Torchvision else name for name, kind in kinds.items()]
    return ", ".join(names) or f"none: no member of {family.name} works for {task}"


def from_tree(tree: Tree, source: str = "config") -> TrialConfig:
    """Return the config described by a tree; missing leaves have their defaults.

    Raises `InputError` for the first invalid key or value; `source` names the file in the message.
    """
    return build(TrialConfig, tree, source)


def read(path: Path) -> TrialConfig:
    """Return the config in a YAML file; see `from_tree`."""
    return from_tree(read_tree(path), str(path))


def of_record(record: Record) -> TrialConfig:
    """Return the config of a record. Raises `InputError` if a plug-in that it was made with is not here."""
    source = f"record {record.config_hash[:12]}"
    check_plugins(record.plugins, source, record.config)
    return from_tree(record.config, source)


def dump(config: TrialConfig) -> str:
    """Return the complete config as YAML."""
    return yaml.safe_dump(to_tree(config), sort_keys=False)


@dataclass(frozen=True)
class Prepared:
    """Artifacts of a trial: made once, cached, and shared by all trials of a sweep."""

    teacher: Teacher
    test: RealImages | None
    """Test images; None if they must not be used."""
    val: RealImages | None
    condensed: Samples | None
    proxy: Samples
    hashes: dict[str, str] = field(default_factory=dict)
    """Content hashes under `data`, `teacher`, `condensed`, `proxy`."""
    landmarks: Landmarks | None = None
    """Features to which synthetic images are compared, for the report only; None for no comparison."""
    class_names: tuple[str, ...] = ()
    """Names of the classes, by label."""
    own_module: str | None = None
    """Name of the user's function that made the teacher's network; its code may be missing on other machines."""


def digests(dataset: Dataset, teacher: Teacher, condensed: Samples | None, proxy: Samples) -> dict[str, str]:
    """Return the `hashes` of a `Prepared` with these artifacts."""
    return {
        "data": dataset.digest,
        "teacher": tensor_digest(teacher.network.state_dict()),
        "condensed": "" if condensed is None else _digest(condensed),
        "proxy": _digest(proxy),
    }


def _digest(samples: Samples) -> str:
    return tensor_digest({"images": samples.images, "labels": samples.labels})


def tensor_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return 16 hex digits of the SHA-256 of named tensors: names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}/{tensor.dtype}/{tuple(tensor.shape)}/".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
