"""The contract of all inversions that work for segmentation, on toy scenes."""

import pytest
import torch

from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import UNLABELLED
from condkd_ray.methods.guidance.guidance import Unguided
from condkd_ray.methods.targets import Balanced, Targets
from condkd_ray.methods.weighing import Modulating, equal_weights
from condkd_ray.testing.inversions import CHECKS, RecordingGuide
from condkd_ray.testing.scenes import make_dense_student, make_dense_teacher
from contracts.toy_methods import INVERTERS, small

DENSE = [kind for kind in INVERTERS if "segmentation" in kind.tasks]
TARGETED = [kind for kind in DENSE if small(kind).uses_targets != "none"]
CONDITIONAL = [kind for kind in DENSE if hasattr(kind, "conditional")]
BATCH = 8


def method(kind, **changes):
    sizes = {"batch": BATCH, "images_per_round": 12}
    there = {name: value for name, value in sizes.items() if name in kind.__dataclass_fields__}
    return small(kind, **there, **changes)


def made_for(inversion, targets, teacher, seed=0, **given):
    """Run one round for these `targets`."""
    rng = Streams(seed)
    rest = {"guide": Unguided(), "weigh": equal_weights, "student": make_dense_student()} | given
    return inversion.synthesize(inversion.init(teacher, rng), targets, teacher=teacher, rng=rng, **rest)


def stripes(teacher, count):
    """Return layouts of four stripes of equal width, one of each class."""
    height, width = teacher.image_shape[1:]
    classes = torch.arange(width) * teacher.num_classes // width
    return Targets(classes.expand(count, height, width).clone())


def test_the_published_hosts_for_segmentation_are_there():
    assert {kind.__name__ for kind in DENSE} == {"Dfad", "Dafl", "Fast", "Cmi", "DeepInversion"}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("kind", DENSE, ids=lambda kind: kind.__name__)
def test_the_contract_holds_for_segmentation(kind, check):
    check(method(kind), "segmentation")


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("kind", CONDITIONAL, ids=lambda kind: kind.__name__)
def test_the_contract_holds_for_generators_that_get_the_layout(kind, check):
    check(method(kind, conditional=True, oh_weight=1.0), "segmentation")


@pytest.mark.parametrize("kind", TARGETED, ids=lambda kind: kind.__name__)
def test_labels_of_the_guide_are_the_layouts_as_the_augmentation_has_moved_them(kind):
    teacher, guide = make_dense_teacher(), RecordingGuide()
    inversion, targets = method(kind), stripes(teacher, BATCH)
    made, _ = made_for(inversion, targets, teacher, guide=guide)
    assert torch.equal(made.labels, targets.labels)
    seen = torch.cat([labels for _, _, labels in guide.penalty_calls])
    assert seen.shape[1:] == targets.labels.shape[1:]
    assert not torch.equal(seen[:BATCH], targets.labels)
    # A shift moves pixels without a label in; a roll moves those of the other edge in.
    assert set(seen.unique().tolist()) <= {UNLABELLED, 0, 1, 2, 3}


@pytest.mark.parametrize(
    "inversion",
    [
        *[method(kind, steps=200) for kind in TARGETED],
        *[method(kind, steps=200, conditional=True, oh_weight=1.0) for kind in CONDITIONAL],
    ],
    ids=lambda inversion: inversion.name,
)
def test_the_class_prior_makes_the_teacher_see_the_layout(inversion):
    teacher = make_dense_teacher()
    others = {name: 0.0 for name in inversion.__dataclass_fields__ if name.endswith("_weight") and name != "oh_weight"}
    rates = {name: 0.02 for name in ("lr", "lr_latent") if name in inversion.__dataclass_fields__}
    alone = type(inversion)(**{**vars(inversion), **others, **rates, "oh_weight": 1.0})
    targets = stripes(teacher, alone.images_per_round)
    shares = []
    for settings in (alone, type(inversion)(**{**vars(alone), "steps": 1})):
        made, _ = made_for(settings, targets, teacher)
        shares.append((teacher.logits(made.images).argmax(1) == targets.labels).float().mean().item())
    assert shares[0] > 0.7
    assert shares[0] > shares[1] + 0.4


@pytest.mark.parametrize("kind", CONDITIONAL, ids=lambda kind: kind.__name__)
def test_without_conditional_the_labels_are_those_of_the_teacher(kind):
    teacher, guide = make_dense_teacher(), RecordingGuide()
    made, _ = made_for(method(kind), Targets(torch.full((12,), UNLABELLED)), teacher, guide=guide)
    assert made.labels.tolist() == [UNLABELLED] * 12
    for images, seen, labels in guide.penalty_calls:
        assert torch.equal(labels, teacher.logits(images).argmax(1))
        assert seen.features.ndim == 4


@pytest.mark.parametrize("kind", DENSE, ids=lambda kind: kind.__name__)
def test_the_modulating_function_weighs_images_by_their_pixels(kind):
    teacher, inversion = make_dense_teacher(), method(kind)
    targets = Balanced().sample(inversion.images_per_round, teacher, rng=Streams(0))
    weigh = Modulating().bind(torch.tensor([900, 50, 30, 20]))
    weighed, plain = (made_for(inversion, targets, teacher, weigh=one)[0] for one in (weigh, equal_weights))
    assert not torch.equal(weighed.images, plain.images)
