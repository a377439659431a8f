"""One trial from its start, or from its checkpoint, to its outcome. What Ray does with a trial, this does without."""

import time
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from condkd_ray.core import checkpoint as states
from condkd_ray.core.method import Metrics
from condkd_ray.core.records import Outcome
from condkd_ray.core.storage import Location
from condkd_ray.methods.memory import LocalStore, Store
from condkd_ray.trial.config import Prepared, TrialConfig
from condkd_ray.trial.loop import Source, TrialState, own_images, run_round, start
from condkd_ray.trial.outcome import broken, end, fatal, make_product, remembered_logits, tested
from condkd_ray.trial.synthesis import codec, compiled_apart

CHECKPOINT_SECONDS = 15.0
"""A checkpoint after every round, but no more often than this."""


class OutOfTimeError(Exception):
    """A trial was stopped at its deadline, after a checkpoint from which it can go on."""


class RestsError(Exception):
    """A trial has come to the round after which it rests, with a checkpoint there."""


def local_store(
    config: TrialConfig, prepared: Prepared, folder: Path | None, device_limit: int | None = None
) -> LocalStore:
    """A store in this process; with a `folder`, its chunks lie there too, for resuming. `device_limit`: see `Store`."""
    teacher = prepared.teacher
    chunks = None if folder is None else folder / "chunks"
    code = codec(config, teacher)
    return LocalStore(code, teacher.num_classes, chunks, teacher.device, device_limit=device_limit)


def run_trial(
    config: TrialConfig,
    prepared: Prepared,
    store: Store,
    *,
    checkpoint: Location | None = None,
    product: Location | None = None,
    source: Source = own_images,
    produces: bool = True,
    on_round: Callable[[Metrics], None] = lambda metrics: None,
    before_test: Callable[[Outcome], None] | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    deadline: float | None = None,
    halted: Callable[[], bool] = lambda: False,
    rests: int | None = None,
) -> Outcome:
    """All rounds of a trial; with a `checkpoint` file there, from where that stands.

    A NaN ends the trial as failed, naming round and loss term; so does a GPU that is out of memory. `on_round` hears
    the metrics of each round, those before the checkpoint included, so that whoever shows them has all. Where a
    `product` is wanted, student and synthetic images are left there. `source`: of the images; the trial itself
    `produces` them or not.
    `before_test` hears the outcome as it is without the test images, of which none is then looked at before it returns.
    From the `deadline`, a `time.time()`, or once it is `halted`, no round is begun: raises `OutOfTimeError`.
    After the round `rests`, if that is not the last: raises `RestsError`. Raises `InputError` where nothing can be
    compiled, or replayed as graphs, as the config says.
    """
    state, device = None, prepared.teacher.device
    with compiled_apart(config, device):
        try:
            state = resume(config, prepared, store, checkpoint, produces=produces)
            shown = at_hand(prepared if before_test is None else replace(prepared, test=None))
            for metrics in state.history:
                on_round(metrics)
            last = config.total_rounds if rests is None else min(rests, config.total_rounds)
            saves = _Saves(checkpoint, checkpoint_seconds)
            late = passed(deadline) or halted()
            while state.round < last and not late:
                metrics = run_round(config, shown, state, store, source)
                late = passed(deadline) or halted()
                saves.after_round(state, store, due=late or state.round == last)
                on_round(metrics)
            _check_through(state.round, last, config.total_rounds)
            logits = remembered_logits(config, prepared, state, store)
            if product is not None:
                states.save(make_product(config, prepared, state, store, logits), product)
            untested = end(config, prepared, state, store, logits)
            if before_test is not None:
                before_test(untested)
            return tested(untested, state, shown if shown.test is not None else prepared)
        except Exception as error:
            if not fatal(error):
                raise
            return broken(error, device, state, config.total_rounds)


def at_hand(prepared: Prepared) -> Prepared:
    """With the real images on the device too, which rounds are measured on: sent once, as uint8."""
    device, test, val = prepared.teacher.device, prepared.test, prepared.val
    return replace(prepared, test=test and test.to(device), val=val and val.to(device))


class _Saves:
    """When the trial's state and its store are made to last."""

    def __init__(self, checkpoint: Location | None, seconds: float) -> None:
        self._checkpoint, self._seconds, self._saved = checkpoint, seconds, time.monotonic()

    def after_round(self, state: TrialState, store: Store, *, due: bool) -> None:
        """Write a checkpoint where there is a place for it and it is `due`, or the last was long ago."""
        due = due or time.monotonic() - self._saved >= self._seconds
        if self._checkpoint is not None and due:
            states.save(state, self._checkpoint)
            self._saved = time.monotonic()
        if self._checkpoint is None or due:
            store.commit()


def _check_through(round: int, last: int, total: int) -> None:
    if round < last:
        raise OutOfTimeError
    if round < total:
        raise RestsError


def passed(deadline: float | None) -> bool:
    """Whether it is later than that, a `time.time()`; never where there is none."""
    return deadline is not None and time.time() >= deadline


def resume(
    config: TrialConfig, prepared: Prepared, store: Store, checkpoint: Location | None, *, produces: bool = True
) -> TrialState:
    """The state in `checkpoint`, or a fresh one; the store is brought to the same point.

    Raises `InputError` for a checkpoint whose student was trained by another optimiser than the config's.
    """
    state = start(config, prepared, produces=produces)
    if checkpoint is not None and checkpoint.is_file():
        states.load(state, checkpoint, prepared.teacher.device)
        config.distiller.check_loaded(state.distiller, checkpoint)
    store.restore(state.num_ids, config.memory.live(state.memory))
    return state


def inherit(config: TrialConfig, prepared: Prepared, source: Location, target: Location) -> None:
    """Make `target` the checkpoint of a trial of `config` that goes on where another has left `source`.

    Weights, momenta, random streams and memory are the other's. Rates and the like, which optimisers keep in their
    state, are the config's own, at the place in their schedules that the other had reached. Samples lie elsewhere.
    """
    state = start(config, prepared)
    fresh = [optimizer.state_dict()["param_groups"] for optimizer in _parts(state, Optimizer)]
    states.load(state, source, prepared.teacher.device)
    _impose(state, fresh)
    states.save(state, target)


def _impose(state: TrialState, fresh: list[list[dict[str, Any]]]) -> None:
    for optimizer, groups in zip(_parts(state, Optimizer), fresh, strict=True):
        for group, own in zip(optimizer.param_groups, groups, strict=True):
            # Under a schedule: as far down as the other was.
            scheduled = "initial_lr" in own
            rate = group["lr"] * own["initial_lr"] / group["initial_lr"] if scheduled else own["lr"]
            group.update(own | {"lr": rate, "params": group["params"]})
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
    elif is_dataclass(value):
        for field in fields(value):
            yield from _parts(getattr(value, field.name), kind)
