"""Checks of the contract `condkd_ray.methods.losses.kd.KdLoss`, on random logits and layer outputs, for each task."""

import torch

from condkd_ray.core.samples import UNLABELLED
from condkd_ray.core.task import Task, is_dense
from condkd_ray.methods.losses.kd import KdLoss, NetworkOutputs
from condkd_ray.testing.states import expect

LABELS = torch.arange(8) % 5
"""Labels (8,) of five classes for the outputs of `outputs`."""


PIXELS = (3, 4)
"""Height and width of the logits in segmentation."""


def outputs(seed: int, task: Task = "classification") -> NetworkOutputs:
    """Return random logits (8, 5), in segmentation (8, 5, 3, 4), and the output (8, 3, 4, 4) of one layer."""
    rng, sides = torch.Generator().manual_seed(seed), PIXELS if is_dense(task) else ()
    return NetworkOutputs(4 * torch.randn(8, 5, *sides, generator=rng), (torch.randn(8, 3, 4, 4, generator=rng),))


def labels_of(task: Task) -> torch.Tensor:
    """Return `LABELS`, in segmentation one for each pixel, of which a column has none."""
    if not is_dense(task):
        return LABELS
    labels = LABELS[:, None, None].repeat(1, *PIXELS)
    labels[:, :, 0] = UNLABELLED
    return labels


def select_rows(given: NetworkOutputs, rows: slice) -> NetworkOutputs:
    """Return the outputs for some of the images."""
    return NetworkOutputs(given.logits[rows], tuple(tap[rows] for tap in given.taps))


def check_kd_loss(loss: KdLoss) -> None:
    """Run all checks of this module for each task that the loss works for.

    Raises `AssertionError` with the rule that `loss` breaks.
    """
    for task in loss.tasks:
        check_one_value_an_image(loss, task)
        check_perfect_student(loss, task)
        check_precision(loss, task)
    if "segmentation" in loss.tasks:
        check_pixels_without_a_label(loss)


def check_one_value_an_image(loss: KdLoss, task: Task = "classification") -> None:
    """Check that each image has one loss > 0 that does not depend on other images."""
    whole = loss(outputs(0, task), outputs(1, task), labels_of(task))
    expect(whole.shape == (8,), "the losses of 8 images have shape (8,)")
    student, teacher = outputs(0, task), outputs(1, task)
    parts = [
        loss(select_rows(student, rows), select_rows(teacher, rows), labels_of(task)[rows])
        for rows in (slice(0, 3), slice(3, 8))
    ]
    torch.testing.assert_close(torch.cat(parts), whole)
    expect(bool((whole > 0).all()), "losses of random logits are above 0")


def check_perfect_student(loss: KdLoss, task: Task = "classification") -> None:
    """Check that a student with the teacher's outputs has a lower loss than a random one, and finite gradients."""
    perfect = loss(outputs(1, task), outputs(1, task), labels_of(task))
    expect(
        bool((loss(outputs(0, task), outputs(1, task), labels_of(task)) > perfect).all()),
        "a student with the teacher's outputs has a lower loss than a random one",
    )
    student = outputs(1, task).logits.clone().requires_grad_()
    loss(NetworkOutputs(student, outputs(1, task).taps), outputs(1, task), labels_of(task)).sum().backward()
    expect(
        student.grad is not None and bool(student.grad.isfinite().all()),
        "the gradient of a student with the teacher's outputs is finite",
    )


def check_precision(loss: KdLoss, task: Task = "classification") -> None:
    """Check that bfloat16 outputs of the student are converted to float32, also under autocast."""
    rough = NetworkOutputs(outputs(0, task).logits.bfloat16(), tuple(tap.bfloat16() for tap in outputs(0, task).taps))
    exact = NetworkOutputs(rough.logits.float(), tuple(tap.float() for tap in rough.taps))
    wanted = loss(exact, outputs(1, task), labels_of(task))
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(rough, outputs(1, task), labels_of(task))
    expect(found.dtype == torch.float32, "losses are float32")
    torch.testing.assert_close(found, wanted)


def check_pixels_without_a_label(loss: KdLoss) -> None:
    """Check that logits of a pixel without a label change no loss."""
    student, labels = outputs(0, "segmentation"), labels_of("segmentation")
    other = student.logits.where((labels != UNLABELLED)[:, None], 7.0)
    teacher = outputs(1, "segmentation")
    found = loss(NetworkOutputs(other, student.taps), teacher, labels)
    torch.testing.assert_close(found, loss(student, teacher, labels))
