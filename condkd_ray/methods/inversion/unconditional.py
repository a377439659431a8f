"""Base class of the hosts whose generator needs no class labels: a few generator steps, then fresh images.

Letters: B batch, C channels, H W height and width, N images, Z latent size.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from condkd_ray.core.method import Metrics, require
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import UNLABELLED, Samples, unseen
from condkd_ray.core.task import is_dense
from condkd_ray.methods.inversion.inversion import Host, LossTerms, Round, StepBatch, TargetUse, require_bn
from condkd_ray.methods.targets import Targets, balanced_labels
from condkd_ray.models.generator import Generator, LabelledGenerator, LayoutGenerator, dense_upsamplings
from condkd_ray.models.network import seeded_module
from condkd_ray.models.teacher import Teacher


@dataclass
class GeneratorState:
    """The generator and its optimiser."""

    generator: nn.Module
    optimizer: torch.optim.Optimizer


@dataclass(frozen=True, kw_only=True)
class Unconditional(Host[GeneratorState]):
    """Base class of the hosts (see `Host`) whose generator needs no class labels; as published it gets none.

    The teacher's argmax is then the class of an image; with `conditional`, the generator gets labels. A round is
    `steps` generator steps, then fresh images. The released code of ZSKT, DFAD and PRE-DFKD, and the re-run of DFQ in
    CDFKD-MFS, alternates generator steps and student steps; DAFL's updates both in one backward pass. Here all student
    steps of a round follow all of its generator steps, on images generated once: our choice. The student is evaluated
    in eval mode.
    """

    pixel_space = "model"
    fresh_each_round = True
    augments = False
    betas: ClassVar[tuple[float, float]] = (0.9, 0.999)
    """Adam's betas."""
    generator_options: ClassVar[dict[str, Any]]
    """Keyword arguments of `Generator` that differ from its defaults."""
    dense_options: ClassVar[dict[str, Any] | None] = None
    """The same in segmentation, if they differ. With head `sigmoid` the images are then normalised for the teacher."""
    oh_weight = 0.0
    steps: int = 20
    """Adam steps of the generator per round."""
    batch: int = 128
    """Images per generator step."""
    latent: int = 1000
    """Length of the latent vectors."""
    width: int = 128
    """Channels of the generator's first stage."""
    lr: float = 0.02
    """Learning rate of Adam for the generator."""
    images_per_round: int = 2560  # type: ignore[assignment]
    """Fresh images generated after the steps of a round; the default is the number that the student uses in a round."""
    conditional: bool = False
    """If true, the generator gets a class label in addition to the noise (our choice; see `LabelledGenerator`). Class
    prior, guide and stored labels then use balanced labels in place of the teacher's argmax."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for what, least in (("steps", 1), ("batch", 2), ("images_per_round", 2)):
            require(getattr(self, what) >= least, f"inversion {what}", getattr(self, what), f"an integer >= {least}")

    @property
    def uses_targets(self) -> TargetUse:  # type: ignore[override]
        """`labels` if `conditional`, else `none`."""
        return "labels" if self.conditional else "none"

    @property
    def uses_student(self) -> bool:
        """True if the loss has an adversarial term, whatever its weight, since the term is recorded."""
        return hasattr(self, "adv_weight")

    @abstractmethod
    def terms(self, batch: StepBatch, *, teacher: Teacher, student: nn.Module) -> dict[str, Tensor]:
        """Return the scalar loss terms by name; each name has a field `<name>_weight`.

        The images are not augmented. The target of an image is its label if `conditional`, else the teacher's argmax.
        """

    def optional_prior(self, batch: StepBatch) -> dict[str, Tensor]:
        """Return the class prior `oh` for a host that was published without one; empty at weight 0."""
        return {"oh": batch.oh} if self.oh_weight else {}

    def clip_gradients(self, weights: list[nn.Parameter]) -> None:
        """Clip the gradients of `weights` in place before a step; by default nothing is clipped."""

    @final
    def init(self, teacher: Teacher, rng: Streams) -> GeneratorState:
        """Return a generator from stream `init/generator`.

        Raises `InputError` if the loss reads BN and the teacher has none.
        """
        if self.reads_bn:
            require_bn(teacher)
        generator = seeded_module(lambda: self._generator(teacher), "init/generator", teacher.device, rng)
        optimizer = torch.optim.Adam(generator.parameters(), self.lr, betas=self.betas, fused=True)
        return GeneratorState(generator, optimizer)

    def _generator(self, teacher: Teacher) -> nn.Module:
        size, dense = (self.latent, self.width, teacher.image_shape), is_dense(teacher.task)
        form: dict[str, Any] = dict(self.generator_options)
        if dense:
            own = form if self.dense_options is None else self.dense_options
            form = own | {"upsamplings": dense_upsamplings(teacher.image_shape)}
        if not self.conditional:
            return Generator(*size, **form)
        kind = LayoutGenerator if dense else LabelledGenerator
        return kind(*size, teacher.num_classes, **form)

    def _images(self, generator: nn.Module, teacher: Teacher, *inputs: Tensor) -> Tensor:
        """Return images (B, C, H, W) of latents, and of labels if `conditional`, in the teacher's space."""
        made = generator(*inputs)
        pixels = is_dense(teacher.task) and self.dense_options is not None and self.dense_options["head"] == "sigmoid"
        return teacher.normalise(made) if pixels else made

    def _step_targets(self, targets: Targets, call: Round) -> Targets | None:
        """Return the targets of one generator step; None unless `conditional`.

        They are balanced labels, in segmentation layouts drawn from those of `targets`, from stream `targets`.
        """
        if not self.conditional:
            return None
        if not is_dense(call.teacher.task):
            return Targets(balanced_labels(self.batch, call.teacher.num_classes, call.rng))
        rows = torch.randint(len(targets), (self.batch,), generator=call.rng["targets"], device=call.rng.device)
        return Targets(targets.labels[rows])

    @final
    def run(self, state: GeneratorState, targets: Targets, call: Round) -> tuple[Samples, Metrics]:
        """Run `steps` generator steps, then generate one fresh image per target.

        If `conditional`, the fresh images have the labels of `targets`, and each step draws targets of its own.
        Otherwise the images have no labels, and only the number of `targets` is used. Raises `NonFiniteError`, with the
        name of the first loss term that was NaN or infinite.
        """
        weights, images = list(state.generator.parameters()), partial(self._images, state.generator, call.teacher)

        def move() -> None:
            self.clip_gradients(weights)
            state.optimizer.step()

        def generator_inputs(count: int, labels: Tensor | None) -> tuple[Tensor, ...]:
            latents = call.latents(count, self.latent)
            return (latents,) if labels is None else (latents, labels)

        def draw(labels: Tensor) -> Tensor:
            return images(*generator_inputs(len(labels), labels if self.conditional else None))

        def losses(batch: StepBatch) -> LossTerms:
            return LossTerms(self.terms(batch, teacher=call.teacher, student=call.student))

        for _ in range(self.steps):
            wanted = self._step_targets(targets, call)
            make = partial(images, *generator_inputs(self.batch, None if wanted is None else wanted.labels))
            call.step(call.forward(make, losses, wanted), weights, move)
        metrics = call.meter.read()
        kept = targets.labels if self.conditional else torch.full_like(targets.labels, UNLABELLED)
        return fresh_images(draw, kept, self.batch), metrics


@torch.no_grad()
def fresh_images(draw: Callable[[Tensor], Tensor], labels: Tensor, batch: int) -> Samples:
    """Return one image for each of `labels` (N,), N >= 2; a label is `UNLABELLED` if the teacher will supply the class.

    `draw` returns images (n, C, H, W) for labels (n,). It is called for near-equal parts of about `batch` labels, each
    with at least 2, because BN in the generator cannot normalise a single image.
    """
    count = len(labels)
    parts = max(1, min(round(count / batch), count // 2))
    return unseen(torch.cat([draw(part) for part in labels.tensor_split(parts)]), labels)
