import copy
from dataclasses import replace

import pytest
import torch
import yaml
from contracts.toy_methods import make_student, small, synthesize
from reference.inversion import nayer
from safetensors.torch import save_file
from toy import MEAN, NUM_CLASSES, STD, by_layer, make_teacher, toy_config

from condkd_ray.core.config import content_hash
from condkd_ray.core.method import InputError
from condkd_ray.core.rng import Streams
from condkd_ray.methods.guidance.guidance import Unguided
from condkd_ray.methods.inversion import Nayer
from condkd_ray.methods.inversion import nayer as nayer_module
from condkd_ray.methods.inversion.nayer import (
    EmbeddingGenerator,
    NoisyLayers,
    occurrences,
    read_embeddings,
    split_evenly,
)
from condkd_ray.methods.targets import Balanced, Targets
from condkd_ray.methods.weighing import equal_weights
from condkd_ray.models import LeNet5
from condkd_ray.models.teacher import Teacher
from condkd_ray.trial.config import dump, from_tree


def lists(statistics):
    return [(mean.double().tolist(), var.double().tolist()) for mean, var in statistics]


class Recorder:
    """A guide without a penalty that records the images and the teacher's observations of them."""

    layers = ()

    def __init__(self):
        self.images, self.observations = [], []

    def penalty(self, images, seen, labels):
        self.images.append(images.detach().clone())
        self.observations.append(seen.detach())
        return seen.logits.new_zeros(())

    def update(self, images, seen, labels):
        pass


def test_the_loss_equals_the_reference_also_with_remembered_statistics():
    method, teacher, student, rng, guide = (
        small(Nayer, steps=1, shift=0),
        make_teacher(),
        make_student(),
        Streams(0),
        Recorder(),
    )
    state = method.init(teacher, rng)
    for _ in range(3):
        memory = state.bn_memory
        made, metrics = synthesize(method, state, rng=rng, teacher=teacher, student=student, guide=guide)
        seen = guide.observations[-1]
        wanted = nayer(
            seen.logits.double().tolist(),
            student(guide.images[-1]).detach().double().tolist(),
            made.labels.tolist(),
            lists(by_layer(seen.bn, teacher)),
            lists(by_layer(teacher.bn[0], teacher)),
            None if memory is None else lists(by_layer(memory, teacher)),
            momentum=0.9,
            bn_weight=10.0,
            oh_weight=0.5,
            adv_weight=1.33,
        )
        assert metrics["inversion/loss"] == pytest.approx(wanted, rel=1e-4)
        share = 1.0 if memory is None else 0.1
        old = seen.bn if memory is None else memory
        torch.testing.assert_close(state.bn_memory, share * seen.bn + (1 - share) * old)


def test_an_image_is_generated_from_its_class_embedding_by_the_noisy_layer_of_its_place():
    generator = EmbeddingGenerator(6, 5, 4, (1, 8, 8))
    embeddings, rng = torch.randn(3, 6), torch.Generator().manual_seed(0)
    noisy = NoisyLayers(torch.randn(2, 5, 6, generator=rng), torch.randn(2, 5, generator=rng))
    labels, places = torch.tensor([2, 0, 2, 1]), torch.tensor([0, 0, 1, 1])
    normed = generator.norm(embeddings)
    latents = torch.stack([noisy.weight[p] @ normed[k] + noisy.bias[p] for k, p in zip(labels, places, strict=True)])
    torch.testing.assert_close(generator(embeddings, noisy, labels, places), generator.body(latents))
    torch.testing.assert_close(normed.mean(0), torch.zeros(6), atol=1e-6, rtol=0)


def test_places_count_the_earlier_images_of_a_class():
    places, count = occurrences(torch.tensor([1, 0, 1, 1, 0, 3]), 4)
    assert places.tolist() == [0, 0, 1, 2, 1, 0]
    assert count == 3


def test_no_two_images_are_equal():
    made, _ = synthesize(small(Nayer, batch=24))
    assert torch.pdist(made.images.flatten(1)).min() > 1e-3


def test_only_the_noisy_layers_are_drawn_again_each_round():
    # With a learning rate of 0, only draws differ between rounds.
    method, teacher, rng, guide = small(Nayer, lr=0.0, shift=0), make_teacher(), Streams(0), Recorder()
    state = method.init(teacher, rng)
    before = copy.deepcopy(state.generator)
    for _ in range(2):
        synthesize(method, state, rng=rng, teacher=teacher, guide=guide)
    first, second = guide.images[:3], guide.images[3:]
    for round in (first, second):
        assert all(torch.equal(images, round[0]) for images in round)
    assert not torch.allclose(first[0], second[0])
    for mine, kept in zip(before.parameters(), state.generator.parameters(), strict=True):
        assert torch.equal(mine, kept)
    # Standard normal: 4 places of 16 x 512 weights a round.
    own = Streams(0)
    drawn = [torch.randn(4, 16, 512, generator=own["latents"]) for _ in range(2)]
    assert torch.equal(own["latents"].get_state(), rng["latents"].get_state())
    assert not torch.equal(*drawn)


