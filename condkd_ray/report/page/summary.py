"""The first screen of a page: what the numbers say, in sentences, and the differences on one scale."""

from collections.abc import Mapping, Sequence

from condkd_ray.report.page.elements import Forest, mood, points
from condkd_ray.report.results import Results
from condkd_ray.report.statistics import (
    ACCURACY,
    CONTROLS,
    GUIDED,
    MIXED,
    PRIOR,
    UNGUIDED,
    Difference,
    tested,
    turned,
)
from condkd_ray.report.tables import teachers
from condkd_ray.report.tables.table import between

MOST = 14
"""Rows of the first screen; all are in the table below."""
NAMED, SENTENCES, GUIDED_ARMS = 4, 4, 2
REAL = "real"


def at_largest(found: Sequence[Difference]) -> list[Difference]:
    """Those with the most condensed images, and those without any: what one look can take in."""
    largest = max((one.ipc for one in found), default=0)
    return [one for one in found if one.ipc in (0, largest)]


def verdict(found: Sequence[Difference]) -> list[str]:
    """What guides are worth, then a sentence for each arm that others are compared with; that most are with first."""
    largest = max(one.ipc for one in found)
    by_right: dict[str, list[Difference]] = {}
    for one in found:
        by_right.setdefault(one.right, []).append(one)
    at = f" with {largest} condensed {'image' if largest == 1 else 'images'} per class" if largest else ""
    told = sorted(by_right.items(), key=lambda pair: -len(pair[1]))[:SENTENCES]
    # Told once, where an arm has them: a reference on all real data has none.
    first = next((right for right, pairs in told if any(one.ipc for one in pairs)), None)
    lines = [f"Against {right}{at if right == first else ''}, {judgement(pairs)}." for right, pairs in told]
    return [*guides(found, at), *lines, *caution(found)]


def guides(found: Sequence[Difference], at: str = "") -> list[str]:
    """Whether guided beats both its controls, and what of its gain needs the condensed images as guides.

    Two sentences for each guided arm, the first few; nothing without any. Each control has its own 95 % interval over
    seeds: that both must be beaten needs no correction.
    """
    # Which of two is the baseline decides which way round they are compared.
    known = {(one.left, one.right): one for two in found for one in (turned(two), two)}
    tails = [left.removeprefix(GUIDED) for left, _ in known if left.startswith(GUIDED)]
    told = [lines for tail in dict.fromkeys(tails) if (lines := _worth(known, tail, at))]
    return [*(line for lines in told[:GUIDED_ARMS] for line in lines), *_more(len(told) - GUIDED_ARMS)]


def unguided(found: Sequence[Difference]) -> list[str]:
    """Whether arms beat themselves without their guidance, a sentence for each of the first few; else nothing."""
    pairs = [one for one in found if one.right == f"{one.left}{UNGUIDED}"]
    words = {1: "{} beats itself without guidance", -1: "{} is worse than itself without guidance"}
    unsure = "It is not shown that {} beats itself without guidance"
    lines = [f"{_sentence(words.get(side(one), unsure).format(one.left))}: {_measured(one)}." for one in pairs]
    return [*lines[:GUIDED_ARMS], *_more(len(lines) - GUIDED_ARMS)]


def _more(count: int) -> list[str]:
    """A sentence on guided arms that no sentence tells of."""
    few = "1 more guided arm is" if count == 1 else f"{count} more guided arms are"
    return [f"{few} compared in the table of paired differences."] if count > 0 else []


def _worth(known: Mapping[tuple[str, str], Difference], tail: str, at: str) -> list[str]:
    """Of the guided arm whose name ends in `tail`; nothing where it is compared with neither control."""
    guided, mixed, prior = (f"{arm}{tail}" for arm in (GUIDED, MIXED, PRIOR))
    all_of_it, by_guides, by_prior = (known.get((f"{left}{tail}", f"{right}{tail}")) for left, right in CONTROLS)
    if by_guides is None:
        gain = all_of_it is not None and side(all_of_it) == 1
        what = "what of it needs the condensed images as guides" if gain else "what the condensed images give as guides"
        unknown = f"{what} is not known, as there is no arm {prior}"
        return [f"{_sentence(_measured(all_of_it))}{at}; {unknown}."] if all_of_it else []
    if all_of_it is None:
        return [f"{_sentence(_measured(by_guides))}{at}; there is no arm {mixed} to compare with."]
    measured = [_measured(one) for one in (all_of_it, by_guides)]
    sides = side(all_of_it), side(by_guides)
    both = f"both {mixed} and {prior}"
    shown = {
        (1, 1): f"{guided.capitalize()} beats {both}",
        (-1, -1): f"{guided.capitalize()} is worse than {both}",
        (-1, 0): f"{guided.capitalize()} is worse than {mixed}",
        (-1, 1): f"{guided.capitalize()} is worse than {mixed}, and better than {prior}",
    }.get(sides, f"It is not shown that {guided} beats {both}")
    lines = [f"{shown}{at}: {measured[0]}; {measured[1]}."]
    guides_give = {
        1: f"{points(by_guides.mean)} points of guidance need the condensed images as guides",
        0: "that the condensed images give anything as guides is not shown",
        -1: f"the condensed images cost {points(by_guides.mean)} points as guides",
    }[side(by_guides)]
    if by_prior is None:
        return [*lines, f"{_sentence(guides_give)}."]
    prior_gives = {
        1: "a class prior gives part without any guide" if sides[0] == 1 else "a class prior alone helps",
        0: "that a class prior gives anything without them is not shown",
        -1: "a class prior alone does harm",
    }[side(by_prior)]
    theirs = sides[0] == 1 and sides[1] != 1 and side(by_prior) == 1
    shown_part = (
        f"; so all that is shown of the gain over {mixed} is a class prior's, and needs no condensed image as a guide"
    )
    return [*lines, f"{_sentence(guides_give)}; {prior_gives}: {_measured(by_prior)}{shown_part * theirs}."]


