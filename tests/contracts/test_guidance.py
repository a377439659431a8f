"""The contract of all guidances (`condkd_ray.methods.guidance.guidance`). For whole trials see `test_guided_trials`."""

from dataclasses import replace
from typing import get_args

import pytest
import torch
import yaml
from toy import make_teacher, toy_config

from condkd_ray.core.method import InputError, Schedule
from condkd_ray.core.rng import Streams
from condkd_ray.core.task import BOTH
from condkd_ray.methods.distiller import Distiller
from condkd_ray.methods.guidance import AnyGuidance, NoGuidance
from condkd_ray.testing.guidances import (
    WORLDS,
    check_checkpoint,
    check_condensed_set_is_needed,
    check_gradient,
    check_only_own_state_changes,
    check_streams,
    check_weight,
)
from condkd_ray.trial import config
from contracts.toy_guides import (
    LABELS,
    MIDDLE,
    bound,
    each_augmentation,
    each_form,
    each_guidance,
    each_layer,
    each_option,
    fakes,
    identity,
    step,
)
from contracts.toy_methods import same, small, snake, snapshot, tensors


@each_form
@each_augmentation
@each_layer
def test_the_penalty_has_a_gradient_at_every_image(form, augment, layer):
    teacher = make_teacher()
    guide, _ = bound(replace(form, augment=augment, layer=layer), teacher=teacher)
    assert guide.layers == (() if layer == "penultimate" else (layer,))
    for _ in range(2):
        _, gradient = step(guide, fakes(), teacher)
        assert gradient.isfinite().all()
        assert (gradient.flatten(1).abs().amax(1) > 0).all()


@each_option
@each_augmentation
def test_the_penalty_of_each_option_has_a_gradient_at_every_image(form, augment):
    teacher = make_teacher()
    guide, _ = bound(replace(form, augment=augment), teacher=teacher)
    assert guide.layers == teacher.stage_outputs[2 - form.stages :]
    for _ in range(2):
        _, gradient = step(guide, fakes(), teacher)
        assert gradient.isfinite().all()
        assert (gradient.flatten(1).abs().amax(1) > 0).all()


@each_option
def test_an_option_with_weight_0_has_no_gradient(form):
    teacher = make_teacher()
    guide, _ = bound(replace(form, weight=0.0), teacher=teacher)
    penalty, gradient = step(guide, fakes(), teacher)
    assert penalty == 0
    assert (gradient == 0).all()


@each_guidance
@each_augmentation
@pytest.mark.parametrize(("weight", "factor"), [(0.0, 1.0), (2.0, 0.0)])
def test_weight_0_has_no_gradient(kind, augment, weight, factor):
    teacher, schedule = make_teacher(), Schedule(start=factor, end=factor)
    guide, _ = bound(small(kind, augment=augment, weight=weight, schedule=schedule), teacher=teacher)
    penalty, gradient = step(guide, fakes(), teacher)
    assert penalty == 0
    assert (gradient == 0).all()


@each_guidance
@each_augmentation
def test_weight_and_schedule_are_factors_of_the_penalty(kind, augment):
    found = []
    warm_up = Schedule(start=0.0, end=2.0, until=0.5)
    for weight, schedule, progress in ((1.0, Schedule(), 0.5), (3.0, warm_up, 0.25), (1.5, warm_up, 1.0)):
        teacher = make_teacher()
        guidance = small(kind, augment=augment, weight=weight, schedule=schedule)
        guide, _ = bound(guidance, teacher=teacher, progress=progress)
        found.append(step(guide, fakes(), teacher))
    once, *thrice = found
    for other in thrice:
        torch.testing.assert_close(other, tuple(3 * value for value in once))


