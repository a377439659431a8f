"""The driver of a population whose study has lost something: what has ended stays, and what that needs is run again."""

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
from runs.test_search import Workshop, kept_records, stored, told, told_of

SIZE, REST, TOTAL = 4, 2, 7
BASE = to_tree(toy_config(rounds=TOTAL))
TREE = BASE | {"distiller": BASE["distiller"] | {"lr": Open("log_uniform", (0.001, 1.0))}}
TESTED = [0] * len(make_prepared().test)


class Cluster:
    """Runs what a driver proposes as the real one does: from the files of trials, which it leaves and removes."""

    def __init__(self, out: Path) -> None:
        self.out, self.ran, self.missed = out, list[tuple[str, int]](), list[str]()

    def search(self, most: int = 1000) -> "Cluster":
        """To its end, or until so many generations have ended: then the driver is killed."""
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
            return driver.paused(trial)
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
    return [told(out), [told_of(trial) for trial in stored(out).trials]]


def test_wherever_the_journal_of_a_population_was_cut_it_ends_as_it_had_and_no_last_generation_is_run(ended: Path):
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


def test_cut_in_the_middle_of_a_population_that_was_killed_it_ends_as_the_undisturbed_one(ended: Path, tmp_path: Path):
    wanted, records = whole(ended), [(one.arm, one.history) for one in read_records(ended)]
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
            assert [(one.arm, one.history) for one in read_records(copy)] == records


def test_a_member_whose_record_was_deleted_is_made_again_with_all_that_it_came_of(ended: Path):
    wanted = whole(ended)
    before = read_records(ended)
    gone = next(one for one in before if one.arm == "trial 3")
    (ended / "records" / f"{gone.config_hash}.json").unlink()
    cluster = Cluster(ended).search()
    assert cluster.missed == []
    assert [arm for arm, rest in cluster.ran if rest == TOTAL] == ["trial 3"]
    assert len(cluster.ran) <= 4
    assert whole(ended) == wanted
    assert read_records(ended) == before


def test_a_member_that_came_to_another_life_is_not_told_the_record_of_its_first(ended: Path):
    """As on a GPU, where numbers do not repeat."""
    first = next(one for one in read_records(ended) if one.arm == "trial 3")
    other = first.config | {"distiller": first.config["distiller"] | {"lr": 0.5}}
    write_record(ended, dataclasses.replace(first, config=other))
    (ended / "study.journal").unlink()
    cluster = Cluster(ended).search()
    assert [arm for arm, rest in cluster.ran if rest == TOTAL] == ["trial 3"]
    assert next(one for one in read_records(ended) if one.arm == "trial 3") == first


def test_a_last_generation_that_failed_is_told_so_after_a_cut_and_not_before_its_time(ended: Path):
    first = next(one for one in read_records(ended) if one.arm == "trial 0")
    failed = dataclasses.replace(first, outcome=dataclasses.replace(first.outcome, status="failed", reason="NaN"))
    write_record(ended, failed)
    (ended / "study.journal").unlink()
    assert all(rest < TOTAL for _, rest in Cluster(ended).search().ran)
    states = [(trial.state.name, len(trial.user_attrs["life"])) for trial in stored(ended).trials]
    assert states == [("FAIL", 4), *[("COMPLETE", 4)] * 3]
