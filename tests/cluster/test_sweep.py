import os
import shutil
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import toy
from pyarrow.fs import FileSelector
from ray import cloudpickle
from ray.tune.experiment import Trial

from cluster import processes
from cluster.drivers import assert_equal_numbers, direct
from condkd_ray.cluster.files import clear, empty, trial_file, trial_folder
from condkd_ray.cluster.memory_shortage import MemoryShortage
from condkd_ray.cluster.options import ClusterOptions
from condkd_ray.cluster.pool.actor import make_pool
from condkd_ray.cluster.pool.stores import PoolStore
from condkd_ray.cluster.sweep import LISTENERS, MAX_STALLED, Events, InOrder, Monitor, reason_in, run_in_tune, sweep
from condkd_ray.commands.console.exit_codes import log_to_stderr
from condkd_ray.core.method import InputError, Metrics
from condkd_ray.core.records import Outcome
from condkd_ray.core.storage import Location, locate, put_text
from condkd_ray.methods.guidance import Discriminator
from condkd_ray.methods.inversion import Fast
from condkd_ray.methods.memory import Latest
from condkd_ray.trial.config import TrialConfig
from condkd_ray.trial.outcome import save_outcome
from condkd_ray.trial.plan import Lineage, Plan, PlannedTrial
from condkd_ray.trial.run import run_trial
from condkd_ray.trial.synthesis import codec

HERE = Path(__file__).parent


def diverging(**changes) -> TrialConfig:
    """Return a config whose student diverges in its first step."""
    config = toy.toy_config(**changes)
    return replace(config, distiller=replace(config.distiller, lr=1e30))


def planned(key: str, config: TrialConfig, scope="trial", **lineage) -> PlannedTrial:
    """Return a planned trial with toy data and a toy teacher."""
    return PlannedTrial(key, Plan(f"toy {key}", 0, 0, config, scope), toy.make_prepared(), Lineage(**lineage))


class Observer:
    """An observer of a sweep that keeps all rounds and outcomes, and calls `disturb` after each round."""

    def __init__(self, disturb=lambda trial, metrics: None) -> None:
        self._disturb = disturb
        self.rounds: dict[str, list[int]] = {}
        self.first_metrics: dict[tuple[str, int], Metrics] = {}
        self.outcomes: dict[str, Outcome] = {}

    def round(self, trial: PlannedTrial, metrics: Metrics) -> None:
        self.rounds.setdefault(trial.key, []).append(metrics["round"])
        self.first_metrics[trial.key, metrics["round"]] = metrics
        self._disturb(trial, metrics)

    def ended(self, trial: PlannedTrial, outcome: Outcome) -> None:
        assert trial.key not in self.outcomes
        self.outcomes[trial.key] = outcome

    def sweep(self, configs: dict[str, TrialConfig], folder: Path, scope="trial", **options) -> bool:
        trials = [planned(key, config, scope) for key, config in configs.items()]
        return sweep(trials, ClusterOptions(folder=folder, **options), self)


def everything(folder: Location) -> list[str]:
    """Return the paths of all files below a folder."""
    if isinstance(folder, Path):
        return [str(path) for path in folder.rglob("*") if path.is_file()]
    found = folder.filesystem.get_file_info(FileSelector(folder.path, recursive=True))
    return [info.path for info in found if info.is_file]


class StopTrialError(Exception):
    """Raised by a test to leave a trial."""


def leave_after_two_rounds(configs: dict[str, TrialConfig], folder: Path) -> None:
    """Run two rounds of trials with their files in `folder`, as if the sweep had then been killed."""
    import ray

    pool, prepared = make_pool(folder / "chunks", 2**30), toy.make_prepared()

    def on_round(metrics: Metrics) -> None:
        if metrics["round"] == 2:
            raise StopTrialError

    for key, config in configs.items():
        store = PoolStore(codec(config, prepared.teacher), toy.NUM_CLASSES, pool, key)
        checkpoint = trial_folder(folder, key) / "state.safetensors"
        with pytest.raises(StopTrialError):
            run_trial(config, prepared, store, checkpoint=checkpoint, checkpoint_seconds=0, on_round=on_round)
    ray.kill(pool)


