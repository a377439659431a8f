"""`condkd search` in the way users run it, on a budget of seconds."""

import contextlib
import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import optuna
import programs
import pytest
from killing import killed_after
from optuna.trial import TrialState
from toy import make_prepared, toy_config

from condkd_ray.commands.search import SearchFlags, confirm
from condkd_ray.core.config import to_tree
from condkd_ray.core.method import InputError
from condkd_ray.core.records import Outcome, read_manifest, read_records, write_record
from condkd_ray.methods.guidance import NoGuidance
from condkd_ray.report.results import read as read_results
from condkd_ray.report.tables.search import search_table
from condkd_ray.runs import experiment
from condkd_ray.runs import search_driver as module
from condkd_ray.runs.options import RunResult
from condkd_ray.runs.search import SearchDriver, SearchRecorder, pool_check
from condkd_ray.runs.search import confirm as run_again
from condkd_ray.runs.search_records import begun_numbers
from condkd_ray.runs.search_spec import SearchSpec
from condkd_ray.study.objective import Objective, parse_constraints
from condkd_ray.study.space import Open, read
from condkd_ray.study.storage import open_storage
from condkd_ray.study.study import IMPOSSIBLE, Study
from condkd_ray.trial.hardware import CPU, Hardware
from runs.small_search import SPACE, command, environment, journal_text, search, stored


@pytest.fixture(scope="module")
def home(cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    (folder / "small.yaml").write_text(SPACE)
    return folder


POPULATION = """
data: {name: digits}
teacher: {network: {name: resnet, depth: 8, width: 8}, training: {epochs: 4}}
student: {name: resnet, depth: 8, width: 4}
condensation: {name: random_real, ipc: 2}
inversion: {name: fast, steps: 2, batch: 64, width: 16, bn_weight: !log_uniform [0.1, 100]}
guidance: {name: discriminator, weight: !log_uniform [1, 100]}
distiller: {steps: 8, batch: 64, condensed_share: 0.5, lr: !log_uniform [0.003, 0.3]}
rounds: 5
"""


@pytest.fixture(scope="module")
def finished(home: Path) -> Path:
    done = search(home, "whole", "--trials", "5")
    assert done.returncode == 0, done.stderr
    assert "Spearman's rho" in done.stdout
    return home / "whole"


def test_study_records_and_tables_agree_on_every_trial(finished: Path):
    trials, records = stored(finished).trials, {record.arm: record for record in read_records(finished)}
    assert len(trials) == len(records) == 5
    for trial in trials:
        record = records[f"trial {trial.number}"]
        assert (trial.state, record.status) == (TrialState.COMPLETE, "finished")
        assert trial.value == record.metrics["proxy/agreement"]
        assert trial.intermediate_values == {row["round"]: row["proxy/agreement"] for row in record.history}
        assert trial.user_attrs["config_hash"] == record.config_hash
        assert trial.user_attrs["node"] == record.outcome.node
        assert trial.user_attrs["peak_bytes"] == record.outcome.peak_bytes
        assert trial.params["inversion/bn_weight"] == record.config["inversion"]["bn_weight"]
        assert "student/test_accuracy" in record.metrics
        assert not any("test" in name for row in record.history for name in row)
        assert len(optuna.artifacts.get_all_artifact_meta(trial, storage=open_storage(None, finished))) == 2
    assert {record.seed for record in records.values()} == {0}
    best = max(records.values(), key=lambda record: record.metrics["proxy/agreement"])
    table = (finished / "search.md").read_text().splitlines()
    first = next(line for line in table if line.startswith("| ") and "finished" in line)
    assert first.split("|")[1].strip() == best.arm.removeprefix("trial ")
    assert len(list((finished / "products").glob("*"))) == 1
    assert read_manifest(finished).cpu_seconds > sum(record.outcome.cpu_seconds for record in records.values())
    assert read_manifest(finished).search["parameters"] == ["inversion/bn_weight", "guidance/name", "guidance/weight"]


def test_the_page_of_the_search_is_written_again_after_a_confirmation(home: Path, finished: Path, monkeypatch):
    ran: list[str] = []
    done = RunResult(finished / "confirmed", complete=True, failed=0)
    monkeypatch.setattr(experiment, "run", lambda name, *rest, **more: ran.append(name) or done)
    monkeypatch.setattr("condkd_ray.commands.search.report_results", lambda out: ran.append(out.name))
    (finished / "report.html").unlink()
    assert confirm(read(home / "small.yaml"), SearchFlags(out=finished), best=1, seeds=[5]) == 0
    assert ran == ["confirm", "confirmed"]
    assert (finished / "report.html").is_file()


def evolving(home: Path, out: str, *flags: str) -> list[str]:
    (home / "population.yaml").write_text(POPULATION)
    given = [str(home / "population.yaml"), "--out", str(home / out), "--cache", str(home / "cache")]
    return ["search", *given, "--population", "4", *flags]


def evolve(home: Path, out: str, *flags: str) -> subprocess.CompletedProcess[str]:
    return programs.condkd(*evolving(home, out, *flags))


def lives(out: Path) -> list:
    """Return the state, the life, the curve and the last parameters of each member."""
    return [(t.state, t.user_attrs["life"], t.intermediate_values, t.params) for t in stored(out).trials]


@pytest.fixture(scope="module")
def evolved(home: Path) -> Path:
    done = evolve(home, "evolved")
    assert done.returncode == 0, done.stderr
    return home / "evolved"


@pytest.mark.slow
def test_a_population_has_one_trial_and_one_record_per_member(evolved: Path):
    trials, records = stored(evolved).trials, {record.arm: record for record in read_records(evolved)}
    assert len(trials) == len(records) == 4
    for trial in trials:
        record, life = records[f"trial {trial.number}"], trial.user_attrs["life"]
        assert (trial.state, len(life), list(trial.intermediate_values)) == (TrialState.COMPLETE, 3, [1, 2, 3, 4, 5])
        assert trial.params == life[-1]["params"]
        assert trial.params["distiller/lr"] == record.config["distiller"]["lr"]
        assert trial.user_attrs["config_hash"] == record.config_hash
        assert trial.value == record.metrics["proxy/agreement"]
        assert "student/test_accuracy" in record.metrics
    taken = [(life["from"], trial.number) for trial in trials for life in trial.user_attrs["life"][1:]]
    assert any(parent != number for parent, number in taken)
    assert "test" not in journal_text(evolved / "study.journal")
    assert len(list((evolved / "products").glob("*"))) == 1
    assert [path for name in ("trials", "chunks") for path in (evolved / name).glob("*/")] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "lost", [1, pytest.param(50, marks=pytest.mark.slow), pytest.param(72, marks=pytest.mark.slow)]
)
def test_a_cut_journal_of_a_population_is_restored(home: Path, evolved: Path, lost: int):
    out = home / f"evolved{lost}"
    shutil.copytree(evolved, out)
    records = kept_records(out)
    lines = (out / "study.journal").read_bytes().splitlines(keepends=True)
    (out / "study.journal").write_bytes(b"".join(lines[:-lost]))
    done = evolve(home, out.name)
    assert done.returncode == 0, done.stderr
    assert lives(out) == lives(evolved)
    assert kept_records(out) == records
    assert (out / "search.md").read_text() == (evolved / "search.md").read_text()
    assert [path for name in ("trials", "chunks") for path in (out / name).glob("*/")] == []


