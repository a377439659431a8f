import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from toy import MEAN, STD, answered, blobs, make_prepared, make_teacher, samples, toy_config

from condkd_ray.core.method import InputError, Schedule
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import Samples
from condkd_ray.methods.distiller import Distiller, next_batch
from condkd_ray.methods.inversion import NoInversion
from condkd_ray.methods.losses.kd import Attention, LogitL1
from condkd_ray.methods.memory import Latest
from condkd_ray.models.teacher import Teacher
from condkd_ray.trial.loop import run_round, start
from condkd_ray.trial.run import local_store
from methods.student_steps import begin, contained, drawn, gradients, ones


@pytest.fixture
def teacher() -> Teacher:
    return make_teacher()


@pytest.mark.parametrize(("share", "condensed"), [(0.0, 0), (0.25, 4), (1.0, 16)])
def test_a_share_of_condensed_images_replaces_as_many_synthetic_ones(share, condensed):
    distiller = Distiller(batch=16, condensed_share=share)
    assert distiller.num_condensed(0.0) == distiller.num_condensed(1.0) == condensed
    assert distiller.needs_synthetic == (condensed < 16)


def test_the_share_follows_its_schedule_over_the_rounds():
    falling = Schedule(start=1.0, end=0.25, until=0.5)
    config = toy_config(
        memory=Latest(), distiller=Distiller(steps=1, batch=16, condensed_share=0.5, share_schedule=falling), rounds=5
    )
    shares = [config.distiller.num_condensed(config.progress(round)) for round in range(5)]
    assert shares == [8, 5, 2, 2, 2]
    prepared = make_prepared()
    assert prepared.condensed is not None
    state, store, found = start(config, prepared), local_store(config, prepared, None), []
    for _ in range(5):
        run_round(config, prepared, state, store)
        batch, _, _ = next_batch(
            *(config.distiller, config.memory, state.memory, store, prepared.condensed),
            progress=config.progress(state.round - 1),
            teacher=prepared.teacher,
            rng=state.streams,
        )
        assert len(batch) == 16
        found.append(sum(contained(image[None], prepared.condensed.images) for image in batch.images))
        assert contained(batch.images[16 - shares[state.round - 1] :], prepared.condensed.images)
    assert found == shares


@pytest.mark.parametrize(
    ("share", "start", "end", "synthetic"),
    [(1.0, 1.0, 1.0, False), (0.5, 2.0, 2.0, False), (1.0, 1.0, 0.5, True), (0.5, 1.0, 2.0, True)],
)
def test_synthetic_images_are_needed_if_the_condensed_share_of_any_round_is_below_1(share, start, end, synthetic):
    distiller = Distiller(batch=16, condensed_share=share, share_schedule=Schedule(start=start, end=end))
    assert distiller.needs_synthetic == synthetic
    if synthetic:
        least = share * min(start, end)
        with pytest.raises(InputError, match=f"smallest condensed_share without an inversion is {least}; accepted: 1"):
            toy_config(inversion=NoInversion(), distiller=distiller)
    else:
        assert toy_config(inversion=NoInversion(), distiller=distiller).distiller == distiller


def test_a_schedule_with_a_share_above_1_is_refused():
    with pytest.raises(InputError, match=r"largest factor of its share_schedule is 1\.5; accepted: at most 1"):
        Distiller(condensed_share=0.5, share_schedule=Schedule(end=3.0))


def test_a_batch_is_synthetic_then_condensed():
    config = toy_config(memory=Latest())
    batch, weights, fresh, condensed = drawn(config)
    assert len(batch) == len(weights) == 16
    assert contained(batch.images[:12], fresh.images)
    assert contained(batch.images[12:], condensed.images)
    assert not contained(batch.images[:12], condensed.images)
    assert weights.eq(1).all()


def test_mixing_does_not_change_the_synthetic_part_of_the_batch():
    plain = toy_config(distiller=Distiller(batch=16, condensed_share=0.0))
    mixed = toy_config(distiller=Distiller(batch=16, condensed_share=0.25))
    assert torch.equal(drawn(plain)[0].images[:12], drawn(mixed)[0].images[:12])


