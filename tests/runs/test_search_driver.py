"""What a search's driver writes down, and what it makes of what an earlier one has left in whatever moment it died."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
from optuna.trial import TrialState
from toy import make_prepared, toy_config

from condkd_ray.core.config import to_tree
from condkd_ray.core.records import Outcome, read_manifest, read_records
from condkd_ray.report.results import read
from condkd_ray.report.tables.search import search_table
from condkd_ray.runs import search as module
from condkd_ray.runs.options import SearchSpec
from condkd_ray.runs.search import SearchDriver, SearchRecorder
from condkd_ray.study.objective import Objective, parse_constraints
from condkd_ray.study.space import Open
from condkd_ray.study.storage import open_storage
from condkd_ray.study.study import Study

PREPARED = make_prepared()
TREE = to_tree(toy_config()) | {"rounds": Open("int", (2, 60))}
HISTORY = [
    {"round": r, "proxy/agreement": r / 4, "proxy/kl": 1.0, "time/wall_seconds": 2.0, "memory/bytes": 9.0}
    for r in (1, 2)
]
WHOLE = Outcome(status="finished", metrics={}, history=HISTORY, predictions=[], images=None, peak_bytes=7, node="far")
ENDS = {
    "finished": dataclasses.replace(WHOLE, predictions=[0] * len(PREPARED.test)),
    "pruned": dataclasses.replace(WHOLE, status="pruned", history=HISTORY[:1], peak_bytes=0),
    "failed": dataclasses.replace(WHOLE, status="failed", reason="round 3: kd/loss", peak_bytes=0),
}
STATES = {"finished": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}


class Workshop:
    """As much of one as a driver needs."""

    def check(self, config):
        pass

    def prepare(self, config):
        return PREPARED

    def teacher_accuracy(self, config):
        return {"test_accuracy": 0.9}

    def data(self, config):
        test = SimpleNamespace(labels=PREPARED.test.labels, __len__=lambda self: 0)
        blobs = {"name": "blobs", "digest": "d", "num_classes": 4, "image_shape": (1, 8, 8), "notes": (), "val": None}
        return SimpleNamespace(**blobs, test=PREPARED.test or test)


class Whole(SearchDriver):
    """A driver with its recorder."""

    def __init__(self, recorder: SearchRecorder) -> None:
        super().__init__(recorder)
        self.describe, self.close = recorder.describe, recorder.records.close


def driver_of(out: Path, trials: int = 3, limits: tuple[str, ...] = ()) -> Whole:
    spec = SearchSpec(out=out, trials=trials, constraint=limits)
    study = Study(open_storage(None, out), "search", TREE, Objective(), constraints=parse_constraints(limits))
    return Whole(SearchRecorder("Which?", study, TREE, Workshop(), spec))


def hear(driver: SearchDriver, trial, how: str) -> None:
    for metrics in ENDS[how].history:
        driver.round(trial, metrics)
    if how == "finished":
        driver.untested(trial, WHOLE)
    driver.ended(trial, ENDS[how])


def stored(out: Path):
    return Study(open_storage(None, out), "search", TREE, Objective()).trials


class Killed(BaseException):
    """The driver's death."""


@pytest.mark.parametrize("how", ["finished", "pruned", "failed"])
@pytest.mark.parametrize("where", ["study", "record"])
def test_whenever_its_driver_dies_a_trial_has_its_state_and_its_record_in_the_end(tmp_path, how, where, monkeypatch):
    first = driver_of(tmp_path)
    with monkeypatch.context() as patch:
        trial = first.propose()

        def die(*args, **rest):
            raise Killed

        if where == "study":
            patch.setattr(module.StudyWriter, "ended", die)
        else:
            patch.setattr(module.Recorder, "ended", die)
        with pytest.raises(Killed):
            hear(first, trial, how)
    first.close()
    again = driver_of(tmp_path)
    for end in ("pruned", "finished", "failed", "finished"):
        following = again.propose()
        if following is None:
            break
        hear(again, following, how if following.key == trial.key else end)
    again.close()
    trials, records = stored(tmp_path), {record.arm: record for record in read_records(tmp_path)}
    assert len(trials) == len(records) == 3
    assert trials[0].state == STATES[how]
    assert all(trial.state == STATES[records[f"trial {trial.number}"].status] for trial in trials)
    assert again.propose() is None


def test_a_value_that_is_not_finite_fails_and_still_has_its_record(tmp_path):
    driver = driver_of(tmp_path, trials=1)
    trial = driver.propose()
    driver.untested(trial, dataclasses.replace(WHOLE, history=[{"round": 1, "kd/loss": 1.0}]))
    driver.close()
    assert stored(tmp_path)[0].state == TrialState.FAIL
    again = driver_of(tmp_path, trials=1)
    assert again.propose().key == trial.key
    again.ended(trial, ENDS["finished"])
    again.close()
    assert driver_of(tmp_path, trials=1).propose() is None
    assert len(read_records(tmp_path)) == 1


def test_every_trial_says_where_it_ran_and_what_it_took(tmp_path):
    driver = driver_of(tmp_path)
    for how in ENDS:
        hear(driver, driver.propose(), how)
    driver.close()
    for trial, outcome in zip(stored(tmp_path), ENDS.values(), strict=True):
        told = trial.user_attrs
        assert (told["node"], told["time/wall_seconds"], told["memory/bytes"]) == ("far", 2.0 * len(outcome.history), 9)
        assert told["config_hash"]
        assert told["teacher_hash"] == PREPARED.hashes["teacher"]
    assert {record.outcome.node for record in read_records(tmp_path)} == {"far"}


def test_what_breaks_a_limit_is_marked_and_never_the_best(tmp_path):
    driver = driver_of(tmp_path, limits=("time/wall_seconds<=3", "proxy/kl<=2"))
    hear(driver, driver.propose(), "finished")
    hear(driver, driver.propose(), "pruned")
    driver.describe(over=True)
    driver.close()
    results = read(tmp_path)
    assert results.manifest.search["constraints"] == ["time/wall_seconds<=3", "proxy/kl<=2"]
    assert results.ranked == []
    table = search_table(results)
    assert [row[1] for row in table.rows] == ["finished, infeasible", "pruned"]
    assert "Infeasible are those that break one of time/wall_seconds<=3, proxy/kl<=2" in table.markdown()
    complete, pruned = Study(
        open_storage(None, tmp_path),
        "search",
        TREE,
        Objective(),
        constraints=parse_constraints(("time/wall_seconds<=3", "proxy/kl<=2")),
    ).trials
    assert complete.user_attrs["beyond"] == {"time/wall_seconds<=3": 1.0, "proxy/kl<=2": -1.0}
    assert (complete.user_attrs["feasible"], pruned.user_attrs["feasible"]) == (False, True)
    assert complete.user_attrs["proxy/kl"] == 1.0


def test_the_manifest_is_told_of_each_trial_once(tmp_path, monkeypatch):
    told = []
    whole = module.describe_experiment
    monkeypatch.setattr(
        module, "describe_experiment", lambda *args, **rest: told.append(len(args[2])) or whole(*args, **rest)
    )
    driver = driver_of(tmp_path, trials=6)
    keys = [driver.propose().key for _ in range(6)]
    driver.describe(over=True)
    driver.close()
    # One of a kind, and the newest.
    assert max(told) == 2
    manifest = read_manifest(tmp_path)
    assert [trial["config_hash"] for trial in manifest.planned] == keys
    assert manifest.teacher["test_accuracy"] == 0.9
    assert manifest.cpu_seconds
