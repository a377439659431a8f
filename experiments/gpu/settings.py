"""Chooses precision, compilation and graphs for (g): the fastest combination that (d) has measured."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from condkd_ray.core.storage import atomic_write
from condkd_ray.trial.config import TrialConfig
from gpu.parts import Box
from gpu.steps import BY_TIME, COMPILED, EAGER, row_name

FIELDS = ("precision", "compile", "graphs")
"""Fields of the trial's config that are chosen; they change its hash and the last bits of its results."""
FILE = "setting.json"


class Setting(NamedTuple):
    """A row of (d), its `FIELDS`, and the reason for the choice."""

    row: str
    fields: dict[str, Any]
    because: str


def choose(box: Box, plain: TrialConfig, folder: Path | None) -> Setting:
    """Return the setting of the checkpoint in `folder`; without one, the fastest row; else the fields of `plain`.

    A row is chosen only if the row of `plain` was measured too: (d) may have ended or failed before. Rows are compared
    by the milliseconds of a distillation step at the recipe's batch size, which is most of the recipe's time.
    """
    if folder is not None:
        row, fields, _ = json.loads((folder / FILE).read_bytes())
        return Setting(row, fields, "a checkpoint was made under it")
    # Without the row in which cuDNN chooses by time: no field of a trial selects that.
    rows = {row: fields for row, fields in (EAGER | COMPILED).items() if row != BY_TIME}
    batch = plain.distiller.batch
    found = {row: box.found("d", row_name(row, batch, "distillation")) or {} for row in rows}
    taken: Mapping[str, float] = {row: figures["ms"] for row, figures in found.items() if "ms" in figures}
    own = str(plain.precision)
    if own not in taken:
        fields = {name: getattr(plain, name) for name in FIELDS}
        return Setting(own, fields, f"(d) has not measured its distillation at batch {batch}")
    row = min(taken, key=lambda name: taken[name])
    fields = {name: rows[row].get(name, getattr(plain, name)) for name in FIELDS}
    return Setting(row, fields, f"{taken[row]:.4g} ms, the least of {len(taken)} rows of (d)")


def write(setting: Setting, folder: Path) -> None:
    """Store the setting beside the checkpoint, for the call that continues."""
    atomic_write(folder / FILE, json.dumps(setting).encode())
