"""Means with their n, and paired differences of arms with two kinds of 95 % interval.

Arms are compared within a seed, since all arms of a seed share their random draws. The interval over seeds estimates
how the difference would vary with other seeds; the interval over test images, with another test set. Neither is
corrected for the number of comparisons, as p is. Neither covers other teachers unless the seeds have several: see
`condkd_ray.report.tables.teachers`.

Over seeds: the paired t interval at every n. Its coverage at nominal 95 %, simulated with 200 000 samples each
(standard error 0.0005), is exact for normal differences and too low for skewed ones, such as those of an arm whose
seeds sometimes fail badly:

| differences  | n = 3 | n = 5 | n = 10 | n = 20 |
|--------------|-------|-------|--------|--------|
| normal       | 0.950 | 0.950 | 0.951  | 0.950  |
| t3           | 0.963 | 0.963 | 0.960  | 0.957  |
| exponential  | 0.885 | 0.882 | 0.900  | 0.918  |
| lognormal    | 0.839 | 0.822 | 0.840  | 0.867  |

A BCa bootstrap covers less: 0.89 at n = 10 and 0.91 at n = 20 for normal differences.

Over test images: an adjusted Wald interval, see `image_interval`. Its simulated coverage is at least 0.94 for 20 to
10 000 test images and 1 to 5 seeds. A percentile bootstrap over images, for arms whose predictions differ on one image
in 10 to 20, covers 0.56 to 0.79 at 20 images and 0.84 at 50; from 360 images on both agree.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from scipy import stats

from condkd_ray.core.records import Manifest, Record, arm_rank
from condkd_ray.core.task import CLASSIFICATION, SCORES, Score

ACCURACY = CLASSIFICATION.test
Baseline = str | dict[str, str]
"""Name of the arm with which all others are compared, or of a baseline for each arm, by the arm's name."""
GUIDED, MIXED, PRIOR = "guided", "mixed", "mixed_prior"
CONTROLS = ((GUIDED, MIXED), (GUIDED, PRIOR), (PRIOR, MIXED))
"""Pairs that isolate effects: all of guidance, guidance by condensed images, and a class prior without guidance."""
PAIRS = (("mixed", "condensed_only"), ("guided", "condensed_only"), ("guided_only", "guided"))
"""Pairs compared in addition to each arm minus its baseline, each arm minus `none`, and the controls."""
UNGUIDED = " unguided"
"""Suffix of the name of an arm that repeats another arm without guidance."""
LEVEL = 0.95
Interval = tuple[float, float]
"""Lower and upper end of a 95 % interval."""
EQUAL = 1e-12
"""Differences count as equal, and as differing by rounding only, if their range is at most this share of the largest
absolute difference or of 1, whichever is larger."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Mean and sample standard deviation (n - 1; None below two values) of `n` finite values."""

    mean: float
    std: float | None
    n: int