@pytest.mark.fault
def test_a_killed_population_continues_to_the_same_end(home: Path, evolved: Path):
    command = [sys.executable, "-m", "condkd_ray", *evolving(home, "hit")]
    for rounds in (3, 14):
        with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE) as driver:
            while rounds_reported(home / "hit") < rounds:
                assert driver.poll() is None
                time.sleep(0.05)
            driver.kill()
            driver.communicate()
    done = evolve(home, "hit")
    assert done.returncode == 0, done.stderr
    assert lives(home / "hit") == lives(evolved)
    assert len(read_records(home / "hit")) == 4


def rounds_reported(out: Path) -> int:
    if not (out / "study.journal").exists():
        return 0
    # The study may not be in it yet.
    with contextlib.suppress(KeyError, InputError):
        return sum(len(trial.intermediate_values) for trial in stored(out).trials)
    return 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--sampler", "tpe"), "--sampler with --population is 'tpe'; accepted: random"),
        (("--pruner", "asha"), "--pruner with --population is 'asha'; accepted: none"),
        (("--objective", "proxy/kl", "memory/bytes"), "--objective with --population is 'proxy/kl memory/bytes'"),
        (("--share", "inversion"), "--share with --population is 'inversion'; accepted: trial"),
        (("--generation-rounds", "3"), "study 'search' was made for another population, [4, 2]; accepted"),
    ],
)
def test_flags_that_a_population_cannot_use_are_refused(home: Path, evolved: Path, flags, message):
    before = (evolved / "study.journal").read_bytes()
    done = evolve(home, "evolved", *flags)
    assert done.returncode == 2
    assert message in done.stderr
    assert (evolved / "study.journal").read_bytes() == before


def test_the_study_contains_nothing_of_the_test_images(finished: Path):
    journal = journal_text(finished / "study.journal")
    assert "proxy/agreement" in journal
    assert "test" not in journal


@pytest.mark.slow
def test_the_same_command_with_more_trials_runs_only_the_new_ones(home: Path, finished: Path):
    before = {path: path.stat().st_mtime_ns for path in (finished / "records").iterdir()}
    again = search(home, "whole", "--trials", "6")
    assert again.returncode == 0, again.stderr
    assert len(stored(finished).trials) == 6
    assert before.items() <= {path: path.stat().st_mtime_ns for path in (finished / "records").iterdir()}.items()


