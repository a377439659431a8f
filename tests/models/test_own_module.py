import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from condkd_ray.core.method import InputError
from condkd_ray.models.own_module import check_answers, own_code, own_module, with_safe_convolutions
from condkd_ray.models.shortcut import Shortcut

NETS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(36, 10)

    def forward(self, x):
        return self.head(self.body(x))

class Factory:
    @staticmethod
    def make():
        return Net()

def teacher():
    return Net()

def number():
    return 3

def bare():
    return nn.Flatten()

def broken():
    raise FileNotFoundError("no weights at /data/w.pt\\nmore")

def leaves():
    raise SystemExit(3)

def asks(depth):
    return Net()

value = 3
"""


@pytest.fixture
def user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a user's package that cannot be imported from elsewhere."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets_of_a_user").mkdir()
    (tmp_path / "nets_of_a_user" / "small.py").write_text(NETS)
    (tmp_path / "nets_of_a_user" / "wrong.py").write_text("import a_module_that_nobody_has\n")
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("nets_of_a_user")]:
        del sys.modules[name]


@pytest.mark.usefixtures("user_folder")
def test_a_users_function_returns_the_network():
    for name in ("teacher", "Factory.make"):
        made = own_module(f"nets_of_a_user.small:{name}")
        assert not made.network.training
        check_answers(made.network, (1, 8, 8), 10, name)
    first, second = (own_module("nets_of_a_user.small:teacher") for _ in range(2))
    assert torch.equal(first.network.head.weight, second.network.head.weight)  # type: ignore[union-attr]
    assert first.code == second.code != own_module("nets_of_a_user.small:Factory.make").code


def test_a_changed_file_has_another_code_digest(user_folder: Path):
    before = own_module("nets_of_a_user.small:teacher").code
    del sys.modules["nets_of_a_user.small"]
    (user_folder / "nets_of_a_user" / "small.py").write_text(NETS + "# a line more\n")
    assert own_module("nets_of_a_user.small:teacher").code != before


@pytest.mark.usefixtures("user_folder")
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nets", r"^teacher module is 'nets'; accepted: package.module:function, a function without"),
        (":teacher", r"^teacher module is ':teacher'; accepted"),
        ("no_such_package:teacher", r"import of no_such_package failed \(ModuleNotFoundError: No module named"),
        ("nets_of_a_user.wrong:teacher", r"failed \(ModuleNotFoundError: No module named 'a_module_that_nobody_has'\)"),
        ("nets_of_a_user.small:none", r"none in nets_of_a_user.small is None; accepted"),
        ("nets_of_a_user.small:value", r"teacher module nets_of_a_user.small:value is 'int'; accepted"),
        ("nets_of_a_user.small:number", r"^what nets_of_a_user.small:number returns is 'int'; accepted: a torch.nn.M"),
        ("nets_of_a_user.small:bare", r"returns is 'Flatten'; accepted: a torch.nn.Module that has parameters"),
        (
            "nets_of_a_user.small:broken",
            r"^function .*small:broken failed \(FileNotFoundError: no weights at .*w.pt\);",
        ),
        ("nets_of_a_user.small:leaves", r"failed \(SystemExit: 3\)"),
        (
            "nets_of_a_user.small:asks",
            r"failed \(TypeError: asks\(\) missing 1 required positional argument: 'depth'",
        ),
    ],
)
def test_functions_that_return_no_network_are_refused_in_one_line(name: str, expected: str):
    with pytest.raises(InputError, match=expected) as caught:
        own_module(name)
    assert "\n" not in str(caught.value)


class FunctionModule(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function, self.weight = function, nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (
            lambda x: torch.zeros(2, 9),
            r"output of teacher module m for 2 images of shape \(1, 8, 8\) is \(2, 9\); accepted",
        ),
        (lambda x: (torch.zeros(2, 10),), r"is 'tuple'; accepted: a tensor of shape \(2, 10\)"),
        (lambda x: torch.full((2, 10), float("nan")), r"is 'NaN or infinite'; accepted: finite logits"),
        (lambda x: x.view(3, 5, 7), r"^teacher module m on images of shape \(1, 8, 8\) failed \(RuntimeError: "),
        (lambda x: {}["logits"], r"failed \(KeyError: 'logits'\)"),
    ],
)
def test_outputs_that_are_no_logits_are_refused(function, expected: str):
    with pytest.raises(InputError, match=expected):
        check_answers(FunctionModule(function), (1, 8, 8), 10, "m")


@pytest.mark.usefixtures("user_folder")
def test_own_code_lists_only_modules_of_the_user():
    own_module("nets_of_a_user.small:teacher")
    names = {module.__name__ for module in own_code(["nets_of_a_user.small:teacher"])}
    assert "nets_of_a_user.small" in names
    os.chdir("/")
    elsewhere = {module.__name__ for module in own_code(["nets_of_a_user.small:teacher"])}
    assert names <= elsewhere
    tops = {name.partition(".")[0] for name in elsewhere}
    assert not tops & {"condkd_ray", "torch", "numpy", "ray", "os", "collections"}


@pytest.mark.parametrize("bias", [True, False])
def test_only_narrow_convolutions_are_replaced(bias: bool):
    own = nn.Conv2d
    layers = {
        "narrow": own(8, 16, 1, 2, bias=bias),
        "uneven": own(8, 16, 1, (2, 1), bias=bias),
        "wide": own(16, 16, 1, 2),
        "whole": own(8, 16, 1),
        "large": own(8, 16, 3, 2),
        "padded": own(8, 16, 1, 2, padding=1),
        "grouped": own(8, 16, 1, 2, groups=2),
    }
    network = nn.ModuleDict(layers)
    maps = torch.randn(2, 16, 9, 12)
    before = {name: layer(maps[:, : layer.in_channels]) for name, layer in layers.items()}
    safe = with_safe_convolutions(network)
    assert {name for name, layer in safe.named_children() if isinstance(layer, Shortcut)} == {"narrow", "uneven"}
    for name, layer in layers.items():
        torch.testing.assert_close(layer(maps[:, : layer.in_channels]), before[name])


TRAINED = """
import torch
from torch import nn
from condkd_ray.models.own_module import with_safe_convolutions
torch.set_num_threads(1)
for inputs, outputs, side in ((4, 8, 16), (8, 16, 64), (12, 16, 64)):
    network = with_safe_convolutions(nn.Sequential(nn.Conv2d(inputs, outputs, 1, 2, bias=False)))
    network.to(memory_format=torch.channels_last)
    for _ in range(5):
        maps = torch.randn(64, inputs, side, side).contiguous(memory_format=torch.channels_last).requires_grad_()
        network(maps).square().sum().backward()
