import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from condkd_ray import __main__
from condkd_ray.core.records import Record, read_manifest, read_records, write_manifest, write_record
from condkd_ray.trial.plan import NUMBERS

TINY = """
data: digits
teacher: {network: {name: resnet, depth: 8, width: 4}, training: {epochs: 1}}
student: {name: resnet, depth: 8, width: 2}
condensation: {name: random_real, ipc: 2}
inversion: {name: fast, steps: 2, batch: 16, latent: 16, width: 8}
guidance: discriminator
distiller: {steps: 2, batch: 16, condensed_share: 0.25}
rounds: 10
"""


def command(folder: Path, out: str, *flags: str) -> list[str]:
    return ["train", str(folder / "trial.yaml"), "--out", str(folder / out), "--cache", str(folder / "cache"), *flags]


def spawn(*arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    whole = [sys.executable, "-W", "error", "-m", "condkd_ray", *arguments]
    return subprocess.Popen(whole, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("main")
    (folder / "trial.yaml").write_text(TINY)
    return folder


@pytest.fixture(scope="module")
def trained(folder) -> tuple[Path, str, str]:
    """A trial run by the real command: its folder, standard output and standard error."""
    with spawn(*command(folder, "out")) as process:
        printed, errors = process.communicate()
    assert process.returncode == 0, errors
    return folder / "out", printed, errors


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the command in this process and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["condkd", *arguments])
    # A process of xdist has no main file, as a notebook has none.
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "condkd", raising=False)
    with pytest.raises(SystemExit) as caught:
        __main__.main()
    assert isinstance(caught.value.code, int)
    return caught.value.code


def numbers(record: Record) -> list[object]:
    """Return the parts of a record that must not depend on when and where the trial ran."""
    rounds = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in record.history]
    return [record.config_hash, record.outcome.predictions, rounds, record.metrics["student/test_accuracy"]]


def test_train_writes_record_tables_and_checkpoint_and_logs_its_progress(trained):
    out, printed, errors = trained
    (record,) = read_records(out)
    assert (record.status, record.arm, record.outcome.rounds, record.ipc) == ("finished", "trial", 10, 2)
    manifest = read_manifest(out)
    assert manifest.planned[0]["config_hash"] == record.config_hash
    assert manifest.cpu_seconds is not None
    assert manifest.cpu_seconds > 0
    for name in ("table.md", "table.csv", "records.parquet", f"trials/{record.config_hash}/state.safetensors"):
        assert (out / name).is_file()
    assert not (out / "trials" / record.config_hash / "chunks").exists()
    assert f"{100 * record.metrics['student/test_accuracy']:.2f}" in printed
    assert errors.count("training teacher resnet-8-4 on digits") == 1
    accuracy = 100 * record.metrics["student/test_accuracy"]
    assert f"[1/1] trial ipc 2 seed 0 test {accuracy:.2f} %" in errors
    assert "Traceback" not in errors


def test_the_same_command_runs_no_finished_trial_again(trained, folder, monkeypatch, capsys):
    out, printed, _ = trained
    before = {path: path.stat().st_mtime_ns for path in (out / "records").iterdir()}
    assert run(monkeypatch, *command(folder, "out")) == 0
    assert {path: path.stat().st_mtime_ns for path in (out / "records").iterdir()} == before
    found = capsys.readouterr()
    assert results(found.out) == results(printed)
    assert "training" not in found.err


def results(printed: str) -> list[str]:
    """Return the lines of a report without the CPU time of this command."""
    return [line for line in printed.splitlines() if not line.startswith("CPU time of the last run")]


def test_report_writes_deleted_files_again(trained, monkeypatch, capsys):
    out, printed, _ = trained
    tables = {name: (out / name).read_bytes() for name in ("table.md", "table.csv")}
    for path in [*out.glob("*.parquet"), *out.glob("*.png"), *(out / name for name in tables)]:
        path.unlink()
    assert run(monkeypatch, "report", str(out)) == 0
    assert {name: (out / name).read_bytes() for name in tables} == tables
    assert {"records.parquet", "rounds.parquet", "curves.png", "figure.png"} <= {path.name for path in out.iterdir()}
    assert results(capsys.readouterr().out) == results(printed)


@pytest.mark.slow
def test_a_killed_trial_continues_to_the_same_numbers(trained, folder, monkeypatch):
    with spawn(*command(folder, "killed")) as process:
        while not any(folder.glob("killed/trials/*/chunks/*.arrow")) and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert read_records(folder / "killed") == []
    assert run(monkeypatch, *command(folder, "killed")) == 0
    assert numbers(read_records(folder / "killed")[0]) == numbers(read_records(trained[0])[0])


def test_a_deleted_record_is_computed_again(trained, folder, monkeypatch):
    out = trained[0]
    (path,) = (out / "records").iterdir()
    before = read_records(out)[0]
    path.unlink()
    assert run(monkeypatch, *command(folder, "out")) == 0
    assert numbers(read_records(out)[0]) == numbers(before)


