"""Tests of small claims on Ray: interrupted, killed, out of time, and continued on another machine."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from campaign import running
from campaign.claims import Claim, read_claims
from campaign.machines import here
from campaign.rendering import whole as whole_text
from campaign.rows import Row, read_rows, write_rows
from campaign.running import Place
from campaign.state import read_state
from places import CHECKOUT, EXPERIMENTS

from condkd_ray.core.method import InputError
from condkd_ray.runs.options import Options

SMALL = {
    "teacher": {"training": {"epochs": 1}},
    "inversion": {"steps": 1, "batch": 32, "width": 8},
    "distiller": {"steps": 3, "batch": 32},
    "rounds": 2,
    "evaluate_every": 2,
}
COMMON = {
    "question": "Does guiding beat mixing?",
    "hypothesis": "It does.",
    "chosen": "Nothing.",
    "data": {"name": "digits"},
    "inversion": "fast",
    "condensation": {"name": "random_real", "ipc": 1},
    "config": SMALL,
    "cpu_seconds": 2,
}
TINY = COMMON | {
    "order": 1,
    "teachers": 2,
    "prior": {"weight": 30, "temperature": 4},
    "cells": {"one": {}, "two": {"condensation": {"name": "random_real", "ipc": 2}}},
    "arms": ["none", "mixed", "mixed_prior", "guided"],
    "seeds": [10, 11],
}
PICK = COMMON | {
    "order": 2,
    "kind": "choosing",
    "seeds": [100, 101],
    "rungs": [{"seeds": 1, "keep": 1}, {"seeds": 2}],
    "candidates": {
        "light": {"arm": "guided", "config": {"guidance": {"weight": 1}}},
        "heavy": {"arm": "guided", "config": {"guidance": {"weight": 1000}}},
    },
}


DENSE = TINY | {
    "data": {"name": "scenes"},
    "teachers": 1,
    "cells": {"few": {"condensation": {"name": "random_real", "ipc": 2}}},
    "arms": ["condensed_only", "guided"],
    "seeds": [10],
    "config": SMALL | {"inversion": {"steps": 1, "batch": 4, "width": 8}, "distiller": {"steps": 1, "batch": 4}},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("claims")
    (folder / "claims").mkdir()
    for name, tree in {"tiny": TINY, "pick": PICK, "dense": DENSE}.items():
        (folder / "claims" / f"{name}.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    return folder


def claims_of(home: Path, *names: str) -> list[Claim]:
    return read_claims(home / "claims", names)


def place(home: Path, name: str, **changes) -> Place:
    options = Options(out=home / name, cache=home / "cache", max_concurrent=2)
    return Place(options, None, home / f"rows-{name}", **changes)


def records(home: Path, name: str) -> list[Path]:
    return list((home / name).glob("tiny/*/records/*.json"))


def numbers(rows: list[Row]) -> list[tuple[object, ...]]:
    """Return the places and metrics of rows, sorted, without times."""
    return [
        (row.place[:-1], {name: value for name, value in row.record.metrics.items() if not name.startswith("time/")})
        for row in sorted(rows, key=lambda row: row.place)
    ]


@pytest.fixture(scope="module")
def whole(cluster, home) -> list[Row]:
    """The rows of an undisturbed run."""
    calm = place(home, "calm")
    result = running.run(claims_of(home, "tiny"), calm)
    assert (result.complete, result.failed) == (True, 0)
    return read_rows(calm.results / "tiny.parquet")


@pytest.mark.slow
@pytest.mark.ray
def test_every_arm_of_every_unit_gets_a_complete_row(whole, home):
    assert len(whole) == 16
    assert not any(list((home / "rows-calm").glob("*.partial")))
    none = [row for row in whole if row.record.arm == "none" and row.record.seed == 10]
    assert len({row.record.config_hash for row in none}) == 1
    assert {row.cell for row in none} == {"one", "two"}
    assert len({row.record.teacher_hash for row in whole}) == 2
    for row in whole:
        record = row.record
        assert row.test_images == 600
        assert row.machine == here(0, 1).kind
        assert record.config["seed"] == record.seed
        assert record.config["inversion"]["steps"] == 1
        assert record.outcome.threads == 1
        assert {"torch", "numpy", "python", "condkd-ray"} <= record.versions.keys()
        assert {"student/test_accuracy", "student/val_accuracy", "proxy/agreement", "diagnosis/frechet_real"} <= {
            *record.metrics
        }
        assert record.outcome.cpu_seconds > 0
    assert (home / "rows-calm" / "tiny.parquet").stat().st_size < 60_000


@pytest.mark.slow
@pytest.mark.ray
def test_the_same_call_runs_nothing_and_does_not_change_the_file(whole, home):
    path = home / "rows-calm" / "tiny.parquet"
    before = path.read_bytes(), path.stat().st_mtime_ns
    assert running.run(claims_of(home, "tiny"), place(home, "calm")).complete
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


@pytest.mark.slow
@pytest.mark.ray
def test_running_one_seed_at_a_time_gives_the_same_rows(whole, home):
    for seed in (11, 10):
        turn = place(home, "turns", seeds=[seed])
        assert running.run(claims_of(home, "tiny"), turn).complete
        assert {row.record.seed for row in read_rows(turn.results / "tiny.parquet")} == {11, seed}
    assert numbers(read_rows(turn.results / "tiny.parquet")) == numbers(whole)


@pytest.mark.slow
@pytest.mark.ray
def test_lost_rows_are_restored_from_the_records(whole, home):
    shutil.copytree(home / "calm", home / "lost")
    assert running.run(claims_of(home, "tiny"), place(home, "lost")).complete
    assert numbers(read_rows(home / "rows-lost" / "tiny.parquet")) == numbers(whole)


@pytest.mark.slow
@pytest.mark.ray
def test_a_claim_with_renamed_and_reordered_cells_gets_its_rows_from_the_records(whole, home, tmp_path, logged):
    cells = {"zwei": TINY["cells"]["two"], "eins": TINY["cells"]["one"]}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY | {"cells": cells}), encoding="utf-8")
    shutil.copytree(home / "calm", home / "renamed")
    before = sorted(records(home, "renamed"))
    result = running.run(read_claims(tmp_path), place(home, "renamed"))
    assert (result.complete, result.failed) == (True, 0)
    assert sorted(records(home, "renamed")) == before
    state = read_state(*read_claims(tmp_path), home / "rows-renamed")
    assert (state.missing, len(state.rows)) == ([], 16)


@pytest.mark.slow
@pytest.mark.ray
def test_trials_still_missing_after_a_run_are_logged_and_counted_as_failed(whole, home, logged, monkeypatch):
    shutil.copytree(home / "calm", home / "short")
    monkeypatch.setattr(running, "is_result", lambda record, choosing: record.seed != 11)
    result = running.run(claims_of(home, "tiny"), place(home, "short"))
    assert (result.complete, result.failed) == (True, 2)
    message = (
        "tiny: still missing after this run: 7 trials, of one (seeds 11), two (seeds 11); the same command tries again"
    )
    assert message in logged


@pytest.mark.slow
@pytest.mark.ray
def test_on_a_machine_without_the_records_only_missing_trials_are_run(whole, home):
    rows = home / "rows-alike" / "tiny.parquet"
    rows.parent.mkdir()
    write_rows(rows, [row for row in whole if not (row.cell == "one" and row.record.arm == "guided")])
    assert running.run(claims_of(home, "tiny"), place(home, "alike")).complete
    assert len(records(home, "alike")) == 2
    assert numbers(read_rows(rows)) == numbers(whole)


@pytest.mark.slow
@pytest.mark.ray
def test_a_unit_begun_with_another_teacher_is_logged_and_run_completely(whole, home, logged):
    rows = home / "rows-strange" / "tiny.parquet"
    rows.parent.mkdir()
    foreign = [replace(row, record=replace(row.record, teacher_hash="another")) for row in whole]
    begun = [row for row in foreign if row.cell == "one" and row.record.seed == 10 and row.record.arm != "guided"]
    write_rows(rows, [*begun, *(row for row in whole if row.cell != "one" or row.record.seed != 10)])
    assert running.run(claims_of(home, "tiny"), place(home, "strange")).complete
    assert any("its rows were made with another teacher" in line and "one seed 10" in line for line in logged)
    assert len(records(home, "strange")) == 4
    assert numbers(read_rows(rows)) == numbers(whole)


@pytest.mark.slow
@pytest.mark.ray
def test_a_unit_begun_on_another_kind_of_machine_is_run_completely(whole, home, monkeypatch):
    moved = place(home, "moved", seeds=[10], cells=["one"])
    other = replace(here(0, 1), kind="another machine")
    monkeypatch.setattr(running, "here", lambda gpus, threads: other)
    assert running.run(claims_of(home, "tiny"), moved).complete
    for folder in (home / "moved" / "tiny").iterdir():
        # One record less, as if the run had been stopped before its last trial.
        next(iter((folder / "records").iterdir())).unlink()
    (moved.results / "tiny.parquet").unlink()
    monkeypatch.undo()
    assert running.run(claims_of(home, "tiny"), place(home, "moved", seeds=[10], cells=["one"])).complete
    rows = [row for row in read_rows(moved.results / "tiny.parquet") if row.cell == "one"]
    assert {row.machine for row in rows} == {here(0, 1).kind}
    assert len(records(home, "moved")) == 3 + 4
    assert numbers(rows) == numbers([row for row in whole if (row.cell, row.record.seed) == ("one", 10)])


@pytest.mark.slow
@pytest.mark.ray
def test_halving_runs_rung_by_rung_and_stores_no_metrics_of_the_test_images(cluster, home):
    rungs = place(home, "rungs")
    assert running.run(claims_of(home, "pick"), rungs).complete
    state = read_state(*claims_of(home, "pick"), rungs.results)
    assert state.missing == []
    assert sorted(row.record.seed for row in state.rows) == [100, 100, 101]
    assert {len(state.ladder.dropped), state.ladder.rung - 2} == {1}
    names = {name for row in state.rows for name in row.record.metrics if name.startswith("student/")}
    assert names == {"student/val_accuracy"}
    assert {row.test_images for row in state.rows} == {0}


@pytest.mark.slow
@pytest.mark.ray
def test_a_claim_on_segmentation_stores_the_mean_iou_of_its_students(cluster, home):
    masks = place(home, "masks")
    assert running.run(claims_of(home, "dense"), masks).failed == 0
    state = read_state(*claims_of(home, "dense"), masks.results)
    assert [row.test_images for row in state.fresh] == [200, 200]
    assert all(0 <= row.record.metrics["student/test_miou"] <= 1 for row in state.fresh)
    assert "Values are test mean IoU in percent on 200 images" in whole_text(state)


def test_a_claim_that_needs_a_gpu_is_left_out_without_one_and_logged(home, logged):
    (claim,) = claims_of(home, "tiny")
    result = running.run([replace(claim, needs_gpu=True)], place(home, "gpu"))
    assert result.complete
    assert logged == ["tiny needs a GPU, so it is left out without --gpus-per-trial"]
    assert not (home / "rows-gpu").exists()


def test_missing_data_are_refused_before_anything_is_run(home, tmp_path):
    tree = TINY | {"data": {"name": "cifar10"}}
    (tmp_path / "far.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    (claim,) = read_claims(tmp_path)
    with pytest.raises(InputError, match="--data-root is None"):
        running.run([claim], place(home, "far"))
    with pytest.raises(InputError, match=r"^--data-root .*: data\.root is .*cifar10"):
        running.run([claim], replace(place(home, "far"), data_root=tmp_path))
    assert not (home / "far").exists()


def started(home: Path, name: str, *flags: str) -> subprocess.Popen[str]:
    folders = ["--claims", str(home / "claims"), "--results", str(home / f"rows-{name}"), "--out", str(home / name)]
    command = [sys.executable, str(EXPERIMENTS / "claims.py"), "tiny", *folders, "--cache", str(home / "cache"), *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(CHECKOUT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, env=environment, start_new_session=True, **pipes)


def wait_for_a_record(home: Path, name: str, driver: subprocess.Popen[str]) -> None:
    """Wait until the first trial has its record."""
    until = time.monotonic() + 200
    while not records(home, name):
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_an_interrupted_claim_keeps_its_rows_and_continues(whole, home, number):
    name = number.name
    with started(home, name) as driver:
        wait_for_a_record(home, name, driver)
        driver.send_signal(number)
        _, errors = driver.communicate(timeout=200)
    assert driver.returncode == 130, errors
    assert 1 <= len(read_rows(home / f"rows-{name}" / "tiny.parquet")) < 16
    with started(home, name) as driver:
        _, errors = driver.communicate(timeout=300)
    assert driver.returncode == 0, errors
    assert numbers(read_rows(home / f"rows-{name}" / "tiny.parquet")) == numbers(whole)


@pytest.mark.ray
@pytest.mark.slow
def test_a_claim_out_of_time_exits_with_3_and_continues(whole, home):
    with started(home, "late", "--time-budget", "1s") as driver:
        _, errors = driver.communicate(timeout=300)
    assert driver.returncode == 3, errors
    with started(home, "late") as driver:
        _, errors = driver.communicate(timeout=300)
    assert driver.returncode == 0, errors
    assert numbers(read_rows(home / "rows-late" / "tiny.parquet")) == numbers(whole)


@pytest.mark.ray
@pytest.mark.fault
def test_a_killed_claim_continues_and_gives_the_same_rows(whole, home):
    with started(home, "killed") as driver:
        wait_for_a_record(home, "killed", driver)
        os.killpg(driver.pid, signal.SIGKILL)
        driver.communicate(timeout=200)
    with started(home, "killed") as driver:
        _, errors = driver.communicate(timeout=300)
    assert driver.returncode == 0, errors
    assert numbers(read_rows(home / "rows-killed" / "tiny.parquet")) == numbers(whole)
