"""The contract of all hosts with the option `conditional`, whose generator then takes a label as input."""

from dataclasses import fields, replace

import pytest
import torch
import torch.nn.functional as F
from toy import NUM_CLASSES, make_prepared, make_teacher, toy_config

from condkd_ray.core.method import InputError
from condkd_ray.core.rng import Streams
from condkd_ray.methods.guidance import Discriminator, Mmd
from condkd_ray.methods.guidance.guidance import Unguided
from condkd_ray.methods.inversion import DeepInversion, Zskt
from condkd_ray.methods.targets import Balanced, Soft
from condkd_ray.models.generator import Generator, LabelledGenerator
from condkd_ray.trial.plan import production_key
from contracts.toy_methods import INVERTERS, RecordingGuide, small, synthesize
from contracts.toy_trials import assert_resumes

KINDS = [kind for kind in INVERTERS if "conditional" in {field.name for field in fields(kind)}]
each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def conditional(kind, **changes):
    return small(kind, conditional=True, **changes)


class LabelGuide(Unguided):
    """A guide whose penalty is the cross-entropy of the teacher's logits with the labels."""

    def penalty(self, images, seen, labels):
        return 10 * F.cross_entropy(seen.logits, labels)


def test_all_hosts_that_use_no_targets_have_the_option():
    assert {kind.__name__ for kind in KINDS} == {"Dafl", "Zskt", "Dfad", "Dfq", "PreDfkd"}
    assert all(small(kind).uses_targets == "none" and small(kind).labels_by_teacher for kind in KINDS)


@each_kind
def test_images_have_the_labels_of_the_targets(kind):
    inversion, teacher, rng = conditional(kind), make_teacher(), Streams(0)
    assert inversion.uses_targets == "labels"
    assert not inversion.labels_by_teacher
    wanted = Balanced().sample(inversion.images_per_round, teacher, rng=Streams(0)).labels
    made, _ = synthesize(inversion, teacher=teacher, rng=rng)
    assert torch.equal(made.labels, wanted)
    assert made.images.isfinite().all()


@each_kind
def test_guide_and_class_prior_use_the_labels_of_the_targets(kind):
    guide = RecordingGuide()
    _, metrics = synthesize(conditional(kind, steps=1), guide=guide)
    ((_, seen, labels),) = guide.penalty_calls
    assert (labels.bincount(minlength=NUM_CLASSES) == len(labels) // NUM_CLASSES).all()
    assert not torch.equal(labels, seen.logits.argmax(1))
    assert torch.equal(guide.update_calls[0][2], labels)
    if "inversion/oh" in metrics:
        assert metrics["inversion/oh"] == pytest.approx(F.cross_entropy(seen.logits, labels).item(), rel=1e-5)


@each_kind
def test_the_teacher_classifies_images_as_their_labels_after_training(kind):
    """The adversarial term is off, because it moves images away from their labels."""
    adversary = {"adv_weight": 0.0} if hasattr(small(kind), "adv_weight") else {}
    inversion, teacher, rng = conditional(kind, steps=40, lr=0.01, **adversary), make_teacher(), Streams(0)
    state, found = inversion.init(teacher, rng), []
    for _ in range(2):
        made, _ = synthesize(inversion, state, teacher=teacher, rng=rng, guide=LabelGuide())
        found.append((teacher.batched_logits(made.images).argmax(1) == made.labels).float().mean().item())
    # Chance is 0.25.
    assert found[-1] > 0.75, found


@each_kind
def test_the_label_changes_the_image_and_its_weights_are_trained(kind):
    inversion, teacher, rng = conditional(kind), make_teacher(), Streams(0)
    state = inversion.init(teacher, rng)
    first = state.generator.body.linear.weight.detach().clone()
    synthesize(inversion, state, teacher=teacher, rng=rng, guide=LabelGuide())
    moved = (state.generator.body.linear.weight - first).abs().amax(0)
    assert len(moved) == inversion.latent + NUM_CLASSES
    assert (moved > 0).all()
    latents = torch.randn(1, inversion.latent).expand(NUM_CLASSES, -1)
    images = state.generator(latents, torch.arange(NUM_CLASSES))
    assert not torch.equal(images[0], images[1])


@each_kind
def test_without_the_option_the_generator_is_the_published_one(kind):
    teacher = make_teacher()
    assert isinstance(small(kind).init(teacher, Streams(0)).generator, Generator)
    assert isinstance(conditional(kind).init(teacher, Streams(0)).generator, LabelledGenerator)


@each_kind
def test_random_numbers_come_only_from_its_own_streams(kind):
    inversion, teacher, rng = conditional(kind), make_teacher(), Streams(0)
    before = torch.random.get_rng_state()
    synthesize(inversion, inversion.init(teacher, rng), rng=rng, teacher=teacher, guide=RecordingGuide())
    assert rng.state_dict()["device"].keys() == {"targets", "latents"}
    assert torch.equal(torch.random.get_rng_state(), before)


@each_kind
def test_a_guided_trial_continues_from_a_checkpoint_bit_for_bit(kind, tmp_path):
    settings = toy_config(inversion=conditional(kind), guidance=small(Mmd), rounds=3)
    live, store = assert_resumes(settings, tmp_path)
    labels = store.gather(live.memory.ids).labels
    assert (labels.bincount(minlength=NUM_CLASSES) * NUM_CLASSES == len(labels)).all()


@each_kind
def test_labels_without_a_loss_that_uses_them_are_rejected(kind):
    inversion = conditional(kind, **({"oh_weight": 0.0} if hasattr(small(kind), "oh_weight") else {}))
    accepted = (
        r"conditional for inversion \w+ is True; accepted: false; or an oh_weight > 0; or a class-conditional guidance"
    )
    for guidance in ({}, {"guidance": Discriminator(weight=0.0)}, {"guidance": Discriminator(condition="none")}):
        with pytest.raises(InputError, match=accepted):
            toy_config(inversion=inversion, **guidance)
    toy_config(inversion=inversion, guidance=Mmd())
    toy_config(inversion=replace(inversion, conditional=False))


@pytest.mark.parametrize("condition", ["auxiliary", "projection", "per_class"])
def test_a_discriminator_uses_labels_in_one_of_its_terms(condition):
    inversion = conditional(Zskt)
    with_labels, other = "class_weight", "adversarial_weight"
    if condition != "auxiliary":
        with_labels, other = other, with_labels
    with pytest.raises(
        InputError, match=r"conditional for inversion zskt is True; .* adversarial_weight > 0, or with the .*"
    ):
        toy_config(inversion=inversion, guidance=Discriminator(condition=condition, **{with_labels: 0.0}))
    toy_config(inversion=inversion, guidance=Discriminator(condition=condition, **{other: 0.0}))


def test_soft_targets_are_rejected():
    with pytest.raises(InputError, match="targets soft for inversion dafl is 'soft'"):
        toy_config(inversion=conditional(KINDS[0]), targets=Soft())


def test_the_option_is_part_of_the_production_key():
    prepared = make_prepared()
    plain = toy_config(inversion=small(next(kind for kind in KINDS if kind.__name__ == "Dafl")))
    other = replace(plain, inversion=replace(plain.inversion, conditional=True))
    assert production_key(plain, prepared) != production_key(other, prepared)
    assert not hasattr(DeepInversion(), "conditional")