@each_form
def test_different_layers_give_different_gradients(form):
    found = []
    for layer in ("penultimate", MIDDLE, "stages.0"):
        teacher = make_teacher()
        guide, _ = bound(replace(form, layer=layer), teacher=teacher)
        found.append(step(guide, fakes(), teacher)[1])
    assert not any(torch.allclose(found[i], found[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


@each_guidance
@each_augmentation
def test_an_update_changes_only_the_state_of_the_guidance(kind, augment):
    teacher = make_teacher()
    guide, carried = bound(small(kind, augment=augment), teacher=teacher)
    images = fakes().requires_grad_()
    seen = teacher.observe(images)
    before = [t.clone() for t in tensors(carried)]
    outside = snapshot(teacher.network), images.detach().clone(), seen.features.detach().clone(), guide.condensed.images
    outside = [*outside[:3], outside[3].clone()]
    guide.update(images.detach(), seen.detach(), LABELS)
    assert same(before, list(tensors(carried))) != guide.guidance.uses_condensed_batches
    assert same(outside, [snapshot(teacher.network), images.detach(), seen.features.detach(), guide.condensed.images])
    assert images.grad is None


@each_guidance
@each_augmentation
def test_random_numbers_come_only_from_its_own_stream(kind, augment):
    rng, teacher, before = Streams(0), make_teacher(), torch.random.get_rng_state()
    guide, _ = bound(small(kind, augment=augment), rng=rng, teacher=teacher)
    assert (rng.state_dict() == {"device": {}, "host": {}}) == (not guide.guidance.views)
    step(guide, fakes(), teacher)
    streams = rng.state_dict()
    assert streams["device"].keys() == {"augment/guide"}
    assert streams["host"].keys() <= {"augment/guide"}
    assert torch.equal(torch.random.get_rng_state(), before)


@each_guidance
@each_augmentation
def test_a_saved_state_continues_bit_for_bit(kind, augment):
    check_checkpoint(small(kind, augment=augment))


@each_option
def test_a_saved_state_of_each_option_continues_bit_for_bit(form):
    check_checkpoint(form)


@each_form
@pytest.mark.parametrize("layer", ["penultimate", "stages.0"])
def test_a_form_satisfies_the_contract_on_segmented_images(form, layer):
    assert form.tasks == BOTH
    for check in (check_gradient, check_weight, check_only_own_state_changes, check_streams, check_checkpoint):
        check(replace(form, layer=layer), WORLDS["segmentation"])


@each_option
def test_an_option_satisfies_the_contract_on_segmented_images(form):
    # The toy teacher has one stage that can be compared with the features in addition to its last.
    form = replace(form, stages=min(form.stages, 1))
    for check in (check_gradient, check_weight, check_only_own_state_changes, check_streams, check_checkpoint):
        check(form, WORLDS["segmentation"])


@each_guidance
def test_a_missing_condensed_set_is_rejected(kind):
    check_condensed_set_is_needed(small(kind))
    with pytest.raises(InputError, match="guidance without a condensation"):
        toy_config(condensation=None, guidance=small(kind), distiller=Distiller(condensed_share=0.0))


@pytest.mark.parametrize("kind", get_args(AnyGuidance), ids=lambda kind: kind.__name__)
def test_config_is_equal_after_yaml_and_is_named_after_its_class_and_file(kind):
    complete = toy_config(guidance=small(kind))
    assert config.from_tree(yaml.safe_load(config.dump(complete))) == complete
    own = snake(kind.__name__)
    assert kind().name in (own, "none")
    # Small members share a file: `matching`, and `guidance` for the base and "none".
    folder, _, stem = kind.__module__.rpartition(".")
    assert folder == "condkd_ray.methods.guidance"
    assert stem in (own, "matching", "guidance")


def test_no_guidance_has_no_penalty_and_no_metrics():
    teacher, rng = make_teacher(), Streams(0)
    none = NoGuidance()
    carried = none.start(teacher, None, rng)
    guide = none.bind(carried, teacher=teacher, condensed=None, host_augment=identity, rng=rng)
    seen = teacher.observe(fakes())
    assert guide.penalty(fakes(), seen, LABELS) == 0
    guide.update(fakes(), seen, LABELS)
    assert none.read(guide) == {}
