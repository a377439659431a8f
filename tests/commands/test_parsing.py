"""Help texts fill the width of the terminal, whatever lines the source files have."""

import re
from dataclasses import dataclass
from itertools import pairwise

import pytest

from condkd_ray.commands.front import VERBS, render_help
from condkd_ray.commands.parsing import parse


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Describes a command in a paragraph that is so long that it takes two lines of a terminal with a hundred columns,
    `and` whose second line begins with a quotation mark.

    A second paragraph. It has a list:

    - a first item, which is so long that it takes two lines of a terminal with a hundred columns, more than the source
      has for it
    - a second item
    """

    size: int = 3
    """Number of things, in a text of the following two kinds, which are so long that the text takes two or three lines:
    `quoted`, and
    - listed"""


DESCRIPTION = """
Describes a command in a paragraph that is so long that it takes two lines of a terminal with a
hundred columns, `and` whose second line begins with a quotation mark.

A second paragraph. It has a list:

- a first item, which is so long that it takes two lines of a terminal with a hundred columns, more
than the source has for it
- a second item

"""
SIZE = [
    "Number of things, in a text of the following two kinds, which are so long that the",
    "text takes two or three lines: `quoted`, and",
    "- listed (default: 3)",
]


def test_paragraphs_are_filled_and_lists_and_blank_lines_stay(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")
    with pytest.raises(SystemExit) as ended:
        parse(Flags, ["--help"], prog="prog")
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert DESCRIPTION in printed
    lines = printed.splitlines()
    first = next(number for number, line in enumerate(lines) if "--size INT  " in line)
    assert [line[14:] for line in lines[first : first + 3]] == SIZE


def texts(lines: list[str]) -> list[list[str]]:
    """Return the lines of each text of a help: paragraphs of the description, and the second column of the tables."""
    column = next(line.index("show this") for line in lines if "show this" in line)
    found, in_tables = [[]], False
    for line in lines[1:]:
        in_tables = in_tables or line in (" positional arguments", " options")
        if line[: column if in_tables else 0].strip() or not line:
            found.append([])
        if line[column - 2 :].startswith("  ") if in_tables else line:
            found[-1].append(line)
    return found


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("verb", VERBS)
def test_no_line_of_a_help_ends_before_the_next_word_would_be_too_wide(verb, columns):
    lines = render_help(verb, columns).splitlines()
    width = max(map(len, lines))
    assert width <= columns
    paragraphs = texts(lines)
    assert sum(map(len, paragraphs)) > 3
    for line, following in (pair for one in paragraphs for pair in pairwise(one)):
        # tyro breaks lines after commas too.
        assert len(f"{line} {re.findall('[^ ,]+,?', following)[0]}") > width, (line, following)
