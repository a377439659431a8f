"""Synthetic images of a trial: guided inversion, round by round, with a state separate from the student's.

Only these functions draw from a production's random streams. Trials that share one production, or run it in another
process, therefore compute the same numbers as a trial that makes its images itself.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from condkd_ray.core import compilation
from condkd_ray.core.checkpoint import Packed, pack, unpack
from condkd_ray.core.compilation import compiling
from condkd_ray.core.device import sent
from condkd_ray.core.method import Metrics
from condkd_ray.core.rng import Streams, derive_seed
from condkd_ray.core.samples import UNLABELLED, Codec, Samples, unseen
from condkd_ray.core.task import is_dense
from condkd_ray.methods.guidance.guidance import HostAugment
from condkd_ray.methods.targets import Targets
from condkd_ray.models.teacher import Teacher
from condkd_ray.trial.config import Prepared, TrialConfig
from condkd_ray.trial.hardware import hardware_of, settled

DENSE_BATCH = 64
"""Images per pass of a segmentation teacher that predicts masks; this only limits memory."""


@dataclass
class Production:
    """Mutable state of the image synthesis: inversion, guidance and random streams."""

    inversion: Any
    guidance: Any
    streams: Streams
    round: int = 0
    """Number of the next round, counted from 0."""


def begin(config: TrialConfig, prepared: Prepared, number: int = 0) -> Production:
    """Return the state before the first round, on the teacher's device.

    `number`: number of the producer, if a pipeline has several, of which each has its own seed.
    """
    seed = config.seed if config.producers == 1 else derive_seed(config.seed, f"producer/{number}")
    streams = Streams(seed, prepared.teacher.device)
    teacher = prepared.teacher
    inversion = config.inversion.init(teacher, streams)
    guidance = config.guidance.start(teacher, prepared.condensed, streams, host_augment(config, teacher))
    return Production(inversion, guidance, streams, number)


def host_augment(config: TrialConfig, teacher: Teacher) -> HostAugment:
    """Return the inversion's augmentation as a function of images (B, C, H, W) and a random stream."""
    return lambda images, stream: config.inversion.augment(images, teacher=teacher, rng=stream)


def produce(
    config: TrialConfig,
    prepared: Prepared,
    production: Production,
    student: nn.Module,
    class_counts: Tensor,
    *,
    with_logits: bool = False,
) -> tuple[Samples, Metrics]:
    """Synthesise the images of the next round; return them and the means of their loss terms.

    The images are encoded and decoded once. They have logits if the config `keeps_logits`, or if `with_logits` (other
    trials need them). The student's outputs, in eval mode, matter only if the inversion `uses_student`,
    and the memory's `class_counts` (K,) only if the weighing `reads_memory`. Raises `NonFiniteError` before anything is
    stored.
    """
    with arithmetic(config, prepared.teacher.device):
        fresh, terms = synthesise(config, prepared, production, student, class_counts)
        production.round += config.producers
        logits, relabel = with_logits or config.keeps_logits, config.inversion.labels_by_teacher
        code = codec(config, prepared.teacher)
        return settle(fresh, code, prepared.teacher, logits=logits, relabel=relabel), terms


def synthesise(
    config: TrialConfig, prepared: Prepared, production: Production, student: nn.Module, class_counts: Tensor
) -> tuple[Samples, Metrics]:
    """Run guided inversion for one round; return images and means of loss terms as `produce` does, but not encoded."""
    teacher, rng = prepared.teacher, production.streams
    guide = config.guidance.bind(
        production.guidance,
        teacher=teacher,
        condensed=prepared.condensed,
        host_augment=host_augment(config, teacher),
        rng=rng,
        progress=config.progress(production.round),
    )
    targets = _targets(config, prepared, rng)
    with _frozen(student):
        fresh, terms = config.inversion.synthesize(
            production.inversion,
            targets,
            teacher=teacher,
            student=student.eval(),
            guide=guide,
            weigh=config.weighing.bind(sent(class_counts, teacher.device)),
            rng=rng,
        )
    return fresh, terms | config.guidance.read(guide)


def _targets(config: TrialConfig, prepared: Prepared, rng: Streams) -> Targets:
    """Return the targets of a round's images."""
    count, teacher = config.inversion.images_per_round, prepared.teacher
    if is_dense(teacher.task) and config.inversion.uses_targets == "none":
        # Only their number is used, and layouts would take more memory than the images.
        return Targets(torch.full((count,), UNLABELLED, device=teacher.device))
    more = {"condensed": prepared.condensed} if config.targets.needs_condensed else {}
    return config.targets.sample(count, teacher, rng=rng, **more)


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """Disable gradients of the network's weights: a compiled step computes every gradient that is enabled."""
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    try:
        for parameter in learning:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


@torch.no_grad()
def settle(samples: Samples, code: Codec, teacher: Teacher, *, logits: bool = True, relabel: bool = False) -> Samples:
    """Return samples as any store would return them, with images encoded and decoded once.

    `logits`: compute the teacher's logits, with one pass over these images. `relabel`: replace the labels by the argmax
    of the logits; requires `logits`. In segmentation the labels are always the argmax, and `logits` says whether the
    logits are returned too. The result shares no memory with `samples`, which a replayed CUDA graph may overwrite.
    """
    images = code.decode(code.encode(samples)).images
    if is_dense(teacher.task) and not logits:
        return unseen(images, predicted_masks(teacher, images))
    if not logits:
        return unseen(images, samples.labels.clone())
    values = stored_logits(teacher, images)
    relabel = relabel or is_dense(teacher.task)
    return Samples(images, values.argmax(1) if relabel else samples.labels.clone(), values)


