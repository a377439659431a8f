"""The ablation in the way users run it, on a budget of seconds."""

import csv
import os
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import optuna
import programs
import pytest
import toy
import yaml
from places import EXPERIMENTS
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from condkd_ray.commands.experiment import Flags, run
from condkd_ray.core.method import InputError
from condkd_ray.core.records import Manifest, Record, read_manifest, read_records, write_manifest
from condkd_ray.core.view import SILENT
from condkd_ray.methods.distiller import Distiller
from condkd_ray.methods.guidance import Moments
from condkd_ray.methods.memory import Latest
from condkd_ray.runs import experiment
from condkd_ray.runs.arms import arm, spread
from condkd_ray.runs.experiment import alone_limit, scoped, scoped_baseline
from condkd_ray.runs.options import Options
from condkd_ray.study.storage import open_storage
from condkd_ray.trial.artifacts import Workshop
from condkd_ray.trial.config import TrialConfig
from condkd_ray.trial.device_pool import round_bytes
from condkd_ray.trial.plan import Plan, PlannedTrial, trial_hash

SCRIPT = EXPERIMENTS / "ablate_ipc.py"
SMALL = {
    "inversion": {"steps": 1, "batch": 32, "width": 8},
    "distiller": {"steps": 3, "batch": 32},
    "condensation": {"iterations": 2},
}
ARMS = {("none", 0), ("real", 0), ("condensed_only", 1), ("mixed", 1), ("mixed_prior", 1), ("guided", 1)}


@pytest.fixture(scope="module")
def home(cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ablation")
    (folder / "small.yaml").write_text(yaml.safe_dump(SMALL))
    return folder


def arguments(home: Path, out: str, *flags: str) -> list[str]:
    fixed = ["--ipcs", "1", "--seeds", "0", "--teacher-epochs", "1", "--config", str(home / "small.yaml")]
    return [*fixed, "--out", str(home / out), "--cache", str(home / "cache"), *flags]


def ablate(home: Path, out: str, *flags: str) -> subprocess.CompletedProcess[str]:
    return programs.script(SCRIPT, *arguments(home, out, *flags))


def numbers(record: Record) -> tuple[object, ...]:
    history = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in record.history]
    return record.config_hash, history, record.outcome.predictions, record.metrics["student/test_accuracy"]


def study_values(out: Path) -> dict[str, float]:
    """Return the value of each trial in the study, by its hash."""
    trials = optuna.load_study(study_name="ablate_ipc", storage=open_storage(None, out)).trials
    found = {trial.user_attrs["config_hash"]: trial.value for trial in trials}
    assert len(found) == len(trials)
    return found


@pytest.fixture(scope="module")
def finished(home: Path) -> Path:
    done = ablate(home, "whole", "--rounds", "2")
    assert done.returncode == 0, done.stderr
    assert "guided - mixed" in done.stdout
    return home / "whole"


@pytest.mark.ray
def test_every_arm_leaves_a_record_a_row_and_an_event_file(finished: Path):
    records = read_records(finished)
    assert {(record.arm, record.ipc) for record in records} == ARMS
    assert {record.status for record in records} == {"finished"}
    rows = list(csv.DictReader((finished / "table.csv").read_text().splitlines()))
    assert {"mixed", "guided"} <= {row["arm"] for row in rows}
    assert (finished / "figure.svg").stat().st_size > 1000
    for record in records:
        assert len(record.outcome.predictions) == 600
        (run,) = (finished / "tensorboard").rglob(f"*-{record.config_hash[:6]}")
        events = EventAccumulator(str(run))
        events.Reload()
        assert len(events.Scalars("kd/loss")) == 2
        assert len(events.Images("samples/grid")) == 1
    assert read_manifest(finished).cpu_seconds > 1
    assert study_values(finished) == {record.config_hash: record.metrics["proxy/agreement"] for record in records}


@pytest.mark.ray
def test_the_same_command_runs_no_finished_trial_again(home: Path, finished: Path):
    before = {path: path.stat().st_mtime_ns for path in (finished / "records").iterdir()}
    again = ablate(home, "whole", "--rounds", "2")
    assert again.returncode == 0
    assert "6 of them already finished" in again.stderr
    assert {path: path.stat().st_mtime_ns for path in (finished / "records").iterdir()} == before


