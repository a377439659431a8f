"""Trial artifacts: data set, teacher, condensed set and proxy set, each made once and kept in memory.

Teachers that are trained here, and condensed sets that are made here, are also cached in files, under locks. The name
of a file is the hash of its config, its data and `RECIPE`, so a cache can be shared, kept or deleted at any time. The
name of a teacher, and of a set that is made with one, also contains the precision of the training, which is bfloat16 on
a device that multiplies it in hardware. Otherwise neither the device nor the version of PyTorch is part of the name.
"""

import logging
import os
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from condkd_ray.core.config import content_hash, to_tree
from condkd_ray.core.environment import free_bytes, set_up_gpu
from condkd_ray.core.method import InputError, require
from condkd_ray.core.rng import Streams, derive_seed
from condkd_ray.core.samples import Samples
from condkd_ray.core.storage import writing
from condkd_ray.core.task import is_dense
from condkd_ray.core.view import SILENT, View
from condkd_ray.data import datasets as data
from condkd_ray.data.condensed_sets import StoredSet
from condkd_ray.data.datasets import Dataset, RealImages
from condkd_ray.methods.condensation import AllReal, AnyCondensation, Imported, RandomReal
from condkd_ray.methods.condensation.condensation import first_per_class
from condkd_ray.methods.condensation.judgement import ChosenSpace
from condkd_ray.methods.recognition import choose
from condkd_ray.methods.scores import mean_iou, named_iou
from condkd_ray.methods.supervised import as_teacher, bf16_pays
from condkd_ray.models.own_module import OwnModule, check_output, copied, own_module
from condkd_ray.models.teacher import Teacher
from condkd_ray.models.weights import Fitted, fitted, load_into, weights_digest
from condkd_ray.trial.card import Card, check_card, overruled, read_card
from condkd_ray.trial.config import Prepared, TrialConfig, digests, tensor_digest
from condkd_ray.trial.diagnosis import REAL_PER_CLASS, Landmarks, make_landmarks
from condkd_ray.trial.evaluation import DENSE_IMAGES, accuracy, dense_confusion, views
from condkd_ray.trial.given_teacher import GivenTeacher
from condkd_ray.trial.known_teacher import check_known
from condkd_ray.trial.synthesis import host_augment

log = logging.getLogger(__name__)

RECIPE = "1"
"""Part of every cache key. Increment it when a change of code or defaults changes artifacts: older files are then
ignored."""


Tensors = dict[str, Tensor]