def test_gradients_reach_every_weight_of_the_generator():
    method, teacher, rng = small(Nayer, steps=1), make_teacher(), Streams(0)
    state = method.init(teacher, rng)
    before = copy.deepcopy(state.generator)
    synthesize(method, state, rng=rng, teacher=teacher)
    for name, moved in state.generator.named_parameters():
        assert (moved != before.get_parameter(name)).double().mean() > 0.5, name


@pytest.fixture
def initialised(monkeypatch):
    """The names of the random streams from which generators are initialised."""
    streams, real = [], nayer_module.drawn

    def watched(make, stream, *place):
        streams.append(stream)
        return real(make, stream, *place)

    monkeypatch.setattr(nayer_module, "drawn", watched)
    return streams


def test_a_generator_is_replaced_after_life_rounds(initialised):
    method, teacher, rng = small(Nayer, life=2), make_teacher(), Streams(0)
    state = method.init(teacher, rng)
    first = state.generator
    for _ in range(5):
        synthesize(method, state, rng=rng, teacher=teacher)
    assert initialised == ["init/generator", "init/generator/3", "init/generator/5"]
    assert state.generator is first  # its weights are those of the last one


def test_a_new_generator_starts_from_its_initialisation():
    method, teacher, rng = small(Nayer, life=1, lr=1e-12), make_teacher(), Streams(0)
    state, found = method.init(teacher, rng), []
    for _ in range(2):
        synthesize(method, state, rng=rng, teacher=teacher)
        found.append(state.generator.body.linear.weight.detach().clone())
    with Streams(0).forked("init/generator/2"):
        wanted = EmbeddingGenerator(method.embedding, method.latent, method.width, teacher.image_shape)
    torch.testing.assert_close(found[1], wanted.body.linear.weight)
    assert not torch.allclose(found[0], found[1])


@pytest.mark.parametrize(
    ("change", "rounds"),
    [
        ({"warm_up": 4, "warm_up_life": 3, "life": 2}, [4, 5, 7]),
        ({"warm_up": 3, "life": 2}, [3, 4, 6, 8]),
    ],
)
def test_the_warm_up_has_its_own_life_and_ends_with_a_new_generator(change, rounds, initialised):
    method, teacher, rng = small(Nayer, steps=1, **change), make_teacher(), Streams(0)
    state = method.init(teacher, rng)
    for _ in range(8):
        synthesize(method, state, rng=rng, teacher=teacher)
    assert initialised[1:] == [f"init/generator/{number}" for number in rounds]


def test_each_loop_has_an_equal_share_of_every_class():
    labels = Balanced().sample(803, make_teacher(), rng=Streams(0)).labels
    parts = split_evenly(labels, 2)
    assert [len(part) for part in parts] == [402, 401]
    counts = torch.stack([part.bincount(minlength=NUM_CLASSES) for part in parts])
    assert (counts[0] - counts[1]).abs().max() <= 1
    assert torch.equal(counts.sum(0), labels.bincount(minlength=NUM_CLASSES))
    assert torch.equal(split_evenly(labels, 1)[0], labels)


def test_a_round_of_two_loops_equals_two_rounds_of_one_loop():
    teacher, student, targets = make_teacher(), make_student(), Balanced().sample(32, make_teacher(), rng=Streams(1))
    found = []
    for loops, parts in ((2, [targets]), (1, [Targets(part) for part in split_evenly(targets.labels, 2)])):
        method, rng = small(Nayer, loops=loops), Streams(0)
        state = method.init(teacher, rng)
        with_all = {"teacher": teacher, "student": student, "guide": Unguided(), "weigh": equal_weights, "rng": rng}
        made = [method.synthesize(state, part, **with_all)[0] for part in parts]
        found.append((torch.cat([one.images for one in made]), torch.cat([one.labels for one in made]), state))
    (images, labels, state), (images_, labels_, state_) = found
    assert torch.equal(images, images_)
    assert torch.equal(labels, labels_)
    assert torch.equal(labels.bincount(), targets.labels.bincount())
    assert small(Nayer, loops=2).images_per_round == len(images) == 32
    assert (state.round, state_.round) == (1, 2)
    assert torch.equal(state.bn_memory, state_.bn_memory)


