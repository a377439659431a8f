"""(f) Trains the teacher at full scale, in as many of the recipe's epochs as fit into the time."""

from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file

from condkd_ray.core.config import content_hash
from condkd_ray.core.method import require
from condkd_ray.core.rng import Streams
from condkd_ray.core.storage import writing
from condkd_ray.data.datasets import DataConfig, Dataset
from condkd_ray.methods.supervised import Supervised, TeacherConfig, as_teacher, bf16_pays
from condkd_ray.models.cost import cost_of
from condkd_ray.models.teacher import Teacher
from condkd_ray.trial.artifacts import Workshop
from condkd_ray.trial.config import TrialConfig
from condkd_ray.trial.evaluation import accuracy
from gpu.parts import Box, Setup, SkippedError, Verdict
from gpu.timing import milliseconds, peak_tflops

CIFAR10 = (10, (3, 32, 32), 50_000, 10_000)
"""Classes, image shape, train and test images of the data set to which the goals apply."""
GOAL = 0.95
"""Goal: share of correctly classified test images."""
TRIED = 10_000
"""Number of images with which the time of an epoch is estimated."""
RESERVE = 0.8
"""Share of the remaining time that the epochs may take by that estimate."""
MORE = 1.1
"""A teacher with fewer epochs than the recipe is retrained if this many times its epochs fit (our choice). Estimates
vary a little, and (g) has to restart with another teacher."""
MEASUREMENTS = 8
"""Number of times that the accuracy is measured during training."""


def data_config(setup: Setup) -> DataConfig:
    """Return the config of the training data. Raises `SkippedError` if it needs --data-root and has none."""
    if setup.data_root is not None:
        return DataConfig(name="cifar10", root=setup.data_root)
    if setup.sizes.data.name == "cifar10":
        raise SkippedError("needs CIFAR-10: --data-root")
    return setup.sizes.data


@cache
def workshop(work: Path, device: str) -> Workshop:
    """Return the workshop that all parts share, so that data are read once."""
    return Workshop(work / "cache", device=device)


def read(setup: Setup) -> Dataset:
    """Return the data. Raises `SkippedError` as `data_config` does, `InputError` if --data-root is not CIFAR-10."""
    found = workshop(setup.work, str(setup.device)).data(TrialConfig(data=data_config(setup)))
    if setup.data_root is not None:
        there = (found.num_classes, found.image_shape, len(found.train), len(found.test))
        count = 2 if setup.sizes.tiny else len(there)
        require(there[:count] == CIFAR10[:count], "data in --data-root", there, f"CIFAR-10, {CIFAR10}")
    return found


class Kept(NamedTuple):
    """A trained teacher: the path of its weights, its number of epochs, and the recipe's number."""

    path: Path
    epochs: int
    of: int

    @property
    def text(self) -> str:
        """Description for messages."""
        return f"teacher of {self.epochs} of {self.of} epochs"


def weights_path(setup: Setup, dataset: Dataset, epochs: int | str) -> Path:
    """Return the path of a teacher's weights, named by recipe, data and number of epochs."""
    name = content_hash([setup.sizes.teacher, dataset.digest])[:16]
    return setup.work / f"teacher-{name}-epochs-{epochs}.safetensors"


def kept(setup: Setup, dataset: Dataset) -> Kept | None:
    """Return the stored teacher with the most epochs; None if there is none."""
    pattern, of = weights_path(setup, dataset, "*"), setup.sizes.teacher.training.epochs
    found = {int(path.stem.rpartition("-")[2]): path for path in pattern.parent.glob(pattern.name)}
    return Kept(found[max(found)], max(found), of) if found else None


def teacher(setup: Setup, box: Box) -> Verdict:
    """Train a teacher, or reuse a stored one with as many epochs; note accuracy, speed and share of the peak."""
    dataset = read(setup)
    box.note("data", {"train": len(dataset.train), "test": len(dataset.test), "notes": list(dataset.notes)})
    training = Training(setup, dataset, setup.sizes.teacher)
    there = kept(setup, dataset)
    epochs = training.planned(box, there)
    if there is not None and epochs <= there.epochs:
        network, one = training.network(), there
        network.load_state_dict(load_file(there.path))
        box.note("reused", str(there.path))
    else:
        network = training.run(box, epochs)
        one = Kept(weights_path(setup, dataset, epochs), epochs, training.recipe.training.epochs)
        with writing(one.path) as fresh:
            save_file({name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}, fresh)
    box.note("epochs", {"trained": one.epochs, "of_the_recipe": one.of})
    found = accuracy(network, dataset.test, training.reader())
    box.note("test_accuracy", found)
    return setup.verdict(found >= GOAL, f"{found:.2%} of {len(dataset.test)} test images, {one.text}", f"{GOAL:.0%}")


