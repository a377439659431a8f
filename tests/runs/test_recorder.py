import dataclasses
import errno
import math
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import optuna
import pytest
import torch
from killing import killed_after
from optuna.distributions import IntDistribution
from optuna.trial import TrialState
from toy import make_prepared, toy_config

from condkd_ray.core.records import (
    Manifest,
    Outcome,
    finished,
    grid_path,
    read_manifest,
    read_records,
    record_path,
    write_manifest,
    write_record,
)
from condkd_ray.data.datasets import DataConfig, Dataset, RealImages
from condkd_ray.methods.condensation import Imported, RandomReal, SqueezeRecover
from condkd_ray.methods.distiller import Distiller
from condkd_ray.methods.guidance import Discriminator
from condkd_ray.methods.inversion import Fast
from condkd_ray.methods.supervised import Supervised, TeacherConfig
from condkd_ray.models import ResNet
from condkd_ray.report.build import build
from condkd_ray.report.tensorboard.writer import EventFiles
from condkd_ray.runs import recorder as recorder_module
from condkd_ray.runs.arms import spread
from condkd_ray.runs.recorder import (
    Recorder,
    StudyRecorder,
    describe_experiment,
    make_record,
    notes_of,
    round_line,
    teacher_line,
)
from condkd_ray.study.storage import open_storage
from condkd_ray.trial.artifacts import Workshop
from condkd_ray.trial.config import Prepared, from_tree
from condkd_ray.trial.plan import NUMBERS, Plan, PlannedTrial, trial_hash
from condkd_ray.trial.run import local_store, run_trial
from runs.small_search import journal_text

CONFIG = toy_config(guidance=Discriminator(), rounds=2)
PLAN = Plan("guided", 2, 0, CONFIG)
FAILED = Outcome(
    status="failed", reason="round 2: loss term kd/loss", metrics={}, history=[], predictions=[], images=None
)


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return make_prepared()


@pytest.fixture(scope="module")
def key(prepared) -> str:
    return trial_hash(CONFIG, prepared)


@pytest.fixture(scope="module")
def outcome(prepared) -> Outcome:
    return run_trial(CONFIG, prepared, local_store(CONFIG, prepared, None))


def test_a_record_has_the_settings_and_the_outcome_of_its_trial(prepared, key, outcome):
    record = make_record("train", PLAN, key, prepared, outcome)
    assert (record.arm, record.ipc, record.seed, record.status) == ("guided", 2, 0, "finished")
    assert (record.dataset, record.teacher, record.student) == ("digits", "resnet-8-4", "resnet-8-2")
    named = (record.condensation, record.inversion, record.guidance, record.memory)
    assert named == ("random_real", "fast", "discriminator", "growing")
    assert from_tree(record.config) == CONFIG
    assert (record.config_hash, record.numbers) == (key, NUMBERS)
    assert record.teacher_hash == prepared.hashes["teacher"]
    assert record.condensed_hash == prepared.hashes["condensed"]
    assert record.outcome.rounds == len(record.history) == 2
    assert record.outcome.wall_seconds == pytest.approx(sum(m["time/wall_seconds"] for m in record.history))
    assert record.outcome.cpu_seconds > 0
    assert record.metrics["student/test_accuracy"] == outcome.metrics["student/test_accuracy"]
    assert len(record.outcome.predictions) == len(prepared.test)
    assert record.outcome.held == outcome.held != {}
    assert {"torch", "python", "condkd-ray"} <= set(record.versions)


def test_a_record_without_a_condensed_set_has_the_condensation_none(key):
    alone = toy_config(condensation=None, distiller=Distiller(steps=1, batch=4))
    record = make_record("train", Plan("none", 0, 0, alone), key, make_prepared(condensed=False), None)
    assert (record.condensation, record.condensed_hash, record.status) == ("none", "", "running")


