"""Batches in which condensed images are appended to a full batch of synthetic ones: `mix: concat`."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from toy import answered, blobs, make_prepared, make_teacher, samples, toy_config

from condkd_ray.core.method import InputError, Schedule
from condkd_ray.core.rng import Streams
from condkd_ray.methods.distiller import Distiller, as_two_means
from condkd_ray.methods.inversion import NoInversion
from condkd_ray.methods.memory import Latest
from condkd_ray.models.teacher import Teacher
from condkd_ray.trial.loop import run_round, start
from condkd_ray.trial.run import local_store
from methods.student_steps import begin_fresh, contained, drawn, gradients


@pytest.fixture
def teacher() -> Teacher:
    return make_teacher()


CONCAT = Distiller(steps=2, batch=16, condensed_share=0.25, mix="concat")


def test_condensed_images_are_appended_to_a_full_batch_of_synthetic_ones():
    config = toy_config(memory=Latest(), distiller=CONCAT)
    batch, weights, fresh, condensed = drawn(config)
    assert len(condensed) == 8
    assert len(batch) == len(weights) == 16 + 8
    assert contained(batch.images[:16], fresh.images)
    # There are fewer condensed images than a batch, so each occurs once.
    assert contained(condensed.images, batch.images[16:])
    share = drawn(toy_config(memory=Latest(), distiller=replace(CONCAT, mix="share")))[0]
    assert torch.equal(batch.images[:12], share.images[:12])


def test_of_many_condensed_images_a_batch_without_repetition_is_appended():
    distiller = Distiller(batch=4, condensed_share=0.5, mix="concat")
    batch, weights, _, condensed = drawn(toy_config(memory=Latest(), distiller=distiller))
    assert len(batch) == 8
    assert weights.eq(2).all()
    assert contained(batch.images[4:], condensed.images)
    assert len(batch.images[4:].flatten(1).unique(dim=0)) == 4


def test_loss_and_gradient_are_those_of_the_sum_of_two_means(teacher):
    distiller = Distiller(batch=6, condensed_share=0.5, mix="concat", augment=False, lr=1e-9)
    batch, priorities = answered(blobs(9, seed=9), teacher), torch.tensor([1.0, 0.5, 0.25, 1.0, 0.1, 0.7])

    def step(rows: slice, weights: Tensor) -> tuple[float, Tensor]:
        state = begin_fresh(distiller, teacher)
        state.student.eval()  # batch statistics would tie the samples together
        loss = distiller.step(state, batch[rows], weights, teacher=teacher, rng=Streams(0)).terms["loss"]
        return loss.item(), gradients(state.student)

    synthetic, condensed = step(slice(0, 6), priorities), step(slice(6, 9), torch.ones(3))
    both = step(slice(0, 9), as_two_means(priorities, 3))
    assert both[0] == pytest.approx(synthetic[0] + condensed[0], rel=1e-5)
    torch.testing.assert_close(both[1], synthetic[1] + condensed[1], rtol=1e-4, atol=1e-5)


def test_concatenation_does_not_change_shared_random_streams():
    def streams(distiller: Distiller) -> dict[str, Tensor]:
        config, prepared = toy_config(distiller=distiller), make_prepared()
        state, store = start(config, prepared), local_store(config, prepared, None)
        for _ in range(2):
            run_round(config, prepared, state, store)
        opened = state.streams.state_dict()
        return {f"{kind}/{name}": opened[kind][name] for kind in opened for name in opened[kind]}

    plain, concat = streams(Distiller(steps=2, batch=16)), streams(CONCAT)
    assert set(concat) - set(plain) == {"host/condensed", "device/augment/condensed"}
    assert all(torch.equal(concat[name], plain[name]) for name in plain)


def test_synthetic_images_are_augmented_equally_with_and_without_condensed_ones(teacher):
    seen = []
    distiller, batch = replace(CONCAT, batch=6), samples(9)
    for condensed in (0, 3):
        seen.append(distiller.student_images(batch.images[: 6 + condensed], condensed, teacher, Streams(0)))
    assert torch.equal(seen[0], seen[1][:6])


@pytest.mark.parametrize(("share", "size"), [(0.0, (16, 0)), (1.0, (0, 16))])
def test_concatenation_of_a_single_kind_is_a_batch_of_that_kind(share, size):
    config = toy_config(memory=Latest(), distiller=replace(CONCAT, condensed_share=share))
    batch, weights, fresh, condensed = drawn(config)
    kinds = [(image[None], contained(image[None], fresh.images)) for image in batch.images]
    assert (sum(synthetic for _, synthetic in kinds), sum(not synthetic for _, synthetic in kinds)) == size
    assert all(contained(image, condensed.images) for image, synthetic in kinds if not synthetic)
    assert weights.eq(1).all()


def test_concatenation_without_both_kinds_is_refused():
    with pytest.raises(InputError, match=r"smallest condensed_share without an inversion is 0\.25; accepted: 1"):
        toy_config(inversion=NoInversion(), distiller=CONCAT)
    with pytest.raises(InputError, match=r"condensed_share without a condensation is 0\.25"):
        toy_config(condensation=None, distiller=CONCAT)
    with pytest.raises(InputError, match="share_schedule under mix concat is Schedule"):
        replace(CONCAT, share_schedule=Schedule(end=0.5))
    assert Distiller(condensed_share=0.999, mix="concat").needs_synthetic