@pytest.mark.slow
def test_a_device_pool_limit_on_a_simulated_gpu_fails_the_trial_by_name(cluster, tmp_path):
    observed = Observer()
    assert observed.sweep({"a": toy.toy_config()}, tmp_path, gpus_per_trial=0.5, device_pool_limit=10**6)
    assert observed.outcomes["a"].status == "failed"
    assert observed.outcomes["a"].reason == "device pool limit on a CPU is '1000000 bytes'; accepted: none, or a GPU"


def test_a_sweep_gives_the_same_numbers_as_runs_without_ray(cluster, tmp_path, capfd):
    configs = {
        "guided": toy.toy_config(guidance=Discriminator(hidden=16), seed=3),
        "nan": diverging(rounds=5),
        "broken": toy.toy_config(rounds=2),
        "latest": toy.toy_config(memory=Latest(), rounds=4),
        "plain": toy.toy_config(condensation=None, distiller=replace(toy.toy_config().distiller, condensed_share=0)),
        "continued": toy.toy_config(seed=5),
        "unfetched": toy.toy_config(seed=6),
        "robbed": toy.toy_config(seed=7),
    }
    in_charge = signal.getsignal(signal.SIGINT)
    expected = {key: direct(config) for key, config in configs.items()}
    leave_after_two_rounds({key: configs[key] for key in ("continued", "robbed")}, tmp_path)
    shutil.rmtree(tmp_path / "chunks" / "robbed")
    # As if a driver had died before it fetched this outcome; the threads distinguish it from a new computation.
    save_outcome(replace(expected["unfetched"], threads=77), trial_file(tmp_path, "unfetched", "outcome"))
    # A folder with the name of the checkpoint file, so that the checkpoint cannot be saved.
    (trial_folder(tmp_path, "broken") / "state.safetensors").mkdir(parents=True)
    capfd.readouterr()
    observed = Observer()
    # The GPUs are simulated; the trials compute on the CPU.
    assert observed.sweep(configs, tmp_path, cpus_per_trial=1, gpus_per_trial=0.5, attempts=1)
    assert capfd.readouterr() == ("", "")
    assert signal.getsignal(signal.SIGINT) is in_charge
    for key in set(configs) - {"nan", "broken"}:
        assert_equal_numbers(observed.outcomes[key], expected[key])
        assert observed.outcomes[key].threads == (77 if key == "unfetched" else 1)
        assert observed.rounds[key] == list(range(1, configs[key].rounds + 1))
    assert observed.outcomes["nan"].status == observed.outcomes["broken"].status == "failed"
    assert observed.outcomes["nan"].reason == "round 1: loss term kd/loss is not finite at step 2"
    assert observed.outcomes["nan"].reason == expected["nan"].reason
    assert observed.outcomes["broken"].reason.startswith("IsADirectoryError: ")
    assert len(observed.outcomes["broken"].history) == len(observed.rounds["broken"]) == 1
    # The files of a trial that may still continue stay; those of the others are deleted.
    assert {path.relative_to(tmp_path).parts[1] for path in tmp_path.glob("*/*")} == {"broken", "pool.json"}


@pytest.mark.slow
def test_a_trial_out_of_gpu_memory_fails_once_by_name_and_the_sweep_continues(cluster, tmp_path):
    words = "CUDA out of memory. Tried to allocate 2.00 GiB."

    @dataclass(frozen=True, kw_only=True)
    class Hungry(Fast):
        """Runs out of memory in its second round, and logs each round to a file."""

        log: str

        def synthesize(self, state, *args, **rest):
            made = super().synthesize(state, *args, **rest)
            with open(self.log, "a") as file:
                file.write("round\n")
            if len(Path(self.log).read_text().splitlines()) == 2:
                raise torch.cuda.OutOfMemoryError(words)
            return made

    rest = {"steps": 2, "batch": 16, "latent": 16, "width": 8}
    hungry = toy.toy_config(inversion=Hungry(log=str(tmp_path / "log"), **rest))
    observed, other = Observer(), toy.toy_config(seed=1)
    assert observed.sweep({"hungry": hungry, "other": other}, tmp_path / "out", gpus_per_trial=0.5)
    found = observed.outcomes["hungry"]
    assert found.status == "failed"
    assert found.reason.startswith(f"round 2: out of GPU memory: {words}; accepted: smaller batches (distiller.batch, ")
    assert observed.rounds["hungry"] == [1]
    # A second attempt would have logged more rounds.
    assert (tmp_path / "log").read_text().splitlines() == ["round"] * 2
    assert_equal_numbers(observed.outcomes["other"], direct(other))


