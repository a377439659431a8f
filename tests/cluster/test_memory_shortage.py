"""Trials on a machine short of memory. Ray's own monitor ends processes because of a hog on a machine of 4 GiB."""

import os
import signal
from contextlib import suppress
from types import SimpleNamespace

import pytest
from chaos.small_machine import small_machine
from places import permitted
from ray.exceptions import OutOfMemoryError

from cluster.drivers import assert_undisturbed, driving
from condkd_ray.cluster import memory_shortage
from condkd_ray.cluster.lost import in_words
from condkd_ray.cluster.memory_shortage import MAX_SHORTAGES, PAUSES, MemoryShortage
from condkd_ray.cluster.sweep import LISTENERS, MAX_STALLED, UNLIMITED, Events, Monitor

SHORT = in_words(OutOfMemoryError("actual memory used=0.75GB"))


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """A clock whose `now` is the time in seconds; `sleep` advances it and returns at once."""
    found = SimpleNamespace(now=100.0)

    def sleep(seconds: float) -> None:
        found.now += seconds

    monkeypatch.setattr(memory_shortage, "time", SimpleNamespace(monotonic=lambda: found.now, sleep=sleep))
    return found


def test_the_memory_of_trials_and_the_advice_are_logged_once(logged):
    shortage = MemoryShortage()
    shortage.record(0.5)
    for reason in (SHORT, SHORT, "its process died (killed)", SHORT):
        shortage.count_end(reason)
    shortage.set_aside("a", "first")
    shortage.set_aside("b", "second")
    (message,) = [line for line in logged if line.startswith("memory is short")]
    assert "ended 3 times; the process of a trial takes up to 0.81 GB" in message
    assert all(flag in message for flag in ("--max-concurrent", "--pool-limit", "--cpus-per-trial"))
    assert [line.split()[0] for line in logged if "runs alone" in line] == ["first", "second"]


@pytest.mark.parametrize(("size", "text"), [(0.456, "0.46 GB"), (99.6, "99.60 GB"), (120.0, "120.00 GB")])
def test_the_advice_states_sizes_as_plain_numbers(size: float, text: str):
    shortage = MemoryShortage()
    shortage.record(size)
    assert shortage.advice.startswith(f"the process of a trial takes up to {text}; ")


def test_a_trial_that_was_set_aside_waits_for_the_others_and_then_for_longer_pauses(clock):
    shortage = MemoryShortage()
    assert not shortage.must_wait("a", alone=True)
    for pause in (*PAUSES, PAUSES[-1]):
        shortage.set_aside("a", "first")
        assert shortage.must_wait("a", alone=False)
        clock.now += 1000
        assert shortage.must_wait("a", alone=True)
        clock.now += pause - 1
        assert shortage.must_wait("a", alone=True)
        clock.now += 2
        assert not shortage.must_wait("a", alone=True)
        assert not shortage.must_wait("a", alone=False)


def test_a_sweep_waits_only_for_trials_that_were_set_aside(clock):
    shortage = MemoryShortage()
    assert not shortage.release(["a", "b"])
    assert clock.now == 100
    shortage.set_aside("a", "first")
    assert shortage.release(["a", "b"])
    assert clock.now == 100 + PAUSES[0]
    assert not shortage.release(["a", "b"])


@pytest.mark.fault
def test_trials_ended_for_lack_of_memory_give_the_numbers_of_an_undisturbed_run(tmp_path):
    threshold = {"RAY_memory_usage_threshold": "0.7"}
    with (
        permitted(),
        small_machine(4 * 2**30) as machine,
        driving(tmp_path, within=machine.within, environment=threshold) as driver,
    ):
        driver.until("round b 1")
        # Stopped, these two are still running when the hog starts, however slow it is.
        held = [pid for pid, title in driver.pids().items() if title.startswith("ray::ImplicitFunc")]
        for pid in held:
            os.kill(pid, signal.SIGSTOP)
        with machine.hog(0.76):
            driver.until("memory is short: processes of trials were ended ")
            for pid in set(held) & set(driver.pids()):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
        assert driver.end() == 0, driver.lines
    assert driver.lines[-1] == "complete"
    assert not any("Traceback" in line for line in driver.lines)
    died = [line for line in driver.lines if "its machine had too little memory" in line]
    assert died
    assert all(line.endswith("; it resumes from its checkpoint") for line in died)
    assert_undisturbed(tmp_path)


