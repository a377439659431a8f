"""Digest of what Python code does, for plug-ins and teachers that no installed version identifies.

The digest covers bytecode, constants, defaults and closures, and every function, class and value that the code reads
from its own modules. The bytecode belongs to one minor version of Python. Installed code, Python's included, counts by
its qualified name, because other machines have it too. Objects of installed classes count by their class and state.
All of this is our choice.
"""

import copyreg
import dis
import functools
import hashlib
import importlib
import importlib.util
import inspect
import sys
import sysconfig
import types
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from condkd_ray.core.errors import first_line
from condkd_ray.core.method import InputError

OWN = __name__.partition(".")[0]
"""This package."""
INSTALLED = ("site-packages", "dist-packages")
"""Folders of installed packages, which other machines have too."""
STANDARD = Path(sysconfig.get_path("stdlib")).resolve()
"""Folder of Python's standard library."""
ORIGIN = "__condkd_plugin__"
"""Name of the class attribute that holds a plug-in's origin; pickling a class by value preserves it."""
PLAIN = (int, float, complex, str, bytes, bool, types.NoneType, types.EllipsisType, range)
_NOT_CODE = frozenset(
    (
        *("__dict__", "__weakref__", "__module__", "__qualname__", "__doc__", "__annotations__", "__annotate__"),
        *("__annotate_func__", "__annotations_cache__", "__firstlineno__", "__static_attributes__"),
        *("_abc_impl", "__abstractmethods__", ORIGIN),
        "__slotnames__",  # which pickle adds to a class when it first pickles an object of it
    )
)
"""Attributes of a class that do not affect its computation."""
_BY_NAME = (
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.MethodWrapperType,
    types.ClassMethodDescriptorType,
)
"""Types of callables that are written in C."""
Reads = Iterator[tuple[str, Any]]
"""Names and values that code reads."""
Modules = Iterator[types.ModuleType]
_CACHES = (weakref.WeakKeyDictionary, weakref.WeakValueDictionary, weakref.WeakSet)


def is_installed(module: str) -> bool:
    """Return whether other machines have the module: it belongs to Python, this package or an installed package.

    A module that is not imported or has no file counts as its package does. A script and a notebook (`__main__`) are
    not installed.
    """
    top = module.partition(".")[0]
    if module == "__main__":
        return False
    if top in (*sys.builtin_module_names, OWN):
        return True
    name = module
    while name:
        file = getattr(sys.modules.get(name), "__file__", None)
        if isinstance(file, str):
            return is_installed_file(Path(file).resolve())
        name = name.rpartition(".")[0]
    return top in sys.stdlib_module_names


def is_installed_file(path: Path) -> bool:
    """Return whether a resolved path is in a folder of installed packages or in Python's standard library."""
    return bool(set(INSTALLED) & set(path.parts)) or path.is_relative_to(STANDARD)


