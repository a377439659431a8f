"""Limits of the pool: which clusters and limits cannot hold the rounds of the trials that run at once."""

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import toy

from condkd_ray.cluster.options import ClusterOptions
from condkd_ray.cluster.pool.limits import (
    Round,
    check_limit,
    chunk_bytes,
    default_limit,
    held_at_once,
    planned_round,
    round_of,
)
from condkd_ray.core.method import InputError
from condkd_ray.core.units import parse_size
from condkd_ray.methods.condensation import RandomReal
from condkd_ray.methods.guidance import Discriminator
from condkd_ray.methods.memory import Latest
from condkd_ray.trial.allowance import Allowance
from condkd_ray.trial.config import Pipeline, TrialConfig
from condkd_ray.trial.plan import Plan, PlannedTrial, Scope

MB = 10**6
ROW = 64 + 8 + 2 * toy.NUM_CLASSES
"""Bytes of a toy image with its label and logits."""


@pytest.fixture
def nodes(monkeypatch):
    """Return a function that makes the nodes of the cluster those with these CPUs and megabytes of object store."""
    import ray

    def have(*sizes: tuple[float, float]) -> None:
        found = [
            {
                "Alive": True,
                "NodeManagerAddress": f"10.0.0.{number}",
                "Resources": {"CPU": cpus, "object_store_memory": store * MB},
            }
            for number, (cpus, store) in enumerate(sizes, 1)
        ]
        monkeypatch.setattr(ray, "nodes", lambda: [*found, {"Alive": False, "Resources": {"CPU": 99.0}}])

    return have


def options(tmp_path, **more) -> ClusterOptions:
    return ClusterOptions(folder=tmp_path, **more)


def check(options: ClusterOptions, *sizes: float, scope: Scope = "trial", keys: str = "", producers: int = 0) -> None:
    """Check trials with rounds of these megabytes; `keys`: a letter for each trial, equal if they share rounds."""
    pipeline = Pipeline(producers=producers, staleness=producers) if producers else None
    config: TrialConfig = SimpleNamespace(pipeline=pipeline)  # type: ignore[assignment]
    names = keys or [str(number) for number in range(len(sizes))]
    rounds = [Round(round(size * MB), scope, key) for size, key in zip(sizes, names, strict=True)]
    check_limit(options, [config] * len(sizes), rounds)


def refused(*args, **kwargs) -> str:
    """Return the message with which trials are refused."""
    with pytest.raises(InputError) as error:
        check(*args, **kwargs)
    return str(error.value)


def test_the_bytes_of_a_round_are_those_of_its_images_labels_and_read_logits():
    config, teacher = toy.toy_config(), toy.make_prepared().teacher
    assert chunk_bytes(config, teacher) == config.inversion.images_per_round * (ROW - 2 * toy.NUM_CLASSES)
    reads = replace(config, distiller=replace(config.distiller, augment=False))
    whole = {
        chunk_bytes(reads, teacher),
        chunk_bytes(config, teacher, "inversion"),
        chunk_bytes(config, teacher, "sweep"),
    }
    assert whole == {config.inversion.images_per_round * ROW}


def test_the_limit_is_60_percent_of_the_smallest_object_store(nodes):
    nodes((1, 100), (0, 50), (8, 400))
    assert default_limit() == 30 * MB


def test_each_trial_at_once_on_a_node_needs_room_for_its_round_there(nodes, tmp_path):
    nodes((1, 1000), (8, 1000))
    assert options(tmp_path).at_once([SimpleNamespace(pipeline=None)]) == 9  # type: ignore[list-item]
    check(options(tmp_path), *[75.0] * 100)
    assert refused(options(tmp_path), *[100.0] * 100) == (
        "pool limit of node 10.0.0.2 is '600.0 MB of its object store of 1.0 GB, 60 % of the smallest one'; accepted: "
        "at least 800.0 MB, a round of 100.0 MB for each of 8 trials at once on this node. What helps: "
        "--pool-limit 800.0MB, or a larger object store (`ray start --object-store-memory`), or fewer trials at once "
        "(--max-concurrent), or fewer images a round (batch or images_per_round of the inversion)"
    )
    check(options(tmp_path, pool_limit=parse_size("800.0MB", "")), *[100.0] * 100)
    check(options(tmp_path, max_concurrent=6), *[100.0] * 100)
    check(options(tmp_path), *[100.0] * 6)


def test_trials_of_different_sizes_need_what_the_largest_of_them_take(nodes, tmp_path):
    nodes((3, 100))
    check(options(tmp_path), 50, 6, 4, 1, 1)
    message = refused(options(tmp_path), 50, 6, 5, 1, 1)
    assert "at least 61.0 MB, a round of up to 50.0 MB for each of 3 trials at once on this node" in message


def test_a_limit_above_the_object_store_does_not_help(nodes, tmp_path):
    nodes((2, 100))
    check(options(tmp_path, pool_limit=500 * MB), 50, 50)
    message = refused(options(tmp_path, pool_limit=500 * MB), 60, 60)
    assert "is '100.0 MB of its object store of 100.0 MB, which is smaller than --pool-limit'; accepted: at" in message
    assert "What helps: a larger object store" in message