@dataclass(frozen=True, kw_only=True)
class Difference(Spread):
    """Test score (a fraction) or another metric of `left` minus `right` at one IPC, paired by seed.

    `over_seeds`: interval over seeds, computed by `method`; None if there is none. `over_images`: interval over test
    images of the difference averaged over the common seeds; None for other metrics than test accuracy. `p`:
    corrected p value; None if there is none; see `with_p_values`.
    """

    left: str
    right: str
    ipc: int
    over_seeds: Interval | None
    method: str
    over_images: Interval | None
    p: float | None = None


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Spearman's rho of a proxy with the test score over the `n` trials that share one proxy set.

    `proxy`: name of the metric. `ipcs`: IPCs of these trials.
    """

    proxy: str
    ipcs: tuple[int, ...]
    rho: float
    n: int


def spread(values: Iterable[float]) -> Spread | None:
    """Return mean, standard deviation and n of the finite values; None if there are none."""
    finite = np.array([value for value in values if np.isfinite(value)], dtype=np.float64)
    return _spread(finite) if len(finite) else None


def _spread(values: np.ndarray) -> Spread:
    std = float(values.std(ddof=1)) if len(values) > 1 else None
    return Spread(mean=float(values.mean()), std=std, n=len(values))


def groups(records: Iterable[Record]) -> dict[tuple[str, int], list[Record]]:
    """Return records by (arm, ipc), in the order of arms."""
    found: dict[tuple[str, int], list[Record]] = defaultdict(list)
    for record in records:
        found[record.arm, record.ipc].append(record)
    return {key: found[key] for key in sorted(found, key=lambda key: (arm_rank(key[0]), key[1]))}


def score_of(records: Iterable[Record], manifest: Manifest | None = None) -> Score:
    """Return the score of trials: that of the task in the manifest or, without one, that which a trial has measured.

    All trials of an experiment have data of one task.
    """
    if manifest is not None and "task" in manifest.dataset:
        return Score(manifest.dataset["task"])
    measured = {name for record in records for row in (record.metrics, *record.history) for name in row}
    return next((score for score in map(Score, SCORES) if score.test in measured), CLASSIFICATION)


def tested(records: Sequence[Record]) -> list[Record]:
    """Return the finished trials with a finite test score."""
    metric = score_of(records).test
    return [one for one in records if _value(one, metric) is not None]


def teacher_names(records: Sequence[Record]) -> dict[str, str]:
    """Return a display name for each teacher, by its hash.

    The name has the teacher's training seed if the seeds of all teachers differ, otherwise its network and its hash.
    Records without a teacher hash are skipped.
    """
    first = {record.teacher_hash: record for record in reversed(records) if record.teacher_hash}
    seeds = {key: _teacher_seed(record) for key, record in first.items()}
    if None in seeds.values() or len(set(seeds.values())) < len(seeds):
        found = {key: f"teacher {record.teacher} {key[:8]}" for key, record in first.items()}
    else:
        found = {key: f"teacher {seed}" for key, seed in seeds.items()}
    return dict(sorted(found.items(), key=lambda pair: (seeds[pair[0]] or 0, pair[1])))


def by_teacher(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Return tested trials by the name of their teacher; empty unless the seeds of an arm have several teachers."""
    known = [one for one in tested(records) if one.teacher_hash]
    if all(len({one.teacher_hash for one in members}) < 2 for members in groups(known).values()):
        return {}
    return {name: [one for one in known if one.teacher_hash == key] for key, name in teacher_names(known).items()}


def interval(differences: np.ndarray) -> tuple[Interval | None, str]:
    """Return the 95 % interval of the mean of paired differences (n,), and the name of its method.

    If there is no interval, returns None and the reason.
    """
    n = len(differences)
    if n < 2:
        return None, f"no interval, n = {n}"
    if np.ptp(differences) <= EQUAL * max(1.0, float(np.abs(differences).max())):
        return None, "no interval, all differences equal"
    low, high = t_interval(differences)
    return (float(low), float(high)), f"paired t, df {n - 1}"


