"""Loads a user's own module as a network: calls the user's function, checks the result, and makes it safe to train.

Letters: C channels, H W height and width, K classes.
"""

import ast
import copy
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

import condkd_ray
from condkd_ray.core.code_digest import is_installed_file
from condkd_ray.core.config import content_hash, file_digest
from condkd_ray.core.method import InputError, require
from condkd_ray.core.task import Task
from condkd_ray.models.hooks import accepted_outputs, accepted_shapes, logits_in
from condkd_ray.models.shortcut import NARROW, Shortcut

GIVEN = "given:"
"""Prefix of the name of a module that was passed as an object; a digest of the module follows it."""
FORM = "package.module:function, a function without arguments that returns a torch.nn.Module"


@dataclass(frozen=True)
class OwnModule:
    """A user's module, in eval mode on the CPU, and a digest of its code."""

    network: nn.Module
    code: str
    """Digest of the module's code. For a module that a function returned, it covers the function's name, the file that
    defines it, and the user's files that this file imports; for a module passed as an object, see
    `code_digest.structure_digest`."""


def own_module(name: str) -> OwnModule:
    """Return the module that `package.module:function` returns; the working directory is on the import path, too.

    The function runs with a fixed seed. Raises `InputError` in one sentence, also if the user's code fails.
    """
    accepted = "the module itself, in Python: teacher=Teacher.from_module(...); its code is in no known file"
    require(not name.startswith(GIVEN), "teacher module", name, accepted)
    make = _function(name)
    with _working_directory(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = _run_user_code(make, f"function {name}")
    require(isinstance(made, nn.Module), f"what {name} returns", type(made).__name__, "a torch.nn.Module")
    has = next(made.parameters(), None) is not None
    require(has, f"what {name} returns", type(made).__name__, "a torch.nn.Module that has parameters")
    network = _run_user_code(lambda: copied(made.eval()), f"copying what {name} returns")
    with _working_directory():
        sources = _sources(name, make, network)
    digests = [[module, file_digest(file)] for module, file in sorted(sources.items())]
    return OwnModule(with_safe_convolutions(network), content_hash([name, _source_digest(make), *digests]))


def _source_digest(make: Callable[[], Any]) -> str:
    """Return the digest of the file that defines the function; "" if there is none."""
    try:
        file = inspect.getsourcefile(inspect.unwrap(make))
    except TypeError:
        return ""
    return "" if file is None else file_digest(Path(file))


def _sources(name: str, make: Callable[[], Any], network: nn.Module) -> dict[str, Path]:
    """Return the user's modules that the function's module and the network's classes import, by name.

    The module that defines the function is left out. A module is the user's if it is in the function's package or in
    the folder of that package. Imports are read from the source text, not from `sys.modules`, which other code of this
    process also fills; nothing is imported.
    """
    module_name, defined = name.partition(":")[0], getattr(inspect.unwrap(make), "__module__", None)
    package = module_name.partition(".")[0]
    left = {module_name, defined, *(type(layer).__module__ for layer in network.modules())}
    found: dict[str, Path] = {}
    seen: set[str | None] = {None}
    root = _root(package)
    while root is not None and left:
        module = left.pop()
        if module in seen:
            continue
        seen.add(module)
        spec = _spec(module)
        if spec is not None and spec.origin and _is_own_file(module, spec.origin, package, root):
            found[module] = Path(spec.origin)
            around = module if spec.submodule_search_locations else module.rpartition(".")[0]
            left |= {module.rpartition(".")[0] or None, *_imports(found[module], around)}
    return {module: file for module, file in found.items() if module != defined}


def _root(package: str) -> Path | None:
    """Return the folder that contains a package or module."""
    spec = _spec(package)
    if spec is None:
        return None
    paths = [*(spec.submodule_search_locations or []), *([spec.origin] if spec.origin else [])]
    return Path(paths[0]).resolve().parent if paths else None


def _spec(module: str) -> ModuleSpec | None:
    """Return the spec of a module, imported or not.

    Nothing is imported: `importlib.util.find_spec` would import the packages around the module.
    """
    known = getattr(sys.modules.get(module), "__spec__", None)
    if known is not None:
        return known
    parent = module.rpartition(".")[0]
    try:
        if not parent:
            return importlib.util.find_spec(module)
        around = _spec(parent)
        folders = None if around is None else around.submodule_search_locations
        return None if folders is None else PathFinder.find_spec(module, list(folders))
    except (ImportError, ValueError):  # not a module name, or a module created at run time
        return None


def _imports(file: Path, package: str) -> Iterator[str]:
    """Yield the names that a source file in `package` imports, also inside functions; some are not modules."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # the file was never imported, or has changed since
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            around = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*around, *([node.module] if node.module else [])])
            yield from (base, *(f"{base}.{alias.name}" for alias in node.names))


def _function(name: str) -> Callable[[], Any]:
    module, colon, attribute = name.partition(":")
    require(bool(module and colon and attribute), "teacher module", name, FORM)
    with _working_directory():
        found: Any = _run_user_code(
            lambda: importlib.import_module(module), f"teacher module {name}: import of {module}"
        )
    for part in attribute.split("."):
        require(hasattr(found, part), f"teacher module {name}: {part} in {module}", None, FORM)
        found = getattr(found, part)
    require(callable(found), f"teacher module {name}", type(found).__name__, FORM)
    return found


def _run_user_code(run: Callable[[], Any], what: str) -> Any:
    """Return the result of the user's code. Raises `InputError` for any exception in it."""
    try:
        return run()
    except (Exception, SystemExit) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"{what} failed ({type(error).__name__}: {reason}); accepted: {FORM}") from error