class CodeWalk:
    """Feeds values, and the values they refer to, into `digest`; each function, class and object once.

    The result does not depend on the process, its hash seed, or the order of imports.

    Args:
        what: How messages name the walked thing.
        accepted: How the user can avoid a refusal.
        package: A package whose code is walked even if its files are in a folder of installed packages.
    """

    def __init__(self, what: str, accepted: str, package: str = "") -> None:
        self.digest = hashlib.sha256()
        self.modules: set[str] = set()
        """Names of modules that are not installed and that define walked code."""
        self._what, self._accepted, self._package = what, accepted, package
        self._seen: dict[int, int] = {}
        self._kept: list[Any] = []
        """References that keep the objects in `_seen` alive, so that their ids stay unique."""
        self._open: set[int] = set()
        """Ids of the containers around the current value."""
        self._labels: list[str] = []
        """Names of the attributes and variables that lead to the current value."""

    def add(self, text: str) -> None:
        """Add a text."""
        self.digest.update(f"{len(text)}:{text}".encode(errors="surrogatepass"))

    def value(self, value: Any) -> None:
        """Add any value. Raises `InputError` for a value whose content cannot be read."""
        torch = sys.modules.get("torch")
        if type(value) in PLAIN:
            self.add(f"{type(value).__name__} {value!r}")
        elif isinstance(value, slice):
            self.value((value.start, value.stop, value.step))
        elif torch is not None and isinstance(value, torch.Tensor):
            self._tensor(value, torch)
        elif isinstance(value, (set, frozenset)) or type(value) in (list, tuple, dict, types.MappingProxyType):
            self._container(value)
        else:
            self._once(value)

    def layer(self, layer: Any) -> None:
        """Add a `torch.nn.Module` without its tensors and children."""
        self.value(type(layer))
        if "_c" in vars(layer):
            return self._script(layer)
        self.add(layer.extra_repr())
        for hook in (*layer._forward_pre_hooks.values(), *layer._forward_hooks.values()):
            self.value(hook)
        for key in sorted(vars(layer).keys() - _of_every_module()):
            self.add(key)
            with self._labelled(key):
                self.value(vars(layer)[key])

    def _installed(self, module: str) -> bool:
        return module.partition(".")[0] != self._package and is_installed(module)

    def _script(self, layer: Any) -> None:
        """Add a `torch.jit.ScriptModule` by the code, constants and attributes that TorchScript has compiled."""
        code, constants = getattr(layer, "code_with_constants", ("", None))  # a container has no code
        self.add(code)
        self.value({} if constants is None else dict(constants.const_mapping))
        for name, value in sorted(layer._c.named_attributes(False), key=lambda item: item[0]):
            if not _is_torch_module(value) and type(value).__name__ != "ScriptModule":
                self.add(name)
                with self._labelled(name):
                    self.value(value)

    @contextmanager
    def _labelled(self, label: str) -> Iterator[None]:
        self._labels.append(label)
        try:
            yield
        finally:
            self._labels.pop()

    def _refuse(self, value: Any, error: Exception) -> InputError:
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        where = f"{self._labels[-1]} " if self._labels else ""
        reason = f"{type(error).__name__}: {first_line(error)}"
        return InputError(
            f"{self._what}: {where}is a {kind}, whose content cannot be read ({reason}); accepted: {self._accepted}"
        )

    def _tensor(self, value: Any, torch: Any) -> None:
        try:
            plain = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
            content = plain.reshape(-1).view(torch.uint8).numpy().data
        except (RuntimeError, TypeError) as error:  # such as a sparse or a meta tensor
            raise self._refuse(value, error) from error
        self.add(f"tensor {plain.dtype} {tuple(plain.shape)}")
        self.digest.update(content)

    def _container(self, value: Any) -> None:
        """Add a list, tuple, dictionary or set; the order of dictionaries and sets does not count."""
        if id(value) in self._open:
            return self.add("the container itself")
        self._open.add(id(value))
        self.add(f"{type(value).__name__} {len(value)}")
        if isinstance(value, (set, frozenset)):
            for digest in sorted(map(self._digest_of, value)):
                self.add(digest)
        elif isinstance(value, Mapping):
            texts = all(type(key) is str for key in value)
            for key in sorted(value, key=None if texts else self._digest_of):  # type: ignore[arg-type]
                self.value(key)
                self.value(value[key])
        else:
            for part in value:
                self.value(part)
        self._open.remove(id(value))

    def _digest_of(self, value: Any) -> str:
        """Return the digest of a value alone; it depends only on the value and on what was walked before."""
        walk = CodeWalk(self._what, self._accepted, self._package)
        walk._seen, walk._kept, walk._open = dict(self._seen), self._kept, set(self._open)
        walk._labels, walk.modules = self._labels, self.modules
        walk.value(value)
        return walk.digest.hexdigest()

    def _once(self, value: Any) -> None:
        """Add a function, class, module or object: by name if it is installed, otherwise by its code."""
        if id(value) in self._seen:
            return self.add(f"seen {self._seen[id(value)]}")
        self._seen[id(value)] = len(self._seen)
        self._kept.append(value)
        if isinstance(value, type):
            self._class(value)
        elif isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, types.ModuleType):
            self._module(value)
        elif isinstance(value, _BY_NAME):
            self._compiled(value)
        else:
            parts = _inner(value)
            self._reduced(value) if parts is None else self._parts_of(value, parts)

    def _parts_of(self, value: Any, parts: tuple[Any, ...]) -> None:
        if _is_torch_module(value):
            self.layer(value)
        else:
            self.value(type(value))
        self.value(parts)

    def _compiled(self, value: Any) -> None:
        """Add a callable that is written in C, with the object that it is bound to."""
        self.add(f"{getattr(value, '__module__', None)}.{value.__qualname__}")
        bound = getattr(value, "__self__", None)
        if not isinstance(bound, (type, types.ModuleType)):
            self.value(bound)

    def _reduced(self, value: Any) -> None:
        """Add an object by its class and state, which its own reduction for pickling gives."""
        try:
            special = copyreg.dispatch_table.get(type(value))
            parts = special(value) if special is not None else value.__reduce_ex__(4)
        except Exception as error:  # whatever the class of a user's object raises
            raise self._refuse(value, error) from error
        self.value(type(value))
        if isinstance(parts, str):
            return self.add(f"{getattr(value, '__module__', '')}.{parts}")
        make, arguments, state, items, pairs, *_ = (*parts, None, None, None, None)
        self.value((make, arguments, state))
        self.value(None if items is None else list(items))
        self.value(None if pairs is None else list(pairs))

    def _class(self, kind: type) -> None:
        if self._installed(kind.__module__):
            return self.add(f"{kind.__module__}.{kind.__qualname__}")
        self.modules.add(kind.__module__)
        self.value((type(kind), kind.__bases__))
        for key in sorted(vars(kind).keys() - _NOT_CODE):
            self.add(key)
            with self._labelled(f"{kind.__qualname__}.{key}"):
                self.value(vars(kind)[key])

    def _module(self, module: types.ModuleType) -> None:
        """Add a module that is itself a value, such as an attribute of a class; `_reads` handles most uses."""
        if self._installed(module.__name__):
            return self.add(module.__name__)
        for key in sorted(key for key in vars(module) if not key.startswith("__")):
            self.add(key)
            with self._labelled(f"{module.__name__}.{key}"):
                self.value(vars(module)[key])

    def _function(self, function: types.FunctionType) -> None:
        code, names = function.__code__, function.__globals__
        home = names.get("__name__") or ""
        # By its globals, because a decorator of another package gives its function the `__module__` of the inner one.
        if self._installed(home):
            self.add(f"{home}.{code.co_qualname}")
        else:
            self.modules.add(home)
            self._code(code, names)
        if not self._installed(home) or "<locals>" in code.co_qualname:
            self.value((function.__defaults__, function.__kwdefaults__))
            for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
                with self._labelled(name):
                    self._cell(cell)

    def _cell(self, cell: types.CellType) -> None:
        try:
            content = cell.cell_contents
        except ValueError:
            return self.add("empty cell")
        self.value(content)

    def _code(self, code: types.CodeType, names: Mapping[str, Any]) -> None:
        self.digest.update(code.co_code)
        self.value((code.co_names, code.co_varnames, code.co_freevars, code.co_flags, code.co_exceptiontable))
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self._code(constant, names)
            else:
                self.value(constant)
        for name, used in self._reads(code, names):
            self.add(name)
            with self._labelled(name):
                self.value(used)

    def _reads(self, code: types.CodeType, names: Mapping[str, Any]) -> Reads:
        """Yield globals that the code reads by name, and the attributes that it may read from modules among them."""
        steps = list(dis.get_instructions(code))
        for name in dict.fromkeys(one.argval for one in steps if one.opname in ("LOAD_GLOBAL", "LOAD_NAME")):
            if name in names:
                yield from self._parts(name, names[name], code.co_names, set())
        for number, step in enumerate(steps):
            if step.opname == "IMPORT_NAME":
                level, wanted = steps[number - 2].argval, steps[number - 1].argval
                for module in self._imported(step.argval, level, wanted or (), names):
                    yield from self._parts(module.__name__, module, code.co_names, set())

    def _parts(self, name: str, value: Any, wanted: Iterable[str], seen: set[int]) -> Reads:
        """Yield a value, or the attributes `wanted` of a module that is not installed, also from modules among them."""
        if not isinstance(value, types.ModuleType) or self._installed(value.__name__):
            yield name, value
        elif id(value) not in seen:
            seen.add(id(value))
            for other in filter(vars(value).__contains__, wanted):
                yield from self._parts(f"{name}.{other}", vars(value)[other], wanted, seen)

    def _imported(self, name: str, level: int, wanted: Iterable[str], names: Mapping[str, Any]) -> Modules:
        """Yield the modules that an import inside a function binds, unless installed; they are imported for that."""
        try:
            whole = importlib.util.resolve_name(
                "." * level + name, names.get("__package__") or names.get("__name__") or ""
            )
        except ImportError:
            return
        top = whole.partition(".")[0]
        if top != self._package and not _is_own_import(top):
            return
        try:
            found = importlib.import_module(whole)
        except (Exception, SystemExit):  # the code raises it too if it ever comes to this import
            return
        yield found if wanted else sys.modules[top]
        for part in wanted:
            if not hasattr(found, part) and importlib.util.find_spec(f"{whole}.{part}") is not None:
                yield importlib.import_module(f"{whole}.{part}")


