import math

import numpy as np
import pytest
from benchmark.names import DRIVER_CPU, POOL_CPU, UNPACED, UNPACED_POOL_CPU, UNPACED_REST_CPU
from benchmark.rows import Measured, row, store
from benchmark.simulation import Wide, simulate, stored, table
from places import EXPERIMENTS
from programs import script

from condkd_ray.core.method import InputError

ROWS = EXPERIMENTS / "benchmark_cluster.parquet"


def test_a_single_trial_waits_for_the_service_alone():
    found = simulate(Wide(trials=1, round_seconds=1.0, pool_seconds=0.03, driver_seconds=0.01), rounds=4000)
    assert found.waits.mean() == pytest.approx(0.04, rel=0.05)
    assert found.rate == pytest.approx(1 / 1.04, rel=0.02)
    assert (found.pool_load, found.driver_load) == pytest.approx((0.03 / 1.04, 0.01 / 1.04), rel=0.1)


def test_a_full_pool_serves_at_its_own_rate_and_waits_follow_littles_law():
    wide = Wide(trials=200, round_seconds=1.0, pool_seconds=0.02, driver_seconds=0.001)
    assert wide.full_at == pytest.approx(51.05)
    found = simulate(wide, rounds=60)
    assert found.pool_load == pytest.approx(1.0, abs=0.001)
    assert found.rate == pytest.approx(50, rel=0.03)
    assert found.waits.mean() + 1.0 == pytest.approx(200 / 50, rel=0.03)


def test_waits_of_an_open_queue_are_those_of_queueing_theory():
    """Arrivals of many independent trials are nearly Poisson: the mean stay is s / (1 - load)."""
    found = simulate(Wide(trials=3000, round_seconds=100.0, pool_seconds=0.02), rounds=30)
    assert found.pool_load == pytest.approx(0.6, rel=0.03)
    assert found.waits.mean() == pytest.approx(0.02 / (1 - 0.6), rel=0.15)
    assert np.percentile(found.waits, 99) == pytest.approx(math.log(100) * 0.02 / (1 - 0.6), rel=0.25)


@pytest.mark.parametrize(
    ("pool", "client", "rate"),
    [
        pytest.param(0.004, 0.012, 2 / 0.016, id="the cores are full"),
        pytest.param(0.010, 0.004, 1 / 0.010, id="the pool is full"),
    ],
)
def test_clients_without_pauses_share_two_cores_with_the_pool(pool, client, rate):
    found = simulate(
        Wide(trials=16, round_seconds=0.0, pool_seconds=pool, client_seconds=client, cores=2), rounds=300, warm=30
    )
    # Now and then all calls are at the pool, and the second core has nothing to do.
    assert rate * 0.9 < found.rate <= rate * 1.03
    assert found.waits.mean() == pytest.approx(16 / found.rate, rel=0.01)


def test_the_simulation_agrees_with_the_measured_clients():
    """16 clients without pauses, which share two cores with the pool, from the CPU times of the same runs."""
    pool, rest = (stored(ROWS, what) / 1e3 for what in (UNPACED_POOL_CPU, UNPACED_REST_CPU))
    wide = Wide(trials=16, round_seconds=0.0, pool_seconds=pool, client_seconds=rest, cores=2)
    found = 1e3 * np.median(simulate(wide, rounds=300, warm=30).waits)
    assert found == pytest.approx(stored(ROWS, f"{UNPACED}, p50"), rel=0.35)


def test_more_pools_and_drivers_carry_more_trials():
    parts = {"trials": 400, "round_seconds": 1.0, "pool_seconds": 0.005, "driver_seconds": 0.004}
    one, four = Wide(**parts), Wide(**parts, pools=4, drivers=4)
    assert four.full_at == pytest.approx(4 * one.full_at)
    crowded, divided = simulate(one), simulate(four)
    assert crowded.pool_load > 0.99
    assert divided.pool_load == pytest.approx(0.5, abs=0.03)
    assert np.median(divided.waits) < 0.1 * np.median(crowded.waits)


def test_the_same_seed_gives_the_same_waits():
    wide = Wide(trials=20, round_seconds=1.0, pool_seconds=0.01, driver_seconds=0.01, pools=2)
    assert np.array_equal(simulate(wide).waits, simulate(wide).waits)
    assert not np.array_equal(simulate(wide).waits, simulate(wide, seed=1).waits)


def test_a_row_that_is_not_stored_is_refused_with_the_command(tmp_path):
    with pytest.raises(InputError, match=r"rows\.parquet: number of rows 'x' is 0; accepted: 1: .*benchmark_cluster"):
        stored(tmp_path / "rows.parquet", "x")


def test_the_table_has_a_line_for_each_cluster():
    parts = {"pool_seconds": 0.001, "driver_seconds": 0.004}
    lines = table([Wide(trials=trials, round_seconds=2.0, **parts) for trials in (10, 20)]).splitlines()
    assert len(lines) == 4
    assert [line.split(" | ")[:3] for line in lines[2:]] == [["| 10", "2 s", "1"], ["| 20", "2 s", "1"]]
    assert lines[2].endswith("| 501 trials |")


def test_the_script_prints_a_line_for_each_combination(tmp_path):
    rows = tmp_path / "rows.parquet"
    for figure, what in (("clients", POOL_CPU), ("sleepers", DRIVER_CPU)):
        store(rows, figure, [row(figure, Measured(what, [2.0], "ms"))], ["clients", "sleepers"])
    flags = ["--rows", rows, "--trials", 8, 16, "--round-seconds", 0.5, 1, "--pools", 1, 2]
    done = script(EXPERIMENTS / "simulate_cluster.py", *flags)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert len(lines) == 2 + 8
    # A trial has nothing to wait for but 2 + 2 ms, so 250 of them fill a process in half a second, 500 in a second.
    assert [line.split(" | ")[-1] for line in lines[2:4]] == ["252 trials |"] * 2
    refused = script(EXPERIMENTS / "simulate_cluster.py", "--rows", rows, "--trials", 0)
    assert refused.returncode == 2
    assert "--trials is '0'; accepted: positive numbers" in refused.stderr
