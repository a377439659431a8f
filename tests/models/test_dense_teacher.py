"""Teachers that give logits per pixel: what is found in their networks, and what they accept."""

import copy
import pickle
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condkd_ray.core.method import InputError
from condkd_ray.core.rng import Streams
from condkd_ray.models import DeepLabResNet
from condkd_ray.models.code_digest import structure_digest
from condkd_ray.models.cost import cost
from condkd_ray.models.hooks import over_space
from condkd_ray.models.observation import PENULTIMATE
from condkd_ray.models.own_module import check_output
from condkd_ray.models.teacher import Teacher

SHAPE, CLASSES = (3, 12, 16), 5
KNOWN = {"num_classes": CLASSES, "image_shape": SHAPE, "mean": (0.5,) * 3, "std": (0.25,) * 3}


class TwoHeads(nn.Module):
    """Returns a dictionary, as torchvision's segmentation networks do, with an auxiliary head that runs last."""

    def __init__(self, key: str = "out") -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU())
        self.head, self.aux = nn.Conv2d(6, CLASSES, 1), nn.Conv2d(6, CLASSES, 3, padding=1)
        self.key = key

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.body(images)
        logits = F.interpolate(self.head(maps), size=images.shape[2:], mode="bilinear")
        return OrderedDict({self.key: logits, "aux": self.aux(maps)})


class Sum(TwoHeads):
    """The logits are the sum of two convolutions."""

    def forward(self, images: Tensor) -> Tensor:
        maps = self.body(images)
        return F.interpolate(self.aux(maps) + self.head(maps), size=images.shape[2:], mode="bilinear")


@pytest.fixture
def images() -> Tensor:
    return torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0))


def deeplab() -> Teacher:
    with Streams(0).forked("init/teacher"):
        return Teacher.from_module(DeepLabResNet(width=4).build(SHAPE, CLASSES), **KNOWN)


def test_a_dense_teacher_observes_maps(images):
    teacher = deeplab()
    assert teacher.task == "segmentation"
    assert teacher.num_features == 16
    seen = teacher.observe(images, ("stages.1", PENULTIMATE), input_means=(PENULTIMATE,))
    assert seen.logits.shape == (4, CLASSES, 12, 16)
    assert seen.features.shape == (4, 16, 3, 4)
    assert torch.equal(seen.maps(PENULTIMATE), seen.features)
    assert torch.equal(seen.maps("stages.1"), seen.taps["stages.1"])
    assert torch.equal(seen.pooled("stages.1"), over_space(seen.taps["stages.1"]))
    assert seen.input_means is not None
    assert torch.equal(seen.input_means, over_space(seen.features))
    logits = teacher.network.classifier(seen.features)
    resized = F.interpolate(logits, size=(12, 16), mode="bilinear")
    torch.testing.assert_close(resized, seen.logits)
    torch.testing.assert_close(teacher.batched_logits(images), seen.logits)


def test_a_vector_is_a_map_of_one_position():
    with Streams(0).forked("init/teacher"):
        network = nn.Sequential(nn.Flatten(), nn.Linear(576, 7), nn.Linear(7, CLASSES))
    seen = Teacher.from_module(network, **KNOWN).observe(torch.zeros(2, *SHAPE))
    assert seen.maps(PENULTIMATE).shape == (2, 7, 1, 1)


def test_a_dictionary_is_read_and_the_auxiliary_head_is_not_the_classifier(images):
    module = TwoHeads().eval()
    teacher = Teacher.from_module(module, **KNOWN)
    assert teacher.num_features == 6
    torch.testing.assert_close(teacher.logits(images), module(images)["out"])
    assert isinstance(module(images), OrderedDict)  # the caller's module is left alone
    torch.testing.assert_close(teacher.network.head(teacher.observe(images).features).shape, (4, CLASSES, 6, 8))
    with torch.no_grad():
        reordered = Teacher.from_module(module, **KNOWN).in_order([4, 3, 2, 1, 0]).logits(images)
    torch.testing.assert_close(reordered, teacher.logits(images).flip(1))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda teacher: pickle.loads(pickle.dumps(teacher))])
def test_a_teacher_that_returns_a_dictionary_can_be_copied_pickled_and_named(images, copied):
    teacher = Teacher.from_module(TwoHeads(), **KNOWN)
    again = copied(teacher)
    assert torch.equal(again.logits(images), teacher.logits(images))
    assert torch.equal(again.observe(images).logits, teacher.logits(images))
    assert structure_digest(again.network) == structure_digest(teacher.network)
    assert len(again.network._forward_hooks) == len(Teacher(again.network, **KNOWN, **ELSE).network._forward_hooks) == 1


ELSE = {"train_size": 10, "flip_ok": True}


def test_a_dictionary_is_read_in_compiled_code(images):
    teacher = Teacher.from_module(TwoHeads(), **KNOWN)
    compiled = torch.compile(lambda x: teacher.network(x), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images), teacher.logits(images))


