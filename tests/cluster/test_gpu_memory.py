import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import pytest
import torch
import toy
from trial.devices import DEVICES, prepared_on

from cluster.drivers import PATH, assert_equal_numbers, direct
from condkd_ray.cluster.gpu_memory import (
    TOO_LARGE,
    Need,
    check_need,
    check_packing,
    kinds,
    measured,
    roles,
    short,
    with_samples,
    work,
)
from condkd_ray.cluster.jobs import Job
from condkd_ray.core.environment import CONTEXT_BYTES, set_up_process
from condkd_ray.core.method import InputError
from condkd_ray.core.records import Outcome
from condkd_ray.methods.distiller import Distiller
from condkd_ray.methods.inversion import Fast
from condkd_ray.trial.config import Pipeline
from condkd_ray.trial.packing import PreparedRefs
from condkd_ray.trial.plan import Plan, PlannedTrial
from condkd_ray.trial.run import local_store, run_trial

SYNTHESIZE, STEP = Fast.synthesize, Distiller.step
BOTH = ("inversion", "distillation")


def job(key: str, config) -> Job:
    return PlannedTrial(key, Plan(key, 0, 0, config), None)


def test_a_need_above_the_gpu_share_is_refused_with_the_share_it_needs():
    check_need("a", Need(peak=70, total=140), 0.5)
    with pytest.raises(InputError, match=r"0\.4, 56\.0 GB of a GPU; accepted: 0\.50 or more: guided seed 0 takes"):
        check_need("guided seed 0", Need(peak=70 * 10**9, total=140 * 10**9), 0.4)


def test_a_lower_pool_limit_is_proposed_if_the_samples_do_not_fit():
    need = Need(peak=70 * 10**9, total=140 * 10**9, samples=20 * 10**9)
    with pytest.raises(InputError, match=r"takes 70\.0 GB, or a lower --device-pool-limit: its samples may reach 20"):
        check_need("a", need, 0.4)
    with pytest.raises(InputError, match=r"takes 70\.0 GB$"):
        check_need("a", need, 0.3)


def test_the_samples_of_all_rounds_count_up_to_the_limit():
    config = toy.toy_config(rounds=30)
    teacher = {"image_shape": toy.IMAGE_SHAPE, "num_classes": toy.NUM_CLASSES}
    trial = PlannedTrial("a", Plan("a", 0, 0, config), PreparedRefs({}, teacher, {}))
    whole, need = 30 * config.inversion.images_per_round * (64 + 8), Need(peak=100, total=10**9)
    held = {limit: with_samples(need, trial, 0.5, limit).samples for limit in (None, 10**9, whole)}
    assert held == {None: int(2.5 * whole), 10**9: int(2.5 * whole), whole: 2 * whole}
    assert with_samples(need, trial, 0.5, None) == Need(100 + int(2.5 * whole), 10**9, 0, int(2.5 * whole))
    assert with_samples(Need(0, 8 * whole), trial, 0.25, None).samples == whole


def test_a_trial_of_a_sweep_pool_may_fill_its_limit():
    """It may hold images of other trials, so the number of its own rounds is no bound."""
    teacher = {"image_shape": toy.IMAGE_SHAPE, "num_classes": toy.NUM_CLASSES}
    refs, need = PreparedRefs({}, teacher, {"data": "d", "teacher": "t"}), Need(peak=100, total=8 * 10**6)
    sweep = PlannedTrial("a", Plan("a", 0, 0, toy.toy_config(rounds=1), "sweep"), refs)
    assert with_samples(need, sweep, 0.5, 10**6) == Need(100 + 2 * 10**6, 8 * 10**6, 0, 2 * 10**6)
    assert with_samples(need, sweep, 0.5, None).samples == 2 * 10**6
    alone = replace(sweep, plan=replace(sweep.plan, scope="inversion"))
    assert with_samples(need, alone, 0.5, 10**6).samples < 10**5


@pytest.mark.parametrize(("words", "known"), [("CUDNN_STATUS_ALLOC_FAILED", True), ("an illegal access", False)])
def test_only_an_out_of_memory_error_is_measured_as_too_large(words, known, monkeypatch):
    def fail():
        raise RuntimeError(f"cuDNN error: {words}")

    for name in ("init", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, 0))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 0)
    if known:
        assert measured(fail) == TOO_LARGE
    else:
        with pytest.raises(RuntimeError, match=words):
            measured(fail)


def test_memory_held_by_other_programs_is_not_available_to_trials():
    check_need("a", Need(peak=60, total=140, outside=20), 0.5)
    with pytest.raises(InputError, match=r"0\.5, 50\.0 GB of a GPU; accepted: 0\.60 or more: a takes 60\.0 GB"):
        check_need("a", Need(peak=60 * 10**9, total=140 * 10**9, outside=40 * 10**9), 0.5)
    with pytest.raises(
        InputError, match=r"memory of a is '60.0 GB'; accepted: at most the 40.0 GB that other programs leave"
    ):
        check_need("a", Need(peak=60 * 10**9, total=140 * 10**9, outside=100 * 10**9), 0.5)


