"""What an error says, in one line."""


def first_line(error: BaseException, text: str | None = None) -> str:
    """The first line of `text`, by default what the error says, that is not blank; its type's name where none is."""
    lines = (line.strip() for line in (str(error) if text is None else text).splitlines())
    return next(filter(None, lines), type(error).__name__)
