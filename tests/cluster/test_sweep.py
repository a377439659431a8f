import os
import shutil
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import toy
from pyarrow.fs import FileSelector

from cluster import processes
from cluster.drivers import assert_equal_numbers, direct
from condkd_ray.cluster.files import clear, empty, trial_file, trial_folder
from condkd_ray.cluster.options import ClusterOptions
from condkd_ray.cluster.pool import make_pool
from condkd_ray.cluster.stores import PoolStore
from condkd_ray.cluster.sweep import LISTENERS, MAX_STALLED, Events, Monitor, reason_in, sweep
from condkd_ray.commands.console.exit_codes import speak
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
    """A student whose first step is its last."""
    config = toy.toy_config(**changes)
    return replace(config, distiller=replace(config.distiller, lr=1e30))


def planned(key: str, config: TrialConfig, scope="trial", **lineage) -> PlannedTrial:
    """A trial of the toy world."""
    return PlannedTrial(key, Plan(f"toy {key}", 0, 0, config, scope), toy.make_prepared(), Lineage(**lineage))


class Heard:
    """An observer of a sweep that keeps what it hears, and calls `disturb` after each round."""

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
    """All files below, their paths."""
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
def test_a_limit_on_a_gpu_that_is_there_on_paper_only_fails_the_trial_by_name(cluster, tmp_path):
    heard = Heard()
    assert heard.sweep({"a": toy.toy_config()}, tmp_path, gpus_per_trial=0.5, device_pool_limit=10**6)
    assert heard.outcomes["a"].status == "failed"
    assert heard.outcomes["a"].reason == "device pool limit on a CPU is '1000000 bytes'; accepted: none, or a GPU"


def test_a_sweep_gives_the_numbers_of_runs_without_ray(cluster, tmp_path, capfd):
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
    # As if a driver had died before it fetched this; the threads tell it from one computed again.
    save_outcome(replace(expected["unfetched"], threads=77), trial_file(tmp_path, "unfetched", "outcome"))
    # A folder where the trial wants a file: its checkpoint cannot be saved.
    (trial_folder(tmp_path, "broken") / "state.safetensors").mkdir(parents=True)
    capfd.readouterr()
    heard = Heard()
    # GPUs on paper only: the trials compute on the CPU.
    assert heard.sweep(configs, tmp_path, cpus_per_trial=1, gpus_per_trial=0.5, attempts=1)
    assert capfd.readouterr() == ("", "")
    assert signal.getsignal(signal.SIGINT) is in_charge
    for key in set(configs) - {"nan", "broken"}:
        assert_equal_numbers(heard.outcomes[key], expected[key])
        assert heard.outcomes[key].threads == (77 if key == "unfetched" else 1)
        assert heard.rounds[key] == list(range(1, configs[key].rounds + 1))
    assert heard.outcomes["nan"].status == heard.outcomes["broken"].status == "failed"
    assert heard.outcomes["nan"].reason == "round 1: loss term kd/loss is not finite at step 2"
    assert heard.outcomes["nan"].reason == expected["nan"].reason
    assert heard.outcomes["broken"].reason.startswith("IsADirectoryError: ")
    assert len(heard.outcomes["broken"].history) == len(heard.rounds["broken"]) == 1
    # Of a trial that may yet go on all stays, of the others nothing.
    assert {path.relative_to(tmp_path).parts[1] for path in tmp_path.glob("*/*")} == {"broken", "pool.json"}


@pytest.mark.slow
def test_a_trial_without_gpu_memory_fails_once_by_name_and_the_sweep_goes_on(cluster, tmp_path):
    words = "CUDA out of memory. Tried to allocate 2.00 GiB."

    @dataclass(frozen=True, kw_only=True)
    class Hungry(Fast):
        """Has no memory in its second round, and writes down how often it came so far."""

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
    heard, other = Heard(), toy.toy_config(seed=1)
    assert heard.sweep({"hungry": hungry, "other": other}, tmp_path / "out", gpus_per_trial=0.5)
    found = heard.outcomes["hungry"]
    assert found.status == "failed"
    assert found.reason.startswith(f"round 2: out of GPU memory: {words}; accepted: smaller batches (distiller.batch, ")
    assert heard.rounds["hungry"] == [1]
    # A second attempt would have made more.
    assert (tmp_path / "log").read_text().splitlines() == ["round"] * 2
    assert_equal_numbers(heard.outcomes["other"], direct(other))


