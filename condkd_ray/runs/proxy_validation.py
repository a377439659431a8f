"""Comparison of proxies for the test score: how well does each rank trials in the order of their test scores?

A proxy, here a candidate, is a fixed set of images with a measure that compares student and teacher on these images.
All of this is our choice.
"""

import warnings
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
from condkd_ray.core.task import CLASSIFICATION, Score, is_dense
from condkd_ray.methods.condensation.condensation import first_per_class
from condkd_ray.methods.guidance import NoGuidance
from condkd_ray.methods.inversion import DeepInversion
from condkd_ray.report.kept import kept_path, load_student
from condkd_ray.report.statistics import score_of
from condkd_ray.report.tables.table import Table
from condkd_ray.trial.artifacts import Workshop
from condkd_ray.trial.config import TrialConfig
from condkd_ray.trial.evaluation import compare, views
from condkd_ray.trial.outcome import read_product
from condkd_ray.trial.plan import NUMBERS
from condkd_ray.trial.synthesis import begin, own_compilation, produce

INVERTED = 512
"""Number of images in the candidate `inverted`."""
RESAMPLES = 2000
"""Number of bootstrap resamples."""
RANKED_FROM = 12
"""Smallest number of trials for an interval of rho.

Simulated coverage of the percentile bootstrap, nominal 95 %, normal scores: 0.95 to 0.98 for 12 and 24 trials and rho
of 0 to 0.98; 0.94 to 0.97 for 50 trials (0.92 for rho 0.98); 0.88 for 9 trials and rho 0.98.
"""


@dataclass(frozen=True)
class Ranked:
    """Spearman's rho between a candidate and the test score over n trials, with its 95 % bootstrap interval.

    `low` and `high` are NaN for fewer than `RANKED_FROM` trials.
    """

    candidate: str
    rho: float
    low: float
    high: float
    n: int


def candidates(workshop: Workshop, config: TrialConfig) -> dict[str, Samples]:
    """Return the candidate sets by name, for trials with the config's data, teacher and condenser.

    The trials' students are not trained on these images.

    `few_shot`: views of one held-out real image per class. `condensed`: views of one held-out condensed image per
    class. `inverted`: images of a fixed inversion of the teacher, without augmentation; it needs no real image. Raises
    `InputError` if the config has no condenser, and for segmentation, where a condensed image has no class by which one
    of each could be held out.
    """
    require(not is_dense(config.data.task), "task of the data", config.data.task, "classification")
    method = config.condensation
    require(method is not None, "condensation", None, "a condenser, as one of its images per class is held out")
    assert method is not None
    seed = derive_seed(config.data.seed, "held-out condensed") % 2**31
    apart = replace(config, seed=seed)
    prepared = workshop.prepare(apart)
    assert prepared.condensed is not None
    one = first_per_class(prepared.condensed, 1, prepared.teacher.num_classes)
    seen = views(one, prepared.teacher, seed=derive_seed(config.data.seed, "proxy views"))
    plain = replace(apart, inversion=DeepInversion(batch=INVERTED), guidance=NoGuidance())
    with own_compilation(plain, prepared.teacher.device):
        inverted, _ = produce(plain, prepared, begin(plain, prepared), nn.Identity(), torch.zeros(0), with_logits=True)
    return {"few_shot": prepared.proxy, "condensed": seen, "inverted": inverted}


@torch.no_grad()
def scores(out: Path, record: Record, sets: dict[str, Samples]) -> dict[str, float]:
    """Return a trial's scores on each set: `<set>/agreement`, and `<set>/kl`, the negated KL, so that more is better.

    Raises `InputError` if the trial's product is missing or damaged.
    """
    product = read_product(kept_path(out, record.config_hash))
    student = load_student(product, record).to(next(iter(sets.values())).images.device)
    found = {}
    for name, samples in sets.items():
        measured = compare(student, samples)
        found |= {f"{name}/agreement": measured["agreement"].item(), f"{name}/kl": -measured["kl"].item()}
    return found


def validate(out: Path, workshop: Workshop, config: TrialConfig) -> str:
    """Rank the candidates over the finished trials of `out`, all of whose products must be kept.

    The candidates are made for the data, teacher and condenser of `config`. Writes the table to `proxies.md` in `out`
    and returns it as plain text. Raises `InputError` for fewer than two finished trials, or if a product is missing.
    """
    done = [record for record in read_records(out) if (record.status, record.numbers) == ("finished", NUMBERS)]
    require(len(done) > 1, "number of finished trials", len(done), "2 or more")
    sets = candidates(workshop, config)
    score = score_of(done)
    ranked = rank([scores(out, one, sets) for one in done], [one.metrics[score.test] for one in done])
    table = ranking_table(ranked, score)
    atomic_write(out / "proxies.md", table.markdown().encode())
    return table.text()


def rank(found: Sequence[dict[str, float]], tested: Sequence[float]) -> list[Ranked]:
    """Return the rank correlation of each candidate with the test score, the highest first.

    `found`: scores of each trial by candidate. `tested`: test scores of the same trials.
    """
    rng, ranked = np.random.default_rng(0), []
    for name in found[0]:
        pairs = np.array([[scored[name] for scored in found], tested])
        ranked.append(Ranked(name, float(_rho(*pairs)), *_interval(pairs, rng), len(found)))
    return sorted(ranked, key=lambda one: (np.isnan(one.rho), -one.rho))


def _interval(pairs: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """Return the percentile bootstrap interval over the trials of `pairs` (2, trials)."""
    trials = pairs.shape[1]
    if trials < RANKED_FROM:
        return float("nan"), float("nan")
    draws = _rho(*pairs[:, rng.integers(0, trials, (RESAMPLES, trials))])
    # A resample may contain one trial only, which has no rho.
    known = draws[np.isfinite(draws)]
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (np.nan, np.nan)
    return float(low), float(high)


def ranking_table(ranked: Sequence[Ranked], score: Score = CLASSIFICATION) -> Table:
    """Return a table with one row per candidate."""
    rows = []
    for one in ranked:
        between = "-" if np.isnan(one.low) else f"{one.low:+.2f} to {one.high:+.2f}"
        rows.append([one.candidate, f"{one.rho:+.2f}", between, str(one.n)])
    legend = (
        f"Spearman's rho with test {score.name} over trials of different configs; 95 % percentile bootstrap over "
        f"trials (from {RANKED_FROM} trials on). "
        "agreement: share of images to which student and teacher give the same class; kl: minus KL(teacher || student)."
    )
    return Table("Proxies", ["proxy", "rho", "95 %", "n"], rows, legend, keys=1)


def _rho(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return Spearman's rho (...,) of pairs of rows (..., trials); NaN if a row is constant."""
    with warnings.catch_warnings():
        # SciPy warns if values are equal or too few; rho is NaN then, and the tables show this.
        warnings.simplefilter("ignore", RuntimeWarning)
        return stats.spearmanrho(left, right, axis=-1).statistic  # type: ignore[attr-defined]
