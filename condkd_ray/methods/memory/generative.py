"""PRE-DFKD's generative memory (Binici et al., AAAI 2022, arXiv 2201.03019): the past lives in a VAE, not in images.

Networks, losses, rates and shares: `methods.md` 2.2 to 2.4 (read in the authors' released code).
Letters: B batch, C channels, H W height and width, K classes, Z latent size.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from condkd_ray.core.method import Meter, Metrics, require, require_rates, require_weights
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import Samples
from condkd_ray.methods.losses.inversion import class_prior, negative_entropy
from condkd_ray.methods.memory.memory import Draw, IdQueue, ReplayMemory, gathered, interleaved
from condkd_ray.methods.memory.store import Store
from condkd_ray.models.generator import SMALLEST, vae
from condkd_ray.models.network import drawn
from condkd_ray.models.teacher import Teacher


@dataclass
class GenerativeState:
    """The VAE with its optimiser, and the ids of the round just made."""

    encoder: nn.Module
    decoder: nn.Module
    optimizer: torch.optim.Optimizer
    fresh: IdQueue


@dataclass(frozen=True, kw_only=True)
class Generative(ReplayMemory[GenerativeState]):
    r"""A VAE learns each round's images together with its own recollections of the rounds before.

    It minimises mean|x' - x| + logits mean|f_T(x') - f_T(x)| + kl KL(q(z|x) || N(0, I)); the teacher-aware term is
    there because synthetic images lose their class under a loss of pixels alone. A recalled latent starts from N(0, I)
    and takes one Adam step on ie \sum_c p_c log10 p_c + oh CE(f_T(x), argmax f_T(x)) + the distance of the latents'
    batch moments from 0 and 1, so that all classes are recalled.

    Departure: the VAE's steps happen when a round's images come; the official code takes one in each of the first 4 of
    every 10 student steps, on the images of that very step. Stream `replay` has all of its draws.
    """

    paper = "Binici et al., AAAI 2022"
    ours = ("steps", "batch", "latent", "width", "statistics")
    reads_logits = False
    name: Literal["generative"] = "generative"
    steps: int = 8
    """VAE steps a round: 4 for every 10 of the student's, which are 20."""
    batch: int = 64
    """Fresh images a VAE step, half of a student's batch as officially (512 of 1024); drawn with replacement."""
    replay: float = 0.25
    """Recalled images beside each fresh one in a VAE step (128 beside 512), from the second round on."""
    share: float = 1 / 9
    """Share of each draw that is recalled."""
    latent: int = 128
    """1000 in the official code."""
    width: int = 64
    """Channels of the decoder's first stage; the official one has 128."""
    lr: float = 5e-4
    """Of Adam for encoder and decoder."""
    lr_recall: float = 0.02
    """Of the one Adam step of recalled latents."""
    statistics: Literal["batch", "running"] = "batch"
    """Of the decoder's BN layers in recall: the recalled batch's own, or running ones as in the official code. These
    are of encoded images; where codes lie off N(0, I), all that they recall is alike (`experiments/LOG.md`)."""
    logits_weight: float = 1.0
    """Of the teacher-aware reconstruction; 0 is the paper's ablation of it."""
    kl_weight: float = 1e-5
    ie_weight: float = 5.0
    oh_weight: float = 1.0

    def __post_init__(self) -> None:
        for what, least in {"steps": 1, "batch": 2, "latent": 1, "width": 2}.items():
            value = getattr(self, what)
            require(value >= least, f"generative {what}", value, f"an integer >= {least}")
        require(0 <= self.share <= 1, "generative share", self.share, "0 <= share <= 1")
        require(0 <= self.replay < math.inf, "generative replay", self.replay, ">= 0, and finite")
        require_weights(self, "generative")
        require_rates(self, "generative")

    def init(self, teacher: Teacher, rng: Streams) -> GenerativeState:
        """A VAE from stream `init/replay`. Raises `InputError` for images its encoder cannot halve three times."""
        side = min(teacher.image_shape[1:])
        accepted = f"{SMALLEST} or more; or another memory: latest, growing, reservoir, bank"
        require(side >= SMALLEST, "shortest side of images for memory generative", side, accepted)
        size = (self.latent, self.width, teacher.image_shape)
        encoder, decoder = drawn(lambda: nn.ModuleList(vae(*size)), "init/replay", teacher.device, rng)
        optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], self.lr, fused=True)
        return GenerativeState(encoder, decoder, optimizer, IdQueue())

    def add(self, state: GenerativeState, store: Store, samples: Samples, *, teacher: Teacher, rng: Streams) -> Metrics:
        """`steps` VAE steps, whose mean terms it gives; then fresh ids replace the last round's.

        Raises `NonFiniteError` naming a term of the VAE, before anything is kept.
        """
        images, meter = samples.images.to(teacher.device), Meter("memory")
        recalled = round(self.replay * self.batch) if len(state.fresh.ids) else 0
        for _ in range(self.steps):
            rows = torch.randint(len(images), (self.batch,), generator=rng["replay"], device=images.device)
            batch = images[rows]
            if recalled:
                batch = torch.cat([batch, self._recall(state, recalled, teacher=teacher, rng=rng)])
            meter.add(**self._step(state, batch, teacher=teacher, rng=rng))
        metrics = meter.read()
        store.drop(state.fresh.ids)
        state.fresh = IdQueue(store.append(samples))
        return metrics

    def draw(self, state: GenerativeState, store: Store, count: int, *, teacher: Teacher, rng: Streams) -> Draw:
        """Recalled samples, of ids -1, evenly among fresh ones; any front of them has about its share of both."""
        recalled = round(self.share * count)
        fresh = gathered(store, state.fresh.take(count - recalled, rng))
        if not recalled:
            return fresh
        images = self._recall(state, recalled, teacher=teacher, rng=rng)
        with torch.no_grad():
            logits = teacher.logits(images)
        old = Samples(images, logits.argmax(1), logits)
        return interleaved(fresh, Draw(old, torch.full((recalled,), -1), torch.ones(recalled, device=teacher.device)))

    def live(self, state: GenerativeState) -> Tensor:
        """This round's ids."""
        return state.fresh.ids

    def held_bytes(self, state: GenerativeState) -> int:
        """Of parameters and buffers of encoder and decoder, and of Adam's state: all that the next round needs.

        Sizes of PRE-DFKD's memory as others give them are of the network alone, about a third of it.
        """
        moments = [tensor for entry in state.optimizer.state.values() for tensor in entry.values()]
        held = [*state.encoder.state_dict().values(), *state.decoder.state_dict().values(), *moments]
        return sum(tensor.nbytes for tensor in held)

    def recall_loss(self, state: GenerativeState, latents: Tensor, *, teacher: Teacher) -> Tensor:
        """What the latents (B, Z) of recalled images are moved to lower."""
        logits = teacher.logits(self.decode(state, latents))
        return recall_loss(logits, latents, ie_weight=self.ie_weight, oh_weight=self.oh_weight)

    def decode(self, state: GenerativeState, latents: Tensor) -> Tensor:
        """Latents (B, Z) to images (B, C, H, W); the decoder's buffers stay as they are."""
        if self.statistics == "running":
            return state.decoder.eval()(latents)
        buffers = {name: buffer.clone() for name, buffer in state.decoder.named_buffers()}
        return functional_call(state.decoder.train(), buffers, (latents,))

    def latents(self, state: GenerativeState, count: int, *, teacher: Teacher, rng: Streams) -> Tensor:
        """(count, Z): where recalled images are decoded from, N(0, I) and one Adam step on `recall_loss`."""
        latents = torch.randn(count, self.latent, generator=rng["replay"], device=teacher.device).requires_grad_()
        # Of the latents alone: the decoder collects no gradients here.
        latents.grad = torch.autograd.grad(self.recall_loss(state, latents, teacher=teacher), latents)[0]
        torch.optim.Adam([latents], self.lr_recall).step()
        return latents.detach()

    @torch.no_grad()
    def _recall(self, state: GenerativeState, count: int, *, teacher: Teacher, rng: Streams) -> Tensor:
        """`count` images (B, C, H, W) of the past."""
        with torch.enable_grad():
            latents = self.latents(state, count, teacher=teacher, rng=rng)
        return self.decode(state, latents)

    def _step(self, state: GenerativeState, images: Tensor, *, teacher: Teacher, rng: Streams) -> dict[str, Tensor]:
        """One step of encoder and decoder on `images` (B, C, H, W); its terms."""
        mean, log_var = state.encoder.train()(images)
        noise = torch.randn(mean.shape, generator=rng["replay"], device=mean.device)
        rebuilt = state.decoder.train()(mean + (log_var / 2).exp() * noise)
        with torch.no_grad():
            wanted = teacher.logits(images)
        pixels, kl = F.l1_loss(rebuilt, images), divergence(mean, log_var)
        logits = F.l1_loss(teacher.logits(rebuilt), wanted)
        (pixels + self.logits_weight * logits + self.kl_weight * kl).backward()
        state.optimizer.step()
        state.optimizer.zero_grad()
        return {"reconstruction": pixels, "logits": logits, "kl": kl}


def divergence(mean: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(mean, exp log_var) || N(0, I)), (B, Z) and (B, Z): a sum over the latent, the mean over the batch."""
    return -0.5 * (1 + log_var - mean.square() - log_var.exp()).sum(1).mean()


def off_normal(latents: Tensor) -> Tensor:
    """How far the (B, Z) latents' moments are from 0 and 1: MSE of the batch's variances plus MSE of its means.

    The variance is the unbiased one, as in the released code. Of a single latent, which has none, it is the biased one,
    0 (our choice).
    """
    return (latents.var(0, correction=min(1, len(latents) - 1)) - 1).square().mean() + latents.mean(0).square().mean()


def recall_loss(logits: Tensor, latents: Tensor, *, ie_weight: float, oh_weight: float) -> Tensor:
    """What latents (B, Z) decoded to images of these logits (B, K) should lower: all classes, each certain, normal."""
    oh = class_prior(logits, logits.argmax(1)).mean()
    return ie_weight * negative_entropy(logits) + oh_weight * oh + off_normal(latents)
