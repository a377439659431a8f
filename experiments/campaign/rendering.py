"""What stored rows say, as Markdown; and the blocks of README.md and LOG.md that hold it, written and checked.

A block stands between `<!-- claims NAME -->` and `<!-- end claims NAME -->`, each on a line of its own; with a view
behind the name, `table` or `sentence`, it is that part alone, and with `images` what the images of a claim's arms are.
"""

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from campaign.halving import accuracy, chosen
from campaign.rows import Row, value
from campaign.sources import Source, source
from campaign.state import State, missing_words, stale_words
from condkd_ray.core.method import require
from condkd_ray.core.storage import atomic_write
from condkd_ray.methods.condensation import Imported
from condkd_ray.report.statistics import ACCURACY, Difference, difference, holm, p_value, spread
from condkd_ray.report.tables.table import between, chance, shown

NOTHING = "Nothing has been measured yet."
CONTROLS = ("mixed", "mixed_prior")
"""Arms that `guided` has to beat, each by itself."""
ALONE = ("mixed_prior", "mixed")
"""What the class prior gives without any guide."""
PLACES = {"Frechet to real": "diagnosis/frechet_real", "diversity": "diagnosis/diversity"}
"""What is shown of the images of candidates, beside their accuracy."""
IMAGES = {
    "Frechet to real": "diagnosis/frechet_real",
    "to condensed": "diagnosis/frechet_condensed",
    "diversity": "diagnosis/diversity",
    "coverage": "diagnosis/coverage",
    "teacher's confidence": "diagnosis/confidence",
    "KL to the student": "diagnosis/gap",
}
"""What is shown of the images of arms, as in the tables of an experiment."""
_BLOCK = re.compile(r"^<!-- claims (?P<what>[^\n]+?) -->\n(?P<text>.*?)^<!-- end claims (?P=what) -->$", re.M | re.S)
_MARKER = re.compile(r"(?<!`)<!--[\s/_-]*(?:end\b)?[\s_-]*claims?\b", re.I)
"""Whatever is meant as a marker, mistyped or indented as it may be; not one in quotes."""
SURE = 0.05
"""Holm's p below which a difference is bold."""
Pair = tuple[str, str]


def table(state: State) -> str:
    """A row a cell or candidate; that nothing was measured where nothing was."""
    return _ladder_table(state) if state.claim.choosing else _cells_table(state)


def sentence(state: State) -> str:
    """What follows from the rows, computed."""
    return _choice(state) if state.claim.choosing else _verdict(state)


def whole(state: State) -> str:
    """Sentence and table, what is missing and stale, and on what was measured."""
    parts = [sentence(state), table(state), footnote(state)]
    return "\n\n".join(dict.fromkeys(part for part in parts if part))


def footnote(state: State) -> str:
    """How intervals are to be read, what is missing, what is stale, on what was measured."""
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
    """Where the synthetic images of the last round lie: a row a cell and arm that has any, mean and spread over seeds.

    A claim that chooses shows the two that count most in its own table.
    """
    rows = []
    for cell in state.claim.cells:
        for arm in state.claim.arms:
            own = [row for row in state.answers(cell) if row.record.arm == arm]
            found = [spread(value(row, metric) for row in own) for metric in IMAGES.values()]
            if any(one is not None for one in found):
                rows.append([cell, arm, *(shown(one, None, digits=3) for one in found)])
    return _markdown(["cell", "arm", *IMAGES], rows) if rows else NOTHING


VIEWS = {"": whole, "table": table, "sentence": sentence, "images": images}


def render(text: str, states: Mapping[str, State], source: str) -> str:
    """`text` with each block as the rows have it. Raises `InputError` for a block that names no claim or view."""

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
    """Render the blocks of a file; whether it was changed."""
    text = path.read_text(encoding="utf-8")
    fresh = render(text, states, str(path))
    if fresh != text:
        atomic_write(path, fresh.encode())
    return fresh != text


def differences(path: Path, states: Mapping[str, State]) -> str:
    """A diff from a file to what its blocks should be; empty where they match."""
    text = path.read_text(encoding="utf-8")
    fresh = render(text, states, str(path))
    lines = difflib.unified_diff(
        text.splitlines(keepends=True), fresh.splitlines(keepends=True), str(path), f"{path} by the stored rows"
    )
    return "".join(lines)


def compared(state: State) -> dict[Pair, dict[str, tuple[Difference, float | None]]]:
    """`guided` minus each control in each measured cell, with its p after Holm's correction.

    The correction is over all cells of the claim: one that is not measured yet, or has no p, counts as one of p = 1.
    """
    found: dict[Pair, dict[str, tuple[Difference, float | None]]] = {}
    for control in [arm for arm in CONTROLS if arm in state.claim.arms and "guided" in state.claim.arms]:
        by_cell = _differences(state, ("guided", control))
        ps = {cell: p_value(one) for cell, one in by_cell.items()}
        known = {cell: p for cell, p in ps.items() if p is not None}
        rest = [1.0] * (len(state.claim.cells) - len(known))
        corrected = dict(zip(known, holm([*known.values(), *rest]), strict=False))
        found["guided", control] = {cell: (one, corrected.get(cell)) for cell, one in by_cell.items()}
    return found


