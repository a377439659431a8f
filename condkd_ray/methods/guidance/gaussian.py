"""Guidance by few images: matches a mean per class and one covariance that all classes share.

Our choice throughout, after linear discriminant analysis, which pools the covariance within classes when images are
few. The shrinkage is that of Ledoit and Wolf (J. Multivariate Analysis 2004) or of Chen et al. (OAS, IEEE TSP 2010), as
implemented in scikit-learn.

The moments are estimated once, from several views of each condensed image; no step computes condensed features again,
which makes this the cheapest guidance. Letters: B batch, N condensed images, V views, D features, K classes.
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
from condkd_ray.core.task import BOTH, is_dense
from condkd_ray.methods.guidance.guidance import NEGLIGIBLE, ONE_LAYER, Guidance, GuidanceState, HostAugment, Layout
from condkd_ray.methods.guidance.matching import SHARED, unit_norm
from condkd_ray.models.teacher import Teacher

Shrinkage = Literal["ledoit_wolf", "oas", "none"]


@dataclass
class GaussianState(GuidanceState):
    """Target distribution of each class's fakes, in units in which the condensed features have unit mean squared norm.

    `means` (K, D) of all layers side by side; `known` (K,): 1 for a class with condensed images, else 0; `covariances`:
    one (D, D) per layer that has one, `layer` first.
    """

    scale: Tensor
    means: Tensor
    known: Tensor
    covariances: tuple[Tensor, ...]
    layout: Layout = transient(default=ONE_LAYER)


@dataclass(frozen=True, kw_only=True)
class Gaussian(Guidance[GaussianState]):
    """The mean over classes of ||m_fake - m||^2, plus c ||S_fake - S||_F^2 / ||S||_F^2.

    m are the class means and S the covariance pooled within classes, both of the condensed images; m_fake and S_fake
    are those of a batch, the latter with its f degrees of freedom. Both squared distances are larger for a batch than
    for the distribution from which it is drawn, the more so the wider the distribution, and so they reward collapse.
    ||m_fake - m||^2 is larger by tr(S_fake) / n for n fakes of a class, which `unbiased` subtracts. ||S_fake - S||^2 is
    larger by (||S_fake||^2 + tr(S_fake)^2) / f for normal features, so that its minimum is at too small an S_fake.
    `unbiased` replaces S by (1 + 1 / f) S + tr(S) / f: the minimum of the mean over batches is then at the covariance
    S, and for each batch the term remains a distance, never below 0. The covariance's distance is divided by the
    target's squared norm, since it must control the spread whatever share of the features' norm this is.

    Under `alignment: marginal` the batch's mean and total covariance are compared with those of the mixture of the
    classes in the batch's proportions; the bias, which depends on the whole batch, is small and is not removed.
    """

    tasks = BOTH
    ours = (*SHARED, "views", "covariance", "shrinkage", "covariance_weight", "stage_covariances", "unbiased")
    uses_condensed_batches = False
    name: Literal["gaussian"] = "gaussian"
    weight: float = 100.0
    """The weight of `moments`; not chosen by experiment yet."""
    views: int = 16  # type: ignore[assignment]
    """Views of each condensed image from which the moments are estimated, augmented as the fakes are; fewer if there
    are many images."""
    covariance: Literal["pooled", "none"] = "pooled"
    """`pooled` over all classes: of the images under one view each, or, if no class has two images, of the views of
    each image. `none`: only the means are matched, and the spread is left to the host."""
    shrinkage: Shrinkage = "ledoit_wolf"
    """Shrinkage towards a multiple of the identity, by an amount that depends on the number of images; `none`: no
    shrinkage."""
    covariance_weight: float = 1.0
    """Weight of the covariances relative to the means; 0 matches class means only."""
    stage_covariances: bool = False
    """If true, covariances of the stages are compared too, in addition to those of `layer`."""
    unbiased: bool = False
    """If true, the amount by which a batch's distances exceed the distribution's is subtracted. Suitable for hosts
    whose generator makes each batch anew (`dafl`, `zskt`, `dfad`, `dfq`, `pre_dfkd`), which biased distances would
    narrow. The other hosts optimise the same images of a batch, pixels or latents, in all steps; `unbiased` would widen
    the distribution of these images. It has an effect only together with a covariance, which keeps the fakes from
    spreading without limit. Not for segmentation: regions of one image are not drawn independently, so that the amount
    is not known."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.views >= 1, "gaussian views", self.views, "an integer >= 1")
        require(self.shrinkage in get_args(Shrinkage), "gaussian shrinkage", self.shrinkage, "ledoit_wolf, oas or none")
        for what in ("mixup", "noise"):
            accepted = "0: it reads no condensed images in a step; discriminator, mmd and moments do"
            require(getattr(self, what) == 0, f"gaussian {what}", getattr(self, what), accepted)

    def check_dense(self) -> None:
        """Raise `InputError` if a setting does not suit segmentation."""
        super().check_dense()
        accepted = "false: the regions of an image are not drawn independently"
        require(not self.unbiased, "gaussian unbiased in segmentation", self.unbiased, accepted)

    @property
    def matches_covariance(self) -> bool:
        """True if covariances are compared."""
        return self.covariance == "pooled" and self.covariance_weight > 0

    def check_use(self, teacher: Teacher, ipc: int, batch: int, host_augment: HostAugment) -> None:
        """Raise `InputError` if no covariance can be estimated.

        This is the case for one image per class without augmentation, and for a batch with fewer than two fakes, in
        segmentation two of their regions, per class.
        """
        if not self.matches_covariance:
            return
        if ipc == 1:
            self._check_views(teacher, host_augment)
        regions = self.regions if is_dense(teacher.task) else 1
        least = 1 if self.alignment == "marginal" else -(-2 * teacher.num_classes // regions)
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
        """Return the moments. Raises `InputError` if the views of condensed images have no covariance."""
        scale = unit_norm(layout.split(condensed)[0])
        scaled = scale * condensed
        hot = F.one_hot(labels, teacher.num_classes).to(scaled.dtype)
        counts = hot.sum(0)
        means = hot.T @ scaled / counts.clamp_min(1)[:, None]
        covariances: list[Tensor] = []
        if self.matches_covariance:
            parts = layout.split(scaled)[: None if self.stage_covariances else 1]
            covariances = [self.pooled_covariance(part, labels, layout.views) for part in parts]
        return GaussianState(scale, means, (counts > 0).to(means.dtype), tuple(covariances), layout)

    def pooled_covariance(self, features: Tensor, labels: Tensor, views: int) -> Tensor:
        """Return the shrunk covariance (D, D) within classes of features (V N, D), of `views` V and `labels` (V N,).

        Raises `InputError` if the views of condensed images have no covariance.
        """
        each = features.cpu().double().numpy().reshape(views, -1, features.shape[1])
        groups = labels[: each.shape[1]].cpu().numpy()
        several = len(np.unique(groups)) < len(groups)
        # One image per class: its views are the draws.
        draws = list(each) if several else [each.reshape(-1, each.shape[2])]
        groups = groups if several else np.tile(groups, views)
        found = np.mean([shrunk(contrasts(draw, groups), self.shrinkage) for draw in draws], axis=0)
        spread, accepted = float(np.trace(found)), "above 0: views that differ (augment dsa), or covariance none"
        require(spread > NEGLIGIBLE, "spread of the condensed features within their classes", spread, accepted)
        return torch.from_numpy(found).to(features)

    def penalty(self, state: GaussianState, fake: Tensor, labels: Tensor, *, rng: torch.Generator) -> Tensor:
        """Return the weighted distance of both moments from those of the condensed images."""
        found = self.distances(state, fake, labels)
        return (
            found["mean"] + self.covariance_weight * found["covariance"] if self.matches_covariance else found["mean"]
        )

    def update(
        self, state: GaussianState, fake: Tensor, real: Tensor, labels: Tensor, *, rng: torch.Generator
    ) -> dict[str, Tensor]:
        """Return the distances; the state does not change."""
        return self.distances(state, fake, labels)

    def distances(self, state: GaussianState, fake: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return `mean`, and `covariance` if it is compared: scalars."""
        of = gaussian_marginal if self.alignment == "marginal" else gaussian_class
        mean, covariance = of(
            self, state.layout, state.scale * fake, labels, state.means, state.known, state.covariances
        )
        return {"mean": mean} | ({"covariance": covariance} if self.matches_covariance else {})


def contrasts(features: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return N minus the number of groups draws around 0 with the covariance within groups of features (N, D).

    `groups` (N,) holds each feature's group. The features of a group are combined by the rows of a Helmert matrix, so
    that the draws stay independent, unlike deviations from a mean.
    """
    # Imported here because only this function needs it.
    from scipy.linalg import helmert

    found = [features[:0]]
    for group in np.unique(groups):
        own = features[groups == group]
        if len(own) > 1:
            found.append(helmert(len(own)) @ own)
    return np.concatenate(found)


def shrunk(draws: np.ndarray, shrinkage: Shrinkage) -> np.ndarray:
    """Return the covariance (D, D) of draws (N, D) around 0, shrunk towards a scaled identity of equal trace."""
    # Imported here because the import takes a second.
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
    """Return the distances of class means and of covariances within classes, for scaled features (B, D); scalars.

    They are sums over `layer` and over each stage times its weight.
    """
    with torch.autocast(fake.device.type, enabled=False):
        hot = F.one_hot(labels, len(means)).to(fake.dtype)
        counts = hot.sum(0)
        present = (counts > 0) * known
        freedom = len(labels) - (counts > 0).sum()
        found = hot.T @ fake / counts.clamp_min(1)[:, None]
        # A batch without two fakes of one class has no known spread, and nothing to subtract.
        enough = (freedom > 0).to(fake.dtype)
        freedom = freedom.clamp_min(1).to(fake.dtype)
        mean, covariance = fake.new_zeros(2).unbind()
        sides = (layout.split(found), layout.split(means), layout.split(fake - found[labels]))
        for number, (own, target, rest) in enumerate(zip(*sides, strict=True)):
            weight = guidance.stages_weight if number else 1.0
            distance = (own - target).square().sum(1)
            if number < len(covariances):
                spread, wanted = rest.T @ rest / freedom, covariances[number]
                size = wanted.square().sum()
                if guidance.unbiased:
                    distance = distance - enough * spread.trace() / counts.clamp_min(1)
                    wanted = as_sampled(wanted, freedom)
                covariance = covariance + weight * enough * (spread - wanted).square().sum() / size
            mean = mean + weight * (distance * present).sum() / present.sum().clamp_min(1)
        return mean, covariance


def as_sampled(covariance: Tensor, freedom: Tensor) -> Tensor:
    """Return T such that batch covariances S with f = `freedom` are nearest to T on average if drawn from `covariance`.

    `covariance` P is (D, D). For normal features the scatter is Wishart-distributed: E ||S||^2 is (1 + 1/f) ||P||^2 +
    tr(P)^2 / f, so that E ||S - T||^2 as a function of P is minimal at the given P for T = (1 + 1/f) P + tr(P) / f.
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
    """Return distances like `gaussian_class`, of mean and covariance of the whole batch from those of the mixture."""
    with torch.autocast(fake.device.type, enabled=False):
        # Fakes of classes without condensed images have no target.
        shares = known[labels] / known[labels].sum().clamp_min(1)
        of_class = shares @ F.one_hot(labels, len(means)).to(shares.dtype)
        mean, covariance = fake.new_zeros(2).unbind()
        for number, (part, target) in enumerate(zip(layout.split(fake), layout.split(means), strict=True)):
            weight = guidance.stages_weight if number else 1.0
            own, wanted = shares @ part, of_class @ target
            mean = mean + weight * (own - wanted).square().sum()
            if number < len(covariances):
                rest, between = part - own, target - wanted
                spread = (rest * shares[:, None]).T @ rest
                # About its own mean, a batch of this size has this much less variance within its classes.
                within = (1 - shares.square().sum()) * covariances[number]
                total = within + (between * of_class[:, None]).T @ between
                covariance = covariance + weight * (spread - total).square().sum() / total.square().sum()
        return mean, covariance
