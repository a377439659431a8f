import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from reference import condensation as reference
from torch import Tensor, nn

from condkd_ray.core.method import InputError, NonFiniteError
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import Samples
from condkd_ray.methods.condensation import GradientMatching, RandomReal, matching
from condkd_ray.methods.condensation.matching import class_gradients, gradient_distance
from condkd_ray.models import ConvNet
from methods.condensation.condensers import MEAN, NUM_CLASSES, STD, condense, real_samples
from methods.condensation.learning import accuracy_on_digits

PLAIN = GradientMatching(ipc=3, condensed_together=3, prefixes=False, width=4, augment="none")


def fresh(name: str = "network", width: int = 4) -> nn.Module:
    with Streams(99).forked(name):
        return ConvNet(width=width, depth=2).build((3, 8, 8), NUM_CLASSES)


@given(layers=st.integers(1, 3), classes=st.integers(1, 3), channels=st.integers(1, 4), seed=st.integers(0, 99))
def test_distance_equals_plain_loops(layers: int, classes: int, channels: int, seed: int):
    rng = torch.Generator().manual_seed(seed)
    shape = (layers, classes, channels, 2, 3)
    real_gradient, synthetic_gradient = (torch.randn(shape, generator=rng, dtype=torch.float64) for _ in range(2))
    expected = reference.gradient_distance(real_gradient.flatten(3).tolist(), synthetic_gradient.flatten(3).tolist())
    assert gradient_distance(list(real_gradient), list(synthetic_gradient)).item() == pytest.approx(expected, abs=1e-10)


def test_distance_by_hand():
    """The gradients of the four channels are parallel, opposite, orthogonal, and zero on the synthetic side."""
    real = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]])
    synthetic = torch.tensor([[[5.0, 0.0], [-2.0, 0.0], [0.0, 3.0], [0.0, 0.0]]], requires_grad=True)
    distance = gradient_distance([real], [synthetic])
    assert distance.item() == pytest.approx(0 + 2 + 1 + 1)
    distance.backward()
    assert synthetic.grad is not None
    assert synthetic.grad.isfinite().all()


def test_class_gradients_are_means_over_images_and_leave_out_biases_and_norms():
    network, images = fresh().double(), torch.randn(NUM_CLASSES, 2, 3, 8, 8, dtype=torch.float64)
    found = class_gradients(network, images, differentiable=False)
    weights = [p for name, p in network.named_parameters() if name.endswith("weight") and p.ndim > 1]
    assert [layer.shape[1:] for layer in found] == [p.shape for p in weights]
    assert len(found) == 3
    for label in range(NUM_CLASSES):
        total = [torch.zeros_like(p) for p in weights]
        for image in images[label]:
            loss = F.cross_entropy(network(image[None]), torch.tensor([label]))
            total = [a + b / 2 for a, b in zip(total, torch.autograd.grad(loss, weights), strict=True)]
        for layer, expected in zip(found, total, strict=True):
            torch.testing.assert_close(layer[label], expected)


def weights_of(network: nn.Module) -> list[nn.Parameter]:
    return [p for p in network.parameters() if p.ndim > 1]


def distance_by_class(network: nn.Module, real: Samples, images: Tensor, labels: Tensor) -> Tensor:
    """Sum the distance over classes and channels in plain loops."""
    total = torch.zeros((), dtype=torch.float64)
    for label in range(NUM_CLASSES):
        pair = []
        for part in (real.images[real.labels == label].double(), images[labels == label]):
            loss = F.cross_entropy(network(part), torch.full((len(part),), label))
            pair.append(torch.autograd.grad(loss, weights_of(network), create_graph=True))
        for real_gradient, synthetic_gradient in zip(*pair, strict=True):
            for a, b in zip(real_gradient.detach().flatten(1), synthetic_gradient.flatten(1), strict=True):
                total = total + 1 - (a @ b) / (a.norm() * b.norm())
    return total


def test_two_networks_equal_a_plain_loop(monkeypatch: pytest.MonkeyPatch):
    """Real batches contain the whole class, so only the networks are random; the test records each when it is built."""
    built: list[nn.Module] = []
    build = ConvNet.build

    def recorded(self: ConvNet, *args: object) -> nn.Module:
        network = build(self, *args)  # type: ignore[arg-type]
        built.append(build(self, *args).double())  # type: ignore[arg-type]
        built[-1].load_state_dict(network.state_dict())
        return network

    monkeypatch.setattr(ConvNet, "build", recorded)
    real = real_samples()
    few = real[torch.cat([(real.labels == k).nonzero()[:6, 0] for k in range(NUM_CLASSES)]).sort().values]
    method = GradientMatching(
        **{field: getattr(PLAIN, field) for field in ("ipc", "condensed_together", "prefixes", "width", "augment")},
        iterations=2,
        outer=2,
        inner=3,
        real_batch=6,
        lr=0.5,
        net_lr=0.1,
        momentum=0.5,
    )
    options = {"num_classes": NUM_CLASSES, "mean": MEAN, "std": STD, "flip_ok": True}
    ours = method.condense(few, **options, rng=Streams(0))  # type: ignore[arg-type]

    start = RandomReal(ipc=3).condense(few, **options, rng=Streams(0))  # type: ignore[arg-type]
    images, velocity = start.images.double(), torch.zeros(())
    assert len(built) == 2
    for network in built:
        for step in range(2):
            for _ in range(3 * step):  # the network learns from the second step on
                loss = F.cross_entropy(network(images), start.labels)
                for p, gradient in zip(
                    network.parameters(), torch.autograd.grad(loss, list(network.parameters())), strict=True
                ):
                    p.data -= 0.1 * gradient
            images.requires_grad_(True)
            (gradient,) = torch.autograd.grad(distance_by_class(network, few, images, start.labels), images)
            velocity = 0.5 * velocity + gradient
            images = (images - 0.5 * velocity).detach()
    assert (images - start.images).abs().max() > 0.05
    torch.testing.assert_close(ours.images.double(), images, atol=1e-4, rtol=1e-4)


