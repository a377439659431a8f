"""The driver of a population whose study has lost entries: ended members stay, and only missing work is run again."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import pytest
from toy import make_prepared, toy_config

from condkd_ray.core.config import to_tree
from condkd_ray.core.records import Outcome, read_records, write_record
from condkd_ray.runs.search import study_of
from condkd_ray.runs.search_driver import PopulationDriver, SearchRecorder
from condkd_ray.runs.search_spec import SearchSpec
from condkd_ray.study.population import Population
from condkd_ray.study.space import Open
from runs.test_search import Workshop, kept_records, lives, stored, summary_of

SIZE, REST, TOTAL = 4, 2, 7
BASE = to_tree(toy_config(rounds=TOTAL))
TREE = BASE | {"distiller": BASE["distiller"] | {"lr": Open("log_uniform", (0.001, 1.0))}}
TESTED = [0] * len(make_prepared().test)


class Cluster:
    """A stand-in for the cluster that runs proposed trials and writes and deletes their files as the real one does."""

    def __init__(self, out: Path) -> None:
        self.out, self.ran, self.missed = out, list[tuple[str, int]](), list[str]()

    def search(self, most: int = 1000) -> "Cluster":
        """Run the search to its end, or until `most` generations of members have run, as if the driver was killed."""
        spec = SearchSpec(out=self.out, population=SIZE, generation_rounds=REST)
        study = study_of(TREE, spec)
        population = Population(study, TREE, size=SIZE, rounds=REST, total=TOTAL, seed=0)
        recorder = SearchRecorder("Which?", study, TREE, Workshop(), spec)
        driver, running = PopulationDriver(recorder, population), []
        while len(self.ran) < most and (trial := driver.propose()) is not None:
            if trial == "later":
                self._run(driver, running.pop())
                continue
            for key in trial.lineage.deletes:
                shutil.rmtree(self._folder(key), ignore_errors=True)
            running.append(trial)
        if len(self.ran) < most:
            recorder.describe(over=True)
            for key in driver.leftovers():
                shutil.rmtree(self._folder(key), ignore_errors=True)
            assert list((self.out / "trials").iterdir()) == []
        recorder.records.close()
        return self

    def _run(self, driver: PopulationDriver, trial) -> None:
        self.ran.append((trial.plan.arm, trial.lineage.pause_after or TOTAL))
        own, parent = self._state(trial.key), self._state(trial.lineage.parent or "none")
        history = []
        if own.is_file() or trial.lineage.parent:
            start = own if own.is_file() else parent
            if not start.is_file():
                self.missed.append(trial.key)
                return driver.ended(trial, Outcome(status="failed", reason=f"FileNotFoundError: {start}"))
            history = json.loads(start.read_text())
            for metrics in history:
                driver.round(trial, metrics)
        for number in range(len(history) + 1, (trial.lineage.pause_after or TOTAL) + 1):
            before = history[-1]["proxy/agreement"] if history else 0.0
            quality = before + 1 / (1 + abs(math.log(trial.config.distiller.lr / 0.1)))
            history.append({"round": number, "proxy/agreement": quality, "time/wall_seconds": float(number)})
            driver.round(trial, history[-1])
        if trial.lineage.pause_after:
            own.parent.mkdir(parents=True, exist_ok=True)
            own.write_text(json.dumps(history))
            return driver.rested(trial)
        outcome = Outcome(status="finished", history=history, node="far")
        driver.untested(trial, outcome)
        driver.ended(trial, dataclasses.replace(outcome, predictions=TESTED))
        shutil.rmtree(own.parent, ignore_errors=True)

    def _folder(self, key: str) -> Path:
        return self.out / "trials" / key

    def _state(self, key: str) -> Path:
        return self._folder(key) / "state.safetensors"


@pytest.fixture
def ended(tmp_path: Path) -> Path:
    cluster = Cluster(tmp_path).search()
    assert len(cluster.ran) == SIZE * 4
    assert any(life["from"] != t.number for t in stored(tmp_path).trials for life in t.user_attrs["life"][1:])
    return tmp_path


def whole(out: Path) -> list:
    return [lives(out), [summary_of(trial) for trial in stored(out).trials]]


def test_a_journal_cut_anywhere_is_restored_and_no_last_generation_runs_again(ended: Path):
    journal, records, wanted = ended / "study.journal", kept_records(ended), whole(ended)
    lines, again = journal.read_bytes().splitlines(keepends=True), dict[int, int]()
    for kept in [*range(0, len(lines), 5), len(lines) - 1, len(lines)]:
        journal.write_bytes(b"".join(lines[:kept]))
        cluster = Cluster(ended).search()
        assert cluster.missed == []
        assert all(rest < TOTAL for _, rest in cluster.ran), kept
        assert whole(ended) == wanted, kept
        assert kept_records(ended) == records
        again[kept] = len(cluster.ran)
    assert again[0] == SIZE * 3
    assert again[len(lines) - 1] == again[len(lines)] == 0
    assert sorted(again.values(), reverse=True)[0] == again[0]


def test_a_killed_population_with_a_cut_journal_ends_as_the_undisturbed_one(ended: Path, tmp_path: Path):
    wanted, records = whole(ended), [(record.arm, record.history) for record in read_records(ended)]
    for most in (6, 11, 14):
        out = tmp_path / f"killed{most}"
        Cluster(out).search(most)
        lines = (out / "study.journal").read_bytes().splitlines(keepends=True)
        for part, kept in enumerate(range(8, len(lines), 9)):
            copy = tmp_path / f"{out.name} {part}"
            shutil.copytree(out, copy)
            (copy / "study.journal").write_bytes(b"".join(lines[:kept]))
            assert Cluster(copy).search().missed == []
            assert whole(copy) == wanted, (most, kept)
            assert [(record.arm, record.history) for record in read_records(copy)] == records


def test_a_member_without_its_record_is_run_again_with_its_ancestors(ended: Path):
    wanted = whole(ended)
    before = read_records(ended)
    deleted = next(record for record in before if record.arm == "trial 3")
    (ended / "records" / f"{deleted.config_hash}.json").unlink()
    cluster = Cluster(ended).search()
    assert cluster.missed == []
    assert [arm for arm, rest in cluster.ran if rest == TOTAL] == ["trial 3"]
    assert len(cluster.ran) <= 4
    assert whole(ended) == wanted
    assert read_records(ended) == before


def test_a_member_whose_parameters_differ_from_its_record_is_run_again(ended: Path):
    """This happens on a GPU, where numbers do not repeat exactly."""
    first = next(record for record in read_records(ended) if record.arm == "trial 3")
    other = first.config | {"distiller": first.config["distiller"] | {"lr": 0.5}}
    write_record(ended, dataclasses.replace(first, config=other))
    (ended / "study.journal").unlink()
    cluster = Cluster(ended).search()
    assert [arm for arm, rest in cluster.ran if rest == TOTAL] == ["trial 3"]
    assert next(record for record in read_records(ended) if record.arm == "trial 3") == first


def test_a_failed_last_generation_is_restored_as_failed_after_a_cut(ended: Path):
    first = next(record for record in read_records(ended) if record.arm == "trial 0")
    failed = dataclasses.replace(first, outcome=dataclasses.replace(first.outcome, status="failed", reason="NaN"))
    write_record(ended, failed)
    (ended / "study.journal").unlink()
    assert all(rest < TOTAL for _, rest in Cluster(ended).search().ran)
    states = [(trial.state.name, len(trial.user_attrs["life"])) for trial in stored(ended).trials]
    assert states == [("FAIL", 4), *[("COMPLETE", 4)] * 3]
