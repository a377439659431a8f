"""Guidance by few images: each class's synthetic features are to have a mean of their own and a covariance all share.

Our choice throughout, after linear discriminant analysis, which pools the covariance within classes where images are
few. The shrinkage is that of Ledoit and Wolf (J. Multivariate Analysis 2004) or of Chen et al. (OAS, IEEE TSP 2010), by
scikit-learn.

The moments are taken once, from several views of each condensed image; no step looks at condensed images again, which
makes it the cheapest guidance. Letters: B batch, N condensed images, V views, D features, K classes.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from condkd_ray.core.checkpoint import transient
from condkd_ray.core.compilation import whole
from condkd_ray.core.method import require
from condkd_ray.core.rng import Streams
from condkd_ray.methods.guidance.guidance import ONE_LAYER, SAME, Guidance, GuidanceState, HostAugment, Layout
from condkd_ray.methods.guidance.matching import SHARED, unit_norm
from condkd_ray.models.teacher import Teacher

Shrinkage = Literal["ledoit_wolf", "oas", "none"]


@dataclass
class GaussianState(GuidanceState):
    """What the fakes of each class are to be distributed as, in units in which guides have unit mean squared norm.

    `means` (K, D) of all layers side by side; `known` (K,): 1 for a class with guides, else 0; `covariances`, one
    (D, D) a layer that has one, `layer` first.
    """

    scale: Tensor
    means: Tensor
    known: Tensor
    covariances: tuple[Tensor, ...]
    layout: Layout = transient(default=ONE_LAYER)


@dataclass(frozen=True, kw_only=True)
class Gaussian(Guidance[GaussianState]):
    r"""Mean over classes of ||m_fake - m||^2, and c ||S_fake - S||_F^2 / ||S||_F^2 besides.

    m, the class means, and S, pooled within classes, are of the condensed images; m_fake and S_fake are a batch's, the
    latter by its f degrees of freedom. Both squared distances of a batch exceed those of the distribution it is drawn
    from, the more so the wider that is, and so reward collapse: ||m_fake - m||^2 by tr(S_fake) / n for n fakes of a
    class, which `unbiased` takes off; ||S_fake - S||^2 by (||S_fake||^2 + tr(S_fake)^2) / f for normal features, which
    has its least where S_fake is too small. `unbiased` puts ((1 + 1 / f) S + tr(S) / f) in the place of S: then the
    least of the mean over batches is where the distribution has the covariance S, and of any one batch it stays a
    distance, which is never below 0. The covariance's distance counts in units of the target's own, since it has to
    hold the spread, whatever share of the features' norm this is.

    Under `alignment: marginal` the batch's mean and total covariance are compared with those of the mixture of the
    classes in the batch's proportions; the bias, by the whole batch, is small, and stays.
    """

    ours = (*SHARED, "views", "covariance", "shrinkage", "covariance_weight", "stage_covariances", "unbiased")
    uses_condensed_batches = False
    name: Literal["gaussian"] = "gaussian"
    weight: float = 100.0
    """Not chosen yet: that of `moments`."""
    views: int = 16  # type: ignore[assignment]
    """Views of each condensed image the moments are taken from, augmented as fakes are; fewer where images are many."""
    covariance: Literal["pooled", "none"] = "pooled"
    """`pooled` over all classes: of images under one view each; where no class has two images, of views of an image.
    `none`: means alone are matched, and nothing but the host holds the spread."""
    shrinkage: Shrinkage = "ledoit_wolf"
    """Towards a multiple of the identity, by as much as the number of images asks for; with `none`, not at all."""
    covariance_weight: float = 1.0
    """Weight of the covariances against the means; 0 matches class means alone."""
    stage_covariances: bool = False
    """Whether covariances of the stages are compared too, beside those of `layer`."""
    unbiased: bool = False
    """Whether what a batch's distances exceed the distribution's by is taken off. Right for hosts whose generator makes
    each batch anew (`dafl`, `zskt`, `dfad`, `dfq`, `pre_dfkd`), which biased distances narrow. The others move the very
    images of a batch, pixels or latents, and it would widen these. It counts with a covariance alone, which keeps the
    fakes from spreading without end."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.views >= 1, "gaussian views", self.views, "an integer >= 1")
        require(self.shrinkage in get_args(Shrinkage), "gaussian shrinkage", self.shrinkage, "ledoit_wolf, oas or none")
        for what in ("mixup", "noise"):
            accepted = "0: it looks at no condensed images in a step; discriminator, mmd and moments do"
            require(getattr(self, what) == 0, f"gaussian {what}", getattr(self, what), accepted)

    @property
    def holds_spread(self) -> bool:
        """Whether it compares covariances."""
        return self.covariance == "pooled" and self.covariance_weight > 0

    def check_use(self, teacher: Teacher, ipc: int, batch: int, host_augment: HostAugment) -> None:
        """Raise `InputError` where no covariance can be known.

        So of one image a class that nothing augments, and of a batch with fewer than two fakes a class.
        """
        if not self.holds_spread:
            return
        if ipc == 1:
            self._check_views(teacher, host_augment)
        least = 1 if self.alignment == "marginal" else 2 * teacher.num_classes
        accepted = f"{least} or more, two of each class; or covariance none"
        require(batch >= least, "inversion batch under guidance gaussian", batch, accepted)

    def _check_views(self, teacher: Teacher, host_augment: HostAugment) -> None:
        image = torch.linspace(-1, 1, math.prod(teacher.image_shape), device=teacher.device)
        image, rng = image.view(1, *teacher.image_shape), Streams(0, teacher.device)
        differ = any(not torch.equal(self.view(image, teacher, host_augment, rng), image) for _ in range(8))
        accepted = "2 or more; or a host that augments, augment dsa, or covariance none"
        require(differ, "ipc of guidance gaussian under a host that augments nothing", 1, accepted)

    def init(
        self, teacher: Teacher, condensed: Tensor, labels: Tensor, rng: Streams, layout: Layout = ONE_LAYER
    ) -> GaussianState:
        """The moments. Raises `InputError` where the views of condensed images show no covariance."""
        scale = unit_norm(layout.split(condensed)[0])
        scaled = scale * condensed
        hot = F.one_hot(labels, teacher.num_classes).to(scaled.dtype)
        counts = hot.sum(0)
        means = hot.T @ scaled / counts.clamp_min(1)[:, None]
        covariances: list[Tensor] = []
        if self.holds_spread:
            parts = layout.split(scaled)[: None if self.stage_covariances else 1]
            covariances = [self._pooled(part, labels, layout.views) for part in parts]
        return GaussianState(scale, means, (counts > 0).to(means.dtype), tuple(covariances), layout)

    def _pooled(self, features: Tensor, labels: Tensor, views: int) -> Tensor:
        """The shrunk covariance (D, D) within classes of features (V N, D)."""
        each = features.cpu().double().numpy().reshape(views, -1, features.shape[1])
        groups = labels[: each.shape[1]].cpu().numpy()
        several = len(np.unique(groups)) < len(groups)
        # One image a class: its views are the draws.
        draws = list(each) if several else [each.reshape(-1, each.shape[2])]
        groups = groups if several else np.tile(groups, views)
        found = np.mean([shrunk(contrasts(draw, groups), self.shrinkage) for draw in draws], axis=0)
        spread, accepted = float(np.trace(found)), "that of views that differ (augment dsa), or covariance none"
        require(spread > SAME, "spread of the condensed features within their classes", spread, f"above 0: {accepted}")
        return torch.from_numpy(found).to(features)

    def penalty(self, state: GaussianState, fake: Tensor, labels: Tensor, *, rng: torch.Generator) -> Tensor:
        """Weighted distance of both moments from those of the condensed images."""
        found = self.distances(state, fake, labels)
        return found["mean"] + self.covariance_weight * found["covariance"] if self.holds_spread else found["mean"]

    def update(
        self, state: GaussianState, fake: Tensor, real: Tensor, labels: Tensor, *, rng: torch.Generator
    ) -> dict[str, Tensor]:
        """It learns nothing; logs the distances."""
        return self.distances(state, fake, labels)

    def distances(self, state: GaussianState, fake: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """`mean`, and `covariance` where it is compared: scalars."""
        of = gaussian_marginal if self.alignment == "marginal" else gaussian_class
        mean, covariance = of(
            self, state.layout, state.scale * fake, labels, state.means, state.known, state.covariances
        )
        return {"mean": mean} | ({"covariance": covariance} if self.holds_spread else {})


def contrasts(features: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Features (N, D) of `groups` (N,) as N less the number of groups draws around 0 with the covariance within groups.

    Those of a group are combined by the rows of a Helmert matrix, so that draws stay independent, which deviations
    from a mean are not.
    """
    # Not at the top: only this needs it.
    from scipy.linalg import helmert

    found = [features[:0]]
    for group in np.unique(groups):
        own = features[groups == group]
        if len(own) > 1:
            found.append(helmert(len(own)) @ own)
    return np.concatenate(found)


def shrunk(draws: np.ndarray, shrinkage: Shrinkage) -> np.ndarray:
    """The covariance (D, D) of draws (N, D) around 0, shrunk towards the multiple of the identity of equal trace."""
    # Not at the top: a second to import.
    from sklearn.covariance import empirical_covariance, ledoit_wolf, oas

    if not len(draws):
        return np.zeros((draws.shape[1], draws.shape[1]))
    if shrinkage == "none":
        return empirical_covariance(draws, assume_centered=True)
    return {"ledoit_wolf": ledoit_wolf, "oas": oas}[shrinkage](draws, assume_centered=True)[0]


@whole
def gaussian_class(
    guidance: Gaussian,
    layout: Layout,
    fake: Tensor,
    labels: Tensor,
    means: Tensor,
    known: Tensor,
    covariances: tuple[Tensor, ...],
) -> tuple[Tensor, Tensor]:
    """Distances of class means and of covariances within classes, for scaled features (B, D); scalars.

    Of `layer`, and of each stage times its weight.
    """
    with torch.autocast(fake.device.type, enabled=False):
        hot = F.one_hot(labels, len(means)).to(fake.dtype)
        counts = hot.sum(0)
        present = (counts > 0) * known
        freedom = len(labels) - (counts > 0).sum()
        found = hot.T @ fake / counts.clamp_min(1)[:, None]
        # Of a batch without two fakes of a class no spread is known, nor what is to be taken off.
        enough = (freedom > 0).to(fake.dtype)
        freedom = freedom.clamp_min(1).to(fake.dtype)
        mean, covariance = fake.new_zeros(2).unbind()
        sides = (layout.split(found), layout.split(means), layout.split(fake - found[labels]))
        for place, (own, target, rest) in enumerate(zip(*sides, strict=True)):
            weight = guidance.stages_weight if place else 1.0
            apart = (own - target).square().sum(1)
            if place < len(covariances):
                spread, wanted = rest.T @ rest / freedom, covariances[place]
                size = wanted.square().sum()
                if guidance.unbiased:
                    apart = apart - enough * spread.trace() / counts.clamp_min(1)
                    wanted = as_sampled(wanted, freedom)
                covariance = covariance + weight * enough * (spread - wanted).square().sum() / size
            mean = mean + weight * (apart * present).sum() / present.sum().clamp_min(1)
        return mean, covariance


def as_sampled(covariance: Tensor, freedom: Tensor) -> Tensor:
    """What the covariances of batches with `freedom` must be nearest to, that those are drawn from `covariance` (D, D).

    Of normal features, whose scatter is Wishart-distributed: E ||S||^2 is (1 + 1/f) ||P||^2 + tr(P)^2 / f where P is
    the distribution's and f the freedom, so that E ||S - T||^2 is least at P if T is (1 + 1/f) P + tr(P) / f.
    """
    ones = torch.eye(len(covariance), device=covariance.device, dtype=covariance.dtype)
    return (1 + 1 / freedom) * covariance + covariance.trace() / freedom * ones


@whole
def gaussian_marginal(
    guidance: Gaussian,
    layout: Layout,
    fake: Tensor,
    labels: Tensor,
    means: Tensor,
    known: Tensor,
    covariances: tuple[Tensor, ...],
) -> tuple[Tensor, Tensor]:
    """As `gaussian_class`, of the batch as a whole: its mean and total covariance and those of the mixture."""
    with torch.autocast(fake.device.type, enabled=False):
        # Fakes of classes without guides have nothing to be compared with.
        shares = known[labels] / known[labels].sum().clamp_min(1)
        of_class = shares @ F.one_hot(labels, len(means)).to(shares.dtype)
        mean, covariance = fake.new_zeros(2).unbind()
        for place, (part, target) in enumerate(zip(layout.split(fake), layout.split(means), strict=True)):
            weight = guidance.stages_weight if place else 1.0
            own, wanted = shares @ part, of_class @ target
            mean = mean + weight * (own - wanted).square().sum()
            if place < len(covariances):
                rest, between = part - own, target - wanted
                spread = (rest * shares[:, None]).T @ rest
                # A batch of this size has so much less within its classes, about its own mean.
                within = (1 - shares.square().sum()) * covariances[place]
                total = within + (between * of_class[:, None]).T @ between
                covariance = covariance + weight * (spread - total).square().sum() / total.square().sum()
        return mean, covariance