def _differences(state: State, pair: Pair) -> dict[str, Difference]:
    """One arm minus another, of each cell whose rows tell it."""
    found = {}
    for cell in state.claim.cells:
        records = [row.record for row in state.answers(cell)]
        one = difference(records, *pair, max((one.ipc for one in records), default=0))
        if one is not None:
            found[cell] = one
    return found


def _cells_table(state: State) -> str:
    claim = state.claim
    measured = {cell: rows for cell in claim.cells if (rows := state.answers(cell))}
    if not measured:
        return NOTHING
    pairs = compared(state)
    alone = _differences(state, ALONE) if {*ALONE} <= {*claim.arms} else {}
    header = ["cell", "n", *claim.arms, *(f"{left} - {right}, 95 %; Holm p" for left, right in pairs)]
    header += [f"{' - '.join(ALONE)}, 95 %"] * bool(alone)
    rows = []
    for cell, own in measured.items():
        n = len({row.record.seed for row in own})
        means = [spread(value(row, ACCURACY) for row in own if row.record.arm == arm) for arm in claim.arms]
        told = [_difference(*found[cell]) if cell in found else "-" for found in pairs.values()]
        told += [_with_interval(alone[cell]) if cell in alone else "-"] * bool(alone)
        rows.append([cell, str(n), *(shown(one, n, factor=100, digits=1) for one in means), *told])
    return _markdown(header, rows)


def _difference(one: Difference, p: float | None) -> str:
    text = _with_interval(one)
    if one.over_seeds is None:
        return text
    text = f"{text}; {chance(p)}"
    return f"**{text}**" if _side(one) and _stands(p) else text


def _with_interval(one: Difference) -> str:
    mean = f"{100 * one.mean:+.1f}"
    return mean if one.over_seeds is None else f"{mean} ({between(one.over_seeds, digits=1)})"


def _verdict(state: State) -> str:
    pairs = compared(state)
    counts = {cell: n for cell in state.claim.cells if (n := len({row.record.seed for row in state.answers(cell)}))}
    if not counts:
        return NOTHING
    if not pairs:
        return ""
    controls = " and ".join(right for _, right in pairs)
    beats = [cell for cell in counts if all(_above(found.get(cell)) for found in pairs.values())]
    stand = [cell for cell in beats if all(_stands(found[cell][1]) for found in pairs.values())]
    others = [f"{cell} ({_why(cell, pairs)})" for cell in counts if cell not in beats]
    each = "each " if len(pairs) > 1 else ""
    cells, open_ = state.claim.cells, [cell for cell in state.claim.cells if cell not in counts]
    parts = [
        f"in {len(beats)} of {_cells(len(cells))}{f' ({_listed(beats)})' if beats else ''}",
        f"after Holm's correction over these in {len(stand)}{f' ({_listed(stand)})' if stand else ''}",
        *[f"not in {', '.join(others)}"] * bool(others),
        *[f"not measured yet in {_listed(open_)}"] * bool(open_),
        _sizes(counts, len(state.claim.seeds)),
    ]
    return f"Guided beats {controls}, {each}with its paired 95 % interval above 0, {'; '.join(parts)}."


def _cells(count: int) -> str:
    return "1 cell" if count == 1 else f"{count} cells"


def _listed(cells: Sequence[str]) -> str:
    return ", ".join(cells)


def _sizes(counts: Mapping[str, int], planned: int) -> str:
    """The number of seeds of the measured cells, and how many there will be."""
    if {*counts.values()} == {planned}:
        return f"n = {planned}"
    if len({*counts.values()}) == 1:
        return f"so far, n = {next(iter(counts.values()))} of {planned}"
    return f"so far, n = {', '.join(f'{n} in {cell}' for cell, n in counts.items())} of {planned}"


def _side(one: Difference) -> int:
    """1 or -1 where the interval over seeds lies above or below 0, else 0, as where there is none."""
    low, high = one.over_seeds or (0.0, 0.0)
    return int(low > 0) - int(high < 0)


def _stands(p: float | None) -> bool:
    return p is not None and p < SURE


def _above(found: tuple[Difference, float | None] | None) -> bool:
    return found is not None and _side(found[0]) == 1


def _why(cell: str, pairs: Mapping[Pair, Mapping[str, tuple[Difference, float | None]]]) -> str:
    """The differences that keep a cell from being one where guided beats all controls."""
    told = []
    for (left, right), found in pairs.items():
        if not _above(found.get(cell)):
            one = found[cell][0] if cell in found else None
            ends = "has no pair of finite accuracies" if one is None else between(one.over_seeds, digits=1)
            told.append(f"{left} - {right} {ends if one is None or one.over_seeds else _unsure(one)}")
    return ", ".join(told)


