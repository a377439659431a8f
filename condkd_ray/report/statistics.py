"""What the numbers support: means with their n, and paired differences with two kinds of interval.

Arms are compared within a seed, since all arms of a seed share their random draws. The interval over seeds says what
another seed would do to the difference; the interval over test images says what another test set would do. Neither
is corrected for the number of comparisons, as p is, and neither says what another teacher would do unless the seeds
have several: see `condkd_ray.report.tables.teachers`.

Over seeds: the paired t interval at every n. Its coverage at nominal 95 %, simulated with 200 000 samples each
(standard error 0.0005); exact for normal differences, too low for skewed ones, as for a difference whose seeds
sometimes fail badly:

| differences  | n = 3 | n = 5 | n = 10 | n = 20 |
|--------------|-------|-------|--------|--------|
| normal       | 0.950 | 0.950 | 0.951  | 0.950  |
| t3           | 0.963 | 0.963 | 0.960  | 0.957  |
| exponential  | 0.885 | 0.882 | 0.900  | 0.918  |
| lognormal    | 0.839 | 0.822 | 0.840  | 0.867  |

A BCa bootstrap covers less: 0.89 at n = 10 and 0.91 at n = 20 for normal differences.

Over test images: an adjusted Wald interval, see `image_interval`. Its simulated coverage is at least 0.94 for 20 to
10 000 test images and 1 to 5 seeds. A percentile bootstrap over images that differ in one answer of 10 to 20 covers
0.56 to 0.79 for 20 of them and 0.84 for 50; from 360 images on both agree.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from scipy import stats

from condkd_ray.core.records import Record, arm_rank

ACCURACY = "student/test_accuracy"
Baseline = str | dict[str, str]
"""The arm that all are compared with, or for each arm its own."""
GUIDED, MIXED, PRIOR = "guided", "mixed", "mixed_prior"
CONTROLS = ((GUIDED, MIXED), (GUIDED, PRIOR), (PRIOR, MIXED))
"""What all of guidance gives, what of it needs the condensed images as guides, and what a class prior gives without."""
PAIRS = (("mixed", "condensed_only"), ("guided", "condensed_only"), ("guided_only", "guided"))
"""Compared beside each arm minus the baseline and minus `none`, and beside the controls."""
UNGUIDED = " unguided"
"""Ends the name of an arm that is another one without its guidance."""
LEVEL = 0.95
Interval = tuple[float, float]
"""Ends of a 95 % interval."""
EQUAL = 1e-12
"""Differences that lie no further apart than this share of the largest, or of 1, are equal: they differ by rounding."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A mean with the sample standard deviation (n - 1), None below two values, of `n` finite values."""

    mean: float
    std: float | None
    n: int


@dataclass(frozen=True, kw_only=True)
class Difference(Spread):
    """Test accuracy, or another metric, of `left` minus `right` at one IPC, paired by seed; accuracies are fractions.

    `over_seeds`: by `method`, None where there is none. `over_images`: over test images, of the difference averaged
    over the common seeds, of test accuracy alone. `p`: see `judged`.
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
    """Spearman's correlation of a proxy with test accuracy over the `n` trials that share one proxy set."""

    proxy: str
    ipcs: tuple[int, ...]
    rho: float
    n: int


def spread(values: Iterable[float]) -> Spread | None:
    """Mean, standard deviation and n of the finite values; None without any."""
    finite = np.array([value for value in values if np.isfinite(value)], dtype=np.float64)
    return _spread(finite) if len(finite) else None


def _spread(values: np.ndarray) -> Spread:
    std = float(values.std(ddof=1)) if len(values) > 1 else None
    return Spread(mean=float(values.mean()), std=std, n=len(values))


def groups(records: Iterable[Record]) -> dict[tuple[str, int], list[Record]]:
    """Records by (arm, ipc), arms in their order."""
    found: dict[tuple[str, int], list[Record]] = defaultdict(list)
    for record in records:
        found[record.arm, record.ipc].append(record)
    return {key: found[key] for key in sorted(found, key=lambda key: (arm_rank(key[0]), key[1]))}


def tested(records: Iterable[Record]) -> list[Record]:
    """Finished trials whose test accuracy is known."""
    return [one for one in records if _value(one, ACCURACY) is not None]


def teacher_names(records: Sequence[Record]) -> dict[str, str]:
    """By hash, how each teacher is called: by the seed it was trained with where that tells all apart.

    Records without a teacher's hash are passed over.
    """
    first = {record.teacher_hash: record for record in reversed(records) if record.teacher_hash}
    seeds = {key: _teacher_seed(record) for key, record in first.items()}
    if None in seeds.values() or len(set(seeds.values())) < len(seeds):
        found = {key: f"teacher {record.teacher} {key[:8]}" for key, record in first.items()}
    else:
        found = {key: f"teacher {seed}" for key, seed in seeds.items()}
    return dict(sorted(found.items(), key=lambda pair: (seeds[pair[0]] or 0, pair[1])))


