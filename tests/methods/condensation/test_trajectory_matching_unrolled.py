import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from condkd_ray.core.method import InputError
from condkd_ray.core.rng import Streams
from condkd_ray.methods.condensation.trajectory_matching import logits_with, require_memory, unroll, unrolled_bytes
from condkd_ray.models import ConvNet

CLASSES, PIXELS = 3, 4


def reference_sgd(start: Tensor, step_size: Tensor, batches: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Run plain SGD of softmax regression in float64, with the gradient computed image by image."""
    weight, bias = start[: CLASSES * PIXELS].view(CLASSES, PIXELS), start[CLASSES * PIXELS :]
    for images, labels in batches:
        weight_gradient, bias_gradient = torch.zeros_like(weight), torch.zeros_like(bias)
        for image, label in zip(images, labels.tolist(), strict=True):
            x = image.flatten()
            grown = (weight @ x + bias).exp()
            wrong = grown / grown.sum() - torch.eye(CLASSES, dtype=torch.float64)[label]
            weight_gradient = weight_gradient + wrong[:, None] * x / len(images)
            bias_gradient = bias_gradient + wrong / len(images)
        weight, bias = weight - step_size * weight_gradient, bias - step_size * bias_gradient
    return torch.cat([weight.flatten(), bias])


def test_unrolled_steps_and_both_gradients_equal_a_plain_loop():
    rng = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, CLASSES))
    start = torch.randn(CLASSES * PIXELS + CLASSES, generator=rng)
    images, labels = torch.randn(4, 5, 1, 2, 2, generator=rng), torch.randint(CLASSES, (4, 5), generator=rng)
    found = []
    for kind, run in ((torch.float32, None), (torch.float64, reference_sgd)):
        x, step_size = images.to(kind).requires_grad_(), torch.tensor(0.7, dtype=kind, requires_grad=True)
        batches = list(zip(x, labels, strict=True))
        given = start.to(kind)
        reached = run(given, step_size, batches) if run else unroll(network, given, step_size, batches)
        found.append((reached, *torch.autograd.grad(reached.square().sum(), [x, step_size])))
    assert (found[1][0] - start).abs().max() > 0.1
    assert found[1][1].flatten(1).norm(dim=1).min() > 0.01
    assert abs(found[1][2]) > 0.01
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=1e-4, rtol=1e-4)


def test_given_parameters_replace_those_of_the_network():
    with Streams(0).forked("a"):
        first, second = (ConvNet(depth=1, width=3).build((1, 8, 8), 4) for _ in range(2))
    images = torch.randn(2, 1, 8, 8)
    vector = nn.utils.parameters_to_vector(second.parameters())
    assert torch.equal(logits_with(first, vector, images), second(images))
    assert not torch.equal(logits_with(first, vector, images), first(images))


CHILD = r"""
import re, torch
from pathlib import Path
from torch import nn
from condkd_ray.methods.condensation.trajectory_matching import unroll
from condkd_ray.models import ConvNet
torch.set_num_threads(1)
network = ConvNet(depth=2, width=32).build((3, 16, 16), 10)
start = nn.utils.parameters_to_vector(network.parameters()).detach()
peak = lambda: 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
def run(steps, batch):
    images, step_size = torch.randn(batch, 3, 16, 16, requires_grad=True), torch.tensor(0.01, requires_grad=True)
    reached = unroll(network, start, step_size, [(images, torch.arange(batch) % 10)] * steps)
    torch.autograd.grad((reached - start).square().sum(), [images, step_size])
run(1, 2)
before = peak()
run(8, 100)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is read from /proc")
def test_the_estimate_is_between_the_peak_and_twice_the_peak():
    # Separately mapped blocks are freed at once, whereas what the allocator's heap keeps varies between runs.
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"}
    output = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True, env=env).stdout
    used = int(output)
    estimate = unrolled_bytes(ConvNet(depth=2, width=32), (3, 16, 16), 10, steps=8, batch=100)
    assert used <= estimate <= 2 * used


def test_kept_parameters_are_counted():
    def needed(kept: int) -> int:
        return unrolled_bytes(ConvNet(depth=1, width=2), (1, 8, 8), 4, steps=1, batch=1, kept=kept)

    num_parameters = (2 * 9 + 2) + (2 + 2) + (2 * 4 * 4 * 4 + 4)
    assert needed(7) - needed(0) == 7 * 4 * num_parameters


def needed(steps: int, batch: int) -> int:
    return 2**20 * (steps * batch + 3)


def test_settings_that_need_too_much_memory_are_refused_with_values_that_fit():
    require_memory(needed, 2**20 * 53, steps=5, batch=10)
    with pytest.raises(InputError) as caught:
        require_memory(needed, 2**20 * 45, steps=5, batch=10)
    assert str(caught.value) == (
        "memory of steps 5, batch 10 is '0.0518 GiB'; accepted: at most 0.0439 GiB, which are free, "
        "as with steps 4 or batch 8"
    )
    with pytest.raises(InputError, match=r"as with batch 1$"):
        require_memory(needed, 2**20 * 8, steps=5, batch=10)
    with pytest.raises(InputError, match=r"for which reducing steps or batch alone is not enough$"):
        require_memory(needed, 2**20 * 7, steps=5, batch=10)
