"""Checks of the contract `condkd_ray.methods.losses.kd.KdLoss`, on random logits and layer outputs."""

import torch

from condkd_ray.methods.losses.kd import KdLoss, NetworkOutputs
from condkd_ray.testing.states import expect

LABELS = torch.arange(8) % 5
"""Labels (8,) of five classes for the outputs of `outputs`."""


def outputs(seed: int) -> NetworkOutputs:
    """Return random logits (8, 5) and the output (8, 3, 4, 4) of one layer."""
    rng = torch.Generator().manual_seed(seed)
    return NetworkOutputs(4 * torch.randn(8, 5, generator=rng), (torch.randn(8, 3, 4, 4, generator=rng),))


def select_rows(given: NetworkOutputs, rows: slice) -> NetworkOutputs:
    """Return the outputs for some of the images."""
    return NetworkOutputs(given.logits[rows], tuple(tap[rows] for tap in given.taps))


def check_kd_loss(loss: KdLoss) -> None:
    """Run all checks of this module. Raises `AssertionError` with the rule that `loss` breaks."""
    check_one_value_an_image(loss)
    check_perfect_student(loss)
    check_precision(loss)


def check_one_value_an_image(loss: KdLoss) -> None:
    """Check that each image has one loss > 0 that does not depend on other images."""
    whole = loss(outputs(0), outputs(1), LABELS)
    expect(whole.shape == (8,), "the losses of 8 images have shape (8,)")
    student, teacher = outputs(0), outputs(1)
    parts = [
        loss(select_rows(student, rows), select_rows(teacher, rows), LABELS[rows])
        for rows in (slice(0, 3), slice(3, 8))
    ]
    torch.testing.assert_close(torch.cat(parts), whole)
    expect(bool((whole > 0).all()), "losses of random logits are above 0")


def check_perfect_student(loss: KdLoss) -> None:
    """Check that a student with the teacher's outputs has a lower loss than a random one, and finite gradients."""
    perfect = loss(outputs(1), outputs(1), LABELS)
    expect(
        bool((loss(outputs(0), outputs(1), LABELS) > perfect).all()),
        "a student with the teacher's outputs has a lower loss than a random one",
    )
    student = outputs(1).logits.clone().requires_grad_()
    loss(NetworkOutputs(student, outputs(1).taps), outputs(1), LABELS).sum().backward()
    expect(
        student.grad is not None and bool(student.grad.isfinite().all()),
        "the gradient of a student with the teacher's outputs is finite",
    )


def check_precision(loss: KdLoss) -> None:
    """Check that bfloat16 outputs of the student are converted to float32, also under autocast."""
    rough = NetworkOutputs(outputs(0).logits.bfloat16(), tuple(tap.bfloat16() for tap in outputs(0).taps))
    exact = NetworkOutputs(rough.logits.float(), tuple(tap.float() for tap in rough.taps))
    wanted = loss(exact, outputs(1), LABELS)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(rough, outputs(1), LABELS)
    expect(found.dtype == torch.float32, "losses are float32")
    torch.testing.assert_close(found, wanted)
