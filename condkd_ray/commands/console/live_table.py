"""The lines that tell how far an experiment has come, in as many columns and rows as there are."""

from collections.abc import Sequence
from typing import Any

from condkd_ray.commands.console.progress import Progress, Running
from condkd_ray.core.units import duration
from condkd_ray.core.view import Best

GAP = "  "
NARROWEST = {4: 18, 3: 8}
"""Columns that a label keeps beside three more columns, and beside two: else the last of these is left out."""
BAR = 24
"""Columns of a bar."""


def lines(progress: Progress, columns: int, rows: int, *, fine: bool) -> list[str]:
    """What is most worth knowing in at most so many lines: the whole, the best, trials that run, arms.

    `fine`: whether there are characters beyond ASCII.
    """
    head = _head(progress, columns, fine=fine)
    if progress.best is not None and progress.goal.decides:
        head += _best(progress.best, progress.goal.metric, columns)
    if rows < len(head) + 4:
        return head[: max(0, rows)]
    running = list(progress.running.values())
    arms = [] if progress.goal.decides else _arms(progress, columns)
    room = rows - len(head) - 1
    if len(arms) + 1 + min(len(running) + 1, max(4, room // 2)) > room:
        arms = []
    below = ["", *arms] if arms else []
    return [*head, "", *_running(running, progress.goal.metric, columns, room - len(below)), *below]


def drawn_bar(share: float, *, fine: bool, width: int = BAR) -> str:
    """A share from 0 to 1 of a bar."""
    full, empty = ("━", "─") if fine else ("#", "-")
    length = round(width * min(1.0, max(0.0, share)))
    return full * length + empty * (width - length)


def written(value: Any) -> str:
    """A value of a hyper-parameter, or of a metric."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _head(progress: Progress, columns: int, *, fine: bool) -> list[str]:
    come = progress.done + sum(one.round / one.rounds for one in progress.running.values())
    bar = drawn_bar(come / max(1, progress.total), fine=fine, width=min(BAR, columns // 4))
    told = [f"{progress.done}/{progress.total} trials"]
    told += [f"{count} {status}" for status, count in sorted(progress.ended.items()) if status != "finished"]
    told += [duration(progress.seconds), f"left {duration(progress.seconds_left())}"]
    return _folded([bar, *told], columns)


def _best(best: Best, metric: str, columns: int) -> list[str]:
    leaves = [f"{name} {written(value)}" for name, value in best.leaves.items()]
    return [f"best: {best.label}, {metric} {best.value:.4f}"[:columns], *_folded(leaves, columns, indent=GAP)]


def _running(running: Sequence[Running], metric: str, columns: int, rows: int) -> list[str]:
    if not running:
        return ["waiting for the next round"[:columns]]
    fitting = running if len(running) < rows else running[: max(0, rows - 2)]
    body = [[one.label, f"{one.round}/{one.rounds}", _number(one.now), _number(one.best)] for one in fitting]
    told = _aligned([["running", "round", metric, "best"], *body], columns)
    more = len(running) - len(fitting)
    return [*told, f"and {more} more"[:columns]] if more else told


def _arms(progress: Progress, columns: int) -> list[str]:
    means = progress.means()
    body = [[arm, str(n), f"{mean:.4f}"] for arm, (n, mean) in means.items()]
    return _aligned([["finished", "n", f"mean {progress.goal.metric}"], *body], columns) if body else []


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _aligned(body: Sequence[Sequence[str]], columns: int) -> list[str]:
    """The first column gives way to the others as far as `NARROWEST` says."""
    widths = [max(len(row[place]) for row in body) for place in range(len(body[0]))]
    while min(widths[0], NARROWEST.get(len(widths), 0)) + sum(len(GAP) + width for width in widths[1:]) > columns:
        if len(widths) == 2:
            break
        widths.pop()
    first = max(1, min(widths[0], columns - sum(len(GAP) + width for width in widths[1:])))
    rest = range(1, len(widths))
    rows = ([_cut(row[0], first), *(row[place].rjust(widths[place]) for place in rest)] for row in body)
    return [GAP.join(row)[:columns].rstrip() for row in rows]


def _cut(text: str, width: int) -> str:
    """In the middle, as labels differ at both ends."""
    if len(text) <= width:
        return text.ljust(width)
    kept = max(0, width - 2)
    return f"{text[: kept - kept // 2]}..{text[len(text) - kept // 2 :]}"[:width]


def _folded(parts: Sequence[str], columns: int, indent: str = "") -> list[str]:
    """As many parts a line as fit; one that alone does not is cut."""
    folded: list[str] = []
    for part in parts:
        together = f"{folded[-1]}{GAP}{part}" if folded else ""
        if folded and len(together) <= columns:
            folded[-1] = together
        else:
            folded.append(f"{indent}{part}"[:columns])
    return folded