@pytest.mark.slow
@pytest.mark.parametrize("place", ["folder", "s3"])
def test_a_killed_trial_and_a_killed_pool_do_not_change_the_numbers(cluster, tmp_path, place, request):
    storage = tmp_path if place == "folder" else locate(request.getfixturevalue("bucket"))
    config = toy.toy_config(rounds=7, memory=toy.toy_config().memory)
    killed = {}

    def disturb(trial: PlannedTrial, metrics: Metrics) -> None:
        victim = {2: "ImplicitFunc", 5: "SyntheticPool"}.get(metrics["round"])
        if victim is not None:
            (pid,) = processes.of_ray(victim)
            os.kill(pid, signal.SIGKILL)
            killed[victim] = pid

    observed = Observer(disturb)
    assert observed.sweep({"a": config}, tmp_path, storage=storage, checkpoint_seconds=0)
    assert set(killed) == {"ImplicitFunc", "SyntheticPool"}
    assert observed.rounds["a"] == [1, 2, 3, 4, 5, 6, 7]
    assert_equal_numbers(observed.outcomes["a"], direct(config))
    # The trial continued from its checkpoint: the first round was not computed again.
    assert observed.outcomes["a"].history[0] == observed.first_metrics["a", 1]
    # Only the status file of the pool stays, and nothing in a folder that is not the storage.
    assert [path.rpartition("/")[2] for path in everything(storage)] == ["pool.json"]
    assert place == "folder" or everything(tmp_path) == []


@pytest.mark.slow
def test_a_process_that_dies_between_two_trials_fails_none_of_them(cluster, tmp_path, caplog):
    configs = {key: toy.toy_config(rounds=2, seed=seed) for seed, key in enumerate("abc")}

    class Killing(Observer):
        def ended(self, trial: PlannedTrial, outcome: Outcome) -> None:
            super().ended(trial, outcome)
            if trial.key == "a":
                # The next trial gets this process: Tune counts its death as the end of all retries.
                (pid,) = processes.of_ray("ImplicitFunc")
                os.kill(pid, signal.SIGKILL)

    observed = Killing()
    with caplog.at_level("INFO", "condkd_ray"):
        assert observed.sweep(configs, tmp_path, max_concurrent=1)
    assert "toy b seed 0: its process died" in caplog.text
    # The trial that Tune had given up ran last.
    assert list(observed.outcomes) == ["a", "c", "b"]
    for key, config in configs.items():
        assert_equal_numbers(observed.outcomes[key], direct(config))
    assert [path for name in ("trials", "chunks", "tune") for path in (tmp_path / name).glob("*/")] == []


@pytest.mark.parametrize("put_back", [False, True])
def test_a_trial_that_tune_gives_up_too_early_is_retried_a_limited_number_of_times(monkeypatch, put_back):
    calls: list[str] = []
    listener = SimpleNamespace(
        error=None,
        drop=lambda key, reason: calls.append("dropped"),
        failed=lambda key, reason: calls.append(reason),
        retried=lambda key, reason: None,
    )
    monkeypatch.setitem(LISTENERS, "word", listener)
    events, trial = Events("word"), SimpleNamespace(config={"key": "a"}, error_file=None, max_failures=-1)
    for step in range(MAX_STALLED):
        # One death of the process, which Tune reports once or twice.
        if put_back:
            events.on_trial_recover(step, [], trial)
        events.on_trial_error(step, [], trial)
    assert calls[:-1] == ["dropped"] * (MAX_STALLED - 1)
    assert calls[-1] == "10 attempts in a row without one more round; the last: its process died (no reason known)"