@contextmanager
def _working_directory() -> Iterator[None]:
    """Put the working directory first on the import path; afterwards leave it last, for late imports in user code.

    At the end of the path it shadows no other module.
    """
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
        if here not in sys.path:
            sys.path.append(here)


@torch.no_grad()
def check_output(
    network: nn.Module, shape: tuple[int, int, int], num_classes: int, name: str, task: Task | None = None
) -> None:
    """Raise `InputError` unless the network maps two normalised images of `shape` (C, H, W) to finite logits.

    They are (2, K), or (2, K, H, W), or the entry "out" of a dictionary. If the `task` of the data is given, the
    message says only what this task accepts; logits of the other task raise no error here, see `as_teacher`.
    """
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    output = _run_user_code(lambda: network(images), f"teacher module {name} on images of shape {shape}")
    logits: Any = logits_in(output)
    what = f"output of teacher module {name} for 2 images of shape {shape}"
    is_tensor, accepted = isinstance(logits, Tensor), accepted_outputs(num_classes, shape, task)
    require(is_tensor, what, type(logits).__name__, accepted)
    fits = tuple(logits.shape) in ((2, num_classes), (2, num_classes, *shape[1:]))
    require(fits, what, tuple(logits.shape), f"a tensor of shape {accepted_shapes(num_classes, shape, task)}")
    require(bool(logits.isfinite().all()), what, "NaN or infinite", f"finite logits of {num_classes} classes")


def with_safe_convolutions(network: nn.Module) -> nn.Module:
    """Replace narrow strided 1x1 convolutions by `Shortcut`, which has equal results and avoids a memory error.

    The network is changed in place and returned.
    """
    for layer in network.modules():
        # A subclass may compute something else, and padding adds positions that `Shortcut` does not have.
        plain = type(layer) is nn.Conv2d and layer.kernel_size == (1, 1) and layer.padding in ((0, 0), "valid")
        if plain and layer.groups == 1 and layer.stride != (1, 1) and layer.in_channels < NARROW:  # type: ignore[union-attr]
            layer.__class__ = Shortcut
    return network


def copied(network: nn.Module) -> nn.Module:
    """Return a copy on the CPU."""
    return copy.deepcopy(network).cpu()


def own_code(names: Iterable[str]) -> list[ModuleType]:
    """Return imported modules that other machines may lack: from the named packages or the working directory.

    A name is a module or a function, `package.module:function`. Installed packages, Python itself and this
    package are left out.
    """
    here = Path.cwd().resolve()
    packages = {name.partition(":")[0].partition(".")[0] for name in names}
    if not packages:
        return []
    return [module for module in list(sys.modules.values()) if _is_own(module, packages, here)]


def _is_own(module: ModuleType, packages: Collection[str], here: Path) -> bool:
    file, name = getattr(module, "__file__", None), getattr(module, "__name__", "")
    return isinstance(file, str) and any(_is_own_file(name, file, package, here) for package in packages)


def _is_own_file(module: str, file: str, package: str, here: Path) -> bool:
    top = module.partition(".")[0]
    # Modules that PyTorch creates at run time have a file name without a folder.
    if top in ("__main__", condkd_ray.__name__) or not os.path.isabs(file):
        return False
    path = Path(file).resolve()
    return path.suffix == ".py" and not is_installed_file(path) and (top == package or path.is_relative_to(here))
