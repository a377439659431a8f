import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import losses as reference
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from toy import MEAN, NUM_CLASSES, STD, answered, blobs, make_teacher, samples

from condkd_ray.core.samples import Samples, unseen
from condkd_ray.data.datasets import RealImages
from condkd_ray.methods.recognition import choose
from condkd_ray.models.teacher import Teacher
from condkd_ray.trial import evaluation
from condkd_ray.trial.diagnosis import REAL_PER_CLASS
from condkd_ray.trial.evaluation import VIEWS, accuracy, compare, evaluate, predict, views
from condkd_ray.trial.subset import ROUND_SUBSET


class Brightness(nn.Module):
    """Classifies a flat image by its grey value, 60 a class; counts its inputs, and raises in training mode."""

    seen = 0

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training
        self.seen += len(images)
        grey = (images * STD[0] + MEAN[0]).mean((1, 2, 3)) * 255
        return -(grey[:, None] - 60 * torch.arange(NUM_CLASSES)).abs()


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return make_teacher()


def flat(labels: Tensor) -> RealImages:
    return RealImages((60 * labels).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8), labels)


def test_predictions_have_the_order_of_the_images_over_all_batches(teacher):
    labels = torch.randint(NUM_CLASSES, (1234,), generator=torch.Generator().manual_seed(0))
    network = Brightness().train()
    found = predict(network, flat(labels), teacher)
    assert torch.equal(found, labels)
    assert found.dtype == torch.int64
    assert network.seen == 1234


def test_accuracy_is_the_share_of_correct_predictions(teacher):
    images = flat(torch.arange(NUM_CLASSES).repeat(2))
    wrong = RealImages(images.pixels, torch.tensor([0, 1, 2, 3, 3, 3, 3, 3]))
    assert accuracy(Brightness(), images, teacher) == 1
    assert accuracy(Brightness(), wrong, teacher) == 5 / 8


def test_by_default_a_round_measures_a_subset_of_the_test_images(teacher):
    labels = torch.zeros(ROUND_SUBSET + 300, dtype=torch.int64)
    labels[ROUND_SUBSET:] = 1
    images = flat(torch.zeros_like(labels))
    proxy = views(answered(blobs(4), teacher), teacher, seed=0)
    network = Brightness()
    found = evaluate(network, teacher=teacher, proxy=proxy, val=None, test=RealImages(images.pixels, labels))
    assert found["student/test_accuracy"] == 1
    assert network.seen == ROUND_SUBSET + len(proxy)
    assert set(found) == {"proxy/agreement", "proxy/kl", "student/test_accuracy"}


