"""Supervised training of a network on labelled real images: a short recipe for teachers.

SGD with Nesterov momentum, a learning rate that rises and falls linearly, shifts and mirror images. Images stay uint8
in memory; each batch is moved, augmented and normalised as a whole, so that no data loader is needed. All of it is our
choice.

Measured with the defaults, seed 0, one core of a shared AMD EPYC with AVX-512 bfloat16 (fractions; CPU seconds):
CIFAR-10, resnet-14-16, bfloat16, 9 epochs of 40 000: 0.851 of 10 000 held out, 516 s. Fashion-MNIST, resnet-8-16,
bfloat16, 5 epochs of 50 000: 0.909 of 10 000 held out, 149 s. Digits 8x8, resnet-8-16, float32, 20 epochs of 1 000:
0.984 of 797, 2 s. bfloat16 halves the time of a CIFAR step; at 8x8 it saves a tenth. Segmentation, bfloat16, batch 16,
60 epochs (mean IoU): CamVid at 96x72 pixels, 367 images, deeplab_resnet-14-32, 0.376 of 233 test images, 224 s, and
deeplab_resnet-14-16, 0.367, 97 s; scenes, deeplab_resnet-14-16, 0.882 of 100 validation images, 30 s.

Letters: N images, B batch, C channels, H W height and width, K classes.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condkd_ray.core.compilation import Compile, check, clear_compiled, compiling, whole
from condkd_ray.core.method import Meter, Method, Metrics, NonFiniteError, require
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import UNLABELLED, to_model
from condkd_ray.core.task import BOTH, is_dense
from condkd_ray.core.view import OnStep, no_bar
from condkd_ray.data.augment import black_of, cutout, require_shift, shift_flip, split_labels, with_labels
from condkd_ray.data.datasets import Dataset
from condkd_ray.methods.recognition import choose, max_images_per_class, predicted_classes, recognition, some
from condkd_ray.methods.scores import PIXELS, constant_iou, mean_iou, predicted_confusion
from condkd_ray.models import AnyNetwork, ResNet
from condkd_ray.models.hooks import BatchNorms
from condkd_ray.models.network import label
from condkd_ray.models.teacher import Teacher

Precision = Literal["float32", "bfloat16"]
"""`bfloat16`: autocast of the network; weights, normalisation and loss stay float32."""


@dataclass(frozen=True, kw_only=True)
class Supervised(Method):
    """Supervised training by cross-entropy: per image, or in segmentation per pixel with a class."""

    tasks = BOTH
    epochs: int = 10
    """Passes over the train images."""
    batch: int = 128
    """Largest number of images per step: an epoch is split into steps of near-equal size."""
    lr: float | None = None
    """Peak learning rate. Null: 0.2 for networks with batch normalisation, else 0.05. At 0.2 LeNet-5 learnt nothing
    (train accuracy 0.111 on 28x28 digits, seed 0) or little (0.701, seed 1); at 0.05 0.993 and 0.994."""
    warmup: float = 0.2
    """Share of the steps in which the learning rate rises from 0; in the others it falls to 0."""
    momentum: float = 0.9
    """Nesterov momentum of SGD; 0: none."""
    weight_decay: float = 5e-4
    """Factor of the weights that is added to the gradient."""
    label_smoothing: float = 0.0
    """Share of the target probability that is spread evenly over all classes. 0.1 did not improve such a short training
    (0.665 against 0.680, CIFAR-10, 4 epochs of 16 000, one seed)."""
    shift: float = 0.125
    """Largest shift of an image, as a share of its side: 4 pixels of 32, 1 of 8; black moves in."""
    cutout: float = 0.0
    """Side of a square at a random position of each image that is set to the mean colour, as a share of the image's
    side; 0: none. Useful for long trainings. Labels of pixels are kept."""
    compile: Compile = "off"
    """Compilation of the forward pass and the loss of a step. It takes a minute or more before the first step; on a
    GPU, steps then need fewer launches and less memory traffic."""

    def __post_init__(self) -> None:
        require(self.epochs >= 1, "epochs of the teacher", self.epochs, "1 or more")
        require(self.batch >= 2, "batch of the teacher", self.batch, "2 or more, for batch normalisation")
        accepted = "a number > 0, or null"
        require(self.lr is None or 0 < self.lr < math.inf, "lr of the teacher", self.lr, accepted)
        require(0 <= self.momentum < 1, "momentum of the teacher", self.momentum, "0 <= momentum < 1")
        require(0 <= self.weight_decay < math.inf, "weight_decay of the teacher", self.weight_decay, ">= 0, and finite")
        smooth = self.label_smoothing
        require(0 <= smooth < 1, "label_smoothing of the teacher", smooth, "0 <= smoothing < 1")
        require(0 <= self.warmup <= 1, "warmup of the teacher", self.warmup, "0 to 1, a share of the steps")
        require_shift(self.shift, "shift of the teacher")
        require_shift(self.cutout, "cutout of the teacher")

    def train(
        self,
        network: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        flip_ok: bool,
        rng: Streams,
        precision: Precision = "float32",
        on_step: OnStep = no_bar,
    ) -> Metrics:
        """Train `network` in place and leave it in eval mode, its weights in channels-last format.

        Images, labels and weights stay on their device; the CPU waits for it once per epoch.

        Args:
            network: Maps (B, C, H, W) normalised images to (B, K) or (B, K, H, W) logits; on the device of `images`.
            images: (N, C, H, W) uint8.
            labels: (N,) int64, or (N, H, W) int16 with `UNLABELLED` for pixels that do not count.
            mean: Mean of the normalisation, per channel, in units of [0, 1] pixels.
            std: Standard deviation of the normalisation, likewise.
            flip_ok: Whether a mirrored image keeps its class.
            rng: Source of the streams "shuffle/teacher" and "augment/teacher".
            precision: Precision of the forward and backward passes.
            on_step: Called after each step with the number of steps done and of all steps of all epochs.

        Returns:
            `teacher/loss` and `teacher/train_accuracy` (fraction, of augmented images, or of their pixels with a class)
            of the last epoch.

        Raises:
            InputError: Images are not uint8, or nothing can be compiled here.
            NonFiniteError: At the end of the epoch in which the loss became NaN or infinite.
        """
        require(images.dtype == torch.uint8, "type of the training images", images.dtype, "torch.uint8")
        check(self.compile, graphs=False, device=images.device)
        network.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        autocast = partial(torch.autocast, images.device.type, torch.bfloat16, enabled=precision == "bfloat16")
        steps = -(-len(images) // self.batch)
        optimizer, scheduler = self._optimizer(network, self.epochs * steps, fused=images.is_cuda)
        metrics: Metrics = {}
        for epoch in range(1, self.epochs + 1):
            meter = Meter("teacher")
            batches = self._batches(images, labels, flip_ok=flip_ok, steps=steps, rng=rng)
            for step, (batch, target) in enumerate(batches, start=(epoch - 1) * steps + 1):
                network_input = self._with_cutout(to_model(batch, mean, std), rng)
                with autocast(), compiling(self.compile, graphs=False):
                    loss, accuracy = loss_and_accuracy(network, network_input, target, self.label_smoothing)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                scheduler.step()
                meter.add(loss=loss, train_accuracy=accuracy)
                on_step(step, self.epochs * steps)
            try:
                metrics = meter.read()
            except NonFiniteError as error:
                raise NonFiniteError(f"{error} of epoch {epoch}") from None
        network.eval()
        clear_compiled()
        return metrics

    def _optimizer(
        self, network: nn.Module, total: int, *, fused: bool
    ) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        """Return SGD of `network` and its schedule over `total` steps."""
        # A fused step is one launch on a GPU. On a CPU it changes the last bits, and cached teachers must not change.
        optimizer = torch.optim.SGD(
            network.parameters(),
            self._peak(network),
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.momentum > 0,
            fused=fused,
        )
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, self._triangle(total))

    def _with_cutout(self, images: Tensor, rng: Streams) -> Tensor:
        """Return normalised images with `cutout`, if it is set."""
        return cutout(images, rng=rng["augment/teacher"], share=self.cutout) if self.cutout else images

    def _peak(self, network: nn.Module) -> float:
        normalised = any(isinstance(layer, BatchNorms) for layer in network.modules())
        return (0.2 if normalised else 0.05) if self.lr is None else self.lr

    def _triangle(self, total: int) -> Callable[[int], float]:
        """Return the factor of the peak learning rate at each of `total` steps: linear up, linear down, never 0."""
        peak = self.warmup * total

        def factor(step: int) -> float:
            middle = min(step, total - 1) + 0.5  # the scheduler calls it once more after the last step
            return middle / peak if middle < peak else (total - middle) / (total - peak)

        return factor

    def _batches(
        self, images: Tensor, labels: Tensor, *, flip_ok: bool, steps: int, rng: Streams
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one epoch in random order: (B, C, H, W) float32 pixels in [0, 1] and int64 labels, (B,) or (B, H, W).

        Labels per pixel move with the image; pixels that move in are `UNLABELLED`.
        """
        order = torch.randperm(len(images), generator=rng["shuffle/teacher"], device=images.device)
        move = partial(shift_flip, rng=rng["augment/teacher"], share=self.shift, flip=flip_ok)
        black = torch.zeros(1, images.shape[1], 1, 1, device=images.device)
        for index in order.tensor_split(steps):
            if labels.ndim == 1:
                shifted, target = move(images[index], black=0), labels[index]
            else:
                both = with_labels(images[index].float(), labels[index])
                shifted, target = split_labels(move(both, black=black_of(black, both)))
            yield shifted.contiguous(memory_format=torch.channels_last).float() / 255, target