def t_interval(differences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends (...,) of the 95 % t interval of the mean of each sample of `differences` (..., n), n >= 2."""
    n = differences.shape[-1]
    mean = differences.mean(-1)
    half = stats.t.ppf((1 + LEVEL) / 2, n - 1) * differences.std(-1, ddof=1) / np.sqrt(n)
    return mean - half, mean + half


def image_interval(left: np.ndarray, right: np.ndarray) -> Interval | None:
    """Return the 95 % interval over images; None without seeds or images.

    `left`, `right`: bool (seeds, images), True if that arm's prediction is correct.

    Source: Bonett & Price 2012, an adjusted Wald interval for paired proportions. It adds one image that only `left`
    classifies correctly and one that only `right` does, so that few images with few differences do not look certain.
    With several seeds, the mean over the seeds is used for each image (our choice; conservative if seeds disagree on
    few images).
    """
    seeds, images = left.shape
    if not seeds or not images:
        return None
    differences, n = left.mean(0) - right.mean(0), images + 2
    mean = differences.sum() / n
    variance = ((differences**2).sum() + 2) / n - mean**2
    half = stats.norm.ppf((1 + LEVEL) / 2) * np.sqrt(variance / n)
    return float(mean - half), float(mean + half)


def difference(
    records: Sequence[Record], left: str, right: str, ipc: int, labels: Sequence[int] = (), metric: str = ""
) -> Difference | None:
    """Return `left` minus `right` at `ipc` over the seeds that both have finished; None without a common seed.

    `labels`: labels of the test images; without them there is no interval over images. `metric`: by default the test
    score.
    """
    metric = metric or score_of(records).test
    ours, theirs = _by_seed(records, left, ipc, metric), _by_seed(records, right, ipc, metric)
    common = [(ours[seed], theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())]
    if not common:
        return None
    values = np.array([a.metrics[metric] - b.metrics[metric] for a, b in common])
    over_seeds, method = interval(values)
    images = _over_images(common, labels) if metric == ACCURACY else None
    found = asdict(_spread(values))
    return Difference(
        **found, left=left, right=right, ipc=ipc, over_seeds=over_seeds, method=method, over_images=images
    )


def comparisons(
    records: Sequence[Record], labels: Sequence[int] = (), *, baseline: Baseline = "none", metric: str = ""
) -> list[Difference]:
    """Return the differences of each arm from its baseline and from `none`, of `controlled` pairs and of `PAIRS`.

    Each pair of arms appears once per IPC at which both have a finished trial of a common seed. `metric`: by default
    the test score.
    """
    metric = metric or score_of(records).test
    by_arm = of_arms(records)
    arms = sorted(by_arm, key=arm_rank)
    own = {arm: baseline if isinstance(baseline, str) else baseline.get(arm, "none") for arm in arms}
    wanted = [*own.items(), *((arm, "none") for arm in arms), *controlled(arms, own), *PAIRS]
    pairs: dict[frozenset[str], tuple[str, str]] = {}
    for left, right in wanted:
        if left != right:
            pairs.setdefault(frozenset((left, right)), (left, right))
    found = [
        difference([*by_arm[left], *by_arm[right]], left, right, ipc, labels, metric)
        for left, right in pairs.values()
        for ipc in _common_ipcs(_ipcs(by_arm[left], left, metric), _ipcs(by_arm[right], right, metric))
    ]
    return [one for one in found if one is not None]


def of_arms(records: Iterable[Record]) -> defaultdict[str, list[Record]]:
    """Return the records by arm; an arm without records has an empty list."""
    found: defaultdict[str, list[Record]] = defaultdict(list)
    for record in records:
        found[record.arm].append(record)
    return found


def controlled(arms: Sequence[str], own: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the pairs of arms that isolate the effect of guides, found by their names.

    `own`: the baseline of each arm. The pairs are `CONTROLS` for `guided` and for arms such as `guided fast`; each arm
    with its unguided repetition; and for an arm whose baseline is a mixed_prior, the mixed arm of the same suffix.
    """
    tails = [arm.removeprefix(first) for first in (GUIDED, PRIOR) for arm in arms if arm.startswith(first)]
    found = [(f"{left}{tail}", f"{right}{tail}") for tail in tails for left, right in CONTROLS]
    found += [(arm.removesuffix(UNGUIDED), arm) for arm in arms if arm.endswith(UNGUIDED)]
    found += [(arm, f"{MIXED}{one.removeprefix(PRIOR)}") for arm, one in own.items() if one.startswith(PRIOR)]
    there = set(arms)
    return [(left, right) for left, right in found if {left, right} <= there]


def turned(one: Difference) -> Difference:
    """Return the difference with `left` and `right` exchanged."""

    def ends(found: Interval | None) -> Interval | None:
        return None if found is None else (-found[1], -found[0])

    intervals = {"over_seeds": ends(one.over_seeds), "over_images": ends(one.over_images)}
    return replace(one, left=one.right, right=one.left, mean=-one.mean, **intervals)


def p_value(one: Difference) -> float | None:
    """Return the two-sided p value of the paired t test of a mean difference of 0; None without an interval over seeds.

    The p value is below 0.05 if and only if the 95 % interval does not contain 0.
    """
    if one.over_seeds is None or one.std is None:
        return None
    return float(2 * stats.t.sf(abs(one.mean) * math.sqrt(one.n) / one.std, one.n - 1))


def holm(values: Sequence[float]) -> list[float]:
    """Return p values with Holm's step-down correction (1979), in the order of `values`.

    The smallest of m values is multiplied by m, the next by m - 1 and so on. In this order, results never decrease, and
    they are at most 1. Rejecting the hypotheses with results below a level bounds the probability of any false
    rejection by that level.
    """
    adjusted, largest = [0.0] * len(values), 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        largest = max(largest, min(1.0, (len(values) - rank) * values[place]))
        adjusted[place] = largest
    return adjusted


def with_p_values(differences: Sequence[Difference]) -> list[Difference]:
    """Return the differences with their p values, corrected by Holm's method.

    Differences with the same `right` and IPC are corrected together.
    """
    found = [p_value(one) for one in differences]
    families: dict[tuple[str, int], list[int]] = defaultdict(list)
    for place, one in enumerate(differences):
        if found[place] is not None:
            families[one.right, one.ipc].append(place)
    for places in families.values():
        for place, p in zip(places, holm([p for i in places if (p := found[i]) is not None]), strict=True):
            found[place] = p
    return [replace(one, p=p) for one, p in zip(differences, found, strict=True)]


def rankings(records: Sequence[Record], proxy: str = "proxy/agreement") -> list[Ranking]:
    """Return Spearman's rho of `proxy` with the test score for each proxy set that at least four trials share.

    Proxy sets for which all values of one of the two are equal are left out.
    """
    sets: dict[str, list[Record]] = defaultdict(list)
    score = score_of(records).test
    for record in records:
        if _value(record, score) is not None and _value(record, proxy) is not None:
            sets[record.proxy_hash].append(record)
    found = []
    for members in sets.values():
        scores = [[record.metrics[name] for record in members] for name in (proxy, score)]
        if len(members) >= 4 and all(len(set(row)) > 1 for row in scores):
            rho = float(stats.spearmanrho(*scores).statistic)  # type: ignore[attr-defined]
            ipcs = tuple(sorted({record.ipc for record in members}))
            found.append(Ranking(proxy=proxy, ipcs=ipcs, rho=rho, n=len(members)))
    return sorted(found, key=lambda one: one.ipcs)


def _teacher_seed(record: Record) -> int | None:
    teacher = record.config.get("teacher")
    return teacher.get("seed", 0) if isinstance(teacher, Mapping) else None


def _value(record: Record, metric: str) -> float | None:
    value = record.metrics.get(metric, np.nan)
    return value if record.status == "finished" and np.isfinite(value) else None


def _ipcs(records: Iterable[Record], arm: str, metric: str) -> set[int]:
    return {record.ipc for record in records if record.arm == arm and _value(record, metric) is not None}


def _common_ipcs(left: set[int], right: set[int]) -> list[int]:
    """Return the IPCs of a comparison: the common ones, or, for an arm that has only IPC 0, all IPCs of the other."""
    if not left or not right:
        return []
    if left == {0}:
        return sorted(right)
    return sorted(left) if right == {0} else sorted(left & right)


def _by_seed(records: Sequence[Record], arm: str, ipc: int, metric: str) -> dict[int, Record]:
    used = 0 if _ipcs(records, arm, metric) == {0} else ipc
    return {
        record.seed: record
        for record in records
        if record.arm == arm and record.ipc == used and _value(record, metric) is not None
    }


def _over_images(pairs: Sequence[tuple[Record, Record]], labels: Sequence[int]) -> Interval | None:
    truth = np.asarray(labels)
    answers = [[np.asarray(record.outcome.predictions) for record in pair] for pair in pairs]
    complete = [pair for pair in answers if all(len(each) == len(truth) for each in pair)]
    if not complete or not len(truth):
        return None
    left, right = (np.array([pair[side] == truth for pair in complete]) for side in (0, 1))
    return image_interval(left, right)
