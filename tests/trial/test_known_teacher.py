"""The check that a user's teacher recognises the images: what is refused, with which causes, and what is logged."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn
from toy import IMAGE_SHAPE, NUM_CLASSES, TEACHER, blobs, make_teacher, wrap
from toy import MEAN as BLOB_MEAN
from toy import STD as BLOB_STD

from condkd_ray.core.method import InputError
from condkd_ray.core.rng import Streams
from condkd_ray.data.datasets import DataConfig, Dataset, RealImages, load
from condkd_ray.methods.supervised import Supervised, as_teacher
from condkd_ray.models import ResNet
from condkd_ray.models.hooks import BatchNorms
from condkd_ray.models.teacher import Teacher
from condkd_ray.trial import known_teacher
from condkd_ray.trial.known_teacher import check_known, examine, fresh_bn

NAMES = ("nw", "ne", "sw", "se")


def dataset(order: tuple[int, ...] = (0, 1, 2, 3), count: int = 40) -> Dataset:
    """Return a data set of blobs whose class k is the corner `order[k]`."""
    folder_of = torch.tensor([order.index(corner) for corner in range(NUM_CLASSES)])
    parts = (blobs(count, seed=5), blobs(count, seed=6))
    train, test = (RealImages(part.pixels, folder_of[part.labels]) for part in parts)
    names = tuple(NAMES[corner] for corner in order)
    return Dataset("toy", train, None, test, NUM_CLASSES, names, BLOB_MEAN, BLOB_STD, False, "digest")


@cache
def digits() -> Dataset:
    return load(DataConfig(name="digits"))


@cache
def _weights() -> dict[str, torch.Tensor]:
    data = digits()
    with Streams(0).forked("init/teacher"):
        network = ResNet(depth=8, width=8).build(data.image_shape, 10)
    recipe = {"mean": data.mean, "std": data.std, "flip_ok": False, "rng": Streams(0)}
    Supervised(epochs=8).train(network, data.train.pixels, data.train.labels, **recipe)
    return network.state_dict()


def of_digits(**changes: object) -> Teacher:
    """Return an accurate teacher of digits on the data set `digits` with `changes`."""
    network = ResNet(depth=8, width=8).build(digits().image_shape, 10)
    network.load_state_dict(_weights())
    return as_teacher(network, replace(digits(), **changes))  # type: ignore[arg-type]


def test_a_teacher_that_recognises_the_images_is_described_in_one_sentence():
    sentence = check_known(of_digits(), digits(), force=False)
    assert sentence.startswith("the teacher classifies 9")
    assert "% of 970 images of digits correctly (95 % interval " in sentence
    assert sentence.endswith("%)")
    assert "card" not in sentence


class Sigmoids(nn.Module):
    """A network whose outputs are sigmoids, divided by their sum."""

    def __init__(self) -> None:
        super().__init__()
        self.network = make_teacher().network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        outputs = self.network(images).sigmoid()
        return outputs / outputs.sum(1, keepdim=True)


@pytest.mark.parametrize("make", [lambda: nn.Sequential(make_teacher().network, nn.Softmax(1)), Sigmoids])
def test_a_teacher_that_returns_probabilities_is_refused_unless_forced(make: Callable[[], nn.Module]):
    wanted = (
        r"^teacher's outputs for 40 images of toy are probabilities, from \S+ to \S+ with sums .*before the softmax"
    )
    with pytest.raises(InputError, match=wanted):
        check_known(wrap(make()), dataset(), force=False)
    text = check_known(wrap(make()), dataset((1, 0, 2, 3)), force=True)
    assert text.startswith("taken by force: teacher's accuracy on 40 images of toy is 0.")
    assert "; teacher's outputs for 40 images of toy are probabilities, from " in text
    assert "--force" not in text


def test_log_probabilities_are_logits():
    logarithms = wrap(nn.Sequential(make_teacher().network, nn.LogSoftmax(1)))
    assert check_known(logarithms, dataset(), force=False).startswith("the teacher classifies ")


def test_the_check_uses_the_same_images_every_time_and_at_most_100_a_class():
    first, again = (examine(of_digits(), digits()) for _ in range(2))
    assert first.number == again.number
    assert first.found == again.found
    assert first.given.labels.bincount().max() <= 100


def test_held_out_images_are_used_if_train_has_few():
    assert examine(make_teacher(), dataset(count=16)).number == 32
    assert examine(make_teacher(), dataset(count=40)).number == 40


def test_the_check_uses_fewer_images_for_a_large_network(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(known_teacher, "AFFORDABLE", 1.0)
    assert examine(of_digits(), digits()).number == 200


@pytest.mark.parametrize("order", [(1, 2, 3, 0), (1, 0, 2, 3)])
def test_another_order_of_the_classes_is_refused_with_the_order_of_the_teacher(order: tuple[int, ...]):
    with pytest.raises(InputError, match=r"in the order nw, ne, sw, se it would be 0\.[89]\d+: --class-order nw ne sw"):
        check_known(make_teacher(), dataset(order), force=False)
    sentence = check_known(make_teacher(), dataset(order), force=True)
    assert sentence.startswith("taken by force: teacher's accuracy on 40 images of toy is 0.")
    assert "--force" not in sentence


def test_the_order_is_the_stated_cause_if_the_teacher_recognises_most_classes():
    train, order = digits().train, torch.tensor([1, 0, 3, 2, *range(4, 10)])
    swapped = replace(digits(), train=RealImages(train.pixels, order[train.labels]))
    expected = (
        r"is 0\.[56]\d+; accepted: the classes in the teacher's order, and the normalisation it was trained with; "
    )
    with pytest.raises(InputError, match=expected):
        check_known(of_digits(), swapped, force=False)


def test_the_message_on_folders_names_their_classes_txt():
    examined = examine(make_teacher(), dataset((1, 0, 2, 3)), what="the images in photos", in_folders=True)
    assert examined.message.startswith("teacher's accuracy on the images in photos is 0.")
    given = "write that to its classes.txt, one name per line, or give --class-order nw ne sw se (teacher.clas"
    assert given in examined.message


def test_names_with_spaces_are_quoted():
    named = replace(dataset((1, 0, 2, 3)), class_names=("top right", "top left", "sw", "se"))
    assert "--class-order 'top left' 'top right' sw se " in examine(make_teacher(), named).message


@pytest.mark.parametrize("order", [(1, 2, 3, 0), (3, 1, 0, 2)])
def test_a_teacher_with_reordered_classes_recognises_the_images(order: tuple[int, ...]):
    reordered = dataset(order)
    examined = examine(make_teacher(), reordered)
    assert examined.found.order is not None
    teacher = make_teacher().in_order(examined.found.order)
    assert examine(teacher, reordered).found.share == pytest.approx(examined.found.ordered)
    assert check_known(teacher, reordered, force=False).startswith("the teacher classifies 9")
    images = reordered.train.samples(BLOB_MEAN, BLOB_STD).images
    assert torch.equal(teacher.logits(images)[:, list(examined.found.order)], make_teacher().logits(images))


@pytest.mark.parametrize(("mean", "std"), [((0.0,), (1.0,)), ((0.5,), (0.5,)), ((0.3,), (1.2,))])
def test_another_normalisation_is_refused_with_the_one_that_fits(mean: tuple[float, ...], std: tuple[float, ...]):
    examined = examine(of_digits(mean=mean, std=std), digits())
    if examined.gain < known_teacher.REFUSED:
        assert examined.found.share > 0.85
        return
    with pytest.raises(InputError, match=r"likely causes: another --mean and --std than it was trained with: with --m"):
        check_known(of_digits(mean=mean, std=std), digits(), force=False)
    assert examined.better is not None
    right = of_digits(mean=examined.better.mean, std=examined.better.std)
    assert examine(right, digits()).found.share > 0.9


def test_a_missing_normalisation_is_refused():
    with pytest.raises(
        InputError, match=r"with --mean 0\.305\d* --std 0\.375\d* \(data.mean, data.std\) it would be 0.9"
    ):
        check_known(of_digits(mean=(0.0,), std=(1.0,)), digits(), force=False)


def test_the_range_0_to_255_is_found_for_a_teacher_trained_on_it():
    teacher = of_digits(mean=(0.0,), std=(1 / 255,))
    with torch.no_grad():  # as in networks with normalisation as a layer, the inputs are scaled inside
        inner, (mean, std) = teacher.network, (digits().mean[0], digits().std[0])

    class ScalesInputs(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.inner((images / 255 - mean) / std)

    examined = examine(as_teacher(ScalesInputs(), digits()), digits())
    assert examined.better is not None
    assert (examined.better.mean, examined.better.std) == ((0.0,), (1 / 255,))
    assert "--mean 0 --std 0.00392157" in examined.message


def test_another_normalisation_and_another_order_are_both_named():
    names = tuple(str((k + 1) % 10) for k in range(10))
    shifted = replace(
        digits(), train=RealImages(digits().train.pixels, (digits().train.labels - 1) % 10), class_names=names
    )
    message = examine(of_digits(mean=(0.0,), std=(1.0,)), shifted).message
    assert "with --mean 0.305" in message
    assert "--class-order 0 1 2 3 4 5 6 7 8 9" in message


def test_untrained_bn_statistics_are_named_in_a_refusal_and_also_if_the_teacher_is_accepted():
    teacher = of_digits()
    assert fresh_bn(teacher) == ()
    network = teacher.network
    for layer in network.modules():
        if isinstance(layer, BatchNorms):
            layer.reset_running_stats()
    fresh = as_teacher(network, digits())
    assert fresh_bn(fresh) == tuple(fresh.bn_inputs)
    with pytest.raises(InputError, match=r"its BN layers have untrained statistics .running means 0, variances 1.: th"):
        check_known(fresh, digits(), force=False)
    one = of_digits().network
    layer = next(layer for layer in one.modules() if isinstance(layer, BatchNorms))
    # The network computes the same function, with the statistics folded into scale and shift.
    scale = (layer.running_var + layer.eps).rsqrt() * (1 + layer.eps) ** 0.5
    layer.bias.data -= layer.weight.data * layer.running_mean * (layer.running_var + layer.eps).rsqrt()
    layer.weight.data *= scale
    layer.reset_running_stats()
    sentence = check_known(as_teacher(one, digits()), digits(), force=False)
    assert "; 1 of its 9 BN layers have untrained statistics" in sentence


def test_the_message_on_an_untrained_network_suggests_no_order_and_no_normalisation():
    for seed in range(3):
        with Streams(seed).forked("init/teacher"):
            network = ResNet(depth=8, width=8).build(digits().image_shape, 10)
        examined = examine(as_teacher(network, digits()), digits())
        assert examined.refused
        assert "untrained statistics" in examined.message
        assert "it would be" not in examined.message


def test_images_that_the_teacher_does_not_recognise_are_refused():
    rng = torch.Generator().manual_seed(0)
    noise = RealImages(torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8, generator=rng), torch.arange(40) % 4)
    with pytest.raises(InputError, match=r"teacher's accuracy on the images in photos is .* likely causes"):
        check_known(
            make_teacher(), replace(dataset(), train=noise, test=noise), force=False, what="the images in photos"
        )


def test_a_teacher_that_recognises_only_the_largest_class_is_refused():
    network = TEACHER.build(IMAGE_SHAPE, NUM_CLASSES)
    with torch.no_grad():
        network.classifier.weight.zero_()
        network.classifier.bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))
    for layer in network.modules():
        if isinstance(layer, BatchNorms):
            layer.running_mean.add_(1)
    train = blobs(400, seed=5)
    rows = torch.cat([(train.labels == k).nonzero()[: 100 if k == 0 else 12, 0] for k in range(4)])
    with pytest.raises(InputError, match=r"is 0\.250; accepted: more than 0\.625 of 4 classes"):
        check_known(wrap(network), replace(dataset(), train=train[rows]), force=False)


def test_few_images_are_accepted_with_a_note_that_they_prove_nothing():
    rows = torch.arange(4)
    few = replace(dataset(), train=blobs(4, seed=5)[rows], test=blobs(4, seed=6)[rows])
    labels = torch.tensor([0, 1, 3, 2])
    few = replace(few, train=RealImages(few.train.pixels, labels), test=RealImages(few.test.pixels, labels))
    sentence = check_known(make_teacher(), few, force=False)
    assert "this does not prove that it recognises them: more than 62.5% would" in sentence


@pytest.mark.parametrize(("promised", "expected"), [(0.97, "; its card states 97.0%"), (None, "")])
def test_the_accuracy_on_the_teachers_card_is_logged(promised: float | None, expected: str):
    sentence = check_known(of_digits(), digits(), force=False, stated=promised)
    assert sentence.endswith(expected) if promised else "card" not in sentence


def weak(share: float) -> Dataset:
    """Return digits, with the labels of a `share` of the images replaced by 0 to 9 in turn."""
    train, count = digits().train, len(digits().train)
    moved = torch.arange(count) < share * count
    return replace(digits(), train=RealImages(train.pixels, torch.where(moved, torch.arange(count) % 10, train.labels)))


def test_an_accuracy_far_below_the_cards_is_logged_and_below_half_of_it_refused():
    sentence = check_known(of_digits(), weak(0.3), force=False, stated=0.97)
    assert sentence.endswith("its card states 97.0%: the measured accuracy is far lower")
    with pytest.raises(
        InputError, match=r"accepted: more than 0\.250 of 10 classes .*near the 0\.970 that its card sta"
    ):
        check_known(of_digits(), weak(0.7), force=False, stated=0.97)
    assert check_known(of_digits(), weak(0.7), force=False).startswith("the teacher classifies 3")


def test_a_weak_teacher_near_the_accuracy_on_its_card_is_accepted():
    """Because most labels are changed, it classifies a fifth correctly: little more than chance, but as on its card."""
    mislabelled = weak(0.9)
    assert examine(of_digits(), mislabelled).found.verdict == "unknown"
    assert examine(of_digits(), mislabelled).refused
    examined = examine(of_digits(), mislabelled, stated=0.19)
    assert not examined.refused
    assert "; this does not prove that it recognises them" in examined.sentence
    assert examine(of_digits(), mislabelled, stated=0.6).refused
    train = digits().train
    mixed = train.labels[torch.randperm(len(train), generator=torch.Generator().manual_seed(0))]
    assert examine(of_digits(), replace(digits(), train=RealImages(train.pixels, mixed)), stated=0.1).refused
