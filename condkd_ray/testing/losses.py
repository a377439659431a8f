"""Checks of the contract `condkd_ray.methods.losses.kd.KdLoss`, over random logits and layers."""

import torch

from condkd_ray.methods.losses.kd import KdLoss, NetworkOutputs
from condkd_ray.testing.states import expect

LABELS = torch.arange(8) % 5


def answer(seed: int) -> NetworkOutputs:
    """Logits (8, 5) and one layer (8, 3, 4, 4)."""
    rng = torch.Generator().manual_seed(seed)
    return NetworkOutputs(4 * torch.randn(8, 5, generator=rng), (torch.randn(8, 3, 4, 4, generator=rng),))


def cut(given: NetworkOutputs, rows: slice) -> NetworkOutputs:
    """Some rows of an answer."""
    return NetworkOutputs(given.logits[rows], tuple(tap[rows] for tap in given.taps))


def check_kd_loss(loss: KdLoss) -> None:
    """All checks of this module."""
    check_one_value_an_image(loss)
    check_perfect_student(loss)
    check_precision(loss)


def check_one_value_an_image(loss: KdLoss) -> None:
    """Each image has a loss > 0 of its own, which depends on no other image."""
    whole = loss(answer(0), answer(1), LABELS)
    expect(whole.shape == (8,), "8 images have losses of shape (8,)")
    parts = [loss(cut(answer(0), rows), cut(answer(1), rows), LABELS[rows]) for rows in (slice(0, 3), slice(3, 8))]
    torch.testing.assert_close(torch.cat(parts), whole)
    expect(bool((whole > 0).all()), "losses of random logits are above 0")


def check_perfect_student(loss: KdLoss) -> None:
    """A student that answers as the teacher does has the lowest loss; it has finite gradients."""
    perfect = loss(answer(1), answer(1), LABELS)
    expect(bool((loss(answer(0), answer(1), LABELS) > perfect).all()), "a perfect student has the lowest loss")
    student = answer(1).logits.clone().requires_grad_()
    loss(NetworkOutputs(student, answer(1).taps), answer(1), LABELS).sum().backward()
    expect(student.grad is not None and bool(student.grad.isfinite().all()), "its gradient is finite")


def check_precision(loss: KdLoss) -> None:
    """Half precision is read as float32, and autocast changes nothing."""
    rough = NetworkOutputs(answer(0).logits.bfloat16(), tuple(tap.bfloat16() for tap in answer(0).taps))
    exact = NetworkOutputs(rough.logits.float(), tuple(tap.float() for tap in rough.taps))
    wanted = loss(exact, answer(1), LABELS)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(rough, answer(1), LABELS)
    expect(found.dtype == torch.float32, "losses are float32")
    torch.testing.assert_close(found, wanted)
