"""Batches whose condensed images are augmented by DSA: `condensed_augment: dsa`."""

import copy
from dataclasses import replace

import pytest
import torch
from contracts.toy_methods import same, tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import NUM_CLASSES, make_prepared, make_teacher, samples, toy_config

from condkd_ray.core import checkpoint
from condkd_ray.core.method import InputError
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import Samples
from condkd_ray.data.augment import dsa
from condkd_ray.methods.distiller import Distiller
from condkd_ray.methods.inversion import NoInversion
from condkd_ray.methods.losses.kd import LogitL1
from condkd_ray.models.teacher import Teacher
from condkd_ray.trial.config import from_tree
from condkd_ray.trial.loop import run_round, start
from condkd_ray.trial.run import local_store
from methods.student_steps import begin

SHARE = Distiller(steps=2, batch=16, condensed_share=0.25, condensed_augment="dsa")
CONCAT = replace(SHARE, mix="concat")
NAME = "augment/condensed"
each_mix = pytest.mark.parametrize("distiller", [SHARE, CONCAT], ids=lambda one: one.mix)


class Recorder(torch.nn.Module):
    """A network that records its inputs."""

    def __init__(self):
        super().__init__()
        self.linear, self.seen = torch.nn.Linear(64, NUM_CLASSES), []

    def forward(self, images):
        self.seen.append(images.detach())
        return self.linear(images.flatten(1))


def step_inputs(distiller, batch, condensed, *, rng=None, flip_ok=False):
    """Return the student's inputs in one step, and the list of the teacher's inputs."""
    student, network = Recorder(), Recorder()
    options = {"num_classes": NUM_CLASSES, "image_shape": (1, 8, 8), "mean": (0.25,), "std": (0.25,)}
    teacher = Teacher(network, train_size=1, flip_ok=flip_ok, **options)
    network.seen.clear()
    distiller.step(
        *(distiller.init(student, 1), batch, torch.ones(len(batch))),
        teacher=teacher,
        rng=rng or Streams(0),
        condensed=condensed,
    )
    (seen,) = student.seen
    return seen, network.seen


def by_hand(images, flip=False, seed=0):
    rng = Streams(seed)
    return dsa(images, rng=rng[NAME], choice=rng.host(NAME), flip=flip)


@pytest.mark.parametrize("augment", [True, False])
@pytest.mark.parametrize("flip_ok", [True, False])
@pytest.mark.parametrize(("distiller", "count"), [(SHARE, 16), (CONCAT, 20)], ids=["share", "concat"])
@settings(max_examples=10)
@given(seed=st.integers(0, 99))
def test_only_condensed_images_are_augmented_by_dsa(distiller, count, augment, flip_ok, seed):
    batch, distiller = samples(count, seed), replace(distiller, augment=augment)
    seen, teacher_inputs = step_inputs(distiller, batch, 4, rng=Streams(seed), flip_ok=flip_ok)
    plain, _ = step_inputs(replace(distiller, condensed_augment="batch"), batch, 4, rng=Streams(seed), flip_ok=flip_ok)
    assert torch.equal(seen[: count - 4], plain[: count - 4])
    assert torch.equal(seen[count - 4 :], by_hand(batch.images[count - 4 :], flip_ok, seed))
    # The teacher gets the same images as the student.
    (images,) = teacher_inputs
    assert torch.equal(images, seen)


def test_each_condensed_image_has_its_own_draw():
    one = samples(1).images
    batch = Samples(one.expand(16, -1, -1, -1), torch.zeros(16, dtype=torch.int64), torch.zeros(16, NUM_CLASSES))
    for seed in range(5):
        seen, _ = step_inputs(SHARE, batch, 4, rng=Streams(seed))
        differing = {tuple(image.flatten().tolist()) for image in seen[12:]}
        # On such small images, two draws of a shift by whole pixels can be equal.
        assert len(differing) > 1


def test_a_batch_of_only_condensed_images_is_augmented_by_dsa():
    batch = samples(16)
    seen, _ = step_inputs(replace(SHARE, condensed_share=1.0), batch, 16)
    assert torch.equal(seen, by_hand(batch.images))


