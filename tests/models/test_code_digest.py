"""A module without a file is identified by its layers, its settings and its own code."""

import copy
import re
import subprocess
import sys
import threading
from collections import deque
from fractions import Fraction
from functools import partial
from operator import itemgetter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.transforms import Compose, Normalize

from condkd_ray.core.method import InputError
from condkd_ray.models.code_digest import all_tensors, structure_digest

SOURCE = """
import torch
from torch import nn

SCALE = 2.0
UNUSED = 1

def scaled(x):
    return x * SCALE

class Net(nn.Module):
    def __init__(self, power=1):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(4, 10)
        self.power = power
        self.register_buffer("shift", torch.zeros(1), persistent=False)

    @property
    def gain(self):
        return 1.0

    def forward(self, x):
        "Says nothing of what it computes."
        return self.head(scaled(self.body(x)).mean((2, 3)) ** self.power) * self.gain
"""


def made(source: str = SOURCE, *arguments: object) -> nn.Module:
    """Return the network of a source without a file, like a cell of a notebook."""
    names: dict = {"__name__": "__main__"}
    exec(source, names)
    torch.manual_seed(0)
    return names["Net"](*arguments)


def test_the_same_code_in_another_cell_has_the_same_digest():
    first = structure_digest(made())
    assert structure_digest(made()) == first
    assert structure_digest(copy.deepcopy(made())) == first
    assert structure_digest(made().double().eval().requires_grad_(False)) == first
    assert structure_digest(made(f"\n\n{SOURCE}")) == first
    assert structure_digest(made(SOURCE.replace("UNUSED = 1", "UNUSED = 2"))) == first


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (".mean((2, 3))", ".amax((2, 3))"),
        ("SCALE = 2.0", "SCALE = 3.0"),
        ("return x * SCALE", "return x + SCALE"),
        ("nn.ReLU()", "nn.ELU()"),
        ("nn.Conv2d(1, 4, 3)", "nn.Conv2d(1, 4, 3, stride=2)"),
        ("return 1.0", "return 2.0"),
        ("power=1", "power=2"),
    ],
)
def test_changes_of_the_computation_change_the_digest(old: str, new: str):
    assert old in SOURCE
    assert structure_digest(made(SOURCE.replace(old, new))) != structure_digest(made())


def test_settings_and_hooks_change_the_digest():
    hooked = made()
    hooked.head.register_forward_hook(lambda layer, inputs, output: output * 2)
    assert len({structure_digest(one) for one in (made(), made(SOURCE, 3), hooked)}) == 3


def test_all_tensors_contains_buffers_that_are_not_in_the_state_dict():
    assert "shift" in all_tensors(made())
    assert "shift" not in made().state_dict()


def test_the_digest_is_the_same_in_another_process():
    script = f"""
import torch
{SOURCE}
from condkd_ray.models.code_digest import structure_digest
print(structure_digest(Net()))
"""
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert output.strip() == structure_digest(made())


@pytest.mark.parametrize(
    "values",
    [
        (np.array(2.0), np.array(3.0)),
        (np.float32(2), np.float32(3)),
        (torch.float16, torch.float32),
        (deque([1]), deque([2])),
        (SimpleNamespace(scale=1.0), SimpleNamespace(scale=2.0)),
        (bytearray(b"a"), bytearray(b"b")),
        (Fraction(1, 2), Fraction(1, 3)),
        (itemgetter(1), itemgetter(2)),
        (re.compile("a"), re.compile("b")),
        (partial(torch.mul, 2), partial(torch.mul, 3)),
        (Compose([Normalize([0.5], [0.5])]), Compose([Normalize([0.1], [0.5])])),
        (nn.LSTM(2, 2), nn.LSTM(2, 2, batch_first=True)),
    ],
    ids=lambda values: type(values[0]).__name__,
)
def test_attributes_of_installed_classes_change_the_digest_by_their_state(values):
    digests = [structure_digest(made(SOURCE, value)) for value in (values[0], copy.deepcopy(values[0]), values[1])]
    assert digests[0] == digests[1] != digests[2]


def test_an_array_that_the_code_reads_changes_the_digest():
    source = SOURCE.replace("SCALE = 2.0", "import numpy\nSCALE = numpy.array(2.0)")
    assert structure_digest(made(source)) != structure_digest(made(source.replace("(2.0)", "(3.0)")))


def test_an_attribute_without_content_is_refused_by_name():
    with pytest.raises(InputError, match=r"teacher module Net: power is a _thread.lock, .*; accepted: a teacher whose"):
        structure_digest(made(SOURCE, threading.Lock()))
