"""The standard arms: they differ in who sees the condensed images, and in nothing else."""

from dataclasses import replace
from typing import get_args

import pytest
from toy import toy_config

from condkd_ray.core.method import Schedule
from condkd_ray.methods.condensation import AllReal
from condkd_ray.methods.distiller import Distiller
from condkd_ray.methods.guidance import Mmd, NoGuidance
from condkd_ray.methods.inversion import NoInversion
from condkd_ray.runs.arms import ONCE, Arm, arm

FALL = Schedule(end=0.5)
BASE = toy_config(guidance=Mmd(), distiller=Distiller(condensed_share=0.25, share_schedule=FALL))


@pytest.mark.parametrize(
    ("name", "condensed", "inverts", "guides", "share"),
    [
        ("none", False, True, False, 0.0),
        ("condensed_only", True, False, False, 1.0),
        ("mixed", True, True, False, 0.25),
        ("guided", True, True, True, 0.25),
        ("guided_only", True, True, True, 0.0),
    ],
)
def test_who_sees_the_condensed_images(name, condensed, inverts, guides, share):
    plan = arm(BASE, name, 2, 7)
    config = plan.config
    assert (config.condensation is not None) == condensed
    assert (not isinstance(config.inversion, NoInversion)) == inverts
    assert (not isinstance(config.guidance, NoGuidance)) == guides
    assert config.distiller.condensed_share == share
    assert (config.distiller.share_schedule == FALL) == (name in ("mixed", "guided"))
    assert (plan.arm, plan.ipc, plan.seed, config.seed) == (name, 2 if condensed else 0, 7, 7)


@pytest.mark.parametrize("name", get_args(Arm))
def test_where_both_kinds_are_seen_they_are_mixed_as_the_base_says(name):
    base = replace(BASE, distiller=Distiller(condensed_share=0.25, mix="concat"))
    distiller = arm(base, name, 2, 0).config.distiller
    assert distiller.mix == ("concat" if name in ("mixed", "guided") else "share")
    assert distiller.concatenates == (name in ("mixed", "guided"))


@pytest.mark.parametrize("name", get_args(Arm))
def test_every_arm_whose_student_sees_condensed_images_has_them_augmented_as_the_base_says(name):
    base = replace(BASE, distiller=Distiller(condensed_share=0.25, condensed_augment="dsa"))
    config = arm(base, name, 2, 0).config
    sees = config.distiller.condensed_share > 0 and name != "real"
    assert config.distiller.condensed_augment == ("dsa" if sees else "batch")


def test_real_sees_all_real_images_and_no_others():
    config = arm(BASE, "real", 0, 0).config
    assert isinstance(config.condensation, AllReal)
    assert isinstance(config.inversion, NoInversion)


@pytest.mark.parametrize("name", get_args(Arm))
def test_all_arms_take_the_same_student_steps(name):
    config = arm(BASE, name, 2, 0).config
    assert (config.rounds, config.distiller.steps, config.distiller.batch) == (
        BASE.rounds,
        BASE.distiller.steps,
        BASE.distiller.batch,
    )
    differ = ("seed", "condensation", "inversion", "guidance", "memory", "distiller")
    left_alone = replace(config, **{part: getattr(BASE, part) for part in differ})
    assert left_alone == BASE


def test_a_label_is_the_name_in_tables():
    assert arm(BASE, "mixed", 2, 0, "mixed_curriculum").arm == "mixed_curriculum"
    assert set(ONCE) == {"none", "real"}
