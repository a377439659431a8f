"""Trials, and what they are prepared with, on their way to the workers that run them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import ray
import torch
from ray.cloudpickle import loads, register_pickle_by_value, unregister_pickle_by_value
from ray.cloudpickle.cloudpickle_fast import dumps
from torch import Tensor, nn

from condkd_ray.cluster.lost import patient
from condkd_ray.cluster.pool import lasting_actor
from condkd_ray.cluster.stores import ask
from condkd_ray.core.errors import first_line
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
"""By name and device: what the last trial of this process used."""


class Packer:
    """Packs for one sweep, on the driver, which owns the objects."""

    def __init__(self) -> None:
        self._stored: dict[str, ContentRef] = {}

    def pack(self, prepared: Prepared) -> PreparedRefs:
        """What stands for `prepared` in a message; a content that was stored before is not stored again."""
        contents = {kind: self._store(*content) for kind, content in named_contents(prepared).items()}
        if prepared.own_module is not None:
            contents[MODULE] = self._store_module(prepared, prepared.own_module)
        teacher = {name: getattr(prepared.teacher, name) for name in TEACHER_FIELDS}
        return PreparedRefs(contents, teacher, prepared.hashes)

    def job(self, trial: PlannedTrial[Prepared]) -> PlannedTrial[PreparedRefs]:
        """The trial as a worker gets it."""
        return PlannedTrial(trial.key, trial.plan, self.pack(trial.prepared), trial.lineage)

    def _store_module(self, prepared: Prepared, function: str) -> ContentRef:
        """The network that a user's function made, with its code, which the nodes of a cluster may not have."""
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
    return patient(lambda: ray.put(content), "handing out what trials are prepared with")


def unpack(config: TrialConfig, refs: PreparedRefs, device: str) -> Prepared:
    """What was packed, with all but real images on `device`.

    On the CPU all sets but the teacher's weights are views of shared memory: nobody may write to them.
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
    return Prepared(**contents, hashes=refs.hashes)


def by_value(network: nn.Module, name: str) -> bytes:
    """A pickle of the teacher module `name` that has the code of the user's own classes in it, not only their names.

    Raises `InputError` where it cannot be pickled.
    """
    with ExitStack() as after:
        for module in own_code(network, name):
            register_pickle_by_value(module)
            after.callback(unregister_pickle_by_value, module)
        try:
            return dumps(network)
        except Exception as error:  # whatever the attributes of a user's classes raise
            text = f"teacher module {name} cannot be sent to workers ({type(error).__name__}: {first_line(error)})"
            raise InputError(f"{text}; accepted: one whose attributes can be pickled") from error


def own_device() -> str:
    """The GPU Ray gave this process, if it is a real one."""
    return "cuda" if ray.get_gpu_ids() and torch.cuda.is_available() else "cpu"


Job = PlannedTrial[PreparedRefs]
"""A trial as a worker gets it."""


class SweepJobs(Mapping[str, Job]):
    """Jobs by key, each pickled by itself into one array, which Ray hands on without a copy.

    As a dictionary all of them would be built anew by every trial: thousands of trials, thousands of times.
    """

    def __init__(self, jobs: Iterable[Job]) -> None:
        self._places: dict[str, tuple[int, int]] = {}
        whole, numbers = bytearray(), {}
        for job in jobs:
            begin = len(whole)
            # References to objects lie beside, once each: Ray keeps an object only for those in its own messages. Its
            # pickler sends a method that a script or a notebook defines by value.
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
    """The job with what stands for each of its references."""
    contents = {kind: ContentRef(one.name, stand_in(one.ref)) for kind, one in job.prepared.contents.items()}
    return replace(job, prepared=replace(job.prepared, contents=contents))


class JobTable:
    """The actor behind `SearchJobs`."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}

    def put(self, job: Job) -> None:
        """Keep a job, in place of one of its key."""
        self._jobs[job.key] = job

    def take(self, key: str) -> Job:
        """The job `key`. Raises `KeyError` where there is none: the actor may have been started again, empty."""
        return self._jobs[key]

    def remove(self, key: str) -> None:
        """Nobody will ask for it again."""
        self._jobs.pop(key, None)


class SearchJobs:
    """Jobs by key, as far as they have been put there. To be made and ended by the driver, and sent to workers.

    Should its actor die, the trial that asks in vain is started again, before which the driver puts its job there anew.
    """

    def __init__(self) -> None:
        self._actor = lasting_actor(JobTable)

    def __getitem__(self, key: str) -> Job:
        return ask(self._actor.take, key)

    def put(self, job: Job) -> None:
        """Keep a job; it is there when this returns."""
        ask(self._actor.put, job)

    def remove(self, key: str) -> None:
        """The trial is over."""
        self._actor.remove.remote(key)

    def close(self) -> None:
        """End the actor."""
        ray.kill(self._actor)
