"""No step of any method makes the host wait for the GPU. The module `guard` simulates a GPU."""

from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import get_args

import pytest
import torch
from guard import DEVICE, Guard, WaitsError, covered_without_classes, simulated, without_logits
from thinned import thinned
from toy import NUM_CLASSES, blobs, make_teacher

from condkd_ray.core.device import sent
from condkd_ray.core.method import Meter
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import Codec, Samples
from condkd_ray.methods.distiller import Distiller, next_batch
from condkd_ray.methods.guidance import FromGuides, Gaussian, Mmd
from condkd_ray.methods.inversion import Fast, nayer
from condkd_ray.methods.losses.kd import AnyKdLoss, Attention
from condkd_ray.methods.memory import AnyMemory, Generative, LocalStore, Prioritized
from condkd_ray.methods.memory.prioritized import PrioritizedState
from condkd_ray.methods.memory.store import LiveIds
from condkd_ray.methods.weighing import Equal, Modulating
from contracts.toy_guides import AUGMENTATIONS, FORMS, MIDDLE, each_layer, each_option
from contracts.toy_methods import INVERTERS, make_student, small, synthesize

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
each_device = pytest.mark.parametrize("device", ["meta", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])])
LOSSES = [kind() for kind in get_args(AnyKdLoss) if kind is not Attention]
LOSSES += [Attention(teacher_layers=(MIDDLE,), student_layers=(MIDDLE,))]
SETTINGS = [{}, {"augment": False}, {"optimizer": "adam"}, {"clip": 1.0}, {"mix": "concat", "condensed_share": 0.5}]
SETTINGS += [{"condensed_share": 0.5, "condensed_augment": "dsa"}]
STARTING = [kind for kind in INVERTERS if kind.starts_from_images]
CONDITIONAL = [kind for kind in INVERTERS if hasattr(kind, "conditional")]


@pytest.fixture(autouse=True)
def rounds_are_not_read(monkeypatch):
    """Skip the copy of the logged terms to the host at the end of a round, which is not part of a step."""
    monkeypatch.setattr(Meter, "read", lambda self: {})
    # NAYER copies the count of the most frequent label once at the beginning of a round.
    monkeypatch.setattr(nayer, "occurrences", lambda labels, classes: (torch.zeros_like(labels), len(labels)))


FAULTS = {
    "a value": lambda there, here: there.sum().item(),
    "a decision": lambda there, here: bool(there.any()),
    "a mask": lambda there, here: there[there > 0],
    "a copy back": lambda there, here: there.cpu(),
    "a copy back in place": lambda there, here: here.copy_(there),
    "a blocking copy": lambda there, here: here.to(there.device),
    "a blocking copy in place": lambda there, here: there.copy_(here),
    "an index on the host": lambda there, here: there[here.long()],
    "a mixture": lambda there, here: there + here,
    "a count": lambda there, here: there.long().bincount(minlength=3),
}
"""Operations that wait for the device, on three values on the device and three on the host."""


@pytest.mark.parametrize("fault", FAULTS)
def test_the_guard_raises(fault):
    there, here = torch.zeros(3, device=DEVICE), torch.zeros(3)
    # For a mask PyTorch itself raises, with the name of the operator.
    error, words = (NotImplementedError, "nonzero") if fault == "a mask" else (WaitsError, "host|device|sides")
    with Guard(), pytest.raises(error, match=words):
        FAULTS[fault](there, here)


def test_the_guard_allows_operations_that_do_not_wait():
    there, here = torch.zeros(3, device=DEVICE), torch.zeros(3)
    with Guard():
        there.copy_(here, non_blocking=True)
        assert sent(here.long(), DEVICE).device == DEVICE
        assert (there[sent(here.long(), DEVICE)] + 1.0).sum().shape == ()
        assert here.sum().item() == 0


@contextmanager
def steps(device):
    """Context in which waiting for the device raises an error."""
    if device == "meta":
        with Guard():
            yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def world(device, monkeypatch):
    """Teacher, student, random streams and condensed images on the device, which is simulated for `meta`."""
    if device == "meta":
        # The shrinkage of a Gaussian's covariance is computed on the host before the first round.
        monkeypatch.setattr(Gaussian, "pooled_covariance", lambda self, features, labels, views: features.T @ features)
    with simulated() if device == "meta" else nullcontext():
        teacher, student = make_teacher().to(device), make_student().to(device)
        images = blobs(8, seed=4).samples(teacher.mean, teacher.std).to(device)
        condensed = Samples(images.images, images.labels, torch.zeros(8, NUM_CLASSES, device=device))
        yield teacher, student, Streams(0, device), condensed