@pytest.mark.parametrize(
    ("squeeze", "name"), [("own", "squeeze_recover"), ("teacher", "squeeze_recover (of the teacher)")]
)
def test_a_set_made_with_the_teacher_is_marked_in_record_and_notes(prepared, key, squeeze, name):
    plan = Plan("guided", 2, 0, dataclasses.replace(CONFIG, condensation=SqueezeRecover(ipc=2, squeeze=squeeze)))
    assert make_record("train", plan, key, prepared, None).condensation == name
    notes = [
        note for note in notes_of([PLAN, plan], has_val=True) if "made with the teacher: it adds no information" in note
    ]
    assert len(notes) == (squeeze == "teacher")


def test_a_failed_trial_is_recorded_with_its_reason(prepared, key):
    record = make_record("train", PLAN, key, prepared, FAILED)
    assert (record.status, record.outcome.reason) == ("failed", "round 2: loss term kd/loss")
    assert math.isnan(record.outcome.wall_seconds)
    assert record.outcome.rounds == 0


def manifest(prepared: Prepared, key: str) -> Manifest:
    return Manifest(
        experiment="train",
        question="",
        command="",
        created="",
        planned=[{"arm": PLAN.arm, "ipc": PLAN.ipc, "seed": PLAN.seed, "config_hash": key}],
        dataset={"name": "digits", "num_classes": 4, "image_shape": [1, 8, 8], "test_size": len(prepared.test)},
        teacher={"label": "resnet-8-4", "test_accuracy": 0.9},
        test_labels=prepared.test.labels.tolist(),
    )


def test_a_recorder_writes_record_grid_and_events_from_which_a_report_is_built(tmp_path, prepared, key, outcome):
    trial = PlannedTrial(key, PLAN, prepared)
    recorder = Recorder("train", tmp_path, [trial])
    for metrics in outcome.history:
        recorder.round(trial, metrics)
    assert not record_path(tmp_path, key).exists()
    recorder.ended(trial, outcome)
    recorder.close()
    assert recorder.failed == 0
    assert [record.config_hash for record in read_records(tmp_path)] == [key]
    assert grid_path(tmp_path, key).stat().st_size > 0
    assert any((tmp_path / "tensorboard").rglob("events*"))
    write_manifest(tmp_path, manifest(prepared, key))
    assert "guided" in build(tmp_path)


def block(path: Path) -> None:
    """Put a file where a folder is expected, or a folder where a file is expected, so that writing there fails."""
    path.touch() if path.name == "tensorboard" else (path / "full").mkdir(parents=True)


@pytest.mark.parametrize("when", ["before", "while"])
@pytest.mark.parametrize("name", ["tensorboard", "study.journal"])
def test_a_failing_study_or_event_file_stops_nothing_and_is_rebuilt_from_the_records(
    tmp_path, prepared, key, outcome, logged, monkeypatch, when, name
):
    trial = PlannedTrial(key, PLAN, prepared)
    write_manifest(tmp_path, manifest(prepared, key))
    if when == "before":
        block(tmp_path / name)
    recorder = Recorder("train", tmp_path, [trial], study=lambda: StudyRecorder("train", tmp_path, [trial]))
    with monkeypatch.context() as patch:
        if when == "while":
            full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / name))
            kind, method = {"tensorboard": (EventFiles, "round"), "study.journal": (StudyRecorder, "round")}[name]
            patch.setattr(kind, method, lambda *args: (_ for _ in ()).throw(full))
        for metrics in outcome.history:
            recorder.round(trial, metrics)
        recorder.ended(trial, outcome)
    (message,) = logged
    assert str(tmp_path) in message
    assert message.endswith("; the run continues without it and rebuilds it from the records at its end")
    assert read_records(tmp_path)[0].status == "finished"
    if when == "before":
        (tmp_path / name).unlink() if name == "tensorboard" else shutil.rmtree(tmp_path / name)
    recorder.close()
    assert "guided" in build(tmp_path)
    assert len(logged) == 1
    assert any((tmp_path / "tensorboard").rglob("events*"))
    study = optuna.load_study(study_name="train", storage=open_storage(None, tmp_path))
    assert [(stored_trial.state, len(stored_trial.intermediate_values)) for stored_trial in study.trials] == [
        (TrialState.COMPLETE, 2)
    ]