print("trained")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs the checks of the GNU allocator")
@pytest.mark.parametrize("arithmetic", ["AVX2", "DEFAULT"])
def test_a_users_narrow_network_trains_with_every_cpu_instruction_set(arithmetic: str):
    env = os.environ | {"ONEDNN_MAX_CPU_ISA": arithmetic, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run([sys.executable, "-c", TRAINED], env=env, capture_output=True, text=True, timeout=300)
    assert (ran.returncode, ran.stdout) == (0, "trained\n"), ran.stderr[-2000:]


@pytest.mark.parametrize(
    "how", ["from nets_of_a_user import layers", "from .layers import Net", "import nets_of_a_user.layers"]
)
@pytest.mark.parametrize("late", [False, True])
def test_a_changed_import_of_the_file_gives_another_code_digest(user_folder: Path, how: str, late: bool):
    package = user_folder / "nets_of_a_user"
    (package / "layers.py").write_text(NETS)
    (package / "starts.py").write_text("raise SystemExit('nobody may import this')\n")
    (package / "unread.py").write_text("")
    lazy = "def later():\n    from nets_of_a_user.starts import main\n"
    begin = f"def unused():\n    {how}\n" if late else f"{how}\n"
    made = "from torch import nn\ndef make():\n    return nn.Linear(2, 2)\n"
    (package / "make.py").write_text(begin + lazy + made)

    def code() -> str:
        for name in [name for name in sys.modules if name.startswith("nets_of_a_user")]:
            del sys.modules[name]
        return own_module("nets_of_a_user.make:make").code

    before = code()
    own_module("nets_of_a_user.small:teacher")
    assert own_module("nets_of_a_user.make:make").code == before
    (package / "unread.py").write_text("a = 1\n")
    assert code() == before
    (package / "layers.py").write_text(NETS + "# a line more\n")
    assert code() != before


def test_the_code_digest_does_not_depend_on_the_working_directory(user_folder: Path, monkeypatch: pytest.MonkeyPatch):
    (user_folder / "nets_of_a_user" / "layers.py").write_text(NETS)
    (user_folder / "nets_of_a_user" / "make.py").write_text("from .layers import Net\ndef make():\n    return Net()\n")
    before = own_module("nets_of_a_user.make:make").code
    monkeypatch.syspath_prepend(str(user_folder))
    monkeypatch.chdir(user_folder.parent)
    assert own_module("nets_of_a_user.make:make").code == before