def ends_of(monkeypatch, tmp_path, *reasons: str, twice: bool = False) -> tuple[list[tuple[str, ...]], list[int]]:
    """Return the calls of the listener when attempts of a trial end for these reasons, and Tune's retries before each.

    The reason "round" stands for one more round. `twice`: Tune reports each end that it may retry twice, and then gives
    up the trial.
    """
    calls: list[tuple[str, ...]] = []

    def recording(what: str):
        return lambda key, *rest: calls.append((what, *rest))

    names = ("retried", "ended_for_memory", "drop", "failed", "reported", "started")
    listener = SimpleNamespace(error=None, **{name: recording(name) for name in names})
    monkeypatch.setitem(LISTENERS, "word", listener)
    events, file = Events("word"), tmp_path / "error.txt"
    trial, allowed, rounds = SimpleNamespace(config={"key": "a"}, error_file=str(file), max_failures=UNLIMITED), [], 0
    for step, reason in enumerate(reasons):
        if reason == "round":
            rounds += 1
            events.on_trial_result(step, [], trial, {"round": rounds})
            continue
        file.write_text(f"Failure # {step} (occurred at 2026-01-01_00-00-00)\n{reason}\n")
        events.on_trial_start(step, [], trial)
        allowed.append(trial.max_failures)
        last = trial.max_failures == 0
        if not last:
            events.on_trial_recover(step, [], trial)
        if last or twice:
            events.on_trial_error(step, [], trial)
            trial.max_failures = UNLIMITED
    return [call for call in calls if call[0] not in ("reported", "started")], allowed


def test_a_trial_ended_repeatedly_for_lack_of_memory_is_set_aside_unless_it_made_a_round(monkeypatch, tmp_path):
    calls, allowed = ends_of(monkeypatch, tmp_path, *[SHORT] * MAX_SHORTAGES)
    assert [what for what, *_ in calls] == [*["retried"] * (MAX_SHORTAGES - 1), "ended_for_memory"]
    assert allowed == [*[UNLIMITED] * (MAX_SHORTAGES - 1), 0]
    assert all(SHORT in reason for _, reason in calls)
    calls, _ = ends_of(monkeypatch, tmp_path, *[SHORT, "round"] * (2 * MAX_SHORTAGES))
    assert {what for what, *_ in calls} == {"retried"}
    calls, _ = ends_of(monkeypatch, tmp_path, *[SHORT] * (MAX_SHORTAGES - 1), "its node is gone", SHORT)
    assert [what for what, *_ in calls] == [*["retried"] * (MAX_SHORTAGES - 1), "drop", "retried"]


def test_an_end_that_tune_reports_twice_counts_once(monkeypatch, tmp_path):
    calls, allowed = ends_of(monkeypatch, tmp_path, *[SHORT] * MAX_SHORTAGES, twice=True)
    assert [what for what, *_ in calls] == [*["retried", "drop"] * (MAX_SHORTAGES - 1), "ended_for_memory"]
    assert allowed == [*[UNLIMITED] * (MAX_SHORTAGES - 1), 0]
    assert sum(SHORT in "".join(reason) for _, *reason in calls) == MAX_SHORTAGES


def test_an_end_for_another_reason_interrupts_those_in_a_row(monkeypatch, tmp_path):
    """Also where Tune gives the trial up, so that it runs as a new trial of Tune."""
    calls, allowed = ends_of(
        monkeypatch, tmp_path, *[SHORT] * (MAX_SHORTAGES - 1), "its node is gone", *[SHORT] * MAX_SHORTAGES
    )
    names = [what for what, *_ in calls]
    assert names == [*["retried"] * (MAX_SHORTAGES - 1), "drop", *["retried"] * (MAX_SHORTAGES - 1), "ended_for_memory"]
    assert allowed == [*[UNLIMITED] * (MAX_SHORTAGES - 1), 0] * 2


def test_a_trial_that_was_dropped_fails_after_as_many_attempts_in_all(monkeypatch, tmp_path):
    calls, _ = ends_of(monkeypatch, tmp_path, *["its node is gone"] * MAX_STALLED, twice=True)
    assert [what for what, *_ in calls] == [*["retried", "drop"] * (MAX_STALLED - 1), "failed"]


def test_a_dropped_trial_counts_its_end_for_lack_of_memory_once(logged):
    monitor = Monitor(None, SimpleNamespace())  # type: ignore[arg-type]
    monitor.add(SimpleNamespace(key="a", label="trial 0", pool_key="a"))  # type: ignore[arg-type]
    monitor.retried("a", SHORT)
    monitor.drop("a", "")
    monitor.drop("a", SHORT)
    monitor.ended_for_memory("a", SHORT)
    assert monitor.take_dropped() == ["a"] * 3
    assert any("processes of trials were ended 3 times; " in line for line in logged)


def test_a_trial_that_never_has_enough_memory_fails_with_advice(monkeypatch, tmp_path):
    calls, _ = ends_of(monkeypatch, tmp_path, *[SHORT] * (MAX_STALLED + 1))
    assert [what for what, *_ in calls].count("ended_for_memory") == (MAX_STALLED - 1) // MAX_SHORTAGES
    (reason,) = [reason for what, reason in calls if what == "failed"][:1]
    assert reason.startswith(
        f"{MAX_STALLED} attempts in a row without one more round; the last: its process died (its mac"
    )
    ended = []
    monitor = Monitor(None, SimpleNamespace(ended=lambda trial, outcome: ended.append(outcome)))  # type: ignore[arg-type]
    monitor.add(SimpleNamespace(key="a", label="trial 0", pool_key="a"))  # type: ignore[arg-type]
    monitor.failed("a", reason)
    assert ended[0].reason == f"{reason}; {monitor.memory.advice}"
    assert "takes up to 0.81 GB" in ended[0].reason
