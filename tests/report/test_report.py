"""`report.build` rebuilds everything from stored files, also from an incomplete folder."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from core.test_locks import run_in

from condkd_ray.core.locks import claim, release
from condkd_ray.core.method import InputError
from condkd_ray.core.records import record_path, write_manifest, write_record
from condkd_ray.report.build import build
from report.report_factory import diagnosed, make_manifest, make_record, remembering, sweep

MADE = {"records.parquet", "rounds.parquet", "predictions.parquet", "table.md", "table.csv", "figure.png",
        "figure.svg", "curves.png", "diagnosis.png", "histograms.png", "report.html", "tensorboard"}  # fmt: skip


def test_a_rebuilt_report_is_equal(folder):
    out = folder([remembering(diagnosed(record)) for record in sweep(ipcs=(1, 10), seeds=(0, 1))])
    text = build(out)
    assert {path.name for path in out.iterdir()} == MADE | {"experiment.json", "records", "grids"}
    stable = ("table.md", "table.csv", "figure.png", "figure.svg", "report.html")
    before = [(out / name).read_bytes() for name in stable]
    assert build(out) == text
    assert before == [(out / name).read_bytes() for name in stable]
    assert "guided - mixed" in text
    assert not list(out.rglob("*.partial"))


def test_without_tensorboard(folder):
    out = folder(sweep(seeds=(0,)))
    build(out, tensorboard=False)
    assert not (out / "tensorboard").exists()


def test_a_killed_sweep_is_reported_with_its_finished_trials(folder):
    planned = sweep()
    out = folder(planned[:7])
    write_manifest(out, make_manifest(planned))
    assert "7 of 70 planned trials have finished." in build(out, tensorboard=False)


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Return inode and time of all files in `folder`, by path."""
    found = ((path, path.stat()) for path in folder.rglob("*") if path.is_file())
    return {str(path): (status.st_ino, status.st_mtime_ns) for path, status in found}


def test_the_report_of_a_running_process_is_interim_and_keeps_its_event_files(folder):
    planned = sweep(ipcs=(5,), seeds=(0, 1))
    out = folder(planned)
    build(out)
    for record in planned[3:]:
        record_path(out, record.config_hash).unlink()
    before = files(out / "tensorboard")
    interim = f"interim: 3 of {len(planned)} trials have ended; the experiment is running"
    with run_in(out):
        text = build(out)
    assert text.startswith(f"{interim}\n")
    assert f"**{interim}**" in (out / "table.md").read_text()
    assert f'<p class="interim">{interim}</p>' in (out / "report.html").read_text()
    assert pq.read_table(out / "records.parquet").num_rows == 3
    assert files(out / "tensorboard") == before
    # The process itself, and any process after it, makes the whole report.
    claimed = claim(out, "--out")
    for again in (build(out), release(claimed) or build(out)):
        assert "interim" not in again
        assert "interim" not in (out / "table.md").read_text()
        assert 'class="interim"' not in (out / "report.html").read_text()
        assert not set(files(out / "tensorboard")) & set(before)


def test_once_all_trials_have_ended_only_the_report_of_a_running_search_is_interim(folder):
    out = folder(sweep(ipcs=(5,), seeds=(0,)))
    with run_in(out):
        assert "interim" not in build(out)
        assert not (out / "tensorboard").exists()
    about = {"objective": ["proxy/agreement"], "directions": ["maximize"], "constraints": [], "parameters": []}
    write_manifest(out, make_manifest([make_record("trial 0", 5)], experiment="search", search=about))
    for path in (out / "records").iterdir():
        path.unlink()
    write_record(out, make_record("trial 0", 5))
    with run_in(out):
        assert build(out).startswith("interim: 1 trial has ended; the search is running\n")
    assert "**interim: 1 trial has ended; the search is running**" in (out / "search.md").read_text()
    assert 'class="interim"' in (out / "report.html").read_text()
    # The search has written its end, and still holds the lock of the folder.
    planned = make_manifest([make_record("trial 0", 5)], experiment="search", search=about, cpu_seconds=9.0)
    write_manifest(out, planned)
    with run_in(out):
        assert "interim" not in build(out)
    assert "interim:" not in (out / "search.md").read_text()


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("records.parquet", "Parquet files"),
        ("table.md", "tables"),
        ("figure.svg", "figures"),
        ("report.html", "page"),
        ("tensorboard", "TensorBoard files"),
    ],
)
def test_a_part_that_cannot_be_written_is_logged_once_and_all_others_are_made(folder, logged, name, what):
    out = folder(sweep(ipcs=(5,), seeds=(0,)))
    expected = build(out)
    for path in out.iterdir():
        if path.name in MADE:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    # Put a folder in the place of the file, or a file in the place of the folder.
    (out / name).touch() if name == "tensorboard" else (out / name / "in the way").mkdir(parents=True)
    failed: list[Exception] = []
    assert build(out, failed=failed) == expected
    assert len(failed) == 1
    (message,) = logged
    assert message.startswith(f"{what} cannot be written (")
    assert message.endswith(f"; condkd report {out} writes it again")
    if name != "tensorboard":
        shutil.rmtree(out / name)
    assert {path.name for path in out.iterdir()} >= {"records.parquet", "table.md", "report.html"} - {name}
    logged.clear()
    (out / "tensorboard").unlink() if name == "tensorboard" else None
    assert build(out) == expected
    assert logged == []
    assert (out / name).exists()


def test_a_sweep_in_which_all_trials_failed_is_reported(folder):
    records = [make_record("guided", 5, s, status="failed", reason="NaN", metrics={}, history=[], predictions=[])
               for s in (0, 1)]  # fmt: skip
    out = folder(records)
    text = build(out)
    assert "2 of 2 trials failed\n\n2 x  NaN\n     guided ipc 5 seed 0 (" in text
    assert f"condkd train --from-record {out} {records[0].config_hash[:8]}\n" in text
    assert "2 of 2 trials failed" in (out / "table.md").read_text()
    assert not (out / "figure.png").exists()


def test_a_report_without_trials(folder):
    assert "0 of 0 planned" in build(folder([]))


def test_trials_of_other_settings_are_kept_but_not_averaged_in(folder):
    records = sweep(("none", "mixed"), (5,), (0, 1))
    out = folder(records)
    before = build(out)
    write_record(out, make_record("mixed", 5, 0, config_hash="older", metrics={"student/test_accuracy": 0.01}))
    after = build(out)
    assert "1 stored trial is of other settings and left out" in after
    assert before.split("Data digits")[0] == after.split("Data digits")[0]
    assert pq.read_table(out / "records.parquet").num_rows == len(records) + 1
    assert not list((out / "tensorboard").rglob("seed0-older"))


def test_a_folder_without_a_manifest_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"experiment\.json; accepted: a folder"):
        build(tmp_path)
    with pytest.raises(InputError, match="missing"):
        build(tmp_path / "missing")


def test_a_truncated_record_is_named_and_nothing_is_overwritten(folder):
    out = folder([make_record()])
    build(out, tensorboard=False)
    table = (out / "table.md").read_bytes()
    path = record_path(out, make_record().config_hash)
    path.write_text(json.dumps({"arm": "guided"})[:-3])
    with pytest.raises(InputError, match=path.name):
        build(out)
    assert (out / "table.md").read_bytes() == table


def test_records_import_neither_matplotlib_nor_tensorboard():
    code = "import sys, condkd_ray.core.records; print([m for m in ('matplotlib', 'tensorboard') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
