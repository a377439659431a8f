"""PRE-DFKD's generative memory (Binici et al., AAAI 2022, arXiv 2201.03019): replays a VAE's samples, stores no images.

Networks, losses, rates and shares follow the released code of PRE-DFKD. Letters: B batch, C channels, H W height and
width, K classes, Z latent size.
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
from condkd_ray.models.network import seeded_module
from condkd_ray.models.teacher import Teacher


@dataclass
class GenerativeState:
    """The VAE with its optimiser, and the ids of the latest round."""

    encoder: nn.Module
    decoder: nn.Module
    optimizer: torch.optim.Optimizer
    fresh: IdQueue


@dataclass(frozen=True, kw_only=True)
class Generative(ReplayMemory[GenerativeState]):
    r"""A VAE is trained on each round's images together with its own samples of earlier rounds (recalled images).

    It minimises mean|x' - x| + logits mean|f_T(x') - f_T(x)| + kl KL(q(z|x) || N(0, I)); the second term is needed
    because synthetic images lose their class under a pixel loss alone. The latent of a recalled image starts from N(0,
    I) and takes one Adam step on ie \sum_c p_c log10 p_c + oh CE(f_T(x), argmax f_T(x)) + the distance of the latents'
    batch moments from 0 and 1, so that all classes are recalled.

    Departure: the VAE's steps are taken when a round's images arrive; PRE-DFKD's code takes one in each of the first 4
    of every 10 student steps, on the images of the same step. All draws come from stream `replay`.
    """

    paper = "Binici et al., AAAI 2022"
    ours = ("steps", "batch", "latent", "width", "statistics")
    reads_logits = False
    name: Literal["generative"] = "generative"
    steps: int = 8
    """VAE steps per round: 4 per 10 student steps, as in PRE-DFKD's code; a round has 20 student steps by default."""
    batch: int = 64
    """Fresh images per VAE step, half of a student batch as in PRE-DFKD's code (512 of 1024); drawn with
    replacement."""
    replay: float = 0.25
    """Recalled images per fresh image in a VAE step (128 for 512), from the second round on."""
    share: float = 1 / 9
    """Share of each draw that is recalled."""
    latent: int = 128
    """Length of the VAE's latents (1000 in PRE-DFKD's code)."""
    width: int = 64
    """Channels of the decoder's first stage (128 in PRE-DFKD's code)."""
    lr: float = 5e-4
    """Learning rate of Adam for encoder and decoder."""
    lr_recall: float = 0.02
    """Learning rate of the one Adam step of recalled latents."""
    statistics: Literal["batch", "running"] = "batch"
    """Statistics of the decoder's BN layers in recall: those of the recalled batch, or running ones as in PRE-DFKD's
    code. Running statistics are of encoded images; if the codes are not distributed as N(0, I), all recalled images
    look alike (`experiments/LOG.md`)."""
    logits_weight: float = 1.0
    """Weight of the logit reconstruction; 0 is the paper's ablation."""
    kl_weight: float = 1e-5
    """Weight of the KL divergence between the latents and a standard normal distribution."""
    ie_weight: float = 5.0
    """Weight, for recalled latents, of the negative entropy of the mean class distribution of their images."""
    oh_weight: float = 1.0
    """Weight, for recalled latents, of the cross-entropy between predictions of their images and the argmax."""

    def __post_init__(self) -> None:
        for what, least in {"steps": 1, "batch": 2, "latent": 1, "width": 2}.items():
            value = getattr(self, what)
            require(value >= least, f"generative {what}", value, f"an integer >= {least}")
        require(0 <= self.share <= 1, "generative share", self.share, "0 <= share <= 1")
        require(0 <= self.replay < math.inf, "generative replay", self.replay, ">= 0, and finite")
        require_weights(self, "generative")
        require_rates(self, "generative")

    def init(self, teacher: Teacher, rng: Streams) -> GenerativeState:
        """Return a VAE from stream `init/replay`.

        Raises `InputError` for images that the encoder cannot halve three times.
        """
        side = min(teacher.image_shape[1:])
        accepted = f"{SMALLEST} or more; or another memory: latest, growing, reservoir, bank"
        require(side >= SMALLEST, "shortest side of images for memory generative", side, accepted)
        size = (self.latent, self.width, teacher.image_shape)
        encoder, decoder = seeded_module(lambda: nn.ModuleList(vae(*size)), "init/replay", teacher.device, rng)
        optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], self.lr, fused=True)
        return GenerativeState(encoder, decoder, optimizer, IdQueue())

    def add(self, state: GenerativeState, store: Store, samples: Samples, *, teacher: Teacher, rng: Streams) -> Metrics:
        """Take `steps` VAE steps, replace the latest round's ids, and return the means of the VAE's loss terms.

        Raises `NonFiniteError`, with the name of a term of the VAE, before anything is stored.
        """
        images, meter = samples.images.to(teacher.device), Meter("memory")
        recalled = round(self.replay * self.batch) if len(state.fresh.ids) else 0
        for _ in range(self.steps):
            rows = torch.randint(len(images), (self.batch,), generator=rng["replay"], device=images.device)
            batch = images[rows]
            if recalled:
                batch = torch.cat([batch, self.recall(state, recalled, teacher=teacher, rng=rng)])
            meter.add(**self.vae_step(state, batch, teacher=teacher, rng=rng))
        metrics = meter.read()
        store.drop(state.fresh.ids)
        state.fresh = IdQueue(store.append(samples))
        return metrics

    def draw(self, state: GenerativeState, store: Store, count: int, *, teacher: Teacher, rng: Streams) -> Draw:
        """Return recalled samples, with id -1, mixed evenly into fresh ones.

        Any first part of the draw has about the same share of both.
        """
        recalled = round(self.share * count)
        fresh = gathered(store, state.fresh.take(count - recalled, rng))
        if not recalled:
            return fresh
        images = self.recall(state, recalled, teacher=teacher, rng=rng)
        with torch.no_grad():
            logits = teacher.logits(images)
        old = Samples(images, logits.argmax(1), logits)
        return interleaved(fresh, Draw(old, torch.full((recalled,), -1), torch.ones(recalled, device=teacher.device)))

    def live(self, state: GenerativeState) -> Tensor:
        """Return the latest round's ids."""
        return state.fresh.ids

    def held_bytes(self, state: GenerativeState) -> int:
        """Return the bytes of encoder and decoder (parameters and buffers) and of Adam's state.

        The next round needs all of these bytes. Published sizes of PRE-DFKD's memory count the networks alone, about a
        third.
        """
        moments = [tensor for entry in state.optimizer.state.values() for tensor in entry.values()]
        held = [*state.encoder.state_dict().values(), *state.decoder.state_dict().values(), *moments]
        return sum(tensor.nbytes for tensor in held)

    def recall_loss(self, state: GenerativeState, latents: Tensor, *, teacher: Teacher) -> Tensor:
        """Return the loss that the latents (B, Z) of recalled images minimise."""
        logits = teacher.logits(self.decode(state, latents))
        return recall_loss(logits, latents, ie_weight=self.ie_weight, oh_weight=self.oh_weight)

    def decode(self, state: GenerativeState, latents: Tensor) -> Tensor:
        """Return the images (B, C, H, W) of latents (B, Z); the decoder's buffers are not changed."""
        if self.statistics == "running":
            return state.decoder.eval()(latents)
        buffers = {name: buffer.clone() for name, buffer in state.decoder.named_buffers()}
        return functional_call(state.decoder.train(), buffers, (latents,))

    def latents(self, state: GenerativeState, count: int, *, teacher: Teacher, rng: Streams) -> Tensor:
        """Return (count, Z) latents of recalled images: N(0, I) and one Adam step on `recall_loss`."""
        latents = torch.randn(count, self.latent, generator=rng["replay"], device=teacher.device).requires_grad_()
        # With respect to the latents only, so that the decoder collects no gradients.
        latents.grad = torch.autograd.grad(self.recall_loss(state, latents, teacher=teacher), latents)[0]
        torch.optim.Adam([latents], self.lr_recall).step()
        return latents.detach()

    @torch.no_grad()
    def recall(self, state: GenerativeState, count: int, *, teacher: Teacher, rng: Streams) -> Tensor:
        """Return `count` recalled images (B, C, H, W)."""
        with torch.enable_grad():
            latents = self.latents(state, count, teacher=teacher, rng=rng)
        return self.decode(state, latents)

    def vae_step(self, state: GenerativeState, images: Tensor, *, teacher: Teacher, rng: Streams) -> dict[str, Tensor]:
        """Take one step of encoder and decoder on `images` (B, C, H, W); returns its loss terms."""
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
    """Return KL(N(mean, exp log_var) || N(0, I)) of two (B, Z): the sum over the latent, the mean over the batch."""
    return -0.5 * (1 + log_var - mean.square() - log_var.exp()).sum(1).mean()


def off_normal(latents: Tensor) -> Tensor:
    """Return the distance of the moments of latents (B, Z) from 0 and 1: MSE of the variances plus MSE of the means.

    The variance is unbiased, as in PRE-DFKD's code. For a single latent, which has no unbiased variance, it is the
    biased one, 0 (our choice).
    """
    return (latents.var(0, correction=min(1, len(latents) - 1)) - 1).square().mean() + latents.mean(0).square().mean()


def recall_loss(logits: Tensor, latents: Tensor, *, ie_weight: float, oh_weight: float) -> Tensor:
    """Return the loss of latents (B, Z) whose images have these logits (B, K).

    It is low if the classes are balanced, each prediction is certain, and the latents are normal.
    """
    oh = class_prior(logits, logits.argmax(1)).mean()
    return ie_weight * negative_entropy(logits) + oh_weight * oh + off_normal(latents)
