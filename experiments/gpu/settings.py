"""Under which precision, compiled or not, with or without graphs (g) runs: the fastest that (d) has measured."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from condkd_ray.core.storage import atomic_write
from condkd_ray.trial.config import TrialConfig
from gpu.parts import Box
from gpu.steps import BY_TIME, COMPILED, EAGER, row_name

FIELDS = ("precision", "compile", "graphs")
"""Of the trial's config; it has another hash, and other last bits, under other values of them."""
FILE = "setting.json"


class Setting(NamedTuple):
    """A row of (d), its `FIELDS`, and why it was chosen."""

    row: str
    fields: dict[str, Any]
    because: str


def choose(box: Box, plain: TrialConfig, folder: Path | None) -> Setting:
    """What the checkpoint in `folder` was made under, where there is one; else the fastest row; else as `plain` is.

    A row is only taken where `plain`'s own was measured too: (d) may have ended, or failed, before it came to that.
    Fastest by the milliseconds of a distillation step at the recipe's batch, which is nearly all of the recipe.
    """
    if folder is not None:
        row, fields, _ = json.loads((folder / FILE).read_bytes())
        return Setting(row, fields, "a checkpoint was made under it")
    # Not the row in which cuDNN takes what it finds to be fastest: no field of a trial asks for that.
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
    """Keep it beside the checkpoint, for the call that goes on."""
    atomic_write(folder / FILE, json.dumps(setting).encode())
