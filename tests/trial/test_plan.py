import copy
from dataclasses import replace
from typing import get_args

import pytest
import torch
import toy
from contracts.toy_methods import small
from toy_dense import dense_config, make_dense_prepared

from condkd_ray.core.method import Schedule
from condkd_ray.core.rng import Streams
from condkd_ray.methods.distiller import Distiller
from condkd_ray.methods.guidance import Discriminator
from condkd_ray.methods.inversion import AnyInversion, Cmi, DeepInversion, Fast, Nayer, NoInversion
from condkd_ray.methods.memory import Latest
from condkd_ray.methods.targets import Layouts
from condkd_ray.methods.weighing import Modulating
from condkd_ray.models import ResNet
from condkd_ray.trial.config import Pipeline
from condkd_ray.trial.plan import NUMBERS, can_share, pool_key, production_key, trial_hash
from condkd_ray.trial.synthesis import begin, produce

FREE = toy.toy_config(inversion=DeepInversion(steps=2, batch=16))
"""A config whose images do not depend on the student."""


def key(**changes) -> str:
    return production_key(replace(FREE, **changes), toy.make_prepared())


@pytest.mark.parametrize(
    "changes",
    [
        {"rounds": 9},
        {"student": ResNet(depth=8, width=4)},
        {"memory": Latest()},
        {"distiller": replace(FREE.distiller, lr=0.5, condensed_share=0.75)},
        {"evaluate_every": 2},
    ],
)
def test_settings_that_do_not_change_images_are_not_in_the_key(changes):
    assert key(**changes) == key()


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"inversion": DeepInversion(steps=3, batch=16)},
        {"guidance": Discriminator()},
        {"precision": "bfloat16"},
        {"data": replace(FREE.data, seed=1)},
    ],
)
def test_settings_that_change_images_are_in_the_key(changes):
    assert key(**changes) != key()


def test_condensed_images_are_in_the_key_only_with_guidance():
    prepared = toy.make_prepared()
    other = replace(prepared, hashes=prepared.hashes | {"condensed": "others"})
    guided = replace(FREE, guidance=Discriminator())
    assert production_key(FREE, prepared) == production_key(FREE, other)
    assert production_key(guided, prepared) != production_key(guided, other)


def test_the_number_of_rounds_is_in_the_key_only_with_a_schedule():
    curriculum = Discriminator(schedule=Schedule(start=1.0, end=0.0))
    assert key(guidance=curriculum) != key(guidance=curriculum, rounds=9)
    assert key(guidance=Discriminator()) == key(guidance=Discriminator(), rounds=9)


def test_the_teachers_weights_are_in_the_key():
    prepared = toy.make_prepared()
    other = replace(prepared, hashes=prepared.hashes | {"teacher": "others"})
    assert production_key(FREE, prepared) != production_key(FREE, other)


def test_a_trial_that_cannot_share_images_has_its_own_pool_key():
    prepared = toy.make_prepared()
    alone = {
        "asks": toy.toy_config(),
        "weighs": replace(FREE, weighing=Modulating()),
        "has producers": replace(FREE, pipeline=Pipeline()),
        "makes none": replace(FREE, inversion=NoInversion(), distiller=replace(FREE.distiller, condensed_share=1.0)),
    }
    for config in alone.values():
        assert not can_share(config)
        assert pool_key("inversion", "mine", config, prepared) == ("trial", "mine")
    assert pool_key("trial", "mine", FREE, prepared) == ("trial", "mine")
    assert pool_key("inversion", "mine", FREE, prepared)[0] == "inversion"
    assert pool_key("sweep", "mine", alone["asks"], prepared) == pool_key("sweep", "yours", FREE, prepared)
    for kind in ("makes none", "has producers"):
        assert pool_key("sweep", "mine", alone[kind], prepared) == ("trial", "mine")


WITHOUT = [small(kind) for kind in get_args(AnyInversion) if kind is not NoInversion]
FORMS = [*WITHOUT, *(replace(small(kind), adv_weight=0.0) for kind in (Fast, Cmi, Nayer))]
FORMS.append(replace(small(DeepInversion), adv_weight=1.0))


@pytest.mark.parametrize("inversion", FORMS, ids=lambda form: f"{form.name}-{getattr(form, 'adv_weight', '')}")
def test_images_depend_on_the_student_exactly_if_uses_student_is_true(inversion):
    config, prepared = toy.toy_config(inversion=inversion), toy.make_prepared()
    found, student = [], copy.deepcopy(prepared.teacher.network)
    for _ in range(2):
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.mul_(0.9)
        production = begin(config, prepared)
        for _ in range(2):
            made = produce(config, prepared, production, student, torch.zeros(toy.NUM_CLASSES, dtype=torch.int64))
        found.append(made)
    equal = torch.equal(found[0][0].images, found[1][0].images) and found[0][1] == found[1][1]
    assert equal is not inversion.uses_student


def test_weights_depend_on_the_memory_exactly_if_reads_memory_is_true():
    prepared = toy.make_prepared()
    for weighing in (Modulating(), toy.toy_config().weighing):
        config = replace(FREE, weighing=weighing)
        with Streams(0).forked("init/student"):
            student = config.student.build(toy.IMAGE_SHAPE, toy.NUM_CLASSES)
        counts = (torch.zeros(4, dtype=torch.int64), torch.tensor([9, 0, 0, 0]))
        terms = [produce(config, prepared, begin(config, prepared), student, n)[1] for n in counts]
        assert (terms[0] == terms[1]) is not weighing.reads_memory


def test_all_keys_depend_on_the_version_of_the_numbers(monkeypatch):
    prepared = toy.make_prepared()

    def keys() -> list[str]:
        sweep, shared = (pool_key(scope, "", FREE, prepared)[1] for scope in ("sweep", "inversion"))
        return [trial_hash(FREE, prepared), trial_hash(FREE, prepared, "sweep"), key(), sweep, shared]

    now = keys()
    monkeypatch.setattr("condkd_ray.trial.plan.NUMBERS", NUMBERS - 1)
    assert all(one != other for one, other in zip(now, keys(), strict=True))


def test_test_rounds_is_in_the_hash_of_the_trial_and_not_in_the_key_of_its_images():
    prepared, full = toy.make_prepared(), replace(FREE, test_rounds="full")
    assert trial_hash(full, prepared) != trial_hash(FREE, prepared)
    assert key(test_rounds="full") == key()


def test_layouts_made_of_other_images_are_other_images_even_without_guidance():
    prepared = make_dense_prepared()
    other = replace(prepared, hashes=prepared.hashes | {"condensed": "others"})
    plain = dense_config(inversion=replace(dense_config().inversion, adv_weight=0.0))
    layouts = replace(plain, targets=Layouts())
    assert production_key(plain, prepared) == production_key(plain, other)
    assert production_key(layouts, prepared) != production_key(layouts, other)


def test_trials_that_store_logits_of_pixels_share_no_images_with_those_that_do_not():
    free, prepared = replace(dense_config().inversion, adv_weight=0.0), make_dense_prepared()
    plain = dense_config(inversion=free, distiller=Distiller(steps=2, batch=8, augment=False))
    for scope in ("inversion", "sweep"):
        keys = {pool_key(scope, "t", replace(plain, store_logits=stored), prepared)[1] for stored in (False, True)}
        assert len(keys) == 2
