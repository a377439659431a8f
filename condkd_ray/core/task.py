"""The task of a data set: one class per image (classification) or one class per pixel (segmentation).

The task is a property of the data. `Samples.labels` are (B,) or (B, H, W), and a network's logits (B, K) or (B, K, H,
W). A method lists the tasks it works for in `Method.tasks`. Letters: B batch, H W height and width, K classes.
"""

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
