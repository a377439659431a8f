"""Reads users' text files: UTF-8 with or without a byte order mark, or UTF-16 with one, independent of the locale."""

import codecs
from pathlib import Path

from condkd_ray.core.method import InputError

ENCODINGS = "UTF-8, or UTF-16 with its byte order mark"
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def read_text(path: Path, what: str, accepted: str) -> str:
    """Return the text of the file given as `what`. Raises `InputError` if it cannot be read as text."""
    try:
        return decoded(path.read_bytes())
    except OSError as error:
        raise InputError(f"{what} is {str(path)!r}, which cannot be read ({error}); accepted: {accepted}") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{what} is {str(path)!r}, which cannot be read as text ({error}); accepted: {accepted} in {ENCODINGS}"
        ) from None


def decoded(data: bytes) -> str:
    """Decode the bytes of a text file.

    Raises `UnicodeDecodeError` if they are in none of `ENCODINGS`; no code page is guessed.
    """
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8")
    text = data.decode(encoding)
    if "\0" in text:
        # ASCII text in UTF-16 without a mark is valid UTF-8 with zeros.
        raise UnicodeDecodeError(encoding, data, data.index(0), data.index(0) + 1, "a zero: UTF-16 without its mark?")
    return text