@dataclass(frozen=True)
class Training:
    """The recipe with its data."""

    setup: Setup
    dataset: Dataset
    recipe: TeacherConfig

    def network(self) -> torch.nn.Module:
        """Return an untrained network on the device."""
        module = self.recipe.build(self.dataset).to(self.setup.device)
        return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def reader(self) -> Teacher:
        """Return a teacher that provides normalisation and device; its weights do not matter."""
        return as_teacher(self.network(), self.dataset)

    def planned(self, box: Box, there: Kept | None) -> int:
        """Return the number of epochs: that of the teacher `there`, unless `MORE` times as many fit.

        Raises `SkippedError` if not even one epoch fits and there is no teacher.
        """
        whole, known = self.recipe.training.epochs, 0 if there is None else there.epochs
        if known == whole:
            return whole
        epoch = self.epoch_seconds()
        fit = min(whole, int(RESERVE * box.left / epoch))
        box.note("estimate", {"epochs_that_fit": fit, "of_the_recipe": whole, "seconds_each": epoch})
        if not max(fit, known):
            raise SkippedError(f"time: an epoch takes {epoch:.1f} s")
        return fit if fit >= MORE * known else known

    def epoch_seconds(self) -> float:
        """Return the estimated seconds per epoch, measured on some of the images."""
        images, labels = self._images()
        tried = min(TRIED, len(images))
        once = replace(self.recipe.training, epochs=1)
        try_out = partial(self._train, once, images[:tried], labels[:tried], self.network())
        return milliseconds(try_out, self.setup.device, repeats=1, warm_up=1) / 1000 * len(images) / tried

    def _images(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the train images and labels, on the device."""
        return self.dataset.train.pixels.to(self.setup.device), self.dataset.train.labels.to(self.setup.device)

    def run(self, box: Box, epochs: int) -> torch.nn.Module:
        """Train a network for `epochs` epochs and return it."""
        network, training = self.network(), replace(self.recipe.training, epochs=epochs)
        call = partial(
            self._train, training, *self._images(), network, on_step=AccuracyNotes(self, network, box, epochs)
        )
        box.note("training", self._figures(milliseconds(call, self.setup.device, repeats=1, warm_up=0) / 1000, epochs))
        return network

    def _train(
        self,
        training: Supervised,
        images: torch.Tensor,
        labels: torch.Tensor,
        network: torch.nn.Module,
        on_step: Any = None,
    ) -> None:
        training.train(
            network,
            images,
            labels,
            mean=self.dataset.mean,
            std=self.dataset.std,
            flip_ok=self.dataset.flip_ok,
            rng=Streams(self.recipe.seed, self.setup.device),
            precision="bfloat16" if bf16_pays(self.setup.device) else "float32",
            **({} if on_step is None else {"on_step": on_step}),
        )

    def _figures(self, seconds: float, epochs: int) -> dict[str, float]:
        images = epochs * len(self.dataset.train)
        forward = cost_of(self.recipe.network, self.dataset.image_shape, self.dataset.num_classes).multiply_adds
        # Forward, and backward to weights and to inputs: three times as much; two operations per multiply-add.
        tflops = 6 * forward * images / seconds / 1e12
        found = {"seconds": seconds, "images_per_second": images / seconds, "tflops": tflops}
        peak = peak_tflops(self.setup.device)
        return found | ({"share_of_peak": tflops / peak} if peak else {})


@dataclass
class AccuracyNotes:
    """Callback of a training's steps that measures the test accuracy a few times."""

    training: Training
    network: torch.nn.Module
    box: Box
    epochs: int

    def __post_init__(self) -> None:
        self._every = -(-self.epochs // MEASUREMENTS)
        self._reader = self.training.reader()

    def __call__(self, step: int, total: int) -> None:
        """Measure the accuracy if `step` of `total` ends one of the chosen epochs."""
        each = total // self.epochs
        epoch, rest = divmod(step, each)
        if rest or epoch % self._every:
            return
        setup = self.training.setup
        # Under autocast, for speed; the final accuracy is measured without.
        with torch.autocast(setup.device.type, torch.bfloat16, enabled=bf16_pays(setup.device)):
            found = accuracy(self.network, self.training.dataset.test, self._reader)
        self.network.train()
        self.box.note(f"test_accuracy after epoch {epoch}", found)