@pytest.mark.parametrize("make", [TwoHeads, lambda: DeepLabResNet(width=4).build(SHAPE, CLASSES)])
def test_logits_under_autocast_are_those_of_a_folded_copy(images, make):
    teacher = Teacher.from_module(make(), **KNOWN)
    plain = teacher.batched_logits(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert teacher.logits_network is not teacher.network
        torch.testing.assert_close(teacher.batched_logits(images), plain, rtol=0.1, atol=0.05)
        torch.testing.assert_close(teacher.observe(images).logits, plain, rtol=0.1, atol=0.05)


def test_the_order_of_outputs_is_changed_where_one_convolution_computes_them(images):
    teacher = deeplab()
    before = teacher.logits(images)
    order = [2, 0, 1, 4, 3]
    after = teacher.in_order(order).logits(images)
    for former, now in enumerate(order):
        torch.testing.assert_close(after[:, now], before[:, former])
    several = Teacher.from_module(Sum(), **KNOWN)
    before = several.logits(images)
    with pytest.raises(
        InputError, match=r"^order of the teacher's outputs, which are computed by head and other layers"
    ):
        several.in_order(order)
    assert torch.equal(several.logits(images), before)


def test_no_vector_decides_the_logits_of_pixels():
    teacher = deeplab()
    assert not teacher.decides(PENULTIMATE, teacher.num_features)
    assert "classifier" not in teacher.weighted
    assert {"stem.0", "aspp.project.0"} <= set(teacher.weighted)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            nn.Conv2d(3, CLASSES, 1, stride=2),
            r"^shape of the teacher's output for 2 images is \(2, 5, 6, 8\); accepted: \(2, 5\), logits per image, or "
            r"\(2, 5, 12, 16\), logits per pixel; smaller maps are enlarged by torch\.nn\.functional\.interpolate",
        ),
        (
            TwoHeads(key="logits"),
            r"^type of the teacher's output .* is 'OrderedDict'; accepted: .* dictionary .* 'out'$",
        ),
        (
            nn.Sequential(nn.ConvTranspose2d(3, CLASSES, 1)),
            r"^last convolution with 5 outputs of the teacher is None; accepted: a torch.nn.Conv2d with 5 outputs",
        ),
    ],
)
def test_other_outputs_are_refused_with_what_is_accepted(network, message):
    with pytest.raises(InputError, match=message):
        Teacher.from_module(network, **KNOWN)


def test_the_output_of_an_own_module_may_be_maps_or_a_dictionary():
    check_output(TwoHeads().eval(), SHAPE, CLASSES, "nets:two")
    check_output(nn.Conv2d(3, CLASSES, 1), SHAPE, CLASSES, "nets:pixels")
    with pytest.raises(
        InputError, match=r"is \(2, 5, 6, 8\); accepted: a tensor of shape \(2, 5\), logits per image, or "
    ):
        check_output(nn.Conv2d(3, CLASSES, 1, stride=2), SHAPE, CLASSES, "nets:small")


@dataclass
class ModelOutput:
    logits: Tensor


class Returns(nn.Module):
    """A segmentation network whose output is turned into something else."""

    def __init__(self, turn: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.head, self.turn = nn.Conv2d(3, CLASSES, 1), turn

    def forward(self, images: Tensor) -> object:
        return self.turn(self.head(images))


@pytest.mark.parametrize(
    ("turn", "found"),
    [
        (lambda x: (x,), "tuple"),
        (lambda x: {"logits": x}, "dict"),
        (ModelOutput, "ModelOutput"),
        (lambda x: x[:, :, ::2, ::2], "(2, 5, 6, 8)"),
        (lambda x: x[:, :4], "(2, 4, 12, 16)"),
    ],
)
def test_the_message_says_only_what_the_task_of_the_data_accepts(turn: Callable[[Tensor], object], found: str):
    maps, vectors = "(2, 5, 12, 16), logits per pixel; smaller", "(2, 5), logits per image"
    wrap = "wrap the model in a torch.nn.Module whose forward returns the logits"
    entry = "a dictionary with this tensor"
    network = Returns(turn)
    for task, named in (("segmentation", (maps,)), ("classification", (vectors,)), (None, (vectors, maps))):
        with pytest.raises(InputError) as error:
            check_output(network, SHAPE, CLASSES, "nets:own", task)  # type: ignore[arg-type]
        text = str(error.value)
        assert text.startswith(f"output of teacher module nets:own for 2 images of shape {SHAPE} is ")
        assert found in text.partition("; accepted: a tensor of shape ")[0]
        assert tuple(one for one in (vectors, maps) if one in text) == named
        assert (wrap in text) == (not found.startswith("("))
        assert (entry in text) == (not found.startswith("(") and task != "classification")
    with pytest.raises(InputError) as error:
        Teacher.from_module(network, **KNOWN)
    assert found in str(error.value).partition("; accepted: ")[0]
    assert (wrap in str(error.value)) == (not found.startswith("("))


def test_the_cost_of_a_dense_network_names_the_channels_before_the_logits():
    assert cost(TwoHeads(), SHAPE).features == 6
    assert cost(DeepLabResNet(width=4).build(SHAPE, CLASSES), SHAPE).features == 16
