"""Hosts whose generator makes images of wanted classes.

Formulas, networks, schedules and weights were read in the authors' released code:

- CMI (Fang et al., IJCAI 2021, "Contrastive model inversion for data-free knowledge distillation"): `peers.md` A.6 and
  `methods.md` 6.1, 6.2.
- Fast (Fang et al., AAAI 2022, "Up to 100x faster data-free knowledge distillation"), a meta-learned generator:
  `peers.md` A.7 and `methods.md` 6.1, 6.2.
- NAYER (Tran et al., CVPR 2024, "Noisy layer data generation for efficient and effective data-free knowledge
  distillation"), fed with what a class is called, and a noisy layer in place of noise: `peers.md` A.8.

Letters: B batch, D features, N rows of CMI's bank; of NAYER K classes, E embedding size, Z latent size, R images of the
most frequent class.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condkd_ray.core.method import Metrics, require
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import Samples, unseen
from condkd_ray.data.augment import require_shift, resized_crop, shift_flip
from condkd_ray.methods.inversion.inversion import Host, Look, Lowest, Round, State, require_bn
from condkd_ray.methods.losses.inversion import BnStatistics, bn_distance, disagreement, mix_bn
from condkd_ray.methods.targets import Targets
from condkd_ray.models.generator import Generator
from condkd_ray.models.network import drawn
from condkd_ray.models.teacher import Observation, Teacher
from condkd_ray.models.weights import read_weights


class Conditional(Host[State]):
    """Base of the hosts that match BN statistics and wanted classes; their generators make [0, 1] pixels.

    It is no dataclass itself: the fields it names are those of every host, each in the order of its own.
    """

    reads_bn = True
    shift: float

    def augment(self, images: Tensor, *, teacher: Teacher, rng: torch.Generator) -> Tensor:
        """Shift and flip; black moves in, as in the released code (crop in [0, 1], then normalise)."""
        return shift_flip(images, rng=rng, share=self.shift, flip=teacher.flip_ok, black=teacher.black.to(images))

    def terms(self, look: Look, *, bn: BnStatistics, teacher: Teacher, student: nn.Module | None) -> dict[str, Tensor]:
        """`bn` of these statistics, `oh`, and `adv`, 0 where there is no `student` to compete with."""
        distance, oh = bn_distance(bn, teacher.running_bn), look.oh
        adv = torch.zeros_like(oh)
        if student is not None:
            adv = look.mean(disagreement(student(look.augmented), look.seen.logits))
        return {"bn": distance, "oh": oh, "adv": adv}


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
class Cmi(Conditional[CmiState]):
    r"""Each round a new generator and its latents are optimised together, to make images unlike all made before.

    Minimises bn \sum_l ||BN_l(x) - BN_l|| + oh CE(f_T(x), y) + adv A(f_S(x), f_T(x)) + cr C + guide(x, y) over the
    shifted and flipped images x, the global view. A is minus the KL where teacher and student agree. C is InfoNCE
    between this view and a random resized crop, the local one, in a head over each image's channel means at the inputs
    of the teacher's `layers`; images of earlier rounds stand by as negatives. The images of lowest loss are kept, and
    their features.
    """

    paper = "Fang et al., IJCAI 2021"
    ours = ("layers", "steps", "batch")
    name: Literal["cmi"] = "cmi"
    hears = "answers"
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

    def run(self, state: CmiState, targets: Targets, now: Round) -> tuple[Samples, Metrics]:
        """`steps` steps of a generator from stream `init/generator/<round>`, of its latents and of the head."""
        teacher, rng = now.teacher, now.rng
        state.round += 1
        size = (self.latent, self.width, teacher.image_shape)
        generator = drawn(lambda: Generator(*size, init="normal"), f"init/generator/{state.round}", teacher.device, rng)
        latents = now.latents(len(targets), self.latent).requires_grad_()
        made = [*generator.parameters(), latents]
        optimizer = torch.optim.Adam(made, self.lr, betas=(0.5, 0.999))
        leaves = [*made, *state.head.parameters()]

        def move() -> None:
            optimizer.step()
            state.optimizer.step()

        inputs = tuple(self._inputs(teacher))
        rival = now.student if self.asks_student else None
        for _ in range(self.steps):
            images = teacher.normalise(generator(latents))
            look = now.look(images, targets, input_means=inputs)
            part = resized_crop(images, rng=rng["augment/inversion"], flip=teacher.flip_ok)
            pair = _features(teacher.observe(part, bn=False, input_means=inputs)), _features(look.seen)
            terms = self.terms(look, bn=look.seen.bn, teacher=teacher, student=rival)
            terms["cr"] = self._contrast(state, *pair, rng)
            now.step(look, terms, leaves, move, images, torch.cat(pair, 1))
        metrics = now.meter.read()
        best, features = now.lowest.kept
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


def instance_discrimination(local: Tensor, whole: Tensor, count: int, temperature: float = 0.1) -> Tensor:
    """InfoNCE of unit vectors, (B + N, D) twice, to a scalar; the first `count` = B rows are the batch, N may be 0.

    Each local view has to name, among all, its own global view by their inner products over `temperature`. Nothing
    flows back into the global side `whole`. The means over the batch and over the cached rows are added up, so that
    the batch's share does not shrink as the cache fills.
    """
    with torch.autocast(local.device.type, enabled=False):
        alike = local.float() @ whole.detach().float().T / temperature
        losses = F.cross_entropy(alike, torch.arange(len(alike), device=alike.device), reduction="none")
    current = losses[:count].mean()
    return current + losses[count:].mean() if len(losses) > count else current


@dataclass
class FastState:
    """The meta generator, its optimiser, the remembered BN statistics (None before the first round), rounds so far."""

    generator: Generator
    optimizer: torch.optim.Optimizer
    bn_memory: BnStatistics | None = None
    round: int = 0


@dataclass(frozen=True, kw_only=True)
class Fast(Conditional[FastState]):
    r"""Each round a clone of the generator and fresh latents take a few Adam steps; their gradients move the original.

    Minimises bn \sum_l ||BN_l(x) - BN_l|| + oh CE(f_T(x), y) + adv A(f_S(x), f_T(x)) + guide(x, y), where BN_l(x) is
    mixed with that of earlier rounds and A is minus the KL where teacher and student agree. The original then takes
    one Adam step of rate `lr * steps` (see `meta`). The images of lowest loss are kept. Departure: the official code
    lets A in one round early, at the last of the warm-up.
    """

    paper = "Fang et al., AAAI 2022"
    ours = ("batch", "warm_up")
    name: Literal["fast"] = "fast"
    hears = "answers"
    steps: int = 10
    """Adam steps a round (k; the paper has 2, 5 and 10)."""
    batch: int = 128
    """Images a round (256 in the official scripts)."""
    latent: int = 256
    width: int = 128
    """Channels of the generator's first stage; the official one has 128."""
    lr: float = 2e-3
    lr_latent: float = 1e-2
    bn_weight: float = 10.0
    oh_weight: float = 0.5
    adv_weight: float = 1.33
    bn_momentum: float = 0.9
    """Share of remembered BN statistics in the matched ones."""
    shift: float = 0.125
    """Largest random shift before the teacher, as a share of the side; with a flip where it keeps the class."""
    meta: Literal["maml", "reptile", "none"] = "maml"
    """How the original learns of its clone: by the summed gradients of the clone's steps (first-order MAML), by the
    way the clone went (Reptile), or there is no clone and the generator goes on from round to round (plain Fast)."""
    reptile_scale: float = 67.0
    """Factor of the clone's way as a gradient of the original. Adam hardly looks at it."""
    warm_up: int = 0  # type: ignore[assignment]
    """Rounds at the beginning that only synthesise, without A (20 in the official scripts)."""
    resets: tuple[int, ...] = ()
    """Rounds, counted from 1 with those of the warm-up, that begin by drawing the first linear and the first BN layer
    of the generator anew; 140 in the official code, if at all, at 20 rounds of warm-up."""

    def __post_init__(self) -> None:
        require(self.steps >= 1, "inversion steps", self.steps, "an integer >= 1")
        require(self.batch >= 2, "inversion batch", self.batch, "an integer >= 2")
        require(0 <= self.bn_momentum < 1, "bn_momentum", self.bn_momentum, "0 <= momentum < 1")
        require(self.reptile_scale > 0, "reptile_scale", self.reptile_scale, "> 0")
        require(self.warm_up >= 0, "inversion warm_up", self.warm_up, "an integer >= 0")
        require(all(number >= 1 for number in self.resets), "inversion resets", self.resets, "integers >= 1")
        require_shift(self.shift, "inversion shift")

    def init(self, teacher: Teacher, rng: Streams) -> FastState:
        """A generator from stream `init/generator`. Raises `InputError` for a teacher without BN."""
        require_bn(teacher)
        size = (self.latent, self.width, teacher.image_shape)
        generator = drawn(lambda: Generator(*size), "init/generator", teacher.device, rng)
        return FastState(generator, torch.optim.Adam(generator.parameters(), self.lr * self.steps, betas=(0.5, 0.999)))

    def run(self, state: FastState, targets: Targets, now: Round) -> tuple[Samples, Metrics]:
        """`steps` inner steps, then one step of the original."""
        state.round += 1
        if state.round in self.resets:
            _reset(state.generator, now.rng, state.round)
        inner = state.generator if self.meta == "none" else copy.deepcopy(state.generator)
        latents = now.latents(len(targets), self.latent).requires_grad_()
        leaves = [*inner.parameters(), latents]
        groups = [{"params": leaves[:-1], "lr": self.lr}, {"params": [latents], "lr": self.lr_latent}]
        optimizer = torch.optim.Adam(groups, betas=(0.5, 0.999))
        state.optimizer.zero_grad()
        rival = now.student if self.asks_student and state.round > self.warm_up else None
        bn_seen: BnStatistics = ()
        for _ in range(self.steps):
            images = now.teacher.normalise(inner(latents))
            look = now.look(images, targets)
            bn = mix_bn(look.seen.bn, state.bn_memory, self.bn_momentum)
            terms = self.terms(look, bn=bn, teacher=now.teacher, student=rival)
            gradients = now.step(look, terms, leaves, optimizer.step, images)
            if self.meta == "maml":
                _add_gradients(state.generator, gradients[:-1])
            bn_seen = look.seen.detach().bn
        metrics = now.meter.read()
        if self.meta == "reptile":
            _point_away(state.generator, inner, self.reptile_scale)
        if self.meta != "none":
            state.optimizer.step()
        state.bn_memory = list(mix_bn(bn_seen, state.bn_memory, self.bn_momentum))
        return unseen(now.lowest.kept[0], targets.labels), metrics


