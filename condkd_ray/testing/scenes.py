"""A toy segmentation data set of rectangles on a textured ground, and a small teacher that trains in a second.

Letters: B, N images, C channels, H W height and width, K classes.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import MASK, UNLABELLED
from condkd_ray.data.datasets import RealImages
from condkd_ray.models.teacher import Teacher
from condkd_ray.testing.world import MEAN, NUM_CLASSES, STD

SCENE_SHAPE = (1, 12, 16)
"""C, H, W: not square, so that exchanged sides are noticed."""


def scenes(count: int, seed: int = 0) -> RealImages:
    """Return `count` images, uint8 (N, 1, 12, 16), of a rectangle of each of two of the classes 1 to 3 on class 0.

    The brightness of a pixel belongs to its class, with noise. The labels are int16 (N, 12, 16); the first row of
    pixels is unlabelled.
    """
    rng = torch.Generator().manual_seed(seed)
    _, height, width = SCENE_SHAPE
    labels = torch.zeros(count, height, width, dtype=torch.int64)
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    for half in range(2):
        top = torch.randint(1, 5, (count, 1, 1), generator=rng)
        left = torch.randint(0, 3, (count, 1, 1), generator=rng) + half * width // 2
        inside = (rows >= top) & (rows < top + 6) & (columns >= left) & (columns < left + 5)
        kind = (torch.arange(count) + half) % (NUM_CLASSES - 1) + 1
        labels = torch.where(inside, kind[:, None, None], labels)
    noise = 0.15 * torch.rand(count, height, width, generator=rng)
    pixels = (0.1 + 0.25 * labels + noise).clamp(0, 1)
    labels[:, 0] = UNLABELLED
    return RealImages(pixels.mul(255).to(torch.uint8).unsqueeze(1), labels.to(MASK))


class SceneNetwork(nn.Module):
    """Maps images (B, 1, H, W) to logits (B, K, H, W): two stages of convolutions, a 1x1 convolution, enlargement."""

    def __init__(self) -> None:
        super().__init__()

        def stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
            layers = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.LeakyReLU(0.1)
            return nn.Sequential(*layers)

        self.stages = nn.Sequential(stage(1, 8, 1), stage(8, 16, 2))
        self.head = nn.Sequential(nn.Conv2d(16, 12, 3, 1, 1), nn.LeakyReLU(0.1))
        self.classifier = nn.Conv2d(12, NUM_CLASSES, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K, H, W)."""
        logits = self.classifier(self.head(self.stages(images)))
        return F.interpolate(logits, size=images.shape[2:], mode="bilinear", align_corners=False)


def _untrained() -> SceneNetwork:
    with Streams(0).forked("init/teacher"):
        return SceneNetwork()


@cache
def _weights() -> dict[str, Tensor]:
    """Return the weights of a trained teacher, which is trained once per process."""
    real = scenes(64, seed=1).samples(MEAN, STD)
    network = _untrained().train()
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    with torch.enable_grad():
        for _ in range(60):
            optimizer.zero_grad()
            F.cross_entropy(network(real.images), real.labels, ignore_index=UNLABELLED).backward()
            optimizer.step()
    return network.state_dict()


def make_dense_teacher() -> Teacher:
    """Return a trained teacher of the scenes. Teachers from different calls share no tensors."""
    network = _untrained()
    network.load_state_dict(_weights())
    shape, mean, std = SCENE_SHAPE, MEAN, STD
    return Teacher(network, num_classes=NUM_CLASSES, image_shape=shape, mean=mean, std=std, train_size=64, flip_ok=True)


def make_dense_student() -> nn.Module:
    """Return a student that predicts the teacher's classes with lower confidence.

    The difference gives adversarial loss terms a gradient.
    """
    student = make_dense_teacher().network.requires_grad_(True)
    with torch.no_grad():
        student.get_parameter("classifier.weight").mul_(0.5)
    return student.eval()
