"""Unconditional hosts: a generator of noise alone, some steps of it, then fresh images.

Networks, formulas and rates were read in the authors' released code, DFQ's in a public re-run as a baseline:

- DAFL (Chen et al., ICCV 2019, "Data-free learning of student networks"): `peers.md` A.1.
- ZSKT (Micaelli and Storkey, NeurIPS 2019, "Zero-shot knowledge transfer via adversarial belief matching"): `peers.md`
  A.2. That the student also matches the teacher's attention is a matter of the distiller's loss.
- DFAD (Fang et al., arXiv 1912.11006, "Data-free adversarial distillation"): `peers.md` A.3.
- DFQ (Choi et al., CVPRW 2020, "Data-free network quantization with adversarial knowledge distillation"): `peers.md`
  A.4.
- PRE-DFKD's generator (Binici et al., AAAI 2022, "Robust and resource-efficient data-free KD by generative replay"):
  `methods.md` 2.2 to 2.4 and `peers.md` A.9. What the student rehearses is a memory's matter.

Letters: B batch, C channels, H W height and width.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor, nn

from condkd_ray.core.method import Metrics, require
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import Samples, unlabelled
from condkd_ray.methods.inversion.inversion import Host, Look, Round, require_bn
from condkd_ray.methods.losses.inversion import (
    JsReduction,
    bn_distance,
    entropy,
    jensen_shannon,
    negative_activation,
    negative_entropy,
)
from condkd_ray.methods.losses.kd import divergence, logit_l1
from condkd_ray.methods.targets import Targets
from condkd_ray.models.generator import Generator
from condkd_ray.models.network import drawn
from condkd_ray.models.teacher import Teacher


@dataclass
class GeneratorState:
    """The generator and its optimiser."""

    generator: nn.Module
    optimizer: torch.optim.Optimizer


@dataclass(frozen=True, kw_only=True)
class Unconditional(Host[GeneratorState]):
    """Base of the hosts that label by the teacher's argmax. A round is `steps` steps, then `images_per_round` images.

    The released codes alternate steps of the generator and of the student; that the student's come after all of the
    generator's, on images made once, is our choice. The student is asked in eval mode.
    """

    pixel_space = "model"
    hears = "nothing"
    fresh = True
    augments = False
    penalty_first = True
    betas: ClassVar[tuple[float, float]] = (0.9, 0.999)
    """Of Adam."""
    form: ClassVar[dict[str, Any]]
    """How its `Generator` differs from the usual one."""
    steps: int = 20
    """Adam steps of the generator a round."""
    batch: int = 128
    """Images a generator step."""
    latent: int = 1000
    width: int = 128
    lr: float = 0.02
    images_per_round: int = 2560  # type: ignore[assignment]
    """Fresh images handed out after the steps; one for each that the student takes by default."""

    def __post_init__(self) -> None:
        for what, least in (("steps", 1), ("batch", 2), ("images_per_round", 2)):
            require(getattr(self, what) >= least, f"inversion {what}", getattr(self, what), f"an integer >= {least}")

    @property
    def asks_student(self) -> bool:
        """Where it has such a term, whatever its weight: it is logged."""
        return hasattr(self, "adv_weight")

    @abstractmethod
    def terms(self, look: Look, *, teacher: Teacher, student: nn.Module) -> dict[str, Tensor]:
        """Scalars to minimise, by names whose `<name>_weight` is a field.

        The images are as they were made, and wanted of each is the teacher's argmax.
        """

    def limit(self, weights: list[nn.Parameter]) -> None:
        """Do to the gradients of `weights` what is done before a step: nothing."""

    @final
    def init(self, teacher: Teacher, rng: Streams) -> GeneratorState:
        """A generator from stream `init/generator`. Raises `InputError` for a teacher without BN that it reads."""
        if self.reads_bn:
            require_bn(teacher)
        size = (self.latent, self.width, teacher.image_shape)
        generator = drawn(lambda: Generator(*size, **self.form), "init/generator", teacher.device, rng)
        return GeneratorState(generator, torch.optim.Adam(generator.parameters(), self.lr, betas=self.betas))

    @final
    def run(self, state: GeneratorState, targets: Targets, now: Round) -> tuple[Samples, Metrics]:
        """`steps` generator steps, then fresh images, not yet labelled; `targets` are not used."""
        weights = list(state.generator.parameters())

        def move() -> None:
            self.limit(weights)
            state.optimizer.step()

        def images(count: int) -> Tensor:
            return state.generator(now.latents(count, self.latent))

        for _ in range(self.steps):
            look = now.look(images(self.batch))
            now.step(look, self.terms(look, teacher=now.teacher, student=now.student), weights, move)
        metrics = now.meter.read()
        return fresh_images(images, self.images_per_round, self.batch), metrics


@torch.no_grad()
def fresh_images(draw: Callable[[int], Tensor], count: int, batch: int) -> Samples:
    """`count` >= 2 images of an unconditional generator, not yet labelled.

    `draw` makes as many as it is told to. It is asked for near-equal parts, as near to `batch` as these allow: BN in
    the generator must never see a single image.
    """
    parts = max(1, min(round(count / batch), count // 2))
    images = torch.cat([draw(len(part)) for part in torch.arange(count).tensor_split(parts)])
    return unlabelled(images)


@dataclass(frozen=True, kw_only=True)
class Dafl(Unconditional):
    r"""A generator whose images the teacher finds certain, equally spread over the classes, and exciting.

    Minimises oh CE(f_T(x), argmax f_T(x)) + ie \sum_c p_c log10 p_c - a mean|features| + guide(x, argmax f_T(x)),
    p the batch's mean class distribution. Departure: the official code steps generator and student in one backward
    pass; here a round is `steps` generator steps and then `images_per_round` fresh images for the student.
    """

    paper = "Chen et al., ICCV 2019"
    ours = ("steps", "batch", "images_per_round")
    name: Literal["dafl"] = "dafl"
    form: ClassVar[dict[str, Any]] = {"head": "tanh_bn", "eps": 0.8}
    batch: int = 128
    """Images a generator step (512 to 1024 in the official code)."""
    oh_weight: float = 0.05
    ie_weight: float = 5.0
    act_weight: float = 0.01

    def terms(self, look: Look, *, teacher: Teacher, student: nn.Module) -> dict[str, Tensor]:
        """`oh`, `ie` and `act`."""
        return {
            "oh": look.oh,
            "ie": negative_entropy(look.seen.logits),
            "act": negative_activation(look.seen.features),
        }


@dataclass(frozen=True, kw_only=True)
class Zskt(Unconditional):
    """A generator that looks for images on which the student does not believe what the teacher does, and nothing else.

    Minimises -adv KL(f_T(x) || f_S(x)) + guide(x, argmax f_T(x)), the norm of its gradient clipped. The gradient
    reaches x through both networks, as in the released code. Departures: the released code alternates one generator
    step and ten of the student on the same latents; here a round is `steps` generator steps and then
    `images_per_round` fresh images. It divides the KL by the number of classes, which under Adam matters for the
    clipping alone, lets the rate fall along a cosine, and asks the student in training mode; here the rate stays, and
    the student's BN statistics come from what it is taught alone.
    """

    paper = "Micaelli and Storkey, NeurIPS 2019"
    ours = ("steps", "images_per_round")
    name: Literal["zskt"] = "zskt"
    form: ClassVar[dict[str, Any]] = {"head": "bn"}
    steps: int = 2
    """Adam steps of the generator a round: one to ten of the distiller's 20, as published. Many more, and it runs away
    from a student that cannot follow."""
    batch: int = 128
    """Images a generator step."""
    latent: int = 100
    lr: float = 1e-3
    clip: float = 5.0
    """Largest norm of the gradient over all weights of the generator; longer ones are shortened to it."""
    adv_weight: float = 1.0
    """Of the only term, against a guide's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.clip > 0, "inversion clip", self.clip, "> 0")

    def terms(self, look: Look, *, teacher: Teacher, student: nn.Module) -> dict[str, Tensor]:
        """`adv`."""
        return {"adv": -look.mean(divergence(student(look.images), look.seen.logits))}

    def limit(self, weights: list[nn.Parameter]) -> None:
        """Shorten the whole gradient to `clip`."""
        nn.utils.clip_grad_norm_(weights, self.clip)


