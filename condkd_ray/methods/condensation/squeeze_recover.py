"""SRe2L's squeeze and recover (Yin et al., NeurIPS 2023): trains a network, then inverts it.

Settings follow the released code of SRe2L; the inversion is that of DeepInversion. SRe2L's third part, relabelling, is
replaced by the teacher's logits in each trial. Letters: K classes, C channels, H W height and width; a batch has one
image of each class.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from condkd_ray.core.method import Meter, require
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import Samples, to_model, unseen
from condkd_ray.core.view import OnStep, no_bar
from condkd_ray.data.augment import require_shift, resized_crop, roll_flip, shift_flip
from condkd_ray.methods.condensation.condensation import Condensation, train
from condkd_ray.methods.losses.inversion import bn_distance, total_variation
from condkd_ray.models.resnet import ResNet
from condkd_ray.models.teacher import Teacher

FIRST = 10.0
"""Factor of the first BN layer in the BN distance."""


@dataclass(frozen=True, kw_only=True)
class SqueezeRecover(Condensation):
    r"""Images that a trained network classifies as their class and whose BN statistics match its own.

    Image n of all classes is one batch, optimised separately from noise: CE(f(x), y) + bn (10 ||BN_1(x) - BN_1|| +
    \sum_{l>1} ||BN_l(x) - BN_l||) + tv TV(x). In every step each image x gets its own crop, and the whole batch is
    rolled and mirrored. So sets are nested over `ipc` by construction. Pixels are clamped to the valid range. SRe2L's
    code rolls the batch in the same way; it crops and mirrors the batch as a whole, and not at all for CIFAR. It trains
    on crops of [0, 1] pixels, so black moves in there. A crop for each image, and mirroring, are our choice. Digits
    without shifts (`shift` 0), test accuracy of a ConvNet trained on hard labels of 10 images per class only: 0.869,
    less than the 0.949 of random real ones (3 seeds, standard deviations 0.04 and 0.02); this does not include the
    paper's soft labels. The figures at `bn_weight` and `least_crop` are without shifts too.

    With `squeeze: teacher` it is a control: the recovered images contain no information beyond the teacher's own, and
    records name it "squeeze_recover (of the teacher)".
    """

    paper = "Yin et al., NeurIPS 2023"
    ours = ("squeeze", "network", "epochs", "batch", "train_lr", "iterations", "bn_weight", "least_crop", "shift")
    code_version = 4
    """2: black moves in while squeezing, and the batch is rolled while recovering. 3: different last bits of BN."""
    name: Literal["squeeze_recover"] = "squeeze_recover"
    squeeze: Literal["own", "teacher"] = "own"
    """Invert an own network, trained on the real images, or the teacher that the images will guide."""
    network: ResNet = ResNet(depth=8, width=16)
    """The own network; of the available architectures, those with BN. Unused with `squeeze: teacher`, as are its
    training settings."""
    epochs: int = 20
    """Training epochs of the own network: SGD with momentum 0.9 and weight decay 5e-4, shifts and mirror images."""
    batch: int = 64
    """Images per training step."""
    train_lr: float = 0.1
    """Learning rate of the training, which decays linearly to 0."""
    iterations: int = 200
    """Adam steps per image (1000 in SRe2L's code, 4000 in its README)."""
    lr: float = 0.1
    """Learning rate of the pixels, which decays to 0 by half a cosine (as in DeepInversion's ImageNet code, without its
    warm-up)."""
    bn_weight: float = 0.1
    """Weight of the BN distance (0.05 or 0.01 in SRe2L's code, for images of 224x224). The best of 0.03, 0.1 and 0.3 on
    validation images of digits: mean accuracy of a ConvNet trained on 1 and on 5 images per class only 0.652, 0.692 and
    0.597 (seeds 100 and 101). If it is too large, the images lose their class."""
    tv_weight: float = 1e-4
    """Weight of the total variation, on normalised images."""
    least_crop: float = 1.0
    """Smallest share of an image's area in a crop (0.5 in SRe2L's code); 1: no crops. Our network is not trained on
    crops, and a crop of an 8x8 digit is no digit: 0.490 with 0.5, measured in the same way as `bn_weight`."""
    shift: float = 0.0625
    """Largest shift as a share of the side, in training and in the inversion: 2 pixels of 32, 1 of 8. In the inversion
    of SRe2L's code: 0 to 4 of 32 (CIFAR), -4 to 4 of 64 (Tiny-ImageNet), 0 to 32 of 224 (ImageNet). Too much for digits
    of 8x8: test accuracy of a ConvNet trained on 10 images per class only 0.496 with 1 pixel, 0.832 with 0 (3
    seeds)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("epochs", "iterations"):
            require(getattr(self, field) >= 1, f"condensation.{field}", getattr(self, field), "1 or more")
        require(self.batch >= 2, "condensation.batch", self.batch, "2 or more, for batch normalisation")
        for field in ("train_lr", "lr"):
            rate = getattr(self, field)
            require(0 < rate < math.inf, f"condensation.{field}", rate, "more than 0, and finite")
        for field in ("bn_weight", "tv_weight"):
            weight = getattr(self, field)
            require(0 <= weight < math.inf, f"condensation.{field}", weight, "0 or more, and finite")
        require(0 < self.least_crop <= 1, "condensation.least_crop", self.least_crop, "0 < share <= 1")
        require_shift(self.shift, "condensation.shift")

    @property
    def needs_teacher(self) -> bool:
        """True if the teacher is inverted."""
        return self.squeeze == "teacher"

    @property
    def label(self) -> str:
        """The name, which shows if the teacher is inverted."""
        return f"{self.name} (of the teacher)" if self.needs_teacher else self.name

    def check_teacher(self, teacher: Teacher) -> None:
        """Raise `InputError` if the teacher is to be inverted and has no BN."""
        accepted = "1 or more, as in resnet-8-16; or condensation.squeeze own"
        number = len(teacher.bn_inputs)
        require(not self.needs_teacher or number > 0, "number of the teacher's BN layers to invert", number, accepted)

    def condense(
        self,
        real: Samples,
        *,
        num_classes: int,
        flip_ok: bool,
        rng: Streams,
        on_step: OnStep = no_bar,
        teacher: Teacher | None = None,
        **scale: Any,
    ) -> Samples:
        """Train a network, or use `teacher` if `needs_teacher`; invert it `ipc` times, for one image of each class.

        Raises `InputError` if the teacher has no BN, and `NonFiniteError` if training or inversion diverges.
        """
        if not self.needs_teacher:
            teacher = self._squeeze(real, num_classes, rng, flip_ok=flip_ok, **scale)
        assert teacher is not None, "needs_teacher"
        self.check_teacher(teacher)
        made = [self._recover(number, teacher, rng, on_step) for number in range(self.ipc)]
        images = torch.stack(made, dim=1)
        labels = torch.arange(num_classes, device=rng.device).repeat_interleave(self.ipc)
        return unseen(images.flatten(0, 1).contiguous(), labels)

    def _squeeze(self, real: Samples, num_classes: int, rng: Streams, *, flip_ok: bool, **scale: Any) -> Teacher:
        """Train this method's own network; return it as a teacher. `scale`: `mean` and `std` of the normalisation."""
        channels, height, width = real.images.shape[1:]
        with rng.forked("init/squeezed"):
            network = self.network.build((channels, height, width), num_classes).to(real.images.device)
        black = to_model(real.images.new_zeros(1, channels, 1, 1), **scale)

        def jittered(images: Tensor) -> Tensor:
            return shift_flip(images, rng=rng["augment/squeeze"], share=self.shift, flip=flip_ok, black=black)

        recipe = {"batch": self.batch, "lr": self.train_lr, "momentum": 0.9, "weight_decay": 5e-4, "linear_decay": True}
        train(network, real, epochs=self.epochs, **recipe, augment=jittered, rng=rng["squeeze"])
        shape, size = (channels, height, width), len(real)
        scale = {name: tuple(values) for name, values in scale.items()}
        return Teacher(network, num_classes=num_classes, image_shape=shape, train_size=size, flip_ok=flip_ok, **scale)

    def _recover(self, number: int, teacher: Teacher, rng: Streams, on_step: OnStep) -> Tensor:
        """Return image `number` of each class (K, C, H, W), from its own streams."""
        labels, draw = torch.arange(teacher.num_classes, device=rng.device), rng[f"recover/{number}"]
        images = torch.randn((len(labels), *teacher.image_shape), generator=draw, device=rng.device)
        darkest, brightest = (teacher.normalise(torch.full_like(images[:1, :, :1, :1], v)) for v in (0.0, 1.0))
        images = torch.minimum(torch.maximum(images, darkest), brightest).requires_grad_()
        optimizer = torch.optim.Adam([images], self.lr, betas=(0.5, 0.9))
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda n: (1 + math.cos(math.pi * n / self.iterations)) / 2
        )
        meter = Meter("condensation")
        for iteration in range(self.iterations):
            view = images
            if self.least_crop < 1:
                view = resized_crop(view, rng=draw, scale=(self.least_crop, 1.0), flip=False)
            seen = teacher.observe(roll_flip(view, rng=draw, share=self.shift, flip=teacher.flip_ok))
            ce = F.cross_entropy(seen.logits, labels)
            bn, tv = bn_distance(seen.bn, *teacher.bn, FIRST), total_variation(images)
            loss = ce + self.bn_weight * bn + self.tv_weight * tv
            (images.grad,) = torch.autograd.grad(loss, [images])
            optimizer.step()
            scheduler.step()
            with torch.no_grad():
                images.copy_(torch.minimum(torch.maximum(images, darkest), brightest))
            meter.add(ce=ce, bn=bn, tv=tv)
            on_step(number * self.iterations + iteration + 1, self.ipc * self.iterations)
        meter.read()  # raises if a loss was not finite, naming the term
        return images.detach()