def test_a_recorder_counts_and_logs_failures(tmp_path, prepared, key, logged):
    trial = PlannedTrial(key, PLAN, prepared)
    recorder = Recorder("train", tmp_path, [trial])
    recorder.ended(trial, FAILED)
    recorder.close()
    assert recorder.failed == 1
    assert "guided ipc 2 seed 0 failed: round 2: loss term kd/loss" in logged
    assert read_records(tmp_path)[0].status == "failed"
    assert not grid_path(tmp_path, key).exists()


def test_a_finished_record_is_kept_when_a_second_run_of_the_trial_fails(tmp_path, prepared, key, outcome, logged):
    write_manifest(tmp_path, manifest(prepared, key))
    trial = PlannedTrial(key, PLAN, prepared)
    recorder = Recorder("train", tmp_path, [trial])
    recorder.ended(trial, outcome)
    before = {path: path.read_bytes() for path in (tmp_path / "records").iterdir()}
    recorder.ended(trial, FAILED)
    assert {path: path.read_bytes() for path in (tmp_path / "records").iterdir()} == before
    assert recorder.failed == 1
    assert logged[-1].endswith("failed: round 2: loss term kd/loss; its finished record is kept")
    # A finished record of another version of the numbers is replaced.
    (record,) = read_records(tmp_path)
    write_record(tmp_path, dataclasses.replace(record, numbers=1))
    recorder.ended(trial, FAILED)
    recorder.close()
    assert [record.status for record in read_records(tmp_path)] == ["failed"]


def test_two_concurrent_trials_have_separate_records(tmp_path, prepared, key, outcome):
    other = dataclasses.replace(PLAN, seed=1, config=dataclasses.replace(CONFIG, seed=1))
    second = trial_hash(other.config, prepared)
    trials = PlannedTrial(key, PLAN, prepared), PlannedTrial(second, other, prepared)
    recorder = Recorder("train", tmp_path, trials)
    for metrics in outcome.history:
        for trial in trials:
            recorder.round(trial, metrics)
    recorder.ended(trials[1], FAILED)
    recorder.ended(trials[0], outcome)
    recorder.close()
    assert {record.seed: record.status for record in read_records(tmp_path)} == {0: "finished", 1: "failed"}


SMALL = toy_config(
    data=DataConfig(name="digits"),
    teacher=TeacherConfig(network=ResNet(depth=8, width=4), training=Supervised(epochs=1)),
    condensation=RandomReal(ipc=2),
)


def named(plans: list[Plan], keys: list[str]) -> list[PlannedTrial]:
    return [PlannedTrial(key, plan, None) for key, plan in zip(keys, plans, strict=True)]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("cache"))


def test_a_manifest_describes_data_teacher_and_plan(tmp_path, workshop, monkeypatch):
    monkeypatch.setattr("sys.argv", ["condkd", "train", "a file.yaml"])
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "condkd", raising=False)
    plan = Plan("trial", 2, 0, SMALL)
    manifest = describe_experiment("train", "Why?\nMore.", named([plan], ["abc"]), workshop, tmp_path)
    assert manifest.question == "Why?"
    assert manifest.command.endswith("condkd train 'a file.yaml'")
    assert manifest.planned == [{"arm": "trial", "ipc": 2, "seed": 0, "config_hash": "abc"}]
    assert (manifest.dataset["name"], manifest.dataset["test_size"], manifest.dataset["num_classes"]) == (
        "digits",
        600,
        10,
    )
    assert len(manifest.test_labels) == 600
    assert manifest.teacher["hash"] == workshop.prepare(SMALL).hashes["teacher"]
    shares = [manifest.teacher[name] for name in ("test_accuracy", "val_accuracy")]
    assert all(0 <= share <= 1 for share in shares)
    assert teacher_line(manifest) == f"teacher resnet-8-4: accuracy {shares[0]:.2%} test, {shares[1]:.2%} val"
    assert (manifest.notes, manifest.baseline, manifest.teachers) == ([], "none", [])
    compared = describe_experiment("train", "", named([plan], ["abc"]), workshop, tmp_path, baseline="trial")
    assert compared.baseline == "trial"


