"""What makes a trial's images: guided inversion, round by round, with a state apart from the student's.

Nothing but these functions draws from a production's streams. So trials may share one, or have it run elsewhere, and
come to the numbers of a trial that makes its images itself.
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
from condkd_ray.core.samples import Codec, Samples, unseen
from condkd_ray.methods.guidance.guidance import HostAugment
from condkd_ray.models.teacher import Teacher
from condkd_ray.trial.config import Prepared, TrialConfig
from condkd_ray.trial.hardware import hardware_of, settled


@dataclass
class Production:
    """All that changes as images are made."""

    inversion: Any
    guidance: Any
    streams: Streams
    round: int = 0
    """Of the trial, that comes next."""


def begin(config: TrialConfig, prepared: Prepared, number: int = 0) -> Production:
    """The state before the first round, on the teacher's device; of producer `number` where the trial has several."""
    seed = config.seed if config.producers == 1 else derive_seed(config.seed, f"producer/{number}")
    streams = Streams(seed, prepared.teacher.device)
    teacher = prepared.teacher
    inversion = config.inversion.init(teacher, streams)
    guidance = config.guidance.start(teacher, prepared.condensed, streams, host_augment(config, teacher))
    return Production(inversion, guidance, streams, number)


def host_augment(config: TrialConfig, teacher: Teacher) -> HostAugment:
    """What the host does to images before the teacher sees them, by any stream."""
    return lambda images, stream: config.inversion.augment(images, teacher=teacher, rng=stream)


def produce(
    config: TrialConfig,
    prepared: Prepared,
    production: Production,
    student: nn.Module,
    class_counts: Tensor,
    *,
    promised: bool = False,
) -> tuple[Samples, Metrics]:
    """The images of the next round, settled, and the means of their loss terms.

    They come with the teacher's logits where the config `keeps_logits`, or logits are `promised` to other trials.
    `student` is asked, in eval mode, only by an inversion that `uses_student`; `class_counts` (K,) of what the memory
    holds count only for a weighing that `reads_memory`. Raises `NonFiniteError` before anything is kept.
    """
    with arithmetic(config, prepared.teacher.device):
        fresh, terms = synthesise(config, prepared, production, student, class_counts)
        production.round += config.producers
        ask, label = promised or config.keeps_logits, config.inversion.labels_by_teacher
        return settle(fresh, codec(config, prepared.teacher), prepared.teacher, ask=ask, label=label), terms


def synthesise(
    config: TrialConfig, prepared: Prepared, production: Production, student: nn.Module, class_counts: Tensor
) -> tuple[Samples, Metrics]:
    """A round of guided inversion; see `produce`."""
    teacher, rng = prepared.teacher, production.streams
    guide = config.guidance.bind(
        production.guidance,
        teacher=teacher,
        condensed=prepared.condensed,
        host_augment=host_augment(config, teacher),
        rng=rng,
        progress=config.progress(production.round),
    )
    targets = config.targets.sample(config.inversion.images_per_round, teacher, rng=rng)
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


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """Within it no gradient of its weights is computed: a compiled step would compute all that could be asked for."""
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    try:
        for parameter in learning:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


@torch.no_grad()
def settle(samples: Samples, code: Codec, teacher: Teacher, *, ask: bool = True, label: bool = False) -> Samples:
    """Samples just as any store will give them back: the images encoded and decoded once.

    `ask`: with the teacher's logits on these images, by the one pass over a round's fresh images; `label`: with its
    argmax for labels, which needs `ask`. They share no memory with `samples`, which a replayed step may overwrite.
    """
    images = code.decode(code.encode(samples)).images
    if not ask:
        return unseen(images, samples.labels.clone())
    logits = answers(teacher, images)
    return Samples(images, logits.argmax(1) if label else samples.labels.clone(), logits)


@torch.no_grad()
def answers(teacher: Teacher, images: Tensor) -> Tensor:
    """The teacher's logits (B, K) float32 of images (B, C, H, W), as a store keeps them: rounded to float16."""
    if not len(images):
        return images.new_zeros(0, teacher.num_classes)
    return teacher.answers(images).half().float()


def codec(config: TrialConfig, teacher: Teacher) -> Codec:
    """How this trial's samples are kept."""
    return Codec(config.inversion.pixel_space, teacher.mean, teacher.std, config.keeps_logits)


