"""Base class of methods, frozen dataclasses of hyper-parameters without state; exceptions and helpers they share.

A method is its own configuration, so no second class is needed to print, compare, hash or store it as YAML.
"""

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar

from condkd_ray.core.task import Task

if TYPE_CHECKING:
    from torch import Tensor

Metrics = dict[str, float]
"""Numbers by `family/term`, logged once per round."""


LONGEST = 1000
"""Largest number of characters of a value in a message."""


class InputError(ValueError):
    """Bad input from the user; the message names the thing, its value and the accepted values.

    Programs exit with code 2, before any training.
    """


NOT_FINITE = "not finite"
"""Words in every `NonFiniteError` message; stored reasons are recognised by them."""


class NonFiniteError(ArithmeticError):
    """A loss term became NaN or infinite; the message names the first such term and its step, with `NOT_FINITE`."""


class ClusterError(RuntimeError):
    """The cluster, or a process or node of it, did not start or was lost; the message names it in one line.

    Programs exit with code 1; running the same command again may succeed.
    """


@dataclass(frozen=True, kw_only=True)
class Method:
    """Base class of all configurable classes. The command line shows the docstrings of their fields.

    A bad value of a field raises `InputError` when the object is made.
    """

    paper: ClassVar[str] = ""
    """Publication of the method; empty for generally known methods."""
    ours: ClassVar[tuple[str, ...]] = ()
    """Fields whose meaning or default is our choice instead of a paper's."""
    tasks: ClassVar[tuple[Task, ...]] = ("classification",)
    """Tasks that the method works for; see `core.task`."""


def require(holds: bool, what: str, value: object, accepted: str) -> None:
    """Raise `InputError` unless `holds`: "`what` is `value`; accepted: `accepted`"."""
    if not holds:
        raise InputError(f"{what} is {value_text(value)}; accepted: {accepted}")


def require_weights(method: Method, family: str) -> None:
    """Raise `InputError` unless each field `weight` or `..._weight` of a method of `family` is finite and >= 0."""
    for field in fields(method):
        if field.name == "weight" or field.name.endswith("_weight"):
            value = getattr(method, field.name)
            require(0 <= value < math.inf, f"{family} {field.name}", value, ">= 0, and finite")


def require_rates(method: Method, family: str, *, frozen: bool = False) -> None:
    """Raise `InputError` unless each learning rate of a method of `family`, `lr` or `lr_...`, is finite and > 0.

    `frozen`: 0 is accepted too, for a part that may stay fixed.
    """
    accepted = ">= 0, and finite; 0 keeps it fixed" if frozen else "> 0, and finite"
    for field in fields(method):
        if field.name == "lr" or field.name.startswith("lr_"):
            value = getattr(method, field.name)
            fits = 0 < value < math.inf or (frozen and value == 0)
            require(fits, f"{family} {field.name}", value, accepted)


def value_text(value: object) -> str:
    """Return the value's text for a message; a very long one is cut."""
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text)} characters)"


@dataclass(frozen=True, kw_only=True)
class Schedule(Method):
    """Factor that follows half a cosine from `start` to `end` over the first share `until` of rounds, then is constant.

    The default is 1. PGDI lowers the share of its guide images by such a cosine in the first half of the rounds. Using
    the same form for weights and for warm-ups (`start: 0`) is our choice.
    """

    start: float = 1.0
    """Factor in the first round."""
    end: float = 1.0
    """Factor from `until` on."""
    until: float = 0.5
    """Share of the rounds after which `end` is reached."""

    def __post_init__(self) -> None:
        for factor in (self.start, self.end):
            require(0 <= factor < math.inf, "schedule start or end", factor, "a factor >= 0")
        require(0 < self.until <= 1, "schedule until", self.until, "0 < share <= 1")

    @property
    def largest(self) -> float:
        """Largest factor of the schedule."""
        return max(self.start, self.end)

    @property
    def smallest(self) -> float:
        """Smallest factor of the schedule."""
        return min(self.start, self.end)

    def at(self, progress: float) -> float:
        """Return the factor at `progress`, from 0 in the first round to 1 in the last."""
        passed = min(progress / self.until, 1.0)
        return self.end + (self.start - self.end) * 0.5 * (1 + math.cos(math.pi * passed))


class Meter:
    """Means of loss terms over the steps of a round, kept on the device until `read`.

    For each term it also counts the steps before the term first became non-finite. Once one term is NaN, the others
    usually follow within a step; the term with the fewest finite steps is reported.
    """

    def __init__(self, family: str) -> None:
        self._family = family
        self._terms: dict[str, tuple[Tensor, Tensor, int]] = {}
        """For each term: its sum, the number of steps with a finite sum, and the number of steps."""

    def add(self, **terms: "Tensor") -> None:
        """Add one step's terms, 0-dimensional tensors on any device, without waiting for the device."""
        for name, value in terms.items():
            value = value.detach().float()
            # A sum stays non-finite after one non-finite summand, so counting finite sums counts the steps before.
            if name in self._terms:
                total, finite, steps = self._terms[name]
                total = total + value
                self._terms[name] = (total, finite + total.isfinite(), steps + 1)
            else:
                # A copy: replaying a graph overwrites this tensor with the next step's value.
                self._terms[name] = (value.clone(), value.isfinite().float(), 1)

    def read(self) -> Metrics:
        """Return the means by `family/term`, with one copy to the CPU. Raises `NonFiniteError` naming term and step."""
        if not self._terms:
            return {}
        # Imported here: messages about bad input shall not wait for PyTorch's import, which takes seconds.
        import torch

        totals, counts, steps = zip(*self._terms.values(), strict=True)
        sums, finite = torch.stack(totals).tolist(), torch.stack(counts).tolist()
        broken = [(count, name) for name, count, all_ in zip(self._terms, finite, steps, strict=True) if count < all_]
        if broken:
            count, name = min(broken, key=lambda pair: pair[0])
            raise NonFiniteError(f"loss term {self._family}/{name} is not finite at step {int(count) + 1}")
        return {f"{self._family}/{name}": total / n for name, total, n in zip(self._terms, sums, steps, strict=True)}
