"""Renders stored rows as Markdown, and writes and checks the blocks of README.md and LOG.md that contain it.

A block is between `<!-- claims NAME -->` and `<!-- end claims NAME -->`, each on its own line. A view may follow the
name and selects a part: `table`, `sentence`, or `images`, the statistics of synthetic images of the claim's arms.
"""

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from campaign.halving import chosen, validation
from campaign.rows import Row, value
from campaign.sources import Source, source
from campaign.state import State, missing_words, stale_words
from condkd_ray.core.method import require
from condkd_ray.core.storage import atomic_write
from condkd_ray.methods.condensation import Imported
from condkd_ray.report.statistics import Difference, difference, holm, p_value, spread
from condkd_ray.report.tables.table import interval_text, mean_text, p_text

NOTHING = "Nothing has been measured yet."
ALONE = ("mixed_prior", "mixed")
"""Pair of arms whose difference is the effect of the class prior without guides."""
PLACES = {"Frechet to real": "diagnosis/frechet_real", "diversity": "diagnosis/diversity"}
"""Image metrics shown beside the validation score of candidates, if any row has them."""
IMAGES = {
    "Frechet to real": "diagnosis/frechet_real",
    "to condensed": "diagnosis/frechet_condensed",
    "diversity": "diagnosis/diversity",
    "coverage": "diagnosis/coverage",
    "teacher's confidence": "diagnosis/confidence",
    "KL to the student": "diagnosis/gap",
}
"""Image metrics shown for arms, as in the tables of an experiment."""
_BLOCK = re.compile(r"^<!-- claims (?P<what>[^\n]+?) -->\n(?P<text>.*?)^<!-- end claims (?P=what) -->$", re.M | re.S)
_MARKER = re.compile(r"(?<!`)<!--[\s/_-]*(?:end\b)?[\s_-]*claims?\b", re.I)
"""Matches anything intended as a marker, even mistyped or indented, except in backquotes."""
SIGNIFICANCE = 0.05
"""Holm-corrected p below which a difference is printed in bold."""
Pair = tuple[str, str]
_WORDS = (
    ("", "the paired 95 % interval"),
    ("both ", "both paired 95 % intervals"),
    ("all of ", "all paired 95 % intervals"),
)
"""Words for one, two and three controls."""


def table(state: State) -> str:
    """Return a table with a row for each cell or candidate, or `NOTHING` if there are no rows."""
    return _ladder_table(state) if state.claim.choosing else _cells_table(state)


def sentence(state: State) -> str:
    """Return the conclusion that follows from the rows, as a sentence."""
    return _choice(state) if state.claim.choosing else _verdict(state)


def whole(state: State) -> str:
    """Return sentence, table and footnote."""
    parts = [sentence(state), table(state), footnote(state)]
    return "\n\n".join(dict.fromkeys(part for part in parts if part))


def footnote(state: State) -> str:
    """Return how to read the intervals, missing and stale rows, sources, and the machines measured on."""
    lacking = missing_words(state.missing)
    parts = [
        _reading(state),
        f"Missing: {lacking}." if lacking else "",
        stale_words(state),
        _sources(state),
        _where(state),
    ]
    return " ".join(part for part in parts if part)


def images(state: State) -> str:
    """Return a table of image metrics of the last round: mean and spread over seeds, by cell and arm.

    Choosing claims show the two main metrics in their own table instead.
    """
    rows = []
    for cell in state.claim.cells:
        for arm in state.claim.arms:
            own = [row for row in state.rows_of_cell(cell) if row.record.arm == arm]
            found = [spread(value(row, metric) for row in own) for metric in IMAGES.values()]
            if any(one is not None for one in found):
                rows.append([cell, arm, *(mean_text(one, None, digits=3) for one in found)])
    return _markdown(["cell", "arm", *IMAGES], rows) if rows else NOTHING


VIEWS = {"": whole, "table": table, "sentence": sentence, "images": images}


