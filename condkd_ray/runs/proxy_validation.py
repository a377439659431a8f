"""Proxies of test accuracy, compared: which of them ranks trials as the test set does?

A candidate is a fixed set of images and how a student is compared with its teacher on them. All is our choice.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from torch import nn

from condkd_ray.core.method import require
from condkd_ray.core.records import Record, read_records
from condkd_ray.core.rng import derive_seed
from condkd_ray.core.samples import Samples
from condkd_ray.core.storage import atomic_write
from condkd_ray.methods.condensation.condensation import first_per_class
from condkd_ray.methods.guidance import NoGuidance
from condkd_ray.methods.inversion import DeepInversion
from condkd_ray.report.kept import kept_path, load_student
from condkd_ray.report.statistics import ACCURACY
from condkd_ray.report.tables.table import Table
from condkd_ray.trial.artifacts import Workshop
from condkd_ray.trial.config import TrialConfig
from condkd_ray.trial.evaluation import compare, views
from condkd_ray.trial.outcome import read_product
from condkd_ray.trial.plan import NUMBERS
from condkd_ray.trial.synthesis import begin, compiled_apart, produce

INVERTED = 512
"""Images of the reference inversion."""
RESAMPLES = 2000
RANKED_FROM = 12
"""Trials from which on rho gets an interval. Simulated coverage of the percentile bootstrap at nominal 95 %, normal
scores: 0.95 to 0.98 for 12 and 24 trials and rho of 0 to 0.98, 0.94 to 0.97 for 50 (0.92 at 0.98); for 9 trials 0.88 at
0.98."""


@dataclass(frozen=True)
class Ranked:
    """Spearman's rho of a candidate with test accuracy over n trials, and its 95 % bootstrap interval over these.

    NaN for an interval where there are fewer than `RANKED_FROM` trials.
    """

    candidate: str
    rho: float
    low: float
    high: float
    n: int


def candidates(workshop: Workshop, config: TrialConfig) -> dict[str, Samples]:
    """The candidate sets by name, for trials of the config's data, teacher and condenser; none of these sees them.

    `few_shot`: a held-out real image of each class, in views. `condensed`: a held-out condensed image of each class, in
    views. `inverted`: a fixed inversion of the teacher, as it is; it needs no image at all.
    """
    method = config.condensation
    require(method is not None, "condensation", None, "a condenser, of whose images one a class is held out")
    assert method is not None
    seed = derive_seed(config.data.seed, "held-out condensed") % 2**31
    apart = replace(config, seed=seed)
    prepared = workshop.prepare(apart)
    assert prepared.condensed is not None
    one = first_per_class(prepared.condensed, 1, prepared.teacher.num_classes)
    seen = views(one, prepared.teacher, seed=derive_seed(config.data.seed, "proxy views"))
    plain = replace(apart, inversion=DeepInversion(batch=INVERTED), guidance=NoGuidance())
    with compiled_apart(plain, prepared.teacher.device):
        inverted, _ = produce(plain, prepared, begin(plain, prepared), nn.Identity(), torch.zeros(0), promised=True)
    return {"few_shot": prepared.proxy, "condensed": seen, "inverted": inverted}


@torch.no_grad()
def scores(out: Path, record: Record, sets: dict[str, Samples]) -> dict[str, float]:
    """A kept trial's student on each set: `few_shot/agreement`, `few_shot/kl` (minus it: more is better), and so on."""
    product = read_product(kept_path(out, record.config_hash))
    student = load_student(product).to(next(iter(sets.values())).images.device)
    found = {}
    for name, samples in sets.items():
        told = compare(student, samples)
        found |= {f"{name}/agreement": told["agreement"].item(), f"{name}/kl": -told["kl"].item()}
    return found


def validate(out: Path, workshop: Workshop, config: TrialConfig) -> str:
    """Rank the candidates, made for trials like `config`, over the finished trials of `out`, whose products are kept.

    Writes `proxies.md` there; the table as plain text.
    """
    done = [record for record in read_records(out) if (record.status, record.numbers) == ("finished", NUMBERS)]
    require(len(done) > 1, "number of finished trials", len(done), "2 or more")
    sets = candidates(workshop, config)
    table = ranking_table(rank([scores(out, one, sets) for one in done], [one.metrics[ACCURACY] for one in done]))
    atomic_write(out / "proxies.md", table.markdown().encode())
    return table.text()


def rank(told: Sequence[dict[str, float]], accuracies: Sequence[float]) -> list[Ranked]:
    """How each candidate ranks trials with these scores and test accuracies; the best first."""
    rng, found = np.random.default_rng(0), []
    for name in told[0]:
        pairs = np.array([[scored[name] for scored in told], accuracies])
        found.append(Ranked(name, float(_rho(*pairs)), *_interval(pairs, rng), len(told)))
    return sorted(found, key=lambda one: (np.isnan(one.rho), -one.rho))


def _interval(pairs: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """Percentile bootstrap over the trials of `pairs` (2, trials)."""
    trials = pairs.shape[1]
    if trials < RANKED_FROM:
        return float("nan"), float("nan")
    draws = _rho(*pairs[:, rng.integers(0, trials, (RESAMPLES, trials))])
    # Trials drawn again and again may all be one.
    known = draws[np.isfinite(draws)]
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (np.nan, np.nan)
    return float(low), float(high)


def ranking_table(ranked: Sequence[Ranked]) -> Table:
    """A row a candidate."""
    rows = []
    for one in ranked:
        between = "-" if np.isnan(one.low) else f"{one.low:+.2f} to {one.high:+.2f}"
        rows.append([one.candidate, f"{one.rho:+.2f}", between, str(one.n)])
    legend = (
        "Spearman's rho with test accuracy over trials of different configs; 95 % percentile bootstrap over trials "
        f"(from {RANKED_FROM} trials on). "
        "agreement: share of images on which student and teacher name one class; kl: minus KL(teacher || student)."
    )
    return Table("Proxies", ["proxy", "rho", "95 %", "n"], rows, legend, keys=1)


def _rho(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Spearman's rho (...,) of each two rows (..., trials); NaN where one of them never differs."""
    # Spearman's is Pearson's of the ranks.
    ranks = [stats.rankdata(side, axis=-1) for side in (left, right)]
    one, other = (rank - rank.mean(-1, keepdims=True) for rank in ranks)
    with np.errstate(invalid="ignore"):
        return (one * other).sum(-1) / np.sqrt((one**2).sum(-1) * (other**2).sum(-1))
