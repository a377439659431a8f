import pytest
import torch
from reference import segmentation

from condkd_ray.core.samples import UNLABELLED
from condkd_ray.methods.weighing import Equal, Modulating
from condkd_ray.models.observation import Observation

HELD = torch.tensor([70, 0, 30, 11])
NOTHING = torch.zeros(4, dtype=torch.int64)


@pytest.fixture
def logits():
    return 3 * torch.randn(6, 4, 3, 5, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def labels():
    drawn = torch.randint(-1, 4, (6, 3, 5), generator=torch.Generator().manual_seed(1))
    drawn[2] = UNLABELLED
    return drawn


def phi(logits, labels, held=HELD, **fields):
    return Modulating(**fields).bind(held)(Observation(logits, logits, torch.empty(2, 0)), labels)


def pixels(tensor):
    """Return the rows of each image's pixels as nested lists of floats."""
    return tensor.double().flatten(2).mT.tolist()


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("share_of", ["answer", "label"])
@pytest.mark.parametrize(
    ("counted", "held", "batch"), [("both", HELD, True), ("memory", HELD, False), ("batch", NOTHING, True)]
)
def test_modulating_equals_the_formula(logits, labels, gamma, share_of, counted, held, batch):
    given = labels.flatten(1).tolist() if share_of == "label" else None
    wanted = segmentation.phi(pixels(logits), gamma, held.tolist(), batch, given)
    found = phi(logits, labels, gamma=gamma, counted=counted, share_of=share_of)
    torch.testing.assert_close(found, torch.tensor(wanted))


@pytest.mark.parametrize("share_of", ["answer", "label"])
def test_pixels_that_an_augmentation_moved_in_do_not_count(logits, labels, share_of):
    inside = torch.zeros(6, 3, 5, dtype=torch.int64)
    inside[:, :, 3:], labels[:, :, 3:] = UNLABELLED, UNLABELLED
    method = Modulating(share_of=share_of).bind(HELD)
    found = method(Observation(logits, logits, torch.empty(2, 0), inside=inside), labels)
    torch.testing.assert_close(found, phi(logits[..., :3], labels[..., :3], share_of=share_of))


def test_an_image_of_one_pixel_has_the_weight_of_an_image_with_one_label(logits):
    single = logits[:, :, :1, :1]
    classified = Modulating().bind(HELD)(Observation(single[..., 0, 0], single, torch.empty(2, 0)), NOTHING)
    torch.testing.assert_close(phi(single, NOTHING), classified)


def test_images_of_rare_classes_have_larger_weights():
    of_common, of_rare = torch.zeros(2, 4, 2, 2).unbind()
    of_common[0], of_rare[1] = 2.0, 2.0
    common, rare = phi(torch.stack([of_common, of_rare]), NOTHING)
    assert rare > common > 0


def test_normalised_weights_have_mean_one(logits, labels):
    plain, scaled = phi(logits, labels), phi(logits, labels, normalise=True)
    torch.testing.assert_close(scaled, plain / plain.mean())


def test_only_through_confidence_gives_a_gradient(logits, labels):
    logits = logits.requires_grad_()
    assert not phi(logits, labels).requires_grad
    (gradient,) = torch.autograd.grad(phi(logits, labels, through_confidence=True).sum(), logits)
    assert gradient.isfinite().all()
    assert (gradient.flatten(1).abs().amax(1) > 0).all()


def test_equal_gives_one_weight_per_image(logits, labels):
    weights = Equal().bind(HELD)(Observation(logits, logits, torch.empty(2, 0)), labels)
    assert torch.equal(weights, torch.ones(6))
