from dataclasses import fields, replace

import pytest
import toy

from condkd_ray.cluster.gpu_memory import Need, _kinds, _roles, check_need, check_packing, one_step, samples_bytes, work
from condkd_ray.cluster.jobs import Job
from condkd_ray.core.method import InputError
from condkd_ray.methods.distiller import Distiller
from condkd_ray.methods.inversion import Fast
from condkd_ray.trial.config import Pipeline
from condkd_ray.trial.plan import Plan, PlannedTrial

SYNTHESIZE, STEP = Fast.synthesize, Distiller.step
BOTH = ("inversion", "distillation")


def job(key: str, config) -> Job:
    return PlannedTrial(key, Plan(key, 0, 0, config), None)


def test_a_need_above_its_part_is_refused_with_the_part_it_needs():
    check_need("a", Need(peak=70, total=140), 0.5)
    with pytest.raises(InputError, match=r"0\.4, 56\.0 GB of a GPU; accepted: 0\.50 or more, as guided seed 0 takes"):
        check_need("guided seed 0", Need(peak=70 * 10**9, total=140 * 10**9), 0.4)


def test_where_samples_are_what_does_not_fit_a_lower_limit_is_named():
    need = Need(peak=70 * 10**9, total=140 * 10**9, samples=20 * 10**9)
    with pytest.raises(InputError, match=r"takes 70\.0 GB, or a lower --device-pool-limit: its samples may come to 20"):
        check_need("a", need, 0.4)
    with pytest.raises(InputError, match=r"takes 70\.0 GB$"):
        check_need("a", need, 0.3)


def test_the_samples_of_all_rounds_count_up_to_the_limit():
    config, teacher = toy.toy_config(rounds=30), toy.make_teacher()
    whole = 30 * config.inversion.images_per_round * (64 + 8)
    assert samples_bytes(config, teacher, 10**9) == int(2.5 * whole)
    assert samples_bytes(config, teacher, whole) == 2 * whole


def test_a_step_of_everything_is_enough_to_be_measured():
    config = one_step(toy.toy_config(seed=7, rounds=30))
    assert (config.rounds, config.inversion.steps, config.distiller.steps, config.seed) == (1, 1, 1, 0)
    assert config.inversion == replace(toy.toy_config().inversion, steps=1)
    assert "batch" in {field.name for field in fields(Fast)}


def test_trials_that_differ_in_seed_and_length_alone_are_measured_once():
    wide = toy.toy_config(inversion=Fast(steps=2, batch=32, latent=16, width=8))
    jobs = [job("a", toy.toy_config()), job("b", toy.toy_config(seed=1, rounds=9)), job("c", wide)]
    assert [job.key for job in _kinds(jobs)] == ["a", "c"]


@pytest.mark.parametrize("role", ["trial", "learner", "producer"])
def test_each_process_of_a_trial_does_a_round_of_its_own_work(role, monkeypatch):
    done = []
    monkeypatch.setattr(Fast, "synthesize", lambda *args, **rest: done.append("inversion") or SYNTHESIZE(*args, **rest))
    monkeypatch.setattr(Distiller, "step", lambda *args, **rest: done.append("distillation") or STEP(*args, **rest))
    config = one_step(toy.toy_config(pipeline=None if role == "trial" else Pipeline()))
    work(config, toy.make_prepared(), role)
    assert set(done) == {"trial": set(BOTH), "learner": {BOTH[1]}, "producer": {BOTH[0]}}[role]


def test_a_trial_with_producers_has_two_kinds_of_process():
    assert _roles(job("a", toy.toy_config())) == ("trial",)
    assert _roles(job("a", toy.toy_config(pipeline=Pipeline()))) == ("learner", "producer")


def test_gpus_on_paper_and_whole_ones_pass(cluster):
    for part in (0.0, 1.0, 0.5):
        check_packing([job("a", toy.toy_config())], part, part)
