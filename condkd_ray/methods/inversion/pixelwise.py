"""Hosts that optimise the pixels themselves: a batch of noise, Adam, the valid range.

- DeepInversion: Yin et al., CVPR 2020, arXiv 1912.08795. Weights and settings: `peers.md` A.0, A.5 (read in the
  authors' released code and its DataFree port).
- SoftTarget: Z. Wang, AAAI 2021, arXiv 2104.04868, "Data-free knowledge distillation with soft targeted transfer set
  synthesis"; what the teacher is to answer is `methods/targets.py`. Loss, settings and traps: `methods.md` 5.2, 5.4,
  5.6 (the paper's formulas by way of its discussions and of a re-implementation; it has no released code).

Letters: B batch, C channels, H W height and width.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from torch import Tensor, nn

from condkd_ray.core.method import Metrics, require
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import Samples, unseen
from condkd_ray.data.augment import require_shift, roll_flip
from condkd_ray.methods.inversion.inversion import Host, Look, Round, require_bn
from condkd_ray.methods.losses.inversion import (
    JsReduction,
    bn_distance,
    jensen_shannon,
    negative_activation,
    total_variation,
)
from condkd_ray.methods.targets import Targets
from condkd_ray.models.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class Pixelwise(Host[None]):
    """Base of the hosts without a generator; a round is one batch, from Gaussian noise, by `steps` Adam steps.

    Pixels are kept in the valid range at the start and after each step; the images of lowest loss are kept.
    """

    hears = "answers"
    penalty_first = True
    betas: ClassVar[tuple[float, float]]
    """Of Adam."""
    steps: int = 100
    batch: int = 128
    """Images a round."""
    lr: float = 0.1
    """In units of normalised pixels; Adam moves a pixel by no more a step."""
    shift: float = 0.0625
    """Largest jitter as a share of the side (2 of 32 pixels, 1 of 8); with a flip where it keeps the class."""

    def __post_init__(self) -> None:
        require(self.steps >= 1, "inversion steps", self.steps, "an integer >= 1")
        require(self.batch >= 2, "inversion batch", self.batch, "an integer >= 2")
        require(self.lr > 0, "inversion lr", self.lr, "> 0")
        require_shift(self.shift, "inversion shift")

    @abstractmethod
    def terms(self, look: Look, *, teacher: Teacher, student: nn.Module) -> dict[str, Tensor]:
        """Scalars to minimise, by names whose `<name>_weight` is a field."""

    def augment(self, images: Tensor, *, teacher: Teacher, rng: torch.Generator) -> Tensor:
        """Jitter and flip of the whole batch at once; see the host for its source."""
        return roll_flip(images, rng=rng, share=self.shift, flip=teacher.flip_ok)

    def init(self, teacher: Teacher, rng: Streams) -> None:
        """Nothing is carried from round to round. Raises `InputError` for a teacher without BN that it reads."""
        if self.reads_bn:
            require_bn(teacher)

    @final
    def run(self, state: None, targets: Targets, now: Round) -> tuple[Samples, Metrics]:
        """`steps` Adam steps on a batch that starts as Gaussian noise."""
        rng = now.rng
        darkest, brightest = (now.teacher.normalise(torch.full((1, 1, 1, 1), v, device=rng.device)) for v in (0.0, 1.0))
        images = now.latents(len(targets), *now.teacher.image_shape)
        images = torch.minimum(torch.maximum(images, darkest), brightest)
        images = images.contiguous(memory_format=torch.channels_last).requires_grad_()
        optimizer = torch.optim.Adam([images], self.lr, betas=self.betas)

        def move() -> None:
            optimizer.step()
            with torch.no_grad():
                images.copy_(torch.minimum(torch.maximum(images, darkest), brightest))

        for _ in range(self.steps):
            look = now.look(images, targets)
            terms = self.terms(look, teacher=now.teacher, student=now.student)
            now.step(look, terms, [images], move, images)
        metrics = now.meter.read()
        return unseen(now.lowest.kept[0], targets.labels), metrics


@dataclass(frozen=True, kw_only=True)
class DeepInversion(Pixelwise):
    r"""Pixel-space inversion; with an `adv_weight` it is Adaptive DeepInversion (ADI), which competes with the student.

    Minimises over images x, for labels y: oh CE(f_T(x), y) + bn \sum_l ||BN_l(x) - BN_l|| + tv TV(x) + l2 ||x||
    + adv (1 - clamp(JS(f_S(x), f_T(x)), 0, 1)) + guide(x, y). The gradient of JS reaches x through both networks, as in
    both released scripts (that of ImageNet can detach the student, and does not by default) and in the DataFree port.
    Pixels are kept in the valid range at the start and after each step (the port: after each step), and the images of
    lowest loss are really kept (the released codes keep the last ones). Jitter: one roll of the whole batch a step, by
    up to 2 of 32 pixels (the official CIFAR code; the port: 4). One coin mirrors the whole batch, as in the official
    ImageNet code and the port.
    """

    paper = "Yin et al., CVPR 2020"
    ours = ("steps", "batch")
    name: Literal["deep_inversion"] = "deep_inversion"
    betas: tuple[float, float] = (0.5, 0.9)  # type: ignore[assignment]
    """Of Adam, as in the official ImageNet code; its CIFAR code has PyTorch's (0.9, 0.999)."""
    reads_bn = True
    steps: int = 100
    """Adam steps a round (2000 in the official code)."""
    bn_weight: float = 10.0
    oh_weight: float = 1.0
    tv_weight: float = 1e-3
    l2_weight: float = 0.0
    adv_weight: float = 0.0
    """Of ADI's competition; 0 as released for CIFAR, where the student is then not asked at all. On ImageNet 0.2."""
    temperature: float = 3.0
    """Of the softened answers in JS."""
    js_reduction: JsReduction = "batchmean"
    """Over the classes a sum, as released, or a mean (`mean`)."""
    first_bn_factor: float = 1.0
    """How often the first BN layer counts in `bn`: 1 as released for CIFAR, 10 for ImageNet."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.temperature > 0, "inversion temperature", self.temperature, "> 0")

    def terms(self, look: Look, *, teacher: Teacher, student: nn.Module) -> dict[str, Tensor]:
        """`bn`, `oh`, `tv`, `l2` and `adv`."""
        return {
            "bn": bn_distance(look.seen.bn, teacher.running_bn, self.first_bn_factor),
            "oh": look.oh,
            "tv": total_variation(look.images),
            "l2": torch.linalg.vector_norm(look.images),
            "adv": self._competition(look, student),
        }

    def _competition(self, look: Look, student: nn.Module) -> Tensor:
        """ADI's term, 1 where student and teacher answer alike; 0 where it has no weight."""
        if not self.asks_student:
            return look.seen.logits.new_zeros(())
        form = {"temperature": self.temperature, "reduction": self.js_reduction}
        js = jensen_shannon(student(look.augmented), look.seen.logits, **form)
        return 1 - look.mean(js).clamp(0, 1)


