"""CMI (Fang et al., IJCAI 2021, "Contrastive model inversion for data-free knowledge distillation").

Formulas, schedule and weights: `peers.md` A.6 and `methods.md` 6.1, 6.2 (read in the authors' released code).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condkd_ray.core.method import Meter, Metrics, require
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import PixelSpace, Samples, unseen
from condkd_ray.data.augment import require_shift, resized_crop, shift_flip
from condkd_ray.methods.interfaces import Guide, Targets, Weigh
from condkd_ray.methods.inversion.inversion import Inversion, Lowest, require_bn
from condkd_ray.methods.losses.adversarial import disagreement
from condkd_ray.methods.losses.contrastive import instance_discrimination
from condkd_ray.methods.losses.priors import bn_distance, class_prior
from condkd_ray.models.generator import Generator
from condkd_ray.models.teacher import Observation, Teacher


@dataclass
class CmiState:
    """The contrastive head, its optimiser, the bank (None before the first round), rounds so far.

    A row of the bank is an image's local and global features side by side, as the teacher gave them: (rows, 2 D).
    """

    head: nn.Module
    optimizer: torch.optim.Optimizer
    bank: Tensor | None = None
    round: int = 0


@dataclass(frozen=True, kw_only=True)
class Cmi(Inversion[CmiState]):
    r"""Each round a new generator and its latents are optimised together, to make images unlike all made before.

    Minimises bn \sum_l ||BN_l(x) - BN_l|| + oh CE(f_T(x), y) + adv A(f_S(x), f_T(x)) + cr C + guide(x, y) over the
    shifted and flipped images x, the global view. A is minus the KL where teacher and student agree. C is InfoNCE
    between this view and a random resized crop, the local one, in a head over each image's channel means at the inputs
    of the teacher's `layers`; images of earlier rounds stand by as negatives. The images of lowest loss are kept, and
    their features.
    """

    paper: ClassVar[str] = "Fang et al., IJCAI 2021"
    ours: ClassVar[tuple[str, ...]] = ("layers", "steps", "batch")
    name: Literal["cmi"] = "cmi"
    pixel_space: ClassVar[PixelSpace] = "unit"
    hears = "answers"
    reads_bn = True
    layers: Literal["stages", "all"] = "stages"
    """Whose inputs C compares. `stages`: the stages' alone, as the official code does for a ResNet-34 (4 stages, 512
    values an image). Our choice for other teachers, see `condkd_ray.models.hooks.stage_inputs`: a stage that reads the
    image itself is left out; networks without stages have the first BN layer at each size of map. `all`: every BN
    layer's, as the official code does for all others; 2704 values an image for a WRN-40-2, 8512 for a ResNet-34."""
    steps: int = 100
    """Adam steps a round (200 to 500 in the official scripts); each looks at two views and compares all with all."""
    batch: int = 128
    """Images a round (256 in the official scripts)."""
    latent: int = 256
    width: int = 128
    """Channels of the generator's first stage; the official one has 128."""
    lr: float = 1e-3
    """Of generator, latents and head."""
    bn_weight: float = 1.0
    oh_weight: float = 1.0
    adv_weight: float = 0.5
    cr_weight: float = 0.8
    cr_temperature: float = 0.1
    head: int = 256
    """Dimensions in which views are compared."""
    negatives: int = 4096
    """Rows of the bank that join each step's comparison, drawn without replacement; all there are, if fewer."""
    bank: int = 40_960
    """Rows kept, the latest. On the device they take rows x 2 D x 4 bytes, D the values an image of `layers`: 168 MB
    for the stages of a ResNet-34, 886 MB for all BN layers of a WRN-40-2; twice that while rows are added, by copying.
    Checkpoints hold them too."""
    shift: float = 0.125
    """Largest random shift of the global view, as a share of the side; with a flip where it keeps the class."""

    def __post_init__(self) -> None:
        require(self.layers in ("stages", "all"), "inversion layers", self.layers, "stages, all")
        for what, least in (("steps", 1), ("batch", 2), ("head", 1), ("negatives", 1)):
            require(getattr(self, what) >= least, f"inversion {what}", getattr(self, what), f"an integer >= {least}")
        require(self.cr_temperature > 0, "cr_temperature", self.cr_temperature, "> 0")
        accepted = f"at most {self.bank}, the rows of the bank"
        require(self.negatives <= self.bank, "inversion negatives", self.negatives, accepted)
        require_shift(self.shift, "inversion shift")

    @property
    def images_per_round(self) -> int:
        """One batch."""
        return self.batch

    def augment(self, images: Tensor, *, teacher: Teacher, rng: torch.Generator) -> Tensor:
        """The global view. Shift and flip; black moves in, as in the released code (crop in [0, 1], then normalise)."""
        return shift_flip(images, rng=rng, share=self.shift, flip=teacher.flip_ok, black=teacher.black.to(images))

    def init(self, teacher: Teacher, rng: Streams) -> CmiState:
        """A head from stream `init/head`. Raises `InputError` for a teacher without BN or stages to compare."""
        require_bn(teacher)
        inputs = self._inputs(teacher)
        accepted = "1 or more, as in resnet-8-16; or inversion layers all"
        require(bool(inputs), "number of the teacher's stages that read a feature map", len(inputs), accepted)
        channels = sum(inputs.values())
        with rng.forked("init/head"):
            head = nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, self.head))
        head = head.to(teacher.device)
        return CmiState(head, torch.optim.Adam(head.parameters(), self.lr))

    def check_memory(self, teacher: Teacher, free: int, rounds: int) -> None:
        """Raise `InputError` where the bank that `rounds` rounds fill needs more than `free` bytes."""
        channels, rows = sum(self._inputs(teacher).values()), min(self.bank, rounds * self.batch)
        a_row = 2 * channels * 4
        fitting = free // (2 * a_row)
        smaller = f"bank {fitting}" + (" or layers stages" if self.layers == "all" else "")
        accepted = f"at most {_gb(free // 2)}, half of the free memory, as adding rows copies the bank: {smaller}"
        what = f"memory of inversion bank, {rows} rows of 2 x {channels} values"
        require(rows <= fitting, what, _gb(rows * a_row), accepted)

    def _inputs(self, teacher: Teacher) -> dict[str, int]:
        """Names of the layers whose inputs are compared, and the channels of each."""
        return teacher.stage_inputs if self.layers == "stages" else teacher.bn_inputs

    def synthesize(
        self,
        state: CmiState,
        targets: Targets,
        *,
        teacher: Teacher,
        student: nn.Module,
        guide: Guide,
        weigh: Weigh,
        rng: Streams,
    ) -> tuple[Samples, Metrics]:
        """`steps` steps of a generator from stream `init/generator/<round>`, of its latents and of the head."""
        state.round += 1
        with rng.forked(f"init/generator/{state.round}"):
            generator = Generator(self.latent, self.width, teacher.image_shape, init="normal")
        generator = generator.to(teacher.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        latents = torch.randn(len(targets), self.latent, generator=rng["latents"], device=rng.device).requires_grad_()
        optimizer = torch.optim.Adam([*generator.parameters(), latents], self.lr, betas=(0.5, 0.999))
        leaves = [*generator.parameters(), latents, *state.head.parameters()]
        meter, lowest, inputs = Meter("inversion"), Lowest(), tuple(self._inputs(teacher))
        for _ in range(self.steps):
            images = teacher.normalise(generator(latents))
            shifted = self.augment(images, teacher=teacher, rng=rng["augment/inversion"])
            part = resized_crop(images, rng=rng["augment/inversion"], flip=teacher.flip_ok)
            seen = teacher.observe(shifted, guide.layers, input_means=inputs)
            pair = _features(teacher.observe(part, bn=False, input_means=inputs)), _features(seen)
            weight = weigh(seen, targets.labels)
            bn = bn_distance(seen.bn, teacher.running_bn)
            oh = (weight * class_prior(seen.logits, targets.answers, targets.temperature)).mean()
            adv = torch.zeros_like(oh)
            if self.asks_student:
                adv = (weight * disagreement(student(shifted), seen.logits)).mean()
            cr = self._contrast(state, *pair, rng)
            pull = guide.penalty(images, seen, targets.labels)
            loss = self.bn_weight * bn + self.oh_weight * oh + self.adv_weight * adv + self.cr_weight * cr + pull
            for leaf, gradient in zip(leaves, torch.autograd.grad(loss, leaves), strict=True):
                leaf.grad = gradient
            optimizer.step()
            state.optimizer.step()
            guide.update(images.detach(), seen.detach(), targets.labels)
            meter.add(bn=bn, oh=oh, adv=adv, cr=cr, guide=pull, loss=loss)
            lowest.offer(loss, images, torch.cat(pair, 1))
        metrics = meter.read()
        best, features = lowest.kept
        state.bank = (features if state.bank is None else torch.cat([state.bank, features]))[-self.bank :]
        return unseen(best, targets.labels), metrics

    def _contrast(self, state: CmiState, local: Tensor, whole: Tensor, rng: Streams) -> Tensor:
        """C of this batch's views, (B, D) each, and of rows of the bank."""
        count = len(local)
        if state.bank is not None:
            rows = torch.randperm(len(state.bank), generator=rng["negatives"], device=rng.device)[: self.negatives]
            cached = state.bank[rows].chunk(2, dim=1)
            local, whole = torch.cat([local, cached[0]]), torch.cat([whole, cached[1]])
        with torch.no_grad():
            whole = F.normalize(state.head(whole).float())
        return instance_discrimination(F.normalize(state.head(local).float()), whole, count, self.cr_temperature)


def _features(seen: Observation) -> Tensor:
    assert seen.input_means is not None
    return seen.input_means


def _gb(size: int) -> str:
    return f"{size / 1e9:.3g} GB"
