"""CMI (Fang et al., IJCAI 2021, "Contrastive model inversion for data-free knowledge distillation").

Losses and settings follow the released code of CMI. Letters: B batch, D features, N rows of the bank.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condkd_ray.core.checkpoint import transient
from condkd_ray.core.compilation import growing
from condkd_ray.core.method import Metrics, require
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import Samples, unseen
from condkd_ray.core.task import BOTH
from condkd_ray.core.units import byte_size
from condkd_ray.data.augment import require_shift, resized_crop
from condkd_ray.methods.inversion.conditional import Conditional, generator_inputs, target_generator
from condkd_ray.methods.inversion.inversion import WITH_BN, LossTerms, Round, StepBatch, require_bn
from condkd_ray.methods.targets import Targets
from condkd_ray.models.network import seeded_module
from condkd_ray.models.observation import Observation
from condkd_ray.models.teacher import Teacher


@dataclass
class CmiState:
    """The contrastive head, its optimiser, the bank (None before the first round), and rounds so far.

    A row of the bank holds an image's local and global features side by side, as the teacher computed them: (rows, 2
    D).
    """

    head: nn.Module
    optimizer: torch.optim.Optimizer
    bank: Tensor | None = None
    round: int = 0
    _generator: nn.Module | None = transient(default=None)

    def generator_like(self, fresh: nn.Module) -> nn.Module:
        """Return a generator with the weights of `fresh`.

        It is the same module in every round, because captured graphs read its tensors at fixed addresses.
        """
        if self._generator is None:
            self._generator = fresh
        else:
            self._generator.load_state_dict(fresh.state_dict())
        return self._generator


@dataclass(frozen=True, kw_only=True)
class Cmi(Conditional[CmiState]):
    r"""Optimises a new generator and its latents each round, so that the images differ from all earlier ones.

    Minimises bn \sum_l ||BN_l(x) - BN_l|| + oh CE(f_T(x), y) + adv A(f_S(x), f_T(x)) + cr C + guide(x, y) over the
    shifted and flipped images x, the global view. A is minus KL(f_T(x) || f_S(x)) if teacher and student predict the
    same class, else 0. C is InfoNCE between the global view and a local one, a random resized crop. It compares the
    outputs of a head, whose inputs are each image's channel means at the inputs of the teacher's `layers`; images of
    earlier rounds serve as negatives. The images of the step with the lowest loss are kept, and their features go into
    the bank.
    """

    paper = "Fang et al., IJCAI 2021"
    ours = ("layers", "steps", "batch", "oh_temperature")
    tasks = BOTH
    name: Literal["cmi"] = "cmi"
    uses_targets = "soft"
    layers: Literal["stages", "all"] = "stages"
    """Layers whose inputs C compares. `stages`: the stages of the network, as in CMI's code for a ResNet-34 (4 stages,
    512 values per image). For other teachers our choice, see `condkd_ray.models.hooks.stage_inputs`: a stage that reads
    the image itself is left out; for networks without stages, the first BN layer at each map size. `all`: every BN
    layer, as in CMI's code for all other networks; 2704 values per image for a WRN-40-2, 8512 for a ResNet-34."""
    steps: int = 100
    """Adam steps per round (200 to 500 in CMI's scripts). Each step computes two views and compares all images with
    all."""
    batch: int = 128
    """Images per round (256 in CMI's scripts)."""
    latent: int = 256
    """Length of the latent vectors."""
    width: int = 128
    """Channels of the generator's first stage (128 in CMI's code)."""
    lr: float = 1e-3
    """Learning rate of generator, latents and head."""
    bn_weight: float = 1.0
    """Weight of the distance between the BN statistics of the images and the teacher's."""
    oh_weight: float = 1.0
    """Weight of the class prior, the cross-entropy between the teacher's predictions and the targets."""
    oh_temperature: float = 1.0
    """Temperature of the class prior; at 1, as published, images with certain predictions have almost no gradient."""
    adv_weight: float = 0.5
    """Weight of the adversarial term A."""
    cr_weight: float = 0.8
    """Weight of the contrastive term C."""
    cr_temperature: float = 0.1
    """Temperature of C: similarities of views are divided by it."""
    head: int = 256
    """Output dimensions of the head, in which views are compared."""
    negatives: int = 4096
    """Rows of the bank that join the comparison in each step, drawn without replacement; all rows if there are
    fewer."""
    bank: int = 40_960
    """Rows kept, the latest ones. On the device they take rows x 2 D x 4 bytes, where D is the number of values per
    image of `layers`: 168 MB for the stages of a ResNet-34, 886 MB for all BN layers of a WRN-40-2; twice that while
    rows are added, which copies the bank. Checkpoints contain the bank."""
    shift: float = 0.125
    """Largest random shift of the global view, as a share of the side. Images are also flipped if that keeps the
    class."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.layers in ("stages", "all"), "inversion layers", self.layers, "stages, all")
        for what, least in (("steps", 1), ("batch", 2), ("head", 1), ("negatives", 1)):
            require(getattr(self, what) >= least, f"inversion {what}", getattr(self, what), f"an integer >= {least}")
        require(self.cr_temperature > 0, "cr_temperature", self.cr_temperature, "> 0")
        accepted = f"at most {self.bank}, the rows of the bank"
        require(self.negatives <= self.bank, "inversion negatives", self.negatives, accepted)
        require_shift(self.shift, "inversion shift")

    def init(self, teacher: Teacher, rng: Streams) -> CmiState:
        """Return a head from stream `init/head`. Raises `InputError` for a teacher without BN or stages to compare."""
        require_bn(teacher)
        inputs = self._inputs(teacher)
        accepted = f"1 or more, as in {WITH_BN[teacher.task]}; or inversion layers all"
        require(bool(inputs), "number of the teacher's stages that read a feature map", len(inputs), accepted)
        channels = sum(inputs.values())

        def built() -> nn.Module:
            return nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, self.head))

        head = seeded_module(built, "init/head", teacher.device, rng)
        return CmiState(head, torch.optim.Adam(head.parameters(), self.lr, fused=True))

    def check_memory(self, teacher: Teacher, free: int, rounds: int) -> None:
        """Raise `InputError` if the bank needs more than `free` bytes after `rounds` rounds."""
        channels, rows = sum(self._inputs(teacher).values()), min(self.bank, rounds * self.batch)
        a_row = 2 * channels * 4
        fitting = free // (2 * a_row)
        smaller = f"bank {fitting}" + (" or layers stages" if self.layers == "all" else "")
        accepted = f"at most {byte_size(free // 2)}, half of the free memory, as adding rows copies the bank: {smaller}"
        what = f"memory of inversion bank, {rows} rows of 2 x {channels} values"
        require(rows <= fitting, what, byte_size(rows * a_row), accepted)

    def input_mean_layers(self, teacher: Teacher) -> tuple[str, ...]:
        """Return the names of the layers whose inputs are compared."""
        return tuple(self._inputs(teacher))

    def _inputs(self, teacher: Teacher) -> dict[str, int]:
        """Return the names of the layers whose inputs are compared, with the channels of each."""
        return teacher.stage_inputs if self.layers == "stages" else teacher.bn_inputs

    def run(self, state: CmiState, targets: Targets, call: Round) -> tuple[Samples, Metrics]:
        """Run `steps` steps of a generator from stream `init/generator/<round>`, of its latents and of the head."""
        teacher, rng = call.teacher, call.rng
        state.round += 1
        size = (self.latent, self.width, teacher)
        fresh = seeded_module(
            lambda: target_generator(*size, init="normal"), f"init/generator/{state.round}", teacher.device, rng
        )
        generator = state.generator_like(fresh)
        latents = call.latents(len(targets), self.latent).requires_grad_()
        own = [*generator.parameters(), latents]
        optimizer = torch.optim.Adam(own, self.lr, betas=(0.5, 0.999), fused=True)
        leaves = [*own, *state.head.parameters()]

        def move() -> None:
            optimizer.step()
            state.optimizer.step()

        adv_student = call.student if self.uses_student else None
        observer = teacher.observer(bn=False, input_means=self.input_mean_layers(teacher))

        def make() -> Tensor:
            return teacher.normalise(generator(*generator_inputs(latents, targets)))

        def extra_inputs(images: Tensor) -> tuple[Tensor, ...]:
            part = resized_crop(images, rng=rng["augment/inversion"], flip=teacher.flip_ok)
            return (part,) if state.bank is None else (part, growing(self._negatives(state.bank, rng)))

        def losses(batch: StepBatch) -> LossTerms:
            part, *negatives = batch.extra_inputs
            local, whole = _features(observer(part)), _features(batch.observation)
            terms = self.terms(batch, bn=batch.observation.bn, teacher=teacher, student=adv_student)
            return LossTerms(terms | {"cr": self._contrast(state.head, local, whole, *negatives)}, (local, whole))

        call.start_near_guides(make, targets.labels, [latents], weights=list(generator.parameters()))
        for _ in range(self.steps):
            call.step(call.forward(make, losses, targets, extra_inputs), leaves, move, keep=True)
        metrics = call.meter.read()
        best, *pair = call.best_step.kept
        features = torch.cat(pair, 1)
        state.bank = (features if state.bank is None else torch.cat([state.bank, features]))[-self.bank :]
        return unseen(best, targets.labels), metrics

    def _negatives(self, bank: Tensor, rng: Streams) -> Tensor:
        """Return random rows of the bank."""
        return bank[torch.randperm(len(bank), generator=rng["negatives"], device=rng.device)[: self.negatives]]

    def _contrast(self, head: nn.Module, local: Tensor, whole: Tensor, negatives: Tensor | None = None) -> Tensor:
        """Return C of this batch's views, (B, D) each, and of `negatives`, rows of the bank."""
        count = len(local)
        if negatives is not None:
            cached = negatives.chunk(2, dim=1)
            local, whole = torch.cat([local, cached[0]]), torch.cat([whole, cached[1]])
        with torch.no_grad():
            whole = F.normalize(head(whole).float())
        return instance_discrimination(F.normalize(head(local).float()), whole, count, self.cr_temperature)


def _features(observation: Observation) -> Tensor:
    assert observation.input_means is not None
    return observation.input_means


def instance_discrimination(local: Tensor, whole: Tensor, count: int, temperature: float = 0.1) -> Tensor:
    """Return InfoNCE of two sets of unit vectors (B + N, D), a scalar; the first `count` = B rows are the batch.

    For each local view the loss is the cross-entropy of its inner products with all global views, divided by
    `temperature`, where the target is its own global view. N may be 0. `whole`, the global side, gets no gradient. The
    means over the batch and over the bank's rows are added, so that the batch's share does not shrink as the bank
    fills.
    """
    with torch.autocast(local.device.type, enabled=False):
        alike = local.float() @ whole.detach().float().T / temperature
        losses = F.cross_entropy(alike, torch.arange(len(alike), device=alike.device), reduction="none")
    current = losses[:count].mean()
    return current + losses[count:].mean() if len(losses) > count else current