def default_cache() -> Path:
    """Return `$CONDKD_CACHE`, or `condkd` in the user's cache home if the variable is not set or empty.

    As in the XDG Base Directory Specification, an empty or relative `$XDG_CACHE_HOME` counts as not set.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME", "")).expanduser()
    default = (home if home.is_absolute() else Path.home() / ".cache") / "condkd"
    return Path(os.environ.get("CONDKD_CACHE") or default)


def cached(
    path: Path, make: Callable[[], Tensors], what: str, check: Callable[[Tensors], None] = lambda tensors: None
) -> Tensors:
    """Return the tensors stored at `path`; if there are none, call `make` and store its result first.

    A lock file makes a second process wait for the first. A stored file is read without the lock, because it appears
    complete, by renaming: a user who cannot write to the cache can use what is in it. Users who can write to it share
    the lock files. If the file is truncated (for example by a power loss), or if `check` raises `InputError` for its
    content, this is logged and the file is made again. `what` describes the content in log lines and in the file's
    metadata. Raises `InputError` if the file must be made and the folder is not writable.
    """
    found = _identity(path)
    if (stored := _stored_tensors(path, what, check)) is not None:
        return stored
    lock = FileLock(path.with_suffix(".lock"), mode=0o666)
    try:
        _make_folder(path.parent)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info(f"waiting for another process that is making {what} ({path})")
            lock.acquire()
    except OSError as error:
        raise _not_writable(path.parent, error) from None
    try:
        if _identity(path) != found and (stored := _stored_tensors(path, what, check)) is not None:
            return stored
        _check_writable(path.parent)  # before the work: another user's lock file may exist in a folder of theirs
        tensors = make()
        with writing(path, durable=True) as fresh:
            save_file(tensors, fresh, metadata={"what": what})
            # Temporary files are readable by their owner only, but caches are meant to be shared.
            fresh.chmod(0o644)
        return load_file(path)
    finally:
        lock.release()


def _identity(path: Path) -> tuple[int, int] | None:
    """Return inode and modification time of a file; None if it does not exist."""
    if os.path.isfile(path):
        with suppress(FileNotFoundError):  # it has just been deleted
            status = path.stat()
            return status.st_ino, status.st_mtime_ns
    return None


def _check_writable(folder: Path) -> None:
    """Raise `InputError` unless this process can make files in the folder."""
    try:
        TemporaryFile(dir=folder).close()
    except OSError as error:
        raise _not_writable(folder, error) from None


def _not_writable(folder: Path, error: OSError) -> InputError:
    return InputError(f"--cache is {str(folder)!r}; accepted: a folder that can be written ({error})")


def _make_folder(folder: Path) -> None:
    """Make a folder with the permissions of the folder around it: whoever shares the cache can write to it."""
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):  # another user has just made it, or the file system has no permissions
            folder.chmod(stat.S_IMODE(folder.parent.stat().st_mode))


def _stored_tensors(path: Path, what: str, check: Callable[[Tensors], None]) -> Tensors | None:
    """Return the tensors stored at `path`; None if the file does not exist or is not usable."""
    if not os.path.isfile(path):  # unlike `Path.is_file`, False in a folder that cannot be searched
        return None
    try:
        tensors = load_file(path)
        check(tensors)
    except FileNotFoundError:  # it has just been deleted
        return None
    except (SafetensorError, InputError) as error:
        log.info(f"{path} is damaged or does not contain {what} ({error}): it will be made again")
        return None
    return tensors


@dataclass(frozen=True)
class StandIns:
    """Artifacts that the cache lacks, by cache key; a run would make each of them once, before its first trial.

    A stand-in teacher is an untrained network, and a stand-in condensed set consists of random real images. A trial
    takes as long with stand-ins as with the real artifacts.
    """

    teachers: dict[str, TrialConfig] = field(default_factory=dict)
    sets: dict[str, tuple[TrialConfig, AnyCondensation]] = field(default_factory=dict)


class Workshop:
    """Makes artifacts, keeps them in memory, and logs notes about them for the user.

    With `stand_ins`, slow artifacts are replaced by stand-ins and listed in it. If `train_to_check` is false, no
    teacher is trained only to check an imported condensed set; only a teacher that is loaded checks it. With
    `stand_ins` no teacher checks it. `given`: a teacher object from Python; it is the teacher of the configs whose
    `teacher.module` is its name. `cache`: folder of teachers and condensed sets; default: `default_cache()`. `device`:
    name of the device on which teachers are trained and sets are made. `view`: shows their progress.
    """

    def __init__(
        self,
        cache: Path | None = None,
        device: str = "cpu",
        view: View = SILENT,
        stand_ins: StandIns | None = None,
        *,
        train_to_check: bool = True,
        given: GivenTeacher | None = None,
    ) -> None:
        self.cache = (cache or default_cache()).expanduser()
        self.device = device
        if torch.device(device).type == "cuda":
            # The same settings in every process give the same teachers and sets.
            set_up_gpu()
        self._view, self._stand_ins, self._train_to_check, self._given = view, stand_ins, train_to_check, given
        self._made: dict[Any, Any] = {}

    def prepare_all(self, configs: Sequence[TrialConfig]) -> list[Prepared]:
        """Prepare many trials. All checks that need no trained teacher run before the first teacher is trained.

        Raises `InputError` if one of them fails, if a teacher learns nothing, or if it does not recognise an imported
        set.
        """
        for config in configs:
            self.check(config)
        # Condensed sets that need a teacher come last, because its training starts with the first of them.
        for config in sorted(configs, key=lambda config: _uses_teacher(config.condensation)):
            self.condensed(config)
        return [self.prepare(config) for config in configs]

    def prepare(self, config: TrialConfig) -> Prepared:
        """Return everything a trial needs; trials share the objects of equal artifacts.

        All tensors are on `self.device`, except the real images `test` and `val`, which stay on the CPU. Raises
        `InputError` as `prepare_all` does.
        """
        self.check(config)
        dataset, condensed = self.data(config), self.condensed(config)
        teacher = self.teacher(config)
        keys = (self._data_key(config), self._teacher_key(config))
        proxy = self._once(("proxy", *keys), lambda: self._proxy(config))
        key = ("hashes", *keys, self._condensed_key(config, config.condensation))
        hashes = self._once(key, lambda: self._digests(config, digests(dataset, teacher, condensed, proxy)))
        seen = self._once(("seen", *key, config.store_logits), lambda: self._with_logits(config, condensed))
        dense = is_dense(dataset.task)
        landmarks = None if dense else self._once(("landmarks", *key), lambda: self._landmarks(config, seen))
        names, own = dataset.class_names, config.teacher.module
        return Prepared(teacher, dataset.test, dataset.val, seen, proxy, hashes, landmarks, names, own)

    def _digests(self, config: TrialConfig, found: dict[str, str]) -> dict[str, str]:
        """Return the hashes of the artifacts; the hash of a user's own module includes its code."""
        if config.teacher.module is None:
            return found
        return found | {"teacher": content_hash([found["teacher"], self.own_module(config.teacher.module).code])}

    def data(self, config: TrialConfig) -> Dataset:
        """Return the data set, which is read once. Raises `InputError` as `data.load`."""
        return self._once(("data", self._data_key(config)), lambda: self._read(config))

    def _read(self, config: TrialConfig) -> Dataset:
        given = self._given
        # The normalisation is the given teacher's, so an error about it would name values that the user has not set.
        check = given.check_shape if given is not None and config.teacher.module == given.name else None
        dataset = data.load(config.data, check)
        for note in dataset.notes:
            self._log_note(note)
        return dataset

    def check(self, config: TrialConfig) -> None:
        """Build the trial's networks and methods without training; a loaded teacher also classifies some images.

        Raises `InputError` if networks, methods, data and weights do not fit together, or if the model card or the
        teacher's predictions contradict the data.
        """
        parts = (config.teacher, config.student, config.targets, config.inversion, config.guidance, config.memory)
        more = (config.condensation, config.distiller.loss, config.total_rounds)
        self._once(("check", self._data_key(config), *more, *parts), lambda: self._check(config) or True)

    def _check(self, config: TrialConfig) -> None:
        dataset, streams = self.data(config), Streams(0)
        shape, classes = dataset.image_shape, dataset.num_classes
        self._card(config)
        with streams.forked("check"):
            network = self._network(config)
            student = config.student.build(shape, classes)
        if config.teacher.weights is not None:
            load_into(network, self._own_weights(config, network).weights, f"weights in {config.teacher.weights}")
        teacher = as_teacher(network, dataset)
        config.guidance.check(teacher)
        if config.condensation is not None:
            self._check_number(config, config.condensation)
            config.condensation.check_teacher(teacher)
            batch = getattr(config.inversion, "batch", config.inversion.images_per_round)
            config.guidance.check_use(teacher, config.condensation.ipc, batch, host_augment(config, teacher))
        if isinstance(config.condensation, Imported):
            self._check_stored(config, config.condensation)
        config.targets.check(teacher)
        config.distiller.loss.check(student, teacher)
        config.inversion.init(teacher, streams)
        # Measured once, before the first trial, so that running trials do not change which configs are accepted.
        free = self._once("free memory", lambda: free_bytes(torch.device(self.device)))
        config.inversion.check_memory(teacher, free, config.total_rounds)
        config.memory.init(teacher, streams)
        self.check_teacher(config)

    def _check_number(self, config: TrialConfig, method: AnyCondensation) -> None:
        """Raise `InputError` if in segmentation fewer labelled images than the condensed set's are there."""
        if is_dense(config.data.task):
            there = len(self.data(config).train)
            held_out = min(DENSE_IMAGES, there)
            most = there - held_out
            accepted = f"at most {most}: {there} labelled images less the {held_out} of the proxy set"
            require(method.ipc <= most, "number of labelled images (condensation.ipc)", method.ipc, accepted)

    def check_teacher(self, config: TrialConfig) -> str:
        """Classify some images with the user's own teacher, log one sentence about the result, and return the sentence.

        The check runs once. Returns an empty string for a teacher trained here, because training includes this check.
        Raises `InputError` if the teacher does not recognise the images.
        """
        recipe = config.teacher
        if not recipe.loaded:
            return ""
        key = ("known", self._teacher_key(config), recipe.card, recipe.force)
        return self._once(key, lambda: self._check_known(config))

    def _check_known(self, config: TrialConfig) -> str:
        card, in_folders = self._card(config), config.data.name == "class_folders"
        stated = card.test_miou if is_dense(config.data.task) else card.test_accuracy
        about: dict[str, Any] = {"stated": stated, "in_folders": in_folders}
        if config.teacher.class_order is not None:
            about["order"] = class_places(config.teacher.class_order, self.data(config))
        about["in_python"] = self._given is not None and config.teacher.module == self._given.name
        about |= {"what": f"the images in {config.data.root}"} if in_folders else {}
        sentence = check_known(self.teacher(config), self.data(config), force=config.teacher.force, **about)
        self._log_note(sentence)
        return sentence

    def _card(self, config: TrialConfig) -> Card:
        """Return the model card of the user's own teacher. Raises `InputError` if the data contradict the card."""
        path = config.teacher.card
        if path is None:
            return Card()
        key = (path, self._data_key(config), config.teacher)
        return self._once(("card", *key), lambda: self._read_card(path, config))

    def _read_card(self, path: Path, config: TrialConfig) -> Card:
        card = read_card(path)
        self._log_note(f"card of the teacher: {path}")
        for note in overruled(card, to_tree(config)):
            self._log_note(note)
        check_card(path, card, self.data(config))
        return card

    def own_module(self, name: str) -> OwnModule:
        """Return the given teacher's module if it has this `name`, else the module that the function `name` returns.

        The function is called once. Raises `InputError` if there is no such function, if it fails, or if it returns no
        module.
        """
        if self._given is not None and name == self._given.name:
            return self._given.module
        return self._once(("own module", name), lambda: own_module(name))

    def _network(self, config: TrialConfig) -> nn.Module:
        """Return a new instance of the teacher's network, without trained or loaded weights."""
        dataset, recipe = self.data(config), config.teacher
        if recipe.module is None:
            config.check_teacher_network()
            return recipe.build(dataset)
        if self._given is not None and recipe.module == self._given.name:
            self._given.check_images(dataset)
        network = copied(self.own_module(recipe.module).network)
        check_output(network, dataset.image_shape, dataset.num_classes, recipe.module, dataset.task)
        return network

    def _own_weights(self, config: TrialConfig, network: nn.Module) -> Fitted:
        """Return the user's weights under the parameter names of the teacher's network; the file is read once."""
        path = config.teacher.weights
        assert path is not None
        size = self.data(config).image_shape[1:]
        return self._once(("weights", self._teacher_key(config)), lambda: fitted(network, path, size))

    def _proxy_split(self, config: TrialConfig) -> tuple[RealImages, RealImages]:
        """Split the train set into (one image per class, the rest) by the data seed, equally for all trials.

        In segmentation the first part has `DENSE_IMAGES` images.
        """
        train = self.data(config).train
        seed = derive_seed(config.data.seed, "proxy")
        if is_dense(config.data.task):
            held_out = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:DENSE_IMAGES]
        else:
            held_out = choose(train.labels, 1, seed=seed)
        rest = torch.ones(len(train), dtype=torch.bool).index_fill(0, held_out, False)
        return train[held_out], train[rest]

    def _proxy(self, config: TrialConfig) -> Samples:
        teacher = self.teacher(config)
        held_out, _ = self._proxy_split(config)
        samples = held_out.samples(teacher.mean, teacher.std)
        return views(samples, teacher, seed=derive_seed(config.data.seed, "proxy views"))

    def _landmarks(self, config: TrialConfig, condensed: Samples | None) -> Landmarks:
        """Make landmarks from real train images outside the proxy set, by the data seed: equal for all trials."""
        teacher, (_, rest) = self.teacher(config), self._proxy_split(config)
        rows = choose(rest.labels, REAL_PER_CLASS, seed=derive_seed(config.data.seed, "landmarks"))
        return make_landmarks(teacher, rest[rows].samples(teacher.mean, teacher.std), condensed)

    def teacher(self, config: TrialConfig) -> Teacher:
        """Return the user's own teacher, the cached one, or a newly trained one.

        Raises `InputError` if weights do not fit the network, or if a newly trained teacher is not better than chance.
        """
        return self._once(("teacher", self._teacher_key(config)), lambda: self._teacher(config))

    def teacher_scores(self, config: TrialConfig) -> dict[str, Any]:
        """Return the teacher's score (0 to 1) on the test images and, if there are any, the validation images.

        `test_accuracy` and `val_accuracy`; in segmentation `test_miou`, `val_miou`, and `test_iou` of each class that
        has pixels, by name.
        """
        return self._once(("teacher scores", self._teacher_key(config)), lambda: self._teacher_scores(config))

    def _teacher_scores(self, config: TrialConfig) -> dict[str, Any]:
        dataset, teacher = self.data(config), self.teacher(config)
        parts = {"test": dataset.test, "val": dataset.val}
        there = {name: part for name, part in parts.items() if part is not None}
        if not is_dense(dataset.task):
            return {f"{name}_accuracy": accuracy(teacher.network, part, teacher) for name, part in there.items()}
        counts = {name: dense_confusion(teacher.network, part, teacher) for name, part in there.items()}
        scores: dict[str, Any] = {f"{name}_miou": mean_iou(one).item() for name, one in counts.items()}
        return scores | {"test_iou": named_iou(counts["test"], dataset.class_names)}

    def _teacher(self, config: TrialConfig) -> Teacher:
        dataset, recipe = self.data(config), config.teacher
        network = self._network(config)
        name = f"teacher {recipe.label} on {dataset.name}"

        def train() -> dict[str, Tensor]:
            log.info(f"training {name}: {len(dataset.train)} images, {recipe.training.epochs} epochs")
            with self._view.bar(name) as on_step:
                return recipe.train(network, dataset, self.device, on_step)

        if recipe.weights is not None:
            found = self._own_weights(config, network)
            for note in found.notes:
                self._log_note(note)
            load_into(network, found.weights, f"weights in {recipe.weights}")
        elif recipe.module is None:
            path = self._stored("teachers", partial(self._teacher_key, config))
            load = partial(load_into, network, what=f"cached weights {path}")
            if self._stand_ins is not None and _stored_tensors(path, name, load) is None:
                self._stand_ins.teachers[self._teacher_key(config)] = config
            else:
                load(cached(path, train, name, load))
        teacher = as_teacher(network.to(memory_format=torch.channels_last), dataset)  # type: ignore[call-overload]
        if recipe.class_order is not None:
            teacher.in_order(class_places(recipe.class_order, dataset))
        return teacher.to(self.device)

    def condensed(self, config: TrialConfig) -> Samples | None:
        """Return the condensed set in the teacher's normalised space, without logits; None if the config has none.

        Images are (N, C, H, W), sorted by class. A set from the cache is on the CPU, any other on `self.device`. Raises
        `InputError` if the set cannot be made or read, or if the teacher does not recognise an imported one.
        """
        method = config.condensation
        if method is None:
            return None
        self._check_number(config, method)
        whole = method.cached_config()
        key = self._condensed_key(config, whole)
        quick = {AllReal: self._condense, Imported: self._imported}
        make = quick.get(type(whole), self._cached_condense)
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
        what = f"condensed set {method.label}, seed {config.seed}"

        def check(tensors: Tensors) -> None:
            found, shape = {name: list(tensor.shape) for name, tensor in tensors.items()}, self.data(config).image_shape
            count = (found.get("labels") or [0])[0]
            each = shape[1:] if is_dense(config.data.task) else ()
            accepted = f"images (N, {', '.join(map(str, shape))}) and labels (N, {', '.join(map(str, each))})"
            require(found == {"images": [count, *shape], "labels": [count, *each]}, "shapes", found, accepted)

        if self._stand_ins is not None and _stored_tensors(path, what, check) is None:
            self._stand_ins.sets[self._condensed_key(config, method)] = (config, method)
            return self._condense(config, RandomReal(ipc=method.ipc))

        def make() -> dict[str, Tensor]:
            log.info(f"condensing {self.data(config).name} by {method.label}, seed {config.seed}")
            made = self._condense(config, method)
            return {"images": made.images.cpu().contiguous(), "labels": made.labels.cpu().contiguous()}

        tensors = cached(path, make, what, check)
        return Samples(tensors["images"], tensors["labels"], torch.zeros(len(tensors["labels"]), 0))

    def _stored_set(self, config: TrialConfig, method: Imported) -> StoredSet:
        """Return the content of the imported set's file, which is read once and shared by all seeds and all `ipc`."""
        dataset, one = self.data(config), replace(method, ipc=1)
        key = ("stored set", self._data_key(config), one)
        found = self._once(key, lambda: one.stored(dataset.num_classes, dataset.image_shape, dataset.class_names))
        method.check_ipc(found)
        return found

    def _check_stored(self, config: TrialConfig, method: Imported) -> None:
        """Raise `InputError` for errors that the set's file alone reveals, before a teacher is trained."""
        self._stored_set(config, method)
        key = ("checked", self._data_key(config), replace(method, ipc=1))
        self._once(key, lambda: self._choose_space(config, method, None))

    def _imported(self, config: TrialConfig, method: Imported) -> Samples:
        """Return the `ipc` images per class of an imported set that the trial's seed draws.

        Raises `InputError` if the teacher does not recognise the set.
        """
        dataset, one = self.data(config), replace(method, ipc=1)
        # An untrained stand-in teacher recognises nothing; the run itself checks the set with the real teacher.
        checking = self._stand_ins is None and (self._train_to_check or config.teacher.loaded)
        teacher = self.teacher(config) if checking else None

        def choose() -> ChosenSpace:
            found = self._choose_space(config, method, teacher)
            for note in found.notes:
                self._log_note(note)
            return found

        space = self._once(("space", self._data_key(config), self._teacher_key(config), one), choose).space
        units = {"mean": dataset.mean, "std": dataset.std}
        stored, rng = self._stored_set(config, method), Streams(config.seed, self.device)
        return method.chosen(stored, space, dataset.num_classes, **units, rng=rng)

    def _choose_space(self, config: TrialConfig, method: Imported, teacher: Teacher | None) -> ChosenSpace:
        """Determine the set's pixel space by comparison with real images and, if given, by the teacher's accuracy."""
        dataset = self.data(config)
        few = choose(dataset.train.labels, REAL_PER_CLASS, seed=derive_seed(config.data.seed, "landmarks"))
        return method.space_of(
            self._stored_set(config, method),
            dataset.num_classes,
            mean=dataset.mean,
            std=dataset.std,
            real=dataset.train[few].samples(dataset.mean, dataset.std),
            teacher=teacher,
            class_names=dataset.class_names,
        )

    def _with_logits(self, config: TrialConfig, condensed: Samples | None) -> Samples | None:
        """Return the condensed set on `self.device`, with the teacher's logits, in segmentation if they are stored."""
        if condensed is None:
            return None
        seen = condensed.to(self.device)
        if seen.dense and not config.store_logits:  # the student's step asks the teacher again
            return seen
        return Samples(seen.images, seen.labels, self.teacher(config).batched_logits(seen.images))

    def _log_note(self, text: str) -> None:
        """Log a note for the user, except with stand-ins: the run itself logs the notes on the real artifacts."""
        if self._stand_ins is None:
            log.info(text)

    def _data_key(self, config: TrialConfig) -> str:
        # A key for this process only: the content digest of a folder is not known before the folder is read.
        return content_hash([config.data, str(config.data.root)])

    def _stored(self, kind: str, key: Callable[..., str]) -> Path:
        """Return the path at which an artifact is, or will be, stored."""
        # While `trial.plan.NUMBERS` was 1, keys also included fields at their defaults; their files are valid.
        path, older = (self.cache / kind / f"{key(complete=complete)}.safetensors" for complete in (False, True))
        return older if os.path.isfile(older) and not os.path.isfile(path) else path

    def _teacher_key(self, config: TrialConfig, *, complete: bool = False) -> str:
        recipe = config.teacher
        digests = {} if recipe.weights is None else {"weights": weights_digest(recipe.weights)}
        precision = "bfloat16" if bf16_pays(self.device) else "float32"
        if recipe.module is not None:
            digests |= self._module_digests(recipe.module)
        return content_hash([RECIPE, recipe, precision, self._read_as(config)], digests, complete=complete)

    def _module_digests(self, name: str) -> dict[str, str]:
        """Return the hashes that identify a user's module: of its code and of its initial state dict."""
        made = self.own_module(name)
        return {
            "code": made.code,
            "state": self._once(("state", name), lambda: tensor_digest(made.network.state_dict())),
        }

    def _read_as(self, config: TrialConfig) -> list[object]:
        """Return the parts of the data config that shape an artifact: content digest, normalisation, flips and seed."""
        dataset = self.data(config)
        return [dataset.digest, dataset.mean, dataset.std, dataset.flip_ok, config.data.seed]

    def _condensed_key(self, config: TrialConfig, method: AnyCondensation | None, *, complete: bool = False) -> str:
        path = str(method.path) if isinstance(method, Imported) else ""
        # The set of all real images does not depend on the seed.
        seed = 0 if isinstance(method, AllReal) else config.seed
        teacher = [self._teacher_key(config, complete=complete)] if _uses_teacher(method) else []
        recipe = RECIPE if method is None or method.code_version == 1 else f"{RECIPE}.{method.code_version}"
        return content_hash([recipe, method, path, seed, self._read_as(config), *teacher], complete=complete)

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


def _uses_teacher(method: AnyCondensation | None) -> bool:
    """Return whether a condensed set is computed with the teacher, or its pixel space may be determined with it."""
    return method is not None and (method.needs_teacher or isinstance(method, Imported))


def class_places(order: Sequence[str], dataset: Dataset) -> list[int]:
    """Return the class labels in the `order` of names. Raises `InputError` if a name is missing or not unique."""
    names = dataset.class_names
    twice = sorted({name for name in names if names.count(name) > 1})
    one_each = "unique names: an order by name is ambiguous otherwise"
    require(not twice, f"class names of {dataset.name} for --class-order (teacher.class_order)", twice, one_each)
    accepted = f"each of {', '.join(names)} once, in the order of the teacher's outputs"
    require(sorted(order) == sorted(names), "--class-order (teacher.class_order)", " ".join(order), accepted)
    return [names.index(name) for name in order]
