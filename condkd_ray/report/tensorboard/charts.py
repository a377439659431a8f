"""The charts of TensorBoard's Custom Scalars tab, in which arms and trials are compared.

Once the trials have ended, the first charts have a line and a band per arm. They are followed by a chart per scalar of
`charted`, with a line per trial, in one category per family. The Scalars tab shows the same curves among all scalars.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean

from condkd_ray.core.records import Record
from condkd_ray.core.task import SCORES, Score
from condkd_ray.report.statistics import groups

Layout = dict[str, dict[str, tuple[str, list[str]]]]
"""Kind and tag patterns of each chart, by category and title, in the form of torch's `custom_scalars`."""
ARMS = "arms, over their seeds"
METRICS = (*(name for score in map(Score, SCORES) for name in (score.test, score.val)), "proxy/agreement", "proxy/kl")
"""Scalars whose mean, lowest and highest over the seeds of an arm have charts, with tags such as `mean/proxy/kl`."""
_WHOLE = ("kd", "inversion", "guidance", "diagnosis", "memory")
FAMILIES = ("student", "proxy", *_WHOLE)
"""Order of the categories. `student` and `proxy` have charts of the terms in `METRICS`, the others of all terms."""
BESIDE: Mapping[str, str] = {"guidance/perfect_accuracy": "guidance/accuracy"}
"""Scalars that are drawn in the chart of another scalar, if this exists, to compare the two."""


def charted(tags: Iterable[str]) -> set[str]:
    """Return the tags, each `family/term`, that get a chart."""
    whole = tuple(f"{family}/" for family in _WHOLE)
    return {tag for tag in tags if tag in METRICS or tag.startswith(whole)}


def layout(tags: Iterable[str], spread: Iterable[str] = ()) -> Layout:
    """Return the charts of `tags`: a chart per tag, with a pattern that matches only this tag, except for `BESIDE`.

    `spread`: metrics with a mean and a range over the seeds of an arm; their charts come first.
    """
    shown = sorted(charted(tags))
    # TensorBoard shows charts with bands in reverse order, and those with lines in order.
    bands = [name for name in reversed(METRICS) if name in set(spread)]
    charts: Layout = {ARMS: {f"{name}, mean and range": ("Margin", _parts(name)) for name in bands}}
    for family in FAMILIES:
        own = [tag for tag in shown if tag.startswith(f"{family}/") and BESIDE.get(tag) not in shown]
        together = {tag: [tag, *(other for other in shown if BESIDE.get(other) == tag)] for tag in own}
        charts[family] = {tag: ("Multiline", [f"^{re.escape(t)}$" for t in same]) for tag, same in together.items()}
    return {title: members for title, members in charts.items() if members}


def over_seeds(records: Sequence[Record]) -> Iterator[tuple[Record, list[dict[str, float]]]]:
    """Yield, for each arm and IPC with two or more finished trials, one of the trials and rows of statistics by round.

    Only rounds that all trials measured have a row, because a mean over changing sets of seeds would jump.
    """
    finished = [record for record in records if record.status == "finished"]
    for members in groups(finished).values():
        if len(members) < 2:
            continue
        by_round = [{int(row["round"]): row for row in record.history} for record in members]
        numbers = sorted(set.intersection(*(set(rows) for rows in by_round)))
        rows = [{"round": number} | _spread([rows[number] for rows in by_round]) for number in numbers]
        if any(len(row) > 1 for row in rows):
            yield members[0], rows


def _spread(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    found = {}
    for name in METRICS:
        values = [row.get(name, math.nan) for row in rows]
        if all(math.isfinite(value) for value in values):
            found |= dict(zip(_parts(name), (fmean(values), min(values), max(values)), strict=True))
    return found


def _parts(name: str) -> list[str]:
    """Return the tags of a metric's statistics over the seeds."""
    return [f"{part}/{name}" for part in ("mean", "lowest", "highest")]
