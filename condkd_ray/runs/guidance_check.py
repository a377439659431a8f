"""Check of the optimum of each guidance: teacher features, moved by its penalty alone, are compared with real features.

The features themselves are optimised, not images; no student and no inversion are involved. So the effects of an
inversion, of the teacher's network and of a step budget are left out. Features that start as real ones should stay
distributed like the real features, and collapsed features should move near them; only then does a guidance align with
the data. The whole check is our choice.

Letters: N features of one part (a layer output of the teacher), D values of each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import Samples
from condkd_ray.methods.guidance import FORMS, Gaussian, Guidance, Mmd, Moments
from condkd_ray.methods.guidance.guidance import same_class_rows
from condkd_ray.methods.losses.discrepancy import by_class, class_frechet
from condkd_ray.methods.targets import balanced_labels
from condkd_ray.models.network import label
from condkd_ray.models.teacher import Teacher
from condkd_ray.trial.artifacts import Workshop
from condkd_ray.trial.config import from_tree


@dataclass(frozen=True, kw_only=True)
class Noise(Moments):
    """A control without information: its result is the distance that the optimiser's noise alone moves features."""

    def penalty(self, state: Any, fake: Tensor, labels: Tensor, *, rng: torch.Generator) -> Tensor:
        """Return a penalty whose gradient has mean 0 everywhere."""
        return (torch.randn(fake.shape, generator=rng, device=fake.device) * fake).mean()


NOISE = "(noise alone)"
CHECKED: Mapping[str, Guidance] = (
    {NOISE: Noise()}
    | FORMS
    | {
        "mmd, 2 stages": Mmd(stages=2),
        "moments, 2 stages": Moments(stages=2),
        "gaussian, 2 stages": Gaussian(stages=2),
        "gaussian, means alone": Gaussian(covariance="none"),
        "mmd, marginal": Mmd(alignment="marginal"),
    }
)
"""Guidances measured by `condkd methods --check guidance`: every form, and options that move its optimum."""
BEYOND = 1.5
"""Largest final distance of a form that aligns, in units of the distance between two parts of the data."""
SEEDS = 2
STEPS, BATCH, RATE = 2000, 128, 0.003
"""Number of Adam steps, of features per step, and the learning rate in units of the guides' root mean square value.

Adam's steps are as large for noise as for a systematic gradient: at ten times the rate and a tenth of the steps, the
form `NOISE` ends at a distance of 2.9, and forms whose optimum is the data are driven away from it too."""
COLLAPSED = 0.05
"""Standard deviation of collapsed features around their class mean, relative to the real features' around theirs."""


@dataclass(frozen=True)
class Ending:
    """Frechet distances to unseen real features, relative to the distance between two parts of the real features.

    `start`: before the first step; `end`: after the last; `spread`: mean distance between two features of a class at
    the end, relative to the real ones'.
    """

    start: float
    end: float
    spread: float


@dataclass(frozen=True)
class Check:
    """Results for features that start as real ones (`perfect`) and as one point per class (`collapsed`)."""

    form: str
    perfect: Ending
    collapsed: Ending

    @property
    def aligns(self) -> bool:
        """True if perfect features stay within `BEYOND` of the data."""
        return self.perfect.end <= BEYOND


HEADER = (
    "| form | from real features: distance | spread | from one point per class: distance | spread | aligns |\n"
    "|---|--:|--:|--:|--:|---|"
)


def digits(cache: Path | None = None) -> tuple[list[Check], str]:
    """Check every form on the bundled digits, with a briefly trained teacher; return results and name of the data.

    `cache`: folder of teachers; None: the default.
    """
    workshop = Workshop(cache)
    config = from_tree({"data": {"name": "digits"}, "teacher": {"training": {"epochs": 40}}})
    teacher = workshop.teacher(config)
    real = workshop.data(config).train.samples(teacher.mean, teacher.std)
    found = [check(form, guidance, teacher, real) for form, guidance in CHECKED.items()]
    return found, f"{len(real)} images of digits, {label(config.teacher.network)}"


def report(found: Sequence[Check], what: str) -> str:
    """Return a Markdown table, one row per form, and an explanation of its columns. `what`: description of the data."""
    rows = [_row(one) for one in found]
    started = mean(one.collapsed.start for one in found)
    return "\n".join(
        (
            *(HEADER, *rows, ""),
            f"Features of {what}, moved by the guidance alone in {STEPS} steps, means of {SEEDS} seeds. Distance: "
            f"Frechet, to real features that were no guides, in units of that between two parts of the real ones; "
            f"features that start as one point per class are {started:.1f} away. Spread: mean distance between two "
            f"features of a class; 1 for real ones. A form aligns if real features end within {BEYOND:g}. "
            f"{NOISE} has no optimum and shows how far the optimiser's own noise moves features.\n",
        )
    )