def rounds(world, device, inversion, *, guidance=None, weighing=None):
    """Run two rounds, so that in the second one banks, stored statistics and a trained guide exist."""
    teacher, student, rng, condensed = world
    state = inversion.init(teacher, rng)
    carried = guidance and guidance.start(teacher, condensed, rng)
    counts = torch.zeros(NUM_CLASSES, dtype=torch.int64, device=device)
    weigh = (weighing or Equal()).bind(counts)
    for _ in range(2):
        guide = guidance and guidance.bind(
            carried,
            teacher=teacher,
            condensed=condensed,
            host_augment=lambda images, stream: inversion.augment(images, teacher=teacher, rng=stream),
            rng=rng,
        )
        with steps(device):
            synthesize(inversion, state, rng=rng, teacher=teacher, student=student, guide=guide, weigh=weigh)


@each_device
@pytest.mark.parametrize("kind", INVERTERS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("weighing", [Equal(), Modulating(normalise=True)], ids=lambda method: method.name)
def test_inversions(kind, weighing, world, device):
    rounds(world, device, small(kind), weighing=weighing)


@each_device
@pytest.mark.parametrize("kind", CONDITIONAL, ids=lambda kind: kind.__name__)
def test_conditional_inversions(kind, world, device):
    rounds(world, device, small(kind, conditional=True), guidance=small(Mmd))


@each_device
@pytest.mark.parametrize("kind", STARTING, ids=lambda kind: kind.__name__)
def test_starts_from_the_guides(kind, world, device):
    rounds(world, device, small(kind), guidance=small(Mmd, from_guides=FromGuides(share=0.5, steps=2)))


@each_device
@pytest.mark.parametrize("augment", thinned(AUGMENTATIONS, lambda augment: augment == "host"))
@each_layer
@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.name} {getattr(form, 'condition', '')}")
def test_guidances(form, augment, layer, world, device):
    # Held-out images are chosen on the host once per round, so none are held out here.
    held = {"held_out": 0.0} if hasattr(form, "condition") else {}
    rounds(world, device, small(Fast), guidance=replace(form, augment=augment, layer=layer, **held))


@each_device
@each_option
def test_options_of_guidances(form, world, device):
    held = {"held_out": 0.0} if hasattr(form, "condition") else {}
    rounds(world, device, small(Fast), guidance=replace(form, **held))


@each_device
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_distiller(loss, settings, world, device):
    teacher, student, rng, condensed = world
    distiller = Distiller(loss=loss, batch=4, **settings)
    state = distiller.init(student.train(), rounds=3)
    weights = torch.ones(8, device=device)
    with steps(device):
        for _ in range(2):
            distiller.step(state, condensed, weights, teacher=teacher, rng=rng, condensed=3)


@each_device
def test_the_steps_of_a_generative_memory(world, device):
    teacher, _, rng, condensed = world
    memory = small(Generative)
    state = memory.init(teacher, rng)
    with steps(device):
        memory.vae_step(state, condensed.images, teacher=teacher, rng=rng)
        memory.recall(state, 4, teacher=teacher, rng=rng)


MEMORIES = [small(kind) for kind in get_args(AnyMemory) if kind is not Generative]
MIXES = [{}, {"condensed_share": 0.25}, {"mix": "concat", "condensed_share": 0.5}]


def filled(memory, world, device):
    """Return the memory's state and its store after two rounds of images."""
    teacher, _, rng, condensed = world
    code = Codec("unit", teacher.mean, teacher.std)
    store = LocalStore(code, NUM_CLASSES, device=device, device_limit=10**6)
    state = memory.init(teacher, rng)
    for _ in range(2):
        memory.add(state, store, condensed, teacher=teacher, rng=rng)
    return state, store


@each_device
@pytest.mark.parametrize("mix", MIXES, ids=str)
@pytest.mark.parametrize("memory", MEMORIES, ids=lambda memory: memory.name)
def test_draws(memory, mix, world, device, monkeypatch):
    if device == "meta":
        # The store counts classes on the host, from the copy that is made once per round.
        monkeypatch.setattr(LiveIds, "cover", covered_without_classes)
        monkeypatch.setattr(PrioritizedState, "read", without_logits)
    teacher, _, rng, condensed = world
    state, store = filled(memory, world, device)
    distiller = Distiller(batch=4, **mix)
    with steps(device):
        for _ in range(3):
            batch = next_batch(distiller, memory, state, store, condensed, progress=0.5, teacher=teacher, rng=rng)
            memory.feedback(state, batch.ids, torch.zeros(len(batch.ids), device=device))
    assert batch.samples.images.device.type == batch.weights.device.type == torch.device(device).type
    # Ids are on the device if the student's losses determine the draw.
    assert batch.ids.device.type == (torch.device(device).type if isinstance(memory, Prioritized) else "cpu")