def _is_torch_module(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)


def _inner(value: Any) -> tuple[Any, ...] | None:
    """Return the values that, with its class, identify an object; None for an object that its reduction describes."""
    if isinstance(value, types.MethodType):
        return value.__func__, value.__self__
    if isinstance(value, property):
        return value.fget, value.fset, value.fdel
    if isinstance(value, functools.cached_property):
        return (value.func,)
    if isinstance(value, _CACHES):
        return ()
    if isinstance(value, weakref.ReferenceType):
        return (value(),)
    if _is_torch_module(value):
        return {**dict(value.named_parameters()), **dict(value.named_buffers())}, dict(value.named_children())
    # Static methods, class methods and functions with a cache.
    wrapped = inspect.getattr_static(value, "__wrapped__", None)
    return None if wrapped is None else (value.__wrapped__,)


@functools.cache
def _of_every_module() -> frozenset[str]:
    """Return the attributes that PyTorch keeps in every module: parameters, buffers, children, hooks, mode."""
    from torch import nn  # there is a module, so PyTorch is imported already

    return frozenset(vars(nn.Module()))


def _is_own_import(top: str) -> bool:
    """Return whether a top-level module, imported or not, is found and is not installed."""
    if top in sys.modules or top in (*sys.builtin_module_names, *sys.stdlib_module_names, OWN):
        return not is_installed(top)
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return False
    paths = [] if spec is None else [*(spec.submodule_search_locations or []), *([spec.origin] if spec.origin else [])]
    return bool(paths) and not is_installed_file(Path(paths[0]).resolve())
