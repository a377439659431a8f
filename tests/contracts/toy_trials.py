"""Helpers that run whole toy trials and compare them after a restart from a checkpoint."""

import copy

from toy import make_prepared

from condkd_ray.core import checkpoint
from condkd_ray.trial.loop import run_round, start
from condkd_ray.trial.run import local_store
from contracts.toy_methods import same, tensors


def numbers(live, *without):
    """Return a trial's history without times and without metrics whose names begin with one of `without`."""
    left_out = ("time/", *without)
    return [{name: x for name, x in round.items() if not name.startswith(left_out)} for round in live.history]


def assert_resumes(settings, folder, *, before=1, after=2):
    """Assert that a trial that is saved and loaded continues exactly like one that is not interrupted.

    The trial is saved after `before` rounds; both run `after` more. Returns the state and the store of the trial that
    was not interrupted.
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
