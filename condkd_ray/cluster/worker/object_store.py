"""What trials are prepared with, by way of the object store: each content goes there once a sweep, as numpy arrays.

Trials get references. What a reused process has unpacked for one trial serves the next that needs the same.
"""

from typing import Any

import torch
from torch import Tensor

from condkd_ray.models.network import label
from condkd_ray.trial import packing
from condkd_ray.trial.config import Prepared, TrialConfig
from condkd_ray.trial.packing import ContentRef, PreparedRefs
from condkd_ray.trial.plan import PlannedTrial


class Packer:
    """Packs for one sweep, on the driver, which owns the objects."""

    def __init__(self) -> None:
        self._stored: dict[str, ContentRef] = {}

    def pack(self, prepared: Prepared) -> PreparedRefs:
        """What stands for `prepared` in a message; a content that was stored before is not stored again."""
        contents = {kind: self._store(*content) for kind, content in packing.named_contents(prepared).items()}
        teacher = {name: getattr(prepared.teacher, name) for name in packing.TEACHER_FIELDS}
        return PreparedRefs(contents, teacher, prepared.hashes)

    def job(self, trial: PlannedTrial[Prepared]) -> PlannedTrial[PreparedRefs]:
        """The trial as a worker gets it."""
        return PlannedTrial(trial.key, trial.plan, self.pack(trial.prepared), trial.lineage)

    def _store(self, name: str, tensors: dict[str, Tensor]) -> ContentRef:
        import ray

        if name not in self._stored:
            self._stored[name] = ContentRef(name, ray.put(packing.to_plain(tensors)))
        return self._stored[name]


_unpacked: dict[tuple[str, ...], Any] = {}
"""By name and device: what the last trial of this process used."""


def unpack(config: TrialConfig, refs: PreparedRefs, device: str) -> Prepared:
    """What was packed, with all but real images on `device`.

    On the CPU all sets but the teacher's weights are views of shared memory: nobody may write to them.
    """
    import ray

    keys = {kind: (content.name, device, label(config.teacher.network)) for kind, content in refs.contents.items()}
    missing = [kind for kind, key in keys.items() if key not in _unpacked]
    arrays = ray.get([refs.contents[kind].ref for kind in missing])
    for kind, found in zip(missing, arrays, strict=True):
        _unpacked[keys[kind]] = packing.build_content(kind, packing.to_tensor(found), config, refs, device)
    for key in set(_unpacked) - set(keys.values()):
        del _unpacked[key]
    contents: dict[str, Any] = {"test": None, "val": None, "condensed": None}
    contents |= {kind: _unpacked[key] for kind, key in keys.items()}
    return Prepared(**contents, hashes=refs.hashes)


def own_device() -> str:
    """The GPU Ray gave this process, if it is a real one."""
    import ray

    return "cuda" if ray.get_gpu_ids() and torch.cuda.is_available() else "cpu"