def test_earlier_planned_trials_of_the_folder_stay_unless_planned_again(tmp_path, workshop):
    first, second = Plan("a", 2, 0, SMALL), Plan("b", 2, 0, SMALL)
    write_manifest(tmp_path, describe_experiment("train", "", named([first, second], ["1", "2"]), workshop, tmp_path))
    again = describe_experiment("train", "", named([second, Plan("c", 2, 0, SMALL)], ["3", "4"]), workshop, tmp_path)
    write_manifest(tmp_path, again)
    planned = {trial["arm"]: trial["config_hash"] for trial in read_manifest(tmp_path).planned}
    assert planned == {"a": "1", "b": "3", "c": "4"}


def test_different_teacher_networks_are_listed_and_summarised_by_their_number(tmp_path, workshop):
    wider = dataclasses.replace(SMALL.teacher, network=dataclasses.replace(SMALL.teacher.network, width=5))
    plans = [Plan("a", 2, 0, SMALL), Plan("b", 2, 0, dataclasses.replace(SMALL, teacher=wider))]
    manifest = describe_experiment("train", "", named(plans, ["1", "2"]), workshop, tmp_path)
    assert manifest.teacher == {"label": "2 networks"}
    assert manifest.notes == []
    assert teacher_line(manifest) == "teacher 2 networks"
    assert [teacher["label"] for teacher in manifest.teachers] == ["resnet-8-4", "resnet-8-5"]


def test_teachers_of_one_network_are_listed_by_seed_and_the_first_is_the_main_one(tmp_path, workshop):
    plans = spread([Plan("a", 2, seed, dataclasses.replace(SMALL, seed=seed)) for seed in range(3)], range(3), 2)
    manifest = describe_experiment("train", "", named(plans, ["1", "2", "3"]), workshop, tmp_path)
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest
    assert manifest.teacher == manifest.teachers[0]
    assert [teacher["seed"] for teacher in manifest.teachers] == [0, 1]
    hashes = [workshop.prepare(plan.config).hashes["teacher"] for plan in plans]
    assert [teacher["hash"] for teacher in manifest.teachers] == hashes[:2]
    assert hashes[0] == hashes[2] != hashes[1]
    accuracies = [workshop.teacher_scores(plan.config) for plan in plans[:2]]
    assert [{name: teacher[name] for name in accuracies[0]} for teacher in manifest.teachers] == accuracies
    lines = [f"resnet-8-4 seed {k}: accuracy {teacher['test_accuracy']:.2%}" for k, teacher in enumerate(accuracies)]
    assert [line.partition(" test")[0] for line in teacher_line(manifest).splitlines()] == [
        f"teacher {text}" for text in lines
    ]


class DenseWorkshop:
    """The part of a workshop that a manifest needs, with a segmentation."""

    SCORES: ClassVar = {"test_miou": 0.5, "val_miou": 0.45, "test_iou": {"sky": 0.75, "car": 0.25, "sign": math.nan}}

    def data(self, config):
        labels = torch.tensor([[[0, 0, 0, 1]], [[-1, 1, 0, -1]]], dtype=torch.int16)
        test = RealImages(torch.zeros(2, 3, 1, 4, dtype=torch.uint8), labels)
        ranges = {"mean": (0.5,) * 3, "std": (0.2,) * 3, "flip_ok": True, "digest": "d", "task": "segmentation"}
        return Dataset("scenes", test, None, test, 3, ("sky", "car", "sign"), **ranges)

    def prepare(self, config):
        return SimpleNamespace(hashes={"teacher": "t"})

    def check_teacher(self, config):
        return ""

    def teacher_scores(self, config):
        return self.SCORES


