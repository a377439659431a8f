"""A trial that takes over the state of another, and goes on from there under its own config."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from condkd_ray.core import checkpoint as states
from condkd_ray.core.storage import Location
from condkd_ray.trial.config import Prepared, TrialConfig
from condkd_ray.trial.loop import TrialState, start


def inherit(config: TrialConfig, prepared: Prepared, source: Location, target: Location) -> None:
    """Make `target` the checkpoint of a trial of `config` that goes on where another has left `source`.

    Weights, momenta, random streams and memory are the other's. Rates and the like, which optimisers keep in their
    state, are the config's own, at the place in their schedules that the other had reached. Samples lie elsewhere.
    """
    state = start(config, prepared)
    fresh = _settings(state)
    states.load(state, source, prepared.teacher.device)
    _impose(state, fresh)
    states.save(state, target)


def _settings(state: TrialState) -> list[list[dict[str, Any]]]:
    """What each optimiser was made with, group by group."""
    return [
        [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
        for optimizer in _parts(state, Optimizer)
    ]


def _impose(state: TrialState, fresh: list[list[dict[str, Any]]]) -> None:
    for optimizer, groups in zip(_parts(state, Optimizer), fresh, strict=True):
        for group, own in zip(optimizer.param_groups, groups, strict=True):
            # Under a schedule: as far down as the other was.
            scheduled = "initial_lr" in own
            rate = group["lr"] * own["initial_lr"] / group["initial_lr"] if scheduled else own["lr"]
            group.update(own | {"lr": rate})
    for scheduler in _parts(state, LRScheduler):
        scheduler.base_lrs = [group["initial_lr"] for group in scheduler.optimizer.param_groups]
        scheduler._last_lr = _rates(scheduler)
        for group, rate in zip(scheduler.optimizer.param_groups, scheduler._last_lr, strict=True):
            group["lr"] = rate


def _rates(scheduler: LRScheduler) -> list[float]:
    """The rate of each group at the schedule's step: exact where a function gives it, otherwise as it stands."""
    if isinstance(scheduler, LambdaLR):
        own = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        return [float(base) * factor(scheduler.last_epoch) for base, factor in own]
    return [group["lr"] for group in scheduler.optimizer.param_groups]


def _parts(value: Any, kind: type) -> Iterator[Any]:
    """Everything of a kind in a state, always in the same order."""
    if isinstance(value, kind):
        yield value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _parts(getattr(value, field.name), kind)