def held_out_distance(samples: Samples) -> float:
    """Return the mean distance on other real images and networks than those of the condensation."""
    other = real_samples(seed=1)
    networks = [fresh(str(place), width=8).double() for place in range(8)]
    parts = [distance_by_class(n, other, samples.images.double(), samples.labels).item() for n in networks]
    return sum(parts) / len(parts)


@pytest.mark.parametrize(("augment", "start"), [("dsa", "real"), ("none", "real"), ("none", "noise")])
def test_matching_reduces_the_distance_on_unseen_images_and_networks(augment: str, start: str):
    options = {"ipc": 2, "condensed_together": 2, "width": 8, "real_batch": 16, "augment": augment, "start": start}
    before = condense(GradientMatching(**options, iterations=1, outer=1, lr=1e-9))  # type: ignore[arg-type]
    matched = condense(GradientMatching(**options, iterations=12, outer=3, inner=1, lr=1.0))  # type: ignore[arg-type]
    assert (matched.images - before.images).abs().max() > 0.1
    assert held_out_distance(matched) < 0.9 * held_out_distance(before)


def test_a_network_learns_digits_from_matched_noise():
    options = {"ipc": 1, "condensed_together": 1, "iterations": 8, "real_batch": 32, "width": 16, "start": "noise"}
    unmatched = accuracy_on_digits(GradientMatching(**options, outer=1, lr=1e-9))  # type: ignore[arg-type]
    matched = accuracy_on_digits(GradientMatching(**options, lr=2.0))  # type: ignore[arg-type]
    assert unmatched < 0.4
    assert matched > 0.6


def test_prefixes_are_the_first_images_of_each_class():
    """One iteration changes exactly the images of each class that it used."""
    used = set()
    for seed in range(8):
        options = {"ipc": 3, "condensed_together": 3, "iterations": 1, "outer": 2, "inner": 1, "width": 4}
        start, made = condense(RandomReal(ipc=3), seed=seed), condense(GradientMatching(**options), seed=seed)
        moved = (made.images != start.images).flatten(1).any(1).view(NUM_CLASSES, 3)
        (pattern,) = {tuple(row) for row in moved.tolist()}
        assert list(pattern) == sorted(pattern, reverse=True)
        used.add(sum(pattern))
    assert used == {1, 2, 3}


@pytest.mark.parametrize("flip_ok", [False, True])
def test_images_are_mirrored_only_where_that_keeps_the_class(flip_ok: bool, monkeypatch: pytest.MonkeyPatch):
    flips = []
    dsa = matching.dsa

    def recorded(*args, flip: bool, **options) -> Tensor:
        flips.append(flip)
        return dsa(*args, flip=flip, **options)

    monkeypatch.setattr(matching, "dsa", recorded)
    condense(GradientMatching(ipc=1, iterations=1, outer=2, inner=1, width=4), flip_ok=flip_ok)
    assert flips == [flip_ok] * 3


def test_one_image_a_class_with_an_untrained_network_stays_finite():
    made = condense(GradientMatching(ipc=1, condensed_together=1, iterations=3, outer=3, inner=0, width=4))
    assert made.labels.tolist() == list(range(NUM_CLASSES))
    assert made.images.isfinite().all()


def test_noise_depends_on_the_seed():
    options = {"ipc": 10, "iterations": 1, "outer": 1, "width": 4, "lr": 1e-9, "start": "noise"}
    noise, other = (condense(GradientMatching(**options), seed=seed).images for seed in (0, 1))  # type: ignore[arg-type]
    assert abs(noise.std().item() - 1) < 0.05
    assert not torch.equal(noise, other)


def test_too_few_images_are_refused():
    with pytest.raises(InputError, match="images per class is 21; accepted: at most 20, the images of class 0"):
        condense(GradientMatching(condensed_together=21))


def test_grey_images_too_small_for_all_blocks_are_condensed():
    real = real_samples()
    tiny = Samples(real.images[:, :1, :4, :4], real.labels, real.logits)
    options = {"num_classes": NUM_CLASSES, "mean": MEAN[:1], "std": STD[:1], "flip_ok": True, "rng": Streams(0)}
    made = GradientMatching(ipc=2, iterations=1, outer=2, width=4).condense(tiny, **options)  # type: ignore[arg-type]
    assert made.images.shape == (2 * NUM_CLASSES, 1, 4, 4)


def test_divergence_raises_an_error_that_names_the_loss_term():
    with pytest.raises(NonFiniteError, match="condensation/matching is not finite at step"):
        condense(GradientMatching(ipc=1, iterations=3, outer=2, inner=0, lr=1e38, width=4, augment="none"))


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"ipc": 11}, "condensed_together is 10; accepted: 11 or more"),
        ({"iterations": 0}, "iterations is 0"),
        ({"outer": 0}, "outer is 0"),
        ({"inner": -1}, "inner is -1"),
        ({"real_batch": 0}, "real_batch is 0"),
        ({"net_batch": 0}, "net_batch is 0"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"net_lr": 0.0}, "net_lr is 0.0"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"width": 0}, "width is 0"),
    ],
)
def test_impossible_fields_are_refused(fields: dict, problem: str):
    with pytest.raises(InputError, match=problem):
        GradientMatching(**fields)


def test_cached_config_has_the_ipc_that_is_optimised_together():
    assert GradientMatching(ipc=1, condensed_together=7).cached_config() == GradientMatching(
        ipc=7, condensed_together=7
    )
