"""Sizes of the measurements: in full on a GPU, and tiny for testing the code."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from condkd_ray.core.config import read_tree
from condkd_ray.data.datasets import DataConfig
from condkd_ray.methods.inversion import Fast
from condkd_ray.methods.supervised import TeacherConfig
from condkd_ray.models import AnyNetwork, ResNet
from condkd_ray.models.deeplab import DeepLabResNet
from condkd_ray.models.torchvision import Torchvision
from condkd_ray.runs.presets import published, scaled, with_rounds
from condkd_ray.trial.config import TrialConfig, from_tree

RECIPE = Path(__file__).parents[2] / "search_spaces" / "teacher_resnet34.yaml"
"""Recipe of the teacher at full scale."""
CAMVID = RECIPE.with_name("camvid.yaml")
"""DFAD's recipe for segmentation."""
SHARE = 0.01
"""Share of DFAD's rounds that part (i) runs."""


@dataclass(frozen=True, kw_only=True)
class DenseSizes:
    """Recipe, shapes and numbers of images of part (i), segmentation."""

    recipe: TrialConfig
    """Networks and recipe; the student is evaluated after the last round only."""
    shape: tuple[int, int, int] = (3, 128, 128)
    classes: int = 11
    """Number of classes without CamVid."""
    guides: int = 10
    """Labelled images of the guided arm, in all."""
    tests: int = 233
    """Number of test images, as many as CamVid has."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Networks, shapes and numbers of repetitions."""

    tiny: bool
    """True if goals do not apply."""
    teacher: TeacherConfig
    student: AnyNetwork
    recipe: TrialConfig
    """The published recipe of part (g), without its data, networks and precision."""
    dense: DenseSizes
    data: DataConfig
    """Data used without --data-root; `cifar10` cannot be used without it."""
    shape: tuple[int, int, int] = (3, 32, 32)
    classes: int = 10
    gemm: int = 8192
    """Side of the square matrices."""
    copied: int = 2**31
    """Bytes of one device-to-device copy."""
    maps: tuple[tuple[int, int], ...] = ((64, 32), (128, 16), (256, 8), (512, 4))
    """Channels and side of the recipe's 3x3 convolutions."""
    batches: tuple[int, ...] = (256, 1024)
    compiled: bool = True
    """True if part (d) has compiled rows; compiling takes longer than all other tiny measurements."""
    chunks: tuple[int, ...] = (13, 50, 200)
    draw: int = 256
    """Images per draw, and per chunk."""
    repeats: int = 20
    student_steps: int = 5
    """Number of student steps that are timed together."""
    per_class: int = 10
    """Condensed images per class, in part (h)."""

    def fast(self, **changes: Any) -> TrialConfig:
        """Return the recipe with these networks and `changes` of other fields."""
        return replace(self.recipe, teacher=self.teacher, student=self.student, **changes)


def full() -> Sizes:
    """Return ResNet-34 -> ResNet-18 at the published sizes, with the teacher's recipe at full scale."""
    recipe = from_tree(read_tree(RECIPE), str(RECIPE))
    return Sizes(
        tiny=False,
        teacher=recipe.teacher,
        student=recipe.student,
        recipe=published("fast"),
        dense=DenseSizes(recipe=_dfad()),
        data=DataConfig(name="cifar10"),
    )


def _dfad() -> TrialConfig:
    """Return DFAD's recipe for CamVid with `SHARE` of its rounds, and torchvision's DeepLabV3 as student too."""
    recipe = from_tree(read_tree(CAMVID), str(CAMVID))
    short = with_rounds(recipe, round(SHARE * recipe.rounds))
    student = Torchvision(model="deeplabv3_mobilenet_v3_large")
    return replace(short, student=student, evaluate_every=short.rounds)


def _tiny_dense(dense: DenseSizes) -> DenseSizes:
    recipe = dense.recipe
    recipe = replace(
        recipe,
        teacher=replace(recipe.teacher, network=DeepLabResNet(depth=8, width=4)),
        student=DeepLabResNet(depth=8, width=2),
        inversion=replace(recipe.inversion, batch=4, images_per_round=8, latent=16, width=8),  # type: ignore[call-arg]
        distiller=replace(recipe.distiller, steps=2, batch=4),
        rounds=3,
        evaluate_every=3,
    )
    return DenseSizes(recipe=recipe, shape=(3, 24, 32), classes=6, guides=3, tests=8)


def tiny() -> Sizes:
    """Return the same check with small networks, which takes a minute on one core."""
    base = full()
    fast = scaled(base.recipe, 0.0005)
    small = {"batch": 16, "latent": 16, "width": 8}
    inversion = replace(fast.inversion, steps=2, warm_up=1, **small) if isinstance(fast.inversion, Fast) else None
    assert inversion is not None
    return replace(
        base,
        tiny=True,
        teacher=replace(
            base.teacher, network=ResNet(depth=8, width=4), training=replace(base.teacher.training, epochs=2, batch=64)
        ),
        student=ResNet(depth=8, width=2),
        recipe=replace(fast, inversion=inversion, distiller=replace(fast.distiller, steps=3, batch=16)),
        dense=_tiny_dense(base.dense),
        data=DataConfig(name="digits"),
        shape=(3, 8, 8),
        gemm=64,
        copied=2**20,
        maps=((4, 8), (8, 4)),
        batches=(8, 16),
        compiled=False,
        draw=16,
        repeats=3,
        student_steps=2,
        per_class=2,
    )
