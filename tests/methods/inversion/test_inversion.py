"""Code shared by several inversions, and `NoInversion`."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from toy import IMAGE_SHAPE, NUM_CLASSES, make_prepared, toy_config, wrap

from condkd_ray.core.method import InputError
from condkd_ray.core.rng import Streams
from condkd_ray.methods.guidance.guidance import Unguided
from condkd_ray.methods.inversion import INVERSIONS, Cmi, DeepInversion, Fast, Inversion, NoInversion
from condkd_ray.methods.inversion.inversion import BestStep
from condkd_ray.methods.targets import Targets
from condkd_ray.methods.weighing import equal_weights
from condkd_ray.models import parse
from condkd_ray.models.teacher import Teacher
from condkd_ray.trial.run import local_store, run_trial


@given(losses=st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=8))
def test_the_values_of_the_first_lowest_loss_are_kept(losses):
    best = BestStep()
    for number, loss in enumerate(losses):
        best.update(torch.tensor(loss, requires_grad=True), torch.full((2, 3), float(number)), torch.tensor(number))
    images, number = best.kept
    assert number == losses.index(min(losses))
    assert (images == number).all()
    assert not images.requires_grad


def test_kept_values_are_copies():
    best, leaf = BestStep(), torch.ones(3, requires_grad=True)
    best.update(torch.tensor(1.0), leaf)
    with torch.no_grad():
        leaf.zero_()
    best.update(torch.tensor(2.0), leaf)
    assert torch.equal(best.kept[0], torch.ones(3))


def test_no_inversion_makes_no_images_and_uses_no_random_stream():
    prepared, rng = make_prepared(), Streams(0)
    samples, terms = NoInversion().synthesize(
        None,
        Targets(torch.empty(0, dtype=torch.int64)),
        teacher=prepared.teacher,
        student=prepared.teacher.network,
        guide=Unguided(),
        weigh=equal_weights,
        rng=rng,
    )
    assert (tuple(samples.images.shape), len(samples.labels), terms) == ((0, *IMAGE_SHAPE), 0, {})
    assert rng.state_dict() == {"device": {}, "host": {}}


def test_a_student_learns_from_condensed_images_alone():
    prepared = make_prepared()
    base = toy_config()
    distiller = type(base.distiller)(steps=10, batch=16, condensed_share=1.0)
    config = toy_config(inversion=NoInversion(), distiller=distiller, rounds=6)
    store = local_store(config, prepared, None)
    outcome = run_trial(config, prepared, store)
    assert store.num_ids == 0
    assert outcome.history[-1]["kd/loss"] < 0.5 * outcome.history[0]["kd/loss"]


@pytest.mark.parametrize("method", [Fast(), Cmi(), DeepInversion()])
@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_a_teacher_without_bn_is_offered_what_works_for_its_task(method: Inversion, task: str):
    layers = [nn.Conv2d(IMAGE_SHAPE[0], 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, NUM_CLASSES, 1)]
    flat = [nn.Flatten(), nn.Linear(IMAGE_SHAPE[1] * IMAGE_SHAPE[2], NUM_CLASSES)]
    teacher = wrap(nn.Sequential(*(layers if task == "segmentation" else flat)))
    assert teacher.task == task
    with pytest.raises(InputError, match=r"^number of the teacher's batch normalisation layers is 0; ") as error:
        method.init(teacher, Streams(0))
    accepted = str(error.value).partition("accepted: 1 or more, as in ")[2]
    network, _, names = accepted.removesuffix(", which match no statistics").partition("; or inversion ")
    offered = names.split(" or ")
    dense = ["dafl", "dfad"]
    assert offered == (dense if task == "segmentation" else ["dafl", "zskt", "dfad", "pre_dfkd", "soft_target"])
    for name in offered:
        INVERSIONS.members()[name]().init(teacher, Streams(0))
    shape = (3, 32, 32)
    built = parse(network).build(shape, 5)
    constants = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "train_size": 10, "flip_ok": True}
    named = Teacher(built, num_classes=5, image_shape=shape, **constants)
    assert named.task == task
    assert named.bn_inputs