def render(text: str, states: Mapping[str, State], source: str) -> str:
    """Return `text` with all blocks rendered. Raises `InputError` if a block names an unknown claim or view."""

    def block(match: re.Match[str]) -> str:
        name, _, view = match["what"].partition(" ")
        require(name in states, f"{source}: claim of a block", name, ", ".join(states) or "none: there is no claim")
        require(view in VIEWS, f"{source}: view of the block of {name}", view, "none, table, sentence or images")
        return f"<!-- claims {match['what']} -->\n{VIEWS[view](states[name])}\n<!-- end claims {match['what']} -->"

    whole_markers = 2 * len(_BLOCK.findall(text))
    markers = len(_MARKER.findall(text))
    accepted = "<!-- claims NAME --> ... <!-- end claims NAME -->, each on its own line"
    require(
        markers == whole_markers,
        f"{source}: markers of claims",
        f"{markers}, {whole_markers} of them in pairs",
        accepted,
    )
    return _BLOCK.sub(block, text)


def write(path: Path, states: Mapping[str, State]) -> bool:
    """Render the blocks of a file, and return whether the file changed."""
    text = path.read_text(encoding="utf-8")
    fresh = render(text, states, str(path))
    if fresh != text:
        atomic_write(path, fresh.encode())
    return fresh != text


def differences(path: Path, states: Mapping[str, State]) -> str:
    """Return a diff from a file to its rendered form; empty if they match."""
    text = path.read_text(encoding="utf-8")
    fresh = render(text, states, str(path))
    lines = difflib.unified_diff(
        text.splitlines(keepends=True), fresh.splitlines(keepends=True), str(path), f"{path} by the stored rows"
    )
    return "".join(lines)


def compared(state: State) -> dict[Pair, dict[str, tuple[Difference, float | None]]]:
    """Return `guided` minus each control for each measured cell, with its p after Holm's correction.

    The correction covers all cells of the claim: a cell without rows, or without p, counts with p = 1.
    """
    found: dict[Pair, dict[str, tuple[Difference, float | None]]] = {}
    arms = state.claim.arms
    for control in [arm for arm in state.claim.controls if arm in arms and "guided" in arms]:
        by_cell = _differences(state, ("guided", control))
        ps = {cell: p_value(one) for cell, one in by_cell.items()}
        known = {cell: p for cell, p in ps.items() if p is not None}
        rest = [1.0] * (len(state.claim.cells) - len(known))
        corrected = dict(zip(known, holm([*known.values(), *rest]), strict=False))
        found["guided", control] = {cell: (one, corrected.get(cell)) for cell, one in by_cell.items()}
    return found


def _differences(state: State, pair: Pair) -> dict[str, Difference]:
    """Return one arm minus another for each cell that has pairs of rows."""
    found = {}
    for cell in state.claim.cells:
        records = [row.record for row in state.rows_of_cell(cell)]
        one = difference(records, *pair, max((one.ipc for one in records), default=0))
        if one is not None:
            found[cell] = one
    return found


def _cells_table(state: State) -> str:
    claim = state.claim
    measured = {cell: rows for cell in claim.cells if (rows := state.rows_of_cell(cell))}
    if not measured:
        return NOTHING
    pairs = compared(state)
    alone = _differences(state, ALONE) if {*ALONE} <= {*claim.arms} else {}
    header = ["cell", "n", *claim.arms, *(f"{left} - {right} (95 % interval); Holm p" for left, right in pairs)]
    header += [f"{' - '.join(ALONE)} (95 % interval)"] * bool(alone)
    rows = []
    for cell, own in measured.items():
        n = len({row.record.seed for row in own})
        means = [spread(value(row, claim.score.test) for row in own if row.record.arm == arm) for arm in claim.arms]
        texts = [_difference(*found[cell]) if cell in found else "-" for found in pairs.values()]
        texts += [_with_interval(alone[cell]) if cell in alone else "-"] * bool(alone)
        rows.append([cell, str(n), *(mean_text(one, n, factor=100, digits=1) for one in means), *texts])
    return _markdown(header, rows)


def _difference(one: Difference, p: float | None) -> str:
    text = _with_interval(one)
    if one.over_seeds is None:
        return text
    text = f"{text}; {p_text(p)}"
    return f"**{text}**" if _side(one) and _is_significant(p) else text


def _with_interval(one: Difference) -> str:
    mean = f"{100 * one.mean:+.1f}"
    return mean if one.over_seeds is None else f"{mean} ({interval_text(one.over_seeds, digits=1)})"