@pytest.mark.parametrize("share", [0.5, *(pytest.param(one, marks=pytest.mark.slow) for one in (0, 0.1, 0.3, 0.8))])
def test_a_cut_journal_keeps_all_finished_trials(home: Path, finished: Path, share: float):
    out = home / f"cut{share}"
    shutil.copytree(finished, out)
    records = {path: path.stat().st_mtime_ns for path in (out / "records").iterdir()}
    lines = (out / "study.journal").read_bytes().splitlines(keepends=True)
    whole = round(share * len(lines))
    if share == 0.5:
        # Within a trial, after one of its rounds, and before the last trial was created. Trials run at the same time:
        # all may have been created in the first half.
        operations = [json.loads(line)["op_code"] for line in lines]
        created, rounds = ([i for i, one in enumerate(operations) if one == code] for code in (4, 7))
        whole = min((i for i in rounds if i < created[-1]), key=lambda i: abs(i - whole)) + 1
    (out / "study.journal").write_bytes(b"".join(lines[:whole]))
    known = [summary_of(trial) for trial in stored(finished).trials]
    done = search(home, out.name, "--trials", str(len(known)))
    assert done.returncode == 0, done.stderr
    # With 0.8, only the end of the last trial is in the part that was cut off.
    assert share == 0.8 or "missing from the study were restored from their records" in done.stderr
    assert [summary_of(trial) for trial in stored(out).trials] == known
    assert {path: path.stat().st_mtime_ns for path in (out / "records").iterdir()} == records
    assert (out / "search.md").read_text() == (finished / "search.md").read_text()


@pytest.mark.fault
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_search_continues_to_the_planned_number_of_trials(home: Path, finished: Path, number):
    out = f"stopped{number}"
    flags = ("--trials", "5")
    with subprocess.Popen(command(home, out, *flags), env=environment(), stderr=subprocess.PIPE) as driver:
        while len(list((home / out / "records").glob("*.json"))) < 2:
            assert driver.poll() is None
            time.sleep(0.05)
        driver.send_signal(number)
        driver.communicate()
    assert search(home, out, *flags).returncode == 0
    study = stored(home / out)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 5
    assert len({json.dumps(trial.params, sort_keys=True) for trial in study.trials}) == 5
    assert len(read_records(home / out)) == 5
    # The first trial does not depend on the results of others, so it equals that of the undisturbed search.
    assert study.trials[0].params == stored(finished).trials[0].params
    assert study.trials[0].value == stored(finished).trials[0].value


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_both_dashboards_show_the_search_until_they_are_stopped(finished: Path, number):
    command = [sys.executable, "-m", "condkd_ray", "dashboard", str(finished)]
    # Many clusters have a proxy, which cannot reach the addresses of this machine. This one refuses every connection.
    proxied = os.environ | dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        proxied.pop(name, None)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=proxied) as served:
        try:
            addresses = [served.stdout.readline().split()[1] for _ in range(2)]
            check_shown(finished, *addresses)
            served.send_signal(number)
            assert served.wait(60) == 0
        finally:
            # Where a check above has failed, the dashboards still run and `with` would wait for them.
            served.kill()
    for address in addresses:
        with pytest.raises(OSError, match="refused"):
            DIRECT.open(address)


DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def check_shown(out: Path, optuna_address: str, tensorboard_address: str) -> None:
    assert all(address.startswith("http://127.0.0.1:") for address in (optuna_address, tensorboard_address))
    (study,) = fetched(f"{optuna_address}api/studies")["study_summaries"]
    shown = fetched(f"{optuna_address}api/studies/{study['study_id']}")
    assert [trial["number"] for trial in shown["trials"]] == [trial.number for trial in stored(out).trials]
    assert shown["best_trials"][0]["values"] == [stored(out).best_value]
    assert all(len(trial["artifacts"]) == 2 for trial in shown["trials"])
    image = next(file for file in shown["trials"][0]["artifacts"] if file["filename"].endswith(".png"))
    path = f"{optuna_address}artifacts/{study['study_id']}/0/{image['artifact_id']}"
    with DIRECT.open(path, timeout=60) as reply:
        assert reply.read(8) == b"\x89PNG\r\n\x1a\n"
    # TensorBoard begins to serve before it has read all events.
    deadline = time.monotonic() + 60
    while len(runs := trials_in(tensorboard_address)) < len(shown["trials"]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(runs) == len(shown["trials"])


def trials_in(tensorboard_address: str) -> list[str]:
    return [run for run in fetched(f"{tensorboard_address}data/runs") if run.startswith("ipc2/trial-")]


def fetched(address: str):
    with DIRECT.open(address, timeout=60) as reply:
        return json.load(reply)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--objective", "student/test_accuracy"), "objective is 'student/test_accuracy'; accepted: proxy/agreement"),
        (("--sampler", "gp"), "--sampler is 'gp for a space in which a choice opens leaves of its own'; accepted: tpe"),
        (("--objective", "proxy/kl"), "study 'search' was made for another objective"),
        (
            ("--constraint", "student/test_accuracy>=0.9"),
            "--constraint is 'student/test_accuracy>=0.9'; accepted: NAME<=",
        ),
        (
            ("--constraint", "memory/bytes<=9", "--sampler", "random"),
            "--sampler is 'random with --constraint'; accepted",
        ),
        (("--constraint", "memory/bytes<=9"), "study 'search' was made for other constraints, []; accepted"),
        (("--pool-limit", "1kB"), "pool limit of node 127.0.0.1 is '1.0 kB of its object store of "),
        (("--gpu-hours", "4"), "--gpus-per-trial with --gpu-hours is 0.0; accepted: a number > 0"),
        (("--pruner", "asha", "--objective", "proxy/kl", "memory/bytes"), "--pruner is 'asha for the objectives"),
    ],
)
def test_bad_input_is_refused_and_the_study_stays_unchanged(home: Path, finished: Path, flags, message):
    before = (finished / "study.journal").read_bytes()
    done = search(home, "whole", *flags)
    assert done.returncode == 2
    assert message in done.stderr
    assert (finished / "study.journal").read_bytes() == before


