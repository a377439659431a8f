import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils._python_dispatch import TorchDispatchMode
from toy import make_teacher, samples

from condkd_ray.models import MobileNetV2, ResNet, ResNet34, SqueezeNet, Vgg11, Wrn
from condkd_ray.models.batch_norm import BatchNorm2d
from condkd_ray.models.folding import folded
from condkd_ray.models.hooks import BatchNorms
from condkd_ray.models.network import label
from condkd_ray.models.teacher import Teacher

UNFOLDED = {ResNet(depth=8, width=8): 0, ResNet34(width=8): 0, Vgg11(width=8): 0, MobileNetV2(width=8): 0}
UNFOLDED |= {Wrn(depth=16, width=1): 7, SqueezeNet(width=8): 8}
"""Number of BN layers that cannot be folded, because a ReLU, a sum or several convolutions are before them."""


def normalised(network, shape=(3, 32, 32)):
    """Return a network of 10 classes in eval mode, with BN statistics of random images, and images."""
    module, images = network.build(shape, 10), torch.randn(16, *shape)
    with torch.no_grad():
        for _ in range(5):
            module.train()(torch.randn(32, *shape))
    return module.eval(), images


def count(module):
    return sum(isinstance(layer, BatchNorms) for layer in module.modules())


@torch.no_grad()
def apart(left, right, wanted):
    """Return the mean absolute difference in units of the standard deviation of `wanted`."""
    return ((left - right).abs().mean() / wanted.std()).item()


@pytest.mark.parametrize("network", UNFOLDED, ids=label)
@torch.no_grad()
def test_the_folded_network_gives_the_same_logits(network):
    module, images = normalised(network)
    wanted, before = module(images), {name: tensor.clone() for name, tensor in module.state_dict().items()}
    one = folded(module, torch.float32, images)
    assert count(one) == UNFOLDED[network] < count(module)
    assert apart(one(images), wanted, wanted) < 1e-4
    with torch.autocast("cpu", torch.bfloat16):
        rounded, usual = folded(module, torch.bfloat16, images)(images).float(), module(images).float()
    assert apart(rounded, wanted, wanted) < 2 * apart(usual, wanted, wanted) + 1e-3
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


class Twice(nn.Module):
    """Runs one convolution twice, before a BN layer each time, and uses the output of another twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), BatchNorm2d(3), BatchNorm2d(3)
        self.other, self.third = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.hidden, self.fourth, self.last = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.second(self.conv(self.first(self.conv(images))))
        read = self.other(x)
        x = (self.third(read) + read).mean((2, 3))
        return self.last(self.fourth(self.hidden(x)).relu())


@torch.no_grad()
def test_bn_after_a_layer_that_runs_or_is_used_twice_is_not_folded():
    module = Twice()
    for _ in range(5):
        module.train()(torch.randn(32, 3, 8, 8) + 1)
    images = torch.randn(8, 3, 8, 8)
    one = folded(module.eval(), torch.float32, images)
    torch.testing.assert_close(one(images), module(images))
    assert count(one) == 3  # only the BN of the linear layer is folded


class Odd(nn.Module):
    """Computes something else when it is traced without values, or under another arithmetic, than when it is run."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.conv, self.bn, self.last, self.kind = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5), kind

    def forward(self, images: Tensor) -> Tensor:
        if self.kind == "own arithmetic":
            with torch.autocast("cpu", enabled=False):
                return self.last(self.bn(self.conv(images.float())).mean((2, 3)))
        x = self.bn(self.conv(images))
        turned = x.sum() > 1e6 if self.kind == "values" else not isinstance(images, Tensor)
        return self.last((-x if turned else x).mean((2, 3)))


@pytest.mark.parametrize("kind", ["values", "types", "own arithmetic"])
@torch.no_grad()
def test_a_network_that_would_give_other_logits_is_not_folded_and_this_is_logged(kind, logged):
    module, images = Odd(kind).eval(), torch.randn(4, 3, 8, 8)
    module.bn.weight.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert folded(module, torch.bfloat16, images) is module
    assert len(logged) == 1
    assert "batch normalisation is not folded" in logged[0]
    teacher = Teacher(
        module, num_classes=5, image_shape=(3, 8, 8), mean=(0.5,) * 3, std=(0.25,) * 3, train_size=1, flip_ok=False
    )
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        assert torch.equal(teacher.answers(images), module(images).float())
        assert torch.equal(teacher.observe(images).logits, module(images).float())
    assert (len(logged) == 3) == (kind == "own arithmetic")


@torch.no_grad()
def test_parametrised_weights_are_not_folded():
    module = nn.Sequential(
        spectral_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Flatten(),
        nn.Linear(64, 5),
    ).eval()  # fmt: skip
    images = torch.randn(4, 3, 8, 8)
    one = folded(module, torch.bfloat16, images)
    assert count(one) == 1
    with torch.autocast("cpu", torch.bfloat16):
        assert apart(one(images).float(), module(images).float(), module(images).float()) < 0.05


def test_a_teacher_uses_the_folded_network_only_under_bfloat16():
    teacher, images = make_teacher(), samples(8).images
    assert teacher.answering is teacher.network
    with torch.autocast("cpu", torch.bfloat16):
        one = teacher.answering
        assert count(one) == 0 < count(teacher.network)
        assert teacher.answering is one
        assert torch.equal(teacher.answers(images), one(images).float())
        assert teacher.answers(images).dtype == torch.float32
    assert {layer.weight.dtype for layer in one.modules() if hasattr(layer, "weight")} == {torch.bfloat16}
    assert torch.equal(teacher.answers(images), teacher.logits(images))
    assert apart(one(images.bfloat16()).float(), teacher.logits(images), teacher.logits(images)) < 0.05


def test_a_moved_teacher_is_folded_again():
    teacher = make_teacher()
    with torch.autocast("cpu", torch.bfloat16):
        before = teacher.answering
        assert teacher.to("cpu").answering is not before


def test_observing_under_bfloat16_equals_autocast_and_casts_no_weight():
    teacher, images, casts = make_teacher(), samples(8).images.requires_grad_(), []

    class Casts(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func._schema.name == "aten::_to_copy" and isinstance(args[0], nn.Parameter):
                casts.append(args[0].shape)
            return func(*args, **(kwargs or {}))

    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        wanted = teacher.network(images).float()
        teacher.observe(images)
        with Casts():
            seen = teacher.observe(images)
    assert torch.equal(seen.logits, wanted)
    found, expected = (torch.autograd.grad(logits.sum(), images)[0] for logits in (seen.logits, wanted))
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-4)
    assert not casts
    assert teacher.observe(images).logits.dtype == torch.float32
    torch.testing.assert_close(teacher.observe(images).logits, teacher.network(images))
