"""Metrics of the images of an inversion without a student, compared with held-out real images."""

from dataclasses import replace

import pytest
import torch
from reference import losses as reference
from toy import NUM_CLASSES, by_layer, make_prepared, toy_config

from condkd_ray.core.method import InputError
from condkd_ray.methods.inversion import DeepInversion, Fast
from condkd_ray.methods.losses.discrepancy import class_frechet
from condkd_ray.runs.inverted import FIGURES, held_out, measure, side_by_side
from condkd_ray.trial.synthesis import begin, produce

ALONE = toy_config(
    condensation=None, distiller=replace(toy_config().distiller, condensed_share=0.0),
    inversion=Fast(steps=2, batch=16, latent=16, width=8, adv_weight=0.0), rounds=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def prepared():
    return make_prepared(condensed=False)


def test_the_real_images_are_test_images_and_the_same_in_every_call(prepared):
    first, again = held_out(prepared), held_out(prepared)
    assert torch.equal(first.real, again.real)
    assert first.real_labels.bincount().tolist() == [32] * NUM_CLASSES
    teacher = prepared.teacher
    own = teacher.observe(prepared.test.samples(teacher.mean, teacher.std).images).features
    own = own[prepared.test.labels.argsort(stable=True)]
    torch.testing.assert_close((first.real * first.scale).sum(0), own.sum(0), rtol=1e-4, atol=1e-4)


def test_graphs_on_a_cpu_are_refused(prepared):
    with pytest.raises(InputError, match="graphs on a CPU is True; accepted: false, or a trial on a GPU"):
        measure(replace(ALONE, graphs=True), prepared, held_out(prepared))


def test_figures_are_computed_from_all_images_of_all_rounds(prepared):
    real, teacher = held_out(prepared), prepared.teacher
    found = measure(ALONE, prepared, real)
    assert found.keys() == FIGURES.keys()
    production = begin(ALONE, prepared)
    made = [produce(ALONE, prepared, production, torch.nn.Identity(), torch.zeros(0))[0] for _ in range(2)]
    features = torch.cat([teacher.observe(part.images).features for part in made]) / real.scale
    labels = torch.cat([part.labels for part in made])
    wanted = class_frechet(features, labels, real.real, real.real_labels, num_classes=NUM_CLASSES)
    assert found["frechet_real"] == pytest.approx(wanted.item(), rel=1e-4)
    assert measure(ALONE, prepared, real) == found


def test_bn_is_the_distance_of_the_batch_statistics_of_the_images(prepared):
    host = DeepInversion(steps=1, batch=16, shift=0.0)
    config, teacher = replace(ALONE, inversion=host, rounds=1), prepared.teacher
    made, _ = produce(config, prepared, begin(config, prepared), torch.nn.Identity(), torch.zeros(0))
    seen = [(mean.tolist(), var.tolist()) for mean, var in by_layer(teacher.observe(made.images).bn, teacher)]
    running = [(mean.tolist(), var.tolist()) for mean, var in by_layer(teacher.bn[0], teacher)]
    assert measure(config, prepared, held_out(prepared))["bn"] == pytest.approx(
        reference.bn_distance(seen, running), rel=1e-4
    )


def test_a_row_holds_both_sides_their_difference_and_its_paired_interval():
    old, new = ([dict.fromkeys(FIGURES, value) for value in side] for side in ((1.0, 2.0, 3.0), (0.5, 1.0, 2.0)))
    table = side_by_side("title", {"fast": (old, new)})
    assert [row[:2] for row in table.rows] == [["fast", name] for name in FIGURES.values()]
    # Differences -0.5, -1, -1: mean -5/6, standard error 1/6, t(0.975, 2) = 4.303.
    assert table.rows[0][2:] == ["3", "2.000 ± 1.000", "1.167 ± 0.764", "-0.833", "-1.550 to -0.116"]
    assert side_by_side("title", {"fast": (old[:1], new[:1])}).rows[0][-1] == "no interval, n = 1"
