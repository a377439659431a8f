"""NAYER (Tran et al., CVPR 2024): a generator of class embeddings, with a noisy layer in place of input noise.

"Noisy layer data generation for efficient and effective data-free knowledge distillation"; losses and settings follow
the released code of NAYER. Letters: B batch, K classes, E embedding size, Z latent size, R images of the most frequent
class.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condkd_ray.core.method import Metrics, require
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import Samples, unseen
from condkd_ray.data.augment import require_shift
from condkd_ray.methods.inversion.conditional import Conditional
from condkd_ray.methods.inversion.inversion import BestStep, LossTerms, Round, StepBatch, require_bn
from condkd_ray.methods.losses.inversion import mix_bn
from condkd_ray.methods.targets import Targets
from condkd_ray.models.generator import Generator
from condkd_ray.models.network import seeded_module
from condkd_ray.models.teacher import Teacher
from condkd_ray.models.weights import read_weights

EMBEDDINGS = "embeddings"
"""Name of the tensor in a file of embeddings."""


class NoisyLayers(NamedTuple):
    """R linear layers from E to Z: `weight` (R, Z, E), `bias` (R, Z)."""

    weight: Tensor
    bias: Tensor


class EmbeddingGenerator(nn.Module):
    """Maps normalised class embeddings through a given noisy layer to images in [0, 1]."""

    def __init__(self, embedding: int, latent: int, width: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(embedding)
        self.body = Generator(latent, width, image_shape)

    def forward(self, embeddings: Tensor, noisy: NoisyLayers, labels: Tensor, layers: Tensor) -> Tensor:
        """Return images (B, C, H, W) of class embeddings (K, E).

        Image i has class `labels[i]` and uses noisy layer `layers[i]`, both (B,).
        """
        latents = torch.einsum("rze,ke->rkz", noisy.weight, self.norm(embeddings)) + noisy.bias[:, None]
        return self.body(latents[layers, labels])


@dataclass
class NayerState:
    """The generator, the class embeddings (K, E), the running BN statistics (None at first), and rounds so far."""

    generator: EmbeddingGenerator
    embeddings: Tensor
    bn_memory: Tensor | None = None
    round: int = 0


@dataclass(frozen=True, kw_only=True)
class Nayer(Conditional[NayerState]):
    r"""Images of one class differ by a noisy layer, drawn each round, through which the class embedding passes.

    Minimises bn \sum_l ||BN_l(x) - BN_l|| + oh CE(f_T(x), y) + adv A(f_S(x), f_T(x)) + guide(x, y). BN_l(x) is averaged
    with the statistics of earlier rounds; A is minus KL(f_T(x) || f_S(x)) if teacher and student predict the same
    class, else 0. The first image of each class uses the first noisy layer, the second image the second layer, and so
    on; the layers are trained with the generator.

    A round consists of `loops` inner loops, each with its own noisy layers and its own Adam; it corresponds to one
    epoch of NAYER's code. Each loop keeps the images of its step with the lowest loss.

    Departures. NAYER's embeddings are a language model's embeddings of "a image of <class>"; `embeddings` reads such a
    file. By default fixed orthogonal vectors are drawn, which distinguish the classes without describing them. NAYER's
    warm-up has 10 loops per epoch, the later epochs have 2; here every round has `loops`, so that the 20 epochs of its
    warm-up are 100 rounds of 2 loops. BN in the generator gets each class's embedding once (in NAYER's code: as often
    as the class occurs in the batch). NAYER's code keeps a loop's first images if an earlier loop of the same epoch had
    a lower loss.
    """

    paper = "Tran et al., CVPR 2024"
    ours = ("embedding", "batch", "loops", "warm_up", "warm_up_life", "oh_temperature")
    name: Literal["nayer"] = "nayer"
    uses_targets = "labels"
    embeddings: Path | None = field(default=None, metadata={"identity": "content"})
    """A safetensors file whose tensor `embeddings` (K, E) has one row per class, in the order of the labels; each
    worker must be able to read it. The file's content is part of the config's identity, its path is not. None:
    orthogonal vectors are drawn."""
    embedding: int = 512
    """E of the drawn vectors (512 in CLIP)."""
    steps: int = 30
    """Adam steps per loop (30 for CIFAR-10, 40 for CIFAR-100)."""
    loops: int = 1
    """Inner loops per round (2 in NAYER's scripts)."""
    batch: int = 128
    """Images per loop (400 in NAYER's scripts)."""
    latent: int = 1000
    """Length of the latent vectors."""
    width: int = 128
    """Channels of the generator's first stage."""
    lr: float = 4e-3
    """Learning rate of Adam for the generator and the noisy layers."""
    bn_weight: float = 10.0
    """Weight of the distance between the BN statistics of the images and the teacher's."""
    oh_weight: float = 0.5
    """Weight of the class prior, the cross-entropy between the teacher's predictions and the targets."""
    oh_temperature: float = 1.0
    """Temperature of the class prior; at 1, as published, images with certain predictions have almost no gradient."""
    adv_weight: float = 1.33
    """Weight of the adversarial term A."""
    bn_momentum: float = 0.9
    """Weight of the running BN statistics in the matched ones."""
    life: int = 10
    """Rounds after which a new generator is drawn, counted from the end of the warm-up (10 epochs in NAYER's
    scripts)."""
    warm_up_life: int | None = None
    """Rounds after which a new generator is drawn during the warm-up; `life` if null. 10 epochs of 10 loops, as in
    NAYER's scripts, are 50 rounds of 2 loops."""
    shift: float = 0.125
    """Largest random shift before the teacher, as a share of the side. Images are also flipped if that keeps the
    class."""
    warm_up: int = 0  # type: ignore[assignment]
    """First rounds that only synthesise, without A (20 epochs of 10 loops in NAYER's scripts)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        least = {"embedding": 1, "steps": 1, "loops": 1, "batch": 2, "life": 1, "warm_up": 0}
        for what, bound in least.items():
            require(getattr(self, what) >= bound, f"inversion {what}", getattr(self, what), f"an integer >= {bound}")
        lives = self.warm_up_life is None or self.warm_up_life >= 1
        require(lives, "inversion warm_up_life", self.warm_up_life, "null, or an integer >= 1")
        require(0 <= self.bn_momentum < 1, "bn_momentum", self.bn_momentum, "0 <= momentum < 1")
        require_shift(self.shift, "inversion shift")

    @property
    def images_per_round(self) -> int:
        """One batch per loop."""
        return self.loops * self.batch

    def init(self, teacher: Teacher, rng: Streams) -> NayerState:
        """Return a generator from stream `init/generator` and embeddings from the file or stream `init/embeddings`.

        Raises `InputError` for a teacher without BN, and for a file that does not have one finite row per class.
        """
        require_bn(teacher)
        if self.embeddings is None:
            with rng.forked("init/embeddings"):
                embeddings = nn.init.orthogonal_(torch.empty(teacher.num_classes, self.embedding))
        else:
            embeddings = read_embeddings(self.embeddings, teacher.num_classes)
        embeddings = embeddings.to(teacher.device)
        return NayerState(self._generator(embeddings, teacher, rng, "init/generator"), embeddings)

    def _generator(self, embeddings: Tensor, teacher: Teacher, rng: Streams, stream: str) -> EmbeddingGenerator:
        size = (embeddings.shape[1], self.latent, self.width, teacher.image_shape)
        return seeded_module(lambda: EmbeddingGenerator(*size), stream, teacher.device, rng)

    def run(self, state: NayerState, targets: Targets, call: Round) -> tuple[Samples, Metrics]:
        """Run `loops` times `steps` steps of the generator and of noisy layers from stream `latents`."""
        if self._life_ends(state.round):
            stream = f"init/generator/{state.round + 1}"
            fresh = self._generator(state.embeddings, call.teacher, call.rng, stream)
            # In place, because captured graphs read the generator's tensors at fixed addresses.
            state.generator.load_state_dict(fresh.state_dict())
        state.round += 1
        parts = split_evenly(targets.labels, self.loops)
        made = [self._loop(state, part, replace(call, best_step=BestStep())) for part in parts]
        return unseen(torch.cat(made), torch.cat(parts)), call.meter.read()

    def _life_ends(self, round: int) -> bool:
        """Return whether a new generator must be drawn before the next round; `round` is the number of past rounds."""
        if 0 < round < self.warm_up:
            return round % (self.warm_up_life or self.life) == 0
        return round > 0 and (round - self.warm_up) % self.life == 0

    def _loop(self, state: NayerState, labels: Tensor, call: Round) -> Tensor:
        """Return normalised images (B, C, H, W) of `labels` (B,), those of the step with the lowest loss."""
        layers, count = occurrences(labels, call.teacher.num_classes)
        shape = (count, self.latent, state.embeddings.shape[1])
        bias = torch.zeros(shape[:2], device=call.rng.device)
        noisy = NoisyLayers(call.latents(*shape).requires_grad_(), bias.requires_grad_())
        leaves = [*state.generator.parameters(), *noisy]
        optimizer = torch.optim.Adam(leaves, self.lr, betas=(0.5, 0.999), fused=True)
        adv_student = call.student if self.uses_student and state.round > self.warm_up else None
        last_bn = memory = state.bn_memory

        def make() -> Tensor:
            return call.teacher.normalise(state.generator(state.embeddings, noisy, labels, layers))

        def losses(batch: StepBatch) -> LossTerms:
            bn = mix_bn(batch.observation.bn, memory, self.bn_momentum)
            return LossTerms(self.terms(batch, bn=bn, teacher=call.teacher, student=adv_student))

        call.start_near_guides(make, labels, noisy, layers)
        for _ in range(self.steps):
            forward = call.forward(make, losses, Targets(labels))
            call.step(forward, leaves, optimizer.step, keep=True)
            last_bn = forward.batch.observation.bn.detach().clone()
        assert last_bn is not None
        state.bn_memory = mix_bn(last_bn, state.bn_memory, self.bn_momentum)
        return call.best_step.kept[0]


def split_evenly(labels: Tensor, loops: int) -> list[Tensor]:
    """Split labels (B,) into `loops` parts, in their order, with each class spread evenly; without a device sync."""
    order = labels.argsort(stable=True)
    return [labels[order[first::loops].sort().values] for first in range(loops)]


def occurrences(labels: Tensor, num_classes: int) -> tuple[Tensor, int]:
    """Return the number of earlier images of the same class for each label, (B,), and R, which is copied to the CPU."""
    counts = F.one_hot(labels, num_classes).cumsum(0)
    return counts.gather(1, labels[:, None]).squeeze(1) - 1, int(counts[-1].max())


def read_embeddings(path: Path, num_classes: int) -> Tensor:
    """Return (K, E) float32 from a file. Raises `InputError` unless it has one finite row per class."""
    found = read_weights(path).get(EMBEDDINGS)
    shape = None if found is None else tuple(found.shape)
    accepted = f"({num_classes}, E), a row for each class"
    fits = shape is not None and len(shape) == 2 and shape[0] == num_classes and shape[1] > 0
    require(fits, f"shape of the tensor '{EMBEDDINGS}' in {path}", shape, accepted)
    assert found is not None
    require(bool(found.isfinite().all()), f"'{EMBEDDINGS}' in {path}", "not all finite", "finite values")
    return found.float()