@dataclass(frozen=True, kw_only=True)
class Dfad(Unconditional):
    """A generator that looks for images on which the student's logits are far from the teacher's, and nothing else.

    Minimises -adv mean|f_S(x) - f_T(x)| + guide(x, argmax f_T(x)); its student is to be taught by the same distance,
    loss `l1`. The gradient reaches x through both networks, as in the released code. Departures: the released code
    alternates five student steps, each on images of its own, and one of the generator; here a round is `steps`
    generator steps and then `images_per_round` fresh images. Its rates may be divided by 10 twice, and it asks the
    student in training mode; here the rate stays, and the student's BN statistics come from what it is taught alone.
    """

    paper = "Fang et al., arXiv 1912.11006"
    ours = ("steps", "batch", "images_per_round")
    name: Literal["dfad"] = "dfad"
    form: ClassVar[dict[str, Any]] = {"head": "tanh_bn"}
    steps: int = 4
    """Adam steps of the generator a round: one to five of the distiller's 20, as published. Many more, and it runs away
    from a student that cannot follow."""
    batch: int = 128
    """Images a generator step (256 in the released code)."""
    latent: int = 256
    lr: float = 1e-3
    adv_weight: float = 1.0
    """Of the only term, against a guide's."""

    def terms(self, look: Look, *, teacher: Teacher, student: nn.Module) -> dict[str, Tensor]:
        """`adv`."""
        return {"adv": -look.mean(logit_l1(student(look.images), look.seen.logits))}