@pytest.mark.ray
def test_condkd_train_gives_the_row_of_the_sweep(home: Path, finished: Path):
    (swept,) = [record for record in read_records(finished) if record.arm == "guided"]
    (home / "row.yaml").write_text(yaml.safe_dump(swept.config))
    done = programs.condkd("train", home / "row.yaml", "--out", home / "train", "--cache", home / "cache")
    assert done.returncode == 0, done.stderr
    (trained,) = read_records(home / "train")
    assert numbers(trained) == numbers(swept)


@pytest.mark.slow
@pytest.mark.ray
def test_an_interrupted_ablation_writes_a_report_and_continues_to_the_same_records(home: Path, finished: Path):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), *arguments(home, "cut", "--rounds", "2")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as run:
        assert run.stderr is not None
        for line in run.stderr:
            if line.startswith("[1/6]"):
                run.send_signal(signal.SIGINT)
                break
        rest = run.stderr.read()
    assert run.returncode == 130
    assert "the same command continues" in rest
    assert (home / "cut" / "table.md").is_file()
    assert ablate(home, "cut", "--rounds", "2").returncode == 0
    assert [numbers(r) for r in read_records(home / "cut")] == [numbers(r) for r in read_records(finished)]
    assert study_values(home / "cut") == study_values(finished)


@pytest.mark.slow
@pytest.mark.ray
def test_an_ablation_out_of_time_says_so_and_only_selects_the_trials_that_run_next(home: Path, finished: Path):
    short = ablate(home, "budget", "--rounds", "2", "--time-budget", "1s")
    assert short.returncode == 3, short.stderr
    assert "the time budget is spent; the same command continues" in short.stderr
    wanted = next(record for record in read_records(finished) if record.arm == "mixed")
    only = ablate(home, "budget", "--rounds", "2", "--only", wanted.config_hash[:6])
    assert only.returncode == 0, only.stderr
    assert "6 trials, 1 of them chosen, 0 of them already finished" in only.stderr
    assert [numbers(record) for record in read_records(home / "budget")] == [numbers(wanted)]


@pytest.mark.ray
def test_only_trials_that_were_planned_can_be_chosen(home: Path, finished: Path):
    unknown = ablate(home, "whole", "--rounds", "2", "--only", "no hash")
    assert unknown.returncode == 2
    assert "--only is 'no hash'; accepted: the beginning of the hash of one planned trial: " in unknown.stderr
    explained = ablate(home, "whole", "--rounds", "2", "--only", "no hash", "--explain")
    assert explained.returncode == 2
    assert "--only is 'no hash'; accepted: the beginning of the hash of one planned trial: " in explained.stderr
    nowhere = ablate(home, "nowhere", "--rounds", "2", "--only", "ab")
    assert nowhere.returncode == 2
    assert "holds no experiment.json" in nowhere.stderr


def test_an_explained_plan_has_only_the_chosen_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Workshop, "check", lambda *_: None)
    monkeypatch.setattr(experiment, "explain", lambda name, planned, *_: ", ".join(plan.label for plan in planned))
    config = toy.toy_config()
    arms = {"none": replace(config, rounds=1), "mixed": replace(config, rounds=2)}
    plans = [Plan(name, 0, seed, replace(one, seed=seed)) for name, one in arms.items() for seed in (0, 1)]
    places = [*((plan.arm, plan.seed) for plan in plans), ("real", 0)]
    planned = [{"arm": name, "ipc": 0, "seed": seed, "config_hash": f"{n}abc"} for n, (name, seed) in enumerate(places)]
    write_manifest(tmp_path, Manifest(experiment="toy", question="", command="", created="", planned=planned))
    options = Options(out=tmp_path, cache=tmp_path / "cache")

    def explained(*only: str) -> str:
        return experiment.explained("toy", plans, options, only=only)

    assert explained() == "none seed 0, none seed 1, mixed seed 0, mixed seed 1"
    assert explained("2", "0a") == "none seed 0, mixed seed 0"
    for unknown in ("abc", "4a"):  # of no trial, and of one that is no longer planned
        with pytest.raises(InputError, match=rf"--only is '{unknown}'; accepted: the beginning of the hash of one"):
            explained(unknown)
    with pytest.raises(InputError, match="--only is '2'; accepted: hashes of trials of an earlier run, without"):
        experiment.explained("toy", plans, replace(options, fresh=True), only=("2",))


