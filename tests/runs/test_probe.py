from dataclasses import replace

import pytest
from toy import make_prepared, toy_config

from condkd_ray.core.method import NonFiniteError
from condkd_ray.methods.condensation import GradientMatching, Herding, SqueezeRecover, TrajectoryMatching
from condkd_ray.runs.estimate import Span, hull, probe_set, probe_teacher, probe_trial
from condkd_ray.trial.artifacts import StandIns, Workshop
from condkd_ray.trial.plan import Plan
from runs.test_estimate import plans


def test_spans_are_added_and_multiplied_bound_by_bound():
    assert Span(1, 2) + Span(3, 5) == Span(4, 7)
    assert Span(1, 2) * 3 == Span(3, 6)
    assert Span(1, 2) * Span(2, 5) == Span(2, 10)
    assert hull([2.0, Span(1, 3), 5.0]) == Span(1, 5)


def test_a_trial_is_tried_and_its_files_measured(tmp_path):
    config = toy_config(rounds=100)
    cost = probe_trial(Plan("guided", 2, 0, config), make_prepared(), tmp_path)
    assert 0 < cost.wall.low < cost.wall.high
    assert 0 < cost.cpu.low <= cost.wall.high
    assert cost.product.high > cost.product.low > 0
    # 100 rounds of 16 images of 64 pixels, and their logits.
    assert cost.working.high - cost.working.low > 100 * 16 * 64
    assert cost.kept.high > cost.kept.low > 0
    assert cost.memory.low > 100e6


def test_a_trial_that_diverges_says_so(tmp_path):
    config = toy_config()
    config = replace(config, distiller=replace(config.distiller, lr=1e30))
    with pytest.raises(NonFiniteError, match="kd/loss"):
        probe_trial(Plan("guided", 2, 0, config), make_prepared(), tmp_path)


def test_with_stand_ins_a_workshop_makes_nothing_and_lists_what_there_is_to_make_once(tmp_path):
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


def test_what_is_cached_is_taken_as_it_is(tmp_path):
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
def test_every_condenser_is_tried_without_doing_its_work(tmp_path, method):
    workshop, config = Workshop(tmp_path, stand_ins=StandIns()), plans()[-1].config
    taken = probe_set(config, method, workshop)
    assert 0 < taken.low < taken.high


def test_a_teachers_training_is_measured_by_some_of_its_steps(tmp_path):
    workshop, config = Workshop(tmp_path, stand_ins=StandIns()), plans()[0].config
    short = probe_teacher(config, workshop)
    longer = replace(config.teacher, training=replace(config.teacher.training, epochs=4000))
    assert probe_teacher(replace(config, teacher=longer), workshop).low > 5 * short.high
