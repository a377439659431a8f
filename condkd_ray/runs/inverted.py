"""Comparison of an inversion's images, made without a student, with held-out real images. For reports only; our choice.

Letters: N images, K classes.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from condkd_ray.core.method import Metrics
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import cat
from condkd_ray.methods.losses.inversion import bn_distance
from condkd_ray.methods.recognition import choose
from condkd_ray.report.statistics import interval, spread
from condkd_ray.report.tables.table import Table, interval_text, mean_text
from condkd_ray.trial.config import Prepared, TrialConfig
from condkd_ray.trial.diagnosis import REAL_PER_CLASS, Landmarks, make_landmarks, to_real
from condkd_ray.trial.synthesis import begin, own_compilation, produce

FIGURES = {"frechet_real": "Frechet", "mmd_real": "MMD", "bn": "BN"}
"""Titles of the measures, by metric name."""
LEGEND = (
    "Mean ± standard deviation over n seeds, and the 95 % interval of new minus old (paired t); less is better. All "
    "seeds share one teacher. Frechet, MMD: distances of all images made to real test images, class by class in the "
    "teacher's features. BN: unweighted distance of a round's images, under the inversion's augmentation, to the "
    "teacher's statistics, mean over rounds."
)


def held_out(prepared: Prepared) -> Landmarks:
    """Return landmarks of test images, at most `diagnosis.REAL_PER_CLASS` per class, which are equal in every call."""
    teacher, test = prepared.teacher, prepared.test
    assert test is not None
    rows = choose(test.labels, REAL_PER_CLASS, seed=0)
    return make_landmarks(teacher, test[rows].samples(teacher.mean, teacher.std), None)


def measure(config: TrialConfig, prepared: Prepared, real: Landmarks) -> Metrics:
    """Return the measures in `FIGURES` of the images from all rounds of the config's inversion.

    The inversion must not use the student.

    Raises `NonFiniteError` if a loss or a feature is not finite, and `InputError` if the config's compilation, or its
    replay as graphs, is not possible.
    """
    teacher, production, inversion = prepared.teacher, begin(config, prepared), config.inversion
    parts = (config, prepared, production, nn.Identity(), torch.zeros(0))
    with own_compilation(config, teacher.device):
        made = [produce(*parts)[0] for _ in range(config.total_rounds)]
    stream = Streams(config.seed, teacher.device)["views"]
    with torch.no_grad():
        seen = [teacher.observe(inversion.augment(part.images, teacher=teacher, rng=stream)) for part in made]
        apart = torch.stack([bn_distance(look.bn, *teacher.bn) for look in seen])
    return to_real(cat(made), real, teacher=teacher) | {"bn": apart.mean().item()}


def side_by_side(title: str, found: Mapping[str, Sequence[Sequence[Metrics]]]) -> Table:
    """Return a table with a row per inversion and measure.

    `found`: by name of the inversion, the measures of the old and of the new version, each a list over seeds.
    """
    rows = []
    for (inversion, pair), name in ((one, name) for one in found.items() for name in FIGURES):
        old, new = (np.array([figures[name] for figures in side]) for side in pair)
        ends, method = interval(new - old)
        difference = interval_text(ends, factor=1, digits=3, unknown=method)
        sides = [mean_text(spread(side), len(side), digits=3) for side in (old, new)]
        rows.append([inversion, FIGURES[name], str(len(old)), *sides, f"{(new - old).mean():+.3f}", difference])
    return Table(title, ["inversion", "figure", "n", "old", "new", "new - old", "95 %"], rows, LEGEND, keys=2)
