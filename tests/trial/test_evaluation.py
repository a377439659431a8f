import pytest
import torch
from torch import Tensor, nn
from toy import MEAN, NUM_CLASSES, STD, answered, blobs, make_teacher

from condkd_ray.data.datasets import RealImages
from condkd_ray.models.teacher import Teacher
from condkd_ray.trial.evaluation import ROUND_SUBSET, accuracy, evaluate, predict
from condkd_ray.trial.proxy import views


class Brightness(nn.Module):
    """Names a flat image by its grey value, 60 a class; counts the images it sees, and dislikes training mode."""

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


def test_predictions_come_in_the_order_of_the_images_over_all_batches(teacher):
    labels = torch.randint(NUM_CLASSES, (1234,), generator=torch.Generator().manual_seed(0))
    network = Brightness().train()
    found = predict(network, flat(labels), teacher)
    assert torch.equal(found, labels)
    assert found.dtype == torch.int64
    assert network.seen == 1234


def test_accuracy_is_the_share_named_right(teacher):
    images = flat(torch.arange(NUM_CLASSES).repeat(2))
    wrong = RealImages(images.pixels, torch.tensor([0, 1, 2, 3, 3, 3, 3, 3]))
    assert accuracy(Brightness(), images, teacher) == 1
    assert accuracy(Brightness(), wrong, teacher) == 5 / 8


def test_a_round_measures_at_most_a_subset_of_the_test_images(teacher):
    labels = torch.zeros(ROUND_SUBSET + 300, dtype=torch.int64)
    labels[ROUND_SUBSET:] = 1
    images = flat(torch.zeros_like(labels))
    proxy = views(answered(blobs(4), teacher), teacher, seed=0)
    network = Brightness()
    found = evaluate(network, teacher=teacher, proxy=proxy, val=None, test=RealImages(images.pixels, labels))
    assert found["student/test_accuracy"] == 1
    assert network.seen == ROUND_SUBSET + len(proxy)
    assert set(found) == {"proxy/agreement", "proxy/kl", "student/test_accuracy"}


def test_or_all_of_them_where_that_is_asked_for(teacher):
    test = flat(torch.zeros(ROUND_SUBSET + 300, dtype=torch.int64))
    test.labels[ROUND_SUBSET:] = 1
    network, proxy = Brightness(), views(answered(blobs(4), teacher), teacher, seed=0)
    found = evaluate(network, teacher=teacher, proxy=proxy, val=test, test=test, test_rounds="full")
    assert found["student/test_accuracy"] == ROUND_SUBSET / len(test)
    assert found["student/val_accuracy"] == 1
    assert network.seen == len(test) + ROUND_SUBSET + len(proxy)


def test_the_teacher_as_its_own_student(teacher):
    proxy = views(answered(blobs(4), teacher), teacher, seed=0)
    test, val = blobs(64, seed=2), blobs(32, seed=3)
    found = evaluate(teacher.network, teacher=teacher, proxy=proxy, val=val, test=test)
    assert found["proxy/agreement"] == 1
    assert found["proxy/kl"] == pytest.approx(0, abs=1e-5)
    assert found["student/val_accuracy"] == accuracy(teacher.network, val, teacher)
    assert found["student/test_accuracy"] == accuracy(teacher.network, test, teacher) > 0.8