def _add_gradients(generator: nn.Module, gradients: Sequence[Tensor]) -> None:
    """To those the original has gathered this round."""
    for original, gradient in zip(generator.parameters(), gradients, strict=True):
        original.grad = gradient.clone() if original.grad is None else original.grad.add_(gradient)


def _point_away(generator: nn.Module, inner: nn.Module, scale: float) -> None:
    """Reptile's gradient: `scale` times the way from where the clone ended to the original."""
    for original, moved in zip(generator.parameters(), inner.parameters(), strict=True):
        original.grad = scale * (original - moved).detach()


def _reset(generator: Generator, rng: Streams, round: int) -> None:
    """Weights of the first linear and BN layer from N(0, 0.02), biases 0, as the official code; optimisers go on."""
    with rng.forked(f"init/generator/{round}"), torch.no_grad():
        for layer in (generator.linear, generator.start):
            # Drawn on the CPU whatever the device: one seed, one generator.
            layer.weight.copy_(torch.randn(layer.weight.shape) * 0.02)
            layer.bias.zero_()


EMBEDDINGS = "embeddings"
"""The tensor's name in a file of embeddings."""


class NoisyLayers(NamedTuple):
    """R linear layers, E to Z: `weight` (R, Z, E), `bias` (R, Z)."""

    weight: Tensor
    bias: Tensor