def by_teacher(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Tested trials by their teacher's name, where the seeds of some arm have several teachers; else empty."""
    known = [one for one in tested(records) if one.teacher_hash]
    if all(len({one.teacher_hash for one in members}) < 2 for members in groups(known).values()):
        return {}
    return {name: [one for one in known if one.teacher_hash == key] for key, name in teacher_names(known).items()}


def interval(differences: np.ndarray) -> tuple[Interval | None, str]:
    """95 % interval of the mean of paired differences (n,), and the name of the method that gave it."""
    n = len(differences)
    if n < 2:
        return None, f"no interval, n = {n}"
    if np.ptp(differences) <= EQUAL * max(1.0, float(np.abs(differences).max())):
        return None, "no interval, all differences equal"
    low, high = t_interval(differences)
    return (float(low), float(high)), f"paired t, df {n - 1}"


def t_interval(differences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ends (...,) of the 95 % t interval of the mean of each sample of `differences` (..., n), n >= 2."""
    n = differences.shape[-1]
    mean = differences.mean(-1)
    half = stats.t.ppf((1 + LEVEL) / 2, n - 1) * differences.std(-1, ddof=1) / np.sqrt(n)
    return mean - half, mean + half


def image_interval(left: np.ndarray, right: np.ndarray) -> Interval | None:
    """95 % interval over images. `left`, `right`: (seeds, images), whether each answer was right.

    Source: Bonett & Price 2012, an adjusted Wald interval for paired proportions: one image that only `left` gets right
    and one that only `right` does are added, so that a few images that seldom differ do not look certain. For several
    seeds an image counts with its mean over the seeds (our choice; conservative where seeds disagree on few images).
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
    records: Sequence[Record], left: str, right: str, ipc: int, labels: Sequence[int] = (), metric: str = ACCURACY
) -> Difference | None:
    """`left` minus `right` at `ipc` over the seeds that both have finished; None without a common seed."""
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
    records: Sequence[Record], labels: Sequence[int] = (), *, baseline: Baseline = "none", metric: str = ACCURACY
) -> list[Difference]:
    """Each arm minus its baseline and minus `none`, `controlled`, and `PAIRS`; no two arms twice.

    At each IPC at which both arms have a finished trial of a common seed.
    """
    arms = sorted({record.arm for record in records}, key=arm_rank)
    own = {arm: baseline if isinstance(baseline, str) else baseline.get(arm, "none") for arm in arms}
    wanted = [*own.items(), *((arm, "none") for arm in arms), *controlled(arms, own), *PAIRS]
    pairs: dict[frozenset[str], tuple[str, str]] = {}
    for left, right in wanted:
        if left != right:
            pairs.setdefault(frozenset((left, right)), (left, right))
    found = [
        difference(records, left, right, ipc, labels, metric)
        for left, right in pairs.values()
        for ipc in _common_ipcs(_ipcs(records, left, metric), _ipcs(records, right, metric))
    ]
    return [one for one in found if one is not None]


def controlled(arms: Sequence[str], own: Mapping[str, str]) -> list[tuple[str, str]]:
    """Pairs of arms that tell what guides are worth, from how the arms are called; `own`: the baseline of each.

    `CONTROLS` of `guided` and of arms such as `guided fast`; an arm and itself unguided; and an arm that is
    read against a mixed_prior, also against the mixed of the same name.
    """
    tails = [arm.removeprefix(first) for first in (GUIDED, PRIOR) for arm in arms if arm.startswith(first)]
    found = [(f"{left}{tail}", f"{right}{tail}") for tail in tails for left, right in CONTROLS]
    found += [(arm.removesuffix(UNGUIDED), arm) for arm in arms if arm.endswith(UNGUIDED)]
    found += [(arm, f"{MIXED}{one.removeprefix(PRIOR)}") for arm, one in own.items() if one.startswith(PRIOR)]
    return [(left, right) for left, right in found if {left, right} <= set(arms)]


def turned(one: Difference) -> Difference:
    """The same difference the other way round: `right` minus `left`."""

    def ends(found: Interval | None) -> Interval | None:
        return None if found is None else (-found[1], -found[0])

    intervals = {"over_seeds": ends(one.over_seeds), "over_images": ends(one.over_images)}
    return replace(one, left=one.right, right=one.left, mean=-one.mean, **intervals)


def p_value(one: Difference) -> float | None:
    """Two-sided p of the paired t test that the mean difference is 0; None where there is no interval over seeds.

    It is below 0.05 just if the 95 % interval does not contain 0.
    """
    if one.over_seeds is None or one.std is None:
        return None
    return float(2 * stats.t.sf(abs(one.mean) * math.sqrt(one.n) / one.std, one.n - 1))


def holm(values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979), in the order of `values`.

    The smallest of m is multiplied by m, the next by m - 1 and so on, none is less than one before it or above 1.
    Below a level, they bound the chance of even one false finding among the m by that level.
    """
    adjusted, largest = [0.0] * len(values), 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        largest = max(largest, min(1.0, (len(values) - rank) * values[place]))
        adjusted[place] = largest
    return adjusted


def judged(differences: Sequence[Difference]) -> list[Difference]:
    """Each with its p, corrected for all arms compared with the same one at the same IPC: they are one question."""
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
    """How well the proxy ranked the trials: one correlation a proxy set, where at least four trials share it."""
    sets: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if _value(record, ACCURACY) is not None and _value(record, proxy) is not None:
            sets[record.proxy_hash].append(record)
    found = []
    for members in sets.values():
        scores = [[record.metrics[name] for record in members] for name in (proxy, ACCURACY)]
        if len(members) >= 4 and all(len(set(row)) > 1 for row in scores):
            # Spearman's is Pearson's of the ranks.
            rho = float(np.corrcoef(stats.rankdata(scores, axis=1))[0, 1])
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
    """An arm that uses no condensed images is the same at every IPC, so it pairs with each of the other's."""
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
