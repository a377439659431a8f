import copy
from math import log

import pytest
import torch
import torch.nn.functional as F
from contracts.toy_methods import make_student, small, synthesize
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import NUM_CLASSES, make_teacher

from condkd_ray.core.method import InputError
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import UNLABELLED
from condkd_ray.methods.guidance.guidance import Unguided
from condkd_ray.methods.inversion import Dafl
from condkd_ray.methods.targets import Targets
from condkd_ray.methods.weighing import equal_weights


def test_the_steps_of_the_generator_equal_plain_code():
    dafl, teacher, rng, own = small(Dafl, steps=2), make_teacher(), Streams(0), Streams(0)
    state = dafl.init(teacher, rng)
    generator = copy.deepcopy(state.generator)
    optimizer = torch.optim.Adam(generator.parameters(), lr=dafl.lr)
    synthesize(dafl, state, rng=rng, teacher=teacher)
    for _ in range(2):
        seen = teacher.observe(generator(torch.randn(dafl.batch, dafl.latent, generator=own["latents"])))
        mean = seen.logits.softmax(1).mean(0)
        loss = (
            dafl.oh_weight * F.cross_entropy(seen.logits, seen.logits.argmax(1))
            + dafl.ie_weight * (mean * mean.log10()).sum()
            - dafl.act_weight * seen.features.abs().mean()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for found, wanted in zip(state.generator.parameters(), generator.parameters(), strict=True):
        # Adam's first step has the size of its rate even for tiny gradients, whose sign may be due to rounding.
        assert torch.isclose(found, wanted, rtol=1e-3, atol=1e-4).double().mean() > 0.99


def test_images_are_generated_after_the_steps_from_new_latents():
    dafl, teacher, rng, own = small(Dafl), make_teacher(), Streams(0), Streams(0)
    state = dafl.init(teacher, rng)
    made, _ = synthesize(dafl, state, rng=rng, teacher=teacher)
    latents = torch.randn((dafl.steps + 2) * dafl.batch, dafl.latent, generator=own["latents"]).split(dafl.batch)
    fresh = torch.cat([state.generator(part) for part in latents[-2:]])
    torch.testing.assert_close(made.images, fresh, rtol=1e-4, atol=1e-4)
    assert made.labels.eq(UNLABELLED).all()


def test_the_targets_have_no_effect():
    def images(labels):
        teacher, rng, dafl = make_teacher(), Streams(0), small(Dafl)
        made, _ = dafl.synthesize(
            dafl.init(teacher, rng),
            Targets(labels),
            teacher=teacher,
            student=make_student(),
            guide=Unguided(),
            weigh=equal_weights,
            rng=rng,
        )
        return made.images

    assert torch.equal(images(torch.zeros(32, dtype=torch.int64)), images(torch.arange(32) % NUM_CLASSES))


@settings(max_examples=25)
@given(batch=st.integers(2, 9), count=st.integers(2, 40))
def test_the_generator_never_gets_a_batch_of_one_image(batch, count):
    dafl, teacher, rng, batches = (
        small(Dafl, steps=1, batch=batch, images_per_round=count),
        make_teacher(),
        Streams(0),
        [],
    )
    state = dafl.init(teacher, rng)
    state.generator.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
    made, _ = synthesize(dafl, state, rng=rng, teacher=teacher)
    assert len(made) == sum(batches[1:]) == count
    assert min(batches) >= 2
    assert max(batches) < 2 * batch + 1


def test_classes_become_evenly_used():
    dafl, teacher, rng = small(Dafl, steps=40, batch=32), make_teacher(), Streams(0)
    state = dafl.init(teacher, rng)
    _, first = synthesize(dafl, state, rng=rng, teacher=teacher)
    _, second = synthesize(dafl, state, rng=rng, teacher=teacher)
    evenly = -log(NUM_CLASSES) / log(10)
    assert second["inversion/ie"] < first["inversion/ie"]
    assert second["inversion/ie"] == pytest.approx(evenly, abs=0.02)


@pytest.mark.parametrize("change", [{"steps": 0}, {"batch": 1}, {"images_per_round": 1}])
def test_invalid_settings_are_refused(change):
    with pytest.raises(InputError, match="accepted"):
        Dafl(**change)
