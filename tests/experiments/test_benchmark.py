import ast
import math
import subprocess
import sys
from types import SimpleNamespace
from typing import get_args

import pytest
import toy
from benchmark import figures, wide
from benchmark.cluster import FIGURES
from benchmark.figures import idle, scratch
from benchmark.names import DRIVER_CPU, POOL_CPU, UNPACED, UNPACED_POOL_CPU, UNPACED_REST_CPU, ClusterFigure
from benchmark.rows import Measured, read, row, store, table
from places import DOCS, EXPERIMENTS

from condkd_ray.cluster.options import ClusterOptions
from condkd_ray.cluster.sweep import sweep

ROWS = EXPERIMENTS / "benchmark_cluster.parquet"
FAST = Measured("a quick thing", [1.0, 3.0, 2.0], "s", "<=", 2.5, "It is fast.")
SLOW = Measured("a slow thing", [10.0], "s", "<=", 2.5, "The disk is slow.")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for name, value in {"HELD": 640, "ROUND": 20, "BATCH": 16, "READ_BYTES": 1e6}.items():
        monkeypatch.setattr(figures, name, value)


@pytest.mark.ray
def test_draws_before_and_after_compaction_are_measured(cluster):
    after, before = figures.draw()
    assert (after.bound, before.bound) == (1.2, 2.0)
    assert "after compaction (2 chunks)" in after.what
    assert "before compaction (32 chunks)" in before.what
    assert len(after.values) == len(before.values) == 5
    assert min(*after.values, *before.values) > 0


@pytest.mark.slow
@pytest.mark.ray
def test_the_memory_of_readers_is_measured(cluster):
    (measured,) = figures.reader()
    assert len(measured.values) == 5
    assert max(measured.values) < 100


@pytest.mark.slow
@pytest.mark.ray
def test_trials_with_no_rounds_left_are_reported_and_their_folders_deleted(cluster, tmp_path):
    ended = []
    trials = idle(3, tmp_path, toy.make_prepared())
    recorder = SimpleNamespace(
        round=lambda trial, metrics: None, ended=lambda trial, outcome: ended.append((trial.key, outcome.history))
    )
    assert sweep(trials, ClusterOptions(folder=tmp_path), recorder)
    assert sorted(ended) == [(f"seed{seed}", [{"round": 1, "kd/loss": 0.0}]) for seed in range(3)]
    assert not list((tmp_path / "trials").iterdir())


NARROW = {
    **{"PROCESSES": 2, "WIDE": 4, "REPEATS": 1, "PACED_REPEATS": 1, "ALONE_ROUNDS": 4, "UNPACED_ROUNDS": 4},
    **{"PACED": {2: (0.02, 3), 4: (0.02, 3)}, "SHARED_ROUNDS": 8, "SLICES": 2, "SLICE": 2},
    **{"SLEEPERS": 2, "RAYLETS": 2, "SLEEPING_ROUNDS": 16, "SLEEP_SECONDS": 0.01},
    "TEACHER": {"name": "resnet", "depth": 8, "width": 64},
}
ON_RAYLETS = """
import sys
from benchmark import wide

for name, value in {narrow}.items():
    setattr(wide, name, value)
if __name__ == "__main__":
    print([(one.what, list(map(float, one.values)), one.unit) for one in wide.{figure}()])
"""


@pytest.fixture
def narrow(monkeypatch):
    for name, value in NARROW.items():
        monkeypatch.setattr(wide, name, value)


def on_raylets(figure):
    """Return the rows of a figure that starts its own raylets: in a process that has not connected to any cluster."""
    code = ON_RAYLETS.format(narrow=NARROW, figure=figure)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [Measured(*fields) for fields in ast.literal_eval(done.stdout.splitlines()[-1])]


@pytest.mark.slow
@pytest.mark.ray
def test_calls_of_several_clients_are_measured(cluster, narrow):
    rows = list(wide.clients())
    bounded = [one for one in rows if one.sense]
    assert [(one.unit, one.bound) for one in bounded] == [("x", 3.0)]
    assert {UNPACED_POOL_CPU, UNPACED_REST_CPU, POOL_CPU, f"{UNPACED}, p50"} < {one.what for one in rows}
    assert len(rows) == len({one.what for one in rows}) == 14
    assert min(value for one in rows for value in one.values if "CPU time" not in one.what) > 0