def test_a_single_round_above_the_limit_is_refused(nodes, tmp_path):
    nodes((8, 100))
    check(options(tmp_path, pool_limit=10 * MB), 10)
    message = refused(options(tmp_path, pool_limit=10 * MB), 10.000001)
    assert "is '10.0 MB of its object store of 100.0 MB, --pool-limit'" in message
    assert "at least 10.1 MB, a round of 10.0 MB for 1 trial at once on this node" in message
    assert "--max-concurrent" not in message


def test_without_trials_or_without_images_nothing_is_refused(nodes, tmp_path):
    nodes((8, 0.001))
    check(options(tmp_path))
    check(options(tmp_path), *[0.0] * 8)


def test_in_the_scope_of_a_sweep_every_node_needs_room_for_the_rounds_of_all_trials_at_once(nodes, tmp_path):
    nodes((0, 100), (4, 200), (4, 200))
    check(options(tmp_path), *[10.0] * 100)
    check(options(tmp_path), *[7.5] * 100, scope="sweep")
    message = refused(options(tmp_path), *[10.0] * 100, scope="sweep")
    assert message.startswith("pool limit of node 10.0.0.1 is '60.0 MB of its object store of 100.0 MB")
    assert "80.0 MB, a round of 10.0 MB for each of 8 trials at once on all nodes, whose images every" in message
    check(options(tmp_path, max_concurrent=6), *[10.0] * 100, scope="sweep")


def test_a_round_that_trials_share_counts_once_for_each_key_in_use(nodes, tmp_path):
    nodes((2, 100), (2, 100))
    check(options(tmp_path), *[20.0] * 6, scope="inversion", keys="aabbcc")
    message = refused(options(tmp_path), *[20.0] * 6, scope="inversion", keys="aabbcd")
    assert "at least 80.0 MB, a round of 20.0 MB for each of 4 shared inversions at once on all nodes" in message
    assert "10.0.0.1" in message


def test_own_and_shared_rounds_are_counted_together():
    shared = [Round(5, "inversion", "a"), Round(7, "inversion", "a"), Round(6, "sweep", ""), Round(2, "sweep", "")]
    own = [Round(size, "trial", "") for size in (1, 4, 9, 3)]

    def sizes(here: int, at_once: int) -> list[int]:
        return [one.num_bytes for one in held_at_once([*shared, *own], here, at_once)]

    assert sizes(0, 8) == [7, 6, 2]
    assert sizes(2, 8) == [9, 7, 6, 4, 2]
    assert sizes(2, 3) == [9, 7, 6]
    assert sizes(8, 8) == [9, 7, 6, 4, 3, 2, 1]


def test_trials_with_producers_are_counted_where_they_fit_together(nodes, tmp_path):
    nodes((4, 100))
    check(options(tmp_path), *[30.0] * 9, producers=1)
    assert "3 trials at once" in refused(options(tmp_path, per_producer=Allowance(0.25)), *[30.0] * 9, producers=1)


def test_many_nodes_and_trials_are_checked_quickly(nodes, tmp_path):
    nodes(*[(8, 1000)] * 125)
    check(options(tmp_path), *[75.0] * 5000)
    assert "of 1000 trials at once on all nodes" in refused(options(tmp_path), *[1.0] * 5000, scope="sweep")


@pytest.mark.parametrize("scope", ["trial", "inversion", "sweep"])
def test_a_plan_has_the_round_of_its_trial_before_the_artifacts_exist(scope):
    alone = replace(toy.toy_config().inversion, adv_weight=0)
    config, prepared = toy.toy_config(guidance=Discriminator(hidden=16), inversion=alone), toy.make_prepared()
    dataset = SimpleNamespace(image_shape=toy.IMAGE_SHAPE, num_classes=toy.NUM_CLASSES)

    def planned(config: TrialConfig) -> Round:
        return planned_round(Plan("arm", toy.IPC, config.seed, config, scope), dataset)  # type: ignore[arg-type]

    one, trial = planned(config), PlannedTrial("key", Plan("arm", toy.IPC, 0, config, scope), prepared)
    assert one[:2] == round_of(trial)[:2] == (chunk_bytes(config, prepared.teacher, scope), scope)
    if scope == "inversion":
        assert planned(replace(config, rounds=9, memory=Latest())).key == one.key
        others = [replace(config, condensation=RandomReal(ipc=toy.IPC + 1)), replace(config, seed=1)]
        assert len({one.key, *(planned(other).key for other in others)}) == 3


def test_a_sweep_over_the_limit_is_refused_before_anything_starts(cluster, tmp_path):
    trial = PlannedTrial("a", Plan("arm", toy.IPC, 0, toy.toy_config()), toy.make_prepared())
    least = round_of(trial).num_bytes
    from condkd_ray.cluster.sweep import sweep

    with pytest.raises(InputError, match=re.escape(f"a round of {least / 1e3:.0f} kB for 1 trial at once")):
        sweep([trial], options(tmp_path, pool_limit=least - 1), observer=None)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("least", [1001, 23_552, 64_100_000, 64_100_001, 999_999_999, 1_100_000_001, 77_070_336_000])
def test_the_limit_in_the_message_is_accepted_and_no_more_than_a_tenth_above_the_need(nodes, tmp_path, least):
    nodes((1, 10**6))
    message = refused(options(tmp_path, pool_limit=least - 1), least / MB)
    (proposed,) = re.findall(r"--pool-limit (\S+),", message)
    check(options(tmp_path, pool_limit=parse_size(proposed, "")), least / MB)
    assert least <= parse_size(proposed, "") < 1.1 * least
