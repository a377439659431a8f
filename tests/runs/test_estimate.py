"""The estimate before a run: what it counts, that it writes nothing, and that the run stays within its bounds."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import pytest
from places import EXPERIMENTS, SPACES
from toy import make_prepared, toy_config

from condkd_ray.commands.experiment import Flags
from condkd_ray.core.method import InputError, NonFiniteError
from condkd_ray.core.records import read_manifest, read_records, write_manifest, write_record
from condkd_ray.methods.condensation import (
    DistributionMatching,
    GradientMatching,
    Herding,
    SqueezeRecover,
    TrajectoryMatching,
)
from condkd_ray.methods.distiller import Distiller
from condkd_ray.methods.inversion import Fast
from condkd_ray.methods.supervised import TeacherConfig
from condkd_ray.models import ResNet
from condkd_ray.runs.arms import arm, spread
from condkd_ray.runs.estimate import (
    Estimate,
    Span,
    Workload,
    estimate,
    explain,
    explain_search,
    finished_before,
    hull,
    makespan,
    probe_set,
    probe_teacher,
    probe_trial,
)
from condkd_ray.runs.options import Options
from condkd_ray.runs.recorder import make_record
from condkd_ray.study.space import parse, read
from condkd_ray.trial.artifacts import StandIns, Workshop
from condkd_ray.trial.config import Pipeline
from condkd_ray.trial.plan import Plan, trial_hash
from condkd_ray.trial.run import local_store, run_trial

SCRIPT, SPACE = EXPERIMENTS / "ablate_ipc.py", SPACES / "guidance.yaml"
T = TypeVar("T")


SMALL = {"steps": 1, "batch": 32, "latent": 16, "width": 8}


def plans(seeds=(0, 1), **changes) -> list[Plan]:
    base = replace(
        Flags().base(),
        teacher=TeacherConfig(network=ResNet(depth=8, width=4)),
        distiller=Distiller(steps=2, batch=32, condensed_share=0.5),
        condensation=DistributionMatching(ipc=2, condensed_together=2, iterations=20),
        rounds=6,
        **{"inversion": Fast(**SMALL)} | changes,
    )
    return [arm(base, name, 2, seed) for name in ("none", "guided") for seed in seeds]


def test_the_makespan_schedules_trials_in_their_order():
    assert makespan([4, 1, 1, 1, 1], 2) == 4
    assert makespan([1, 1, 1, 1, 4], 2) == 6
    assert makespan([3, 2], 1) == 5


def test_explaining_a_run_that_never_ran_writes_nothing(cluster, tmp_path):
    flags = Options(out=tmp_path / "out", cache=tmp_path / "cache", max_concurrent=1)
    text = explain("ablate_ipc", plans(), flags, "cpu")
    assert list(tmp_path.iterdir()) == []
    assert "4 trials, 0 of them finished" in text
    assert "at once      1, with 1 CPUs and 0 GPUs each" in text
    assert "a few rounds, a stand-in for the teacher, of one trial for 2 arms, on this machine" in text
    assert "share" not in text
    shared = [replace(plan, scope="inversion") for plan in plans(seeds=(0,), inversion=Fast(adv_weight=0, **SMALL))]
    assert "each trial making its own images: those that share them" in explain("ablate_ipc", shared, flags, "cpu")


@pytest.mark.slow
def test_producers_need_cpus_and_memory_and_may_save_time(cluster, tmp_path):
    flags = Options(out=tmp_path / "out", cache=tmp_path / "cache", cpus_per_trial=0.5, cpus_per_producer=0.5)
    alone, helped = Workload(plans(seeds=(0,)), {}), Workload(plans(seeds=(0,), pipeline=Pipeline()), {})
    assert estimate(alone, flags, "cpu").at_once == 2
    found = estimate(helped, replace(flags, cpus_per_producer=1.0), "cpu")
    assert found.at_once == 1
    assert found.trial_memory.high > 4 * found.trial_memory.low
    assert helped.costs["none"].wall.high > 4 * helped.costs["none"].wall.low
    with pytest.raises(InputError, match=r"resources per trial is '0\.5 CPUs and 1 producers of 9 CPUs'"):
        estimate(helped, replace(flags, cpus_per_producer=9.0), "cpu")


@pytest.mark.slow
def test_more_rounds_have_a_longer_estimate(cluster, tmp_path):
    flags = Options(out=tmp_path / "out", cache=tmp_path / "cache")
    short, long = (
        Workload(plans(seeds=(0,)), {}),
        Workload([replace(plan, config=replace(plan.config, rounds=2000)) for plan in plans(seeds=(0,))], {}),
    )
    for work in (short, long):
        estimate(work, flags, "cpu")
    for arm_name in ("none", "guided"):
        assert long.costs[arm_name].cpu.low > 20 * short.costs[arm_name].cpu.high
        # A checkpoint's size, the lower bound, does not grow with the rounds.
        spans = [work.costs[arm_name].working for work in (short, long)]
        chunks = [span.high - span.low for span in spans]
        assert chunks[1] > 20 * chunks[0] > 0


def test_finished_trials_are_not_counted_and_their_records_give_the_time_of_others(cluster, tmp_path):
    planned, prepared = plans(), make_prepared(condensed=False)
    outcome = replace(
        run_trial(short := replace(planned[0].config, rounds=1), prepared, local_store(short, prepared, None)),
        metrics={"student/test_accuracy": 0.5, "time/wall_seconds": 200.0, "time/cpu_seconds": 100.0},
    )
    key = trial_hash(planned[0].config, prepared)
    write_record(tmp_path, make_record("ablate_ipc", planned[0], key, prepared, outcome))
    assert list(finished_before(planned, tmp_path)) == planned[:1]
    assert finished_before([replace(planned[0], scope="inversion")], tmp_path) == {}
    older = replace(read_records(tmp_path)[0], numbers=1)
    write_record(tmp_path / "older", older)
    assert finished_before(planned, tmp_path / "older") == {}
    flags = Options(out=tmp_path, cache=tmp_path / "cache")
    work = Workload(planned[:2], finished_before(planned[:2], tmp_path))
    found = estimate(work, flags, "cpu")
    assert work.costs["none"].cpu == Span(80, 140)
    assert work.based_on == ["records of 1 finished trials for 1 arms"]
    assert 160 < found.wall.low < found.wall.high < 500
    assert "1 of them finished" in explain("ablate_ipc", planned, flags, "cpu")
    assert "0 of them finished" in explain("ablate_ipc", planned, replace(flags, fresh=True), "cpu")


def test_a_search_is_estimated_from_the_corners_of_its_space(cluster, tmp_path):
    tree = parse("""
        data: {name: digits}
        teacher: {network: {name: resnet, depth: 8, width: 4}}
        student: {name: resnet, depth: 8, width: 4}
        inversion: {name: fast, batch: 32, latent: 16, width: 8, steps: !int [1, 40]}
        distiller: {steps: 2, batch: 32}
        rounds: 6
    """)
    flags = Options(out=tmp_path / "out", cache=tmp_path / "cache", max_concurrent=1)
    text = explain_search(tree, flags, "cpu", trials=10)
    assert list(tmp_path.iterdir()) == []
    assert "10 trials to run" in text
    table = text[text.index("Corners of the space") : text.index("at once")].splitlines()
    assert [line.split()[0] for line in table[3:6]] == ["default", "lowest", "highest"]
    assert explain_search(tree, flags, "cpu", trials=0) == "Nothing is left to run.\n"


def test_each_teacher_that_must_be_trained_is_counted(tmp_path):
    flags = Options(out=tmp_path / "out", cache=tmp_path / "cache")
    for teachers in (1, 2):
        stand_ins = StandIns()
        workshop = Workshop(flags.cache, stand_ins=stand_ins)
        for plan in spread(plans(), (0, 1), teachers):
            workshop.teacher(plan.config)
        assert len(stand_ins.teachers) == teachers


def test_a_plan_without_unfinished_trials_has_nothing_left_to_run(cluster, tmp_path, monkeypatch):
    planned = plans(seeds=(0,))
    monkeypatch.setattr("condkd_ray.runs.estimate.finished_before", lambda plans, out: dict.fromkeys(plans))
    assert explain("x", planned, Options(out=tmp_path), "cpu").endswith("\nNothing is left to run.\n")


def test_a_folder_of_another_experiment_is_refused(tmp_path):
    from condkd_ray.core.records import Manifest

    write_manifest(tmp_path, Manifest(experiment="other", question="", command="", created=""))
    with pytest.raises(InputError, match="holds experiment 'other'"):
        explain("ablate_ipc", plans(), Options(out=tmp_path), "cpu")


def one_of_each(args: Flags) -> Estimate:
    """Estimate one trial of each arm. It must run in a process of its own, because the memory is measured."""
    names = ("none", "condensed_only", "mixed", "guided", "real")
    return estimate(Workload([arm(args.base(), name, 1, 0) for name in names], {}), args, "cpu")


@pytest.mark.slow
@pytest.mark.ray
def test_an_ablation_stays_within_its_estimate(tmp_path):
    """Digits with the default budget, one trial of each arm, nothing cached."""
    flags = ["--ipcs", "1", "--seeds", "0", "--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]
    args = Flags(ipcs=(1,), seeds=(0,), out=tmp_path / "out", cache=tmp_path / "cache")
    found = alone(one_of_each, args)
    assert not any(tmp_path.iterdir())
    check(found, [str(SCRIPT), *flags], tmp_path / "out")


def a_search(args: Options) -> Estimate:
    """Estimate a search of four trials. As `one_of_each`, it must run in a process of its own."""
    tree = read(SPACE)
    return estimate(Workload.of_corners(tree), args, "cpu", whole=Workload.of_search(tree, 4))


@pytest.mark.slow
@pytest.mark.ray
def test_a_search_stays_within_its_estimate(tmp_path):
    """Digits with the default budget. The trials are proposed during the search, so the estimate is a range."""
    flags = ["--trials", "4", "--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]
    found = alone(a_search, Options(out=tmp_path / "out", cache=tmp_path / "cache"))
    assert not any(tmp_path.iterdir())
    check(found, ["-m", "condkd_ray", "search", str(SPACE), *flags], tmp_path / "out")


def alone(measure: Callable[[T], Estimate], args: T) -> Estimate:
    """Return the estimate, computed in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, args).result()


