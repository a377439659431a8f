from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from condkd_ray.core.method import InputError, NonFiniteError
from condkd_ray.core.rng import Streams
from condkd_ray.methods.condensation import RandomReal, TrajectoryMatching, trajectory_matching
from condkd_ray.methods.condensation.trajectory_matching import trajectory_loss, unroll
from methods.condensation.condensers import NUM_CLASSES, condense, real_samples

SMALL = TrajectoryMatching(
    ipc=3,
    condensed_together=3,
    prefixes=False,
    iterations=2,
    experts=1,
    expert_epochs=2,
    max_start=0,
    steps=2,
    width=3,
    depth=1,
    augment="none",
)


def expert(method: TrajectoryMatching, number: int = 0, seed: int = 0) -> Tensor:
    """Return the trajectory (E + 1, P) that `method` matches; with another `number` or `seed`, one it does not."""
    return method.expert(number, real_samples(), NUM_CLASSES, lambda images, _: images, Streams(seed))


def reference_logits(parameters: list[Tensor], images: Tensor) -> Tensor:
    """Compute one block (convolution, instance normalisation, ReLU, pooling) and the linear layer."""
    kernel, bias, scale, offset, weight, last = parameters
    maps = F.conv2d(images, kernel, bias, padding=1)
    centred = maps - maps.mean((2, 3), keepdim=True)
    maps = centred / (centred.square().mean((2, 3), keepdim=True) + 1e-5).sqrt()
    maps = (maps * scale.view(1, -1, 1, 1) + offset.view(1, -1, 1, 1)).clamp(min=0)
    side = maps.shape[-1] // 2
    return maps.reshape(len(images), -1, side, 2, side, 2).mean((3, 5)).flatten(1) @ weight.T + last