@whole
def loss_and_accuracy(network: nn.Module, images: Tensor, labels: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """Return the mean cross-entropy of `network` on images (B, C, H, W), and its accuracy.

    `labels` (B,), or (B, H, W) per pixel; both means leave out pixels that are `UNLABELLED`.
    """
    logits = network(images)
    loss = F.cross_entropy(logits.float(), labels, ignore_index=UNLABELLED, label_smoothing=smoothing)
    right = (logits.argmax(1) == labels).float()
    return loss, right.mean() if labels.ndim == 1 else right.sum() / (labels != UNLABELLED).sum().clamp(min=1)


@dataclass(frozen=True, kw_only=True)
class TeacherConfig(Method):
    """The teacher: trained here by `training` and cached, or loaded from a user's own `weights` or `module`."""

    network: AnyNetwork = ResNet(depth=8, width=16)
    """Architecture of a teacher that is trained here or whose `weights` are loaded."""
    training: Supervised = Supervised(epochs=40)
    """Recipe of a teacher that is trained here."""
    seed: int = 0
    """Seed of initialisation and training; not the trial's, so that all trials share one teacher."""
    weights: Path | None = field(default=None, metadata={"identity": False})
    """A safetensors or `.pt` file to load instead of training; `file.pt#ema` loads what is stored under the key `ema`.
    The file's content is part of the config's identity, its path is not."""
    module: str | None = None
    """`package.module:function`: a function that returns the teacher, either complete or without the `weights`, which
    are then loaded into it. `network` and `training` are ignored."""
    class_order: tuple[str, ...] | None = None
    """Names of the data's classes in the order of the teacher's outputs, if that differs from the data's order."""
    card: Path | None = field(default=None, metadata={"identity": False})
    """A JSON file that describes the weights, as `condkd export` writes it; a contradiction with the data is
    refused."""
    force: bool = field(default=False, metadata={"identity": False})
    """Accept a teacher of your own although the train images contradict it."""

    def __post_init__(self) -> None:
        without = "none without teacher.weights or teacher.module"
        require(self.loaded or self.class_order is None, "teacher.class_order", self.class_order, without)
        require(self.loaded or self.card is None, "teacher.card", str(self.card), f"{without}, which it describes")

    @property
    def label(self) -> str:
        """Name in tables: the architecture, or the function that returns the network."""
        return label(self.network) if self.module is None else self.module

    @property
    def loaded(self) -> bool:
        """True if the teacher is not trained here."""
        return self.weights is not None or self.module is not None

    def build(self, dataset: Dataset) -> nn.Module:
        """Return the untrained network for the images and classes of `dataset`."""
        with Streams(self.seed).forked("init/teacher"):
            return self.network.build(dataset.image_shape, dataset.num_classes)

    def train(self, network: nn.Module, dataset: Dataset, device: str, on_step: OnStep) -> dict[str, Tensor]:
        """Return the weights of `network` after training on the train images, in bfloat16 if `bf16_pays`.

        Raises `InputError` if it learnt nothing, so that it is neither distilled nor stored.
        """
        network = network.to(device)
        self.training.train(
            network,
            dataset.train.pixels.to(device),
            dataset.train.labels.to(device),
            mean=dataset.mean,
            std=dataset.std,
            flip_ok=dataset.flip_ok,
            rng=Streams(self.seed, device),
            precision="bfloat16" if bf16_pays(device) else "float32",
            on_step=on_step,
        )
        self._require_better_than_chance(network, dataset, device)
        return {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}

    def _require_better_than_chance(self, network: nn.Module, dataset: Dataset, device: str) -> None:
        """Raise `InputError` unless the balanced train accuracy is certainly above chance: see `recognition`.

        In segmentation, unless the mean IoU of some train images is above that of the best constant prediction.
        """
        if is_dense(dataset.task):
            return self._require_better_than_constant(network, dataset, device)
        checked = dataset.train[choose(dataset.train.labels, max_images_per_class(dataset.num_classes), seed=self.seed)]
        predictions = predicted_classes(network, checked, dataset.mean, dataset.std, device).cpu()
        found = recognition(predictions, checked.labels, dataset.num_classes)
        what = f"balanced train accuracy of teacher {label(self.network)} after training"
        remedy = (
            f"more than {1 / found.num_classes:.3f}, chance, by the 95 % interval of {len(checked)} images, which "
            f"begins at {found.low:.3f}: a smaller teacher.training.lr, or more epochs"
        )
        require(found.low > 1 / found.num_classes, what, round(found.share, 3), remedy)

    def _require_better_than_constant(self, network: nn.Module, dataset: Dataset, device: str) -> None:
        images = some(dataset.train, PIXELS, seed=self.seed)
        counts = predicted_confusion(network, images, dataset.mean, dataset.std, dataset.num_classes, device)
        found, least = mean_iou(counts).item(), constant_iou(counts)
        what = f"mean IoU of teacher {label(self.network)} on {len(images)} train images after training"
        remedy = "a smaller teacher.training.lr, or more epochs"
        accepted = f"more than {least:.3f}, that of the best constant prediction: {remedy}"
        require(found > least, what, round(found, 3), accepted)


def as_teacher(network: nn.Module, dataset: Dataset) -> Teacher:
    """Return the trained `network` as a teacher, with the properties of its train images.

    Raises `InputError` if it gives no logits for the images' task.
    """
    teacher = Teacher(
        network,
        num_classes=dataset.num_classes,
        image_shape=dataset.image_shape,
        mean=dataset.mean,
        std=dataset.std,
        train_size=len(dataset.train),
        flip_ok=dataset.flip_ok,
    )
    accepted = f"{dataset.task}, the task of the data set {dataset.name}"
    require(teacher.task == dataset.task, "task of the teacher", teacher.task, accepted)
    return teacher


def bf16_pays(device: torch.device | str = "cpu") -> bool:
    """Return whether `device` multiplies bfloat16 in hardware, so that autocast saves time.

    Otherwise PyTorch emulates it, slower than float32. A PyTorch that cannot report this (before 2.11) counts as no.
    ARM processors also count as no: not measured.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