def check(found: Estimate, command: list[str], out: Path) -> None:
    """Run the command and compare its times, files and memory with the estimate."""
    begin = time.perf_counter()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *command], check=True, capture_output=True, env=environment)
    wall = time.perf_counter() - begin
    assert found.wall.low < wall < found.wall.high
    assert found.cpu.low < (read_manifest(out).cpu_seconds or 0) < found.cpu.high
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    assert found.kept.low < size < found.kept.high
    peak = max(record.outcome.peak_bytes for record in read_records(out))
    assert found.trial_memory.low < peak < found.trial_memory.high


def test_spans_are_added_and_multiplied_bound_by_bound():
    assert Span(1, 2) + Span(3, 5) == Span(4, 7)
    assert Span(1, 2) * 3 == Span(3, 6)
    assert Span(1, 2) * Span(2, 5) == Span(2, 10)
    assert hull([2.0, Span(1, 3), 5.0]) == Span(1, 5)


def test_a_probe_of_a_trial_measures_its_time_files_and_memory(tmp_path):
    config = toy_config(rounds=100)
    cost = probe_trial(Plan("guided", 2, 0, config), make_prepared(), tmp_path)
    assert 0 < cost.wall.low < cost.wall.high
    assert 0 < cost.cpu.low <= cost.wall.high
    assert cost.product.high > cost.product.low > 0
    # 100 rounds of 16 images of 64 pixels; their logits come on top.
    assert cost.working.high - cost.working.low > 100 * 16 * 64
    assert cost.kept.high > cost.kept.low > 0
    assert cost.memory.low > 100e6


