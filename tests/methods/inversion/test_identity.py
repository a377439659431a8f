"""A student that learns only from an inversion's images is far above chance on real images of a trivial task."""

from dataclasses import replace

import pytest
from contracts.toy_methods import INVERTERS, sized
from toy import NUM_CLASSES, blobs, make_prepared, toy_config

from condkd_ray.methods.distiller import Distiller
from condkd_ray.methods.inversion import Dfad
from condkd_ray.methods.losses.kd import Hinton
from condkd_ray.methods.memory import LocalStore
from condkd_ray.models import ResNet
from condkd_ray.trial.evaluation import accuracy
from condkd_ray.trial.loop import run_round, start
from condkd_ray.trial.synthesis import codec

TEST_IMAGES = 512
STEPS = {Dfad: 4}
"""Numbers of steps, if not 30. DFAD takes one for five of the student, because its loss depends only on the student."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", INVERTERS, ids=lambda kind: kind.__name__)
def test_the_students_accuracy_is_five_standard_errors_above_chance_and_nearer_to_the_teachers(kind):
    """Measured with seeds 0 to 2: the student has 0.94 or more, and the teacher 0.97.

    With CMI the student had 0.68, 0.95 and 0.96: CMI starts each round with a new generator, for which 30 steps are
    few. With DFAD it had 0.95, 0.96 and 0.73 at the published ratio of steps; with 30 steps to the student's 20, DFAD
    makes images mainly of one class, and the student has 0.48.
    """
    prepared = replace(make_prepared(condensed=False), test=blobs(TEST_IMAGES, seed=6), val=None)
    settings = toy_config(
        student=ResNet(depth=8, width=4),
        condensation=None,
        inversion=sized(kind, steps=STEPS.get(kind, 30), batch=64, images_per_round=640, latent=32, width=16),
        distiller=Distiller(loss=Hinton(temperature=4.0), steps=20, batch=64, lr=0.05),
        rounds=8,
        evaluate_every=8,
    )
    live, store = start(settings, prepared), LocalStore(codec(settings, prepared.teacher), NUM_CLASSES)
    for _ in range(settings.rounds):
        run_round(settings, prepared, live, store)
    chance = 1 / NUM_CLASSES
    error = (chance * (1 - chance) / TEST_IMAGES) ** 0.5
    found = accuracy(live.distiller.student, prepared.test, prepared.teacher)
    assert found > chance + 5 * error
    assert found > (chance + accuracy(prepared.teacher.network, prepared.test, prepared.teacher)) / 2