class ScalarReads(TorchDispatchMode):
    """Counts values that the host reads one by one from the device."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_a_round_reads_all_its_metrics_at_once(teacher):
    images, proxy = blobs(64), views(answered(blobs(4), teacher), teacher, seed=0)
    with ScalarReads() as one:
        accuracy(teacher.network, images, teacher)
    assert one.count == 1
    with ScalarReads() as round:
        found = evaluate(teacher.network, teacher=teacher, proxy=proxy, val=images, test=images)
    assert round.count == 0
    assert all(type(value) is float for value in found.values())


def test_images_stay_uint8_until_they_are_on_the_device(teacher):
    images = blobs(64)
    assert images.to("cpu").pixels is images.pixels
    moved = images.to("meta")
    assert (moved.pixels.dtype, moved.pixels.device.type, moved.labels.device.type) == (torch.uint8, "meta", "meta")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_an_evaluation_on_a_gpu_does_not_depend_on_where_the_images_are_and_does_not_wait():
    teacher, images = make_teacher().to("cuda"), blobs(1234)
    on_device = images.to("cuda")
    expected = predict(teacher.network, images, teacher)
    assert expected.device.type == "cpu"
    assert torch.equal(predict(teacher.network, on_device, teacher), expected)
    proxy = views(with_logits(blobs(4), teacher), teacher, seed=0)
    measured = {"proxy": proxy, "val": on_device, "test": on_device, "test_rounds": "full"}
    evaluate(teacher.network, teacher=teacher, **measured)
    torch.cuda.set_sync_debug_mode("error")
    try:
        compare(teacher.network, proxy)
        evaluation.accuracy_on_device(teacher.network, on_device, teacher)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert evaluate(teacher.network, teacher=teacher, **measured)["student/test_accuracy"] > 0.8


def with_logits(images: RealImages, teacher: Teacher) -> Samples:
    samples = images.to(teacher.device).samples(MEAN, STD)
    return Samples(samples.images, samples.labels, teacher.batched_logits(samples.images))


def test_with_test_rounds_full_a_round_measures_all_test_images(teacher):
    test = flat(torch.zeros(ROUND_SUBSET + 300, dtype=torch.int64))
    test.labels[ROUND_SUBSET:] = 1
    network, proxy = Brightness(), views(answered(blobs(4), teacher), teacher, seed=0)
    found = evaluate(network, teacher=teacher, proxy=proxy, val=test, test=test, test_rounds="full")
    assert found["student/test_accuracy"] == ROUND_SUBSET / len(test)
    assert found["student/val_accuracy"] == 1
    assert network.seen == len(test) + ROUND_SUBSET + len(proxy)


def test_the_teacher_as_its_own_student_agrees_fully(teacher):
    proxy = views(answered(blobs(4), teacher), teacher, seed=0)
    test, val = blobs(64, seed=2), blobs(32, seed=3)
    found = evaluate(teacher.network, teacher=teacher, proxy=proxy, val=val, test=test)
    assert found["proxy/agreement"] == 1
    assert found["proxy/kl"] == pytest.approx(0, abs=1e-5)
    assert found["student/val_accuracy"] == accuracy(teacher.network, val, teacher)
    assert found["student/test_accuracy"] == accuracy(teacher.network, test, teacher) > 0.8


class Fixed(nn.Module):
    """A network that returns the images as logits."""

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


def test_views_depend_on_the_seed_and_all_differ():
    teacher, images = make_teacher(), samples(6)
    found, again, other = (views(images, teacher, seed=seed) for seed in (0, 0, 1))
    assert len(found) == 6 * VIEWS
    assert torch.equal(found.images, again.images)
    assert not torch.equal(found.images, other.images)
    assert len(found.images.flatten(1).unique(dim=0)) == 6 * VIEWS


@given(mean=st.floats(0.05, 0.95), std=st.floats(0.05, 0.5), seed=st.integers(0, 999))
def test_views_without_noise_are_shifted_pixels_normalised(mean, std, seed):
    pixels, found = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(seed)), []
    labels, network = torch.zeros(3, dtype=torch.int64), nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    options = {"num_classes": 4, "image_shape": (1, 8, 8), "train_size": 1, "flip_ok": True}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "NOISE", 0.0)
        for constants in ((0.0, 1.0), (mean, std)):
            teacher = Teacher(network, mean=constants[:1], std=constants[1:], **options)
            found.append(views(unseen(teacher.normalise(pixels), labels), teacher, seed=seed).images)
    assert torch.equal(teacher.normalise(found[0]), found[1])
    assert (found[0] == 0).any()


def test_most_views_are_still_classified_as_their_label():
    teacher = make_teacher()
    images = blobs(8 * NUM_CLASSES, seed=9).samples(teacher.mean, teacher.std)
    found = views(images, teacher, seed=0)
    assert (found.logits.argmax(1) == found.labels).double().mean() > 0.6


def test_reference_images_are_some_of_each_class_by_seed():
    labels = torch.arange(3).repeat_interleave(torch.tensor([80, 60, 7]))
    rows = choose(labels, REAL_PER_CLASS, seed=1)
    assert labels[rows].bincount().tolist() == [REAL_PER_CLASS, REAL_PER_CLASS, 7]
    assert len(rows.unique()) == len(rows)
    assert torch.equal(rows, choose(labels, REAL_PER_CLASS, seed=1))
    assert not torch.equal(rows, choose(labels, REAL_PER_CLASS, seed=2))


def test_choose_accepts_an_empty_set():
    assert choose(torch.zeros(0, dtype=torch.int64), REAL_PER_CLASS, seed=1).tolist() == []
