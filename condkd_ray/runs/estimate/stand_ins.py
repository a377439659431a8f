"""A workshop that makes nothing dear: stand-ins of equal shape for what the cache does not hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from condkd_ray.core.samples import Samples
from condkd_ray.core.view import SILENT, View
from condkd_ray.methods.condensation import AnyCondensation, Imported, RandomReal
from condkd_ray.methods.supervised import as_teacher
from condkd_ray.models.teacher import Teacher
from condkd_ray.trial.artifacts import Workshop
from condkd_ray.trial.config import TrialConfig


class Sketch(Workshop):
    """An untrained teacher for one that is not cached, random real images for a condensed set that is not.

    They take a trial as long as the true ones do. `teachers` and `sets` list what a run would make first, once each.
    """

    def __init__(self, cache: Path | None = None, device: str = "cpu", view: View = SILENT) -> None:
        super().__init__(cache, device, view)
        self.teachers: dict[str, TrialConfig] = {}
        self.sets: dict[str, tuple[TrialConfig, AnyCondensation]] = {}

    def _teacher(self, config: TrialConfig) -> Teacher:
        key = self._teacher_key(config)
        if config.teacher.weights is not None or self._teacher_path(config).is_file():
            return super()._teacher(config)
        self.teachers[key] = config
        dataset = self.data(config)
        network = config.teacher.build(dataset).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return as_teacher(network, dataset).to(self.device)

    def _cached_condense(self, config: TrialConfig, method: AnyCondensation) -> Samples:
        key = self._condensed_key(config, method)
        if self._condensed_path(config, method).is_file():
            return super()._cached_condense(config, method)
        self.sets[key] = (config, method)
        return self._condense(config, RandomReal(ipc=method.ipc))

    def _seen(self, config: TrialConfig, condensed: Samples | None) -> Samples | None:
        # An untrained teacher recognises nothing; the run itself will ask the true one.
        if isinstance(config.condensation, Imported):
            config = replace(config, condensation=replace(config.condensation, force=True))
        return super()._seen(config, condensed)
