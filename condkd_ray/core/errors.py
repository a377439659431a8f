"""One-line texts of exceptions."""


def first_line(error: BaseException, text: str | None = None) -> str:
    """Return the first non-blank line of `text` (default: of the error's message), or else the name of its type."""
    lines = (line.strip() for line in (str(error) if text is None else text).splitlines())
    return next(filter(None, lines), type(error).__name__)
