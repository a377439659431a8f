"""A warm-up in a whole trial: rounds that fill the memory before the student's first step."""

from typing import Any

import torch
from contracts.toy_methods import same, snapshot, tensors
from toy import make_prepared, toy_config

from condkd_ray.core import checkpoint
from condkd_ray.core.config import to_tree
from condkd_ray.methods.inversion import Fast
from condkd_ray.trial.config import TrialConfig, from_tree
from condkd_ray.trial.loop import run_round, start
from condkd_ray.trial.run import local_store

SETTINGS = toy_config(inversion=Fast(steps=2, batch=16, latent=16, width=8, warm_up=2, resets=(3,)), rounds=2)


def without_times(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith("time/")}


def rounds(settings: TrialConfig, live: Any, store: Any, count: int) -> None:
    for _ in range(count):
        run_round(settings, make_prepared(), live, store)
        store.commit()


def begin(folder: Any = None, settings: TrialConfig = SETTINGS) -> tuple[Any, Any]:
    prepared = make_prepared()
    return start(settings, prepared), local_store(settings, prepared, folder)


def test_warm_up_rounds_come_before_the_rounds_of_the_student():
    assert SETTINGS.total_rounds == 4
    assert [SETTINGS.progress(number) for number in range(4)] == [0, 0, 0, 1]
    assert from_tree(to_tree(SETTINGS)) == SETTINGS


def test_in_the_warm_up_the_memory_fills_and_the_student_does_not_change():
    live, store = begin()
    # Weights, BN statistics and gradients. The student's mode may change, because the inversion uses eval mode.
    before = snapshot(live.distiller.student)[:2]
    rounds(SETTINGS, live, store, 2)
    assert same(before, snapshot(live.distiller.student)[:2])
    assert store.num_ids == 32
    for metrics in live.history:
        assert metrics["inversion/adv"] == 0
        assert not any(name.startswith(("kd/", "student/", "proxy/")) for name in metrics)
    rounds(SETTINGS, live, store, 2)
    assert store.num_ids == 64
    assert not same(before[0], snapshot(live.distiller.student)[0])
    assert all("kd/loss" in metrics and "student/test_accuracy" in metrics for metrics in live.history[2:])


def test_a_trial_resumed_in_or_after_its_warm_up_continues_bit_for_bit(tmp_path):
    straight, store = begin()
    rounds(SETTINGS, straight, store, 4)
    for done in (1, 2, 3):
        folder = tmp_path / str(done)
        stopped, store = begin(folder)
        rounds(SETTINGS, stopped, store, done)
        checkpoint.save(stopped, folder / "state")
        fresh, store = begin(folder)
        resumed = checkpoint.load(fresh, folder / "state")
        store.restore(resumed.num_ids, SETTINGS.memory.live(resumed.memory))
        rounds(SETTINGS, resumed, store, 4 - done)
        assert list(map(without_times, resumed.history)) == list(map(without_times, straight.history))
        assert same(list(tensors(resumed.production.inversion)), list(tensors(straight.production.inversion)))
        assert same(snapshot(resumed.distiller.student)[0], snapshot(straight.distiller.student)[0])
        assert resumed.production.inversion.round == 4


def test_the_student_takes_as_many_steps_as_in_a_trial_without_warm_up():
    live, store = begin()
    rounds(SETTINGS, live, store, 4)
    plain = toy_config(inversion=Fast(steps=2, batch=16, latent=16, width=8), rounds=2)
    other, store = begin(settings=plain)
    rounds(plain, other, store, 2)

    def steps(trial: Any) -> torch.Tensor:
        return trial.distiller.student.bn.num_batches_tracked

    assert steps(live) == steps(other) == 4
