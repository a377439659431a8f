"""Reads files of weights by their content, without running code from them.

A pickle can name any function. Only the harmless classes listed here are constructed from one: plain values, and
stand-ins for objects that programs commonly save beside weights. Any other name is refused, and the message names it.
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
"""First bytes of files that torch.save wrote before PyTorch 1.6, or without its zip format."""
FOREIGN = {
    b"version https://git-lfs": "it is a Git LFS pointer instead of the file: `git lfs pull` fetches the file",
    b"\x1f\x8b": "it is a gzip archive, to be unpacked first",
    b"\x89HDF": "it is an HDF5 file, as Keras writes",
    b"\x93NUMPY": "it is a NumPy array",
    b"BZh": "it is a bzip2 archive, to be unpacked first",
    b"\xfd7zXZ": "it is an xz archive, to be unpacked first",
    b"\x80": "it is a plain pickle that torch.save did not write",
    b"Rar!": "it is a RAR archive, to be unpacked first",
    b"7z\xbc\xaf": "it is a 7z archive, to be unpacked first",
}
"""First bytes of other kinds of files, and the reason to give."""


class Ignored:
    """Stand-in for an object beside the weights that is not needed: accepts any arguments and state, keeps nothing."""

    def __new__(cls, *args: object, **more: object) -> "Ignored":
        """Create an empty stand-in; the arguments are ignored."""
        return super().__new__(cls)

    def __init__(self, *args: object, **more: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


class AsDict:
    """Stand-in for another dictionary class: returns an `OrderedDict`, which the unpickler then fills."""

    def __new__(cls, *args: object) -> Any:
        """Return an empty `OrderedDict`."""
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
    """Return the classes and functions that a pickle may name, in the form `torch.serialization.safe_globals` takes."""
    scalar, reconstruct = np.float64(0).__reduce__()[0], np.zeros(1).__reduce__()[0]
    found: list[Any] = [*_PLAIN, *_BUILT_IN, np.ndarray, np.dtype]
    found += [*{type(np.dtype(code)) for code in np.typecodes["All"] if code != "O"}]
    found += [(scalar, f"{module}.scalar") for module in _NUMPY]
    found += [(reconstruct, f"{module}._reconstruct") for module in _NUMPY]
    found += [(kind, f"{home}.{name}") for name, kind in _PATHS.items() for home in ("pathlib", "pathlib._local")]
    found += [(typing.Any, "typing.Any"), *((Ignored, name) for name in _IGNORED.split())]
    return found + [(AsDict, name) for name in _DICTS.split()]


def read_file(path: Path) -> Any:
    """Return the file's content: tensors on the CPU in dictionaries. Raises `InputError` if it holds no weights."""
    if not os.path.isfile(path):
        raise InputError(f"weights file is {str(path)!r}, which is no file; accepted: {ACCEPTED}")
    try:
        return _read(path)
    except Exception as error:  # the loaders may raise anything on an unknown file
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"weights file {path} cannot be read safely ({reason}); accepted: {ACCEPTED}") from None


class _ForeignError(Exception):
    """The file holds something else; the message gives the reason."""


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
    """Return the reason why a file with these first bytes cannot be read."""
    known = next((what for begin, what in FOREIGN.items() if head.startswith(begin)), None)
    if known is not None:
        return known
    if head[257:262] == b"ustar":
        return "it is a tar archive, to be unpacked first"
    if head.lstrip().startswith(b"<"):
        return "it is a web page, probably from a failed download"
    return "it is neither safetensors nor a file of torch.save, or it is cut off" if head else "it is empty"


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
    """Return the content of a torch.save file, in either format. Raises `_ForeignError` if reading it needs code."""
    # An open file, because torch.load would choose the reader of a path by its suffix.
    with open(path, "rb") as file, warnings.catch_warnings(), torch.serialization.safe_globals(_harmless()):
        warnings.simplefilter("ignore")
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            # PyTorch's message recommends trusting the class; ours names the safe remedy.
            named = re.search(r"(?:GLOBAL|global:?) (?:GLOBAL )?([\w.]+)", str(error))
            if named is None:
                raise
            remedy = "on the machine that made it: torch.save(model.state_dict(), 'weights.pt')"
            if any(name.startswith("torch.nn.modules.") for name in _named_globals(path)):
                raise _ForeignError(f"it is a whole pickled module, and reading it would run code; {remedy}") from None
            raise _ForeignError(f"it names {named[1]}, which may run code; without it, {remedy}") from None


def _named_globals(path: Path) -> set[str]:
    """Return the classes and functions that the file's pickles name, without running the pickles."""
    if not zipfile.is_zipfile(path):
        with open(path, "rb") as file:
            # Four pickles in a row: magic number, protocol, system information, and the saved object.
            return {name for _ in range(4) for name in _globals_of(file)}
    with zipfile.ZipFile(path) as archive:
        [name] = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        with archive.open(name) as file:
            return set(_globals_of(file))  # type: ignore[arg-type]


def _globals_of(file: BinaryIO) -> Iterator[str]:
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "GLOBAL":
            yield str(argument).replace(" ", ".")
