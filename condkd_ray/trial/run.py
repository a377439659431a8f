"""Runs one trial without Ray, from its start or its checkpoint to its outcome."""

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
from condkd_ray.trial.outcome import broken, end, fatal, make_product, memory_logits, tested
from condkd_ray.trial.synthesis import codec, own_compilation

CHECKPOINT_SECONDS = 15.0
"""Minimum time between two checkpoints, which are written after rounds, in seconds."""


class OutOfTimeError(Exception):
    """The trial reached its deadline or was halted; it can continue from its checkpoint."""


class PausedError(Exception):
    """The trial has finished the round after which it pauses; it can continue from its checkpoint."""


def local_store(
    config: TrialConfig, prepared: Prepared, folder: Path | None, device_limit: int | None = None
) -> LocalStore:
    """Create a store in this process. With a `folder`, chunks are also written there. `device_limit`: see `Store`."""
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
    pause_after: int | None = None,
) -> Outcome:
    """Run all rounds of a trial and return its outcome; an existing `checkpoint` file is continued.

    A non-finite value or a GPU out of memory ends the trial as failed; the reason names the round and the loss term.

    Args:
        config: the trial.
        prepared: its artifacts.
        store: holds the synthetic images.
        checkpoint: file of the trial's state; None to write none.
        product: file to which the student and the synthetic images are written; None for no file.
        source: returns the images of a round.
        produces: whether the trial itself synthesises them.
        on_round: called with the metrics of each round, including the rounds before the checkpoint.
        before_test: called with the outcome without test accuracy. No test image is used before it returns.
        checkpoint_seconds: minimum time between two checkpoints.
        deadline: `time.time()` from which no further round starts.
        halted: no further round starts once this returns true.
        pause_after: number of rounds after which the trial pauses.

    Raises `OutOfTimeError` if `deadline` or `halted` stopped it, and `PausedError` if it paused before the last round.
    Raises `InputError` if this machine does not support the config's `compile` or `graphs`.
    """
    state, device = None, prepared.teacher.device
    with own_compilation(config, device):
        try:
            state = resume(config, prepared, store, checkpoint, produces=produces)
            shown = with_images_on_device(prepared if before_test is None else replace(prepared, test=None))
            for metrics in state.history:
                on_round(metrics)
            last = config.total_rounds if pause_after is None else min(pause_after, config.total_rounds)
            saves = _Saves(checkpoint, checkpoint_seconds)
            late = passed(deadline) or halted()
            while state.round < last and not late:
                metrics = run_round(config, shown, state, store, source)
                late = passed(deadline) or halted()
                saves.after_round(state, store, due=late or state.round == last)
                on_round(metrics)
            _check_through(state.round, last, config.total_rounds)
            logits = memory_logits(config, prepared, state, store)
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


def with_images_on_device(prepared: Prepared) -> Prepared:
    """Move the uint8 test and validation images to the teacher's device once: each measurement is made there."""
    device, test, val = prepared.teacher.device, prepared.test, prepared.val
    return replace(prepared, test=test and test.to(device), val=val and val.to(device))


class _Saves:
    """Saves the trial's state and commits its store after rounds."""

    def __init__(self, checkpoint: Location | None, seconds: float) -> None:
        self._checkpoint, self._seconds, self._saved = checkpoint, seconds, time.monotonic()

    def after_round(self, state: TrialState, store: Store, *, due: bool) -> None:
        """Write a checkpoint, if there is a path for it, when it is `due` or the last one is old enough."""
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
        raise PausedError


def passed(deadline: float | None) -> bool:
    """Return whether `time.time()` has reached `deadline`; False without a deadline."""
    return deadline is not None and time.time() >= deadline


def resume(
    config: TrialConfig, prepared: Prepared, store: Store, checkpoint: Location | None, *, produces: bool = True
) -> TrialState:
    """Return the state in `checkpoint`, or a new one if there is no such file; restore the store to the same round.

    Raises `InputError` if the checkpoint's student was trained with another optimiser than the config's.
    """
    state = start(config, prepared, produces=produces)
    if checkpoint is not None and checkpoint.is_file():
        states.load(state, checkpoint, prepared.teacher.device)
        config.distiller.check_loaded(state.distiller, checkpoint)
    store.restore(state.num_ids, config.memory.live(state.memory))
    return state


def inherit(config: TrialConfig, prepared: Prepared, source: Location, target: Location) -> None:
    """Write a checkpoint `target` for a trial of `config` that continues from another trial's checkpoint `source`.

    Weights, momenta, random streams and memory are copied from `source`. Learning rates and other hyper-parameters that
    optimisers keep in their state come from `config`, at the step of the schedule that `source` had reached. Samples
    are not part of a checkpoint.
    """
    state = start(config, prepared)
    fresh = [optimizer.state_dict()["param_groups"] for optimizer in _parts(state, Optimizer)]
    states.load(state, source, prepared.teacher.device)
    _impose(state, fresh)
    states.save(state, target)


def _impose(state: TrialState, fresh: list[list[dict[str, Any]]]) -> None:
    for optimizer, groups in zip(_parts(state, Optimizer), fresh, strict=True):
        for group, own in zip(optimizer.param_groups, groups, strict=True):
            # A scheduled rate is reduced by the same factor as in the source.
            scheduled = "initial_lr" in own
            rate = group["lr"] * own["initial_lr"] / group["initial_lr"] if scheduled else own["lr"]
            group.update(own | {"lr": rate, "params": group["params"]})
    for scheduler in _parts(state, LRScheduler):
        scheduler.base_lrs = [group["initial_lr"] for group in scheduler.optimizer.param_groups]
        scheduler._last_lr = _rates(scheduler)
        for group, rate in zip(scheduler.optimizer.param_groups, scheduler._last_lr, strict=True):
            group["lr"] = rate


def _rates(scheduler: LRScheduler) -> list[float]:
    """Return each group's rate at the schedule's step: computed if the schedule is a function, otherwise unchanged."""
    if isinstance(scheduler, LambdaLR):
        own = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        return [float(base) * factor(scheduler.last_epoch) for base, factor in own]
    return [group["lr"] for group in scheduler.optimizer.param_groups]


def _parts(value: Any, kind: type) -> Iterator[Any]:
    """Yield all values of type `kind` in a state, always in the same order."""
    if isinstance(value, kind):
        yield value
    elif is_dataclass(value):
        for field in fields(value):
            yield from _parts(getattr(value, field.name), kind)