def test_without_augmentation_the_stored_logits_are_used(teacher):
    distiller = Distiller(augment=False, lr=1e-9, loss=LogitL1())
    state = begin(distiller, teacher)
    state.student.eval()
    batch = samples(8)
    right = replace(batch, logits=teacher.logits(batch.images))
    terms, gap = distiller.step(state, right, ones(batch), teacher=teacher, rng=Streams(0))
    torch.testing.assert_close(gap, torch.zeros(8), rtol=0, atol=1e-5)
    assert terms["loss"].item() == pytest.approx(0, abs=1e-5)
    assert terms["agreement"] == 1
    wrong = replace(right, logits=right.logits + 3)
    terms, _ = distiller.step(state, wrong, ones(batch), teacher=teacher, rng=Streams(0))
    assert terms["loss"].item() == pytest.approx(3, 1e-4)


def test_with_augmentation_the_teachers_logits_of_the_augmented_images_are_computed(teacher):
    distiller = Distiller(augment=True, lr=1e-9, loss=LogitL1())
    state = begin(distiller, teacher)
    state.student.eval()
    batch = replace(samples(8), logits=torch.full((8, 4), 1e6))
    terms, _ = distiller.step(state, batch, ones(batch), teacher=teacher, rng=Streams(0))
    assert terms["loss"].item() == pytest.approx(0, abs=1e-5)


class Recorder(torch.nn.Module):
    """A network that records its inputs."""

    def __init__(self, side):
        super().__init__()
        self.linear, self.seen = torch.nn.Linear(side * side, 4), []

    def forward(self, images):
        self.seen.append(images.detach())
        return self.linear(images.flatten(1))


def student_inputs(pixels, mean, std, seed=0):
    """Return the student's inputs in a step, and the teacher.

    `pixels`: (16, 1, H, H) in [0, 1], of 12 synthetic images and, beyond the batch, 4 condensed ones.
    """
    side = pixels.shape[-1]
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(side * side, 4))
    options = {"num_classes": 4, "image_shape": (1, side, side), "train_size": 1, "flip_ok": True}
    teacher = Teacher(network, mean=(mean,), std=(std,), **options)
    distiller, student = Distiller(batch=12), Recorder(side)
    batch = Samples(teacher.normalise(pixels), torch.zeros(16, dtype=torch.int64), torch.zeros(16, 4))
    distiller.step(distiller.init(student, 1), batch, torch.ones(16), teacher=teacher, rng=Streams(seed))
    (seen,) = student.seen
    return seen, teacher


@given(mean=st.floats(0.05, 0.95), std=st.floats(0.05, 0.5), seed=st.integers(0, 999))
def test_augmentation_after_normalising_equals_augmentation_before(mean, std, seed):
    pixels = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    before, _ = student_inputs(pixels, 0.0, 1.0, seed)
    after, teacher = student_inputs(pixels, mean, std, seed)
    assert torch.equal(after, teacher.normalise(before))


