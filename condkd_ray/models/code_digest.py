"""Digest of what a module's own Python code does, for modules that no file and no name identifies.

A class of a notebook has no file that other processes find, and its cell may be run again under another name. So its
bytecode counts, with constants, defaults, closures, and the functions, classes and constants of its globals that it
uses. Code that is installed is told apart by its qualified name alone, as other machines have it too.
All of it is our choice.
"""

import dis
import functools
import hashlib
import types
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from condkd_ray.models.own_module import is_installed

PLAIN = (int, float, complex, str, bytes, bool, types.NoneType, types.EllipsisType, range, slice)
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
"""Attributes that PyTorch keeps in each module: parameters, buffers, children, hooks, mode."""
_NOT_CODE = (
    *("__dict__", "__weakref__", "__module__", "__qualname__", "__doc__", "__annotations__", "__annotate__"),
    *("__annotate_func__", "__annotations_cache__", "__firstlineno__", "__static_attributes__"),
)
"""Attributes of a class that say nothing of what it computes."""


def structure_digest(network: nn.Module) -> str:
    """16 hex digits of what a network is beside its tensors: layers, their settings, and the code of own classes.

    Equal for a network and its copies, in any process of one Python version, on any device.
    """
    walk = _Walk()
    for name, layer in network.named_modules():
        walk.add(name)
        walk.layer(layer)
    return walk.digest.hexdigest()[:16]


def all_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, those that a state dict leaves out included."""
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


class _Walk:
    """Feeds values, and what they refer to, into `digest`; each function and class once."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self._seen: dict[int, int] = {}
        self._kept: list[Any] = []
        """Keeps what `_seen` names by its address."""

    def add(self, text: str) -> None:
        self.digest.update(f"{len(text)}:{text}".encode())

    def layer(self, layer: nn.Module) -> None:
        """A module without its tensors and children."""
        self.value(type(layer))
        self.add(layer.extra_repr())
        for hook in (*layer._forward_pre_hooks.values(), *layer._forward_hooks.values()):
            self.value(hook)
        for key in sorted(vars(layer).keys() - _OF_EVERY_MODULE):
            self.add(key)
            self.value(vars(layer)[key])

    def value(self, value: Any) -> None:
        """Any value; an object of a class that is installed, and none of those below, counts by its class alone."""
        if isinstance(value, PLAIN):
            self.add(f"{type(value).__name__} {value!r}")
        elif isinstance(value, Tensor):
            plain = value.detach().cpu().contiguous()
            self.add(f"tensor {plain.dtype} {tuple(plain.shape)}")
            self.digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
        elif isinstance(value, (list, tuple, set, frozenset, Mapping)):
            self._collection(value)
        else:
            self._once(value)

    def _collection(self, value: Any) -> None:
        self.add(f"{type(value).__name__} {len(value)}")
        if isinstance(value, Mapping):
            value = [part for pair in value.items() for part in pair]
        elif isinstance(value, (set, frozenset)):
            value = sorted(value, key=repr)
        for part in value:
            self.value(part)

    def _once(self, value: Any) -> None:
        """A function, a class or an object: by its name where it is installed, else by its code."""
        if id(value) in self._seen:
            return self.add(f"seen {self._seen[id(value)]}")
        self._seen[id(value)] = len(self._seen)
        self._kept.append(value)
        named = isinstance(value, (type, types.FunctionType, types.MethodType, types.BuiltinFunctionType))
        if not named:
            self._object(value)
        elif is_installed(value.__module__ or "builtins"):
            self.add(f"{value.__module__}.{value.__qualname__}")
        elif isinstance(value, type):
            self._class(value)
        elif isinstance(value, types.MethodType):
            self.value((value.__func__, value.__self__))
        else:
            self._function(value)

    def _object(self, value: Any) -> None:
        if isinstance(value, nn.Module):
            # A child that nobody has registered, such as one in a plain list.
            self.layer(value)
            self.value([*all_tensors(value).values(), *value.children()])
        elif isinstance(value, functools.partial):
            self.value((value.func, value.args, value.keywords))
        else:
            self.value(type(value))
            if not is_installed(type(value).__module__):
                self.value(dict(getattr(value, "__dict__", {})))

    def _class(self, value: type) -> None:
        for base in value.__bases__:
            self.value(base)
        for key, part in vars(value).items():
            if key not in _NOT_CODE:
                self.add(key)
                for found in _unwrapped(part):
                    self.value(found)

    def _function(self, value: Any) -> None:
        if not isinstance(value, types.FunctionType):  # of a C extension
            return self.add(value.__qualname__)
        self.value(value.__defaults__)
        self.value(value.__kwdefaults__)
        for cell in value.__closure__ or ():
            try:
                self.value(cell.cell_contents)
            except ValueError:  # empty
                self.add("empty cell")
        self._code(value.__code__, value.__globals__)

    def _code(self, code: types.CodeType, names: Mapping[str, Any] | None = None) -> None:
        self.digest.update(code.co_code)
        self.value((code.co_names, code.co_varnames, code.co_freevars, code.co_flags))
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self._code(constant, names)
            else:
                self.value(constant)
        for used in _used(code, names or {}):
            self.value(used)


def _used(code: types.CodeType, names: Mapping[str, Any]) -> Iterator[Any]:
    """Values of the globals that code reads, and of the attributes that it may read of modules among these."""
    read = dict.fromkeys(one.argval for one in dis.get_instructions(code) if one.opname in ("LOAD_GLOBAL", "LOAD_NAME"))
    for name in filter(names.__contains__, read):
        value = names[name]
        if not isinstance(value, types.ModuleType):
            yield value
        elif not is_installed(value.__name__):
            yield from (getattr(value, other) for other in code.co_names if hasattr(value, other))


def _unwrapped(value: Any) -> list[Any]:
    """The functions of a class's attribute, or the value that it is."""
    if isinstance(value, property):
        return [value.fget, value.fset, value.fdel]
    return [value.__func__] if isinstance(value, (staticmethod, classmethod)) else [value]
