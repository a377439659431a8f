"""What trials need and do not make: data, teacher, condensed set, proxy set. Made once, cached by content, locked.

Every artifact is named by the hash of all that determines it, so a cache can be shared, kept or deleted at will.
"""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from torch import Tensor

from condkd_ray.core.config import content_hash, file_digest, to_tree
from condkd_ray.core.environment import free_bytes, set_up_gpu
from condkd_ray.core.method import InputError, require
from condkd_ray.core.rng import Streams, derive_seed
from condkd_ray.core.samples import Samples
from condkd_ray.core.storage import writing
from condkd_ray.core.view import SILENT, View
from condkd_ray.data import datasets as data
from condkd_ray.data.datasets import Dataset, RealImages
from condkd_ray.methods.condensation import AllReal, AnyCondensation, Imported, RandomReal
from condkd_ray.methods.condensation.condensation import first_per_class
from condkd_ray.methods.condensation.imported import check_recognised
from condkd_ray.methods.recognition import choose
from condkd_ray.methods.supervised import as_teacher, bf16_pays
from condkd_ray.models.network import label
from condkd_ray.models.teacher import Teacher
from condkd_ray.models.weights import load_into, read_weights
from condkd_ray.trial.card import Card, check_card, overruled, read_card
from condkd_ray.trial.config import Prepared, TrialConfig, digests
from condkd_ray.trial.diagnosis import REAL_PER_CLASS, Landmarks, make_landmarks
from condkd_ray.trial.evaluation import accuracy, views
from condkd_ray.trial.known_teacher import check_known

log = logging.getLogger(__name__)

RECIPE = "1"
"""Raised when artifacts are made otherwise, by other code or by another default, so that older ones are not used."""


def default_cache() -> Path:
    """`$CONDKD_CACHE`, or a folder in the user's cache home."""
    home = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    return Path(os.environ.get("CONDKD_CACHE", home / "condkd"))


