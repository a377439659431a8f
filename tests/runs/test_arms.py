"""The standard arms: they differ only in where the condensed images are used."""

from dataclasses import dataclass, fields, replace
from typing import get_args

import pytest
from toy import toy_config

from condkd_ray.commands.experiment import Flags
from condkd_ray.core.method import InputError, Schedule
from condkd_ray.methods.condensation import AllReal
from condkd_ray.methods.distiller import Distiller
from condkd_ray.methods.guidance import Mmd, NoGuidance
from condkd_ray.methods.inversion import AnyInversion, Fast, NoInversion
from condkd_ray.methods.inversion.inversion import Inversion
from condkd_ray.methods.targets import Soft
from condkd_ray.runs.arms import ONCE, PRIOR, Arm, Prior, arm

BOTH = ("mixed", "mixed_prior", "guided")
FALL = Schedule(end=0.5)
BASE = toy_config(guidance=Mmd(), distiller=Distiller(condensed_share=0.25, share_schedule=FALL))


@pytest.mark.parametrize(
    ("name", "condensed", "inverts", "guides", "share"),
    [
        ("none", False, True, False, 0.0),
        ("condensed_only", True, False, False, 1.0),
        ("mixed", True, True, False, 0.25),
        ("mixed_prior", True, True, False, 0.25),
        ("guided", True, True, True, 0.25),
        ("guided_only", True, True, True, 0.0),
    ],
)
def test_an_arm_decides_where_the_condensed_images_are_used(name, condensed, inverts, guides, share):
    plan = arm(BASE, name, 2, 7)
    config = plan.config
    assert (config.condensation is not None) == condensed
    assert (not isinstance(config.inversion, NoInversion)) == inverts
    assert (not isinstance(config.guidance, NoGuidance)) == guides
    assert config.distiller.condensed_share == share
    assert (config.distiller.share_schedule == FALL) == (name in BOTH)
    assert (plan.arm, plan.ipc, plan.seed, config.seed) == (name, 2 if condensed else 0, 7, 7)


@pytest.mark.parametrize("name", get_args(Arm))
def test_arms_with_condensed_and_synthetic_images_mix_them_as_the_base_config_does(name):
    base = replace(BASE, distiller=Distiller(condensed_share=0.25, mix="concat"))
    distiller = arm(base, name, 2, 0).config.distiller
    assert distiller.mix == ("concat" if name in BOTH else "share")
    assert distiller.concatenates == (name in BOTH)


@pytest.mark.parametrize("name", get_args(Arm))
def test_arms_with_condensed_images_in_the_batch_augment_them_as_the_base_config_does(name):
    base = replace(BASE, distiller=Distiller(condensed_share=0.25, condensed_augment="dsa"))
    config = arm(base, name, 2, 0).config
    used = config.distiller.condensed_share > 0 and name != "real"
    assert config.distiller.condensed_augment == ("dsa" if used else "batch")


def test_the_arm_real_uses_all_real_images_and_no_inversion():
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


def test_a_label_replaces_the_name_of_the_arm():
    assert arm(BASE, "mixed", 2, 0, "mixed_curriculum").arm == "mixed_curriculum"
    assert set(ONCE) == {"none", "real"}


HOSTS = [kind for kind in get_args(AnyInversion) if kind is not NoInversion]


@pytest.mark.parametrize("kind", HOSTS, ids=lambda kind: kind.__name__)
def test_guided_arms_and_mixed_prior_share_one_class_prior_and_other_arms_keep_the_published_one(kind):
    base, prior = toy_config(inversion=kind(), guidance=Mmd()), Prior(30.0, 4.0)
    found = {name: arm(base, name, 2, 0, prior=prior).config for name in get_args(Arm)}
    for name in ("none", "mixed"):
        assert found[name].inversion == base.inversion
    tempered = replace(base.inversion, oh_weight=30.0, oh_temperature=4.0)
    for name in ("mixed_prior", "guided", "guided_only"):
        assert found[name].inversion == tempered
    assert found["mixed_prior"] == replace(found["mixed"], inversion=tempered)
    assert found["mixed_prior"] == replace(found["guided"], guidance=NoGuidance())
    assert arm(base, "guided", 2, 0).config.inversion == replace(tempered, oh_weight=100.0, oh_temperature=4.0)


