"""What a file of weights holds, read by its content and without running code of it.

A pickle can name any function. Only classes listed here are made from one, all harmless to construct: plain values,
and stand-ins for what people save beside weights. Whatever else a file names is refused, by that name.
"""

import argparse
import collections
import datetime
import os
import pathlib
import pickletools
import re
import types
import typing
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors.torch import load_file

from condkd_ray.core.method import InputError

ACCEPTED = (
    "a safetensors file, or a .pt with a state dict, bare or under a key such as 'state_dict', 'model' or 'net': "
    "torch.save(model.state_dict(), 'weights.pt') writes one"
)
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""What files of torch.save begin with that were written by PyTorch before 1.6, or without its zip format."""
FOREIGN = {
    b"version https://git-lfs": "it is a Git LFS pointer in the place of the file: `git lfs pull` fetches that",
    b"\x1f\x8b": "it is a gzip archive, to be unpacked first",
    b"\x89HDF": "it is an HDF5 file, as Keras writes",
    b"\x93NUMPY": "it is a NumPy array",
    b"BZh": "it is a bzip2 archive, to be unpacked first",
    b"\xfd7zXZ": "it is an xz archive, to be unpacked first",
    b"\x80": "it is a plain pickle, not one of torch.save",
    b"Rar!": "it is a RAR archive, to be unpacked first",
    b"7z\xbc\xaf": "it is a 7z archive, to be unpacked first",
}
"""What other files begin with."""


class Ignored:
    """Stands for an object beside the weights that nobody reads: it takes whatever it is made of, and keeps nothing."""

    def __new__(cls, *args: object, **more: object) -> "Ignored":
        """Whatever it is made of is not looked at."""
        return super().__new__(cls)

    def __init__(self, *args: object, **more: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


class AsDict:
    """Stands for a dictionary of another class: an `OrderedDict`, into which the unpickler puts what it held."""

    def __new__(cls, *args: object) -> Any:
        """An empty one."""
        return collections.OrderedDict()


_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")
_IGNORED = """omegaconf.dictconfig.DictConfig omegaconf.listconfig.ListConfig omegaconf.base.ContainerMetadata
    omegaconf.base.Metadata omegaconf.nodes.AnyNode omegaconf.nodes.IntegerNode omegaconf.nodes.FloatNode
    omegaconf.nodes.StringNode omegaconf.nodes.BooleanNode pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint
    pytorch_lightning.callbacks.early_stopping.EarlyStopping"""
_DICTS = """collections.defaultdict easydict.EasyDict yacs.config.CfgNode addict.addict.Dict ml_collections.ConfigDict
    pytorch_lightning.utilities.parsing.AttributeDict lightning_fabric.utilities.data.AttributeDict
    lightning.fabric.utilities.data.AttributeDict"""
_PATHS = {"PosixPath": pathlib.PurePosixPath, "WindowsPath": pathlib.PureWindowsPath}
_PATHS |= {"PurePosixPath": pathlib.PurePosixPath, "PureWindowsPath": pathlib.PureWindowsPath}
_PLAIN = (argparse.Namespace, types.SimpleNamespace, datetime.datetime, datetime.date, datetime.timedelta)
_BUILT_IN = (bool, int, float, str, bytes, list, tuple, dict, frozenset)


def _harmless() -> list[Any]:
    """What a pickle may name, as `torch.serialization.safe_globals` takes it."""
    scalar, reconstruct = np.float64(0).__reduce__()[0], np.zeros(1).__reduce__()[0]
    found: list[Any] = [*_PLAIN, *_BUILT_IN, np.ndarray, np.dtype]
    found += [*{type(np.dtype(code)) for code in np.typecodes["All"] if code != "O"}]
    found += [(scalar, f"{module}.scalar") for module in _NUMPY]
    found += [(reconstruct, f"{module}._reconstruct") for module in _NUMPY]
    found += [(kind, f"{home}.{name}") for name, kind in _PATHS.items() for home in ("pathlib", "pathlib._local")]
    found += [(typing.Any, "typing.Any"), *((Ignored, name) for name in _IGNORED.split())]
    return found + [(AsDict, name) for name in _DICTS.split()]


def read_file(path: Path) -> Any:
    """What the file holds: tensors on the CPU in dictionaries. Raises `InputError` with what the file is instead."""
    if not os.path.isfile(path):
        raise InputError(f"weights file is {str(path)!r}, which is no file; accepted: {ACCEPTED}")
    try:
        return _read(path)
    except Exception as error:  # whatever a stranger's file makes the loaders raise is the file's fault
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"weights file {path} cannot be read safely ({reason}); accepted: {ACCEPTED}") from None


class _ForeignError(Exception):
    """The file is something else; the message says what."""


def _read(path: Path) -> Any:
    with open(path, "rb") as file:
        head = file.read(512)
    if head.startswith(b"PK\x03\x04"):
        return _read_zip(path)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return load_file(path)
    if head.startswith(LEGACY):
        return _read_torch(path)
    raise _ForeignError(_foreign(head))


def _foreign(head: bytes) -> str:
    """What a file that begins so is, where it holds no weights that can be read."""
    known = next((what for begin, what in FOREIGN.items() if head.startswith(begin)), None)
    if known is not None:
        return known
    if head[257:262] == b"ustar":
        return "it is a tar archive, to be unpacked first"
    if head.lstrip().startswith(b"<"):
        return "it is a web page, as a download that went wrong leaves it"
    return "it is neither safetensors nor what torch.save writes, or cut off" if head else "it is empty"


def _read_zip(path: Path) -> Any:
    try:
        names = [name.partition("/")[2] for name in zipfile.ZipFile(path).namelist()]
    except zipfile.BadZipFile:
        raise _ForeignError("its archive is damaged or cut off") from None
    if "constants.pkl" in names:
        remedy = "torch.save(torch.jit.load(file).state_dict(), 'weights.pt')"
        raise _ForeignError(f"it is a TorchScript program; its weights: {remedy}")
    if any(name.startswith("models/") or name == "archive_format" for name in names):
        remedy = "torch.save(torch.export.load(file).state_dict, 'weights.pt')"
        raise _ForeignError(f"it is a program of torch.export; its weights: {remedy}")
    if "data.pkl" not in names:
        raise _ForeignError("it is a zip archive that torch.save did not write")
    return _read_torch(path)


def _read_torch(path: Path) -> Any:
    """What torch.save wrote, in either format. Raises `_ForeignError` for what it would take code to read."""
    # By an open file: from a path it would choose its reader by the suffix.
    with open(path, "rb") as file, warnings.catch_warnings(), torch.serialization.safe_globals(_harmless()):
        warnings.simplefilter("ignore")
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            # Its own words name classes to trust, and functions with which to.
            named = re.search(r"(?:GLOBAL|global:?) (?:GLOBAL )?([\w.]+)", str(error))
            if named is None:
                raise
            remedy = "where it was made: torch.save(model.state_dict(), 'weights.pt')"
            if any(name.startswith("torch.nn.modules.") for name in _named_globals(path)):
                raise _ForeignError(f"it is a whole pickled module, and reading it would run code; {remedy}") from None
            raise _ForeignError(f"it names {named[1]}, which may run code; without it, {remedy}") from None


def _named_globals(path: Path) -> set[str]:
    """Classes and functions that its pickles name, found without running these."""
    if not zipfile.is_zipfile(path):
        with open(path, "rb") as file:
            # Magic number, protocol, system, and then what was saved.
            return {name for _ in range(4) for name in _globals_of(file)}
    with zipfile.ZipFile(path) as archive:
        [name] = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        with archive.open(name) as file:
            return set(_globals_of(file))  # type: ignore[arg-type]


def _globals_of(file: BinaryIO) -> Iterator[str]:
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "GLOBAL":
            yield str(argument).replace(" ", ".")
