import re
from contextlib import ExitStack
from functools import partial

import pytest
import torch
from guard import Guard, simulated
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._dynamo.utils import counters

from condkd_ray.core import compilation
from condkd_ray.core.method import InputError, Meter, NonFiniteError
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import to_model
from condkd_ray.methods.supervised import Supervised, bf16_pays
from condkd_ray.models import parse

NORM = {"mean": (0.5,), "std": (0.25,)}


def striped(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two classes of noisy 8x8 images that differ by the direction of their stripes."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (count,), generator=rng)
    rows = (torch.arange(8) % 2 * 120).view(1, 1, 8, 1).expand(count, 1, 8, 8)
    stripes = torch.where(labels.view(-1, 1, 1, 1) == 0, rows, rows.transpose(2, 3))
    noise = torch.randint(0, 136, stripes.shape, generator=rng)
    return (stripes + noise).to(torch.uint8), labels


def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return (network(to_model(images.float() / 255, **NORM)).argmax(1) == labels).float().mean().item()


def build(seed: int = 0) -> nn.Module:
    with Streams(seed).forked("init/teacher"):
        return parse("resnet-8-4").build((1, 8, 8), 2)


def trained(seed: int = 0, **fields: float | str) -> nn.Module:
    network = build()
    method = Supervised(**{"epochs": 2, "batch": 64, **fields})  # type: ignore[arg-type]
    method.train(network, *striped(256), **NORM, flip_ok=True, rng=Streams(seed))
    return network


def test_training_lifts_accuracy():
    network = build()
    test = striped(400, seed=1)
    before = accuracy(network, *test)
    metrics = Supervised(epochs=4, batch=64).train(network, *striped(512), **NORM, flip_ok=True, rng=Streams(0))
    assert before < 0.7
    assert accuracy(network, *test) > 0.97
    assert set(metrics) == {"teacher/loss", "teacher/train_accuracy"}
    assert metrics["teacher/loss"] < 0.2
    assert metrics["teacher/train_accuracy"] > 0.9


@pytest.mark.parametrize(("spelling", "lr"), [("resnet-8-4", 0.2), ("convnet-2-8", 0.05)])
def test_networks_without_batch_norm_get_a_smaller_rate(spelling, lr):
    weights = []
    for rate in (None, lr, 0.1):
        with Streams(0).forked("init/teacher"):
            network = parse(spelling).build((1, 8, 8), 2)
        method = Supervised(epochs=1, batch=64, lr=rate)
        method.train(network, *striped(128), **NORM, flip_ok=True, rng=Streams(0))
        weights.append(torch.cat([p.detach().flatten() for p in network.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_bfloat16_learns_the_same_problem():
    network = build()
    Supervised(epochs=4, batch=64).train(
        network, *striped(512), **NORM, flip_ok=True, rng=Streams(0), precision="bfloat16"
    )
    assert all(p.dtype == torch.float32 for p in network.parameters())
    assert accuracy(network, *striped(400, seed=1)) > 0.97


def test_equal_seeds_give_equal_weights_bit_for_bit():
    first, again, other = (trained(seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    trained()
    assert torch.equal(torch.get_rng_state(), before)


def test_images_and_labels_are_left_as_they_were():
    images, labels = striped(100)
    kept = images.clone(), labels.clone()
    Supervised(epochs=1).train(build(), images, labels, **NORM, flip_ok=True, rng=Streams(0))
    assert torch.equal(images, kept[0])
    assert torch.equal(labels, kept[1])


def test_the_network_ends_in_eval_mode():
    assert not any(module.training for module in trained().modules())


class Spy(nn.Module):
    """A linear classifier that records its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images.detach())
        return self.linear(images.flatten(1))


def trained_spy(flip_ok: bool, images: Tensor, labels: Tensor, **fields: float) -> Spy:
    spy = Spy()
    method = Supervised(**{"epochs": 1, "batch": 16, "shift": 0.0, **fields})  # type: ignore[arg-type]
    method.train(spy, images, labels, **NORM, flip_ok=flip_ok, rng=Streams(0))
    return spy


def test_an_epoch_contains_each_image_once_normalised_in_batches_of_even_size():
    images = torch.arange(37, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    seen = trained_spy(False, images, torch.zeros(37, dtype=torch.int64)).seen
    assert sorted(map(len, seen)) == [12, 12, 13]
    values = torch.cat(seen)[:, 0, 0, 0]
    assert not torch.equal(values, values.sort().values)
    torch.testing.assert_close(values.sort().values, (torch.arange(37) / 255 - 0.5) / 0.25)


@pytest.mark.parametrize("flip_ok", [True, False])
def test_images_are_mirrored_only_where_that_keeps_their_class(flip_ok):
    images = torch.zeros(64, 1, 8, 8, dtype=torch.uint8)
    images[:, :, :, 0] = 255
    seen = torch.cat(trained_spy(flip_ok, images, torch.zeros(64, dtype=torch.int64)).seen)
    mirrored = (seen[:, 0, 0, 7] > 0).float().mean().item()
    assert (0.2 < mirrored < 0.8) if flip_ok else mirrored == 0


def test_shift_is_a_share_of_the_side():
    images = torch.zeros(200, 1, 8, 8, dtype=torch.uint8)
    images[:, :, 4, 4] = 255
    seen = torch.cat(trained_spy(False, images, torch.zeros(200, dtype=torch.int64), shift=0.25).seen)
    places = (seen[:, 0] > 0).nonzero()[:, 1:]
    assert places.unique().tolist() == [2, 3, 4, 5, 6]


@given(mean=st.floats(0.05, 0.95), std=st.floats(0.05, 0.5), seed=st.integers(0, 999))
def test_images_are_augmented_before_they_are_normalised(mean, std, seed):
    images = torch.randint(0, 256, (16, 1, 8, 8), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    found = []
    for constants in ({"mean": (0.0,), "std": (1.0,)}, {"mean": (mean,), "std": (std,)}):
        spy, labels = Spy(), torch.zeros(16, dtype=torch.int64)
        Supervised(epochs=1).train(spy, images, labels, **constants, flip_ok=True, rng=Streams(seed))  # type: ignore[arg-type]
        found.append(spy.seen[0])
    assert torch.equal(to_model(found[0], (mean,), (std,)), found[1])
    assert (found[0] == 0).any()


@pytest.mark.parametrize("side", [4, 5])
def test_the_default_shift_moves_small_images_too(side):
    images = torch.zeros(64, 1, side, side, dtype=torch.uint8)
    images[:, :, side // 2] = 255
    with Streams(0).forked("spy"):
        spy = nn.Sequential(nn.Flatten(), nn.Linear(side * side, 10))
    seen: list[Tensor] = []
    spy.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    Supervised(epochs=1).train(spy, images, torch.zeros(64, dtype=torch.int64), **NORM, flip_ok=False, rng=Streams(0))
    assert (torch.cat(seen) != to_model(images / 255, **NORM)).any()


def test_cutout_sets_a_square_of_normalised_images_to_the_mean():
    images, labels = torch.full((64, 1, 8, 8), 255, dtype=torch.uint8), torch.zeros(64, dtype=torch.int64)
    seen = torch.cat(trained_spy(False, images, labels, cutout=0.5).seen)
    assert set(seen.unique().tolist()) == {0.0, 2.0}
    hidden = (seen == 0).flatten(1).sum(1)
    assert hidden.max() == 16
    assert hidden.min() < 16
    assert torch.cat(trained_spy(False, images, labels).seen).min() == 2


NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("device", ["meta", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])])
def test_no_step_makes_the_host_wait_for_the_device(monkeypatch, device):
    images, labels = (part.to(device) for part in striped(512))
    network, method, ends = build().to(device), Supervised(epochs=4, batch=64, cutout=0.25), []

    def read(meter: Meter) -> dict[str, float]:
        """Skip the copy of an epoch's terms to the host: it is made at the end of an epoch, not in a step."""
        ends.append(meter)
        return {}

    monkeypatch.setattr(Meter, "read", read)
    train = partial(method.train, network, images, labels, **NORM, flip_ok=True)
    with ExitStack() as ended:
        if device == "meta":
            ended.enter_context(simulated())
        # The first training may wait, because it creates constants on the device.
        train(rng=Streams(0, device))
        if device == "meta":
            ended.enter_context(Guard())
        else:
            ended.callback(torch.cuda.set_sync_debug_mode, "default")
            torch.cuda.set_sync_debug_mode("error")
        train(rng=Streams(1, device))
    assert len(ends) == 8


@pytest.mark.gpu
@NO_GPU
def test_training_on_a_gpu_learns():
    images, labels = (part.cuda() for part in striped(512))
    network = build().cuda()
    metrics = Supervised(epochs=4, batch=64).train(
        network, images, labels, **NORM, flip_ok=True, rng=Streams(0, "cuda"), precision="bfloat16"
    )
    assert metrics["teacher/train_accuracy"] > 0.9
    assert all(parameter.is_cuda for parameter in network.parameters())
    assert accuracy(network.cpu(), *striped(400, seed=1)) > 0.97


def test_without_momentum_two_steps_follow_the_triangle_of_the_learning_rate():
    """With one batch an epoch, two epochs and the peak in the middle, both steps have half the peak rate."""
    images, labels = striped(8)
    fields = {"epochs": 2, "batch": 8, "lr": 0.2, "warmup": 0.5, "momentum": 0.0, "weight_decay": 0.0, "shift": 0.0}
    torch.manual_seed(0)
    spy = Spy()
    weight, bias = spy.linear.weight.detach().clone(), spy.linear.bias.detach().clone()
    Supervised(**fields).train(spy, images, labels, **NORM, flip_ok=False, rng=Streams(0))  # type: ignore[arg-type]
    x = ((images / 255 - 0.5) / 0.25).flatten(1)
    for _ in range(2):
        error = (x @ weight.T + bias).softmax(1) - nn.functional.one_hot(labels, 10)
        weight, bias = weight - 0.1 * error.T @ x / 8, bias - 0.1 * error.mean(0)
    torch.testing.assert_close(spy.linear.weight.detach(), weight)
    torch.testing.assert_close(spy.linear.bias.detach(), bias)


def test_on_step_is_called_for_each_step_of_all_epochs():
    calls: list[tuple[int, int]] = []
    Supervised(epochs=3, batch=64).train(
        build(), *striped(128), **NORM, flip_ok=True, rng=Streams(0), on_step=lambda *step: calls.append(step)
    )
    assert calls == [(step, 6) for step in range(1, 7)]


def test_a_loss_that_is_not_a_number_is_named():
    with pytest.raises(NonFiniteError, match=r"^loss term teacher/loss is not finite at step 1 of epoch 1$"):
        Supervised(epochs=2).train(
            build(), *striped(64), mean=(float("nan"),), std=(0.25,), flip_ok=True, rng=Streams(0)
        )


def test_images_that_are_not_uint8_are_refused():
    images, labels = striped(8)
    expected = "type of the training images is torch.float32; accepted: torch.uint8"
    with pytest.raises(InputError, match=f"^{re.escape(expected)}$"):
        Supervised().train(build(), images.float(), labels, **NORM, flip_ok=True, rng=Streams(0))


def test_compiled_training_gives_the_same_weights(monkeypatch):
    """The graph is run without code generation, which would take long."""
    monkeypatch.setitem(compilation.MODES, ("default", False), compilation.Mode("aot_eager"))
    monkeypatch.setattr(compilation, "compiler_fault", lambda device: None)
    calls, compile = [], torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda function, **given: (calls.append(given), compile(function, **given))[1]
    )
    torch.compiler.reset()
    plain = trained(cutout=0.25)
    counters.clear()
    compiled = trained(cutout=0.25, compile="default")
    assert counters["stats"]["unique_graphs"] == 1
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)
    assert len(calls) == 1
    # Nothing compiled is left: the next training compiles anew.
    trained(cutout=0.25, compile="default")
    assert len(calls) == 2


def test_compilation_without_a_compiler_is_refused_before_the_first_step(monkeypatch):
    monkeypatch.setattr(compilation, "compiler_fault", lambda device: "no g++")
    message = "compile is 'default'; accepted: off, or a machine on which PyTorch's compiler works: here no g++"
    network = build()
    before = [parameter.clone() for parameter in network.parameters()]
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        Supervised(compile="default").train(network, *striped(64), **NORM, flip_ok=True, rng=Streams(0))
    assert all(map(torch.equal, before, network.parameters()))


@pytest.mark.parametrize(
    ("field", "value"), [("epochs", 0), ("batch", 1), ("warmup", 1.5), ("shift", -0.1), ("cutout", 1.5)]
)
def test_impossible_settings_are_named(field, value):
    with pytest.raises(InputError, match=rf"^{field} of the teacher is {value}; accepted: "):
        Supervised(**{field: value})


def test_bf16_pays_only_where_the_processor_has_it(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True}, raising=False)
    assert not bf16_pays()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    assert bf16_pays()
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not bf16_pays("cpu")