def _row(one: Check) -> str:
    values = (one.perfect.end, one.perfect.spread, one.collapsed.end, one.collapsed.spread)
    return f"| {one.form} | {' | '.join(f'{value:.2f}' for value in values)} | {'yes' if one.aligns else '**no**'} |"


def check(form: str, guidance: Guidance, teacher: Teacher, real: Samples, seeds: Sequence[int] = range(SEEDS)) -> Check:
    """Check one guidance and return means over `seeds`.

    Each seed splits the images `real` into three parts: guides, starting points, and images to compare with. `form`:
    name of the guidance in the result.
    """
    with torch.no_grad():
        parts = guidance.layer_features(teacher, real.images)
    found = [_both(guidance, teacher, parts, real.labels, seed) for seed in seeds]
    perfect, collapsed = ([pair[place] for pair in found] for place in (0, 1))
    return Check(form, _mean(perfect), _mean(collapsed))


def _mean(found: Sequence[Ending]) -> Ending:
    return Ending(*(mean(getattr(one, name) for one in found) for name in ("start", "end", "spread")))


def _both(
    guidance: Guidance, teacher: Teacher, parts: list[Tensor], labels: Tensor, seed: int
) -> tuple[Ending, Ending]:
    """Return the results from real and from collapsed features."""
    deal = Streams(seed)
    guides, perfect, unseen = thirds(labels, deal)
    classes = teacher.num_classes

    def begun(rng: Streams) -> Any:
        return guidance.init_from_features(teacher, [part[guides] for part in parts], labels[guides], rng, 1)

    features = guidance.scaled_features(begun(Streams(seed)), parts)
    real, names = features[unseen], labels[unseen]
    scale = (real - class_means(real, names, classes)).square().sum(1).mean().sqrt()

    def apart(ours: Tensor, known: Tensor) -> float:
        return class_frechet(ours / scale, known, real / scale, names, num_classes=classes).item()

    yardstick = apart(features[guides], labels[guides])
    points = class_means(features[perfect], labels[perfect], classes)
    noise = torch.randn(points.shape, generator=deal["start"]) * COLLAPSED * (features - points.mean(0)).std(0)
    endings = []
    for start in (features[perfect], points + noise):
        rng = Streams(seed)
        state = begun(rng)
        ended = moved(guidance, teacher, state, (features[guides], labels[guides]), start, labels[perfect], rng)
        spread = _spread(ended, labels[perfect], classes) / _spread(real, names, classes)
        before, after = (apart(one, labels[perfect]) / yardstick for one in (start, ended))
        endings.append(Ending(before, after, spread))
    return endings[0], endings[1]


def moved(
    guidance: Guidance,
    teacher: Teacher,
    state: Any,
    guides: tuple[Tensor, Tensor],
    start: Tensor,
    labels: Tensor,
    rng: Streams,
) -> Tensor:
    """Return features (N, D) of `labels` (N,) after `STEPS` steps from `start` by the guidance's penalty alone.

    Each step moves a batch with balanced classes. Then the guidance is updated with this batch and with as many of the
    `guides`, given as features and labels. `state`: the guidance's state, made from `guides`.
    """
    features = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([features], RATE * guides[0].square().mean().sqrt().item())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    draws = rng["draws"]
    for _ in range(STEPS):
        wanted = balanced_labels(min(BATCH, len(start)), teacher.num_classes, rng)
        fake = features[same_class_rows(labels, wanted, draws)]
        optimizer.zero_grad()
        guidance.penalty(state, fake, wanted, rng=draws).backward()
        optimizer.step()
        schedule.step()
        shown = guides[0][same_class_rows(guides[1], wanted, draws)]
        shown = (
            guidance.perturbed(state, shown, wanted, draws) if guidance.uses_condensed_batches else fake[:0].detach()
        )
        guidance.update(state, fake.detach(), shown, wanted, rng=draws)
    return features.detach()


def class_means(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return for each feature (N, D) the mean of its class, (N, D)."""
    hot = torch.nn.functional.one_hot(labels, classes).to(features.dtype)
    return (hot.T @ features / hot.sum(0).clamp_min(1)[:, None])[labels]


def _spread(features: Tensor, labels: Tensor, classes: int) -> float:
    """Return the mean distance between two features of a class, averaged over classes."""
    parts = [part for part in by_class(features, labels, classes) if len(part) > 1]
    return mean(torch.pdist(part).mean().item() for part in parts)


def thirds(labels: Tensor, rng: Streams) -> list[Tensor]:
    """Return the rows of three parts of the images, in random order, with equal numbers of each class in all parts."""
    order = torch.randperm(len(labels), generator=rng["deal"])
    sizes = labels.bincount()
    most = int(sizes[sizes > 0].min()) // 3
    own = [order[labels[order] == label] for label in sizes.nonzero().flatten().tolist()]
    return [torch.cat([rows[k * most : (k + 1) * most] for rows in own]) for k in range(3)]