def _verdict(state: State) -> str:
    pairs = compared(state)
    counts = {
        cell: n for cell in state.claim.cells if (n := len({row.record.seed for row in state.rows_of_cell(cell)}))
    }
    if not counts:
        return NOTHING
    if not pairs:
        return ""
    controls = _and([right for _, right in pairs])
    beats = [cell for cell in counts if all(_above(found.get(cell)) for found in pairs.values())]
    significant = [cell for cell in beats if all(_is_significant(found[cell][1]) for found in pairs.values())]
    others = [f"{cell} ({_why(cell, pairs)})" for cell in counts if cell not in beats]
    every, intervals = _WORDS[len(pairs) - 1]
    cells, open_ = state.claim.cells, [cell for cell in state.claim.cells if cell not in counts]
    number = f"{len(beats)} of {_cells(len(cells))}{f' ({_listed(beats)})' * bool(beats)}"
    corrected = f"{len(significant)}{f' ({_listed(significant)})' * bool(significant)}"
    parts = [
        f"Guided beats {every}{controls}, with {intervals} above 0, in {number}; "
        f"after Holm's correction over all cells, in {corrected}",
        *[f"Not shown in {', '.join(others)}"] * bool(others),
        *[f"Not measured yet: {_listed(open_)}"] * bool(open_),
        _sizes(counts, len(state.claim.seeds)),
    ]
    return f"{'. '.join(parts)}."