def side(one: Difference) -> int:
    """1 or -1 where the interval over seeds lies above or below 0, else 0, as where there is none."""
    low, high = one.over_seeds or (0.0, 0.0)
    return int(low > 0) - int(high < 0)


def _measured(one: Difference) -> str:
    ends = between(one.over_seeds).replace("-", "\N{MINUS SIGN}")
    interval = f"95 % {ends}" if one.over_seeds else one.method
    return f"{one.left} - {one.right} is {points(one.mean)} points ({interval})"


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}"


def alone(results: Results) -> list[str]:
    """Where no two arms have a seed in common: what there is."""
    found = [
        f"{one.arm}{f' IPC {one.ipc}' if one.ipc else ''} seed {one.seed} ({100 * one.metrics[ACCURACY]:.2f} %)"
        for one in tested(results.records)
    ]
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    said = f"Test accuracy: {', '.join(found[:NAMED])}{more}. " if found else ""
    return [f"{said}No two arms can be compared yet."]


def judgement(found: Sequence[Difference]) -> str:
    """What came out how, the largest difference first."""
    single = all(one.n == 1 for one in found)
    # A single interval may leave out 0 where this says so: p is corrected for the arms compared with one at one IPC.
    families = {(one.right, one.ipc) for one in found}
    corrected = " after Holm's correction" * (len(found) > len(families))
    unsure = "with one seed" if single else f"not told apart beyond chance{corrected}"
    words = {"better": "better", "worse": "worse", "open": unsure}
    groups: dict[str, list[Difference]] = {}
    for one in sorted(found, key=lambda one: -one.mean):
        groups.setdefault(mood(one), []).append(one)
    return "; ".join(f"{told}: {_listed(groups[kind])}" for kind, told in words.items() if kind in groups)


def _listed(pairs: Sequence[Difference]) -> str:
    several = len({one.ipc for one in pairs} - {0}) > 1
    ipcs = [f" IPC {one.ipc}" if several and one.ipc else "" for one in pairs]
    # The reference sees all real data, whatever the condensed images of the others.
    seen = ["on all real data, " if one.left == REAL else "" for one in pairs]
    named = list(zip(pairs, ipcs, seen, strict=True))[:NAMED]
    shown = [f"{one.left}{ipc} ({data}{points(one.mean)})" for one, ipc, data in named]
    more = [f"{len(pairs) - NAMED} more"] if len(pairs) > NAMED else []
    shown[0] = f"{shown[0].removesuffix(')')} points)"
    *first, last = [*shown, *more]
    return f"{', '.join(first)} and {last}" if first else last


def caution(found: Sequence[Difference]) -> list[str]:
    """What the intervals do not know."""
    if all(one.n == 1 for one in found):
        return ["One seed: the interval is over test images alone, and another seed may change every sign."]
    return []


def forest(found: Sequence[Difference], remark: str = "") -> Forest:
    """The differences on one scale; the interval is that over seeds, with one seed that over test images.

    `remark`: a last sentence of the legend.
    """
    rows = [(one, one.over_images if one.n == 1 else one.over_seeds) for one in found[:MOST]]
    known = [0.0, *(value for one, ends in rows for value in (one.mean, *(ends or ())))]
    low, high = min(known), max(known)
    pad = 0.04 * (high - low) or 0.01
    return Forest(
        rows,
        low=low - pad,
        high=high + pad,
        ipcs=len({one.ipc for one in found} - {0}) > 1,
        p=any(one.p is not None for one in found),
        legend=f"{_legend(found)} {remark}".rstrip(),
    )


def _legend(found: Sequence[Difference]) -> str:
    over = "test images (one seed)" if all(one.n == 1 for one in found) else "seeds"
    count = sum(one.p is not None for one in found)
    parts = ["Differences in test accuracy, percentage points, paired by seed.", f"Lines: 95 % over {over}."]
    parts += ["p: paired t test, corrected by Holm for the arms compared with the same one."] * bool(count)
    left = len(found) - MOST
    return " ".join([*parts, *([f"{left} more in the table."] if left > 0 else [])])


def facts(results: Results) -> list[tuple[str, str]]:
    """What the answer rests on."""
    manifest, counts = results.manifest, results.counts
    data = manifest.dataset
    found = [("trials finished", f"{counts['finished']} of {results.planned}")]
    found += [(f"trials {status}", str(counts[status])) for status in ("pruned", "failed") if counts[status]]
    found += [("seeds", str(len({record.seed for record in results.finished})))]
    found += [("data", f"{data['name']}, {len(manifest.test_labels)} test images")] if data.get("name") else []
    return [
        *found,
        *teachers.fact(manifest),
        ("CPU time of the trials", seconds(results.cpu_seconds)),
        ("begun", manifest.created[:10]),
    ]


def seconds(value: float) -> str:
    """Short, with a unit."""
    for size, unit in ((3600, "h"), (60, "min")):
        if value >= 2 * size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.3g} s"
