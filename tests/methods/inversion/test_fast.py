import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from contracts.toy_methods import ConstantPenalties, make_student, small, synthesize
from toy import by_layer, make_teacher

from condkd_ray.core.method import InputError
from condkd_ray.core.rng import Streams
from condkd_ray.data.augment import shift_flip
from condkd_ray.methods.inversion import Fast
from condkd_ray.methods.targets import Balanced


def by_hand(fast, generator, optimizer, memory, rng, teacher, student):
    """Run one round of Fast in plain code with remembered BN statistics `memory`; return those of the last batch."""
    targets = Balanced().sample(fast.batch, teacher, rng=rng)
    clone = copy.deepcopy(generator)
    latents = torch.randn(fast.batch, fast.latent, generator=rng["latents"]).requires_grad_()
    inner = torch.optim.Adam(clone.parameters(), lr=fast.lr, betas=(0.5, 0.999))
    inner_latent = torch.optim.Adam([latents], lr=fast.lr_latent, betas=(0.5, 0.999))
    summed = [torch.zeros_like(p) for p in generator.parameters()]
    for _ in range(fast.steps):
        images = (clone(latents) - teacher.mean[0]) / teacher.std[0]
        images = shift_flip(images, rng=rng["augment/inversion"], share=1 / 8, flip=False, black=-1.0)
        seen = teacher.observe(images)
        loss = torch.zeros(())
        for layer, ((mean, var), (running_mean, running_var)) in enumerate(
            zip(by_layer(seen.bn, teacher), by_layer(teacher.bn[0], teacher), strict=True)
        ):
            if memory:
                mean, var = 0.1 * mean + 0.9 * memory[layer][0], 0.1 * var + 0.9 * memory[layer][1]
            loss = loss + fast.bn_weight * ((running_mean - mean).norm() + (running_var - var).norm())
        loss = loss + fast.oh_weight * F.cross_entropy(seen.logits, targets.labels)
        logits = student(images)
        kl = (seen.logits.softmax(1) * (seen.logits.log_softmax(1) - logits.log_softmax(1))).sum(1)
        loss = loss - fast.adv_weight * (kl * (logits.argmax(1) == seen.logits.argmax(1))).mean()
        inner.zero_grad()
        inner_latent.zero_grad()
        loss.backward()
        summed = [total + p.grad for total, p in zip(summed, clone.parameters(), strict=True)]
        inner.step()
        inner_latent.step()
    for parameter, gradient in zip(generator.parameters(), summed, strict=True):
        parameter.grad = gradient
    optimizer.step()
    return [(mean.detach(), var.detach()) for mean, var in by_layer(seen.bn, teacher)]