def test_two_steps_of_each_part_are_measured():
    """In the second step the optimisers have allocated their momenta."""
    config = short(toy.toy_config(seed=7, rounds=30, inversion=Fast(steps=5, latent=16, width=8)))
    assert (config.rounds, config.inversion.steps, config.distiller.steps, config.seed) == (1, 2, 2, 0)
    assert config.inversion == Fast(steps=2, latent=16, width=8)
    assert short(toy.toy_config(inversion=Fast(steps=1))).inversion.steps == 1


def test_trials_that_differ_only_in_seed_and_length_are_measured_once():
    wide = toy.toy_config(inversion=Fast(steps=2, batch=32, latent=16, width=8))
    jobs = [job("a", toy.toy_config()), job("b", toy.toy_config(seed=1, rounds=9)), job("c", wide)]
    assert [job.key for job in kinds(jobs)] == ["a", "c"]


@pytest.mark.parametrize("role", ["trial", "learner", "producer"])
def test_each_process_of_a_trial_is_measured_with_its_own_work(role, monkeypatch):
    done = []
    monkeypatch.setattr(Fast, "synthesize", lambda *args, **rest: done.append("inversion") or SYNTHESIZE(*args, **rest))
    monkeypatch.setattr(Distiller, "step", lambda *args, **rest: done.append("distillation") or STEP(*args, **rest))
    config = short(toy.toy_config(pipeline=None if role == "trial" else Pipeline()))
    work(config, toy.make_prepared(), role)
    assert set(done) == {"trial": set(BOTH), "learner": {BOTH[1]}, "producer": {BOTH[0]}}[role]


def test_a_trial_with_producers_has_two_kinds_of_process():
    assert roles(job("a", toy.toy_config())) == ("trial",)
    assert roles(job("a", toy.toy_config(pipeline=Pipeline()))) == ("learner", "producer")


def test_simulated_gpus_and_whole_gpus_are_accepted(cluster):
    for part in (0.0, 1.0, 0.5):
        check_packing([job("a", toy.toy_config())], part, part)


@pytest.mark.slow
def test_a_search_does_not_wait_for_a_gpu_that_its_own_trials_hold(tmp_path):
    """On one simulated GPU, each free half goes to a trial, so the whole GPU is never free again."""
    done = subprocess.run(
        [sys.executable, "-c", HALVES, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | {"PYTHONPATH": PATH},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "True finished finished finished"


HALVES = """
import sys
from dataclasses import replace
from pathlib import Path
import toy
from cluster.test_search import Plain
from condkd_ray.cluster.connection import connect
from condkd_ray.cluster.options import ClusterOptions
from condkd_ray.cluster.search import search
base = toy.toy_config(rounds=2)
configs = {key: replace(base, inversion=replace(base.inversion, bn_weight=float(key))) for key in "123"}
with connect("local", cpus=2, gpus=1):
    guide = Plain(configs)
    complete = search(guide, ClusterOptions(folder=Path(sys.argv[1]), gpus_per_trial=0.5))
    print(complete, *(guide.outcomes[key].status for key in configs))
"""


def half(device: str) -> Outcome:
    """Return the outcome of a toy trial in a process that has half of the device."""
    set_up_process(1, 0.5)
    config, prepared = toy.toy_config(rounds=2), prepared_on(device)
    return run_trial(config, prepared, local_store(config, prepared, None))


def need() -> Need:
    """Return the measured need of a toy trial on the GPU."""
    set_up_process(1)
    return measured(lambda: work(short(toy.toy_config()), prepared_on("cuda"), "trial"))


def starving() -> Need:
    """Return the measured need of work that allocates more memory than the GPU has."""

    def work() -> None:
        torch.empty(2 * torch.cuda.mem_get_info()[1], dtype=torch.uint8, device="cuda")

    return measured(work)


def apart(*works) -> list:
    """Return the results of functions that run concurrently, each in a process of its own."""
    with ProcessPoolExecutor(len(works), mp_context=get_context("spawn")) as pool:
        return [future.result() for future in [pool.submit(*work) for work in works]]


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_two_trials_that_share_a_device_give_equal_numbers(device):
    first, second = apart((half, device), (half, device))
    assert_equal_numbers(first, second)
    if device == "cpu":
        assert_equal_numbers(first, direct(toy.toy_config(rounds=2)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_small_trial_is_measured_on_a_real_gpu():
    (found,) = apart((need,))
    assert CONTEXT_BYTES < found.peak < CONTEXT_BYTES + 2 * 10**9
    assert 0 <= found.outside < found.total
    assert found.total == torch.cuda.get_device_properties().total_memory
    assert apart((starving,)) == [TOO_LARGE]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_memory_of_another_process_is_not_counted_for_the_trial_on_a_real_gpu():
    (alone,) = apart((need,))
    held = torch.empty(10**9, dtype=torch.uint8, device="cuda")
    (beside,) = apart((need,))
    assert beside.peak - alone.peak < held.nbytes / 4
    assert beside.outside - alone.outside > held.nbytes / 2