def test_settings_that_a_cpu_cannot_run_are_refused_before_earlier_results_are_moved(cluster, tmp_path: Path):
    (tmp_path / "small.yaml").write_text(f"{SPACE}graphs: true\n")
    (tmp_path / "out").mkdir()
    for out in ("out", "new"):
        done = search(tmp_path, out, "--fresh")
        assert done.returncode == 2
        assert "error: graphs on a CPU is True; accepted: false, or trials on a GPU" in done.stderr
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "small.yaml"]


def test_a_proposal_that_the_hardware_cannot_run_is_refused_by_the_recorder():
    """A GPU could run it, so the space is accepted, and the driver skips the proposal on a CPU."""
    recorder = SearchRecorder.__new__(SearchRecorder)
    recorder.workshop, recorder.hardware, recorder.fits = Workshop(), CPU, lambda config: None
    recorder.check(toy_config())
    with pytest.raises(InputError, match="graphs on a CPU is True"):
        recorder.check(toy_config(graphs=True))
    recorder.hardware = Hardware("H100", True, 80 * 10**9)
    recorder.check(toy_config(graphs=True))


def test_proposals_whose_images_do_not_fit_into_the_pool_are_passed_over(cluster, tmp_path):
    tree = to_tree(toy_config())
    tree["inversion"] = tree["inversion"] | {"batch": Open("choice", (16, 32, 64, 128))}
    spec = SearchSpec(out=tmp_path, trials=4, pool_limit="10kB")
    own, sweeping = (
        pool_check(one.of_cluster(math.inf), one, Workshop())
        for one in (spec, dataclasses.replace(spec, share="sweep", max_concurrent=1))
    )
    study = Study(open_storage(None, tmp_path), "search", tree, Objective(("proxy/agreement",)), sampler="random")
    proposals = [study.propose(own) for _ in range(3)]
    # Two trials at once, of 64 pixels and 8 bytes for the label an image: 2 x 72 x 64 = 9216 bytes.
    assert sorted(one.config.inversion.batch for one in proposals if one) == [16, 32, 64]
    assert study.propose(own) is None
    reasons = {trial.user_attrs[IMPOSSIBLE] for trial in study.trials if IMPOSSIBLE in trial.user_attrs}
    (reason,) = reasons
    assert "10.0 kB of its object store" in reason
    assert "at least 18.5 kB, a round of 9 kB for each of 2 trials at once" in reason
    # One at a time, with logits of 4 classes: 80 x 128 = 10240 bytes.
    sweeping(dataclasses.replace(proposals[0].config, inversion=dataclasses.replace(INVERSION, batch=100)))
    with pytest.raises(InputError, match=r"at least 10\.3 kB, a round of 10 kB for 1 trial at once on all nodes"):
        sweeping(dataclasses.replace(proposals[0].config, inversion=dataclasses.replace(INVERSION, batch=128)))


INVERSION = toy_config().inversion
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
    """The part of a workshop that a driver uses."""

    def check(self, config):
        pass

    def prepare(self, config):
        return PREPARED

    def check_teacher(self, config):
        return ""

    def teacher_scores(self, config):
        return {"test_accuracy": 0.9}

    def data(self, config):
        test = SimpleNamespace(labels=PREPARED.test.labels, __len__=lambda self: 0)
        blobs = {"name": "blobs", "digest": "d", "num_classes": 4, "image_shape": (1, 8, 8), "notes": (), "val": None}
        blobs |= {"task": "classification"}
        return SimpleNamespace(**blobs, test=PREPARED.test or test)


class Whole(SearchDriver):
    """A driver with its recorder."""

    def __init__(self, recorder: SearchRecorder) -> None:
        super().__init__(recorder)
        self.describe, self.close = recorder.describe, recorder.records.close
        self.study = recorder.study


