"""The head of a page: the verdict in sentences, the facts behind it, and the differences on one scale."""

from collections.abc import Mapping, Sequence

from condkd_ray.core.task import CLASSIFICATION, Score, is_dense
from condkd_ray.report.page.elements import Forest, outcome, points
from condkd_ray.report.results import Results
from condkd_ray.report.statistics import (
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
from condkd_ray.report.tables.table import interval_text

MOST = 14
"""Largest number of rows of the forest plot; the table in the page has all differences."""
NAMED, SENTENCES, GUIDED_ARMS = 4, 4, 2
"""Limits: arms named in a list, reference arms with a sentence, guided arms with sentences."""
REAL = "real"


def at_largest(found: Sequence[Difference]) -> list[Difference]:
    """Return the differences at the largest IPC and those without condensed images, for the head of the page."""
    largest = max((one.ipc for one in found), default=0)
    return [one for one in found if one.ipc in (0, largest)]


def verdict(found: Sequence[Difference], score: Score = CLASSIFICATION) -> list[str]:
    """Return the verdict: sentences on the guides, and then one per reference arm.

    The reference arms are sorted by decreasing number of comparisons.
    """
    largest = max(one.ipc for one in found)
    by_right: dict[str, list[Difference]] = {}
    for one in found:
        by_right.setdefault(one.right, []).append(one)
    at = f" with {largest} condensed {'image' if largest == 1 else 'images'}" if largest else ""
    at += " per class" * (bool(at) and not is_dense(score.task))
    ordered = sorted(by_right.items(), key=lambda pair: -len(pair[1]))[:SENTENCES]
    # The IPC is named once, for an arm that has condensed images; the reference on all real data has none.
    first = next((right for right, pairs in ordered if any(one.ipc for one in pairs)), None)
    lines = [f"Against {right}{at if right == first else ''}, {outcome_clause(pairs)}." for right, pairs in ordered]
    return [*guides(found, at), *lines, *caution(found, score)]


def guides(found: Sequence[Difference], at: str = "") -> list[str]:
    """Return sentences on whether guided beats both its controls and how much of its gain is due to the guides.

    Up to `GUIDED_ARMS` arms have two sentences each; [] without a guided arm. `at`: text on the IPC. Each control has
    its own 95 % interval over seeds. No correction is needed, since guided must beat both controls.
    """
    # The baseline determines the direction of a comparison, so each comparison is entered in both directions.
    known = {(one.left, one.right): one for two in found for one in (turned(two), two)}
    tails = [left.removeprefix(GUIDED) for left, _ in known if left.startswith(GUIDED)]
    by_arm = [lines for tail in dict.fromkeys(tails) if (lines := _worth(known, tail, at))]
    return [*(line for lines in by_arm[:GUIDED_ARMS] for line in lines), *_more(len(by_arm) - GUIDED_ARMS)]


def unguided(found: Sequence[Difference]) -> list[str]:
    """Return a sentence for each of the first arms that were also run without their guidance."""
    pairs = [one for one in found if one.right == f"{one.left}{UNGUIDED}"]
    words = {1: "{} beats itself without guidance", -1: "{} is worse than itself without guidance"}
    unsure = "It is not shown that {} beats itself without guidance"
    lines = [f"{_sentence(words.get(side(one), unsure).format(one.left))}: {_measured(one)}." for one in pairs]
    return [*lines[:GUIDED_ARMS], *_more(len(lines) - GUIDED_ARMS)]


def _more(count: int) -> list[str]:
    """Return a sentence with the number `count` of guided arms that have no own sentence; [] for 0."""
    few = "1 more guided arm is" if count == 1 else f"{count} more guided arms are"
    return [f"{few} compared in the table of paired differences."] if count > 0 else []


def _worth(known: Mapping[tuple[str, str], Difference], tail: str, at: str) -> list[str]:
    """Return the sentences on the guided arm whose name ends in `tail`; [] if it is compared with neither control."""
    guided, mixed, prior = (f"{arm}{tail}" for arm in (GUIDED, MIXED, PRIOR))
    all_of_it, by_guides, by_prior = (known.get((f"{left}{tail}", f"{right}{tail}")) for left, right in CONTROLS)
    if by_guides is None:
        gain = all_of_it is not None and side(all_of_it) == 1
        part = "the part of it that needs the condensed images as guides"
        what = part if gain else "the gain from the condensed images as guides"
        unknown = f"{what} is unknown, because there is no arm {prior}"
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
        1: f"the condensed images give {points(by_guides.mean)} points as guides",
        0: "it is not shown that the condensed images give anything as guides",
        -1: f"the condensed images cost {points(by_guides.mean)} points as guides",
    }[side(by_guides)]
    if by_prior is None:
        return [*lines, f"{_sentence(guides_give)}."]
    prior_gives = {
        1: "a class prior alone gives part of the gain" if sides[0] == 1 else "a class prior alone helps",
        0: "it is not shown that a class prior alone gives anything",
        -1: "a class prior alone does harm",
    }[side(by_prior)]
    theirs = sides[0] == 1 and sides[1] != 1 and side(by_prior) == 1
    shown_part = (
        f"; so all of the gain over {mixed} that is shown is due to the class prior and needs no condensed image as a "
        "guide"
    )
    return [*lines, f"{_sentence(guides_give)}; {prior_gives}: {_measured(by_prior)}{shown_part * theirs}."]


