"""Synthetic result folders."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from condkd_ray.core.records import Record, grid_path, write_manifest, write_record
from condkd_ray.report.figures.image_grids import write_grid
from report.report_factory import make_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """`folder(records, **manifest changes)` writes a result folder, with a grid for the first record."""

    def write(records: Sequence[Record], **changes: Any) -> Path:
        write_manifest(tmp_path, make_manifest(records, **changes))
        for record in records:
            write_record(tmp_path, record)
        pixels = np.random.default_rng(0).integers(0, 256, (20, 1, 8, 8), dtype=np.uint8)
        if records:
            write_grid(grid_path(tmp_path, records[0].config_hash), pixels, per_class=2)
        return tmp_path

    return write
