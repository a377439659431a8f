"""Whole toy trials, and how they go on from a checkpoint."""

import copy

from toy import make_prepared

from condkd_ray.core import checkpoint
from condkd_ray.trial.loop import run_round, start
from condkd_ray.trial.run import local_store
from contracts.toy_methods import same, tensors


def numbers(live, *without):
    """A trial's history but times and what else is to be left out."""
    left_out = ("time/", *without)
    return [{name: x for name, x in round.items() if not name.startswith(left_out)} for round in live.history]


def goes_on_alike(settings, folder, *, before=1, after=2):
    """Run `before` rounds, save, load into a fresh trial, run `after` more of both; assert that they are equal.

    The trial that was not interrupted, and its store.
    """
    prepared = make_prepared()
    live, store = start(settings, prepared), local_store(settings, prepared, None)
    for _ in range(before):
        run_round(settings, prepared, live, store)
    checkpoint.save(live, folder / "state")
    resumed = checkpoint.load(start(settings, make_prepared()), folder / "state")
    kept = copy.deepcopy(store)
    for _ in range(after):
        run_round(settings, prepared, live, store)
        run_round(settings, make_prepared(), resumed, kept)
    assert numbers(live) == numbers(resumed)
    assert same(list(tensors(live)), list(tensors(resumed)))
    return live, store