@dataclass(frozen=True, kw_only=True)
class Dfq(Unconditional):
    r"""A generator whose images surprise the student, but look to the teacher's statistics and answers like its data.

    Minimises -adv KL(f_T(x) || f_S(x)) + bn \sum_l ||BN_l(x) - BN_l|| + ice mean_i H(p_i) - bce H(mean_i p_i)
    + guide(x, argmax f_T(x)), H the entropy to base 10 of p_i = softmax f_T(x_i): each image certain (ICE), the batch
    spread over the classes (BCE). The gradient of the KL reaches x through both networks, as in the re-run and in the
    DataFree port. The re-run has the signs of both entropies the other way round, against that purpose; the port has
    them as here. Departures: the re-run alternates five student steps and one of the generator, cools both rates along
    cosines and asks the student in training mode; here a round is `steps` generator steps and then `images_per_round`
    fresh images, the rate stays, and the student is asked in eval mode.
    """

    paper = "Choi et al., CVPRW 2020"
    ours = ("steps", "batch", "images_per_round")
    name: Literal["dfq"] = "dfq"
    form = Dafl.form
    betas = (0.5, 0.999)
    reads_bn = True
    steps: int = 4
    """Adam steps of the generator a round: one to five of the distiller's 20, as in the re-run."""
    batch: int = 128
    """Images a generator step (256 in the re-run)."""
    latent: int = 256
    lr: float = 1e-3
    adv_weight: float = 1.0
    bn_weight: float = 0.1
    first_bn_factor: float = 5.0
    """How often the first BN layer counts in `bn`."""
    ice_weight: float = 0.1
    bce_weight: float = 0.1
    """The re-run gives bn, ice and bce one weight; the DataFree port has 1, 1 and 20."""

    def terms(self, look: Look, *, teacher: Teacher, student: nn.Module) -> dict[str, Tensor]:
        """`adv`, `bn`, `ice` and `bce`."""
        return {
            "adv": -look.mean(divergence(student(look.images), look.seen.logits)),
            "bn": bn_distance(look.seen.bn, teacher.running_bn, self.first_bn_factor),
            "ice": look.mean(entropy(look.seen.logits)),
            "bce": negative_entropy(look.seen.logits),
        }


@dataclass(frozen=True, kw_only=True)
class PreDfkd(Unconditional):
    r"""A generator whose images the teacher finds certain, evenly spread and exciting, and the student surprising.

    Minimises oh CE(f_T(x), argmax f_T(x)) + ie \sum_c p_c log10 p_c - act mean|features|
    + adv (1 - clamp(JS(f_S(x), f_T(x)), 0, 1)) + guide(x, argmax f_T(x)), p the batch's mean class distribution. JS
    takes the teacher's answer as a constant, so that its gradient reaches x through the student alone (the released
    code, and LRA's re-runs of it and of MB-DFKD).
    Departures: the released code alternates one generator step and ten of the student; here a round is `steps`
    generator steps and then `images_per_round` fresh images. It leaves the student in training mode while the
    generator learns; here it is asked in eval mode, and its BN statistics come from what it is taught alone.
    """

    paper = "Binici et al., AAAI 2022"
    ours = ("steps", "batch", "images_per_round")
    name: Literal["pre_dfkd"] = "pre_dfkd"
    form: ClassVar[dict[str, Any]] = {"head": "tanh_bn", "eps": 0.8, "spectral": True, "init": "uniform"}
    batch: int = 128
    """Images a generator step (1024 in the released code)."""
    lr: float = 0.02
    """As released, for batches of 1024. A tenth of it served batches of 128 better on digits."""
    oh_weight: float = 1.0
    ie_weight: float = 5.0
    act_weight: float = 0.1
    adv_weight: float = 1.0
    temperature: float = 3.0
    """Of the softened answers in JS."""
    js_reduction: JsReduction = "mean"
    """`mean` is as released: over images and classes. Where both confidently disagree on every image JS is then only
    0.08 to 0.15 for 10 classes, 0.002 to 0.008 for 100 and about 0.0004 for 200, so that the term hardly acts.
    `batchmean` sums over the classes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.temperature > 0, "inversion temperature", self.temperature, "> 0")

    def terms(self, look: Look, *, teacher: Teacher, student: nn.Module) -> dict[str, Tensor]:
        """`oh`, `ie`, `act` and `adv`."""
        # Constant, as released: through the teacher's answer this term would push far harder, and another way.
        constant = look.seen.logits.detach()
        js = jensen_shannon(student(look.images), constant, temperature=self.temperature, reduction=self.js_reduction)
        return {
            "oh": look.oh,
            "ie": negative_entropy(look.seen.logits),
            "act": negative_activation(look.seen.features),
            "adv": 1 - look.mean(js).clamp(0, 1),
        }