@pytest.mark.slow
@pytest.mark.ray
def test_seeds_are_distributed_over_several_teachers(home: Path):
    flags = ("--rounds", "1", "--seeds", "0", "1", "2", "--arms", "none", "--no-reference", "--test-rounds", "full")
    done = ablate(home, "teachers", *flags, "--teachers", "2")
    assert done.returncode == 0, done.stderr
    records = {record.seed: record for record in read_records(home / "teachers")}
    assert [records[seed].config["teacher"]["seed"] for seed in range(3)] == [0, 1, 0]
    assert {record.config["test_rounds"] for record in records.values()} == {"full"}
    hashes = [records[seed].teacher_hash for seed in range(3)]
    assert hashes[0] == hashes[2] != hashes[1]
    assert [(one["seed"], one["hash"]) for one in read_manifest(home / "teachers").teachers] == [*enumerate(hashes[:2])]
    for seed in range(2):
        assert f"teacher resnet-8-16 seed {seed}: accuracy " in done.stderr
    for record in records.values():
        assert record.history[-1]["student/test_accuracy"] == record.metrics["student/test_accuracy"]
    again = ablate(home, "teachers", *flags, "--teachers", "2")
    assert "3 of them already finished" in again.stderr


def test_producers_with_a_scope_other_than_trial_are_refused(tmp_path: Path):
    flags = Flags(out=tmp_path / "out", ipcs=(1,), seeds=(0,), producers=1, share="sweep")
    with pytest.raises(InputError, match="--share with --producers is 'sweep'; accepted: trial"):
        run("toy", "Why?", [arm(flags.base(), "mixed", 1, 0)], flags)
    assert not flags.out.exists()


PLANS = [Plan(arm, 0, 0, toy.toy_config()) for arm in ("none", "mixed", "guided")]


def test_a_plan_without_a_scope_gets_that_of_the_flags():
    assert [scoped(plan, "trial") for plan in PLANS] == PLANS
    assert {(plan.arm, plan.scope) for plan in (scoped(plan, "inversion") for plan in PLANS)} == {
        ("none", "inversion"),
        ("mixed", "inversion"),
        ("guided", "inversion"),
    }
    own = Plan("a", 0, 0, toy.toy_config(), "inversion")
    assert scoped(own, "sweep") == own


def test_an_arm_of_the_shared_pool_has_its_own_name_and_a_baseline_of_the_shared_pool():
    assert scoped(PLANS[1], "sweep").arm == "mixed (sweep's pool)"
    for flag in ("none", {"guided": "mixed"}):
        baseline = scoped_baseline(flag, PLANS, "sweep")
        assert baseline["mixed (sweep's pool)"] == "none (sweep's pool)"
        assert baseline["mixed"] == "none"
        expected = "none" if flag == "none" else "mixed"
        assert baseline["guided (sweep's pool)"] == f"{expected} (sweep's pool)"
    assert scoped_baseline("none", PLANS, "inversion") == "none"


def test_seeds_take_teachers_in_turn_and_nothing_else_changes():
    plans = [Plan(arm, 0, seed, toy.toy_config(seed=seed)) for arm in ("none", "mixed") for seed in (7, 3, 5)]
    assert spread(plans, (7, 3, 5), 1) == plans
    found = spread(iter(plans), (7, 3, 5), 2)
    assert [(plan.seed, plan.config.teacher.seed) for plan in found] == [(7, 0), (3, 1), (5, 0)] * 2
    assert [plan.config.data.seed for plan in found] == [0] * 6
    back = [replace(plan, config=replace(plan.config, teacher=plans[0].config.teacher)) for plan in found]
    assert back == plans
    own = replace(plans[0], config=replace(plans[0].config, teacher=replace(plans[0].config.teacher, seed=4)))
    assert [plan.config.teacher.seed for plan in spread([own, plans[1]], (7, 3), 2)] == [4, 1]