def reference_loss(images: Tensor, step_size: Tensor, labels: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Compute the loss with plain SGD in float64, parameter by parameter."""
    shapes = [(3, 3, 3, 3), (3,), (3,), (3,), (4, 3 * 4 * 4), (4,)]
    sizes = [torch.Size(shape).numel() for shape in shapes]
    parameters = [p.view(s).requires_grad_() for p, s in zip(before.split(sizes), shapes, strict=True)]
    for _ in range(2):
        log = reference_logits(parameters, images).log_softmax(1)
        loss = -sum(log[row, label] for row, label in enumerate(labels.tolist())) / len(labels)
        gradients = torch.autograd.grad(loss, parameters, create_graph=True)  # type: ignore[arg-type]
        parameters = [p - step_size * g for p, g in zip(parameters, gradients, strict=True)]
    reached = torch.cat([p.flatten() for p in parameters])
    above = sum((a - b) ** 2 for a, b in zip(reached, after, strict=True))
    return above / sum((a - b) ** 2 for a, b in zip(before.tolist(), after.tolist(), strict=True))


def test_two_iterations_equal_a_plain_loop():
    method = replace(SMALL, lr=20.0, step_lr=0.01, momentum=0.5, expert_lr=0.05)
    start, made = condense(RandomReal(ipc=3)), condense(method)
    trajectory = expert(method).double()
    images, step_size = start.images.double(), torch.tensor(0.05, dtype=torch.float64)
    velocities = [torch.zeros(()), torch.zeros(())]
    for _ in range(2):
        images, step_size = images.detach().requires_grad_(), step_size.detach().requires_grad_()
        loss = reference_loss(images, step_size, start.labels, trajectory[0].clone(), trajectory[2])
        gradients = torch.autograd.grad(loss, [images, step_size])
        velocities = [0.5 * v + g for v, g in zip(velocities, gradients, strict=True)]
        images, step_size = images - 20.0 * velocities[0], step_size - 0.01 * velocities[1]
    assert (images - start.images).abs().max() > 0.01
    assert abs(step_size - 0.05) > 1e-3
    torch.testing.assert_close(made.images.double(), images.detach(), atol=1e-4, rtol=1e-4)


def test_loss_by_hand():
    start, target, reached = torch.tensor([0.0, 0.0]), torch.tensor([3.0, 4.0]), torch.tensor([3.0, 2.0])
    assert trajectory_loss(reached, start, target) == 4 / 25
    assert trajectory_loss(start, start, target) == 1
    assert trajectory_loss(target, start, target) == 0


def test_an_expert_is_its_parameters_before_and_after_each_epoch():
    trajectory = expert(replace(SMALL, expert_epochs=5))
    assert trajectory.shape[0] == 6
    steps = (trajectory[1:] - trajectory[:-1]).norm(dim=1)
    assert (steps > 0).all()
    assert not torch.equal(trajectory[0], expert(SMALL, number=1)[0])
    assert torch.equal(trajectory[:3], expert(SMALL))


def test_images_train_a_network_towards_the_end_of_an_expert_that_was_not_matched():
    method = replace(SMALL, ipc=5, condensed_together=5, iterations=60, experts=3, steps=4, width=8, lr=30.0)

    def left(images: Tensor, labels: Tensor) -> float:
        before, _, after = expert(method, number=9)
        network = method.network(images, NUM_CLASSES, "any", Streams(0))
        return trajectory_loss(unroll(network, before, torch.tensor(0.1), [(images, labels)] * 4), before, after).item()

    start, made = condense(RandomReal(ipc=5)), condense(method)
    assert left(made.images, made.labels) < 0.9 * left(start.images, start.labels)


def test_batches_contain_new_images_until_all_are_used():
    method, rng = replace(SMALL, batch=4, steps=7), torch.Generator().manual_seed(0)
    batches = method.batches(10, rng)
    assert [len(batch) for batch in batches] == [4] * 7
    for first, second in zip(batches[:6:2], batches[1:6:2], strict=True):
        assert len(set(first.tolist() + second.tolist())) == 8
    assert len(set(torch.cat(batches).tolist())) == 10
    for all_of_them in (0, 10, 50):
        whole = replace(method, batch=all_of_them).batches(10, rng)
        assert [batch.tolist() for batch in whole] == [list(range(10))] * 7


def test_batches_and_prefixes_and_augmentation_change_the_images():
    made = [condense(replace(SMALL, **change)).images for change in ({}, {"batch": 4}, {"prefixes": True})]
    made += [condense(replace(SMALL, augment="dsa"), flip_ok=flip).images for flip in (True, False)]
    for place, images in enumerate(made):
        assert not any(torch.equal(images, other) for other in made[:place])


def test_settings_that_do_not_fit_into_memory_are_refused_before_training(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(TrajectoryMatching, "expert", None)
    monkeypatch.setattr(trajectory_matching, "free_bytes", lambda device: 4_000_000)
    big = replace(SMALL, steps=40, width=32)
    what = r"memory of steps 40, batch 12, width 32 is .* MB'; accepted: at most .* which are free, as with"
    with pytest.raises(InputError, match=what) as error:
        condense(big)
    sizes = dict(part.split() for part in str(error.value).split("as with ")[1].split(" or "))
    assert sizes.keys() == {"steps", "batch", "width"}
    for name, size in sizes.items():
        replace(big, **{name: int(size)}).require_memory((3, 8, 8), NUM_CLASSES, 4_000_000)
        with pytest.raises(InputError):
            replace(big, **{name: int(size) + 1}).require_memory((3, 8, 8), NUM_CLASSES, 4_000_000)


def test_divergence_raises_an_error_that_names_the_loss_term():
    with pytest.raises(NonFiniteError, match="condensation/trajectory is not finite at step"):
        condense(replace(SMALL, lr=1e38, iterations=4))


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"ipc": 11}, "condensed_together is 10; accepted: 11 or more"),
        ({"steps": 0}, "steps is 0"),
        ({"experts": 0}, "experts is 0"),
        ({"batch": -1}, "batch is -1; accepted: 1 or more, or 0"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"expert_lr": -1.0}, "expert_lr is -1.0"),
        ({"step_lr": -1.0}, "step_lr is -1.0"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"expert_epochs": 10, "ahead": 2, "max_start": 9}, "max_start is 9; accepted: 0 to 8"),
        ({"expert_epochs": 1, "ahead": 2, "max_start": 0}, "ahead is 2; accepted: 1 to 1"),
        ({"width": 0}, "width is 0"),
    ],
)
def test_impossible_fields_are_refused(fields: dict, problem: str):
    with pytest.raises(InputError, match=problem):
        TrajectoryMatching(**fields)