def driver_of(out: Path, trials: int = 3, limits: tuple[str, ...] = (), tree: dict = TREE) -> Whole:
    spec = SearchSpec(out=out, trials=trials, constraint=limits)
    study = Study(open_storage(None, out), "search", tree, Objective(), constraints=parse_constraints(limits))
    return Whole(SearchRecorder("Which?", study, tree, Workshop(), spec))


def report_trial(driver: SearchDriver, trial, how: str) -> None:
    for metrics in ENDS[how].history:
        driver.round(trial, metrics)
    if how == "finished":
        driver.untested(trial, WHOLE)
    driver.ended(trial, ENDS[how])


def stored_trials(out: Path):
    return Study(open_storage(None, out), "search", TREE, Objective()).trials


class Killed(BaseException):
    """Simulates the death of the driver."""


@pytest.mark.parametrize("how", ["finished", "pruned", "failed"])
@pytest.mark.parametrize("where", ["study", "record"])
def test_a_trial_gets_its_state_and_its_record_although_the_driver_died_before_one_of_them(
    tmp_path, how, where, monkeypatch
):
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
            report_trial(first, trial, how)
    first.close()
    again = driver_of(tmp_path)
    for end in ("pruned", "finished", "failed", "finished"):
        following = again.propose()
        if following is None:
            break
        report_trial(again, following, how if following.key == trial.key else end)
    again.close()
    trials, records = stored_trials(tmp_path), {record.arm: record for record in read_records(tmp_path)}
    assert len(trials) == len(records) == 3
    assert trials[0].state == STATES[how]
    assert all(trial.state == STATES[records[f"trial {trial.number}"].status] for trial in trials)
    assert again.propose() is None


@pytest.mark.parametrize("how", ["finished", "pruned", "failed"])
@pytest.mark.parametrize("kept", [0, 0.5, 0.9])
def test_trials_lost_from_the_study_are_restored_from_the_records(tmp_path, how, kept):
    first = driver_of(tmp_path)
    while (trial := first.propose()) is not None:
        report_trial(first, trial, how)
    first.close()
    journal = tmp_path / "study.journal"
    before, records = stored_trials(tmp_path), {path.name: path.read_bytes() for path in tmp_path.glob("records/*")}
    lines = journal.read_bytes().splitlines(keepends=True)
    whole = round(kept * len(lines))
    journal.write_bytes(b"".join(lines[:whole]) + lines[whole][:30])
    again = driver_of(tmp_path)
    assert again.propose() is None
    again.close()
    after = stored_trials(tmp_path)
    assert [summary_of(trial) for trial in after] == [summary_of(trial) for trial in before]
    assert {path.name: path.read_bytes() for path in tmp_path.glob("records/*")} == records
    more = driver_of(tmp_path, trials=4)
    report_trial(more, more.propose(), "finished")
    assert more.propose() is None
    more.close()
    assert len(read_records(tmp_path)) == 4


WIDE = TREE | {"rounds": Open("int", (2, 10**6))}
"""So many values of `rounds` that no trial is a repeat."""
KINDS = ["finished", "finished", "pruned", "finished", "failed", "finished", "finished"]


def searched(out: Path, trials: int, limits: tuple[str, ...] = ()) -> Path:
    """Run a search to its end and return its journal.

    The trials finish, fail or are pruned as in `KINDS`; a trial with a higher number has a higher quality.
    """
    driver = driver_of(out, trials, limits, WIDE)
    for number in range(trials):
        trial, how = driver.propose(), KINDS[number % len(KINDS)]
        history = [row | {"proxy/agreement": number / 100 + row["round"] / 4} for row in ENDS[how].history]
        for metrics in history:
            driver.round(trial, metrics)
        outcome = dataclasses.replace(ENDS[how], history=history)
        if how == "finished":
            driver.untested(trial, dataclasses.replace(outcome, predictions=[]))
        driver.ended(trial, outcome)
    assert driver.propose() is None
    driver.describe(over=True)
    driver.close()
    return out / "study.journal"


def kept_records(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("records/*")}


@pytest.mark.parametrize("limits", [(), ("time/wall_seconds<=3", "proxy/kl<=2")])
def test_a_cut_journal_is_restored_completely_and_no_trial_runs_again(tmp_path, limits):
    journal = searched(tmp_path, 16, limits)
    lines, records = journal.read_bytes().splitlines(keepends=True), kept_records(tmp_path)
    wanted = [summary_of(trial) for trial in stored(tmp_path).trials]
    excesses = [trial.constraints for trial in stored(tmp_path).trials]
    assert {trial.state for trial in stored(tmp_path).trials} == set(STATES.values())
    within = 0
    for whole in [0, 1, 3, 6, *range(7, len(lines), 23), len(lines) - 1]:
        journal.write_bytes(b"".join(lines[:whole]))
        left = stored(tmp_path).trials if whole else []
        within += any(trial.state == TrialState.RUNNING for trial in left)
        again = driver_of(tmp_path, 16, limits, WIDE)
        # The study is complete before the driver proposes anything.
        assert [summary_of(trial) for trial in stored(tmp_path).trials] == wanted, whole
        assert [trial.constraints for trial in stored(tmp_path).trials] == excesses
        assert again.propose() is None
        again.close()
        assert kept_records(tmp_path) == records
    assert within > 3
    # The sampler's next proposal is the same as without the cut.
    more = driver_of(tmp_path, 17, limits, WIDE).propose().config.rounds
    journal.write_bytes(b"".join(lines))
    assert driver_of(tmp_path, 17, limits, WIDE).propose().config.rounds == more