def cached(path: Path, make: Callable[[], dict[str, Tensor]], what: str) -> dict[str, Tensor]:
    """The tensors at `path`, made if they are not there; of two processes at once the second waits for the first.

    `what` is written into the file for a reader. Raises `InputError` where the folder cannot be written.
    """
    lock = FileLock(path.with_suffix(".lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise InputError(f"--cache is {str(path.parent)!r}; accepted: a folder that can be written ({error})") from None
    try:
        if not path.is_file():
            tensors = make()
            with writing(path) as fresh:
                save_file(tensors, fresh, metadata={"what": what})
                # It is made for its owner alone, but caches are meant to be shared.
                fresh.chmod(0o644)
    finally:
        lock.release()
    return load_file(path)


@dataclass(frozen=True)
class StandIns:
    """Artifacts that were not cached, by key: what a run would make first, once each.

    In place of such a teacher stands an untrained one, and of such a condensed set random real images. A trial takes as
    long with these as with the true ones.
    """

    teachers: dict[str, TrialConfig] = field(default_factory=dict)
    sets: dict[str, tuple[TrialConfig, AnyCondensation]] = field(default_factory=dict)


class Workshop:
    """Makes and remembers artifacts; logs one sentence on each that a user should know of.

    With `stand_ins` it makes nothing that takes long, but lists there what it would have had to make.
    """

    def __init__(
        self, cache: Path | None = None, device: str = "cpu", view: View = SILENT, stand_ins: StandIns | None = None
    ) -> None:
        self.cache = (cache or default_cache()).expanduser()
        self.device = device
        if torch.device(device).type == "cuda":
            # Whatever process makes a teacher or a set, makes the same.
            set_up_gpu()
        self._view, self._stand_ins = view, stand_ins
        self._made: dict[Any, Any] = {}

    def prepare_all(self, configs: Sequence[TrialConfig]) -> list[Prepared]:
        """Prepare many trials: what cannot be had fails before the first teacher is trained."""
        for config in configs:
            self.check(config)
        # Those made of a teacher come last: it is trained for them.
        for config in sorted(configs, key=lambda config: _needs_teacher(config.condensation)):
            self.condensed(config)
        return [self.prepare(config) for config in configs]

    def prepare(self, config: TrialConfig) -> Prepared:
        """All a trial needs, on the workshop's device; equal parts are the same objects in all trials."""
        self.check(config)
        dataset, condensed = self.data(config), self.condensed(config)
        teacher = self.teacher(config)
        place = (self._data_key(config), self._teacher_key(config))
        proxy = self._once(("proxy", *place), lambda: self._proxy(config))
        key = ("hashes", *place, self._condensed_key(config, config.condensation))
        hashes = self._once(key, lambda: digests(dataset, teacher, condensed, proxy))
        seen = self._once(("seen", *key), lambda: self._seen(config, condensed))
        landmarks = self._once(("landmarks", *key), lambda: self._landmarks(config, seen))
        return Prepared(teacher, dataset.test, dataset.val, seen, proxy, hashes, landmarks)

    def data(self, config: TrialConfig) -> Dataset:
        """The data set, read once."""
        return self._once(("data", self._data_key(config)), lambda: self._read(config))

    def _read(self, config: TrialConfig) -> Dataset:
        dataset = data.load(config.data)
        for note in dataset.notes:
            self._tell(note)
        return dataset

    def check(self, config: TrialConfig) -> None:
        """Build, untrained, what the trial will run. Raises `InputError` for networks and methods that do not fit."""
        parts = (config.teacher, config.student, config.targets, config.inversion, config.guidance, config.memory)
        more = (config.condensation, config.distiller.loss, config.total_rounds)
        self._once(("check", self._data_key(config), *more, *parts), lambda: self._check(config) or True)

    def _check(self, config: TrialConfig) -> None:
        dataset, streams = self.data(config), Streams(0)
        shape, classes = dataset.image_shape, dataset.num_classes
        self._card(config)
        with streams.forked("check"):
            network = config.teacher.network.build(shape, classes)
            student = config.student.build(shape, classes)
        weights = config.teacher.weights
        if weights is not None:
            fits = ("fits", self._teacher_key(config))
            self._once(fits, lambda: load_into(network, read_weights(weights), f"weights in {weights}"))
        teacher = as_teacher(network, dataset)
        teacher.check_layers(config.guidance.layers)
        if config.condensation is not None:
            config.condensation.check_teacher(teacher)
        config.targets.check(teacher)
        config.distiller.loss.check(student, teacher)
        config.inversion.init(teacher, streams)
        # What was free before the first trial: those that run must not decide whether others are accepted.
        free = self._once("free memory", lambda: free_bytes(torch.device(self.device)))
        config.inversion.check_memory(teacher, free, config.total_rounds)
        config.memory.init(teacher, streams)
        self.check_teacher(config)

    def check_teacher(self, config: TrialConfig) -> str:
        """Ask a user's own teacher, once, to name some of the images; what is to be told of its answers.

        Nothing of a teacher that is trained here: whoever trains it asks it. Raises `InputError` for one that does not
        know the images.
        """
        recipe = config.teacher
        if recipe.weights is None:
            return ""
        return self._once(("known", self._teacher_key(config), recipe.card, recipe.force), lambda: self._ask(config))

    def _ask(self, config: TrialConfig) -> str:
        card, in_folders = self._card(config), config.data.name == "class_folders"
        about: dict[str, Any] = {"promised": card.test_accuracy, "in_folders": in_folders}
        if config.teacher.class_order is not None:
            about["order"] = _places(config.teacher.class_order, self.data(config))
        about |= {"what": f"the images in {config.data.root}"} if in_folders else {}
        told = check_known(self.teacher(config), self.data(config), force=config.teacher.force, **about)
        self._tell(told)
        return told

    def _card(self, config: TrialConfig) -> Card:
        """What is known of the user's own teacher. Raises `InputError` where the data contradict it."""
        path = config.teacher.card
        if path is None:
            return Card()
        key = (path, self._data_key(config), config.teacher)
        return self._once(("card", *key), lambda: self._read_card(path, config))

    def _read_card(self, path: Path, config: TrialConfig) -> Card:
        card = read_card(path)
        self._tell(f"card of the teacher: {path}")
        for note in overruled(card, to_tree(config)):
            self._tell(note)
        check_card(path, card, self.data(config))
        return card

    def _proxy_split(self, config: TrialConfig) -> tuple[RealImages, RealImages]:
        """(One real image of each class, the rest): by the data seed, so the same for every trial of a study."""
        train = self.data(config).train
        held_out = choose(train.labels, 1, seed=derive_seed(config.data.seed, "proxy"))
        rest = torch.ones(len(train), dtype=torch.bool).index_fill(0, held_out, False)
        return train[held_out], train[rest]

    def _proxy(self, config: TrialConfig) -> Samples:
        teacher = self.teacher(config)
        held_out, _ = self._proxy_split(config)
        samples = held_out.samples(teacher.mean, teacher.std)
        return views(samples, teacher, seed=derive_seed(config.data.seed, "proxy views"))

    def _landmarks(self, config: TrialConfig, condensed: Samples | None) -> Landmarks:
        """Of real train images by the data seed, never those of the proxy set: the same ones for every trial."""
        teacher, (_, rest) = self.teacher(config), self._proxy_split(config)
        rows = choose(rest.labels, REAL_PER_CLASS, seed=derive_seed(config.data.seed, "landmarks"))
        return make_landmarks(teacher, rest[rows].samples(teacher.mean, teacher.std), condensed)

    def teacher(self, config: TrialConfig) -> Teacher:
        """The user's own, the cached, or a newly trained teacher."""
        return self._once(("teacher", self._teacher_key(config)), lambda: self._teacher(config))

    def teacher_accuracy(self, config: TrialConfig) -> dict[str, float]:
        """Fractions of the test and, where there is one, validation images the teacher names right."""
        dataset, teacher = self.data(config), self.teacher(config)
        parts = {"test_accuracy": dataset.test, "val_accuracy": dataset.val}
        there = {name: part for name, part in parts.items() if part is not None}
        key = ("teacher accuracy", self._teacher_key(config))
        return self._once(key, lambda: {k: accuracy(teacher.network, part, teacher) for k, part in there.items()})

    def _teacher(self, config: TrialConfig) -> Teacher:
        dataset, recipe = self.data(config), config.teacher
        network = recipe.build(dataset)
        name = f"teacher {label(recipe.network)} on {dataset.name}"

        def train() -> dict[str, Tensor]:
            log.info(f"training {name}: {len(dataset.train)} images, {recipe.training.epochs} epochs")
            with self._view.bar(name) as on_step:
                return recipe.train(network, dataset, self.device, on_step)

        if recipe.weights is not None:
            load_into(network, read_weights(recipe.weights), f"weights in {recipe.weights}")
        else:
            path = self._stored("teachers", partial(self._teacher_key, config))
            if self._stand_ins is not None and not path.is_file():
                self._stand_ins.teachers[self._teacher_key(config)] = config
            else:
                load_into(network, cached(path, train, name), f"cached weights {path}")
        teacher = as_teacher(network.to(memory_format=torch.channels_last), dataset)  # type: ignore[call-overload]
        if recipe.class_order is not None:
            teacher.in_order(_places(recipe.class_order, dataset))
        return teacher.to(self.device)

    def condensed(self, config: TrialConfig) -> Samples | None:
        """The condensed set in the teacher's space, without logits; None where the config has none."""
        method = config.condensation
        if method is None:
            return None
        whole = method.whole()
        key = self._condensed_key(config, whole)
        quick = isinstance(whole, (AllReal, Imported))
        make = self._condense if quick else self._cached_condense
        made = self._once(("condensed", key), lambda: make(config, whole))
        if isinstance(method, AllReal):
            return made
        key, classes = self._condensed_key(config, method), self.data(config).num_classes
        return self._once(("condensed", key), lambda: first_per_class(made, method.ipc, classes))

    def _condense(self, config: TrialConfig, method: AnyCondensation) -> Samples:
        dataset = self.data(config)
        _, rest = self._proxy_split(config)
        more = {"teacher": self.teacher(config)} if method.needs_teacher else {}
        with self._view.bar(f"{method.label}, seed {config.seed}") as on_step:
            return method.condense(
                rest.samples(dataset.mean, dataset.std).to(self.device),
                num_classes=dataset.num_classes,
                mean=dataset.mean,
                std=dataset.std,
                flip_ok=dataset.flip_ok,
                rng=Streams(config.seed, self.device),
                on_step=on_step,
                **more,
            )

    def _cached_condense(self, config: TrialConfig, method: AnyCondensation) -> Samples:
        path = self._stored("condensed", partial(self._condensed_key, config, method))
        if self._stand_ins is not None and not path.is_file():
            self._stand_ins.sets[self._condensed_key(config, method)] = (config, method)
            return self._condense(config, RandomReal(ipc=method.ipc))

        def make() -> dict[str, Tensor]:
            log.info(f"condensing {self.data(config).name} by {method.label}, seed {config.seed}")
            made = self._condense(config, method)
            return {"images": made.images.cpu().contiguous(), "labels": made.labels.cpu()}

        tensors = cached(path, make, f"condensed set {method.label}, seed {config.seed}")
        return Samples(tensors["images"], tensors["labels"], torch.zeros(len(tensors["labels"]), 0))

    def _seen(self, config: TrialConfig, condensed: Samples | None) -> Samples | None:
        """The condensed set with the teacher's logits, on the device; an imported one must be recognised."""
        if condensed is None:
            return None
        teacher, method = self.teacher(config), config.condensation
        seen = condensed.to(self.device)
        logits = teacher.answers(seen.images)
        if isinstance(method, Imported):
            share = (logits.argmax(1) == seen.labels).float().mean().item()
            what = f"condensed set {method.source}, {method.ipc} a class"
            # An untrained teacher recognises nothing; the run itself will ask the true one.
            check_recognised(share, teacher.num_classes, what, method.force or self._stand_ins is not None)
            self._once(("said", what), lambda: self._tell(f"{what}: the teacher names {share:.1%} right") or True)
        return Samples(seen.images, seen.labels, logits)

    def _tell(self, text: str) -> None:
        """Log what a user should know; with stand-ins it would be of these, or be said once more by the run itself."""
        if self._stand_ins is None:
            log.info(text)

    def _data_key(self, config: TrialConfig) -> str:
        # Of what is read, in this process: two roots are two data sets until their digests tell.
        return content_hash([config.data, str(config.data.root)])

    def _stored(self, kind: str, key: Callable[..., str]) -> Path:
        """Where an artifact is or will be stored."""
        # Before numbers version 2 keys contained fields at their defaults too: a file under such a key is as valid.
        path, older = (self.cache / kind / f"{key(complete=complete)}.safetensors" for complete in (False, True))
        return older if older.is_file() and not path.is_file() else path

    def _teacher_key(self, config: TrialConfig, *, complete: bool = False) -> str:
        recipe = config.teacher
        digests = {} if recipe.weights is None else {"weights": file_digest(recipe.weights)}
        precision = "bfloat16" if bf16_pays(self.device) else "float32"
        return content_hash([RECIPE, recipe, precision, self._read_as(config)], digests, complete=complete)

    def _read_as(self, config: TrialConfig) -> list[object]:
        """What of the data shapes an artifact: pixels, labels and splits by digest, normalisation, flips."""
        dataset = self.data(config)
        return [dataset.digest, dataset.mean, dataset.std, dataset.flip_ok, config.data.seed]

    def _condensed_key(self, config: TrialConfig, method: AnyCondensation | None, *, complete: bool = False) -> str:
        path = str(method.path) if isinstance(method, Imported) else ""
        # All real images are the same ones for every seed.
        seed = 0 if isinstance(method, AllReal) else config.seed
        teacher = [self._teacher_key(config, complete=complete)] if _needs_teacher(method) else []
        recipe = RECIPE if method is None or method.recipe == 1 else f"{RECIPE}.{method.recipe}"
        return content_hash([recipe, method, path, seed, self._read_as(config), *teacher], complete=complete)

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


def _places(order: Sequence[str], dataset: Dataset) -> list[int]:
    """The labels of the classes in this `order`. Raises `InputError` where it is not one of those of the data."""
    names = dataset.class_names
    accepted = f"each of {', '.join(names)} once, in the order of the teacher's outputs"
    require(sorted(order) == sorted(names), "--class-order (teacher.class_order)", " ".join(order), accepted)
    return [names.index(name) for name in order]


def _needs_teacher(method: AnyCondensation | None) -> bool:
    return method is not None and method.needs_teacher
