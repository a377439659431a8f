"""Packs trials and their inputs, and sends them to the workers that run them."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import ray
import torch
from ray.cloudpickle import loads, register_pickle_by_value, unregister_pickle_by_value
from ray.cloudpickle.cloudpickle_fast import dumps
from torch import Tensor, nn

from condkd_ray.cluster.actors import call_actor, lasting_actor
from condkd_ray.cluster.lost import with_retries
from condkd_ray.core.errors import first_line
from condkd_ray.core.families import origins_stored, plugin_modules
from condkd_ray.core.method import InputError
from condkd_ray.models.own_module import copied, own_code
from condkd_ray.trial.config import Prepared, TrialConfig
from condkd_ray.trial.packing import (
    MODULE,
    TEACHER_FIELDS,
    ContentRef,
    PreparedRefs,
    build_content,
    named_contents,
    to_plain,
    to_tensor,
)
from condkd_ray.trial.plan import PlannedTrial

_unpacked: dict[tuple[str, ...], Any] = {}
"""Unpacked contents that the last trial of this process used, by name, device and label of the teacher."""


class Packer:
    """Packs the trials of one sweep. It runs in the driver, which owns the objects in Ray's object store."""

    def __init__(self) -> None:
        self._stored: dict[str, ContentRef] = {}

    def pack(self, prepared: Prepared) -> PreparedRefs:
        """Return the references to send in place of `prepared`. Each content is stored only once.

        Raises `InputError` if the teacher is a user's own module that cannot be pickled, and `StorageFullError` or
        `ClusterError` if Ray cannot store the contents.
        """
        contents = {kind: self._store(*content) for kind, content in named_contents(prepared).items()}
        if prepared.own_module is not None:
            contents[MODULE] = self._store_module(prepared, prepared.own_module)
        teacher = {name: getattr(prepared.teacher, name) for name in TEACHER_FIELDS}
        return PreparedRefs(contents, teacher, prepared.hashes, prepared.class_names)

    def job(self, trial: PlannedTrial[Prepared]) -> PlannedTrial[PreparedRefs]:
        """Return the trial in the form that is sent to a worker. Raises as `pack` does."""
        return PlannedTrial(trial.key, trial.plan, self.pack(trial.prepared), trial.lineage)

    def _store_module(self, prepared: Prepared, function: str) -> ContentRef:
        """Store a network from a user's function together with its code, which may not be installed on the nodes."""
        name = f"{MODULE}/{prepared.hashes['teacher']}"
        if name not in self._stored:
            pickled = np.frombuffer(by_value(copied(prepared.teacher.network), function), np.uint8)
            self._stored[name] = ContentRef(name, _put(pickled))
        return self._stored[name]

    def _store(self, name: str, tensors: dict[str, Tensor]) -> ContentRef:
        if name not in self._stored:
            self._stored[name] = ContentRef(name, _put(to_plain(tensors)))
        return self._stored[name]


def _put(content: Any) -> Any:
    return with_retries(lambda: ray.put(content), "sending the trials' inputs to the cluster")


def unpack(config: TrialConfig, refs: PreparedRefs, device: str) -> Prepared:
    """Return the `Prepared` that `refs` refers to, with everything except the real images on `device`.

    `device`: "cpu" or "cuda". On the CPU all tensors except the teacher's weights are views of shared memory; they must
    not be written to.
    """
    whole = {kind: content for kind, content in refs.contents.items() if kind != MODULE}
    keys = {kind: (content.name, device, config.teacher.label) for kind, content in whole.items()}
    missing = [kind for kind, key in keys.items() if key not in _unpacked]
    arrays = ray.get([refs.contents[kind].ref for kind in missing])
    pickled: Any = refs.contents.get(MODULE)
    own = None if pickled is None else lambda: loads(ray.get(pickled.ref))
    for kind, found in zip(missing, arrays, strict=True):
        _unpacked[keys[kind]] = build_content(kind, to_tensor(found), config, refs, device, own)
    for key in set(_unpacked) - set(keys.values()):
        del _unpacked[key]
    contents: dict[str, Any] = {"test": None, "val": None, "condensed": None}
    contents |= {kind: _unpacked[key] for kind, key in keys.items()}
    return Prepared(**contents, hashes=refs.hashes, class_names=refs.class_names)


