"""Condensers of segmented images."""

from typing import Any

import pytest
import torch
from reference import condensation as reference

from condkd_ray.core.method import InputError, NonFiniteError
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import Samples, unseen
from condkd_ray.methods.condensation import AllReal, Herding, RandomReal
from condkd_ray.methods.condensation import condensation as module
from condkd_ray.methods.condensation.condensation import first_per_class
from condkd_ray.testing.scenes import scenes
from condkd_ray.testing.world import MEAN, NUM_CLASSES, STD

COUNT = 20
HERDING: dict[str, Any] = {"epochs": 2, "width": 4, "batch": 8}
each_condenser = pytest.mark.parametrize("kind", [RandomReal, Herding], ids=lambda kind: kind.__name__)


def condensed(method, seed: int = 0, count: int = COUNT) -> Samples:
    real = scenes(count).samples(MEAN, STD)
    return method.condense(real, num_classes=NUM_CLASSES, mean=MEAN, std=STD, flip_ok=True, rng=Streams(seed))


def small(kind, ipc: int):
    return kind(ipc=ipc, **(HERDING if kind is Herding else {}))


@each_condenser
def test_ipc_different_images_are_chosen_with_their_masks(kind):
    real, made = scenes(COUNT).samples(MEAN, STD), condensed(small(kind, 7))
    rows = [int((real.images == image).flatten(1).all(1).nonzero()) for image in made.images]
    assert len(set(rows)) == 7
    assert torch.equal(made.labels, real.labels[rows])
    assert made.logits.shape == (7, 0)


@each_condenser
def test_a_smaller_set_is_the_start_of_a_larger_one(kind):
    whole, part = condensed(small(kind, 9)), condensed(small(kind, 4))
    first = first_per_class(whole, 4, NUM_CLASSES)
    for one in (first, whole[:4]):
        assert torch.equal(one.images, part.images)
        assert torch.equal(one.labels, part.labels)


@each_condenser
def test_too_few_images_are_refused(kind):
    assert len(condensed(small(kind, COUNT))) == COUNT
    with pytest.raises(InputError, match="number of labelled images is 21; accepted: at most 20"):
        condensed(small(kind, COUNT + 1))


def test_too_few_images_are_refused_when_a_smaller_set_is_taken():
    with pytest.raises(InputError, match="number of labelled images is 5; accepted: at most 4"):
        first_per_class(scenes(4).samples(MEAN, STD), 5, NUM_CLASSES)


def test_seeds_draw_different_images_and_every_image_can_be_drawn():
    drawn = torch.cat([condensed(RandomReal(ipc=3), seed).images for seed in range(60)])
    assert len(drawn.flatten(1).unique(dim=0)) == COUNT


def test_all_images_keep_their_order():
    real, made = scenes(COUNT).samples(MEAN, STD), condensed(AllReal())
    assert torch.equal(made.images, real.images)
    assert torch.equal(made.labels, real.labels)


def test_herding_chooses_as_a_naive_loop_over_one_group(monkeypatch: pytest.MonkeyPatch):
    chosen, herd = [], module.herd

    def recorded(embedded, labels, ipc, num_classes):
        rows = herd(embedded, labels, ipc, num_classes)
        wanted = reference.herd(embedded.double().tolist(), [0] * len(embedded), ipc, 1)
        chosen.append((rows.tolist(), wanted))
        return rows

    monkeypatch.setattr(module, "herd", recorded)
    made = condensed(Herding(ipc=6, **HERDING))
    ((rows, wanted),) = chosen
    assert rows == wanted
    assert torch.equal(made.images, scenes(COUNT).samples(MEAN, STD).images[rows])


def test_the_embedding_learns_which_classes_an_image_shows(monkeypatch: pytest.MonkeyPatch):
    networks, train = [], module.train

    def recorded(network, real, **options):
        trained = train(network, real, **options)
        networks.append((trained, real))
        return trained

    monkeypatch.setattr(module, "train", recorded)
    condensed(Herding(ipc=1, width=8, epochs=60, batch=8, lr=0.05), count=60)
    ((network, given),) = networks
    other = scenes(60, seed=9).samples(MEAN, STD)
    present = torch.stack([(other.labels == kind).flatten(1).any(1) for kind in range(NUM_CLASSES)], 1)
    assert given.labels.shape == (60, NUM_CLASSES)
    right = (network(other.images) > 0) == present
    # Class 0 is in all images, each other class in two thirds, so that constant answers are right for three quarters.
    assert right.float().mean() > 0.85


def test_masks_matter_only_through_the_training_of_the_embedding():
    """Other classes give another network, and without training the choice ignores the masks."""
    real = scenes(COUNT).samples(MEAN, STD)
    options = {"num_classes": NUM_CLASSES, "mean": MEAN, "std": STD, "flip_ok": True}

    def chosen(epochs: int, labels: torch.Tensor) -> torch.Tensor:
        method = Herding(ipc=8, epochs=epochs, width=4, batch=4)
        return method.condense(unseen(real.images, labels), **options, rng=Streams(0)).images

    blank = torch.zeros_like(real.labels)
    assert torch.equal(chosen(0, real.labels), chosen(0, blank))
    assert not torch.equal(chosen(20, real.labels), chosen(20, blank))


def test_divergence_raises_an_error_that_names_the_loss_term():
    with pytest.raises(NonFiniteError, match="condensation/training is not finite at step"):
        condensed(Herding(ipc=1, lr=1e30, epochs=3))
