"""What a study is told of trials as they run and end: the same of a search's as of planned ones."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from optuna.artifacts import FileSystemArtifactStore

from condkd_ray.core.config import Tree
from condkd_ray.core.method import Metrics
from condkd_ray.core.records import Outcome, grid_path
from condkd_ray.report.figures.image_grids import write_grid
from condkd_ray.study import Objective, TrialLog
from condkd_ray.study.objective import COST, Constraint, at_end, excesses

ARTIFACTS = "artifacts"
"""Folder of the images and configs that the dashboard shows beside a trial."""


class Scribe:
    """Writes into the study what its `objective` sees of trials; files lie in the result folder `out`."""

    def __init__(
        self, study: TrialLog, objective: Objective, out: Path, constraints: Sequence[Constraint] = ()
    ) -> None:
        self._ledger, self._objective, self._out, self._constraints = study, objective, out, constraints
        (out / ARTIFACTS).mkdir(parents=True, exist_ok=True)
        self._store = FileSystemArtifactStore(out / ARTIFACTS)

    def round(self, number: int, metrics: Metrics) -> None:
        """A trial has ended a round."""
        self._ledger.report(number, int(metrics["round"]), self._objective.now(metrics))

    def ended(self, number: int, key: str, tree: Tree, outcome: Outcome) -> None:
        """A trial of this config is over: what it took, its images and whole config, and how it has ended."""
        if self._ledger.over(number):
            return
        self._ledger.note(number, attributes(outcome, [one.name for one in self._constraints]))
        self._attach(number, key, tree, outcome)
        beyond = excesses(self._constraints, outcome.history)
        self._ledger.constrain(number, beyond)
        unknown = [one.name for one in self._constraints if math.isnan(beyond[one.text])]
        if outcome.status == "finished" and unknown:
            self._ledger.fail(number, f"no finite {', '.join(unknown)}")
        elif outcome.status == "finished":
            self._ledger.complete(number, self._objective.values(outcome.history))
        elif outcome.status == "pruned":
            self._ledger.prune(number)
        else:
            self._ledger.fail(number, outcome.reason)

    def _attach(self, number: int, key: str, tree: Tree, outcome: Outcome) -> None:
        grid = grid_path(self._out, key)
        if outcome.images is not None and outcome.images_per_class:
            write_grid(grid, outcome.images, outcome.images_per_class)
        if grid.is_file():
            self._ledger.attach(number, grid, self._store)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{key}.yaml"
            path.write_text(yaml.safe_dump(tree, sort_keys=False))
            self._ledger.attach(number, path, self._store)


def attributes(outcome: Outcome, also: Sequence[str] = ()) -> dict[str, Any]:
    """What a trial took, as far as it came: seconds, bytes, and the node that it ran on last; and metrics by name."""
    found = {name: at_end(name, outcome.history) for name in (*COST, *also)}
    told = {name: value for name, value in found.items() if math.isfinite(value)}
    return told | ({"peak_bytes": outcome.peak_bytes} if outcome.peak_bytes else {}) | {"node": outcome.node}