def test_a_driver_killed_while_it_restores_trials_from_records_restores_the_rest_next_time(tmp_path, monkeypatch):
    journal = searched(tmp_path, 8)
    lines, wanted = (
        journal.read_bytes().splitlines(keepends=True),
        [summary_of(trial) for trial in stored(tmp_path).trials],
    )
    for writes in range(0, 100, 7):
        journal.write_bytes(b"".join(lines[:30]))
        with killed_after(writes, monkeypatch):
            driver_of(tmp_path, 8, tree=WIDE)
        again = driver_of(tmp_path, 8, tree=WIDE)
        assert again.propose() is None
        again.close()
        assert [summary_of(trial) for trial in stored(tmp_path).trials] == wanted


def test_the_number_of_a_begun_trial_is_proposed_again_and_an_unused_number_fails(tmp_path, logged):
    journal = searched(tmp_path, 4)
    keys = {record.arm: record.config_hash for record in read_records(tmp_path)}
    # Without its record, trial 1 looks as if it had still run when the driver was killed.
    (tmp_path / "records" / f"{keys['trial 1']}.json").unlink()
    before = stored(tmp_path).trials
    journal.unlink()
    again = driver_of(tmp_path, 4, tree=WIDE)
    assert "3 trials missing from the study were restored from their records" in logged
    assert [trial.state for trial in stored(tmp_path).trials][1] == TrialState.RUNNING
    trial = again.propose()
    # The same key and arm: the trial continues from its checkpoint.
    assert (trial.key, trial.plan.arm) == (keys["trial 1"], "trial 1")
    report_trial(again, trial, "finished")
    assert again.propose() is None
    again.close()
    assert [trial.params for trial in stored(tmp_path).trials] == [trial.params for trial in before]
    # A number under which no trial had begun, such as that of a repeat, is not proposed again.
    (tmp_path / "records" / f"{keys['trial 1']}.json").unlink()
    manifest = json.loads((tmp_path / "experiment.json").read_text())
    manifest["planned"] = [one for one in manifest["planned"] if one["arm"] != "trial 1"]
    (tmp_path / "experiment.json").write_text(json.dumps(manifest))
    journal.unlink()
    other = driver_of(tmp_path, 4, tree=WIDE)
    assert other.propose().plan.arm == "trial 4"
    other.close()
    assert stored(tmp_path).trials[1].state == TrialState.FAIL


def test_a_restored_trial_gets_a_new_number_if_its_own_is_taken(tmp_path):
    journal = searched(tmp_path, 3)
    lost = {record.arm: record for record in read_records(tmp_path)}["trial 0"]
    journal.unlink()
    study = Study(open_storage(None, tmp_path), "search", WIDE, Objective(), sampler="random", seed=5)
    rounds = study.propose().config.rounds
    assert rounds != lost.config["rounds"]
    again = driver_of(tmp_path, 4, tree=WIDE)
    study = Study(open_storage(None, tmp_path), "search", WIDE, Objective())
    assert [trial.params["rounds"] for trial in study.own][::3] == [rounds, lost.config["rounds"]]
    found = {record.arm: record.config_hash for record in read_records(tmp_path)}
    assert found.keys() == {"trial 1", "trial 2", "trial 3"}
    assert found["trial 3"] == lost.config_hash == study.trials[3].user_attrs["config_hash"]
    report_trial(again, again.propose(), "finished")
    assert again.propose() is None
    again.close()


def test_records_of_another_study_or_another_space_are_not_restored(tmp_path, logged):
    searched(tmp_path, 3)
    spec = SearchSpec(out=tmp_path, trials=3, study="second")
    for name, tree in (("second", WIDE), ("search", TREE | {"rounds": Open("int", (2, 3))})):
        study = Study(open_storage(f"sqlite:///{tmp_path / f'{name}.db'}", tmp_path), name, tree, Objective())
        given = dataclasses.replace(spec, study=name)
        SearchRecorder("Which?", study, tree, Workshop(), given).records.close()
        assert study.trials == []
    assert logged[-1].startswith(
        "3 trials with records do not fit this space and are left out: of trial 0, parameters: rounds"
    )
    # Records of earlier versions, which do not name their study, are not restored either.
    for record in read_records(tmp_path):
        write_record(tmp_path, dataclasses.replace(record, study=""))
    (tmp_path / "study.journal").unlink()
    Study(open_storage(None, tmp_path), "second", WIDE, Objective())
    driver = driver_of(tmp_path, tree=WIDE)
    assert logged[-1].startswith("3 records of earlier versions do not name their study")
    assert stored(tmp_path).trials == []
    # A trial that has such a record is still not run again.
    assert driver.propose() is None
    driver.close()
    assert len(stored(tmp_path).trials) == 3