def test_the_manifest_of_a_segmentation_has_its_classes_their_shares_and_iou(tmp_path):
    written = describe_experiment("train", "", named([Plan("a", 2, 0, SMALL)], ["1"]), DenseWorkshop(), tmp_path)  # type: ignore[arg-type]
    write_manifest(tmp_path, written)
    found = read_manifest(tmp_path)
    assert found.test_labels == []
    assert (found.dataset["task"], found.dataset["class_names"]) == ("segmentation", ["sky", "car", "sign"])
    assert found.dataset["pixel_shares"] == pytest.approx({"sky": 4 / 6, "car": 2 / 6, "sign": 0})
    assert found.teacher["test_iou"] == {"sky": 0.75, "car": 0.25, "sign": None}
    assert teacher_line(found) == "teacher resnet-8-4: mean IoU 50.00% test, 45.00% val"


def test_an_imported_set_is_noted(tmp_path, workshop):
    dataset = workshop.data(SMALL)
    few = dataset.train[dataset.train.labels.argsort(stable=True)].samples(dataset.mean, dataset.std)
    torch.save({"data": [[few.images, few.labels]]}, tmp_path / "set.pt")
    imported = dataclasses.replace(SMALL, condensation=Imported(path=tmp_path / "set.pt", ipc=1, force=True))
    manifest = describe_experiment("train", "", named([Plan("a", 1, 0, imported)], ["1"]), workshop, tmp_path)
    assert len(manifest.notes) == 1
    assert "made elsewhere" in manifest.notes[0]
    assert "the validation images" in manifest.notes[0]


def test_a_round_is_summarised_in_one_line():
    metrics = {"round": 3, "proxy/agreement": 0.5, "kd/loss": 1.23456, "inversion/bn": 2.0, "memory/bytes": 9.0}
    line = round_line("trial 0", metrics | {"time/wall_seconds": 0.55}, 12, "proxy/agreement")
    assert line == "trial 0 round 3/12: proxy/agreement 0.5, kd/loss 1.235, inversion/bn 2, 0.6 s"


PREPARED = dataclasses.replace(make_prepared(), hashes={"teacher": "t", "data": "d", "condensed": "c", "proxy": "p"})
HISTORY = [
    {
        "round": r,
        "proxy/agreement": r / 4,
        "student/test_accuracy": 0.875,
        "time/wall_seconds": 2.0,
        "memory/bytes": 9.0,
    }
    for r in (1, 2)
]
ENDED = Outcome(
    status="finished",
    metrics={"student/test_accuracy": 0.875},
    history=HISTORY,
    predictions=[0],
    images=torch.zeros(4, 1, 8, 8, dtype=torch.uint8),
    images_per_class=1,
    peak_bytes=7,
    node="far",
)
LOST = dataclasses.replace(ENDED, status="failed", reason="round 2: kd/loss", metrics={}, images=None, peak_bytes=0)


def plan(arm: str, seed: int, **inversion) -> Plan:
    config = toy_config(seed=seed, inversion=Fast(batch=16, latent=16, width=8, **inversion), distiller=Distiller())
    return Plan(arm, 2, seed, config)


PLANS = {"a": plan("slow", 0, steps=2), "b": plan("fast", 0, steps=1), "c": plan("fast", 1, steps=1)}


def opened(out: Path, plans: dict[str, Plan] = PLANS) -> StudyRecorder:
    return StudyRecorder("ablate", out, [PlannedTrial(key, plan, PREPARED) for key, plan in plans.items()])


def report_trial(study: StudyRecorder, out: Path, key: str, outcome: Outcome = ENDED, *, recorded: bool = True) -> None:
    for metrics in outcome.history:
        study.round(key, metrics)
    study.ended(key, outcome)
    if recorded:
        write_record(out, make_record("ablate", PLANS[key], key, PREPARED, outcome))


