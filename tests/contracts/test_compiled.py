"""Each part of a step that is marked `whole` compiles to one graph, with the same results as without compilation.

The backend `aot_eager` runs the graphs without generating code, which would take minutes. Three things cannot be part
of a graph: KD losses that compare layers (their hooks are added and removed), the discriminator's step with R1 (a
gradient of a gradient), and random draws (augmentation and noise), which take place between the parts.
"""

from dataclasses import replace

import pytest
import torch
from thinned import thinned
from torch._dynamo.utils import counters
from toy import NUM_CLASSES, blobs, make_teacher

from condkd_ray.core import compilation
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import Samples
from condkd_ray.methods.distiller import Distiller
from condkd_ray.methods.guidance import FromGuides, Mmd
from condkd_ray.methods.guidance.guidance import Unguided
from condkd_ray.methods.inversion import Cmi, Fast
from condkd_ray.methods.weighing import Modulating
from contracts.test_device import CONDITIONAL, LOSSES, SETTINGS, STARTING
from contracts.toy_guides import FORMS, OPTIONS, bound, fakes, step
from contracts.toy_methods import INVERTERS, make_student, small, synthesize

PLAIN = compilation.Mode("aot_eager")
GRAPHS = {"Fast": 3, "Cmi": 3, "Nayer": 3}
"""Graphs of hosts with a memory, which is empty in the first round. Others have two: one makes images, one the loss."""


@pytest.fixture(autouse=True)
def fresh():
    """Discard what other tests have compiled."""
    torch.compiler.reset()
    counters.clear()
    yield
    compilation.clear_compiled()


def both(run):
    """Return the results of `run` without and with compilation, and the number of graphs compiled."""
    plain = run()
    assert not counters["stats"]
    with compilation.in_mode(PLAIN):
        compiled = run()
    return plain, compiled, counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("kind", thinned(INVERTERS, lambda kind: kind is Fast), ids=lambda kind: kind.__name__)
def test_inversions(kind):
    def rounds():
        teacher, student, rng, inversion = make_teacher(), make_student(), Streams(0), small(kind, steps=2)
        state = inversion.init(teacher, rng)
        return [synthesize(inversion, state, rng=rng, teacher=teacher, student=student) for _ in range(3)]

    plain, compiled, graphs = both(rounds)
    for (images, metrics), (others, other_metrics) in zip(plain, compiled, strict=True):
        torch.testing.assert_close(others.images, images.images, rtol=1e-3, atol=1e-4)
        assert other_metrics == pytest.approx(metrics, rel=1e-3, abs=1e-5)
    assert graphs == GRAPHS.get(kind.__name__, 2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", CONDITIONAL, ids=lambda kind: kind.__name__)
def test_conditional_inversions(kind):
    def rounds():
        teacher, student, rng, inversion = make_teacher(), make_student(), Streams(0), small(kind, conditional=True)
        state = inversion.init(teacher, rng)
        return [synthesize(inversion, state, rng=rng, teacher=teacher, student=student)[0].images for _ in range(2)]

    plain, compiled, graphs = both(rounds)
    torch.testing.assert_close(compiled, plain, rtol=1e-3, atol=1e-3)
    assert graphs == 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", STARTING, ids=lambda kind: kind.__name__)
def test_a_start_from_guides_adds_no_graph(kind):
    def rounds():
        teacher, rng, inversion, guide = make_teacher(), Streams(0), small(kind, steps=2), Unguided()
        starting, _ = bound(small(Mmd, from_guides=FromGuides(share=0.5, steps=2)), rng=rng, teacher=teacher)
        guide.start = starting.start
        state = inversion.init(teacher, rng)
        return [synthesize(inversion, state, rng=rng, teacher=teacher, guide=guide)[0].images for _ in range(2)]

    plain, compiled, graphs = both(rounds)
    torch.testing.assert_close(compiled, plain, rtol=1e-3, atol=1e-3)
    assert graphs == GRAPHS.get(kind.__name__, 2)


@pytest.mark.slow
def test_a_growing_bank_is_compiled_once():
    """Otherwise the compiler raises after eight different bank sizes."""

    def rounds():
        teacher, rng, inversion = make_teacher(), Streams(0), small(Cmi, steps=1, negatives=200, bank=400)
        state = inversion.init(teacher, rng)
        return [synthesize(inversion, state, rng=rng, teacher=teacher)[0].images for _ in range(11)]

    plain, compiled, graphs = both(rounds)
    torch.testing.assert_close(compiled, plain, rtol=1e-3, atol=1e-4)
    assert graphs == 3


@pytest.mark.parametrize(
    "form",
    thinned([*FORMS, *OPTIONS.values()], lambda form: form == OPTIONS["gaussian means"] or form.name == "moments"),
    ids=[*(f"{form.name} {getattr(form, 'condition', '')}" for form in FORMS), *OPTIONS],
)
def test_guidances(form):
    def steps():
        teacher = make_teacher()
        guide, _ = bound(form, teacher=teacher)
        return [step(guide, fakes(seed), teacher) for seed in range(3)]

    plain, compiled, graphs = both(steps)
    for found, wanted in zip(compiled, plain, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)
    # A discriminator has two graphs: for the generator loss and for its own loss. Other forms have three: for the
    # distance to the first condensed batch, to later ones, and for the logged distance without a gradient. A Gaussian
    # compares with fixed statistics and has two.
    assert graphs == (2 if form.name in ("discriminator", "gaussian") else 3)


def test_the_update_of_a_discriminator_with_r1_is_not_compiled():
    form = replace(next(form for form in FORMS if form.name == "discriminator"), r1_weight=1.0)

    def steps():
        teacher = make_teacher()
        guide, _ = bound(form, teacher=teacher)
        return [step(guide, fakes(seed), teacher) for seed in range(2)]

    plain, compiled, graphs = both(steps)
    torch.testing.assert_close(compiled, plain, rtol=1e-3, atol=1e-5)
    assert graphs == 1


@pytest.mark.parametrize(
    ("loss", "settings"),
    thinned(
        [(loss, {}) for loss in LOSSES] + [(LOSSES[0], settings) for settings in SETTINGS[1:]],
        lambda case: case[0] is LOSSES[0] and case[1] in SETTINGS[:2],
    ),
    ids=str,
)
def test_the_distiller(loss, settings):
    def steps():
        teacher, student, rng = make_teacher(), make_student().train(), Streams(0)
        images = blobs(8, seed=4).samples(teacher.mean, teacher.std)
        batch = Samples(images.images, images.labels, torch.zeros(8, NUM_CLASSES))
        distiller = Distiller(loss=loss, batch=4, **settings)
        state = distiller.init(student, rounds=3)
        given = {"teacher": teacher, "rng": rng, "condensed": 3}
        found = [distiller.step(state, batch, torch.ones(8), **given) for _ in range(3)]
        return [(one.terms["loss"].detach(), one.gap) for one in found], student.state_dict()

    plain, compiled, graphs = both(steps)
    torch.testing.assert_close(compiled, plain, rtol=1e-3, atol=1e-4)
    assert graphs == (0 if loss.layer_pairs else 1)


def test_a_weighing():
    def rounds():
        weigh = Modulating(normalise=True).bind(torch.tensor([3, 1, 0, 2]))
        return synthesize(small(Fast, steps=2), weigh=weigh)[0].images

    plain, compiled, _ = both(rounds)
    torch.testing.assert_close(compiled, plain, rtol=1e-3, atol=1e-4)
