import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import condensation as reference

from condkd_ray.core.method import InputError, NonFiniteError
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import Samples
from condkd_ray.methods.condensation import Herding, RandomReal
from condkd_ray.methods.condensation import condensation as module
from condkd_ray.methods.condensation.condensation import herd
from condkd_ray.models import ConvNet
from methods.condensation.condensers import MEAN, NUM_CLASSES, STD, condense, real_samples
from methods.condensation.learning import accuracy_on_digits

sizes = st.sampled_from((1, 3, 4, 5, 6))
"""Sizes of classes, without 2, because both of two images are equally near to their mean."""


@given(counts=st.lists(sizes, min_size=1, max_size=4), seed=st.integers(0, 99), data=st.data())
def test_choice_equals_a_naive_greedy_loop(counts: list[int], seed: int, data: st.DataObject):
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=rng)]
    embedded = torch.randn(len(labels), 5, generator=rng, dtype=torch.float64)
    ipc = data.draw(st.integers(1, min(counts)))
    expected = reference.herd(embedded.tolist(), labels.tolist(), ipc, len(counts))
    assert herd(embedded, labels, ipc, len(counts)).tolist() == expected


def test_choice_by_hand():
    """The mean is 3: first 3 is chosen, then 2, because 2.5 is nearer to 3 than 2 or 4.5; of equal rows the first."""
    embedded = torch.tensor([[1.0], [2.0], [3.0], [6.0], [7.0], [7.0]])
    labels = torch.tensor([0, 0, 0, 0, 1, 1])
    assert herd(embedded, labels, 2, 2).tolist() == [2, 1, 4, 5]


def test_images_are_different_real_images_of_their_class():
    real, made = real_samples(), condense(Herding(ipc=7, epochs=1, width=4))
    rows = [(real.images == image).flatten(1).all(1).nonzero().item() for image in made.images]
    assert len(set(rows)) == len(rows) == 7 * NUM_CLASSES
    assert torch.equal(real.labels[rows], made.labels)


def test_the_mean_of_chosen_images_is_nearer_to_the_class_mean_than_that_of_random_ones():
    """The features are those of a network that was not used for the choice."""
    with Streams(5).forked("other"):
        network = ConvNet(width=16, depth=2).build((3, 8, 8), NUM_CLASSES)
    real = real_samples()

    def distance(samples: Samples) -> float:
        with torch.no_grad():
            of_real, of_chosen = network.embed(real.images), network.embed(samples.images)  # type: ignore[operator]
        gaps = [of_real[real.labels == k].mean(0) - of_chosen[samples.labels == k].mean(0) for k in range(NUM_CLASSES)]
        return torch.stack(gaps).square().sum().item()

    random = [distance(condense(RandomReal(ipc=3), seed=seed)) for seed in range(5)]
    assert distance(condense(Herding(ipc=3))) < min(random)


def test_the_embedding_is_trained_for_epochs():
    assert not torch.equal(condense(Herding(epochs=0)).images, condense(Herding(epochs=3)).images)


def test_a_network_learns_digits_from_chosen_images():
    assert accuracy_on_digits(Herding(ipc=5)) > 0.75


def test_grey_images_too_small_for_all_blocks_are_condensed():
    real = real_samples()
    tiny = Samples(real.images[:, :1, :4, :4], real.labels, real.logits)
    options = {"num_classes": NUM_CLASSES, "mean": MEAN[:1], "std": STD[:1], "flip_ok": True, "rng": Streams(0)}
    made = Herding(ipc=2, epochs=1, width=4).condense(tiny, **options)  # type: ignore[arg-type]
    assert made.images.shape == (2 * NUM_CLASSES, 1, 4, 4)


def test_too_few_images_are_refused_before_the_network_is_trained(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "fresh_convnet", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(InputError, match="images per class is 21; accepted: at most 20, the images of class 0"):
        condense(Herding(ipc=21))


def test_divergence_raises_an_error_that_names_the_loss_term():
    with pytest.raises(NonFiniteError, match="condensation/training is not finite at step"):
        condense(Herding(ipc=1, lr=1e30))


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"ipc": 0}, "ipc is 0"),
        ({"epochs": -1}, "epochs is -1"),
        ({"batch": 0}, "batch is 0"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"width": 0}, "width is 0"),
        ({"depth": 0}, "depth is 0"),
    ],
)
def test_impossible_fields_are_refused(fields: dict, problem: str):
    with pytest.raises(InputError, match=problem):
        Herding(**fields)


def test_cached_config_is_the_config_itself():
    assert Herding(ipc=3).cached_config() == Herding(ipc=3)
