"""Records of an experiment, and the tables, figures, pages and event files made from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from condkd_ray.core.records import Manifest, Record


def build(out: Path, tensorboard: bool = True, width: int | None = None) -> str:
    """Rebuild everything from what is stored under `out`; the tables and what failed, as text of so many columns.

    Makes the Parquet files, `table.md`, `table.csv`, `figure.png`, `figure.svg`, `curves.png`, `diagnosis.png`,
    `histograms.png`, `report.html` and `tensorboard/`; of a search `search.md`, `search.csv`, `report.html` and
    `tensorboard/`. Any part of the planned trials will do. Records of trials that the manifest does not plan, as after
    a change of flags, go into the Parquet files alone. Raises `InputError` where `out` is not the folder of an
    experiment.
    """
    # Workers import the records of this package; they shall not pay for matplotlib and the rest.
    from condkd_ray.report import page, parquet
    from condkd_ray.report.figures import accuracy
    from condkd_ray.report.tables import arms, failures, search, table
    from condkd_ray.report.tensorboard import writer as boards

    out = Path(out)
    manifest, counted = planned(out)
    parquet.write_tables(out)
    shown = search if manifest.search else arms
    shown.write(out, counted, manifest)
    if not manifest.search:
        accuracy.write(out, counted, manifest)
    if tensorboard:
        boards.rebuild(out, counted)
    page.write(out, counted, manifest)
    wrong = failures.screen(counted, manifest, out)
    return shown.terminal_table(counted, manifest, width or table.WIDTH) + (f"\n{wrong}" if wrong else "")


def planned(out: Path) -> tuple[Manifest, list[Record]]:
    """The manifest of `out`, and the stored trials that it plans, of the newest `numbers` among these.

    Of any others there a note in the manifest.
    """
    from condkd_ray.core import records

    manifest, stored = records.read_manifest(out), records.read_all_records(out)
    wanted = {trial["config_hash"] for trial in manifest.planned}
    counted, _ = records.newest([record for record in stored if not wanted or record.config_hash in wanted])
    kept = {record.config_hash for record in counted}
    left_out = [record for record in stored if record.config_hash not in kept]
    return dataclasses.replace(manifest, notes=[*manifest.notes, *_left_out(left_out, counted)]), counted


def _left_out(records: Sequence[Record], counted: Sequence[Record]) -> list[str]:
    """How many stored trials are in no table and figure, and why."""
    shown = counted[0].numbers if counted else 0
    older = sum(record.numbers < shown for record in records)
    others = len(records) - older
    told = [
        f"{_trials(older)} left out of tables and figures: made by an earlier version whose numbers differ; shown are "
        f"those of version {shown} of the numbers."
    ]
    return [
        *told * bool(older),
        *[f"{_trials(others)} of other settings and left out of tables and figures."] * bool(others),
    ]


def _trials(count: int) -> str:
    return "1 stored trial is" if count == 1 else f"{count} stored trials are"
