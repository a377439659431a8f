import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import losses as reference
from torch import nn
from toy import NUM_CLASSES, blobs, make_teacher, samples

from condkd_ray.core.samples import Samples, unseen
from condkd_ray.models.teacher import Teacher
from condkd_ray.trial import proxy
from condkd_ray.trial.proxy import VIEWS, compare, views


class Fixed(nn.Module):
    """A network that gives the images back as logits."""

    def forward(self, images):
        return images.flatten(1)


def test_agreement_and_kl_equal_the_plain_loop():
    rng = torch.Generator().manual_seed(0)
    student, teacher = 2 * torch.randn(2, 700, 5, generator=rng)
    found = compare(Fixed(), Samples(student.view(700, 5, 1, 1), torch.zeros(700, dtype=torch.int64), teacher))
    agreement, kl = reference.proxy(student.tolist(), teacher.tolist())
    torch.testing.assert_close(found["agreement"].item(), agreement, rtol=1e-5, atol=0)
    torch.testing.assert_close(found["kl"].item(), kl, rtol=1e-5, atol=0)


def test_a_copy_of_the_teacher_agrees_on_everything():
    teacher = make_teacher()
    found = compare(teacher.network, views(samples(5), teacher, seed=0))
    assert found["agreement"] == 1
    assert found["kl"].abs() < 1e-6


def test_views_are_fixed_by_the_seed_and_all_differ():
    teacher, images = make_teacher(), samples(6)
    found, again, other = (views(images, teacher, seed=seed) for seed in (0, 0, 1))
    assert len(found) == 6 * VIEWS
    assert torch.equal(found.images, again.images)
    assert not torch.equal(found.images, other.images)
    assert len(found.images.flatten(1).unique(dim=0)) == 6 * VIEWS


@given(mean=st.floats(0.05, 0.95), std=st.floats(0.05, 0.5), seed=st.integers(0, 999))
def test_views_less_their_noise_are_moved_pixels_normalised(mean, std, seed):
    pixels, found = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(seed)), []
    labels, network = torch.zeros(3, dtype=torch.int64), nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    options = {"num_classes": 4, "image_shape": (1, 8, 8), "train_size": 1, "flip_ok": True}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proxy, "NOISE", 0.0)
        for constants in ((0.0, 1.0), (mean, std)):
            teacher = Teacher(network, mean=constants[:1], std=constants[1:], **options)
            found.append(views(unseen(teacher.normalise(pixels), labels), teacher, seed=seed).images)
    assert torch.equal(teacher.normalise(found[0]), found[1])
    assert (found[0] == 0).any()


def test_most_views_still_look_like_their_label():
    teacher = make_teacher()
    images = blobs(8 * NUM_CLASSES, seed=9).samples(teacher.mean, teacher.std)
    found = views(images, teacher, seed=0)
    assert (found.logits.argmax(1) == found.labels).double().mean() > 0.6