def stored(out: Path) -> optuna.Study:
    return optuna.load_study(study_name="ablate", storage=open_storage(None, out))


def states(out: Path) -> dict[str, TrialState]:
    return {trial.user_attrs["config_hash"]: trial.state for trial in stored(out).trials}


def test_a_trial_in_the_study_is_complete_except_for_test_metrics(tmp_path):
    report_trial(opened(tmp_path), tmp_path, "a")
    study = stored(tmp_path)
    (trial,) = study.trials
    assert trial.params == {"arm": "slow", "ipc": 2, "seed": 0, "inversion/steps": 2}
    assert trial.distributions["inversion/steps"].choices == (2, 1)
    assert (trial.state, trial.value, trial.intermediate_values) == (TrialState.COMPLETE, 0.5, {1: 0.25, 2: 0.5})
    assert trial.user_attrs == {
        **{"config_hash": "a", "teacher_hash": "t", "node": "far", "peak_bytes": 7},
        **{"time/wall_seconds": 4.0, "memory/bytes": 9.0},
    }
    assert study.direction.name == "MAXIMIZE"
    files = optuna.artifacts.get_all_artifact_meta(trial, storage=open_storage(None, tmp_path))
    assert {file.filename for file in files} == {"a.png", "a.yaml"}
    journal = journal_text(tmp_path / "study.journal")
    assert "test" not in journal
    assert "0.875" not in journal


def test_opening_the_study_again_adds_nothing(tmp_path):
    for key in PLANS:
        report_trial(opened(tmp_path), tmp_path, key)
    before = (tmp_path / "study.journal").read_bytes()
    opened(tmp_path)
    assert (tmp_path / "study.journal").read_bytes() == before
    assert len(stored(tmp_path).trials) == 3


@pytest.mark.parametrize("recorded", [True, False])
def test_a_killed_run_that_continues_has_each_trial_once_and_complete(tmp_path, recorded):
    first = opened(tmp_path)
    report_trial(first, tmp_path, "a", recorded=recorded)
    first.round("b", HISTORY[0])
    again = opened(tmp_path)
    for key in ("b", "c") if recorded else ("a", "b", "c"):
        report_trial(again, tmp_path, key)
    trials = stored(tmp_path).trials
    assert [trial.user_attrs["config_hash"] for trial in trials] == ["a", "b", "c"]
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert [trial.intermediate_values for trial in trials] == [{1: 0.25, 2: 0.5}] * 3


def test_a_run_killed_at_any_write_continues_to_a_complete_study(tmp_path, monkeypatch):
    count = 0
    for writes in range(0, 60, 3):
        out = tmp_path / str(writes)
        with killed_after(writes, monkeypatch) as killed:
            first = opened(out)
            for key in PLANS:
                report_trial(first, out, key)
        count += len(killed)
        again = opened(out)
        for key in set(PLANS) - finished(out):
            report_trial(again, out, key)
        trials = stored(out).trials
        assert sorted(trial.user_attrs["config_hash"] for trial in trials) == ["a", "b", "c"]
        assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert 8 < count < 20


def test_a_failed_trial_has_its_reason_and_a_second_attempt_is_a_new_trial(tmp_path):
    report_trial(opened(tmp_path), tmp_path, "a", LOST)
    report_trial(opened(tmp_path), tmp_path, "a")
    failed, tried = stored(tmp_path).trials
    assert (failed.state, failed.user_attrs["reason"]) == (TrialState.FAIL, "round 2: kd/loss")
    assert (failed.user_attrs["node"], failed.user_attrs["time/wall_seconds"]) == ("far", 4.0)
    assert (tried.state, tried.value) == (TrialState.COMPLETE, 0.5)
    opened(tmp_path)
    assert len(stored(tmp_path).trials) == 2