def test_the_first_waiting_trial_is_next_also_one_that_was_put_back(monkeypatch):
    monkeypatch.setattr("condkd_ray.cluster.sweep.treat_as_lost", lambda manager: None)
    scheduler, trials = InOrder(), [Trial("unknown", stub=True) for _ in range(3)]
    controller = SimpleNamespace(_tune_controller=SimpleNamespace(_actor_manager=None))
    for trial in trials:
        scheduler.on_trial_add(controller, trial)
    assert scheduler.choose_trial_to_run(controller) is trials[0]
    for trial in trials[:2]:
        trial.set_status(Trial.RUNNING)
    assert scheduler.choose_trial_to_run(controller) is trials[2]
    trials[1].set_status(Trial.PENDING)  # its process died
    trials[0].set_status(Trial.TERMINATED)
    assert scheduler.choose_trial_to_run(controller) is trials[1]
    for trial in trials[1:]:
        trial.set_status(Trial.ERROR)
    assert scheduler.choose_trial_to_run(controller) is None


def test_what_tune_unpickles_for_each_trial_does_not_grow_with_the_number_of_trials(cluster, tmp_path, monkeypatch):
    sizes = list[int]()

    class Measuring:
        def __init__(self, trainable: object, **kwargs: object) -> None:
            sizes.append(len(cloudpickle.dumps(trainable)))

        def fit(self) -> None: ...

    monkeypatch.setattr("ray.tune.Tuner", Measuring)
    context: Any = SimpleNamespace(options=ClusterOptions(folder=tmp_path))
    for many in (2, 2000):
        keys = [f"{number:064x}" for number in range(many)]
        listener: Any = SimpleNamespace(error=None, memory=MemoryShortage(), take_dropped=list)
        run_in_tune(listener, context, keys)
    assert sizes[1] <= sizes[0] + 100


def test_a_process_that_never_starts_is_given_up_after_the_same_number_of_attempts(monkeypatch):
    reasons: list[str] = []
    listener = SimpleNamespace(error=None, failed=lambda key, reason: reasons.append(reason), retried=lambda *_: None)
    monkeypatch.setitem(LISTENERS, "word", listener)
    events, trial = Events("word"), SimpleNamespace(config={"key": "a"}, error_file=None, max_failures=-1)
    for step in range(MAX_STALLED - 1):
        assert trial.max_failures == -1
        events.on_trial_recover(step, [], trial)
    assert (trial.max_failures, reasons) == (0, [])
    events.on_trial_error(MAX_STALLED, [], trial)
    assert len(reasons) == 1


@pytest.mark.slow
def test_ctrl_c_at_the_end_of_tune_starts_no_trial_again(cluster, tmp_path, monkeypatch):
    """Tune has left its loop and still handles signals; one trial waits to be tried again."""
    from ray.tune.execution.tune_controller import TuneController

    clean_up = TuneController.cleanup

    def interrupted(self: TuneController) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        clean_up(self)

    class Killing(Observer):
        def ended(self, trial: PlannedTrial, outcome: Outcome) -> None:
            super().ended(trial, outcome)
            monkeypatch.setattr(TuneController, "cleanup", interrupted)
            (pid,) = processes.of_ray("ImplicitFunc")
            os.kill(pid, signal.SIGKILL)

    observed = Killing()
    assert not observed.sweep({key: toy.toy_config(rounds=2) for key in "ab"}, tmp_path, max_concurrent=1)
    assert list(observed.outcomes) == ["a"]


@pytest.mark.slow
def test_an_error_of_the_observer_ends_the_sweep(cluster, tmp_path):
    def disturb(trial: PlannedTrial, metrics: Metrics) -> None:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk is full"):
        Observer(disturb).sweep({"a": toy.toy_config(rounds=1000)}, tmp_path)


def test_files_of_recorded_trials_are_deleted(tmp_path):
    trials = [planned(key, toy.toy_config()) for key in "abc"]
    for trial in trials:
        trial_folder(tmp_path, trial.key).mkdir(parents=True)
        (tmp_path / "chunks" / trial.pool_key).mkdir(parents=True)
    clear(tmp_path, trials[:2], trials[2:])
    assert {path.name for path in tmp_path.glob("*/*")} == {"c"}


