"""Those who make the rounds of a trial with a pipeline, and what of the trial they are shown.

Here they work in the trial's own process, one round after the other; side by side with it they come to equal numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from condkd_ray.core.checkpoint import Packed, pack, unpack
from condkd_ray.core.method import Metrics
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import Samples
from condkd_ray.models.teacher import Teacher
from condkd_ray.trial.config import Prepared, TrialConfig
from condkd_ray.trial.synthesis import begin, produce

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
        weights = student.state_dict() if config.inversion.asks_student else {}
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
        self.states = {number: partial(_same, packed) for number, packed in saved["states"].items()}


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


def _same(packed: Packed) -> Packed:
    return packed