FEW = TREE | {"rounds": Open("int", (2, 4))}
"""A space with three trials."""


def second_driver(out: Path, trials: int = 3) -> Whole:
    """Return a driver of another study in the same folder."""
    spec = SearchSpec(out=out, trials=trials, study="second", sampler="random", sampler_seed=4)
    study = Study(open_storage(None, out), "second", FEW, Objective(), sampler="random", seed=4)
    return Whole(SearchRecorder("Which?", study, FEW, Workshop(), spec))


def own_trials(out: Path, study: str = "search") -> list:
    """Return summaries of the trials that the study has run, or that were restored in it."""
    return [summary_of(trial) for trial in Study(open_storage(None, out), study, FEW, Objective()).own]


def test_two_studies_in_one_folder_share_finished_trials_and_keep_their_own_records(tmp_path):
    first = driver_of(tmp_path, 2, tree=FEW)
    ran = [first.propose() for _ in range(2)]
    for trial in ran:
        report_trial(first, trial, "finished")
    assert first.propose() is None
    first.describe(over=True)
    first.close()
    before, known = kept_records(tmp_path), own_trials(tmp_path)
    second = second_driver(tmp_path)
    # The space has three trials, of which the first study has run two.
    (trial,) = iter(second.propose, None)
    report_trial(second, trial, "finished")
    assert second.propose() is None
    second.describe(over=True)
    second.close()
    assert trial.key not in {one.key for one in ran}
    assert len(own_trials(tmp_path, "second")) == 3
    assert {summary[1] for summary in own_trials(tmp_path, "second")} == {TrialState.COMPLETE}
    assert before.items() <= kept_records(tmp_path).items()
    assert own_trials(tmp_path) == known
    # The table has the trials of both studies, each once, with the name of their study.
    rows = search_table(read_results(tmp_path)).rows
    number = trial.plan.arm.removeprefix("trial ")
    firsts = [f"search {one.plan.arm.removeprefix('trial ')}" for one in ran]
    assert sorted(row[0] for row in rows) == sorted([*firsts, f"second {number}"])
    # Each study is restored from its own records, in either order.
    records, wanted = kept_records(tmp_path), own_trials(tmp_path, "second")
    for order in ((driver_of, second_driver), (second_driver, driver_of)):
        (tmp_path / "study.journal").unlink()
        for open_driver in order:
            again = open_driver(tmp_path, 2, tree=FEW) if open_driver is driver_of else open_driver(tmp_path)
            assert again.propose() is None
            again.describe(over=True)
            again.close()
        assert kept_records(tmp_path) == records
        assert own_trials(tmp_path) == known
        assert own_trials(tmp_path, "second") == wanted


def test_numbers_in_an_earlier_manifest_are_not_attributed_to_another_study(tmp_path):
    searched(tmp_path, 3)
    records = read_records(tmp_path)
    manifest = json.loads((tmp_path / "experiment.json").read_text())
    for one in manifest["planned"]:
        del one["study"]
    (tmp_path / "experiment.json").write_text(json.dumps(manifest))
    spec = SearchSpec(out=tmp_path)
    assert begun_numbers(records, spec) == {0, 1, 2}
    others = [dataclasses.replace(record, study="second") for record in records if record.arm == "trial 1"]
    assert begun_numbers(others, spec) == {0, 2}


def test_a_suggested_point_that_was_restored_from_a_record_is_not_tried_again(tmp_path):
    journal = searched(tmp_path, 3)
    rounds = stored(tmp_path).trials[1].params["rounds"]
    journal.unlink()
    driver = driver_of(tmp_path, 3, tree=WIDE)
    driver.study.suggest_first([{"rounds": rounds}, {"rounds": 59_000}])
    assert len(stored(tmp_path).trials) == 4
    driver.close()