@dataclass(frozen=True, kw_only=True)
class SoftTarget(Pixelwise):
    r"""Pixel-space inversion towards answers, without batch normalisation: it works for LeNet.

    Minimises over images x, for targets y: oh H(y, softmax(f_T(x) / tau)) - act mean|features| + guide(x, y). The
    targets of a round stay the same in all its steps; tau is theirs, 1 for labels. As DeepInversion here, our choice:
    Gaussian noise to begin with, pixels kept in the valid range, the images of lowest loss kept, and the whole batch
    rolled by up to 2 of 32 pixels and mirrored by one coin (the re-implementation: likewise, by up to 4).
    """

    paper = "Z. Wang, AAAI 2021"
    ours = ("steps", "batch", "act_weight", "shift")
    name: Literal["soft_target"] = "soft_target"
    betas = (0.5, 0.99)
    steps: int = 100
    """Adam steps a round (1000 at rate 0.1 or 1500 at rate 1e-3 in a re-implementation, 1500 at 1e-3 in ZSKD)."""
    batch: int = 128
    """Images a round (256 or 512 in the re-implementation)."""
    oh_weight: float = 1.0
    act_weight: float = 0.01
    """The paper: 0.05 for LeNet-5, 0.1 for AlexNet, of a scale not known. Cross-entropy's gradient falls with the
    square of tau: at 20 those outweigh it, and all images excite a few classes. On digits, 20 steps, 12 rounds, one
    run each, validation accuracy at 0, 0.01 and 0.1: 0.38, 0.61, 0.05 (lenet5); 0.78, 0.85, 0.73 (resnet-8-16)."""

    def terms(self, look: Look, **_: object) -> dict[str, Tensor]:
        """`oh` and `act`."""
        return {
            "oh": look.oh,
            "act": negative_activation(look.seen.features),
        }