class NamedGenerator(nn.Module):
    """Embeddings of the classes, normalised, through a layer that is handed in, to images in [0, 1]."""

    def __init__(self, embedding: int, latent: int, width: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(embedding)
        self.body = Generator(latent, width, image_shape)

    def forward(self, embeddings: Tensor, noisy: NoisyLayers, labels: Tensor, places: Tensor) -> Tensor:
        """(K, E) embeddings to (B, C, H, W): image i is of class `labels[i]`, through layer `places[i]`, both (B,)."""
        latents = torch.einsum("rze,ke->rkz", noisy.weight, self.norm(embeddings)) + noisy.bias[:, None]
        return self.body(latents[places, labels])


@dataclass
class NayerState:
    """The generator, the classes' embeddings (K, E), the remembered BN statistics (None at first), rounds so far."""

    generator: NamedGenerator
    embeddings: Tensor
    bn_memory: BnStatistics | None = None
    round: int = 0


@dataclass(frozen=True, kw_only=True)
class Nayer(Conditional[NayerState]):
    r"""Images of one class differ by the layer, drawn anew each round, that its embedding goes through.

    Minimises bn \sum_l ||BN_l(x) - BN_l|| + oh CE(f_T(x), y) + adv A(f_S(x), f_T(x)) + guide(x, y), where BN_l(x) is
    mixed with that of earlier rounds and A is minus the KL where teacher and student agree. The first image of each
    class goes through the first noisy layer, the second through the second, and so on; they learn with the generator.
    The images of lowest loss are kept.

    A round is `loops` inner loops, each with noisy layers and an Adam of its own; it matches one epoch of the official
    code. Each loop keeps its images of lowest loss.

    Departures. The official embeddings are a language model's of "a image of <class>"; give such by file, or have
    fixed orthogonal vectors drawn, which say that classes differ and not how. The official warm-up has 10 loops an
    epoch, and 2 later; here every round has `loops`, so that its 20 epochs are 100 rounds of 2 loops. BN sees each
    class's embedding once (official: as often as the batch has it). The official code keeps a loop's first images
    where an earlier loop of its epoch had a lower loss.
    """

    paper = "Tran et al., CVPR 2024"
    ours = ("embedding", "batch", "loops", "warm_up", "warm_up_life")
    name: Literal["nayer"] = "nayer"
    hears = "labels"
    embeddings: Path | None = field(default=None, metadata={"identity": "content"})
    """A safetensors file whose tensor `embeddings` (K, E) has a row a class, in the order of the labels; a worker must
    be able to read it. Where it lies does not count; its content does. None: orthogonal vectors are drawn."""
    embedding: int = 512
    """E of the drawn vectors (CLIP's has 512)."""
    steps: int = 30
    """Adam steps of a loop (30 for CIFAR-10, 40 for CIFAR-100)."""
    loops: int = 1
    """Inner loops a round (2 in the official scripts)."""
    batch: int = 128
    """Images of a loop (400 in the official scripts)."""
    latent: int = 1000
    width: int = 128
    """Channels of the generator's first stage."""
    lr: float = 4e-3
    bn_weight: float = 10.0
    oh_weight: float = 0.5
    adv_weight: float = 1.33
    bn_momentum: float = 0.9
    """Share of remembered BN statistics in the matched ones."""
    life: int = 10
    """Rounds after which a new generator is drawn, counted from the end of the warm-up (10 epochs in the official
    scripts)."""
    warm_up_life: int | None = None
    """The same for the rounds of the warm-up; `life` if null. 10 official epochs of 10 loops are 50 rounds of 2."""
    shift: float = 0.125
    """Largest random shift before the teacher, as a share of the side; with a flip where it keeps the class."""
    warm_up: int = 0  # type: ignore[assignment]
    """Rounds at the beginning that only synthesise, without A (20 epochs of 10 loops in the official scripts)."""

    def __post_init__(self) -> None:
        least = {"embedding": 1, "steps": 1, "loops": 1, "batch": 2, "life": 1, "warm_up": 0}
        for what, bound in least.items():
            require(getattr(self, what) >= bound, f"inversion {what}", getattr(self, what), f"an integer >= {bound}")
        lives = self.warm_up_life is None or self.warm_up_life >= 1
        require(lives, "inversion warm_up_life", self.warm_up_life, "null, or an integer >= 1")
        require(0 <= self.bn_momentum < 1, "bn_momentum", self.bn_momentum, "0 <= momentum < 1")
        require_shift(self.shift, "inversion shift")

    @property
    def images_per_round(self) -> int:
        """One batch a loop."""
        return self.loops * self.batch

    def init(self, teacher: Teacher, rng: Streams) -> NayerState:
        """A generator from stream `init/generator`, embeddings from the file or stream `init/embeddings`.

        Raises `InputError` for a teacher without BN, and for a file that has not one finite row for each class.
        """
        require_bn(teacher)
        if self.embeddings is None:
            with rng.forked("init/embeddings"):
                embeddings = nn.init.orthogonal_(torch.empty(teacher.num_classes, self.embedding))
        else:
            embeddings = read_embeddings(self.embeddings, teacher.num_classes)
        embeddings = embeddings.to(teacher.device)
        return NayerState(self._generator(embeddings, teacher, rng, "init/generator"), embeddings)

    def _generator(self, embeddings: Tensor, teacher: Teacher, rng: Streams, stream: str) -> NamedGenerator:
        size = (embeddings.shape[1], self.latent, self.width, teacher.image_shape)
        return drawn(lambda: NamedGenerator(*size), stream, teacher.device, rng)

    def run(self, state: NayerState, targets: Targets, now: Round) -> tuple[Samples, Metrics]:
        """`loops` times `steps` steps of the generator and of noisy layers from stream `latents`."""
        if self._ends(state.round):
            stream = f"init/generator/{state.round + 1}"
            state.generator = self._generator(state.embeddings, now.teacher, now.rng, stream)
        state.round += 1
        parts = dealt(targets.labels, self.loops)
        made = [self._loop(state, part, replace(now, lowest=Lowest())) for part in parts]
        return unseen(torch.cat(made), torch.cat(parts)), now.meter.read()

    def _ends(self, round: int) -> bool:
        """Whether a generator's life ends before the round after `round` others."""
        if 0 < round < self.warm_up:
            return round % (self.warm_up_life or self.life) == 0
        return round > 0 and (round - self.warm_up) % self.life == 0

    def _loop(self, state: NayerState, labels: Tensor, now: Round) -> Tensor:
        """Normalised images (B, C, H, W) of `labels` (B,), those of the step of lowest loss."""
        places, count = occurrences(labels, now.teacher.num_classes)
        shape = (count, self.latent, state.embeddings.shape[1])
        bias = torch.zeros(shape[:2], device=now.rng.device)
        noisy = NoisyLayers(now.latents(*shape).requires_grad_(), bias.requires_grad_())
        leaves = [*state.generator.parameters(), *noisy]
        optimizer = torch.optim.Adam(leaves, self.lr, betas=(0.5, 0.999))
        rival = now.student if self.asks_student and state.round > self.warm_up else None
        bn_seen: BnStatistics = ()
        for _ in range(self.steps):
            images = now.teacher.normalise(state.generator(state.embeddings, noisy, labels, places))
            look = now.look(images, Targets(labels))
            bn = mix_bn(look.seen.bn, state.bn_memory, self.bn_momentum)
            terms = self.terms(look, bn=bn, teacher=now.teacher, student=rival)
            now.step(look, terms, leaves, optimizer.step, images)
            bn_seen = look.seen.detach().bn
        state.bn_memory = list(mix_bn(bn_seen, state.bn_memory, self.bn_momentum))
        return now.lowest.kept[0]


def dealt(labels: Tensor, loops: int) -> list[Tensor]:
    """Labels (B,) in so many parts, each class as evenly as may be, and each part in their order. No host copy."""
    order = labels.argsort(stable=True)
    return [labels[order[first::loops].sort().values] for first in range(loops)]


def occurrences(labels: Tensor, num_classes: int) -> tuple[Tensor, int]:
    """How many earlier images have the same class, (B,), and R. One host copy."""
    seen = F.one_hot(labels, num_classes).cumsum(0)
    return seen.gather(1, labels[:, None]).squeeze(1) - 1, int(seen[-1].max())


def read_embeddings(path: Path, num_classes: int) -> Tensor:
    """(K, E) float32 from a file. Raises `InputError` where it has not one finite row for each class."""
    found = read_weights(path).get(EMBEDDINGS)
    shape = None if found is None else tuple(found.shape)
    accepted = f"({num_classes}, E), a row for each class"
    fits = shape is not None and len(shape) == 2 and shape[0] == num_classes and shape[1] > 0
    require(fits, f"shape of the tensor '{EMBEDDINGS}' in {path}", shape, accepted)
    assert found is not None
    require(bool(found.isfinite().all()), f"'{EMBEDDINGS}' in {path}", "not all finite", "finite values")
    return found.float()