def precision(config: TrialConfig, device: torch.device) -> torch.autocast:
    """The networks' arithmetic."""
    chosen = settled(config, hardware_of(device)).precision
    # Without its cache: within one context it would go on with the weights of before the optimiser's first step.
    return torch.autocast(device.type, torch.bfloat16, enabled=chosen == "bfloat16", cache_enabled=False)


@contextmanager
def arithmetic(config: TrialConfig, device: torch.device) -> Iterator[None]:
    """How what happens in a round is computed: in which precision, compiled or not."""
    with precision(config, device), compiling(config.compile, config.graphs):
        yield


@contextmanager
def compiled_apart(config: TrialConfig, device: torch.device) -> Iterator[None]:
    """What is compiled within it, and the memory of its graphs, is this config's alone, and gone at its end.

    Raises `InputError` where nothing can be compiled, or replayed as graphs, as the config says.
    """
    compilation.check(config.compile, config.graphs, device)
    compilation.forget()
    try:
        yield
    finally:
        compilation.forget()


Look = tuple[dict[str, Tensor], Tensor]
"""Of a trial between two rounds: the student's weights, none where nobody asks it, and the class counts (K,)."""


class Pipelined:
    """The state of a trial's production between two rounds of a pipeline."""

    def __init__(self) -> None:
        self.past: dict[int, Look] = {}
        """By the rounds done by then, as far back as coming rounds are shown it."""
        self.states: dict[int, Callable[[], Packed]] = {}
        """Of producers, as they were after their last round that the trial has taken; none before their first."""
        self.here: dict[int, Producer] = {}
        """Those that work in this process."""

    def see(self, config: TrialConfig, round: int, student: nn.Module, class_counts: Tensor) -> None:
        """Keep a copy of what producers are shown of the trial as it begins `round`."""
        weights = student.state_dict() if config.inversion.uses_student else {}
        self.past[round] = ({name: tensor.detach().clone() for name, tensor in weights.items()}, class_counts.clone())

    def forget(self, before: int) -> None:
        """Let go of the trial as it was before round `before`."""
        self.past = {round: look for round, look in self.past.items() if round >= before}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"past": self.past, "states": {number: tell() for number, tell in self.states.items()}}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Become as at a checkpoint."""
        self.past, self.here = dict(saved["past"]), {}
        self.states = {number: partial(Packed, packed) for number, packed in saved["states"].items()}


class Producer:
    """Makes every `config.producers`-th round of a trial from `number` on, or, given its `state`, from there on."""

    def __init__(self, config: TrialConfig, prepared: Prepared, number: int, state: Packed | None) -> None:
        self._config, self._prepared = config, prepared
        self._production = begin(config, prepared, number)
        if state is not None:
            unpack(self._production, state, prepared.teacher.device)
        self._student = new_student(config, prepared.teacher)

    def make(self, look: Look) -> tuple[Samples, Metrics]:
        """Its next round; see `produce`."""
        weights, class_counts = look
        if weights:
            self._student.load_state_dict(weights)
        return produce(self._config, self._prepared, self._production, self._student, class_counts)

    def state(self) -> Packed:
        """As it is now."""
        return pack(self._production)


def make_round(
    config: TrialConfig, prepared: Prepared, state: Pipelined, round: int, student: nn.Module, class_counts: Tensor
) -> tuple[Samples, Metrics]:
    """Round `round` of a trial that stands as given, by a producer in this process."""
    assert config.pipeline is not None
    number = config.pipeline.producer(round)
    if number not in state.here:
        known = state.states.get(number)
        state.here[number] = Producer(config, prepared, number, known() if known else None)
        state.states[number] = state.here[number].state
    state.see(config, round, student, class_counts)
    made = state.here[number].make(state.past[config.pipeline.shown(round)])
    state.forget(config.pipeline.shown(round + 1))
    return made


def new_student(config: TrialConfig, teacher: Teacher) -> nn.Module:
    """The student as it is before its first step, on the teacher's device."""
    with Streams(config.seed).forked("init/student"):
        student = config.student.build(teacher.image_shape, teacher.num_classes)
    return student.to(teacher.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