@pytest.mark.parametrize("steps", [1, 3])
def test_the_meta_generator_is_updated_by_the_summed_gradients_of_its_clone(steps):
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
            # Adam's first step has the size of its rate even for tiny gradients, whose sign may be due to rounding.
            close = torch.isclose(found, wanted, rtol=1e-3, atol=1e-5)
            assert close.double().mean() > 0.99, number
        for found, wanted in zip(by_layer(state.bn_memory, teacher), memory, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("best", [0, 1, 2, 3])
def test_the_images_of_the_lowest_loss_are_kept(best):
    guide = ConstantPenalties(*[-1e6 if step == best else 0.0 for step in range(4)])
    made, _ = synthesize(small(Fast, steps=4), guide=guide)
    assert torch.equal(made.images, guide.penalty_calls[best])
    assert len({images.sum().item() for images in guide.penalty_calls}) == 4


def test_latents_are_drawn_each_round_and_learn_at_their_own_rate():
    teacher, made = make_teacher(), []
    for lr_latent in (0.0, 0.1):
        guide = ConstantPenalties(0.0, -1e6)
        fast = small(Fast, steps=2, lr=0.0, lr_latent=lr_latent)
        rng = Streams(0)
        state = fast.init(teacher, rng)
        for _ in range(2):
            guide.penalty_calls.clear()
            synthesize(fast, state, rng=rng, teacher=teacher, guide=guide)
            made.append(list(guide.penalty_calls))
    # Without learning, both steps have the same images, and the next round has others.
    torch.testing.assert_close(*made[0])
    assert not torch.allclose(made[0][0], made[1][0])
    assert not torch.allclose(*made[2])


@pytest.mark.parametrize("change", [{"steps": 0}, {"batch": 1}, {"bn_momentum": 1.0}, {"bn_momentum": -0.1}])
def test_invalid_settings_are_refused(change):
    with pytest.raises(InputError, match="accepted"):
        Fast(**change)


def rounds(fast, count, student=None):
    """Run rounds from seed 0. Return the state, the generator's weights after each round, and the metrics."""
    teacher, rng, generators, metrics = make_teacher(), Streams(0), [], []
    state = fast.init(teacher, rng)
    for _ in range(count):
        _, terms = synthesize(fast, state, rng=rng, teacher=teacher, student=student)
        generators.append([p.detach().clone() for p in state.generator.parameters()])
        metrics.append(terms)
    return state, generators, metrics


def recorded_clones(monkeypatch):
    """Return a list that collects the clones of the generator."""
    clones = []

    def deepcopy(generator):
        clones.append(copy.deepcopy(generator))
        return clones[-1]

    monkeypatch.setattr("condkd_ray.methods.inversion.fast.copy", SimpleNamespace(deepcopy=deepcopy))
    return clones


def test_reptile_moves_the_generator_towards_its_clone(monkeypatch):
    clones, fast = recorded_clones(monkeypatch), small(Fast, steps=2, meta="reptile")
    teacher, rng = make_teacher(), Streams(0)
    state = fast.init(teacher, rng)
    wanted = [p.detach().clone().requires_grad_() for p in state.generator.parameters()]
    optimizer = torch.optim.Adam(wanted, lr=fast.lr * fast.steps, betas=(0.5, 0.999))
    for _ in range(2):
        synthesize(fast, state, rng=rng, teacher=teacher)
        for parameter, moved in zip(wanted, clones[-1].parameters(), strict=True):
            parameter.grad = 67 * (parameter - moved).detach()
        optimizer.step()
        for found, one in zip(state.generator.parameters(), wanted, strict=True):
            torch.testing.assert_close(found, one)
    assert len(clones) == 1  # each round resets it to the generator


def test_without_a_meta_step_the_generator_itself_is_optimised(monkeypatch):
    clones, guide = recorded_clones(monkeypatch), ConstantPenalties(*[0.0] * 6)
    fast, teacher, rng = small(Fast, steps=3, meta="none", lr_latent=0.0), make_teacher(), Streams(0)
    state = fast.init(teacher, rng)
    before = copy.deepcopy(state.generator)
    synthesize(fast, state, rng=rng, teacher=teacher, guide=guide)
    assert not clones
    assert not state.optimizer.state
    # Adam's steps are about as long as its rate, so the generator has made all three steps.
    length = max((a - b).abs().max() for a, b in zip(state.generator.parameters(), before.parameters(), strict=True))
    assert 2 * fast.lr < length < 4 * fast.lr


def test_the_three_meta_steps_differ():
    ends = [rounds(small(Fast, steps=3, meta=meta), 2)[1][-1] for meta in ("maml", "reptile", "none")]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not all(map(torch.equal, ends[one], ends[other]))


def test_the_student_is_not_used_in_the_warm_up():
    used_in = []
    student = make_student()
    student.register_forward_hook(lambda *_: used_in.append(len(metrics)))
    fast, metrics, teacher, rng = small(Fast, warm_up=2), [], make_teacher(), Streams(0)
    state = fast.init(teacher, rng)
    for _ in range(4):
        metrics.append(synthesize(fast, state, rng=rng, teacher=teacher, student=student)[1])
    assert used_in == [2] * 3 + [3] * 3
    assert [terms["inversion/adv"] == 0 for terms in metrics] == [True, True, False, False]
    assert metrics[0].keys() == metrics[3].keys()


def test_a_reset_draws_only_the_first_layers_again():
    plain, reset = (rounds(small(Fast, lr=0.0, resets=resets), 3)[1] for resets in ((), (2,)))
    names = [name for name, _ in small(Fast).init(make_teacher(), Streams(0)).generator.named_parameters()]
    changed = [name for name, a, b in zip(names, plain[1], reset[1], strict=True) if not torch.equal(a, b)]
    assert changed == ["linear.weight", "linear.bias", "start.weight"]
    assert all(map(torch.equal, plain[0], reset[0]))
    assert all(map(torch.equal, reset[1], reset[2]))
    drawn = dict(zip(names, reset[1], strict=True))
    assert drawn["linear.weight"].std().item() == pytest.approx(0.02, rel=0.1)
    assert drawn["linear.bias"].abs().max() == 0
    assert drawn["start.weight"].abs().max() < 0.1


def test_resets_of_two_rounds_are_two_draws():
    generators = rounds(small(Fast, lr=0.0, resets=(1, 3)), 3)[1]
    assert not torch.equal(generators[0][0], generators[2][0])


@pytest.mark.parametrize("change", [{"warm_up": -1}, {"resets": (0,)}, {"reptile_scale": 0.0}])
def test_invalid_schedules_are_refused(change):
    with pytest.raises(InputError, match="accepted"):
        Fast(**change)