def test_an_emptied_storage_has_no_files_of_trials(tmp_path):
    for name in ("trials/a/state", "chunks/b/rounds", "mine/x"):
        put_text(tmp_path / name, "")
    empty(tmp_path)
    assert everything(tmp_path) == [str(tmp_path / "mine" / "x")]


def test_a_sweep_without_trials_is_complete_at_once(tmp_path):
    assert Observer().sweep({}, tmp_path)


def test_missing_resources_are_refused_before_anything_starts(cluster, tmp_path):
    with pytest.raises(InputError, match="64 CPUs"):
        Observer().sweep({"a": toy.toy_config()}, tmp_path, cpus_per_trial=64)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(params=[True, False])
def verbose(request):
    log_to_stderr(request.param)
    yield request.param
    log_to_stderr(False)


def test_the_node_of_a_trial_is_printed_once_per_node_if_verbose(verbose, capsys):
    rounds = []
    observer = SimpleNamespace(round=lambda _, metrics: rounds.append(metrics))
    monitor = Monitor(None, observer)  # type: ignore[arg-type]
    monitor.add(SimpleNamespace(key="a", label="trial 0", pool_key="a"))  # type: ignore[arg-type]
    for number, node in ((1, "one"), (2, "one"), (3, "two")):
        monitor.reported("a", {"round": number, "kd/loss": 0.5, "hostname": node, "pid": 7})
    assert rounds == [{"round": number, "kd/loss": 0.5} for number in (1, 2, 3)]
    expected = "trial 0 runs on one, process 7\ntrial 0 runs on two, process 7\n"
    assert capsys.readouterr().err == (expected if verbose else "")


RAISED = """Failure # 1 (occurred at 2026-01-01_00-00-00)
ray::ImplicitFunc.train() (pid=1, ip=127.0.0.1)
  File "a.py", line 1, in train
    raise error
ValueError: the first time
Failure # 2 (occurred at 2026-01-01_00-00-09)
\x1b[36mray::ImplicitFunc.train()\x1b[39m (pid=1, ip=127.0.0.1)
  File "a.py", line 1, in train
    raise error
IsADirectoryError: [Errno 21] Is a directory: 'state'
"""
DIED = """Failure # 1 (occurred at 2026-01-01_00-00-00)
The actor died unexpectedly before finishing this task.
\tclass_name: ImplicitFunc
\tactor_id: 1
"""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (RAISED, "IsADirectoryError: [Errno 21] Is a directory: 'state'"),
        (DIED, "its process died (The actor died unexpectedly before finishing this task.)"),
        ("", "its process died (no reason known)"),
    ],
)
def test_the_reason_of_a_failure_is_one_line(text: str, reason: str):
    assert reason_in(text) == reason


LOOPBACK = "node:127.0.0.1"
"""A resource of which each node of a cluster on loopback has 1."""


@pytest.mark.slow
def test_a_sweep_ends_at_its_deadline_with_checkpoints_of_running_trials(cluster, tmp_path):
    configs = {key: toy.toy_config(seed=seed, rounds=100_000) for seed, key in enumerate("abcd")}
    observed = Observer()
    for seconds in (6, 12, 24, 48, 96):
        assert not observed.sweep(configs, tmp_path, deadline=time.time() + seconds, checkpoint_seconds=3600)
        # On a busy machine processes may not have started by then.
        if len(observed.rounds) == 2:
            break
    # Without the deadline the trials would run for half an hour.
    assert observed.outcomes == {}
    assert set(observed.rounds) == {"a", "b"}
    # No checkpoint was due except the one at the end.
    stored = {key for key in configs if (trial_folder(tmp_path, key) / "state.safetensors").is_file()}
    assert stored == {"a", "b"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "limit", [pytest.param({"max_concurrent": 1}, marks=pytest.mark.slow), {"resources": {LOOPBACK: 0.6}}]
)
def test_limits_reduce_the_number_of_concurrent_trials(cluster, tmp_path, limit):
    keys: list[str] = []
    configs = {key: toy.toy_config(seed=seed, rounds=2) for seed, key in enumerate("ab")}
    assert Observer(lambda trial, metrics: keys.append(trial.key)).sweep(configs, tmp_path, **limit)
    assert keys == ["a", "a", "b", "b"]
