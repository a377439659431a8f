import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from condkd_ray.core.method import InputError, NonFiniteError
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import Samples
from condkd_ray.methods.condensation import DistributionMatching, RandomReal
from condkd_ray.methods.condensation.matching import matching_loss, prefix_matching_loss
from condkd_ray.models import ConvNet
from methods.condensation.condensers import MEAN, NUM_CLASSES, STD, condense, real_samples


def reference_embedding(weights: list[Tensor], image: Tensor) -> Tensor:
    """Embed one image (C, H, W) by blocks of convolution, instance normalisation, ReLU and pooling, in float64."""
    maps = image[None]
    for kernel, bias, scale, offset in zip(*[iter(weights)] * 4, strict=True):
        maps = F.conv2d(maps, kernel, bias, padding=1)
        centred = maps - maps.mean((2, 3), keepdim=True)
        maps = centred / (centred.square().mean((2, 3), keepdim=True) + 1e-5).sqrt()
        maps = (maps * scale.view(1, -1, 1, 1) + offset.view(1, -1, 1, 1)).clamp(min=0)
        side = maps.shape[-1] // 2
        maps = maps.reshape(1, -1, side, 2, side, 2).mean((3, 5))
    return maps.flatten()


def reference_loss(real: list[list[Tensor]], synthetic: list[list[Tensor]]) -> Tensor:
    """Compute the loss of embeddings by class in plain loops."""
    total = torch.zeros((), dtype=torch.float64)
    for of_real, of_synthetic in zip(real, synthetic, strict=True):
        for feature in range(len(of_real[0])):
            mean_real = sum(float(e[feature]) for e in of_real) / len(of_real)
            mean_synthetic = torch.stack([e[feature] for e in of_synthetic]).sum() / len(of_synthetic)
            total = total + (mean_real - mean_synthetic) ** 2
    return total


@given(classes=st.integers(1, 4), real=st.integers(1, 5), synthetic=st.integers(1, 5), seed=st.integers(0, 99))
def test_loss_equals_plain_loops(classes: int, real: int, synthetic: int, seed: int):
    rng = torch.Generator().manual_seed(seed)
    real_embedded = torch.randn(classes, real, 3, generator=rng, dtype=torch.float64)
    synthetic_embedded = torch.randn(classes, synthetic, 3, generator=rng, dtype=torch.float64)
    expected = reference_loss([list(c) for c in real_embedded], [list(c) for c in synthetic_embedded])
    torch.testing.assert_close(matching_loss(real_embedded, synthetic_embedded), expected)


def test_prefix_loss_is_the_mean_over_prefixes():
    rng = torch.Generator().manual_seed(0)
    real_embedded, synthetic_embedded = (torch.randn(3, size, 4, generator=rng, dtype=torch.float64) for size in (6, 5))
    by_prefix = [
        reference_loss([list(c) for c in real_embedded], [list(c[:m]) for c in synthetic_embedded]) for m in range(1, 6)
    ]
    torch.testing.assert_close(prefix_matching_loss(real_embedded, synthetic_embedded), sum(by_prefix) / 5)


def test_loss_by_hand():
    real = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 2.0]]])
    synthetic = torch.tensor([[[2.0, 1.0]], [[3.0, 1.0]]])
    assert matching_loss(real, synthetic) == (0 + 4) + (9 + 0)


