"""The tables and the verdict of `condkd try`: does guidance help, what does it cost, and how certain is this?

All metrics are measured on the held-out images. Accuracy compares a student's predictions with the images' folders,
agreement compares them with the teacher's predictions.
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
from condkd_ray.report.tables.table import CPU, WALL, Table, interval_text, mean_of, mean_text

TAUGHT_BY = {
    "none": "synthetic images",
    "condensed_only": "your images",
    "mixed": "your images and synthetic ones",
    "mixed_prior": "as mixed, made under a class prior",
    "guided": "as mixed_prior, guided by your images",
}
"""The images that the student of each arm learns from."""
COMPARED = (*CONTROLS, ("guided", "none"), ("guided", "condensed_only"))
BOTH = ("mixed", "mixed_prior", "guided")
"""Arms whose students learn from both the user's images and synthetic ones."""
BARELY = 0.6
"""With a lower agreement with the teacher, students have hardly started to learn (our choice)."""
_LEGEND = (
    "Mean ± standard deviation over n seeds, in percent of the held-out images; agreement is with the teacher.\n"
    "Seconds are those of one trial."
)
_INTERVALS = (
    "Paired by seed, in percentage points, with 95 % intervals: over seeds (another run; more --seeds narrow it) and\n"
    "over held-out images (other images; more images narrow it), not corrected for the number of comparisons. The\n"
    "verdict uses the accuracy of guided - mixed and of guided - mixed_prior, whose arm has the class prior of guided\n"
    "but no guides."
)


def graded(records: Sequence[Record], classes: Sequence[int]) -> list[Record]:
    """Return the finished records with their test accuracy measured against `classes`, one per held-out image."""
    truth = np.asarray(classes)
    whole = [one for one in records if one.status == "finished" and len(one.outcome.predictions) == len(truth)]
    right = [float((np.asarray(one.outcome.predictions) == truth).mean()) for one in whole]
    return [
        replace(one, outcome=replace(one.outcome, metrics=one.metrics | {ACCURACY: share}))
        for one, share in zip(whole, right, strict=True)
    ]


def arms_table(records: Sequence[Record], labels: Sequence[int], predicted: Sequence[int]) -> Table:
    """Return a table with a row per arm.

    `labels` and `predicted`: the class of each held-out image, by its folder and by the teacher's prediction.
    """
    by_prediction = groups(graded(records, predicted))
    rows = [
        [
            arm,
            TAUGHT_BY.get(arm, ""),
            str(len(members)),
            mean_text(mean_of(members, ACCURACY), len(members), factor=100, digits=1),
            mean_text(mean_of(by_prediction[arm, ipc], ACCURACY), len(members), factor=100, digits=1),
            *(mean_text(mean_of(members, metric), len(members), digits=1, deviation=False) for metric in (WALL, CPU)),
        ]
        for (arm, ipc), members in groups(graded(records, labels)).items()
    ]
    header = ["arm", "the student learns from", "n", "accuracy", "agreement", "seconds", "CPU seconds"]
    return Table("Students", header, rows, _LEGEND, keys=1)


def differences_table(records: Sequence[Record], labels: Sequence[int], predicted: Sequence[int]) -> Table:
    """Return a table of accuracy and agreement: guided minus each other arm, and mixed_prior minus mixed."""
    rows = [
        [f"{what}, {left} - {right}", str(one.n), _points(one), _range(one.over_seeds), _range(one.over_images)]
        for what, classes in (("accuracy", labels), ("agreement", predicted))
        for left, right in COMPARED
        if (one := compared(records, left, right, classes)) is not None
    ]
    return Table("Differences", ["difference", "n", "points", "over seeds", "over images"], rows, _INTERVALS, keys=1)


def compared(records: Sequence[Record], left: str, right: str, classes: Sequence[int]) -> Difference | None:
    """Return `left` minus `right`, measured against `classes`, over their common finished seeds; None without any."""
    ipc = max((one.ipc for one in records), default=0)
    return difference(graded(records, classes), left, right, ipc, classes)