@pytest.mark.slow
@pytest.mark.parametrize("place", ["folder", "s3"])
def test_a_killed_trial_and_a_killed_pool_leave_the_numbers_as_they_were(cluster, tmp_path, place, request):
    storage = tmp_path if place == "folder" else locate(request.getfixturevalue("bucket"))
    config = toy.toy_config(rounds=7, memory=toy.toy_config().memory)
    killed = {}

    def disturb(trial: PlannedTrial, metrics: Metrics) -> None:
        victim = {2: "ImplicitFunc", 5: "SyntheticPool"}.get(metrics["round"])
        if victim is not None:
            (pid,) = processes.of_ray(victim)
            os.kill(pid, signal.SIGKILL)
            killed[victim] = pid

    heard = Heard(disturb)
    assert heard.sweep({"a": config}, tmp_path, storage=storage, checkpoint_seconds=0)
    assert set(killed) == {"ImplicitFunc", "SyntheticPool"}
    assert heard.rounds["a"] == [1, 2, 3, 4, 5, 6, 7]
    assert_equal_numbers(heard.outcomes["a"], direct(config))
    # It went on from its checkpoint: the first round was not computed again.
    assert heard.outcomes["a"].history[0] == heard.first_metrics["a", 1]
    # What the pool held stays told, and nothing else; in a folder that is not its storage nothing at all.
    assert [path.rpartition("/")[2] for path in everything(storage)] == ["pool.json"]
    assert place == "folder" or everything(tmp_path) == []


@pytest.mark.slow
def test_a_process_that_dies_between_two_trials_fails_neither(cluster, tmp_path, caplog):
    configs = {key: toy.toy_config(rounds=2, seed=seed) for seed, key in enumerate("abc")}

    class Killing(Heard):
        def ended(self, trial: PlannedTrial, outcome: Outcome) -> None:
            super().ended(trial, outcome)
            if trial.key == "a":
                # The next trial is given this process: Tune takes its death for the end of all retries.
                (pid,) = processes.of_ray("ImplicitFunc")
                os.kill(pid, signal.SIGKILL)

    heard = Killing()
    with caplog.at_level("INFO", "condkd_ray"):
        assert heard.sweep(configs, tmp_path, max_concurrent=1)
    assert "toy b seed 0: its process died" in caplog.text
    # What Tune had given up came last.
    assert list(heard.outcomes) == ["a", "c", "b"]
    for key, config in configs.items():
        assert_equal_numbers(heard.outcomes[key], direct(config))
    assert [path for name in ("trials", "chunks", "tune") for path in (tmp_path / name).glob("*/")] == []


@pytest.mark.parametrize("put_back", [False, True])
def test_what_tune_gives_up_too_early_is_tried_again_but_not_for_ever(monkeypatch, put_back):
    told: list[str] = []
    listener = SimpleNamespace(
        error=None,
        drop=lambda key: told.append("dropped"),
        failed=lambda key, reason: told.append(reason),
        retried=lambda key, reason: None,
    )
    monkeypatch.setitem(LISTENERS, "word", listener)
    events, trial = Events("word"), SimpleNamespace(config={"key": "a"}, error_file=None, max_failures=-1)
    for step in range(MAX_STALLED):
        # One death of its process, of which Tune tells once or twice.
        if put_back:
            events.on_trial_recover(step, [], trial)
        events.on_trial_error(step, [], trial)
    assert told[:-1] == ["dropped"] * (MAX_STALLED - 1)
    assert told[-1] == "10 attempts in a row without one more round; the last: its process died (no reason known)"


def test_a_process_that_never_begins_is_given_up_after_as_many_attempts(monkeypatch):
    told: list[str] = []
    listener = SimpleNamespace(error=None, failed=lambda key, reason: told.append(reason), retried=lambda *_: None)
    monkeypatch.setitem(LISTENERS, "word", listener)
    events, trial = Events("word"), SimpleNamespace(config={"key": "a"}, error_file=None, max_failures=-1)
    for step in range(MAX_STALLED - 1):
        assert trial.max_failures == -1
        events.on_trial_recover(step, [], trial)
    assert (trial.max_failures, told) == (0, [])
    events.on_trial_error(MAX_STALLED, [], trial)
    assert len(told) == 1


