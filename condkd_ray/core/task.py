"""The task of a data set: one class per image (classification) or one class per pixel (segmentation).

The task is a property of the data. `Samples.labels` are (B,) or (B, H, W), and a network's logits (B, K) or (B, K, H,
W). A method lists the tasks it works for in `Method.tasks`. Letters: B batch, H W height and width, K classes.
"""

from dataclasses import dataclass
from typing import Literal

Task = Literal["classification", "segmentation"]
BOTH: tuple[Task, ...] = ("classification", "segmentation")
"""Value of `Method.tasks` for a method that works for both tasks."""
SCORES: dict[Task, str] = {"classification": "accuracy", "segmentation": "miou"}
"""Last part of the metric names of a student's score: `student/test_accuracy`, `student/val_miou`."""
SCORE_NAMES: dict[str, str] = {"accuracy": "accuracy", "miou": "mean IoU"}
"""Name of each score for readers."""
IOU = "student/test_iou/"
"""Start of the names of the metrics that are one class's IoU on the test images; the name of the class follows."""


def is_dense(task: Task) -> bool:
    """Return whether each pixel has a label."""
    return task == "segmentation"


@dataclass(frozen=True)
class Score:
    """The score of networks on real images of a task, a fraction: its name for readers and its keys."""

    task: Task = "classification"

    @property
    def name(self) -> str:
        """`accuracy` or `mean IoU`."""
        return SCORE_NAMES[SCORES[self.task]]

    @property
    def title(self) -> str:
        """The name at the start of a sentence."""
        return self.name[0].upper() + self.name[1:]

    @property
    def test(self) -> str:
        """Metric of a student on the test images: `student/test_accuracy` or `student/test_miou`."""
        return self.of("test")

    @property
    def val(self) -> str:
        """Metric of a student on the validation images."""
        return self.of("val")

    def of(self, part: str, statistic: str = "") -> str:
        """Return the metric on a part of the data or its statistic over the rounds: `student/test_accuracy_mean`."""
        return f"student/{self.key(part)}{statistic and '_'}{statistic}"

    def key(self, part: str) -> str:
        """Return the key of a teacher's score on a part of the data in a manifest, and of a network's in its card."""
        return f"{part}_{SCORES[self.task]}"


CLASSIFICATION = Score()
"""The accuracy."""
