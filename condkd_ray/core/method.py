"""What every method is: a frozen dataclass of hyper-parameters, with its state kept apart; and what all methods share.

A method prints, compares, hashes and goes to YAML without a second class, because it *is* its configuration.
"""

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

Metrics = dict[str, float]
"""`family/term` to a plain number, as logged once a round."""


LONGEST = 1000
"""Characters of a value that stand in a message."""


class InputError(ValueError):
    """Something a user gave cannot be used; the message names the thing, the value and what is accepted.

    Programs end with exit code 2 on it, before any training.
    """


NOT_FINITE = "not finite"
"""Words of each `NonFiniteError`, by which a stored reason tells it."""


class NonFiniteError(ArithmeticError):
    """A loss term became NaN or infinite; the message names the first such term and its step, and says `NOT_FINITE`."""


class ClusterError(RuntimeError):
    """The cluster, or a process or node of it, has not come up or is gone; the message says which in one line.

    Programs end with exit code 1 on it; the same command may have more luck.
    """


@dataclass(frozen=True, kw_only=True)
class Method:
    """Base of everything configurable. Its fields have docstrings, which the command line shows."""

    paper: ClassVar[str] = ""
    """Where the method was published; empty where it is nobody's in particular."""
    ours: ClassVar[tuple[str, ...]] = ()
    """Fields whose meaning or default is our choice and no paper's."""


def require(holds: bool, what: str, value: object, accepted: str) -> None:
    """Raise `InputError` unless `holds`: "`what` is `value`; accepted: `accepted`"."""
    if not holds:
        raise InputError(f"{what} is {shown(value)}; accepted: {accepted}")


def require_weights(method: Method, family: str) -> None:
    """Raise `InputError` unless each field `weight` or `..._weight` of a method of `family` is finite and >= 0."""
    for field in fields(method):
        if field.name == "weight" or field.name.endswith("_weight"):
            value = getattr(method, field.name)
            require(0 <= value < math.inf, f"{family} {field.name}", value, ">= 0, and finite")


def require_rates(method: Method, family: str, *, frozen: bool = False) -> None:
    """Raise `InputError` unless each learning rate of a method of `family`, `lr` or `lr_...`, is finite and > 0.

    `frozen`: 0 is accepted too, where one of several things that could move may stay.
    """
    accepted = ">= 0, and finite; at 0 it does not move" if frozen else "> 0, and finite"
    for field in fields(method):
        if field.name == "lr" or field.name.startswith("lr_"):
            value = getattr(method, field.name)
            fits = 0 < value < math.inf or (frozen and value == 0)
            require(fits, f"{family} {field.name}", value, accepted)


def shown(value: object) -> str:
    """A value as messages have it: of a very long one the beginning."""
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text)} characters)"


@dataclass(frozen=True, kw_only=True)
class Schedule(Method):
    """Half a cosine from `start` to `end` over the first `until` of the rounds, then constant. The default is 1.

    PGDI lets the share of its guide images fall by such a cosine in the first half (`peers.md` A.13); that the same
    form serves weights, and warm-ups (`start: 0`), is our choice.
    """

    start: float = 1.0
    end: float = 1.0
    until: float = 0.5
    """Share of the rounds after which `end` is reached."""

    def __post_init__(self) -> None:
        for factor in (self.start, self.end):
            require(0 <= factor < math.inf, "schedule start or end", factor, "a factor >= 0")
        require(0 < self.until <= 1, "schedule until", self.until, "0 < share <= 1")

    @property
    def largest(self) -> float:
        """The largest factor it ever gives."""
        return max(self.start, self.end)

    @property
    def smallest(self) -> float:
        """The smallest factor it ever gives."""
        return min(self.start, self.end)

    def at(self, progress: float) -> float:
        """The factor at `progress`, 0 in the first round and 1 in the last."""
        passed = min(progress / self.until, 1.0)
        return self.end + (self.start - self.end) * 0.5 * (1 + math.cos(math.pi * passed))


class Meter:
    """Means of loss terms over the steps of a round, kept on the device until `read`.

    Beside each sum it counts the steps before the term first became non-finite. Once one term is NaN all others
    follow within a step; the one with the fewest finite steps is the culprit.
    """

    def __init__(self, family: str) -> None:
        self._family = family
        self._terms: dict[str, tuple[Tensor, Tensor, int]] = {}
        """Of each term its sum, the steps at which that was finite, and all steps."""

    def add(self, **terms: "Tensor") -> None:
        """Add one step's terms, 0-dimensional tensors on any device. No host sync."""
        for name, value in terms.items():
            value = value.detach().float()
            # A sum stays non-finite once one summand was, so counting finite sums counts the steps before.
            if name in self._terms:
                total, finite, steps = self._terms[name]
                total = total + value
                self._terms[name] = (total, finite + total.isfinite(), steps + 1)
            else:
                # A copy: a graph that is replayed writes the next step's value over this one.
                self._terms[name] = (value.clone(), value.isfinite().float(), 1)

    def read(self) -> Metrics:
        """Means by `family/term`: the one host copy of a round. Raises `NonFiniteError` naming term and step."""
        if not self._terms:
            return {}
        # Here, as messages on bad input are wanted before PyTorch is imported, which takes seconds.
        import torch

        totals, counts, steps = zip(*self._terms.values(), strict=True)
        sums, finite = torch.stack(totals).tolist(), torch.stack(counts).tolist()
        broken = [(count, name) for name, count, all_ in zip(self._terms, finite, steps, strict=True) if count < all_]
        if broken:
            count, name = min(broken, key=lambda pair: pair[0])
            raise NonFiniteError(f"loss term {self._family}/{name} is not finite at step {int(count) + 1}")
        return {f"{self._family}/{name}": total / n for name, total, n in zip(self._terms, sums, steps, strict=True)}