@pytest.mark.slow
def test_ctrl_c_at_the_end_of_tune_runs_nothing_again(cluster, tmp_path, monkeypatch):
    """Tune has left its loop and hears signals still; one trial waits to be tried again."""
    from ray.tune.execution.tune_controller import TuneController

    clean_up = TuneController.cleanup

    def interrupted(self: TuneController) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        clean_up(self)

    class Killing(Heard):
        def ended(self, trial: PlannedTrial, outcome: Outcome) -> None:
            super().ended(trial, outcome)
            monkeypatch.setattr(TuneController, "cleanup", interrupted)
            (pid,) = processes.of_ray("ImplicitFunc")
            os.kill(pid, signal.SIGKILL)

    heard = Killing()
    assert not heard.sweep({key: toy.toy_config(rounds=2) for key in "ab"}, tmp_path, max_concurrent=1)
    assert list(heard.outcomes) == ["a"]


@pytest.mark.slow
def test_an_error_of_the_callers_ends_the_sweep(cluster, tmp_path):
    def disturb(trial: PlannedTrial, metrics: Metrics) -> None:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk is full"):
        Heard(disturb).sweep({"a": toy.toy_config(rounds=1000)}, tmp_path)


def test_what_recorded_trials_left_is_cleared(tmp_path):
    trials = [planned(key, toy.toy_config()) for key in "abc"]
    for trial in trials:
        trial_folder(tmp_path, trial.key).mkdir(parents=True)
        (tmp_path / "chunks" / trial.place[1]).mkdir(parents=True)
    clear(tmp_path, trials[:2], trials[2:])
    assert {path.name for path in tmp_path.glob("*/*")} == {"c"}


def test_an_emptied_storage_holds_nothing_of_trials(tmp_path):
    for name in ("trials/a/state", "chunks/b/rounds", "mine/x"):
        put_text(tmp_path / name, "")
    empty(tmp_path)
    assert everything(tmp_path) == [str(tmp_path / "mine" / "x")]


def test_no_trials_are_done_at_once(tmp_path):
    assert Heard().sweep({}, tmp_path)


def test_resources_nobody_has_are_refused_before_anything_starts(cluster, tmp_path):
    with pytest.raises(InputError, match="64 CPUs"):
        Heard().sweep({"a": toy.toy_config()}, tmp_path, cpus_per_trial=64)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(params=[True, False])
def verbose(request):
    speak(request.param)
    yield request.param
    speak(False)


def test_where_a_trial_runs_is_told_once_a_place_to_who_wants_to_know(verbose, capsys):
    rounds = []
    observer = SimpleNamespace(round=lambda _, metrics: rounds.append(metrics))
    monitor = Monitor(None, observer)  # type: ignore[arg-type]
    monitor.add(SimpleNamespace(key="a", label="trial 0", place=("trial", "a")))  # type: ignore[arg-type]
    for number, node in ((1, "one"), (2, "one"), (3, "two")):
        monitor.reported("a", {"round": number, "kd/loss": 0.5, "hostname": node, "pid": 7})
    assert rounds == [{"round": number, "kd/loss": 0.5} for number in (1, 2, 3)]
    told = "trial 0 runs on one, process 7\ntrial 0 runs on two, process 7\n"
    assert capsys.readouterr().err == (told if verbose else "")


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
def test_a_failure_in_one_line(text: str, reason: str):
    assert reason_in(text) == reason


LOOPBACK = "node:127.0.0.1"
"""A resource of which each node of a cluster on loopback has 1."""


@pytest.mark.slow
def test_at_its_deadline_a_sweep_ends_and_what_ran_has_a_checkpoint(cluster, tmp_path):
    configs = {key: toy.toy_config(seed=seed, rounds=100_000) for seed, key in enumerate("abcd")}
    heard = Heard()
    for seconds in (6, 12, 24, 48, 96):
        assert not heard.sweep(configs, tmp_path, deadline=time.time() + seconds, checkpoint_seconds=3600)
        # On a busy machine processes may not have started by then.
        if len(heard.rounds) == 2:
            break
    # Its trials would have gone on for half an hour.
    assert heard.outcomes == {}
    assert set(heard.rounds) == {"a", "b"}
    # No checkpoint was due but that at the end.
    stored = {key for key in configs if (trial_folder(tmp_path, key) / "state.safetensors").is_file()}
    assert stored == {"a", "b"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "limit", [pytest.param({"max_concurrent": 1}, marks=pytest.mark.slow), {"resources": {LOOPBACK: 0.6}}]
)
def test_fewer_trials_at_once(cluster, tmp_path, limit):
    told: list[str] = []
    configs = {key: toy.toy_config(seed=seed, rounds=2) for seed, key in enumerate("ab")}
    assert Heard(lambda trial, metrics: told.append(trial.key)).sweep(configs, tmp_path, **limit)
    assert told == ["a", "a", "b", "b"]
