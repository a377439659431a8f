"""What a few trials with few images say: does guidance help, what does it cost, and how sure is that?

All that is compared was measured on held-out images: accuracy, against the names of their folders, and agreement,
against the teacher's answers.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from condkd_ray.core.records import Record
from condkd_ray.report.statistics import (
    ACCURACY,
    CONTROLS,
    Difference,
    Interval,
    difference,
    groups,
    interval,
)
from condkd_ray.report.tables.table import CPU, WALL, Table, between, over, shown

TAUGHT_BY = {
    "none": "synthetic images",
    "condensed_only": "your images",
    "mixed": "your images and synthetic ones",
    "mixed_prior": "the same, made under a class prior",
    "guided": "the same, and guided by your images",
}
"""What the student learns from in each arm."""
COMPARED = (*CONTROLS, ("guided", "none"), ("guided", "condensed_only"))
BOTH = ("mixed", "mixed_prior", "guided")
"""Arms whose students learn from your images and synthetic ones."""
BARELY = 0.6
"""Agreement with the teacher below which students have hardly begun to learn (our choice)."""
_LEGEND = (
    "Mean ± standard deviation over n seeds, in percent of the held-out images; agreement is with the teacher.\n"
    "Seconds are those of one trial."
)
_INTERVALS = (
    "Paired by seed, in percentage points; 95 % over seeds (another run; more --seeds narrow it) and over held-out\n"
    "images (other images; more images narrow it), not corrected for the number of comparisons. The verdict is on\n"
    "accuracy: guided - mixed, and guided - mixed_prior, which is made under the class prior of guided, without guides."
)


def named(records: Sequence[Record], names: Sequence[int]) -> list[Record]:
    """The finished of them, whose accuracy is taken against these `names` of the held-out images."""
    truth = np.asarray(names)
    whole = [one for one in records if one.status == "finished" and len(one.outcome.predictions) == len(truth)]
    right = [float((np.asarray(one.outcome.predictions) == truth).mean()) for one in whole]
    return [
        replace(one, outcome=replace(one.outcome, metrics=one.metrics | {ACCURACY: share}))
        for one, share in zip(whole, right, strict=True)
    ]


def arms_table(records: Sequence[Record], labels: Sequence[int], answers: Sequence[int]) -> Table:
    """A row an arm; `labels` by the folders and `answers` of the teacher for each held-out image."""
    by_answer = groups(named(records, answers))
    rows = [
        [
            arm,
            TAUGHT_BY.get(arm, ""),
            str(len(members)),
            shown(over(members, ACCURACY), len(members), factor=100, digits=1),
            shown(over(by_answer[arm, ipc], ACCURACY), len(members), factor=100, digits=1),
            *(shown(over(members, metric), len(members), digits=1, deviation=False) for metric in (WALL, CPU)),
        ]
        for (arm, ipc), members in groups(named(records, labels)).items()
    ]
    header = ["arm", "the student learns from", "n", "accuracy", "agreement", "seconds", "CPU seconds"]
    return Table("Students", header, rows, _LEGEND, keys=1)


def differences_table(records: Sequence[Record], labels: Sequence[int], answers: Sequence[int]) -> Table:
    """Guided minus each other arm, and mixed_prior minus mixed, in accuracy and agreement."""
    rows = [
        [f"{what}, {left} - {right}", str(one.n), _points(one), _range(one.over_seeds), _range(one.over_images)]
        for what, names in (("accuracy", labels), ("agreement", answers))
        for left, right in COMPARED
        if (one := compared(records, left, right, names)) is not None
    ]
    return Table("Differences", ["difference", "n", "points", "over seeds", "over images"], rows, _INTERVALS, keys=1)


def compared(records: Sequence[Record], left: str, right: str, names: Sequence[int]) -> Difference | None:
    """`left` minus `right` against `names`, over the seeds that both have finished; None without any."""
    ipc = max((one.ipc for one in records), default=0)
    return difference(named(records, names), left, right, ipc, names)


def cost(records: Sequence[Record]) -> str:
    """CPU time of `guided` as a multiple of that of `mixed`, paired by seed; empty without a common seed."""
    spent = {(one.arm, one.seed): one.outcome.cpu_seconds for one in records if one.status == "finished"}
    seeds = [seed for arm, seed in spent if arm == "guided" and ("mixed", seed) in spent]
    ratios = np.array([spent["guided", seed] / spent["mixed", seed] for seed in seeds])
    if not len(ratios):
        return ""
    ends, _ = interval(ratios)
    told = f" (95 % {ends[0]:.2f} to {ends[1]:.2f})" if ends else ""
    return f"{ratios.mean():.2f} times the CPU time of mixing{told}"


def told(records: Sequence[Record], labels: Sequence[int], answers: Sequence[int]) -> list[str]:
    """The verdict, and before it what speaks against relying on it."""
    agreeing = groups(named(records, answers))
    means = [over(members, ACCURACY) for (arm, _), members in agreeing.items() if arm in BOTH]
    best = max((one.mean for one in means if one is not None), default=1.0)
    told_first = (
        f"The students agree with the teacher on at most {best:.0%} of the held-out images: they are barely taught, "
        "and more --minutes may change the verdict."
    )
    return [*[told_first] * (best < BARELY), sentence(records, labels)]


def sentence(records: Sequence[Record], labels: Sequence[int]) -> str:
    """The verdict. Guidance helps, or hurts, only if neither another seed nor other images would say otherwise.

    It helps where guided beats mixed and mixed_prior, each by intervals of its own: else a class prior may do as well.
    """
    one, own, prior = (compared(records, left, right, labels) for left, right in CONTROLS)
    if one is None:
        return "Verdict: none yet, there is no seed of which both mixed and guided have finished."
    measured = (
        f"guided - mixed is {_points(one)} points (95 % over seeds {_range(one.over_seeds)}, over the "
        f"{len(labels)} held-out images {_range(one.over_images)}), at {cost(records)}"
    )
    unsure = "it is not shown that guidance helps or hurts here"
    by_guides = own is not None and _side(own) == 1
    unproven = "guided is better here, but that your images help as guides is not shown"
    shown_so = {1: "guidance helps here" if by_guides else unproven, -1: "guidance hurts here", 0: unsure}[_side(one)]
    seeds = f"{one.n} seed{'s' if one.n > 1 else ''}"
    return (
        f"Verdict: with {seeds} {shown_so}: {measured}{_alone(records, labels)}{_parts(own, prior, _side(one) == 1)}."
    )


def _points(one: Difference) -> str:
    return f"{100 * one.mean:+.1f}"


def _parts(own: Difference | None, prior: Difference | None, gain: bool) -> str:
    """What of guided - mixed needs the images as guides, and what a class prior gives without any.

    `gain`: whether guided - mixed is above 0 for certain: else there is nothing to be a part of.
    """
    if own is None:
        what = "what of this needs your images as guides" if gain else "what your images give as guides"
        return f"; {what} is not known, as no seed of mixed_prior has finished with it"
    gives = {1: "give", -1: "cost", 0: "give, which is not told apart from nothing,"}[_side(own)]
    ends = f"over seeds {_range(own.over_seeds)}, over images {_range(own.over_images)}"
    given = f"; as guides your images {gives} {_points(own)}{' of these' * gain} points ({ends})"
    if prior is None:
        return given
    alone = f"{_points(prior)} (over seeds {_range(prior.over_seeds)})"
    return f"{given}, and a class prior without any guide gives {alone}"


def _alone(records: Sequence[Record], labels: Sequence[int]) -> str:
    """What a user should know who could do without synthetic images; nothing where guided is shown to be better."""
    one = compared(records, "guided", "condensed_only", labels)
    if one is None or _side(one) == 1:
        return ""
    shown_so = "your images alone are better" if _side(one) == -1 else "that it beats your images alone is not shown"
    return f"; {shown_so} ({_points(one)}, over seeds {_range(one.over_seeds)})"


def _side(one: Difference) -> int:
    """1 or -1 where both intervals lie above or below 0, else 0."""
    ends = (*one.over_seeds, *one.over_images) if one.over_seeds and one.over_images else (0.0,)
    return int(min(ends) > 0) - int(max(ends) < 0)


def _range(ends: Interval | None) -> str:
    return between(ends, digits=1, unknown="unknown")
