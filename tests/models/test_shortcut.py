import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from condkd_ray.models.shortcut import NARROW, Shortcut


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("sides", [(8, 8), (7, 12), (1, 5)])
@pytest.mark.parametrize("inputs", [1, 3, 8, NARROW - 1, NARROW, 24])
def test_a_shortcut_equals_the_convolution_that_it_replaces(inputs, sides, stride):
    rng = torch.Generator().manual_seed(0)
    ours, plain = Shortcut(inputs, 6, stride).double(), nn.Conv2d(inputs, 6, 1, stride, bias=False).double()
    plain.load_state_dict(ours.state_dict())
    found = []
    for layer in (ours, plain):
        maps = torch.randn(5, inputs, *sides, generator=rng.manual_seed(1), dtype=torch.float64).requires_grad_()
        output = layer(maps)
        output.square().sum().backward()
        found.append((output, maps.grad, layer.weight.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


TRAINED = """
import torch
from condkd_ray.models import parse
torch.set_num_threads(1)
name, side = {name!r}, {side}
for batch in (16, 64):
    network = parse(name).build((3, side, side), 10).to(memory_format=torch.channels_last)
    for _ in range(10):
        images = torch.randn(batch, 3, side, side).contiguous(memory_format=torch.channels_last)
        network(images).square().mean().backward()
print("trained")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs the checks of the GNU allocator")
@pytest.mark.parametrize(("name", "side", "arithmetic"), [("resnet-8-4", 16, "AVX2"), ("resnet-8-8", 64, "DEFAULT")])
def test_narrow_networks_train_with_every_cpu_instruction_set(name, side, arithmetic):
    # A write past the end of a block ends the process, at the latest when the allocator frees the block.
    env = os.environ | {"ONEDNN_MAX_CPU_ISA": arithmetic, "OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-c", TRAINED.format(name=name, side=side)]
    ran = subprocess.run(program, env=env, capture_output=True, text=True, timeout=300)
    assert (ran.returncode, ran.stdout) == (0, "trained\n"), ran.stderr[-2000:]