def test_records_without_the_name_of_a_study_belong_to_the_only_study_of_the_folder(tmp_path):
    journal = searched(tmp_path, 6)
    wanted, records = [summary_of(trial) for trial in stored(tmp_path).trials], read_records(tmp_path)
    lines = journal.read_bytes().splitlines(keepends=True)
    for record in records:
        write_record(tmp_path, dataclasses.replace(record, study=""))
    for left in (len(lines) // 2, 0):
        journal.write_bytes(b"".join(lines[:left]))
        again = driver_of(tmp_path, 6, tree=WIDE)
        assert [summary_of(trial) for trial in stored(tmp_path).trials] == wanted
        assert again.propose() is None
        again.close()
    # The restored records name their study.
    assert {record.study for record in records} == {"search"}
    assert read_records(tmp_path) == records


def test_a_suggested_point_that_ran_when_the_study_was_lost_is_proposed_again(tmp_path):
    points = [{"rounds": 7}, {"rounds": 8}]
    first = driver_of(tmp_path, 2, tree=WIDE)
    first.study.suggest_first(points)
    running, other = first.propose(), first.propose()
    report_trial(first, other, "finished")
    first.describe()
    first.close()
    (tmp_path / "study.journal").unlink()
    again = driver_of(tmp_path, 2, tree=WIDE)
    again.study.suggest_first(points)
    proposed = again.propose()
    assert (proposed.key, proposed.plan.arm) == (running.key, "trial 0")
    report_trial(again, proposed, "finished")
    assert again.propose() is None
    again.close()


def summary_of(trial) -> list[object]:
    kept = {name: value for name, value in trial.user_attrs.items() if name != "node"}
    return [trial.number, trial.state, trial.params, trial.values, trial.intermediate_values, kept]


def test_a_value_that_is_not_finite_fails_and_still_has_its_record(tmp_path):
    driver = driver_of(tmp_path, trials=1)
    trial = driver.propose()
    driver.untested(trial, dataclasses.replace(WHOLE, history=[{"round": 1, "kd/loss": 1.0}]))
    driver.close()
    assert stored_trials(tmp_path)[0].state == TrialState.FAIL
    again = driver_of(tmp_path, trials=1)
    assert again.propose().key == trial.key
    again.ended(trial, ENDS["finished"])
    again.close()
    assert driver_of(tmp_path, trials=1).propose() is None
    assert len(read_records(tmp_path)) == 1


def test_every_trial_has_its_node_time_and_memory(tmp_path):
    driver = driver_of(tmp_path)
    for how in ENDS:
        report_trial(driver, driver.propose(), how)
    driver.close()
    for trial, outcome in zip(stored_trials(tmp_path), ENDS.values(), strict=True):
        attributes = trial.user_attrs
        assert (attributes["node"], attributes["time/wall_seconds"], attributes["memory/bytes"]) == (
            "far",
            2.0 * len(outcome.history),
            9,
        )
        assert attributes["config_hash"]
        assert attributes["teacher_hash"] == PREPARED.hashes["teacher"]
    assert {record.outcome.node for record in read_records(tmp_path)} == {"far"}


def test_a_trial_beyond_a_limit_is_marked_and_never_the_best(tmp_path):
    driver = driver_of(tmp_path, limits=("time/wall_seconds<=3", "proxy/kl<=2"))
    report_trial(driver, driver.propose(), "finished")
    report_trial(driver, driver.propose(), "pruned")
    driver.describe(over=True)
    driver.close()
    results = read_results(tmp_path)
    assert results.manifest.search["constraints"] == ["time/wall_seconds<=3", "proxy/kl<=2"]
    assert results.ranked == []
    table = search_table(results)
    assert [row[1] for row in table.rows] == ["finished, infeasible", "pruned"]
    assert "Infeasible trials violate one of time/wall_seconds<=3, proxy/kl<=2" in table.markdown()
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


def test_each_trial_is_added_to_the_manifest_once(tmp_path, monkeypatch):
    sizes = []
    whole = module.describe_experiment
    monkeypatch.setattr(
        module, "describe_experiment", lambda *args, **rest: sizes.append(len(args[2])) or whole(*args, **rest)
    )
    driver = driver_of(tmp_path, trials=6)
    keys = [driver.propose().key for _ in range(6)]
    driver.describe(over=True)
    driver.close()
    # Each call has at most one trial of each kind and the newest trial.
    assert max(sizes) == 2
    manifest = read_manifest(tmp_path)
    assert [trial["config_hash"] for trial in manifest.planned] == keys
    assert manifest.teacher["test_accuracy"] == 0.9
    assert manifest.cpu_seconds


def test_the_best_trials_are_run_again_with_and_without_guidance(finished: Path, home: Path, monkeypatch):
    tree, ran = read(home / "small.yaml"), {}

    def run(name, question, plans, options, **_):
        ran.update({(plan.arm, plan.seed): plan.config for plan in plans})
        return RunResult(options.out, complete=True, failed=0)

    monkeypatch.setattr(experiment, "run", run)
    run_again(tree, SearchFlags(out=finished), best=2, seeds=[5, 6])
    best = {place: one for place, one in ran.items() if place[0].split()[:-1] == ["trial"]}
    assert len(best) == 4
    for (arm, seed), config in best.items():
        alone = dataclasses.replace(config, guidance=NoGuidance())
        assert alone in ran.values()
        assert ran.get((f"{arm} unguided", seed), alone) == alone
    assert {arm for arm, _ in ran} - {arm for arm, _ in best} <= {"default", *(f"{arm} unguided" for arm, _ in best)}