def test_a_probe_of_a_diverging_trial_raises_the_name_of_the_loss(tmp_path):
    config = toy_config()
    config = replace(config, distiller=replace(config.distiller, lr=1e30))
    with pytest.raises(NonFiniteError, match="kd/loss"):
        probe_trial(Plan("guided", 2, 0, config), make_prepared(), tmp_path)


def test_a_workshop_with_stand_ins_makes_nothing_and_lists_each_missing_artifact_once(tmp_path):
    stand_ins = StandIns()
    workshop = Workshop(tmp_path / "cache", stand_ins=stand_ins)
    for plan in plans():
        prepared = workshop.prepare(plan.config)
        assert len(prepared.condensed or []) == (20 if plan.arm == "guided" else 0)
    assert len(stand_ins.teachers) == 1
    assert [(config.seed, method.name) for config, method in stand_ins.sets.values()] == [
        (0, "distribution_matching"),
        (1, "distribution_matching"),
    ]
    assert not (tmp_path / "cache").exists()


def test_a_workshop_with_stand_ins_uses_cached_artifacts(tmp_path):
    config = plans()[-1].config
    config = replace(config, teacher=replace(config.teacher, training=replace(config.teacher.training, epochs=2)))
    true = Workshop(tmp_path).prepare(config)
    stand_ins = StandIns()
    assert Workshop(tmp_path, stand_ins=stand_ins).prepare(config).hashes == true.hashes
    assert stand_ins == StandIns({}, {})


@pytest.mark.parametrize(
    "method",
    [
        TrajectoryMatching(ipc=1, condensed_together=1, experts=1, width=8, depth=1, steps=1),
        GradientMatching(ipc=1, condensed_together=1, outer=1, inner=1, width=8, depth=1),
        SqueezeRecover(ipc=1),
        Herding(ipc=1, width=8, depth=1),
    ],
    ids=lambda method: method.name,
)
def test_a_probe_of_a_condenser_runs_only_a_part_of_its_work(tmp_path, method):
    workshop, config = Workshop(tmp_path, stand_ins=StandIns()), plans()[-1].config
    taken = probe_set(config, method, workshop)
    assert 0 < taken.low < taken.high


def test_the_training_of_a_teacher_is_estimated_from_some_of_its_steps(tmp_path):
    workshop, config = Workshop(tmp_path, stand_ins=StandIns()), plans()[0].config
    short = probe_teacher(config, workshop)
    longer = replace(config.teacher, training=replace(config.teacher.training, epochs=4000))
    assert probe_teacher(replace(config, teacher=longer), workshop).low > 5 * short.high
