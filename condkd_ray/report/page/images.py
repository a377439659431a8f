"""Pictures as data URIs, so that a page loads no other file."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from condkd_ray.core.records import Record, grid_path
from condkd_ray.core.task import is_dense
from condkd_ray.data.palette import colours
from condkd_ray.report.figures.style import STYLE, ArmStyles, name
from condkd_ray.report.page.elements import Element, Gallery, Key, Picture, Text
from condkd_ray.report.results import Results

MOST = 12
"""Largest number of grids, so that the page opens at once."""
_MASKS = (
    "The newest images in the memory at the end of the trial, or condensed images if it makes no synthetic ones, and "
    "test images; below them the classes of their pixels."
)
_VOID = "no class"
_WHAT = (
    "Some of the newest images in the memory at the end of the trial, a row per class; condensed images if the trial "
    "makes no synthetic ones."
)


def vector(figure: Figure | None, words: str, caption: str = "") -> list[Element]:
    """Return a figure as SVG, in which letters are paths, so that it looks the same everywhere; [] for None.

    `words`: its alternative text.
    """
    if figure is None:
        return []
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE | {"svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return [Picture(_uri(buffer.getvalue(), "svg+xml"), words, caption)]


def grids(results: Results, styles: ArmStyles) -> list[Element]:
    """Return the image grids of one trial per arm: at the arm's largest IPC, the first seed that has a grid."""
    chosen: dict[str, Record] = {}
    for record in sorted(results.finished, key=lambda one: (-one.ipc, one.seed)):
        if grid_path(results.out, record.config_hash).is_file():
            chosen.setdefault(record.arm, record)
    return gallery(results, [chosen[arm] for arm in styles if arm in chosen])


def gallery(results: Results, chosen: Sequence[Record]) -> list[Element]:
    """Return the existing image grids of these trials, at most `MOST` of them, and the colours of masks' classes."""
    out, dense = results.out, is_dense(results.score.task)
    there = [record for record in chosen if grid_path(out, record.config_hash).is_file()]
    if not there:
        return []
    shown = [_grid(out, record) for record in there[:MOST]]
    more = f" {len(there) - MOST} more are in the folder grids." if len(there) > MOST else ""
    text = Text(f"{_MASKS if dense else _WHAT}{more}", small=True)
    return [*([key(results)] if dense else []), Gallery(shown, large=dense), text]


def key(results: Results) -> Key:
    """Return the colours of the classes in masks."""
    about = results.manifest.dataset
    names = about.get("class_names") or [str(number) for number in range(int(about.get("num_classes", 0)))]
    found = [(name, f"#{bytes(rgb).hex()}") for name, rgb in zip(names, colours(len(names)).tolist(), strict=True)]
    return Key([*found, (_VOID, "#000000")])


def _grid(out: Path, record: Record) -> Picture:
    at = f", IPC {record.ipc}" if record.ipc else ""
    trial = f"{name(record.arm)}{at}, seed {record.seed}"
    return Picture(_uri(grid_path(out, record.config_hash).read_bytes(), "png"), f"synthetic images of {trial}", trial)


def _uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
