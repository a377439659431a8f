"""What the numbers support: means with their n, and paired differences with two kinds of interval.

Arms are compared within a seed, since all arms of a seed share their random draws. The interval over seeds says what
another seed would do to the difference; the interval over test images says what another test set would do. Neither
is corrected for the number of comparisons.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from condkd_ray.report.records import Record, arm_rank

ACCURACY = "student/test_accuracy"
Baseline = str | dict[str, str]
"""The arm that all are compared with, or for each arm its own."""
PAIRS = (("guided", "mixed"), ("mixed", "condensed_only"), ("guided_only", "guided"))
"""Compared beside each arm minus the baseline and minus `none`."""
LEVEL = 0.95
BCA_FROM = 10
"""From this many seeds on the interval is a BCa bootstrap; with fewer, resampling knows too little of the tails."""
SEED_RESAMPLES, IMAGE_RESAMPLES = 10_000, 2_000


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A mean with the sample standard deviation (n - 1), None below two values, of `n` finite values."""

    mean: float
    std: float | None
    n: int


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Test accuracy, or another metric, of `left` minus `right` at one IPC, paired by seed; accuracies are fractions.

    `low`, `high`: 95 % interval over seeds by `method`, None where there is none. `image_low`, `image_high`: 95 %
    percentile bootstrap over test images of the difference averaged over the common seeds, of test accuracy alone.
    """

    left: str
    right: str
    ipc: int
    mean: float
    std: float | None
    n: int
    low: float | None
    high: float | None
    method: str
    image_low: float | None
    image_high: float | None


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
    if not len(finite):
        return None
    return Spread(mean=float(finite.mean()), std=float(finite.std(ddof=1)) if len(finite) > 1 else None, n=len(finite))


def groups(records: Iterable[Record]) -> dict[tuple[str, int], list[Record]]:
    """Records by (arm, ipc), arms in their order."""
    found: dict[tuple[str, int], list[Record]] = defaultdict(list)
    for record in records:
        found[record.arm, record.ipc].append(record)
    return {key: found[key] for key in sorted(found, key=lambda key: (arm_rank(key[0]), key[1]))}


def interval(differences: np.ndarray, seed: int = 0) -> tuple[float | None, float | None, str]:
    """95 % interval of the mean of paired differences, and the name of the method that gave it."""
    n = len(differences)
    if n < 2:
        return None, None, f"no interval, n = {n}"
    if np.ptp(differences) <= 1e-12:
        return None, None, "no interval, all differences equal"
    if n >= BCA_FROM:
        low, high = _bca(differences, seed)
        if np.isfinite([low, high]).all():
            return low, high, "BCa"
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1) * differences.std(ddof=1) / np.sqrt(n))
    mean = float(differences.mean())
    return mean - half, mean + half, f"paired t, df {n - 1}"


def _bca(differences: np.ndarray, seed: int) -> tuple[float, float]:
    with warnings.catch_warnings():
        # Undefined for some odd samples; scipy then warns and gives NaN, and the t interval stands in.
        warnings.simplefilter("ignore")
        found = stats.bootstrap(
            (differences,),
            np.mean,
            n_resamples=SEED_RESAMPLES,
            confidence_level=LEVEL,
            method="BCa",
            rng=np.random.default_rng(seed),
        )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def image_interval(left: np.ndarray, right: np.ndarray, seed: int = 0) -> tuple[float | None, float | None]:
    """95 % percentile bootstrap over images. `left`, `right`: (seeds, images), whether each answer was right."""
    seeds, images = left.shape
    if not seeds or not images:
        return None, None
    totals = left.astype(np.int64).sum(0) - right.astype(np.int64).sum(0)
    # An image's total is one of at most 2 * seeds + 1 integers, so drawing images is drawing multinomial counts of
    # these: the same distribution as an index a draw, without 2 000 x 10 000 of them.
    values, counts = np.unique(totals, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(images, counts / images, size=IMAGE_RESAMPLES)
    means = draws @ values / (images * seeds)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def difference(
    records: Sequence[Record], left: str, right: str, ipc: int, labels: Sequence[int] = (), metric: str = ACCURACY
) -> Difference | None:
    """`left` minus `right` at `ipc` over the seeds that both have finished; None without a common seed."""
    ours, theirs = _by_seed(records, left, ipc, metric), _by_seed(records, right, ipc, metric)
    common = [(ours[seed], theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())]
    if not common:
        return None
    values = np.array([a.metrics[metric] - b.metrics[metric] for a, b in common])
    low, high, method = interval(values)
    image_low, image_high = _over_images(common, labels if metric == ACCURACY else ())
    std = float(values.std(ddof=1)) if len(values) > 1 else None
    return Difference(
        left=left,
        right=right,
        ipc=ipc,
        mean=float(values.mean()),
        std=std,
        n=len(values),
        low=low,
        high=high,
        method=method,
        image_low=image_low,
        image_high=image_high,
    )


def comparisons(
    records: Sequence[Record], labels: Sequence[int] = (), *, baseline: Baseline = "none", metric: str = ACCURACY
) -> list[Difference]:
    """Each arm minus its baseline and minus `none`, and `PAIRS`; no two arms twice.

    At each IPC at which both arms have a finished trial of a common seed.
    """
    arms = sorted({record.arm for record in records}, key=arm_rank)
    own = {arm: baseline if isinstance(baseline, str) else baseline.get(arm, "none") for arm in arms}
    wanted = [*own.items(), *((arm, "none") for arm in arms), *PAIRS]
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


def _over_images(pairs: Sequence[tuple[Record, Record]], labels: Sequence[int]) -> tuple[float | None, float | None]:
    truth = np.asarray(labels)
    complete = [pair for pair in pairs if all(len(record.predictions) == len(truth) for record in pair)]
    if not complete or not len(truth):
        return None, None
    left, right = (np.array([np.asarray(pair[side].predictions) == truth for pair in complete]) for side in (0, 1))
    return image_interval(left, right)