def side(one: Difference) -> int:
    """Return 1 or -1 if the interval over seeds lies above or below 0, otherwise 0, also without an interval."""
    low, high = one.over_seeds or (0.0, 0.0)
    return int(low > 0) - int(high < 0)


def _measured(one: Difference) -> str:
    ends = interval_text(one.over_seeds).replace("-", "\N{MINUS SIGN}")
    interval = f"95 % {ends}" if one.over_seeds else one.method
    return f"{one.left} - {one.right} is {points(one.mean)} points ({interval})"


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}"


def alone(results: Results) -> list[str]:
    """Return the test scores of the first trials, for results in which no two arms have a common seed."""
    metric = results.score.test
    found = [
        f"{one.arm}{f' IPC {one.ipc}' if one.ipc else ''} seed {one.seed} ({100 * one.metrics[metric]:.2f} %)"
        for one in tested(results.records)
    ]
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    scores = f"Test {results.score.name}: {', '.join(found[:NAMED])}{more}. " if found else ""
    return [f"{scores}No two arms can be compared yet."]


def outcome_clause(found: Sequence[Difference]) -> str:
    """Return a clause that lists better, worse and indistinguishable arms, each by decreasing difference."""
    single = all(one.n == 1 for one in found)
    # p is corrected for all arms compared with one arm at one IPC, so an uncorrected interval may still exclude 0.
    families = {(one.right, one.ipc) for one in found}
    corrected = " after Holm's correction" * (len(found) > len(families))
    unsure = "with one seed" if single else f"not distinguishable{corrected}"
    words = {"better": "better", "worse": "worse", "open": unsure}
    groups: dict[str, list[Difference]] = {}
    for one in sorted(found, key=lambda one: -one.mean):
        groups.setdefault(outcome(one), []).append(one)
    return "; ".join(f"{text}: {_listed(groups[kind])}" for kind, text in words.items() if kind in groups)


def _listed(pairs: Sequence[Difference]) -> str:
    several = len({one.ipc for one in pairs} - {0}) > 1
    ipcs = [f" IPC {one.ipc}" if several and one.ipc else "" for one in pairs]
    # The arm `real` trains on all real data, whatever the IPC of the others.
    data_used = ["on all real data, " if one.left == REAL else "" for one in pairs]
    named = list(zip(pairs, ipcs, data_used, strict=True))[:NAMED]
    shown = [f"{one.left}{ipc} ({data}{points(one.mean)})" for one, ipc, data in named]
    more = [f"{len(pairs) - NAMED} more"] if len(pairs) > NAMED else []
    shown[0] = f"{shown[0].removesuffix(')')} points)"
    *first, last = [*shown, *more]
    return f"{', '.join(first)} and {last}" if first else last


def caution(found: Sequence[Difference], score: Score) -> list[str]:
    """Return a warning if there is a single seed, so that no interval covers other seeds."""
    if all(one.n == 1 for one in found) and is_dense(score.task):
        return ["One seed: there is no interval, and another seed may change every sign."]
    if all(one.n == 1 for one in found):
        return ["One seed: the interval is over test images only, and another seed may change every sign."]
    return []


def forest(found: Sequence[Difference], score: Score, remark: str = "") -> Forest:
    """Return the differences on one scale, with intervals over seeds or, with one seed, over test images if known.

    `remark`: last sentence of the legend.
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
        legend=f"{_legend(found, score)} {remark}".rstrip(),
    )


def _legend(found: Sequence[Difference], score: Score) -> str:
    alone = all(one.n == 1 for one in found)
    lines = f"95 % over {'test images (one seed)' if alone else 'seeds'}"
    lines = "none, as there is one seed" if alone and is_dense(score.task) else lines
    count = sum(one.p is not None for one in found)
    parts = [f"Differences in test {score.name}, percentage points, paired by seed.", f"Lines: {lines}."]
    parts += ["p: paired t test, corrected by Holm for all arms compared with the same arm."] * bool(count)
    left = len(found) - MOST
    return " ".join([*parts, *([f"{left} more in the table."] if left > 0 else [])])


def facts(results: Results) -> list[tuple[str, str]]:
    """Return names and values of the facts behind the verdict: trials, seeds, data, teachers, CPU time, date."""
    manifest, counts = results.manifest, results.counts
    data = manifest.dataset
    found = [("trials finished", f"{counts['finished']} of {results.planned}")]
    found += [(f"trials {status}", str(counts[status])) for status in ("pruned", "failed") if counts[status]]
    found += [("seeds", str(len({record.seed for record in results.finished})))]
    found += [("data", f"{data['name']}, {results.test_size} test images")] if data.get("name") else []
    return [
        *found,
        *teachers.fact(manifest),
        ("CPU time of the trials", seconds(results.cpu_seconds)),
        ("started", manifest.created[:10]),
    ]


def seconds(value: float) -> str:
    """Return a duration as text in s, min or h."""
    for size, unit in ((3600, "h"), (60, "min")):
        if value >= 2 * size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.3g} s"
