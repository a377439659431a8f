"""Example images of a segmentation trial with coloured masks, as rows of a grid. All of it is our choice.

Letters: N images of a row, C channels, H W height and width.
"""

import torch
from torch import Tensor, nn

from condkd_ray.core.records import Outcome
from condkd_ray.core.samples import Samples, to_pixels
from condkd_ray.data.datasets import RealImages
from condkd_ray.data.palette import coloured
from condkd_ray.methods.memory import Store
from condkd_ray.models.teacher import Teacher
from condkd_ray.trial.config import Prepared, TrialConfig
from condkd_ray.trial.loop import TrialState

COLUMNS = 6
"""Largest number of images in a row."""


def synthetic_rows(
    config: TrialConfig, prepared: Prepared, state: TrialState, store: Store
) -> tuple[Tensor | None, list[str], int]:
    """Return rows of the newest synthetic images and of their masks by teacher and student, names, and images per row.

    The images are uint8 (rows x N, 3, H, W), row after row; None without images. If the trial makes no images, the
    condensed ones are shown, with their own masks.
    """
    ids = config.memory.live(state.memory)[-COLUMNS:]
    shown = store.gather(ids) if len(ids) else prepared.condensed
    if shown is None:
        return None, [], 0
    teacher, shown = prepared.teacher, shown[:COLUMNS].to(prepared.teacher.device)
    what = ("synthetic images", "teacher") if len(ids) else ("labelled images", "masks")
    rows = {what[0]: _pixels(shown, teacher), what[1]: coloured(shown.labels.cpu())}
    rows["student"] = _predicted(state.distiller.student, shown.images)
    return torch.cat(list(rows.values())), list(rows), len(shown)


def with_test_rows(
    untested: Outcome, student: nn.Module, test: RealImages, teacher: Teacher
) -> tuple[Tensor, list[str]]:
    """Return the rows of an outcome and their names, and four more: test images, their masks, teacher, student.

    The test images are spread evenly over the test set.
    """
    few = test.spread(untested.images_per_class).to(teacher.device)
    shown = few.samples(teacher.mean, teacher.std)
    rows = {
        "test images": _pixels(shown, teacher),
        "masks": coloured(shown.labels.cpu()),
        "teacher": _predicted(teacher.network, shown.images),
        "student": _predicted(student, shown.images),
    }
    assert untested.images is not None, "a trial shows its synthetic or its condensed images"
    return torch.cat([untested.images, *rows.values()]), [*untested.grid_rows, *rows]


def _pixels(shown: Samples, teacher: Teacher) -> Tensor:
    """Return uint8 images (N, 3, H, W) on the CPU; grey ones have three equal channels."""
    return to_pixels(shown.images, teacher.mean, teacher.std).cpu().expand(-1, 3, -1, -1)


@torch.no_grad()
def _predicted(network: nn.Module, images: Tensor) -> Tensor:
    """Return the coloured masks (N, 3, H, W) that a network in eval mode predicts."""
    return coloured(network.eval()(images).argmax(1).cpu())