@torch.no_grad()
def predicted_masks(teacher: Teacher, images: Tensor) -> Tensor:
    """Return the classes (B, H, W) that the teacher predicts, in batches whose logits are not kept."""
    if not len(images):
        return images.new_zeros(0, *images.shape[2:], dtype=torch.int64)
    return torch.cat([teacher.batched_logits(part).argmax(1) for part in images.split(DENSE_BATCH)])


@torch.no_grad()
def stored_logits(teacher: Teacher, images: Tensor) -> Tensor:
    """Return the teacher's logits (B, K) float32 of images (B, C, H, W), rounded to float16 as a store does.

    In segmentation (B, K, H, W).
    """
    if not len(images):
        return images.new_zeros(0, teacher.num_classes, *(images.shape[2:] if is_dense(teacher.task) else ()))
    return teacher.batched_logits(images).half().float()


def codec(config: TrialConfig, teacher: Teacher) -> Codec:
    """Return the encoding in which stores keep this trial's samples."""
    return Codec(config.inversion.pixel_space, teacher.mean, teacher.std, config.keeps_logits)


def precision(config: TrialConfig, device: torch.device) -> torch.autocast:
    """Return the autocast context in which the trial's networks compute."""
    chosen = settled(config, hardware_of(device)).precision
    # The weight cache would still hold the old weights after an optimiser step within the same context.
    return torch.autocast(device.type, torch.bfloat16, enabled=chosen == "bfloat16", cache_enabled=False)


@contextmanager
def arithmetic(config: TrialConfig, device: torch.device) -> Iterator[None]:
    """Apply the config's precision, compilation and CUDA graph settings to everything in the context."""
    with precision(config, device), compiling(config.compile, config.graphs):
        yield


@contextmanager
def own_compilation(config: TrialConfig, device: torch.device) -> Iterator[None]:
    """Separate compiled code and CUDA graph memory from other trials: clear both at entry and at exit.

    Raises `InputError` if this machine does not support the config's `compile` or `graphs`.
    """
    compilation.check(config.compile, config.graphs, device)
    compilation.clear_compiled()
    try:
        yield
    finally:
        compilation.clear_compiled()


Snapshot = tuple[dict[str, Tensor], Tensor]
"""Student weights (empty unless the inversion `uses_student`) and class counts (K,) between two rounds of a trial."""


class Pipelined:
    """State of a trial's image synthesis between two rounds of a pipeline."""

    def __init__(self) -> None:
        self.past: dict[int, Snapshot] = {}
        """Student snapshots, keyed by the number of finished rounds; only those that coming rounds still need."""
        self.states: dict[int, Callable[[], Packed]] = {}
        """For each producer, a function that returns its state after its last round that the trial consumed; no entry
        before its first round."""
        self.here: dict[int, Producer] = {}
        """Producers that run in this process, by number."""

    def record(self, config: TrialConfig, round: int, student: nn.Module, class_counts: Tensor) -> None:
        """Store a copy of the student and of the class counts at the start of `round`."""
        weights = student.state_dict() if config.inversion.uses_student else {}
        self.past[round] = ({name: tensor.detach().clone() for name, tensor in weights.items()}, class_counts.clone())

    def drop_before(self, before: int) -> None:
        """Delete the snapshots from before round `before`."""
        self.past = {round: snapshot for round, snapshot in self.past.items() if round >= before}

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"past": self.past, "states": {number: state() for number, state in self.states.items()}}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        self.past, self.here = dict(saved["past"]), {}
        self.states = {number: partial(Packed, packed) for number, packed in saved["states"].items()}


class Producer:
    """Makes every `config.producers`-th round of a trial, from round `number` on or from the point saved in `state`."""

    def __init__(self, config: TrialConfig, prepared: Prepared, number: int, state: Packed | None) -> None:
        self._config, self._prepared = config, prepared
        self._production = begin(config, prepared, number)
        if state is not None:
            unpack(self._production, state, prepared.teacher.device)
        self._student = new_student(config, prepared.teacher)

    def make(self, snapshot: Snapshot) -> tuple[Samples, Metrics]:
        """Return images and loss terms of this producer's next round; see `produce`."""
        weights, class_counts = snapshot
        if weights:
            self._student.load_state_dict(weights)
        return produce(self._config, self._prepared, self._production, self._student, class_counts)

    def state(self) -> Packed:
        """Return the current state."""
        return pack(self._production)


def make_round(
    config: TrialConfig, prepared: Prepared, state: Pipelined, round: int, student: nn.Module, class_counts: Tensor
) -> tuple[Samples, Metrics]:
    """Make the images of `round` with a producer in this process; `student` and `class_counts` are the current ones."""
    assert config.pipeline is not None
    number = config.pipeline.producer(round)
    if number not in state.here:
        known = state.states.get(number)
        state.here[number] = Producer(config, prepared, number, known() if known else None)
        state.states[number] = state.here[number].state
    state.record(config, round, student, class_counts)
    made = state.here[number].make(state.past[config.pipeline.student_round(round)])
    state.drop_before(config.pipeline.student_round(round + 1))
    return made


def new_student(config: TrialConfig, teacher: Teacher) -> nn.Module:
    """Return the student before its first step, on the teacher's device."""
    with Streams(config.seed).forked("init/student"):
        student = config.student.build(teacher.image_shape, teacher.num_classes)
    return student.to(teacher.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