def test_without_a_prior_guided_keeps_the_inversion_of_the_host_and_mixed_prior_is_refused():
    none = Prior(0.0, 8.0)
    assert arm(BASE, "guided", 2, 0, prior=none).config == replace(
        arm(BASE, "mixed", 2, 0).config, guidance=BASE.guidance
    )
    for same in (none, Prior(0.5, 1.0)):
        with pytest.raises(
            InputError, match=r"prior of the arm mixed_prior .*weight .*accepted: a prior other than .* equals mixed"
        ):
            arm(BASE, "mixed_prior", 2, 0, prior=same)


def test_soft_targets_keep_their_temperature_and_refuse_another():
    base = toy_config(inversion=Fast(), targets=Soft(temperature=20.0), guidance=Mmd())
    for prior in (PRIOR, Prior(100.0, 20.0)):
        assert arm(base, "guided", 2, 0, prior=prior).config.inversion == Fast(oh_weight=100.0)
    message = "--prior-temperature beside targets soft is 5.0; accepted: 20, the targets' own, .* or --prior-weight 0"
    with pytest.raises(InputError, match=message):
        arm(base, "mixed_prior", 2, 0, prior=Prior(100.0, 5.0))
    assert arm(base, "guided", 2, 0, prior=Prior(0.0, 4.0)).config.inversion == Fast()
    assert arm(base, "mixed", 2, 0, prior=Prior(100.0, 5.0)).config.inversion == Fast()


CONDITIONAL = [kind for kind in HOSTS if "conditional" in {field.name for field in fields(kind)}]


@pytest.mark.parametrize("kind", CONDITIONAL, ids=lambda kind: kind.__name__)
def test_arms_without_guidance_refuse_a_conditional_generator_without_its_weight(kind):
    base = toy_config(inversion=kind(conditional=True, oh_weight=0.0), guidance=Mmd())
    for name in ("none", "mixed"):
        message = (
            f"oh_weight of inversion {kind().name}, conditional, in the arm {name} is 0.0; accepted: a number > 0: "
        )
        with pytest.raises(InputError, match=message):
            arm(base, name, 2, 0)
    for name in ("condensed_only", "mixed_prior", "guided", "guided_only", "real"):
        arm(base, name, 2, 0)
    weighted = replace(base, inversion=kind(conditional=True, oh_weight=0.1))
    assert all(arm(weighted, name, 2, 0).config.inversion == weighted.inversion for name in ("none", "mixed"))


@dataclass(frozen=True, kw_only=True)
class Strange(Inversion[None]):
    """A user-defined inversion without a class prior."""

    name: str = "strange"
    pixel_space = "unit"

    @property
    def images_per_round(self):
        return 64

    def init(self, teacher, rng):
        pass

    def synthesize(self, *_, **__):
        raise NotImplementedError


def test_an_inversion_without_a_class_prior_is_refused_where_an_arm_needs_one():
    base = toy_config(inversion=Strange(), guidance=Mmd())
    message = "inversion of the arm {} is 'strange'; accepted: one with the fields oh_weight and oh_temperature"
    for name in ("mixed_prior", "guided", "guided_only"):
        with pytest.raises(InputError, match=f"{message.format(name)}, such as fast; or --prior-weight 0"):
            arm(base, name, 2, 0)
    assert arm(base, "guided", 2, 0, prior=Prior(0.0, 8.0)).config.inversion == Strange()
    assert arm(base, "mixed", 2, 0).config.inversion == Strange()


@pytest.mark.parametrize(("weight", "temperature", "flag"), [
    (-1.0, 8.0, "--prior-weight is -1.0"), (float("inf"), 8.0, "--prior-weight is inf"),
    (float("nan"), 8.0, "--prior-weight is nan"), (100.0, 0.0, "--prior-temperature is 0.0"),
    (100.0, float("nan"), "--prior-temperature is nan"),
])  # fmt: skip
def test_the_flags_refuse_an_invalid_prior_for_any_arms(weight, temperature, flag):
    with pytest.raises(InputError, match=flag):
        Flags(prior_weight=weight, prior_temperature=temperature).base()