@pytest.mark.parametrize("side", [4, 8, 28])
def test_images_of_every_size_are_shifted(side):
    # Each image has one bright row, which a mirror image does not move.
    pixels = torch.zeros(16, 1, side, side)
    pixels[:, :, side // 2] = 1.0
    seen, _ = student_inputs(pixels, 0.0, 1.0)
    assert (seen != pixels).any()


def test_weights_scale_the_samples_losses(teacher):
    distiller = Distiller(augment=False, lr=1e-9)
    batch = samples(8)

    def step(rows: slice, weights: Tensor) -> tuple[float, Tensor]:
        state = begin(distiller, teacher)
        state.student.eval()  # batch statistics would tie the samples together
        loss = distiller.step(state, batch[rows], weights, teacher=teacher, rng=Streams(0)).terms["loss"]
        return loss.item(), gradients(state.student)

    half, gradient = step(slice(0, 4), torch.ones(4))
    masked, same = step(slice(0, 8), torch.tensor([2.0] * 4 + [0.0] * 4))
    assert masked == pytest.approx(half, rel=1e-5)
    assert torch.allclose(same, gradient, rtol=1e-3, atol=1e-6)


def test_the_rate_rises_with_the_warm_up(teacher):
    state = begin(Distiller(steps=5, lr=0.1, warm_up=0.4), teacher, rounds=2)
    rates = []
    for _ in range(6):
        rates.append(state.optimizer.param_groups[0]["lr"])
        state.optimizer.step()
        state.schedule.step()
    assert rates[:4] == pytest.approx([0.1 * i / 5 for i in range(1, 5)])
    assert rates[4:] == pytest.approx([0.05 * (1 + math.cos(math.pi * i / 6)) for i in range(2)])


def test_the_rate_falls_as_a_cosine_to_zero_over_all_rounds(teacher):
    distiller = Distiller(steps=2, lr=0.1, warm_up=0, augment=False)
    state = begin(distiller, teacher, rounds=3)
    rates = []
    for _ in range(6):
        rates.append(state.optimizer.param_groups[0]["lr"])
        distiller.step(state, samples(4), torch.ones(4), teacher=teacher, rng=Streams(0))
    assert rates == pytest.approx([0.05 * (1 + math.cos(math.pi * i / 6)) for i in range(6)])
    assert state.optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


def test_a_step_changes_neither_the_teacher_nor_the_batch(teacher):
    before = {name: value.clone() for name, value in teacher.network.state_dict().items()}
    batch = samples(8)
    distiller = Distiller()
    distiller.step(begin(distiller, teacher), batch, ones(batch), teacher=teacher, rng=Streams(0))
    assert all(torch.equal(value, before[name]) for name, value in teacher.network.state_dict().items())
    assert not teacher.network.training
    assert all(weight.grad is None for weight in teacher.network.parameters())
    assert torch.equal(batch.images, samples(8).images)


def test_a_step_draws_only_from_the_students_stream(teacher):
    distiller, rng, batch = Distiller(), Streams(0), samples(8)
    distiller.step(begin(distiller, teacher), batch, ones(batch), teacher=teacher, rng=rng)
    assert {name for names in rng.state_dict().values() for name in names} == {"augment/student"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "student steps is 0; accepted: an integer >= 1"),
        ({"batch": 1}, "student batch is 1; accepted: an integer >= 2"),
        ({"condensed_share": 1.5}, "condensed_share is 1.5; accepted: 0 <= share <= 1"),
        ({"condensed_share": float("nan")}, "condensed_share is nan"),
        ({"lr": 0.0}, "student lr is 0.0; accepted: > 0"),
    ],
)
def test_invalid_settings_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        Distiller(**fields)


def test_a_student_learns_from_the_teacher(teacher):
    real = answered(blobs(256, seed=9), teacher)
    distiller = Distiller(steps=60, batch=64, shift=0.0)
    with Streams(0).forked("init/student"):
        student = toy_config().student.build(teacher.image_shape, teacher.num_classes)
    state, rng = distiller.init(student.train(), rounds=1), Streams(0)
    for _ in range(distiller.steps):
        rows = torch.randint(len(real), (64,), generator=rng.host("draw"))
        distiller.step(state, real[rows], torch.ones(64), teacher=teacher, rng=rng)
    test = blobs(128, seed=10).samples(MEAN, STD)
    assert (student.eval()(test.images).argmax(1) == test.labels).float().mean() > 0.7


@pytest.mark.parametrize(("precision", "loss", "plain"), [
    ("float32", LogitL1(), True),
    ("bfloat16", LogitL1(), False),
    ("bfloat16", Attention(teacher_layers=("stages.0",), student_layers=("stages.0",)), True),
])  # fmt: skip
def test_under_bfloat16_the_folded_network_is_used_if_only_logits_are_needed(precision, loss, plain, teacher):
    distiller, calls = Distiller(loss=loss), []
    state = begin(distiller, teacher)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        assert (teacher.logits_network is teacher.network) == (precision == "float32")
        teacher.network.register_forward_hook(lambda *_: calls.append(True))
        distiller.step(state, samples(8), torch.ones(8), teacher=teacher, rng=Streams(0))
    assert bool(calls) == plain