def by_value(network: nn.Module, name: str) -> bytes:
    """Return a pickle of the teacher module `name` that contains the code of the user's own classes, not only names.

    Raises `InputError` if the module cannot be pickled.
    """
    with _code_by_value({name, *(type(layer).__module__ for layer in network.modules())}):
        try:
            return dumps(network)
        except Exception as error:  # whatever the attributes of a user's classes raise
            text = f"teacher module {name} cannot be sent to workers ({type(error).__name__}: {first_line(error)})"
            raise InputError(f"{text}; accepted: one whose attributes can be pickled") from error


@contextmanager
def _code_by_value(names: Collection[str]) -> Iterator[None]:
    """Within this context, pickles contain the code of these modules and of their packages, unless installed."""
    with ExitStack() as after:
        for module in own_code(names):
            register_pickle_by_value(module)
            after.callback(unregister_pickle_by_value, module)
        yield


@contextmanager
def plugins_by_value(configs: tuple[TrialConfig | type, ...]) -> Iterator[None]:
    """Within this context, pickles contain the code and the origins of plug-ins that are not installed.

    The plug-ins are those in the given configs, and the given classes. Raises `InputError` if the code of a plug-in
    cannot be identified.
    """
    with _code_by_value(plugin_modules(configs)), origins_stored(configs):
        yield


def own_device() -> str:
    """Return "cuda" if Ray has assigned a GPU to this process and PyTorch can use it, else "cpu"."""
    return "cuda" if ray.get_gpu_ids() and torch.cuda.is_available() else "cpu"


Job = PlannedTrial[PreparedRefs]
"""A trial in the form that is sent to a worker."""


class SweepJobs(Mapping[str, Job]):
    """Mapping from keys to jobs. Each job is pickled separately into one array, which workers read without a copy.

    With a dictionary, each trial would unpickle the jobs of all trials of the sweep. Raises `InputError` if a plug-in's
    code cannot be identified.
    """

    def __init__(self, jobs: Iterable[Job]) -> None:
        self._places: dict[str, tuple[int, int]] = {}
        whole, numbers, jobs = bytearray(), {}, list(jobs)
        with plugins_by_value(tuple(job.config for job in jobs)):
            for job in jobs:
                begin = len(whole)
                # Each object reference is kept once in a separate list, because Ray keeps an object alive only for
                # references that Ray serialises itself. Ray's pickler includes the code of methods that a script or a
                # notebook defines.
                whole += dumps(_with_refs(job, lambda ref: numbers.setdefault(ref, len(numbers))))
                self._places[job.key] = begin, len(whole)
        self._refs = list(numbers)
        self._bytes = np.frombuffer(whole, np.uint8)

    def __getitem__(self, key: str) -> Job:
        begin, end = self._places[key]
        return _with_refs(loads(self._bytes[begin:end].tobytes()), lambda number: self._refs[number])

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _with_refs(job: Job, stand_in: Callable[[Any], Any]) -> Job:
    """Return the job with each object reference `ref` replaced by `stand_in(ref)`."""
    contents = {kind: ContentRef(one.name, stand_in(one.ref)) for kind, one in job.prepared.contents.items()}
    return replace(job, prepared=replace(job.prepared, contents=contents))


class JobTable:
    """Actor that holds the jobs of `SearchJobs`."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}

    def put(self, job: Job) -> None:
        """Store a job, replacing any job with the same key."""
        self._jobs[job.key] = job

    def take(self, key: str) -> Job:
        """Return the job `key`. Raises `KeyError` if there is none; after a restart the actor has no jobs."""
        return self._jobs[key]

    def remove(self, key: str) -> None:
        """Delete the job `key`, which no trial needs any more."""
        self._jobs.pop(key, None)


class SearchJobs:
    """Table of jobs by key, held by an actor. The driver creates the table, adds jobs one by one, and closes it.

    If the actor dies, a trial that does not find its job is retried, and the driver stores the job again before that.
    """

    def __init__(self) -> None:
        self._actor = lasting_actor(JobTable)

    def __getitem__(self, key: str) -> Job:
        return call_actor(self._actor.take, key)

    def put(self, job: Job) -> None:
        """Store a job, and wait until it is stored. Raises `InputError` if a plug-in's code cannot be identified."""
        with plugins_by_value((job.config,)):
            call_actor(self._actor.put, job)

    def remove(self, key: str) -> None:
        """Delete the job of a trial that has ended."""
        self._actor.remove.remote(key)

    def close(self) -> None:
        """End the actor."""
        ray.kill(self._actor)
