import copy

import pytest
import torch
import torch.nn.functional as F
from contracts.toy_methods import Verdict, make_student, small, synthesize
from toy import NUM_CLASSES, make_teacher

from condkd_ray.augment import shift_flip
from condkd_ray.inversion import Fast
from condkd_ray.method import InputError
from condkd_ray.streams import Streams
from condkd_ray.targets import Balanced


def by_hand(fast, generator, optimizer, memory, rng, teacher, student):
    """One round of Fast written out; gives the last batch's BN statistics. `memory`: those of earlier rounds."""
    targets = Balanced().sample(fast.batch, NUM_CLASSES, rng=rng)
    clone = copy.deepcopy(generator)
    latents = torch.randn(fast.batch, fast.latent, generator=rng["latents"]).requires_grad_()
    inner = torch.optim.Adam(clone.parameters(), lr=fast.lr, betas=(0.5, 0.999))
    inner_latent = torch.optim.Adam([latents], lr=fast.lr_latent, betas=(0.5, 0.999))
    summed = [torch.zeros_like(p) for p in generator.parameters()]
    for _ in range(fast.steps):
        images = (clone(latents) - teacher.mean[0]) / teacher.std[0]
        images = shift_flip(images, rng=rng["augment/inversion"], shift=1, flip=False)
        seen = teacher.observe(images)
        loss = torch.zeros(())
        for layer, ((mean, var), (running_mean, running_var)) in enumerate(
            zip(seen.bn, teacher.running_bn, strict=True)
        ):
            if memory:
                mean, var = 0.1 * mean + 0.9 * memory[layer][0], 0.1 * var + 0.9 * memory[layer][1]
            loss = loss + fast.bn_weight * ((running_mean - mean).norm() + (running_var - var).norm())
        loss = loss + fast.oh_weight * F.cross_entropy(seen.logits, targets)
        answers = student(images)
        kl = (seen.logits.softmax(1) * (seen.logits.log_softmax(1) - answers.log_softmax(1))).sum(1)
        loss = loss - fast.adv_weight * (kl * (answers.argmax(1) == seen.logits.argmax(1))).mean()
        inner.zero_grad()
        inner_latent.zero_grad()
        loss.backward()
        summed = [total + p.grad for total, p in zip(summed, clone.parameters(), strict=True)]
        inner.step()
        inner_latent.step()
    for parameter, gradient in zip(generator.parameters(), summed, strict=True):
        parameter.grad = gradient
    optimizer.step()
    return [(mean.detach(), var.detach()) for mean, var in seen.bn]


@pytest.mark.parametrize("steps", [1, 3])
def test_the_meta_generator_moves_by_the_summed_gradients_of_its_clone(steps):
    fast, teacher, student = small(Fast, steps=steps), make_teacher(), make_student()
    rng, own = Streams(0), Streams(0)
    state = fast.init(teacher, rng)
    generator = copy.deepcopy(state.generator)
    optimizer = torch.optim.Adam(generator.parameters(), lr=fast.lr * steps, betas=(0.5, 0.999))
    memory = None
    for number in range(2):
        synthesize(fast, state, rng=rng, teacher=teacher, student=student)
        seen = by_hand(fast, generator, optimizer, memory, own, teacher, student)
        mixed = (
            seen
            if memory is None
            else [
                tuple(0.1 * new + 0.9 * old for new, old in zip(*layers, strict=True))
                for layers in zip(seen, memory, strict=True)
            ]
        )
        memory = mixed
        for found, wanted in zip(state.generator.parameters(), generator.parameters(), strict=True):
            # Adam's first step has the size of the rate, whatever the gradient: its sign must not hang on a last bit.
            close = torch.isclose(found, wanted, rtol=1e-3, atol=1e-5)
            assert close.double().mean() > 0.99, number
        for found, wanted in zip(state.bn_memory, memory, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("best", [0, 1, 2, 3])
def test_the_images_of_the_lowest_loss_are_kept(best):
    guide = Verdict(*[-1e6 if step == best else 0.0 for step in range(4)])
    made, _ = synthesize(small(Fast, steps=4), guide=guide)
    assert torch.equal(made.images, guide.shown[best])
    assert len({images.sum().item() for images in guide.shown}) == 4


def test_latents_are_fresh_each_round_and_learn_at_a_rate_of_their_own():
    teacher, made = make_teacher(), []
    for lr_latent in (0.0, 0.1):
        guide = Verdict(0.0, -1e6)
        fast = small(Fast, steps=2, lr=0.0, lr_latent=lr_latent)
        rng = Streams(0)
        state = fast.init(teacher, rng)
        for _ in range(2):
            guide.shown.clear()
            synthesize(fast, state, rng=rng, teacher=teacher, guide=guide)
            made.append(list(guide.shown))
    # Nothing learns: both steps show the same images, and the next round others.
    torch.testing.assert_close(*made[0])
    assert not torch.allclose(made[0][0], made[1][0])
    assert not torch.allclose(*made[2])


@pytest.mark.parametrize("change", [{"steps": 0}, {"batch": 1}, {"bn_momentum": 1.0}, {"bn_momentum": -0.1}])
def test_settings_that_make_no_sense_are_refused(change):
    with pytest.raises(InputError, match="accepted"):
        Fast(**change)
