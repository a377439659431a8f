"""Content hashes: of configs by their identity, of files and of tensors."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from condkd_ray.core.method import InputError


def identity(value: Any, *, complete: bool = False) -> Any:
    """The tree of all that shapes numbers, not where files lie: equal for two configs just if they are the same run.

    A field at its default is left out, so that a config keeps its identity when its class gets a new field. The `name`
    of a method always stays, as it tells which class the other fields are of. A default must therefore never change
    within one version of the numbers: see `condkd_ray.trial.plan.NUMBERS`. `complete` keeps fields at their
    defaults too.

    Fields marked `identity: False` are left out, for they stand elsewhere by content; a path in a field marked
    `identity: "content"` is read, and its file's digest put there. Raises `InputError` where it cannot be read.
    """
    if dataclasses.is_dataclass(value):
        parts = {f.name: _part(f, getattr(value, f.name), complete) for f in _kept(value)}
        if complete:
            return parts
        defaults = default_identities(type(value))  # type: ignore[arg-type]
        return {k: part for k, part in parts.items() if k == "name" or k not in defaults or part != defaults[k]}
    if isinstance(value, (list, tuple)):
        return [identity(item, complete=complete) for item in value]
    return str(value) if isinstance(value, Path) else value


def _part(field: dataclasses.Field[Any], value: Any, complete: bool) -> Any:
    by_content = field.metadata.get("identity") == "content" and isinstance(value, Path)
    return file_digest(value) if by_content else identity(value, complete=complete)


def _kept(kind: Any) -> list[dataclasses.Field[Any]]:
    return [f for f in dataclasses.fields(kind) if f.metadata.get("identity", True)]


@cache
def default_identities(kind: type) -> dict[str, Any]:
    """Identities of the defaults of a dataclass, by field; a field without a default is not in it."""
    made = {f: f.default_factory() for f in _kept(kind) if f.default_factory is not dataclasses.MISSING}
    given = {f: f.default for f in _kept(kind) if f.default is not dataclasses.MISSING}
    return {f.name: _part(f, default, False) for f, default in {**given, **made}.items()}


def content_hash(value: Any, digests: dict[str, str] | None = None, *, complete: bool = False) -> str:
    """16 hex digits of SHA-256 over the `identity` tree and the contents that the left-out paths stand for."""
    text = json.dumps([identity(value, complete=complete), digests or {}], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """16 hex digits of the SHA-256 of a file. Raises `InputError` where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise InputError(f"file is {str(path)!r}, which cannot be read ({error.strerror})") from None


def tensor_digest(tensors: Mapping[str, Tensor]) -> str:
    """16 hex digits of the SHA-256 of named tensors: names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}/{tensor.dtype}/{tuple(tensor.shape)}/".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
