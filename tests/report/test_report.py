"""`report.build`: everything again from what is stored, with whatever is there."""

import json
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from condkd_ray.core.method import InputError
from condkd_ray.core.records import record_path, write_manifest, write_record
from condkd_ray.report.build import build
from report.report_factory import diagnosed, make_manifest, make_record, remembering, sweep

MADE = {"records.parquet", "rounds.parquet", "predictions.parquet", "table.md", "table.csv", "figure.png",
        "figure.svg", "curves.png", "diagnosis.png", "histograms.png", "report.html", "tensorboard"}  # fmt: skip


def test_everything_is_rebuilt_the_same(folder):
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


def test_a_killed_sweep_is_reported_as_far_as_it_came(folder):
    planned = sweep()
    out = folder(planned[:7])
    write_manifest(out, make_manifest(planned))
    assert "7 of 70 planned trials have finished." in build(out, tensorboard=False)


def test_a_sweep_in_which_everything_failed(folder):
    records = [make_record("guided", 5, s, status="failed", reason="NaN", metrics={}, history=[], predictions=[])
               for s in (0, 1)]  # fmt: skip
    out = folder(records)
    said = build(out)
    assert "2 of 2 trials failed\n\n2 x  NaN\n     guided ipc 5 seed 0 (" in said
    assert f"condkd train --from-record {out} {records[0].config_hash[:8]}\n" in said
    assert "2 of 2 trials failed" in (out / "table.md").read_text()
    assert not (out / "figure.png").exists()


def test_nothing_has_run_yet(folder):
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


def test_workers_do_not_pay_for_pictures():
    code = "import sys, condkd_ray.core.records; print([m for m in ('matplotlib', 'tensorboard') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
