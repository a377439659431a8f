"""The study of planned trials: each once, whenever its driver was killed, and never with a test image in it."""

import dataclasses
from pathlib import Path

import optuna
import pytest
import torch
from killing import killed_after
from optuna.trial import TrialState
from toy import make_prepared, toy_config

from condkd_ray.core.records import Outcome, finished, read_records, write_record
from condkd_ray.methods.distiller import Distiller
from condkd_ray.methods.inversion import Fast
from condkd_ray.runs.recorder import StudyRecorder, make_record
from condkd_ray.study.storage import open_storage
from condkd_ray.trial.plan import Plan, PlannedTrial

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
FAILED = dataclasses.replace(ENDED, status="failed", reason="round 2: kd/loss", metrics={}, images=None, peak_bytes=0)


def plan(arm: str, seed: int, **inversion) -> Plan:
    config = toy_config(seed=seed, inversion=Fast(batch=16, latent=16, width=8, **inversion), distiller=Distiller())
    return Plan(arm, 2, seed, config)


PLANS = {"a": plan("slow", 0, steps=2), "b": plan("fast", 0, steps=1), "c": plan("fast", 1, steps=1)}


def opened(out: Path, plans: dict[str, Plan] = PLANS) -> StudyRecorder:
    return StudyRecorder("ablate", out, [PlannedTrial(key, plan, PREPARED) for key, plan in plans.items()])


def heard(told: StudyRecorder, out: Path, key: str, outcome: Outcome = ENDED, *, recorded: bool = True) -> None:
    for metrics in outcome.history:
        told.round(key, metrics)
    told.ended(key, outcome)
    if recorded:
        write_record(out, make_record("ablate", PLANS[key], key, PREPARED, outcome))


def stored(out: Path) -> optuna.Study:
    return optuna.load_study(study_name="ablate", storage=open_storage(None, out))


def states(out: Path) -> dict[str, TrialState]:
    return {trial.user_attrs["config_hash"]: trial.state for trial in stored(out).trials}


def test_a_trial_is_told_whole_but_for_the_test(tmp_path):
    heard(opened(tmp_path), tmp_path, "a")
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
    files = optuna.artifacts.get_all_artifact_meta(trial, storage=study._storage)
    assert {one.filename for one in files} == {"a.png", "a.yaml"}
    journal = (tmp_path / "study.journal").read_text()
    assert "test" not in journal
    assert "0.875" not in journal


def test_the_same_again_adds_nothing(tmp_path):
    for key in PLANS:
        heard(opened(tmp_path), tmp_path, key)
    before = (tmp_path / "study.journal").read_bytes()
    opened(tmp_path)
    assert (tmp_path / "study.journal").read_bytes() == before
    assert len(stored(tmp_path).trials) == 3


@pytest.mark.parametrize("recorded", [True, False])
def test_a_killed_one_continued_ends_complete(tmp_path, recorded):
    first = opened(tmp_path)
    heard(first, tmp_path, "a", recorded=recorded)
    first.round("b", HISTORY[0])
    again = opened(tmp_path)
    for key in ("b", "c") if recorded else ("a", "b", "c"):
        heard(again, tmp_path, key)
    trials = stored(tmp_path).trials
    assert [trial.user_attrs["config_hash"] for trial in trials] == ["a", "b", "c"]
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert [trial.intermediate_values for trial in trials] == [{1: 0.25, 2: 0.5}] * 3


def test_killed_over_any_write_it_ends_complete(tmp_path, monkeypatch):
    count = 0
    for writes in range(0, 60, 3):
        out = tmp_path / str(writes)
        with killed_after(writes, monkeypatch) as killed:
            first = opened(out)
            for key in PLANS:
                heard(first, out, key)
        count += len(killed)
        again = opened(out)
        for key in set(PLANS) - finished(out):
            heard(again, out, key)
        trials = stored(out).trials
        assert sorted(trial.user_attrs["config_hash"] for trial in trials) == ["a", "b", "c"]
        assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert 8 < count < 20


def test_a_failure_has_its_reason_and_a_second_try_is_another_trial(tmp_path):
    heard(opened(tmp_path), tmp_path, "a", FAILED)
    heard(opened(tmp_path), tmp_path, "a")
    failed, tried = stored(tmp_path).trials
    assert (failed.state, failed.user_attrs["reason"]) == (TrialState.FAIL, "round 2: kd/loss")
    assert (failed.user_attrs["node"], failed.user_attrs["time/wall_seconds"]) == ("far", 4.0)
    assert (tried.state, tried.value) == (TrialState.COMPLETE, 0.5)
    opened(tmp_path)
    assert len(stored(tmp_path).trials) == 2


def test_a_study_is_made_of_the_records_where_it_is_missing_or_its_values_are_others(tmp_path):
    for key in ("a", "b"):
        heard(opened(tmp_path), tmp_path, key, FAILED if key == "b" else ENDED)
    (tmp_path / "study.journal").unlink()
    opened(tmp_path)
    assert states(tmp_path) == {"a": TrialState.COMPLETE, "b": TrialState.FAIL}
    opened(tmp_path, PLANS | {"d": plan("slower", 0, steps=3)})
    assert states(tmp_path) == {"a": TrialState.COMPLETE, "b": TrialState.FAIL}
    (slow,) = stored(tmp_path).get_trials(states=[TrialState.COMPLETE])
    assert set(slow.distributions["inversion/steps"].choices) == {1, 2, 3}
    assert slow.params["inversion/steps"] == 2
    # Fewer plans than before are no other values.
    opened(tmp_path, {"a": PLANS["a"]})
    assert set(stored(tmp_path).trials[0].distributions["arm"].choices) == {"slow", "fast", "slower"}
    # An image and two configs, and none of the study that was.
    assert len(list((tmp_path / "artifacts").iterdir())) == 3


def test_a_study_of_other_numbers_begins_anew_and_is_not_made_of_older_records(tmp_path):
    heard(opened(tmp_path), tmp_path, "a")
    (record,) = read_records(tmp_path)
    write_record(tmp_path, dataclasses.replace(record, numbers=1))
    stored(tmp_path).set_user_attr("numbers", 1)
    opened(tmp_path)
    assert stored(tmp_path).trials == []
    heard(opened(tmp_path), tmp_path, "b")
    assert states(tmp_path) == {"b": TrialState.COMPLETE}


def test_a_trial_without_a_finite_quality_is_told_once(tmp_path):
    heard(opened(tmp_path), tmp_path, "a", dataclasses.replace(ENDED, history=[{"round": 1, "kd/loss": 1.0}]))
    for _ in range(2):
        opened(tmp_path)
        (trial,) = stored(tmp_path).trials
        assert (trial.state, trial.user_attrs["reason"]) == (TrialState.FAIL, "no finite proxy/agreement")
