"""Docstrings of public functions of the commands and of what they run name the error for bad input."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import condkd_ray

ROOT = Path(condkd_ray.__file__).parent
FOLDERS = ("cluster", "commands", "report", "runs", "study")
FILES = sorted([ROOT / "api.py", *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))])


def raises_input_error(function: ast.FunctionDef) -> bool:
    """Whether the body calls `require` or raises `InputError` itself."""
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "require":
            return True
        if isinstance(node, ast.Raise) and node.exc is not None and "InputError" in ast.unparse(node.exc):
            return True
    return False


def documented(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef, str]]:
    """Yield public functions and methods with their docstrings; for `__init__` and `__post_init__`, the class's."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name, node, ast.get_docstring(node) or ""
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for one in node.body:
                if not isinstance(one, ast.FunctionDef):
                    continue
                if one.name in ("__init__", "__post_init__"):
                    yield f"{node.name}.{one.name}", one, ast.get_docstring(node) or ""
                elif not one.name.startswith("_"):
                    yield f"{node.name}.{one.name}", one, ast.get_docstring(one) or ""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_public_function_that_raises_input_error_states_it(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    silent = [
        name for name, node, text in documented(tree) if raises_input_error(node) and "`InputError`" not in text
        and "InputError:" not in text
    ]  # fmt: skip
    assert silent == []
