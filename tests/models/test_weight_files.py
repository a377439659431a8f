import argparse
import collections
import datetime
import os
import pickle
import subprocess
import sys
import tarfile
import types
from pathlib import Path, PureWindowsPath

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from condkd_ray.core.method import InputError
from condkd_ray.models.weight_files import read_file

STATE = {"weight": torch.ones(2, 2), "bias": torch.zeros(2)}
BESIDE = {
    "namespace": argparse.Namespace(lr=0.1, out=Path("runs"), nested=argparse.Namespace(epochs=3)),
    "simple_namespace": types.SimpleNamespace(a=1),
    "numpy_scalars": {"acc": np.float64(0.93), "epoch": np.int64(3), "half": np.float16(1), "yes": np.bool_(True)},
    "numpy_array": np.arange(6.0).reshape(2, 3),
    "numpy_dtype": np.dtype("float32"),
    "paths": [Path("a"), PureWindowsPath("b")],
    "defaultdict": collections.defaultdict(list, {"a": [1]}),
    "ordered": collections.OrderedDict(a=1),
    "counter": collections.Counter("aab"),
    "date": datetime.datetime(2026, 1, 2),
    "delta": datetime.timedelta(seconds=3),
    "frozen": frozenset({1}),
    "builtin_type": float,
    "torch": [torch.float16, torch.Size([2]), torch.device("cpu")],
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", BESIDE)
def test_harmless_values_beside_the_weights_are_read(tmp_path: Path, kind: str, zipped: bool):
    path = tmp_path / "w.pt"
    torch.save({"state_dict": STATE, "args": BESIDE[kind]}, path, _use_new_zipfile_serialization=zipped)
    found = read_file(path)
    assert all(torch.equal(found["state_dict"][name], tensor) for name, tensor in STATE.items())


FOREIGN_SETTINGS = """
import sys, types, torch
module = types.ModuleType({module!r}); sys.modules[{module!r}] = module
parents = {module!r}.split(".")
for depth in range(1, len(parents)):
    sys.modules.setdefault(".".join(parents[:depth]), types.ModuleType(".".join(parents[:depth])))
exec("class {name}({base}):\\n    pass", module.__dict__)
kind = getattr(module, {name!r}); kind.__module__ = {module!r}
thing = kind(); thing.__dict__.update(content={{"lr": 0.1}})
if {base!r} == "dict": thing = kind(lr=0.1)
torch.save({{"state_dict": {{"weight": torch.ones(2, 2)}}, "cfg": thing}}, {path!r})
"""


@pytest.mark.parametrize(
    ("module", "name", "base"),
    [
        ("omegaconf.dictconfig", "DictConfig", "object"),
        ("yacs.config", "CfgNode", "dict"),
        ("lightning.fabric.utilities.data", "AttributeDict", "dict"),
    ],
)
def test_settings_of_libraries_that_are_not_installed_are_ignored(tmp_path: Path, module: str, name: str, base: str):
    program = FOREIGN_SETTINGS.format(module=module, name=name, base=base, path=str(tmp_path / "w.pt"))
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
    assert torch.equal(read_file(tmp_path / "w.pt")["state_dict"]["weight"], torch.ones(2, 2))


@pytest.mark.parametrize("name", ["w.th", "w.tar", "w.pth", "w.pth.tar", "w.bin", "w.ckpt", "w.pkl", "w", "w.zip"])
@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_the_format_is_found_for_any_suffix(tmp_path: Path, name: str, form: str):
    path = tmp_path / name
    if form == "safetensors":
        save_file(STATE, path)
    else:
        torch.save(STATE, path, _use_new_zipfile_serialization=form == "zip")
    assert torch.equal(read_file(path)["weight"], STATE["weight"])


def cut(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def torch_save(path: Path, share: float = 1.0, *, zipped: bool = True) -> None:
    torch.save({"weight": torch.randn(100, 100)}, path, _use_new_zipfile_serialization=zipped)
    cut(path, share)


def safetensors(path: Path, share: float) -> None:
    save_file({"weight": torch.randn(100, 100)}, path)
    cut(path, share)


def damaged(path: Path) -> None:
    torch_save(path)
    content = bytearray(path.read_bytes())
    place = content.index(b"data.pkl") + 100
    content[place : place + 60] = bytes(60)
    path.write_bytes(content)


def tar(path: Path) -> None:
    torch_save(inner := path.with_name("inner"))
    with tarfile.open(path, "w") as archive:
        archive.add(inner)


def exported(path: Path) -> None:
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)), path)