def test_flags_have_precedence_over_the_file_and_other_trials_join_the_folder(trained, folder, monkeypatch):
    flags = ("--rounds", "1", "--inversion.steps", "1", "--seed", "3", "--arm", "short")
    assert run(monkeypatch, *command(folder, "joined", *flags)) == 0
    assert run(monkeypatch, *command(folder, "joined", "--rounds", "1")) == 0
    records = {record.arm: record for record in read_records(folder / "joined")}
    assert set(records) == {"short", "trial"}
    config = records["short"].config
    assert (config["rounds"], config["inversion"]["steps"], config["seed"]) == (1, 1, 3)
    assert config["inversion"]["batch"] == 16
    assert len(read_manifest(folder / "joined").planned) == 2


def test_a_diverging_trial_exits_with_code_one_and_can_be_run_again(folder, monkeypatch, capsys):
    broken = command(folder, "broken", "--inversion.bn-weight", "1e39", "--rounds", "1")
    for _ in range(2):
        assert run(monkeypatch, *broken) == 1
        assert "failed: round 1: loss term inversion/loss is not finite at step 1" in capsys.readouterr().err
        (record,) = read_records(folder / "broken")
        assert record.status == "failed"


def test_fresh_begins_anew_and_keeps_earlier_results(trained, folder, monkeypatch):
    for flags in ((), ("--fresh",)):
        assert run(monkeypatch, *command(folder, "again", "--rounds", "1", *flags)) == 0
    (kept,) = folder.glob("again.*")
    assert len(read_records(kept)) == len(read_records(folder / "again")) == 1


def test_the_manifest_is_json_with_command_and_data_set(trained):
    manifest = json.loads((trained[0] / "experiment.json").read_text())
    assert " train " in manifest["command"]
    assert manifest["dataset"]["name"] == "digits"


def test_a_trial_is_repeated_from_its_record_and_its_student_exported(trained, folder, monkeypatch, capsys):
    out = trained[0]
    (record,) = read_records(out)
    again = ("--out", str(folder / "again"), "--cache", str(folder / "cache"))
    assert run(monkeypatch, "train", "--from-record", str(out), record.config_hash[:6], *again) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("equal: test accuracy ")
    assert run(monkeypatch, "export", str(out), "--to", str(folder / "export")) == 0
    names = {"student.json", "student.pt2", "student.safetensors", "synthetic.parquet"}
    assert {path.name for path in (folder / "export").iterdir()} == names
    assert run(monkeypatch, "export", str(out), "--to", str(folder / "export")) == 2
    assert "accepted: a new or empty folder" in capsys.readouterr().err


def test_repeating_a_record_of_another_numbers_version_logs_a_warning(trained, folder, monkeypatch, capsys):
    (record,) = read_records(trained[0])
    older = folder / "older"
    write_manifest(older, read_manifest(trained[0]))
    # An older version wrote the record under another hash, without a newer field and with version 1.
    tree = {name: value for name, value in record.config.items() if name != "test_rounds"}
    write_record(older, dataclasses.replace(record, config_hash="0ld", config=tree, numbers=1))
    again = ("--out", str(folder / "repeated"), "--cache", str(folder / "cache"))
    assert run(monkeypatch, "train", "--from-record", str(older), "0ld", *again) == 0
    captured = capsys.readouterr()
    version = f"the record has version 1 of the numbers, this program has version {NUMBERS}"
    assert f"{version}: the result may differ" in captured.err
    assert captured.out.splitlines()[-1].startswith("equal: test accuracy ")
    # The warning is also logged for a record with a removed field, which cannot be run.
    write_record(older, dataclasses.replace(record, config_hash="1ld", config=tree | {"gone": 1}, numbers=1))
    assert run(monkeypatch, "train", "--from-record", str(older), "1ld", *again) == 2
    errors = capsys.readouterr().err
    assert version in errors
    assert "'gone'" in errors


def test_flags_beside_a_record_and_a_trial_without_a_file_are_refused(trained, monkeypatch, capsys):
    record = str(trained[0]), read_records(trained[0])[0].config_hash
    for wrong in (["--from-record", *record, "--rounds", "3"], ["--from-record", record[0]], ["--rounds", "3"], []):
        assert run(monkeypatch, "train", *wrong) == 2
        assert "Traceback" not in capsys.readouterr().err
    assert run(monkeypatch, "train", "--from-record", record[0], "zzz") == 2
    assert "accepted: the beginning of just one of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "first"),
    [
        *(([], "| family | name |"), (["--networks"], "| network | published ")),
        (["--published"], "| system | published in | rounds | images made |"),
    ],
)
def test_methods_prints_methods_networks_or_published_systems(flags, first, monkeypatch, capsys):
    assert run(monkeypatch, "methods", *flags) == 0
    assert capsys.readouterr().out.startswith(first)