def _and(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def _cells(count: int) -> str:
    return "1 cell" if count == 1 else f"{count} cells"


def _listed(cells: Sequence[str]) -> str:
    return ", ".join(cells)


def _sizes(counts: Mapping[str, int], planned: int) -> str:
    """Return the number of seeds of the measured cells, and the planned number if it is larger."""
    if {*counts.values()} == {planned}:
        return f"n = {planned} seeds per cell"
    if len({*counts.values()}) == 1:
        return f"So far, n = {next(iter(counts.values()))} of {planned} planned seeds"
    return f"So far, n = {', '.join(f'{n} in {cell}' for cell, n in counts.items())}, of {planned} planned seeds"


def _side(one: Difference) -> int:
    """Return 1 or -1 if the interval over seeds is above or below 0, else 0, also without an interval."""
    low, high = one.over_seeds or (0.0, 0.0)
    return int(low > 0) - int(high < 0)


def _is_significant(p: float | None) -> bool:
    return p is not None and p < SIGNIFICANCE


def _above(found: tuple[Difference, float | None] | None) -> bool:
    return found is not None and _side(found[0]) == 1


def _why(cell: str, pairs: Mapping[Pair, Mapping[str, tuple[Difference, float | None]]]) -> str:
    """Return the differences because of which guided does not beat all controls in a cell."""
    texts = []
    for (left, right), found in pairs.items():
        if not _above(found.get(cell)):
            one = found[cell][0] if cell in found else None
            ends = "has no pair of finite scores" if one is None else interval_text(one.over_seeds, digits=1)
            texts.append(f"{left} - {right} {ends if one is None or one.over_seeds else _unsure(one)}")
    return ", ".join(texts)


def _unsure(one: Difference) -> str:
    """Return a difference without an interval, and the reason."""
    return f"{100 * one.mean:+.1f} ({one.method})"


def _reading(state: State) -> str:
    """Return how to read the table's intervals; "" if it has none."""
    if state.claim.choosing or not any(
        one.over_seeds for found in compared(state).values() for one, _ in found.values()
    ):
        return ""
    return (
        "Intervals are not corrected for the number of cells. Bold: the interval excludes 0, and p after "
        f"Holm's correction over the claim's {_cells(len(state.claim.cells))} is below {SIGNIFICANCE:g}."
    )


def _ladder_table(state: State) -> str:
    claim, ladder = state.claim, state.ladder
    if not ladder.scores:
        return NOTHING
    best = chosen(claim, ladder).values()
    order = [name for name in claim.cells if name in ladder.scores]
    grouped = list(dict.fromkeys(claim.cells[name].group for name in order))

    def group(name: str) -> list[str]:
        return [claim.cells[name].group] * any(grouped)

    # By group, then by the last rung reached, then by score.
    order.sort(
        key=lambda name: (
            grouped.index(claim.cells[name].group),
            -ladder.dropped.get(name, math.inf),
            -ladder.mean(name),
        )
    )
    every = [row for rows in ladder.scores.values() for row in rows.values()]
    places = {title: metric for title, metric in PLACES.items() if any(metric in row.record.metrics for row in every)}
    rows = []
    for name in order:
        own = list(ladder.scores[name].values())
        failed = sum(not math.isfinite(validation(row)) for row in own)
        mean = mean_text(spread(map(validation, own)), None, factor=100, digits=1) + (
            f" ({failed} failed)" if failed else ""
        )
        texts = [mean_text(spread(value(row, metric) for row in own), None, digits=3) for metric in places.values()]
        end = "**chosen**" if name in best else f"rung {ladder.dropped[name]}" if name in ladder.dropped else ""
        rows.append([name, *group(name), str(len(own)), mean, *texts, end])
    header = [
        "candidate",
        *["group"] * any(grouped),
        "seeds",
        f"validation {claim.score.name}",
        *places,
        "dropped after",
    ]
    return _markdown(header, rows)


def _choice(state: State) -> str:
    claim, ladder = state.claim, state.ladder
    if not ladder.scores:
        return NOTHING
    found = chosen(claim, ladder)
    if ladder.rung <= len(claim.rungs):
        return f"Rung {ladder.rung} of {len(claim.rungs)} has not finished; nothing is chosen yet."
    if not found:
        return "All candidates that reached the last rung failed; nothing is chosen."
    texts = [
        f"{f'{group}: ' if group else ''}{name} ({100 * ladder.mean(name):.1f} % over {len(ladder.scores[name])} seeds)"
        for group, name in found.items()
    ]
    groups = dict.fromkeys(candidate.group for candidate in claim.cells.values())
    texts += [f"{group}: none, because all failed" for group in groups if group not in found]
    # Not "mean validation mean IoU".
    return f"Chosen by mean validation {claim.score.name.removeprefix('mean ')}: {'; '.join(texts)}."


def _sources(state: State) -> str:
    """Return which rows are left out for their source, and which rows lack a digest of their set's files."""
    texts = []
    for cell in [] if state.claim.choosing else state.claim.cells:
        kept, out = state.rows_of_cell(cell), state.left_out(cell)
        for other in dict.fromkeys(map(source, out)):
            seeds = _seeds([row for rows in out if source(rows) == other for row in rows])
            texts.append(
                f"Left out of {cell}: {seeds}, from {_made(other)}; the other seeds are from {_made(source(kept))}."
            )
        unknown = [row for row in kept if row.record.condensation == Imported.name and not row.set_digest]
        texts += [f"{cell}: the files of the condensed set are not recorded for {_seeds(unknown)}."] * bool(unknown)
    return " ".join(texts)


def _made(one: Source) -> str:
    data, files = one
    return f"data {data} and files of the condensed set {files or '(not recorded)'}"


def _seeds(rows: Sequence[Row]) -> str:
    seeds = sorted({row.record.seed for row in rows})
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def _where(state: State) -> str:
    """Return the metric, the number of images, teachers and seeds, and the machines of the shown rows."""
    rows = _shown(state)
    if not rows:
        return ""
    score = f"{'validation' if state.claim.choosing else 'test'} {state.claim.score.name}"
    images = sorted({row.test_images for row in rows} - {0})
    counted = f" on {' or '.join(map(str, images))} images" if images else ""
    teachers = len({row.record.teacher_hash for row in rows})
    ends = sorted({row.date for row in rows})
    days = ends[0] if len(ends) == 1 else f"{ends[0]} to {ends[-1]}"
    torch = sorted({row.record.versions.get("torch", "") for row in rows})
    made = f"{' | '.join(sorted({row.machine for row in rows}))}; torch {', '.join(torch)}; {days}"
    which = f"{teachers} teacher{'' if teachers == 1 else 's'}"
    shown = f"{score} in percent{counted}: mean ± standard deviation over n seeds; {which}"
    return f"Values are {shown}. Measured on {made}."


def _shown(state: State) -> list[Row]:
    if state.claim.choosing:
        return [row for rows in state.ladder.scores.values() for row in rows.values()]
    return [row for cell in state.claim.cells for row in state.rows_of_cell(cell)]


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["--:"] * (len(header) - 1)]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in (header, rule, *rows)
    )
