"""A worker's trial, run in this process: its reports to Tune, its outcome and its files."""

import errno
from pathlib import Path
from typing import Any

import pytest
import toy
from ray.exceptions import RayActorError

from cluster.drivers import assert_equal_numbers, direct
from condkd_ray.cluster import trainable
from condkd_ray.cluster.files import halt_path, last_reason, trial_file, trial_folder
from condkd_ray.cluster.options import ClusterOptions
from condkd_ray.cluster.sweep import unpacked
from condkd_ray.cluster.trainable import FULL, MEMORY, METRICS, OUT_OF_TIME, PAUSED, UNTESTED, WorkerContext
from condkd_ray.core.checkpoint import DamagedError
from condkd_ray.core.method import ClusterError, InputError
from condkd_ray.core.records import Outcome
from condkd_ray.methods.memory import LocalStore
from condkd_ray.trial.outcome import left_outcome, save_outcome
from condkd_ray.trial.plan import Lineage, Plan, PlannedTrial

CONFIG = toy.toy_config()


class Worker:
    """Runs the trial "a" in `folder`; `reports` collects its reports."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reports: list[dict[str, Any]] = []

    def run(self, *, blind: bool = False, budgeted: bool = False, lineage: Lineage | None = None, **options) -> None:
        """Run the trial as far as it goes."""
        trial = PlannedTrial("a", Plan("toy", 0, 0, CONFIG), None, lineage or Lineage())
        cluster = ClusterOptions(folder=self.folder, **options)
        context = WorkerContext(self.folder, None, {"a": trial}, cluster, blind, budgeted)
        trainable.run({"key": "a"}, context=context)

    @property
    def rounds(self) -> list[int]:
        """Rounds that were reported."""
        return [report["round"] for report in self.reports if "round" in report]

    @property
    def outcome(self) -> Outcome | None:
        """The outcome that the trial left."""
        return left_outcome(trial_file(self.folder, "a", "outcome"))

    @property
    def last(self) -> dict[str, Any]:
        """The last report, without the entries that all reports have."""
        return {name: value for name, value in self.reports[-1].items() if name not in ("key", MEMORY, METRICS)}


@pytest.fixture
def worker(tmp_path, monkeypatch) -> Worker:
    """A worker without Ray: its inputs are those of the toy world, and its samples stay in this process."""

    def store(codec, num_classes, pool, key, device, **_) -> LocalStore:
        return LocalStore(codec, num_classes, device=device)

    found = Worker(tmp_path)
    monkeypatch.setenv("TUNE_FUNCTION_THREAD_TIMEOUT_S", "2")
    monkeypatch.setattr(trainable.tune, "report", lambda report: found.reports.append(unpacked(report)))
    monkeypatch.setattr(trainable, "keep_imports", lambda: None)
    monkeypatch.setattr(trainable, "own_device", lambda: "cpu")
    monkeypatch.setattr(trainable, "unpack", lambda config, refs, device: toy.make_prepared())
    monkeypatch.setattr(trainable, "PoolStore", store)
    return found


@pytest.fixture
def failing(worker, monkeypatch):
    """`failing(error)` makes the inputs of the next trials raise `error`."""

    def fail(error: Exception) -> Worker:
        def unpack(*_):
            raise error

        monkeypatch.setattr(trainable, "unpack", unpack)
        return worker

    return fail


def test_each_round_is_reported_and_the_numbers_are_those_of_a_run_without_a_cluster(worker):
    worker.run()
    assert worker.rounds == [1, 2, 3]
    assert len(worker.reports) == 3
    assert all(report["key"] == "a" and report[MEMORY] > 0 for report in worker.reports)
    assert_equal_numbers(worker.outcome, direct(CONFIG))
    assert worker.outcome.metrics["time/cluster_seconds"] >= 0


def test_a_finished_trial_reports_its_rounds_again_and_runs_nothing(worker, failing):
    worker.run()
    failing(AssertionError("the trial ran again")).run()
    assert worker.rounds == [1, 2, 3] * 2
    assert worker.outcome.status == "finished"


def test_a_failed_trial_runs_again(worker):
    save_outcome(Outcome(status="failed", reason="by itself"), trial_file(worker.folder, "a", "outcome"))
    worker.run()
    assert worker.outcome.status == "finished"


def test_after_the_deadline_no_trial_starts(failing):
    worker = failing(AssertionError("the trial ran"))
    worker.run(deadline=0.0)
    assert (worker.last, worker.outcome) == ({OUT_OF_TIME: 1}, None)


def test_a_halted_trial_stops_if_its_sweep_has_a_budget(worker, failing):
    halt_path(worker.folder).parent.mkdir(parents=True)
    halt_path(worker.folder).touch()
    worker.run(budgeted=False)
    assert worker.outcome.status == "finished"
    trial_file(worker.folder, "a", "outcome").unlink()
    failing(AssertionError("the trial ran")).run(budgeted=True)
    assert (worker.last, worker.outcome) == ({OUT_OF_TIME: 1}, None)


def test_a_blind_trial_reports_its_outcome_before_the_test(worker, monkeypatch):
    seen: list[Outcome] = []

    def report(metrics):
        worker.reports.append(unpacked(metrics))
        if UNTESTED in unpacked(metrics):
            seen.append(left_outcome(trial_file(worker.folder, "a", "untested")))

    monkeypatch.setattr(trainable.tune, "report", report)
    worker.run(blind=True)
    assert worker.last == {"round": 3, UNTESTED: 1}
    (untested,) = seen
    assert "student/test_accuracy" not in untested.metrics
    assert "student/test_accuracy" in worker.outcome.metrics
    assert untested.metrics["proxy/kl"] == worker.outcome.metrics["proxy/kl"]


def test_a_trial_that_pauses_leaves_its_checkpoint_and_continues_from_it(worker):
    worker.run(lineage=Lineage(pause_after=2))
    assert (worker.rounds, worker.last, worker.outcome) == ([1, 2], {PAUSED: 1}, None)
    assert trial_file(worker.folder, "a", "state").is_file()
    worker.run()
    assert worker.rounds[-1] == 3
    assert worker.outcome.status == "finished"


def test_too_little_gpu_memory_for_its_inputs_fails_the_trial(failing):
    worker = failing(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    worker.run()
    assert worker.outcome.status == "failed"
    expected = "before the first round: out of GPU memory: CUDA error: CUBLAS_STATUS_ALLOC_FAIL"
    assert worker.outcome.reason.startswith(expected)
    assert worker.last == {}


def test_another_error_is_raised_until_the_trial_is_given_up(failing):
    error = RuntimeError("CUDA error: device-side assert triggered")
    worker = failing(error)
    with pytest.raises(RuntimeError, match="device-side") as caught:
        worker.run(attempts=2)
    assert caught.value is error
    assert worker.reports == []
    worker.run(attempts=2)
    assert (worker.last, worker.outcome) == ({}, None)
    assert last_reason(trial_folder(worker.folder, "a")) == f"RuntimeError: {error}"


def test_full_storage_is_reported_with_its_reason_and_is_no_attempt(failing):
    worker = failing(OSError(errno.ENOSPC, "No space left on device", "/data/chunk"))
    worker.run(attempts=1)
    assert (worker.last, worker.outcome) == ({FULL: "/data/chunk: No space left on device"}, None)
    assert last_reason(trial_folder(worker.folder, "a")) == ""


def test_a_lost_process_is_a_cluster_error_and_no_attempt(failing):
    worker = failing(RayActorError(error_msg="the pool is gone"))
    with pytest.raises(ClusterError, match="the pool is gone"):
        worker.run(attempts=1)
    assert last_reason(trial_folder(worker.folder, "a")) == ""


def test_an_input_that_its_store_rejects_fails_the_trial_with_the_message(worker, monkeypatch):
    def store(*_, **__):
        raise InputError("a limit is 1; accepted: more")

    monkeypatch.setattr(trainable, "PoolStore", store)
    worker.run()
    assert (worker.outcome.status, worker.outcome.reason) == (
        "failed",
        "a limit is 1; accepted: more",
    )


def test_a_trial_with_a_damaged_checkpoint_starts_over_to_the_same_numbers(worker):
    checkpoint = trial_file(worker.folder, "a", "state")
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"damaged")
    worker.run()
    assert_equal_numbers(worker.outcome, direct(CONFIG))


def test_a_damaged_checkpoint_of_a_trial_with_a_parent_is_deleted_for_the_next_attempt(worker):
    checkpoint = trial_file(worker.folder, "a", "state")
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"damaged")
    with pytest.raises(DamagedError):
        worker.run(lineage=Lineage("parent"))
    assert not checkpoint.exists()
    assert last_reason(trial_folder(worker.folder, "a")).startswith("condkd_ray.core.checkpoint.DamagedError: ")
