"""The table of a segmentation: the IoU of each class on the test images, by arm, and of the teachers."""

import math

from condkd_ray.core.task import IOU
from condkd_ray.report.results import Results
from condkd_ray.report.statistics import spread
from condkd_ray.report.tables import teachers
from condkd_ray.report.tables.table import Table, arm_cells, count, mean_of, mean_text

_LEGEND = (
    "IoU of each class on the test images in percent: mean ± standard deviation over n seeds. A dash: no test image "
    "has a pixel of the class and none is predicted as it; the mean IoU leaves such a class out."
)
_SHARES = " Share of pixels: the class's share of the labelled pixels of the test images, in percent."


def class_names(results: Results) -> list[str]:
    """Return the classes with an IoU: those of the manifest, in their order, or those that trials have measured."""
    known = results.manifest.dataset.get("class_names")
    measured = {name: None for record in results.finished for name in record.metrics if name.startswith(IOU)}
    return list(known or (name.removeprefix(IOU) for name in measured)) if measured else []


def iou_table(results: Results) -> Table:
    """Return a table with a column per class and a row per arm and IPC; no rows in classification.

    The first rows are the share of the pixels of each class and the IoU of the teachers, if they are known.
    """
    names, shares = class_names(results), results.manifest.dataset.get("pixel_shares", {})
    header = ["arm", "IPC", "n", *names]
    if not names:
        return Table("IoU of each class", header, [], _LEGEND)
    rows = []
    if shares:
        rows.append(["share of pixels", "-", "-", *(_percent(shares.get(name)) for name in names)])
    if known := [one["test_iou"] for one in teachers.listed(results.manifest) if one.get("test_iou")]:
        cells = [
            mean_text(spread(_number(one.get(name)) for one in known), len(known), factor=100, digits=1)
            for name in names
        ]
        rows.append(["teacher" if len(known) == 1 else "teachers", "-", str(len(known)), *cells])
    for key, members in results.groups.items():
        n = count(members)
        cells = [mean_text(mean_of(members, f"{IOU}{name}"), n, factor=100, digits=1) for name in names]
        rows.append([*arm_cells(*key), str(n), *cells])
    return Table("IoU of each class", header, rows, _LEGEND + _SHARES * bool(shares))


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"
