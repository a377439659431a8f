"""Each field of a config has a docstring, which the command line shows."""

import ast
import inspect
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import fields

import condkd_ray
from condkd_ray.core.method import Method
from condkd_ray.trial import config as config  # imports every configurable class


def is_of_package(kind: type) -> bool:
    """Return whether a module of this package defines the class; other tests make classes that only seem so."""
    defined = kind.__module__.startswith(f"{condkd_ray.__name__}.")
    return defined and getattr(sys.modules.get(kind.__module__), kind.__qualname__, None) is kind


def configurable(kind: type = Method) -> Iterator[type]:
    """Yield the configurable classes of this package."""
    for below in kind.__subclasses__():
        if is_of_package(below):
            yield below
        yield from configurable(below)


def undocumented(kind: type) -> list[str]:
    """Return the fields that a class declares without a docstring; every method has a `name`."""
    [tree] = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef)
    after = dict(zip(tree.body, [*tree.body[1:], None], strict=True))
    own = [one for one in tree.body if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)]
    names = {one.target.id: after[one] for one in own if isinstance(one.target, ast.Name)}
    given = {one.name for one in fields(kind)} & names.keys() - {"name"}  # type: ignore[arg-type]
    return sorted(name for name in given if not is_text(names[name]))


def is_text(node: ast.AST | None) -> bool:
    """Return whether a statement is a docstring."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def test_each_field_of_a_config_has_a_docstring():
    found = {kind: undocumented(kind) for kind in set(configurable())}
    assert len(found) > 50
    assert {kind.__name__: names for kind, names in found.items() if names} == {}
