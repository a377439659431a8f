"""Where the optimum of each guidance lies: free features, moved by its penalty alone, against real features.

A guidance that aligns with the data leaves features that are distributed as real ones where they are, and brings
collapsed ones near. No image and no student has a part in it: what a host, a teacher's network and a budget add is left
out. All of it is our choice.

Letters: N features of a part, D values of each.
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
    """Pulls at random: how far the optimiser drives features that nothing pulls."""

    def penalty(self, state: Any, fake: Tensor, labels: Tensor, *, rng: torch.Generator) -> Tensor:
        """A gradient whose mean is 0 everywhere."""
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
"""What `condkd methods --check guidance` measures: every form, and options that move its optimum."""
BEYOND = 1.5
"""A form that ends further than this from the data, in units of the distance of two parts of them, does not align."""
SEEDS = 2
STEPS, BATCH, RATE = 2000, 128, 0.003
"""Adam steps, features in each, and the rate, in units of the guides' root mean square value. Adam makes steps of noise
as large as those of a pull: at ten times the rate, in as many steps fewer, the form `NOISE` ends 2.9 from the data, and
forms whose optimum is the data are driven from it too."""
COLLAPSED = 0.05
"""Standard deviation of collapsed features about their class's point, in units of the real ones' about their mean."""


@dataclass(frozen=True)
class Ending:
    """Frechet distances to real features that no guide showed, each in units of that between two parts of real ones.

    `start`: of the features before the first step; `end`: after the last; `spread`: mean distance of two of a class at
    the end, in units of real ones'.
    """

    start: float
    end: float
    spread: float


@dataclass(frozen=True)
class Check:
    """What became of features that began as real ones (`perfect`) and as one point a class (`collapsed`)."""

    form: str
    perfect: Ending
    collapsed: Ending

    @property
    def aligns(self) -> bool:
        """Whether perfect features stay within `BEYOND` of the data."""
        return self.perfect.end <= BEYOND


HEADER = (
    "| form | from real features: distance | spread | from one point a class: distance | spread | aligns |\n"
    "|---|--:|--:|--:|--:|---|"
)


def digits(cache: Path | None = None) -> tuple[list[Check], str]:
    """Every form, of features that a short trained teacher gives the bundled digits; and a sentence on those."""
    workshop = Workshop(cache)
    config = from_tree({"data": {"name": "digits"}, "teacher": {"training": {"epochs": 40}}})
    teacher = workshop.teacher(config)
    real = workshop.data(config).train.samples(teacher.mean, teacher.std)
    found = [check(form, guidance, teacher, real) for form, guidance in CHECKED.items()]
    return found, f"{len(real)} images of digits, {label(config.teacher.network)}"


def told(found: Sequence[Check], what: str) -> str:
    """A Markdown table, a row a form, and what its columns are."""
    rows = [_row(one) for one in found]
    started = mean(one.collapsed.start for one in found)
    return "\n".join(
        (
            *(HEADER, *rows, ""),
            f"Features of {what}, moved by the guidance alone in {STEPS} steps, means of {SEEDS} seeds. Distance: "
            f"Frechet, to real features that no guide showed, in units of that of two parts of the real ones; features "
            f"that begin as one point a class are {started:.1f} away. Spread: mean distance of two features of a "
            f"class, 1 as of real ones. A form aligns where real features end within {BEYOND:g}; "
            f"{NOISE} pulls at nothing, and tells how far the optimiser's own noise leads.\n",
        )
    )


def _row(one: Check) -> str:
    values = (one.perfect.end, one.perfect.spread, one.collapsed.end, one.collapsed.spread)
    return f"| {one.form} | {' | '.join(f'{value:.2f}' for value in values)} | {'yes' if one.aligns else '**no**'} |"


def check(form: str, guidance: Guidance, teacher: Teacher, real: Samples, seeds: Sequence[int] = range(SEEDS)) -> Check:
    """Means over the seeds, each of which deals the real images into guides, a perfect start, and a part to compare."""
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
    """From real features, and from collapsed ones."""
    deal = Streams(seed)
    guides, perfect, unseen = _thirds(labels, deal)
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
    """Features (N, D) of `labels` (N,) after `STEPS` steps by the guidance's penalty alone, from `start`.

    In each step a batch of balanced classes is moved, and the guidance then learns from it beside as many of `guides`,
    features and labels. `state` is the guidance's, made of these.
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
    """Of each feature (N, D) the mean of its class, (N, D)."""
    hot = torch.nn.functional.one_hot(labels, classes).to(features.dtype)
    return (hot.T @ features / hot.sum(0).clamp_min(1)[:, None])[labels]


def _spread(features: Tensor, labels: Tensor, classes: int) -> float:
    """Mean over classes of the mean distance of two features."""
    parts = [part for part in by_class(features, labels, classes) if len(part) > 1]
    return mean(torch.pdist(part).mean().item() for part in parts)


def _thirds(labels: Tensor, rng: Streams) -> list[Tensor]:
    """Rows of three parts with equally many of each class, in random order."""
    order = torch.randperm(len(labels), generator=rng["deal"])
    sizes = labels.bincount()
    most = int(sizes[sizes > 0].min()) // 3
    own = [order[labels[order] == label] for label in sizes.nonzero().flatten().tolist()]
    return [torch.cat([rows[k * most : (k + 1) * most] for rows in own]) for k in range(3)]
