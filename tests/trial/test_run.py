import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from places import TESTS
from toy import make_prepared, toy_config

from condkd_ray.core import checkpoint as states
from condkd_ray.core.config import to_tree
from condkd_ray.core.method import Metrics
from condkd_ray.methods.distiller import Distiller
from condkd_ray.methods.guidance import Discriminator
from condkd_ray.methods.memory import Latest, Prioritized
from condkd_ray.trial.config import Prepared, TrialConfig
from condkd_ray.trial.loop import start
from condkd_ray.trial.outcome import load_outcome
from condkd_ray.trial.run import OutOfTimeError, PausedError, inherit, local_store, run_trial

CONFIG = toy_config(memory=Latest(), guidance=Discriminator(), rounds=10)
CHILD = """
import json, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from condkd_ray.trial.config import from_tree
from condkd_ray.trial.outcome import save_outcome
from condkd_ray.trial.run import local_store, run_trial
from condkd_ray.trial.loop import own_images
from toy import make_prepared
folder = Path(sys.argv[1])
stop_at = int(sys.argv[2])


def source(config, prepared, state, store):
    made = own_images(config, prepared, state, store)
    while state.round == stop_at:
        time.sleep(60)
    return made


config, prepared = from_tree(json.loads((folder / "task").read_text())), make_prepared()
outcome = run_trial(
    config,
    prepared,
    local_store(config, prepared, folder),
    checkpoint=folder / "state",
    on_round=lambda metrics: print(int(metrics["round"]), flush=True),
    checkpoint_seconds=0,
    source=source,
)
save_outcome(outcome, folder / "outcome")
"""


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return make_prepared()


def numbers(history: list[Metrics]) -> list[Metrics]:
    return [{k: v for k, v in metrics.items() if not k.startswith("time/")} for metrics in history]


def run(config: TrialConfig, prepared: Prepared, folder: Path | None = None, **options):
    return run_trial(config, prepared, local_store(config, prepared, folder), **options)


def start_child(folder: Path, stop_at: int = -1) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)}
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder), str(stop_at)], stdout=subprocess.PIPE, text=True, env=environment
    )


def test_a_trial_killed_in_the_middle_continues_to_the_same_numbers(tmp_path, prepared):
    (tmp_path / "task").write_text(json.dumps(to_tree(CONFIG)))
    # The child stops in its fifth round, after making the images.
    with start_child(tmp_path, stop_at=4) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if int(line) == 4:
                child.send_signal(signal.SIGKILL)
                break
    assert child.returncode == -signal.SIGKILL
    assert (tmp_path / "state").is_file()
    assert not (tmp_path / "outcome").exists()
    with start_child(tmp_path) as child:
        assert child.stdout is not None
        printed = [int(line) for line in child.stdout]
    assert child.returncode == 0
    assert printed == list(range(1, 11))
    continued = load_outcome(tmp_path / "outcome")
    undisturbed = run(CONFIG, prepared)
    assert numbers(continued.history) == numbers(undisturbed.history)
    assert continued.predictions == undisturbed.predictions
    assert torch.equal(continued.images, undisturbed.images)


def test_a_finished_checkpoint_is_only_evaluated_again(tmp_path, prepared):
    first = run(CONFIG, prepared, tmp_path, checkpoint=tmp_path / "state")
    written = (tmp_path / "state").stat().st_mtime_ns
    again = run(CONFIG, prepared, tmp_path, checkpoint=tmp_path / "state")
    assert (tmp_path / "state").stat().st_mtime_ns == written
    assert (again.metrics, again.predictions) == (first.metrics, first.predictions)


def test_chunks_of_a_run_killed_before_its_first_checkpoint_are_ignored(tmp_path, prepared):
    lost = toy_config(seed=7, memory=Latest(), guidance=Discriminator(), rounds=1)
    run(lost, prepared, tmp_path)
    assert any((tmp_path / "chunks").iterdir())
    assert numbers(run(CONFIG, prepared, tmp_path).history) == numbers(run(CONFIG, prepared).history)


def test_with_rare_checkpoints_the_numbers_are_the_same(tmp_path, prepared):
    often = run(CONFIG, prepared, tmp_path / "a", checkpoint=tmp_path / "a" / "state", checkpoint_seconds=0)
    never = run(CONFIG, prepared, tmp_path / "b", checkpoint=tmp_path / "b" / "state", checkpoint_seconds=1e9)
    assert numbers(often.history) == numbers(never.history)
    assert (tmp_path / "b" / "state").is_file()  # the last round is always saved


def test_a_trial_stopped_at_its_deadline_continues_from_its_checkpoint_to_the_same_numbers(
    tmp_path, prepared, monkeypatch
):
    rows, deadline = [], time.time() + 3600

    def on_round(metrics: Metrics) -> None:
        rows.append(metrics)
        if len(rows) == 3:
            late = SimpleNamespace(time=lambda: deadline, monotonic=time.monotonic)
            monkeypatch.setattr("condkd_ray.trial.run.time", late)

    config = toy_config(rounds=20)
    rest = {"checkpoint": tmp_path / "state", "checkpoint_seconds": 1e9}
    with pytest.raises(OutOfTimeError):
        run(config, prepared, tmp_path, on_round=on_round, deadline=deadline, **rest)
    # The clock is read between the end of a round and its `on_round`.
    assert len(rows) == 4
    whole = run(config, prepared, tmp_path, deadline=deadline + 1, **rest)
    # The times are equal too, so these rounds were not computed again.
    assert whole.history[:4] == rows
    assert numbers(whole.history) == numbers(run(config, prepared).history)