def test_an_invalid_number_of_teachers_is_refused(tmp_path):
    plans = [Plan("mixed", 0, seed, toy.toy_config(seed=seed)) for seed in (0, 1)]
    for teachers in (0, -1, 3):
        with pytest.raises(InputError, match=f"--teachers is {teachers}; accepted: 1 to 2, the number of --seeds"):
            spread(plans, (0, 1), teachers)
    with pytest.raises(InputError, match="--teachers is 2; accepted: 1 to 1, the number of --seeds"):
        spread(plans[:1], (0, 0), 2)
    with pytest.raises(InputError, match="--teachers is 2; accepted: 1: this experiment does not run each of --seeds"):
        spread(plans, (0, 1, 2), 2)
    loaded = replace(plans[0].config, teacher=replace(plans[0].config.teacher, weights=tmp_path / "w.pt"))
    with pytest.raises(InputError, match=r"--teachers with --teacher-weights .*w.pt is 2; accepted: 1, that of the fi"):
        spread([replace(plans[0], config=loaded), plans[1]], (0, 1), 2)


def test_the_scope_is_part_of_the_hash_of_a_trial():
    config, prepared = toy.toy_config(), toy.make_prepared()
    names = {trial_hash(config, prepared, scope) for scope in ("trial", "inversion", "sweep")}
    assert len(names) == 3
    assert trial_hash(config, prepared) in names


def test_the_device_pool_limit_of_a_single_trial_is_at_least_one_round(tmp_path):
    on_gpu, config = Workshop(tmp_path, device="cuda"), TrialConfig()
    least = round_bytes(config, (1, 8, 8), 10, logits=config.keeps_logits)
    assert alone_limit(None, config, on_gpu) is None
    assert alone_limit(f"{least}B", config, on_gpu) == least
    with pytest.raises(InputError, match=f"--device-pool-limit is '{least - 1} bytes'; accepted: at least the {least}"):
        alone_limit(f"{least - 1}B", config, on_gpu)


class Stopped(BaseException):
    """Simulates the death of the process."""


@pytest.mark.parametrize(
    ("which", "damage"),
    [
        *(("state.safetensors", lambda whole: b""), ("state.safetensors", lambda whole: whole[:200])),
        *(("chunks/*.arrow", lambda whole: b""), ("chunks/*.arrow", lambda whole: whole[:200])),
        ("chunks/*.arrow", lambda whole: bytes(len(whole))),
    ],
)
def test_a_trial_with_damaged_files_restarts_and_logs_it(tmp_path, which, damage, monkeypatch, logged):
    config = toy.toy_config(memory=Latest(), rounds=4)
    trial = PlannedTrial("0" * 16, Plan("trial", 1, 0, config), toy.make_prepared())
    experiment.run_and_record(trial, tmp_path / "whole", SILENT, None)

    def stop(self, trial, metrics):
        if metrics["round"] == 3:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(experiment.Recorder, "round", stop)
        patch.setattr(experiment, "run_trial", partial(experiment.run_trial, checkpoint_seconds=0))
        with pytest.raises(Stopped):
            experiment.run_and_record(trial, tmp_path / "out", SILENT, None)
    folder = tmp_path / "out" / "trials" / trial.key
    path = sorted(folder.glob(which))[-1]
    whole = path.read_bytes()
    path.unlink()  # maps of the old file stay valid
    path.write_bytes(damage(whole))
    logged.clear()
    experiment.run_and_record(trial, tmp_path / "out", SILENT, None)
    assert any(str(path) in line for line in logged)
    assert any("the trial restarts from the beginning" in line for line in logged)
    (first,), (again,) = read_records(tmp_path / "whole"), read_records(tmp_path / "out")
    assert numbers(again) == numbers(first)


def test_an_option_without_effect_is_logged_once(caplog):
    guidance, seen = Moments(stages_weight=3.0), Distiller(condensed_augment="dsa")
    configs = [toy.toy_config(guidance=guidance, seed=seed) for seed in (0, 1)]
    configs += [toy.toy_config(distiller=seen), toy.toy_config()]
    with caplog.at_level("INFO", "condkd_ray"):
        experiment.log_idle(configs)
    assert caplog.messages == [
        "guidance stages_weight 3 without stages has no effect",
        "condensed_augment dsa with condensed_share 0 has no effect",
    ]


def test_two_plans_with_equal_hashes_are_refused_with_both_labels():
    plans = [Plan(arm, 1, 0, TrialConfig()) for arm in ("one", "fifty")]
    trials = [PlannedTrial("0123456789abcdef", plan, None) for plan in plans]
    labels = f"{plans[0].label} and {plans[1].label}"
    with pytest.raises(InputError, match=f"trial 0123456789ab planned twice is '{labels}'; accepted: arms that differ"):
        experiment.check_hashes(trials)
    experiment.check_hashes(trials[:1])
