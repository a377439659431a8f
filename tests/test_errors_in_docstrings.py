"""Docstrings of public functions name the error for bad input."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import condkd_ray

ROOT = Path(condkd_ray.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
CONFIGURABLE = ("core", "data", "methods", "models", "testing", "trial")
"""Folders of the configurable classes, whose base class `core.method.Method` names the error for all of them."""
MAKERS = ("__init__", "__post_init__")
"""Methods whose errors the docstring of the class names."""


def raises_input_error(function: ast.FunctionDef) -> bool:
    """Return whether the body calls `require` or raises `InputError` itself."""
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "require":
            return True
        if isinstance(node, ast.Raise) and node.exc is not None and "InputError" in ast.unparse(node.exc):
            return True
    return False


def functions(tree: ast.Module | ast.ClassDef) -> Iterator[tuple[str, ast.FunctionDef, str]]:
    """Yield the public functions and methods, and `MAKERS`, each with the docstring that must name its errors."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name in MAKERS:
            yield node.name, node, ast.get_docstring(tree) or ""
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name, node, ast.get_docstring(node) or ""
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from ((f"{node.name}.{name}", one, text) for name, one, text in functions(node))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_public_function_that_raises_input_error_states_it(path):
    found = functions(ast.parse(path.read_text(encoding="utf-8")))
    silent = [name for name, one, text in found if raises_input_error(one) and "InputError" not in text]
    if path.relative_to(ROOT).parts[0] in CONFIGURABLE:
        silent = [name for name in silent if name.rpartition(".")[2] not in MAKERS]
    assert silent == []
