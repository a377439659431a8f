"""(f) The teacher at full scale: its recipe, in as many epochs as fit into the time."""

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
"""Classes, shape, train and test images: what the goals are of."""
GOAL = 0.95
"""Share of the test images."""
TRIED = 10_000
"""Images by which the time of an epoch is estimated."""
RESERVE = 0.8
"""Share of the time left that the epochs may take by that estimate."""
MORE = 1.1
"""A teacher of fewer epochs than the recipe's is trained anew where so many times as many fit (our choice): with
another teacher (g) begins anew, and an estimate differs a little from the last."""
LOOKS = 8
"""Times at which the accuracy is measured during the training."""


def data_config(setup: Setup) -> DataConfig:
    """What is trained on. Raises `SkippedError` where that has to be given and is not."""
    if setup.data_root is not None:
        return DataConfig(name="cifar10", root=setup.data_root)
    if setup.sizes.data.name == "cifar10":
        raise SkippedError("needs CIFAR-10: --data-root")
    return setup.sizes.data


@cache
def workshop(work: Path, device: str) -> Workshop:
    """Of all parts: data are read once."""
    return Workshop(work / "cache", device=device)


def read(setup: Setup) -> Dataset:
    """The data. Raises `SkippedError` as `data_config` does, `InputError` for given ones that are not CIFAR-10's."""
    found = workshop(setup.work, str(setup.device)).data(TrialConfig(data=data_config(setup)))
    if setup.data_root is not None:
        there = (found.num_classes, found.image_shape, len(found.train), len(found.test))
        asked = 2 if setup.sizes.tiny else len(there)
        require(there[:asked] == CIFAR10[:asked], "data in --data-root", there, f"CIFAR-10, {CIFAR10}")
    return found


class Kept(NamedTuple):
    """A trained teacher: where its weights lie, and in how many epochs it was trained, of how many the recipe has."""

    path: Path
    epochs: int
    of: int

    @property
    def told(self) -> str:
        """In words."""
        return f"teacher of {self.epochs} of {self.of} epochs"


def weights_path(setup: Setup, dataset: Dataset, epochs: int | str) -> Path:
    """Where a teacher lies: named by its recipe, its data and the epochs it was trained in."""
    name = content_hash([setup.sizes.teacher, dataset.digest])[:16]
    return setup.work / f"teacher-{name}-epochs-{epochs}.safetensors"


def kept(setup: Setup, dataset: Dataset) -> Kept | None:
    """The one of most epochs that there is; None where there is none."""
    pattern, of = weights_path(setup, dataset, "*"), setup.sizes.teacher.training.epochs
    found = {int(path.stem.rpartition("-")[2]): path for path in pattern.parent.glob(pattern.name)}
    return Kept(found[max(found)], max(found), of) if found else None


def teacher(setup: Setup, box: Box) -> Verdict:
    """Train, unless one of as many epochs is there; accuracy on the test images, images a second, share of the peak."""
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
    return setup.verdict(found >= GOAL, f"{found:.2%} of {len(dataset.test)} test images, {one.told}", f"{GOAL:.0%}")


@dataclass(frozen=True)
class Training:
    """The recipe on its data."""

    setup: Setup
    dataset: Dataset
    recipe: TeacherConfig

    def network(self) -> torch.nn.Module:
        """Untrained, on the device."""
        module = self.recipe.build(self.dataset).to(self.setup.device)
        return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def reader(self) -> Teacher:
        """What knows the normalisation and the device; its own weights count for nothing."""
        return as_teacher(self.network(), self.dataset)

    def planned(self, box: Box, there: Kept | None) -> int:
        """Of how many epochs the teacher is to be: those of the one that is `there`, unless `MORE` of them fit.

        Raises `SkippedError` where not one epoch fits and none is there.
        """
        whole, known = self.recipe.training.epochs, 0 if there is None else there.epochs
        if known == whole:
            return whole
        epoch = self._epoch()
        fit = min(whole, int(RESERVE * box.left / epoch))
        box.note("estimate", {"epochs_that_fit": fit, "of_the_recipe": whole, "seconds_each": epoch})
        if not max(fit, known):
            raise SkippedError(f"time: an epoch takes {epoch:.1f} s")
        return fit if fit >= MORE * known else known

    def _epoch(self) -> float:
        """Seconds that an epoch takes, by some of the images."""
        images, labels = self._images()
        tried = min(TRIED, len(images))
        once = replace(self.recipe.training, epochs=1)
        try_out = partial(self._train, once, images[:tried], labels[:tried], self.network())
        return milliseconds(try_out, self.setup.device, repeats=1, warm_up=1) / 1000 * len(images) / tried

    def _images(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Those it learns from and their labels, on the device."""
        return self.dataset.train.pixels.to(self.setup.device), self.dataset.train.labels.to(self.setup.device)

    def run(self, box: Box, epochs: int) -> torch.nn.Module:
        """The network, trained in so many."""
        network, training = self.network(), replace(self.recipe.training, epochs=epochs)
        call = partial(self._train, training, *self._images(), network, looks=Looks(self, network, box, epochs))
        box.note("training", self._told(milliseconds(call, self.setup.device, repeats=1, warm_up=0) / 1000, epochs))
        return network

    def _train(
        self,
        training: Supervised,
        images: torch.Tensor,
        labels: torch.Tensor,
        network: torch.nn.Module,
        looks: Any = None,
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
            **({} if looks is None else {"on_step": looks}),
        )

    def _told(self, seconds: float, epochs: int) -> dict[str, float]:
        shown = epochs * len(self.dataset.train)
        forward = cost_of(self.recipe.network, self.dataset.image_shape, self.dataset.num_classes).multiply_adds
        # Forwards, and backwards to weights and inputs: three times as much; two operations each.
        tflops = 6 * forward * shown / seconds / 1e12
        told = {"seconds": seconds, "images_per_second": shown / seconds, "tflops": tflops}
        peak = peak_tflops(self.setup.device)
        return told | ({"share_of_peak": tflops / peak} if peak else {})


@dataclass
class Looks:
    """Measures the accuracy on the test images a few times during a training; called after each step."""

    training: Training
    network: torch.nn.Module
    box: Box
    epochs: int

    def __post_init__(self) -> None:
        self._every = -(-self.epochs // LOOKS)
        self._reader = self.training.reader()

    def __call__(self, step: int, total: int) -> None:
        """After `step` of `total`."""
        each = total // self.epochs
        epoch, rest = divmod(step, each)
        if rest or epoch % self._every:
            return
        setup = self.training.setup
        # Under autocast: this is a look, and the final accuracy is measured without.
        with torch.autocast(setup.device.type, torch.bfloat16, enabled=bf16_pays(setup.device)):
            found = accuracy(self.network, self.training.dataset.test, self._reader)
        self.network.train()
        self.box.note(f"test_accuracy after epoch {epoch}", found)
