"""Computes a digest of the source code of a class, for classes that are not part of an installed distribution."""

import hashlib
import inspect
import types
from collections.abc import Iterator
from typing import Any

CONSTANTS = (bool, int, float, str)
"""Types of global values and class attributes that are included in the digest, also as tuples of these."""


def class_digest(kind: type) -> str | None:
    """Return the first 12 hex digits of the SHA-256 of a class's source; None if no source is found.

    The digest covers the class, its bases, and the functions, classes and constants that its code uses from the same
    package or script. Code of other packages is not included.
    """
    texts = dict(_texts(kind, kind.__module__.partition(".")[0], {}))
    if not texts:
        return None
    whole = "\n".join(f"{place}\n{texts[place]}" for place in sorted(texts))
    return hashlib.sha256(whole.encode()).hexdigest()[:12]


def _texts(value: Any, top: str, seen: dict[int, Any]) -> Iterator[tuple[str, str]]:
    """Yield (place, source) of a class or function in the package `top` and, recursively, of all that it uses there."""
    if id(value) in seen or not isinstance(value, (type, types.FunctionType)) or _top(value) != top:
        return
    seen[id(value)] = value
    functions = list(_functions(value))
    yield from _own_texts(value, functions)
    for base in value.__mro__[1:] if isinstance(value, type) else ():
        yield from _texts(base, top, seen)
    for function in functions:
        for name in sorted(_global_names(function.__code__)):
            used = function.__globals__.get(name)
            if _is_constant(name, used):
                yield f"{function.__module__}.{name}", repr(used)
            yield from _texts(used, top, seen)


def _own_texts(value: Any, functions: list[types.FunctionType]) -> Iterator[tuple[str, str]]:
    """Yield (place, source) of a class or function itself.

    For a class defined in a notebook, Python finds the source of the methods but not of the class. For such a class
    this yields the source of its methods and the values of its constants.
    """
    place = f"{value.__module__}.{value.__qualname__}"
    lines = _lines(value)
    if lines is not None:
        yield place, lines
        return
    found = [(function.__qualname__, _lines(function)) for function in functions]
    yield from ((f"{place}.{name}", lines) for name, lines in found if lines is not None)
    if any(lines is not None for _, lines in found):
        yield f"{place} constants", repr([item for item in vars(value).items() if _is_constant(*item)])


def _lines(value: Any) -> str | None:
    try:
        return inspect.getsource(value)
    except (OSError, TypeError):
        return None


def _functions(value: Any) -> Iterator[types.FunctionType]:
    """Yield the functions in the body of a class, or the function itself."""
    for one in vars(value).values() if isinstance(value, type) else [value]:
        parts = [one.fget, one.fset] if isinstance(one, property) else [getattr(one, "__func__", one)]
        for part in map(inspect.unwrap, filter(callable, parts)):
            # Methods that the dataclass decorator generates are left out: they follow from the fields.
            if isinstance(part, types.FunctionType) and part.__code__.co_filename != "<string>":
                yield part


def _global_names(code: types.CodeType) -> set[str]:
    """Return all names in the code of a function and its inner functions, including names of attributes."""
    inner = [_global_names(one) for one in code.co_consts if isinstance(one, types.CodeType)]
    return set(code.co_names).union(*inner)


def _is_constant(name: str, value: Any) -> bool:
    plain = all(isinstance(one, CONSTANTS) for one in (value if isinstance(value, tuple) else [value]))
    return plain and not name.startswith("__")


def _top(value: Any) -> str:
    return str(value.__module__).partition(".")[0]
