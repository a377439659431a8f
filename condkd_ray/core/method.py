"""What every method of the system is: a frozen dataclass of hyper-parameters, with its state kept apart.

A method prints, compares, hashes and goes to YAML without a second class, because it *is* its configuration.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

Metrics = dict[str, float]
"""`family/term` to a plain number, as logged once a round."""


class InputError(ValueError):
    """Something a user gave cannot be used; the message names the thing, the value and what is accepted.

    Programs end with exit code 2 on it, before any training.
    """


class NonFiniteError(ArithmeticError):
    """A loss term became NaN or infinite; the message names the first such term and its step."""


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
        raise InputError(f"{what} is {value!r}; accepted: {accepted}")


class Meter:
    """Means of loss terms over the steps of a round, kept on the device until `read`.

    Beside each sum it counts the steps before the term first became non-finite. Once one term is NaN all others
    follow within a step; the one with the fewest finite steps is the culprit.
    """

    def __init__(self, family: str) -> None:
        self._family = family
        self._terms: dict[str, tuple[Tensor, Tensor, int]] = {}
        """Of each term its sum, the steps at which that was finite, and all steps."""

    def add(self, **terms: Tensor) -> None:
        """Add one step's terms, 0-dimensional tensors on any device. No host sync."""
        for name, value in terms.items():
            value = value.detach().float()
            # A sum stays non-finite once one summand was, so counting finite sums counts the steps before.
            if name in self._terms:
                total, finite, steps = self._terms[name]
                total = total + value
                self._terms[name] = (total, finite + total.isfinite(), steps + 1)
            else:
                self._terms[name] = (value, value.isfinite().float(), 1)

    def read(self) -> Metrics:
        """Means by `family/term`: the one host copy of a round. Raises `NonFiniteError` naming term and step."""
        if not self._terms:
            return {}
        totals, counts, steps = zip(*self._terms.values(), strict=True)
        sums, finite = torch.stack(totals).tolist(), torch.stack(counts).tolist()
        broken = [(count, name) for name, count, all_ in zip(self._terms, finite, steps, strict=True) if count < all_]
        if broken:
            count, name = min(broken, key=lambda pair: pair[0])
            raise NonFiniteError(f"loss term {self._family}/{name} is not finite at step {int(count) + 1}")
        return {f"{self._family}/{name}": total / n for name, total, n in zip(self._terms, sums, steps, strict=True)}