class Own:
    """A class that a user has defined."""


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
WRONG = {
    "empty": (lambda path: path.write_bytes(b""), "it is empty"),
    "lfs": (lambda path: path.write_text(LFS), "Git LFS pointer .*git lfs pull"),
    "html": (lambda path: path.write_text("\n<!DOCTYPE html><html>404"), "a web page"),
    "xml": (lambda path: path.write_text("<?xml version='1.0'?><Error>AccessDenied"), "a web page"),
    "text": (lambda path: path.write_text("weights"), "neither safetensors nor"),
    "zip_cut": (lambda path: torch_save(path, 0.5), "archive is damaged or cut off"),
    "zip_damaged": (damaged, "."),
    "legacy_cut": (lambda path: torch_save(path, 0.5, zipped=False), "."),
    "legacy_head": (lambda path: torch_save(path, 0.001, zipped=False), "."),
    "safetensors_cut": (lambda path: safetensors(path, 0.5), "."),
    "torchscript": (lambda path: torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path), "TorchScript program; its"),
    "export": (exported, r"program of torch\.export"),
    "numpy": (lambda path: np.savez(path, a=np.ones(2)), "zip archive that torch.save did not write"),
    "npy": (lambda path: np.save(path, np.ones(2)), "a NumPy array"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps({"weight": [1.0]})), "a plain pickle"),
    "gzip": (lambda path: path.write_bytes(b"\x1f\x8b\x08 and more"), "a gzip archive"),
    "tar": (tar, "a tar archive"),
    "module": (lambda path: torch.save(nn.Linear(2, 2), path), "whole pickled module.*torch.save.model.state_dict"),
    "own": (lambda path: torch.save({"state_dict": STATE, "own": Own()}, path), r"names .*test_weight_files\.Own"),
    "call": (lambda path: torch.save({"a": os.getcwd}, path), r"names posix\.getcwd"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", WRONG)
def test_other_files_are_refused_with_their_kind(tmp_path: Path, kind: str, suffix: str):
    write, reason = WRONG[kind]
    write(tmp_path / "w")
    [made] = [path for path in tmp_path.iterdir() if path.name.startswith("w")]
    path = made.rename(tmp_path / f"file{suffix}")
    pattern = rf"^weights file .*file{suffix} cannot be read safely \(.*{reason}.*; accepted: a safetensors file, or"
    with pytest.raises(InputError, match=pattern):
        read_file(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickled_module_is_recognised_in_both_formats(tmp_path: Path, zipped: bool):
    torch.save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        InputError, match=r"whole pickled module, .* would run code; on the machine that made it: torch.save"
    ):
        read_file(tmp_path / "w.pt")


class Harmful:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_no_function_that_a_file_names_is_run(tmp_path: Path, zipped: bool):
    torch.save(
        {"state_dict": STATE, "x": Harmful(tmp_path / "harm")}, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped
    )
    with pytest.raises(InputError, match=r"cannot be read safely \(it names posix\.mkdir"):
        read_file(tmp_path / "w.pt")
    assert not (tmp_path / "harm").exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_damaged_files_are_read_or_refused_and_never_raise_anything_else(tmp_path: Path, form: str):
    path, rng = tmp_path / "w.pt", np.random.default_rng(0)
    if form == "safetensors":
        save_file(STATE, path)
    else:
        torch.save({"model": STATE, "args": BESIDE["namespace"]}, path, _use_new_zipfile_serialization=form == "zip")
    whole, refused = path.read_bytes(), 0
    for _ in range(300):
        content = bytearray(whole)
        for place in rng.integers(len(content), size=rng.integers(1, 6)):
            content[place] = rng.integers(256)
        path.write_bytes(content[: rng.integers(len(content))] if rng.random() < 0.3 else content)
        try:
            read_file(path)
        except InputError:
            refused += 1
    assert refused > 30