def test_two_steps_equal_a_plain_loop(monkeypatch: pytest.MonkeyPatch):
    """Real batches contain the whole class, so only the networks are random; the test records each when it is built."""
    built: list[list[Tensor]] = []
    build = ConvNet.build

    def recorded(self: ConvNet, *args: object) -> torch.nn.Module:
        module = build(self, *args)  # type: ignore[arg-type]
        built.append([p.detach().double() for name, p in module.named_parameters() if name.startswith("blocks")])
        return module

    monkeypatch.setattr(ConvNet, "build", recorded)
    real = real_samples()
    keep = torch.cat([(real.labels == label).nonzero()[:6, 0] for label in range(NUM_CLASSES)])
    method = DistributionMatching(
        prefixes=False,
        ipc=3,
        condensed_together=3,
        iterations=2,
        real_batch=6,
        width=5,
        lr=2.0,
        momentum=0.5,
        augment="none",
    )
    few = real[keep.sort().values]
    ours = method.condense(few, num_classes=NUM_CLASSES, mean=MEAN, std=STD, flip_ok=True, rng=Streams(0))

    start = RandomReal(ipc=3).condense(few, num_classes=NUM_CLASSES, mean=MEAN, std=STD, flip_ok=True, rng=Streams(0))
    images, velocity = start.images.double(), torch.zeros(())
    assert len(built) == 2
    for weights in built:
        images.requires_grad_(True)
        real_embedded = [
            [reference_embedding(weights, i.double()) for i in few.images[few.labels == c]] for c in range(4)
        ]
        synthetic_embedded = [[reference_embedding(weights, i) for i in images[start.labels == c]] for c in range(4)]
        (gradient,) = torch.autograd.grad(reference_loss(real_embedded, synthetic_embedded), images)
        velocity = 0.5 * velocity + gradient
        images = (images - 2.0 * velocity).detach()
    assert (images - start.images).abs().max() > 0.01
    torch.testing.assert_close(ours.images.double(), images, atol=1e-5, rtol=1e-5)


def held_out_loss(samples: Samples) -> float:
    """Return the loss on other real images and networks than those of the condensation."""
    other = real_samples(seed=1)
    total = 0.0
    for place in range(20):
        with Streams(99).forked(str(place)):
            network = ConvNet(width=16, depth=2).build((3, 8, 8), NUM_CLASSES)
        with torch.no_grad():
            real_embedded, synthetic_embedded = network.embed(other.images), network.embed(samples.images)  # type: ignore[operator]
        for label in range(NUM_CLASSES):
            gap = real_embedded[other.labels == label].mean(0) - synthetic_embedded[samples.labels == label].mean(0)
            total += gap.square().sum().item()
    return total


@pytest.mark.parametrize("augment", ["dsa", "none"])
def test_matching_reduces_the_loss_on_unseen_images_and_networks(augment: str):
    method = DistributionMatching(ipc=5, condensed_together=5, iterations=60, width=16, augment=augment)  # type: ignore[arg-type]
    start, matched = condense(RandomReal(ipc=5)), condense(method)
    assert (matched.images - start.images).abs().max() > 0.1
    assert held_out_loss(matched) < 0.8 * held_out_loss(start)


def test_mirroring_is_left_out_where_it_changes_the_class():
    method = DistributionMatching(ipc=2, condensed_together=2, iterations=12, width=4)
    assert not torch.equal(condense(method, flip_ok=True).images, condense(method, flip_ok=False).images)


def test_grey_images_too_small_for_all_blocks_are_condensed():
    real = real_samples()
    tiny = Samples(real.images[:, :1, :4, :4], real.labels, real.logits)
    method = DistributionMatching(ipc=2, iterations=2, width=4)
    made = method.condense(tiny, num_classes=NUM_CLASSES, mean=MEAN[:1], std=STD[:1], flip_ok=True, rng=Streams(0))
    assert made.images.shape == (2 * NUM_CLASSES, 1, 4, 4)


def test_divergence_raises_an_error_that_names_the_loss_term():
    with pytest.raises(NonFiniteError, match="condensation/matching is not finite at step"):
        condense(DistributionMatching(ipc=1, iterations=6, lr=1e38, width=4))


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"ipc": 11}, "condensed_together is 10; accepted: 11 or more"),
        ({"iterations": 0}, "iterations is 0"),
        ({"real_batch": 0}, "real_batch is 0"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"width": 0}, "width is 0"),
        ({"depth": 0}, "depth is 0"),
    ],
)
def test_impossible_fields_are_refused(fields: dict, problem: str):
    with pytest.raises(InputError, match=problem):
        DistributionMatching(**fields)


def test_cached_config_has_the_ipc_that_is_optimised_together():
    assert DistributionMatching(ipc=1, condensed_together=7).cached_config() == DistributionMatching(
        ipc=7, condensed_together=7
    )