def test_a_nan_ends_the_trial_as_failed_naming_round_and_term(tmp_path, prepared):
    rows: list[Metrics] = []
    healthy = toy_config(rounds=4, distiller=Distiller(steps=2, batch=16, condensed_share=0.25))
    broken = make_prepared()

    def sabotage(metrics: Metrics) -> None:
        rows.append(metrics)
        if len(rows) == 2:
            assert broken.condensed is not None
            broken.condensed.images.fill_(float("nan"))

    outcome = run(healthy, broken, tmp_path, checkpoint=tmp_path / "state", on_round=sabotage)
    assert outcome.status == "failed"
    assert outcome.reason == "round 3: loss term kd/loss is not finite at step 1"
    assert outcome.history == rows
    assert (outcome.predictions, outcome.images) == ([], None)
    assert outcome.threads == torch.get_num_threads()
    assert outcome.peak_bytes > 10_000_000


def test_a_diverged_student_ends_the_trial_as_failed_also_under_a_memory_with_feedback(prepared):
    diverging = Distiller(steps=4, batch=16, lr=1e20, warm_up=0.0)
    outcome = run(toy_config(memory=Prioritized(scale=0.02), distiller=diverging), prepared)
    assert outcome.status == "failed"
    assert outcome.reason == "round 1: loss term kd/loss is not finite at step 2"


def test_a_run_without_a_folder_keeps_only_live_samples_in_memory(prepared):
    history = run(toy_config(memory=Latest(), rounds=5), prepared).history
    assert {metrics["memory/bytes"] for metrics in history} == {16 * (64 + 8)}
    growing = run(toy_config(rounds=3), prepared).history
    assert [metrics["memory/bytes"] for metrics in growing] == [k * 16 * (64 + 8) for k in (1, 2, 3)]


def test_files_of_dropped_samples_are_deleted_once_no_checkpoint_needs_them(tmp_path, prepared):
    config = toy_config(memory=Latest(), rounds=3)
    run(config, prepared, tmp_path, checkpoint=tmp_path / "state", checkpoint_seconds=0)
    assert [path.name for path in (tmp_path / "chunks").glob("*.arrow")] == ["0000000032-0000000048.arrow"]


PAUSING = toy_config(rounds=4, distiller=Distiller(steps=2, batch=16, condensed_share=0.25, lr=0.1, momentum=0.9))


@pytest.fixture(scope="module")
def paused(prepared, tmp_path_factory):
    path = tmp_path_factory.mktemp("paused") / "state.safetensors"
    with pytest.raises(PausedError):
        run_trial(
            *(PAUSING, prepared, local_store(PAUSING, prepared, path.parent)),
            **{"checkpoint": path, "pause_after": 2, "checkpoint_seconds": math.inf},
        )
    return path


def test_a_paused_trial_leaves_a_checkpoint_of_its_round(prepared, paused):
    assert states.load(start(PAUSING, prepared), paused).round == 2


def test_a_trial_that_inherits_a_state_of_the_same_config_gives_the_same_numbers(prepared, paused):
    inherit(PAUSING, prepared, paused, paused.with_name("inherited.safetensors"))
    store = local_store(PAUSING, prepared, paused.parent)
    inherited = run_trial(PAUSING, prepared, store, checkpoint=paused.with_name("inherited.safetensors"))
    whole = run_trial(PAUSING, prepared, local_store(PAUSING, prepared, None))
    assert inherited.predictions == whole.predictions
    assert inherited.history[-1]["proxy/kl"] == whole.history[-1]["proxy/kl"]


def test_an_inherited_state_keeps_weights_and_schedule_step_and_gets_the_rates_of_the_new_config(prepared, paused):
    config = dataclasses.replace(
        PAUSING,
        distiller=dataclasses.replace(PAUSING.distiller, lr=0.02, momentum=0.5),
        inversion=dataclasses.replace(PAUSING.inversion, lr=3e-4)
        if hasattr(PAUSING.inversion, "lr")
        else PAUSING.inversion,
    )
    before = states.load(start(PAUSING, prepared), paused)
    inherit(config, prepared, paused, paused.with_name("other.safetensors"))
    after = states.load(start(config, prepared), paused.with_name("other.safetensors"))
    for ours, theirs in zip(after.distiller.student.parameters(), before.distiller.student.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    (group,), (old,) = after.distiller.optimizer.param_groups, before.distiller.optimizer.param_groups
    assert (group["initial_lr"], group["momentum"], group["nesterov"]) == (0.02, 0.5, False)
    assert group["lr"] == pytest.approx(old["lr"] * 0.2)
    assert after.distiller.schedule.last_epoch == before.distiller.schedule.last_epoch == 4
    assert after.distiller.schedule.base_lrs == [0.02]
    after.distiller.optimizer.step()
    after.distiller.schedule.step()
    whole = config.distiller.init(after.distiller.student, 8 // config.distiller.steps)
    factor = whole.schedule.lr_lambdas[0](5)
    assert group["lr"] == pytest.approx(0.02 * factor)
    assert (after.round, after.num_ids) == (before.round, before.num_ids)
