"""The sources read and write text files with an explicit encoding, independent of the locale."""

import ast

import pytest
from places import CHECKOUT, EXPERIMENTS

SOURCES = sorted([*(CHECKOUT / "condkd_ray").rglob("*.py"), *EXPERIMENTS.rglob("*.py")])


def opens_text(call: ast.Call) -> bool:
    """Return whether a call opens a text file without an encoding."""
    name = getattr(call.func, "attr", None) or getattr(call.func, "id", None)
    given = {keyword.arg for keyword in call.keywords}
    strings = [part.value for part in call.args if isinstance(part, ast.Constant) and isinstance(part.value, str)]
    if "encoding" in given:
        return False
    if name == "open":
        # A method `open` may belong to this package's stores, which have no mode; `os.open` opens no text.
        as_text = [set(string) <= set("rwax+t") for string in strings]
        return "newline" in given or any(as_text) or (isinstance(call.func, ast.Name) and not strings)
    if name == "read_text" and strings:
        return False  # the encoding by position; or the name of a distribution's file, which is UTF-8
    # This package's `read_text` is a function, which recognises encodings.
    return name in ("read_text", "write_text") and isinstance(call.func, ast.Attribute)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_text_files_have_an_encoding(source):
    tree = ast.parse(source.read_text(encoding="utf-8"))
    assert [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Call) and opens_text(node)] == []