def cost(records: Sequence[Record]) -> str:
    """Return the ratio of the CPU times of `guided` and `mixed` as text, paired by seed; "" without a common seed."""
    spent = {(one.arm, one.seed): one.outcome.cpu_seconds for one in records if one.status == "finished"}
    seeds = [seed for arm, seed in spent if arm == "guided" and ("mixed", seed) in spent]
    ratios = np.array([spent["guided", seed] / spent["mixed", seed] for seed in seeds])
    if not len(ratios):
        return ""
    ends, _ = interval(ratios)
    between_ends = f" (95 % {ends[0]:.2f} to {ends[1]:.2f})" if ends else ""
    return f"{ratios.mean():.2f} times the CPU time of mixing{between_ends}"


def lines(records: Sequence[Record], labels: Sequence[int], predicted: Sequence[int]) -> list[str]:
    """Return the verdict, preceded by a warning if the students agree too little with the teacher to rely on it."""
    agreeing = groups(graded(records, predicted))
    means = [mean_of(members, ACCURACY) for (arm, _), members in agreeing.items() if arm in BOTH]
    best = max((one.mean for one in means if one is not None), default=1.0)
    warning = (
        f"The students agree with the teacher on at most {best:.0%} of the held-out images: they have barely started "
        "to learn, and more --minutes may change the verdict."
    )
    return [*[warning] * (best < BARELY), sentence(records, labels)]


def sentence(records: Sequence[Record], labels: Sequence[int]) -> str:
    """Return the verdict. Guidance helps or hurts only if the intervals over seeds and over images both exclude 0.

    It helps only if guided beats mixed and also mixed_prior, each by its own intervals: otherwise a class prior alone
    may achieve the same.
    """
    one, own, prior = (compared(records, left, right, labels) for left, right in CONTROLS)
    if one is None:
        return "Verdict: none yet, because no seed has a finished trial of both mixed and guided."
    measured = (
        f"guided - mixed is {_points(one)} points (95 % over seeds {_range(one.over_seeds)}, over the "
        f"{len(labels)} held-out images {_range(one.over_images)}), at {cost(records)}"
    )
    unsure = "it is not shown that guidance helps or hurts here"
    by_guides = own is not None and _side(own) == 1
    unproven = "guided is better here, but it is not shown that your images help as guides"
    shown_so = {1: "guidance helps here" if by_guides else unproven, -1: "guidance hurts here", 0: unsure}[_side(one)]
    seeds = f"{one.n} seed{'s' if one.n > 1 else ''}"
    return (
        f"Verdict: with {seeds} {shown_so}: {measured}{_alone(records, labels)}{_parts(own, prior, _side(one) == 1)}."
    )


def _points(one: Difference) -> str:
    return f"{100 * one.mean:+.1f}"


def _parts(own: Difference | None, prior: Difference | None, gain: bool) -> str:
    """Return the part of guided - mixed that is due to the guides, and the part that is due to the class prior.

    `gain`: whether guided - mixed is certainly above 0; otherwise the differences are no parts of a gain.
    """
    if own is None:
        what = "the part of this that your images give as guides" if gain else "the gain from your images as guides"
        return f"; {what} is unknown, because guided and mixed_prior have no finished seed in common"
    gives = "cost" if _side(own) < 0 else "give"
    ends = f"over seeds {_range(own.over_seeds)}, over images {_range(own.over_images)}"
    unclear = "" if _side(own) else "; not distinguishable from 0"
    given = f"; as guides your images {gives} {_points(own)}{' of these' * gain} points ({ends}{unclear})"
    if prior is None:
        return given
    alone = f"{_points(prior)} (over seeds {_range(prior.over_seeds)})"
    return f"{given}, and a class prior without guides gives {alone}"


def _alone(records: Sequence[Record], labels: Sequence[int]) -> str:
    """Return a comparison with the user's images alone, or "" if guided is certainly better than these."""
    one = compared(records, "guided", "condensed_only", labels)
    if one is None or _side(one) == 1:
        return ""
    shown_so = "your images alone are better" if _side(one) == -1 else "guided is not shown to beat your images alone"
    return f"; {shown_so} ({_points(one)}, over seeds {_range(one.over_seeds)})"


def _side(one: Difference) -> int:
    """Return 1 if both intervals lie above 0, -1 if both lie below 0, else 0."""
    ends = (*one.over_seeds, *one.over_images) if one.over_seeds and one.over_images else (0.0,)
    return int(min(ends) > 0) - int(max(ends) < 0)


def _range(ends: Interval | None) -> str:
    return interval_text(ends, digits=1, unknown="unknown")