def test_a_study_is_rebuilt_from_the_records_if_it_is_missing_or_new_values_are_planned(tmp_path):
    for key in ("a", "b"):
        report_trial(opened(tmp_path), tmp_path, key, LOST if key == "b" else ENDED)
    (tmp_path / "study.journal").unlink()
    opened(tmp_path)
    assert states(tmp_path) == {"a": TrialState.COMPLETE, "b": TrialState.FAIL}
    opened(tmp_path, PLANS | {"d": plan("slower", 0, steps=3)})
    assert states(tmp_path) == {"a": TrialState.COMPLETE, "b": TrialState.FAIL}
    (slow,) = stored(tmp_path).get_trials(states=[TrialState.COMPLETE])
    assert set(slow.distributions["inversion/steps"].choices) == {1, 2, 3}
    assert slow.params["inversion/steps"] == 2
    # Fewer plans than before add no new values, so the study is not rebuilt.
    opened(tmp_path, {"a": PLANS["a"]})
    assert set(stored(tmp_path).trials[0].distributions["arm"].choices) == {"slow", "fast", "slower"}
    # One image and two configs; the artifacts of the earlier study are deleted.
    assert len(list((tmp_path / "artifacts").iterdir())) == 3


def test_a_study_of_another_numbers_version_begins_anew_without_older_records(tmp_path):
    report_trial(opened(tmp_path), tmp_path, "a")
    (record,) = read_records(tmp_path)
    write_record(tmp_path, dataclasses.replace(record, numbers=1))
    stored(tmp_path).set_user_attr("numbers", 1)
    opened(tmp_path)
    assert stored(tmp_path).trials == []
    report_trial(opened(tmp_path), tmp_path, "b")
    assert states(tmp_path) == {"b": TrialState.COMPLETE}


def test_a_trial_without_a_finite_quality_fails_once_in_the_study(tmp_path):
    report_trial(opened(tmp_path), tmp_path, "a", dataclasses.replace(ENDED, history=[{"round": 1, "kd/loss": 1.0}]))
    for _ in range(2):
        opened(tmp_path)
        (trial,) = stored(tmp_path).trials
        assert (trial.state, trial.user_attrs["reason"]) == (TrialState.FAIL, "no finite proxy/agreement")


def test_leaves_of_many_values_are_ranges_or_attributes_so_that_each_trial_takes_as_much_space(tmp_path, monkeypatch):
    monkeypatch.setattr(recorder_module, "MOST_CHOICES", 2)
    plans = {str(seed): plan(f"arm {seed}", seed, steps=1 + seed % 2) for seed in range(4)}
    study = opened(tmp_path, plans)
    study.round("3", HISTORY[0])
    (trial,) = stored(tmp_path).trials
    assert trial.params == {"ipc": 2, "seed": 3, "inversion/steps": 2}
    assert trial.distributions["seed"] == IntDistribution(0, 3)
    assert trial.distributions["inversion/steps"].choices == (1, 2)
    assert trial.user_attrs["arm"] == "arm 3"
    before = (tmp_path / "study.journal").read_bytes()
    opened(tmp_path, {key: plans[key] for key in ("1", "2")})
    assert (tmp_path / "study.journal").read_bytes() == before
    # Seed 4 is beyond the range: a new study begins, whose range has both.
    opened(tmp_path, {"4": plan("arm 4", 4, steps=1), "0": plans["0"]}).round("4", HISTORY[0])
    (trial,) = stored(tmp_path).trials
    assert trial.distributions["seed"] == IntDistribution(0, 4)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1, 2], [2, 3], [1, 2, 3]),
        ([1, 2], {"low": 0, "high": 1}, {"low": 0, "high": 2}),
        ({"low": 0, "high": 9}, [3, 4.5], {"low": 0.0, "high": 9.0}),
        ({"low": 0, "high": 9}, ["a"], None),
        ({"low": 0, "high": 9}, [True], None),
        (None, [1], None),
        ([math.inf], {"low": 0, "high": 9}, None),
    ],
)
def test_the_values_of_two_plans_are_joined(first, second, expected):
    assert recorder_module._joined(first, second) == expected
    assert recorder_module._joined(second, first) in (expected, expected and [2, 3, 1])