def test_a_batch_without_condensed_images_is_augmented_as_without_dsa():
    batch = samples(16)
    assert torch.equal(
        step_inputs(SHARE, batch, 0)[0], step_inputs(replace(SHARE, condensed_augment="batch"), batch, 0)[0]
    )


@pytest.mark.parametrize(("changes", "runs"), [({}, True), ({"condensed_share": 0.0}, False)])
def test_the_teacher_runs_only_if_images_are_augmented(changes, runs):
    distiller = replace(SHARE, augment=False, **changes)
    assert distiller.runs_teacher == runs
    assert replace(distiller, condensed_augment="batch").runs_teacher is False
    assert toy_config(distiller=distiller).keeps_logits == (not runs)


def test_the_student_learns_the_teachers_logits_of_the_augmented_images():
    teacher = make_teacher()
    distiller = replace(SHARE, augment=False, lr=1e-9, loss=LogitL1())
    state = begin(distiller, teacher)
    state.student.eval()
    batch = replace(samples(16), logits=torch.full((16, NUM_CLASSES), 1e6))
    terms, _ = distiller.step(state, batch, torch.ones(16), teacher=teacher, rng=Streams(0), condensed=4)
    assert terms["loss"].item() == pytest.approx(0, abs=1e-5)


def run(distiller, rounds=2, **changes):
    config, prepared = toy_config(distiller=distiller, **changes), make_prepared()
    state, store = start(config, prepared), local_store(config, prepared, None)
    for _ in range(rounds):
        run_round(config, prepared, state, store)
    return state, store


@each_mix
def test_dsa_does_not_change_shared_random_streams(distiller):
    found = []
    for method in (replace(distiller, condensed_augment="batch"), distiller):
        opened = run(method)[0].streams.state_dict()
        found.append({f"{kind}/{name}": opened[kind][name] for kind in opened for name in opened[kind]})
    plain, under_dsa = found
    assert under_dsa.keys() - plain.keys() <= {f"host/{NAME}", f"device/{NAME}"}
    assert f"host/{NAME}" in under_dsa
    assert all(torch.equal(under_dsa[name], plain[name]) for name in plain if NAME not in name)


@each_mix
def test_a_trial_passes_the_number_of_condensed_images_to_each_step(distiller, monkeypatch):
    counts = []

    def counted(self, images, condensed, teacher, rng):
        counts.append((len(images), condensed))
        return original(self, images, condensed, teacher, rng)

    original = Distiller.student_images
    monkeypatch.setattr(Distiller, "student_images", counted)
    run(distiller, rounds=1)
    assert counts == [(16, 4) if distiller.mix == "share" else (24, 8)] * 2


@each_mix
def test_a_trial_continues_from_a_checkpoint_bit_for_bit(distiller, tmp_path):
    config, prepared = toy_config(distiller=distiller), make_prepared()
    live, store = run(distiller, rounds=1)
    checkpoint.save(live, tmp_path / "state")
    resumed, kept = checkpoint.load(start(config, make_prepared()), tmp_path / "state"), copy.deepcopy(store)
    for _ in range(2):
        run_round(config, prepared, live, store)
        run_round(config, make_prepared(), resumed, kept)
    assert same(list(tensors(live)), list(tensors(resumed)))


def test_dsa_changes_the_student_that_learns_only_from_condensed_images():
    alone = {"inversion": NoInversion()}
    plain = replace(SHARE, condensed_share=1.0, condensed_augment="batch")
    ends = [
        run(method, **alone)[0].distiller.student.state_dict()
        for method in (plain, replace(SHARE, condensed_share=1.0))
    ]
    assert not same(*ends)


def test_another_augmentation_is_refused():
    assert Distiller(condensed_augment="dsa").idle == ("condensed_augment dsa with condensed_share 0",)
    assert SHARE.idle == Distiller().idle == ()
    with pytest.raises(InputError, match="condensed_augment is 'siamese'; accepted: 'batch' or 'dsa'"):
        from_tree({"distiller": {"condensed_augment": "siamese"}})