@pytest.mark.parametrize("warm_up", [0, 2])
def test_the_adversarial_loss_is_used_only_after_the_warm_up(warm_up):
    method, teacher, rng = small(Nayer, warm_up=warm_up), make_teacher(), Streams(0)
    state = method.init(teacher, rng)
    adversarial = [synthesize(method, state, rng=rng, teacher=teacher)[1]["inversion/adv"] != 0 for _ in range(3)]
    assert adversarial == [number > warm_up for number in (1, 2, 3)]


def test_drawn_embeddings_are_orthogonal_and_depend_on_the_seed():
    first, again, other = (small(Nayer).init(make_teacher(), Streams(seed)).embeddings for seed in (0, 0, 1))
    assert first.shape == (NUM_CLASSES, 512)
    torch.testing.assert_close(first @ first.T, torch.eye(NUM_CLASSES), atol=1e-5, rtol=0)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not first.requires_grad


def written(path, tensor, name="embeddings"):
    save_file({name: tensor}, path)
    return path


def test_embeddings_of_a_file_are_used_unchanged(tmp_path):
    table = torch.randn(NUM_CLASSES, 7).half()
    method = small(Nayer, embeddings=written(tmp_path / "names.safetensors", table))
    state = method.init(make_teacher(), Streams(0))
    assert torch.equal(state.embeddings, table.float())
    made, _ = synthesize(method)
    assert made.images.isfinite().all()
    plain, _ = synthesize(small(Nayer, embedding=7))
    assert not torch.equal(made.images, plain.images)


@pytest.mark.parametrize(
    ("tensor", "name", "message"),
    [
        (torch.ones(NUM_CLASSES + 1, 5), "embeddings", r"\(5, 5\); accepted: \(4, E\), a row for each class"),
        (torch.ones(NUM_CLASSES), "embeddings", r"\(4,\); accepted"),
        (torch.ones(NUM_CLASSES, 5), "table", "None; accepted"),
        (torch.full((NUM_CLASSES, 5), torch.nan), "embeddings", "not all finite"),
    ],
    ids=["rows", "shape", "name", "nan"],
)
def test_files_that_do_not_fit_the_classes_are_refused(tmp_path, tensor, name, message):
    path = written(tmp_path / "names.safetensors", tensor, name)
    with pytest.raises(InputError, match=message):
        read_embeddings(path, NUM_CLASSES)
    with pytest.raises(InputError, match=message):
        small(Nayer, embeddings=path).init(make_teacher(), Streams(0))


def test_a_missing_file_is_refused(tmp_path):
    method = small(Nayer, embeddings=tmp_path / "none.safetensors")
    with pytest.raises(InputError, match="which is no file"):
        method.init(make_teacher(), Streams(0))
    with pytest.raises(InputError, match="cannot be read"):
        content_hash(toy_config(inversion=method))


def test_the_trials_hash_depends_on_the_content_of_the_file_not_on_its_path(tmp_path):
    ones, twos = (torch.full((NUM_CLASSES, 5), value) for value in (1.0, 2.0))
    paths = [
        written(tmp_path / f"{name}.safetensors", table) for name, table in (("a", ones), ("b", ones), ("c", twos))
    ]
    first, moved, other = (content_hash(toy_config(inversion=replace(Nayer(), embeddings=path))) for path in paths)
    assert first == moved
    assert first != other
    assert first != content_hash(toy_config(inversion=Nayer()))


def test_the_path_of_the_file_is_written_to_yaml(tmp_path):
    complete = toy_config(inversion=Nayer(embeddings=tmp_path / "names.safetensors"))
    assert from_tree(yaml.safe_load(dump(complete))) == complete


def test_a_teacher_without_bn_is_refused():
    module = LeNet5().build((1, 16, 16), NUM_CLASSES)
    teacher = Teacher.from_module(module, num_classes=NUM_CLASSES, image_shape=(1, 16, 16), mean=MEAN, std=STD)
    with pytest.raises(InputError, match="batch normalisation layers"):
        Nayer().init(teacher, Streams(0))


def test_fewer_images_than_classes_are_accepted():
    made, _ = synthesize(small(Nayer, batch=2))
    assert len(made) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 0},
        {"batch": 1},
        {"life": 0},
        {"warm_up": -1},
        {"embedding": 0},
        {"bn_momentum": 1.0},
        {"loops": 0},
        {"warm_up_life": 0},
    ],
)
def test_invalid_settings_are_refused(change):
    with pytest.raises(InputError, match="accepted"):
        Nayer(**change)