@pytest.mark.slow
@pytest.mark.ray
def test_calls_on_a_shared_key_are_measured_and_tell_of_all_rounds(cluster, narrow):
    cpu, *latencies, reply = wide.contribute()
    assert (cpu.bound, cpu.unit, len(cpu.values)) == (3.0, "ms", 2)
    assert "4 trials of `--share sweep`, rounds 5 to 8 of 16 images 3x8x8" in cpu.what
    assert [len(one.values) for one in latencies] == [2, 2, 2, 2]
    assert len(reply.values) == 4
    assert 0.1 < min(reply.values) < 100


@pytest.mark.slow
@pytest.mark.ray
def test_a_teacher_is_sent_to_the_raylets_that_do_not_have_it():
    one, few_bytes, two, all_bytes = on_raylets("broadcast")
    assert "a teacher of 5 MB, 2 trials on 1 raylet," in one.what
    assert "2 trials on 2 raylets," in two.what
    assert few_bytes.values[0] < 4.0 < all_bytes.values[0] < 8.0


@pytest.mark.slow
@pytest.mark.ray
def test_sleeping_trials_meet_and_report_how_long_they_waited():
    median, late, driver, pool = on_raylets("sleepers")
    assert "2 sleeping trials on 2 raylets" in median.what
    assert driver.what == DRIVER_CPU
    assert all(len(one.values) == wide.WINDOWS for one in (median, late, driver, pool))
    assert 0 < min(median.values) <= max(late.values) < 60_000


@pytest.mark.slow
@pytest.mark.ray
def test_the_driver_with_its_records_is_measured_in_parts_of_one_run():
    code = "from benchmark.bookkeeping import bookkeeping; rows = list(bookkeeping(16, (4, 8, 12))); print(rows)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = {one.what: one for one in eval(done.stdout.splitlines()[-1], {"Measured": Measured, "nan": math.nan})}
    bounded = [one for one in rows.values() if one.sense]
    assert [(one.unit, len(one.values)) for one in bounded] == [("kB", 1), ("ms", 3), ("x", 1)]
    assert 0 < min(bounded[1].values) < 1000
    assert rows["files that one leaves"].values[0] > 4


def test_the_scratch_folder_is_deleted_afterwards():
    with scratch() as folder:
        (folder / "file").touch()
    assert not folder.exists()


def test_the_documentation_has_the_measured_table():
    text = (
        (DOCS / "performance.md")
        .read_text(encoding="utf-8")
        .split("<!-- benchmark -->\n")[1]
        .split("<!-- end benchmark -->")[0]
    )
    assert text == table(read(ROWS)), (
        "the table in docs/performance.md is old: put in what `python experiments/benchmark_cluster.py --table` prints"
    )


def test_every_figure_has_stored_rows():
    assert {stored["figure"] for stored in read(ROWS)} == set(FIGURES) == set(get_args(ClusterFigure))


def test_a_row_holds_the_median_and_the_range():
    made = row("draw", FAST)
    assert (made["value"], made["low"], made["high"], made["n"]) == (2.0, 1.0, 3.0, 3)
    assert made["met"]
    assert made["why"] == ""


@pytest.mark.parametrize(
    ("sense", "values", "met"), [("<=", [2.5], True), ("<=", [2.6], False), (">=", [2.5], True), (">=", [2.4], False)]
)
def test_a_bound_is_met_or_missed(sense, values, met):
    made = row("draw", Measured("x", values, "s", sense, 2.5, "Because."))
    assert made["met"] == met
    assert made["why"] == ("" if met else "Because.")


def test_a_figure_without_a_bound_is_met():
    made = row("draw", Measured("x", [1.0], "s"))
    assert made["met"]
    assert math.isnan(made["bound"])
    assert "| x | 1 s |  | 1 |  |  |" in table([made])


def test_a_missed_bound_is_shown_with_its_excess_and_its_reason():
    text = table([row("draw", FAST), row("sweep", SLOW)])
    assert "| a quick thing | 2 s | 1 to 3 | 3 | <= 2.5 s | met |" in text
    assert "| a slow thing | 10 s |  | 1 | <= 2.5 s | **missed** |" in text
    assert "- Missed: a slow thing, by 7.5 s. The disk is slow.\n" in text


def test_new_rows_replace_only_rows_of_the_same_figure(tmp_path):
    path, order = tmp_path / "rows.parquet", ["sweep", "draw"]
    store(path, "draw", [row("draw", FAST)], order)
    store(path, "sweep", [made := row("sweep", SLOW)], order)
    store(path, "draw", [row("draw", SLOW), row("draw", SLOW)], order)
    assert [(one["figure"], one["what"]) for one in read(path)] == [("sweep", SLOW.what), *2 * [("draw", SLOW.what)]]
    assert read(path)[0] == made
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_missing_file_has_no_rows(tmp_path):
    assert read(tmp_path / "none.parquet") == []
