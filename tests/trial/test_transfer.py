"""A trial that goes on from another's state, under rates of its own."""

import dataclasses
import math

import pytest
import torch
import toy

from condkd_ray.core import checkpoint as states
from condkd_ray.methods.distiller import Distiller
from condkd_ray.trial.loop import start
from condkd_ray.trial.run import RestsError, local_store, run_trial
from condkd_ray.trial.transfer import inherit

CONFIG = toy.toy_config(rounds=4, distiller=Distiller(steps=2, batch=16, condensed_share=0.25, lr=0.1, momentum=0.9))


@pytest.fixture(scope="module")
def prepared():
    return toy.make_prepared()


@pytest.fixture(scope="module")
def rested(prepared, tmp_path_factory):
    path = tmp_path_factory.mktemp("rested") / "state.safetensors"
    with pytest.raises(RestsError):
        run_trial(
            *(CONFIG, prepared, local_store(CONFIG, prepared, path.parent)),
            **{"checkpoint": path, "rests": 2, "checkpoint_seconds": math.inf},
        )
    return path


def test_it_rests_after_its_round_with_a_checkpoint(prepared, rested):
    assert states.load(start(CONFIG, prepared), rested).round == 2


def test_an_heir_of_the_same_config_comes_to_the_same_numbers(prepared, rested):
    inherit(CONFIG, prepared, rested, rested.with_name("heir.safetensors"))
    store = local_store(CONFIG, prepared, rested.parent)
    heir = run_trial(CONFIG, prepared, store, checkpoint=rested.with_name("heir.safetensors"))
    whole = run_trial(CONFIG, prepared, local_store(CONFIG, prepared, None))
    assert heir.predictions == whole.predictions
    assert heir.history[-1]["proxy/kl"] == whole.history[-1]["proxy/kl"]


def test_weights_are_the_others_and_rates_its_own_where_the_schedule_stands(prepared, rested):
    config = dataclasses.replace(
        CONFIG,
        distiller=dataclasses.replace(CONFIG.distiller, lr=0.02, momentum=0.5),
        inversion=dataclasses.replace(CONFIG.inversion, lr=3e-4)
        if hasattr(CONFIG.inversion, "lr")
        else CONFIG.inversion,
    )
    before = states.load(start(CONFIG, prepared), rested)
    inherit(config, prepared, rested, rested.with_name("other.safetensors"))
    after = states.load(start(config, prepared), rested.with_name("other.safetensors"))
    for ours, theirs in zip(after.distiller.student.parameters(), before.distiller.student.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    (group,), (old,) = after.distiller.optimizer.param_groups, before.distiller.optimizer.param_groups
    assert (group["initial_lr"], group["momentum"], group["nesterov"]) == (0.02, 0.5, False)
    assert group["lr"] == pytest.approx(old["lr"] * 0.2)
    assert after.distiller.schedule.last_epoch == before.distiller.schedule.last_epoch == 4
    assert after.distiller.schedule.base_lrs == [0.02]
    after.distiller.optimizer.step()
    after.distiller.schedule.step()
    factor = config.distiller._rate(8)(5)
    assert group["lr"] == pytest.approx(0.02 * factor)
    assert (after.round, after.num_ids) == (before.round, before.num_ids)
