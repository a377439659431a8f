"""Parses command lines to objects of flag classes. Help texts fill the width of the terminal.

tyro keeps line breaks of our source files in the help of flags, and breaks no line of a command's description.
"""

import inspect
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructTypeInfo

from condkd_ray.commands.console.exit_codes import show
from condkd_ray.commands.front import HELP

_BREAK = re.compile(r"\n(?!\s*(?:[-*]|\d+[.)])\s)[ \t]*")
"""A line break within a paragraph; the next line begins no item of a list."""


def parse(kind: Any, arguments: list[str] | None = None, **settings: Any) -> Any:
    """Return `tyro.cli(kind, args=arguments, **settings)`; exits after help and after errors, as it does.

    The docstring of `kind` is the description in the help, and the docstrings of its attributes are the help of flags.
    """
    given = sys.argv[1:] if arguments is None else arguments
    # Not the whole path of a script, at which the usage would be broken.
    settings = {"prog": Path(sys.argv[0]).name} | settings
    text = inspect.getdoc(kind) or ""
    if "\n" in text:  # a docstring of one line may be a signature, made by `dataclass`
        settings = {"description": unwrapped(text), **settings}
    with _registry, _filled() if set(HELP) & set(given) else nullcontext():
        return tyro.cli(kind, args=arguments, **settings)


def unwrapped(text: str) -> str:
    """Return a text with one line for each paragraph and each item of a list; blank lines stay."""
    return "\n\n".join(_BREAK.sub(" ", part.strip("\n")) for part in re.split(r"\n[ \t]*\n\s*", text))


class _Captured(StringIO):
    """Captured output, in which colours are used as in the real output."""

    def __init__(self) -> None:
        super().__init__()
        self._coloured = sys.stdout.isatty()

    def isatty(self) -> bool:
        return self._coloured


@contextmanager
def _filled() -> Iterator[None]:
    """Within this context, printed lines that are wider than the terminal are broken between words."""
    printed, width = _Captured(), shutil.get_terminal_size().columns
    try:
        with redirect_stdout(printed):
            yield
    finally:
        # tyro puts two blank lines before a list.
        lines = re.sub("\n{3,}", "\n\n", printed.getvalue()).splitlines()
        show("".join(f"{_broken(line.rstrip(), width)}\n" for line in lines), end="")


def _broken(line: str, width: int) -> str:
    """Return a line broken to a width. Lines of tables, which alone may contain codes of colours, fit already."""
    fits = len(line) <= width or "\x1b" in line
    return line if fits else textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False)


_registry = ConstructorRegistry()
_delegated: list[StructTypeInfo] = []
"""Types that tyro's own rules are reading."""


@_registry.struct_rule
def _unwrap_help(info: StructTypeInfo) -> StructConstructorSpec | None:
    """Return what tyro's own rules return for a type, with unwrapped help of its flags."""
    if any(info is one for one in _delegated):
        return None
    _delegated.append(info)
    try:
        spec = ConstructorRegistry.get_struct_spec(info)
    finally:
        _delegated.pop()
    if not isinstance(spec, StructConstructorSpec):
        return None
    return replace(spec, fields=tuple(replace(one, helptext=_unwrapped_help(one.helptext)) for one in spec.fields))


def _unwrapped_help(text: str | Callable[[], str | None] | None) -> str | Callable[[], str | None] | None:
    """Return a help text unwrapped. A function stays one: tyro reads source files for it only if it prints help."""
    if callable(text):
        return lambda: None if (whole := text()) is None else unwrapped(whole)
    return None if text is None else unwrapped(text)
