"""Any module of a user's as a network: made by a function of theirs, checked, and safe to differentiate.

Letters: C channels, H W height and width, K classes.
"""

import ast
import copy
import importlib
import importlib.util
import inspect
import os
import sys
import sysconfig
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
from condkd_ray.core.config import content_hash, file_digest
from condkd_ray.core.method import InputError, require
from condkd_ray.models.shortcut import NARROW, Shortcut

GIVEN = "given:"
"""Begins the name of a module that was handed over as an object; a digest of what it is follows."""
FORM = "package.module:function, a function without arguments that returns a torch.nn.Module"
INSTALLED = ("site-packages", "dist-packages")
"""Folders of packages that other machines have, too."""
STANDARD = Path(sysconfig.get_path("stdlib")).resolve()
"""That of Python's own library."""


@dataclass(frozen=True)
class OwnModule:
    """A module of a user's, in eval mode on the CPU, and what names its code."""

    network: nn.Module
    code: str
    """Digest of its code: of one that a function returned the function's name, the file that defines it, and the files
    of the user's that this imports; of one that was handed over see `code_digest.structure_digest`."""


def own_module(name: str) -> OwnModule:
    """The module that `package.module:function` returns; found in the working directory too, as `python -m` would.

    It draws from a fixed seed where it draws. Raises `InputError` in one sentence, also where their code fails.
    """
    handed = "the module itself, in Python: teacher=Teacher.from_module(...); its code lies in no file that is known"
    require(not name.startswith(GIVEN), "teacher module", name, handed)
    make = _function(name)
    with _working_directory(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = _theirs(make, f"function {name}")
    require(isinstance(made, nn.Module), f"what {name} returns", type(made).__name__, "a torch.nn.Module")
    has = next(made.parameters(), None) is not None
    require(has, f"what {name} returns", type(made).__name__, "a torch.nn.Module that has parameters")
    network = _theirs(lambda: copied(made.eval()), f"copying what {name} returns")
    with _working_directory():
        sources = _sources(name, make, network)
    digests = [[module, file_digest(file)] for module, file in sorted(sources.items())]
    return OwnModule(with_safe_convolutions(network), content_hash([name, _source_digest(make), *digests]))


def _source_digest(make: Callable[[], Any]) -> str:
    """Of the file that defines the function; "" where there is none."""
    try:
        file = inspect.getsourcefile(inspect.unwrap(make))
    except TypeError:
        return ""
    return "" if file is None else file_digest(Path(file))


def _sources(name: str, make: Callable[[], Any], network: nn.Module) -> dict[str, Path]:
    """The user's own modules, by name, that the function's and those of the network's classes import; not the former.

    Own are those of its package, or beside it. They are followed by what their sources say, not by what happens to be
    imported, which other code of this process shapes; nothing is imported for that.
    """
    place, defined = name.partition(":")[0], getattr(inspect.unwrap(make), "__module__", None)
    package = place.partition(".")[0]
    left = {place, defined, *(type(layer).__module__ for layer in network.modules())}
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
    """The folder in which a package or module lies."""
    spec = _spec(package)
    if spec is None:
        return None
    places = [*(spec.submodule_search_locations or []), *([spec.origin] if spec.origin else [])]
    return Path(places[0]).resolve().parent if places else None


def _spec(module: str) -> ModuleSpec | None:
    """Of a module, imported or not. Nothing is imported, as `importlib.util.find_spec` would import what is around."""
    known = getattr(sys.modules.get(module), "__spec__", None)
    if known is not None:
        return known
    parent = module.rpartition(".")[0]
    try:
        if not parent:
            return importlib.util.find_spec(module)
        around = _spec(parent)
        places = None if around is None else around.submodule_search_locations
        return None if places is None else PathFinder.find_spec(module, list(places))
    except (ImportError, ValueError):  # no name of a module, or one that was made up at run time
        return None


def _imports(file: Path, package: str) -> Iterator[str]:
    """Names that a source file in `package` imports, anywhere in it; some are of what is in a module, not of one."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # of a file that was never imported, or was changed since
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            around = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*around, *([node.module] if node.module else [])])
            yield from (base, *(f"{base}.{alias.name}" for alias in node.names))


def _function(name: str) -> Callable[[], Any]:
    place, colon, attribute = name.partition(":")
    require(bool(place and colon and attribute), "teacher module", name, FORM)
    with _working_directory():
        found: Any = _theirs(lambda: importlib.import_module(place), f"teacher module {name}: import of {place}")
    for part in attribute.split("."):
        require(hasattr(found, part), f"teacher module {name}: {part} in {place}", None, FORM)
        found = getattr(found, part)
    require(callable(found), f"teacher module {name}", type(found).__name__, FORM)
    return found


def _theirs(run: Callable[[], Any], what: str) -> Any:
    """What code of the user's gives. Raises `InputError` for whatever it raises."""
    try:
        return run()
    except (Exception, SystemExit) as error:
        told = str(error).strip().partition("\n")[0]
        raise InputError(f"{what} failed ({type(error).__name__}: {told}); accepted: {FORM}") from error


@contextmanager
def _working_directory() -> Iterator[None]:
    """First on the import path; afterwards last, where it shadows nothing, for what their code imports late."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
        if here not in sys.path:
            sys.path.append(here)


@torch.no_grad()
def check_answers(network: nn.Module, shape: tuple[int, int, int], num_classes: int, name: str) -> None:
    """Raise `InputError` unless two normalised images of `shape` (C, H, W) become (2, K) finite logits."""
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    answer = _theirs(lambda: network(images), f"teacher module {name} on images of shape {shape}")
    accepted = f"a tensor of shape (2, {num_classes}), logits of {num_classes} classes"
    what = f"answer of teacher module {name} to 2 images of shape {shape}"
    require(isinstance(answer, Tensor), what, type(answer).__name__, accepted)
    require(tuple(answer.shape) == (2, num_classes), what, tuple(answer.shape), accepted)
    require(bool(answer.isfinite().all()), what, "NaN or infinite", f"finite logits of {num_classes} classes")


def with_safe_convolutions(network: nn.Module) -> nn.Module:
    """The same network, in which no convolution can write past a buffer: see `Shortcut`, whose sums are the same."""
    for layer in network.modules():
        # A subclass may compute something else, and padding puts places where there are none.
        plain = type(layer) is nn.Conv2d and layer.kernel_size == (1, 1) and layer.padding in ((0, 0), "valid")
        if plain and layer.groups == 1 and layer.stride != (1, 1) and layer.in_channels < NARROW:  # type: ignore[union-attr]
            layer.__class__ = Shortcut
    return network


def copied(network: nn.Module) -> nn.Module:
    """A copy on the CPU, for others to keep."""
    return copy.deepcopy(network).cpu()


def own_code(names: Iterable[str]) -> list[ModuleType]:
    """Return the imported modules that other machines may not have: of the packages of these names, or of this folder.

    A name is that of a module or of a function, `package.module:function`. Installed packages, Python itself and this
    package are left out.
    """
    here = Path.cwd().resolve()
    packages = {name.partition(":")[0].partition(".")[0] for name in names}
    if not packages:
        return []
    return [module for module in list(sys.modules.values()) if _is_own(module, packages, here)]


def is_installed(module: str) -> bool:
    """Whether other machines have the module `module` too: of a package that is installed, of Python or of this one.

    A module that is not imported, or has no file, is not; nor is what runs, a script or a notebook.
    """
    if module == "__main__":
        return False
    if module.partition(".")[0] in (*sys.builtin_module_names, condkd_ray.__name__):
        return True
    file = getattr(sys.modules.get(module), "__file__", None)
    return isinstance(file, str) and _installed(Path(file).resolve())


def _installed(path: Path) -> bool:
    return bool(set(INSTALLED) & set(path.parts)) or path.is_relative_to(STANDARD)


def _is_own(module: ModuleType, packages: Collection[str], here: Path) -> bool:
    file, name = getattr(module, "__file__", None), getattr(module, "__name__", "")
    return isinstance(file, str) and any(_is_own_file(name, file, package, here) for package in packages)


def _is_own_file(module: str, file: str, package: str, here: Path) -> bool:
    top = module.partition(".")[0]
    # What PyTorch makes up at run time has a file's name without a folder.
    if top in ("__main__", condkd_ray.__name__) or not os.path.isabs(file):
        return False
    path = Path(file).resolve()
    return path.suffix == ".py" and not _installed(path) and (top == package or path.is_relative_to(here))