def _unsure(one: Difference) -> str:
    """A difference that has no interval, and why."""
    return f"{100 * one.mean:+.1f} ({one.method})"


def _reading(state: State) -> str:
    """How the intervals of the table are to be read; nothing where it has none."""
    if state.claim.choosing or not any(
        one.over_seeds for found in compared(state).values() for one, _ in found.values()
    ):
        return ""
    return (
        "Each interval is a single one, not corrected for the number of cells. Bold: it leaves out 0, and p after "
        f"Holm's correction over the claim's {_cells(len(state.claim.cells))} is below {SURE:g}."
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

    # The furthest first, and among these the best.
    order.sort(
        key=lambda name: (
            grouped.index(claim.cells[name].group),
            -ladder.dropped.get(name, math.inf),
            -ladder.mean(name),
        )
    )
    rows = []
    for name in order:
        own = list(ladder.scores[name].values())
        failed = sum(not math.isfinite(accuracy(row)) for row in own)
        mean = shown(spread(map(accuracy, own)), None, factor=100, digits=1) + (f" ({failed} failed)" if failed else "")
        places = [shown(spread(value(row, metric) for row in own), None, digits=3) for metric in PLACES.values()]
        end = "**chosen**" if name in best else f"rung {ladder.dropped[name]}" if name in ladder.dropped else ""
        rows.append([name, *group(name), str(len(own)), mean, *places, end])
    header = ["candidate", *["group"] * any(grouped), "seeds", "validation accuracy", *PLACES, "dropped after"]
    return _markdown(header, rows)


def _choice(state: State) -> str:
    claim, ladder = state.claim, state.ladder
    if not ladder.scores:
        return NOTHING
    found = chosen(claim, ladder)
    if ladder.rung <= len(claim.rungs):
        return f"Rung {ladder.rung} of {len(claim.rungs)} has not ended; nothing is chosen yet."
    if not found:
        return "All candidates that came to the last rung failed; nothing is chosen."
    told = [
        f"{f'{group}: ' if group else ''}{name} ({100 * ladder.mean(name):.1f} % over {len(ladder.scores[name])} seeds)"
        for group, name in found.items()
    ]
    groups = dict.fromkeys(candidate.group for candidate in claim.cells.values())
    told += [f"{group}: none, as all failed" for group in groups if group not in found]
    return f"Chosen by mean validation accuracy: {'; '.join(told)}."


def _sources(state: State) -> str:
    """What is left out of a cell as of another source, and with which rows the files of the set are not stored."""
    told = []
    for cell in [] if state.claim.choosing else state.claim.cells:
        kept, out = state.answers(cell), state.left_out(cell)
        for other in dict.fromkeys(map(source, out)):
            seeds = _seeds([row for rows in out if source(rows) == other for row in rows])
            told.append(
                f"Left out of {cell}: {seeds}, of {_made(other)}, where the others are of {_made(source(kept))}."
            )
        unknown = [row for row in kept if row.record.condensation == Imported.name and not row.set_digest]
        told += [f"Of which files the condensed set of {cell} came is not stored with {_seeds(unknown)}."] * bool(
            unknown
        )
    return " ".join(told)


def _made(one: Source) -> str:
    data, files = one
    return f"data {data} and files of the condensed set {files or 'that are not known'}"


def _seeds(rows: Sequence[Row]) -> str:
    seeds = sorted({row.record.seed for row in rows})
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def _where(state: State) -> str:
    """On what the shown rows were measured."""
    rows = _shown(state)
    if not rows:
        return ""
    accuracies = "validation accuracy" if state.claim.choosing else "test accuracy"
    images = sorted({row.test_images for row in rows} - {0})
    counted = f" of {' or '.join(map(str, images))} images" if images else ""
    teachers = len({row.record.teacher_hash for row in rows})
    ends = sorted({row.date for row in rows})
    days = ends[0] if len(ends) == 1 else f"{ends[0]} to {ends[-1]}"
    torch = sorted({row.record.versions.get("torch", "") for row in rows})
    made = f"{' | '.join(sorted({row.machine for row in rows}))}; torch {', '.join(torch)}; {days}"
    which = f"{teachers} teacher{'' if teachers == 1 else 's'}"
    return f"In percent, {accuracies}{counted}, mean ± standard deviation over n seeds, {which}. Measured on {made}."


def _shown(state: State) -> list[Row]:
    if state.claim.choosing:
        return [row for rows in state.ladder.scores.values() for row in rows.values()]
    return [row for cell in state.claim.cells for row in state.answers(cell)]


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["--:"] * (len(header) - 1)]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in (header, rule, *rows)
    )
