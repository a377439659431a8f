import fcntl
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from data.image_files import write_folder
from safetensors.torch import save_file
from torch import Tensor
from toy import blobs

from condkd_ray.core.config import to_tree
from condkd_ray.core.method import InputError
from condkd_ray.core.rng import derive_seed
from condkd_ray.core.view import Silent
from condkd_ray.data.datasets import DataConfig
from condkd_ray.methods.condensation import (
    AllReal,
    AnyCondensation,
    DistributionMatching,
    Imported,
    RandomReal,
    SqueezeRecover,
)
from condkd_ray.methods.distiller import Distiller
from condkd_ray.methods.guidance import Gaussian
from condkd_ray.methods.inversion import Cmi, Dafl, Fast
from condkd_ray.methods.losses.kd import Attention
from condkd_ray.methods.memory import Latest
from condkd_ray.methods.supervised import Supervised, TeacherConfig, bf16_pays
from condkd_ray.models import ConvNet, ResNet, Vgg11
from condkd_ray.trial import artifacts
from condkd_ray.trial.artifacts import StandIns, Workshop, cached, default_cache
from condkd_ray.trial.config import TrialConfig, dump
from condkd_ray.trial.evaluation import views
from condkd_ray.trial.plan import trial_hash

RECIPE = TeacherConfig(network=ResNet(depth=8, width=4), training=Supervised(epochs=3))
CONFIG = TrialConfig(
    teacher=RECIPE,
    student=ResNet(depth=8, width=2),
    condensation=RandomReal(ipc=5),
    inversion=Fast(steps=1, batch=16, latent=16, width=8),
    distiller=Distiller(steps=1, batch=16, condensed_share=0.25),
)
# Steps this small leave the images at their start values, which are real images.
UNMOVED = DistributionMatching(ipc=5, condensed_together=90, iterations=1, width=2, lr=1e-30)
MATCHING = DistributionMatching(ipc=5, condensed_together=5, iterations=2, width=4)


def trainings(logged: list[str]) -> int:
    return sum(line.startswith("training") for line in logged)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def workshop(cache) -> Workshop:
    return Workshop(cache)


def using(method: AnyCondensation | None, **changes) -> TrialConfig:
    share = 0.0 if method is None else 0.25
    return replace(
        CONFIG, condensation=method, distiller=Distiller(steps=1, batch=16, condensed_share=share), **changes
    )


def rows(pixels: Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in pixels}


def pixels(images: Tensor, workshop: Workshop) -> set[bytes]:
    dataset = workshop.data(CONFIG)
    grey = (images * dataset.std[0] + dataset.mean[0]).mul(255).round().to(torch.uint8)
    return rows(grey.contiguous())


def test_a_teacher_is_trained_once_for_all_workshops(cache, workshop, logged):
    first = workshop.prepare(CONFIG)
    logged.clear()
    again = Workshop(cache).prepare(CONFIG)
    assert trainings(logged) == 0
    assert again.hashes == first.hashes
    assert trial_hash(CONFIG, again) == trial_hash(CONFIG, first)


def test_artifacts_are_equal_after_the_cache_is_deleted(tmp_path, workshop, logged):
    anew = Workshop(tmp_path).prepare(using(MATCHING))
    assert trainings(logged) == 1
    assert anew.hashes == workshop.prepare(using(MATCHING)).hashes


@pytest.mark.parametrize(
    "recipe",
    [
        replace(RECIPE, seed=1),
        replace(RECIPE, network=ResNet(depth=8, width=5)),
        replace(RECIPE, training=Supervised(epochs=3, lr=0.1)),
    ],
    ids=["seed", "network", "training"],
)
def test_another_recipe_gives_another_teacher(workshop, recipe):
    hashes = workshop.prepare(CONFIG).hashes
    other = workshop.prepare(replace(CONFIG, teacher=recipe)).hashes
    assert other["teacher"] != hashes["teacher"]
    assert (other["data"], other["condensed"]) == (hashes["data"], hashes["condensed"])


def test_trials_of_other_seeds_share_all_but_the_condensed_set(workshop):
    first, other = (workshop.prepare(replace(CONFIG, seed=seed)) for seed in (0, 1))
    assert first.teacher is other.teacher
    assert first.proxy is other.proxy
    assert first.hashes["condensed"] != other.hashes["condensed"]
    assert {**first.hashes, "condensed": ""} == {**other.hashes, "condensed": ""}


CHILD = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import logging
from condkd_ray.trial.artifacts import Workshop
from condkd_ray.trial.config import read
from condkd_ray.trial.config import tensor_digest
from condkd_ray.trial.artifacts import StandIns, Workshop
from condkd_ray.trial.config import read
from condkd_ray.trial.config import tensor_digest
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
config = read(Path(sys.argv[1]) / "trial.yaml")
teacher = Workshop(Path(sys.argv[1])).teacher(config)
print("digest", tensor_digest(teacher.network.state_dict()))
"""


@pytest.mark.slow
def test_of_two_processes_on_one_cache_only_one_trains(tmp_path):
    (tmp_path / "trial.yaml").write_text(dump(CONFIG))
    command = [sys.executable, "-c", CHILD, str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    outputs = [process.communicate()[0].splitlines() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum(line.startswith("training") for lines in outputs for line in lines) == 1
    assert outputs[0][-1] == outputs[1][-1]
    assert outputs[0][-1].startswith("digest")


def held_out(workshop: Workshop) -> set[bytes]:
    """Return the proxy images: train images that are not in the set of all images that condensers may use."""
    used = workshop.prepare(using(AllReal())).condensed
    assert used is not None
    return rows(workshop.data(CONFIG).train.pixels) - pixels(used.images, workshop)


def test_one_image_a_class_is_held_out_for_the_proxy(workshop):
    dataset, prepared = workshop.data(CONFIG), workshop.prepare(CONFIG)
    names = held_out(workshop)
    images = dataset.train[torch.tensor([row.numpy().tobytes() in names for row in dataset.train.pixels])]
    assert sorted(images.labels.tolist()) == list(range(10))
    images = images[images.labels.argsort()].samples(dataset.mean, dataset.std)
    augmented = views(images, prepared.teacher, seed=derive_seed(0, "proxy views"))
    assert torch.equal(augmented.images, prepared.proxy.images)


def test_landmarks_are_fifty_train_images_a_class_outside_the_proxy_set(workshop):
    dataset, prepared = workshop.data(CONFIG), workshop.prepare(CONFIG)
    landmarks = prepared.landmarks
    assert landmarks.real_labels.tolist() == [k for k in range(10) for _ in range(50)]
    # No two images have the same features, so features identify the images.
    with torch.no_grad():
        allowed = prepared.teacher.observe(workshop.prepare(using(AllReal())).condensed.images).features
    apart = torch.cdist(landmarks.real * landmarks.scale, allowed)
    assert apart.amin(1).max() < 1e-2 < apart.median()
    train = dataset.train.samples(dataset.mean, dataset.std).images
    assert len(train) == len(allowed) + 10
    assert torch.equal(landmarks.condensed_labels, prepared.condensed.labels)
    with torch.no_grad():
        condensed = prepared.teacher.observe(prepared.condensed.images).features
    torch.testing.assert_close(landmarks.condensed * landmarks.scale, condensed, rtol=1e-3, atol=1e-3)


def test_landmarks_are_made_once_and_all_trials_share_their_real_side(workshop):
    first, same, other = (workshop.prepare(replace(CONFIG, seed=seed)).landmarks for seed in (0, 0, 1))
    assert first is same
    assert torch.equal(first.real, other.real)
    assert not torch.equal(first.condensed, other.condensed)
    without = workshop.prepare(using(None)).landmarks
    assert torch.equal(without.real, first.real)
    assert without.condensed is None
    everything = workshop.prepare(using(AllReal())).landmarks
    assert everything.condensed_labels.bincount().max() <= 100


@pytest.mark.parametrize("method", [RandomReal(ipc=90), replace(UNMOVED, ipc=90)], ids=lambda method: method.name)
def test_condensers_use_no_proxy_test_or_validation_images(workshop, method):
    dataset, prepared = workshop.data(CONFIG), workshop.prepare(using(method))
    assert prepared.condensed is not None
    assert dataset.val is not None
    found = pixels(prepared.condensed.images, workshop)
    assert len(found) > 890
    assert found <= rows(dataset.train.pixels)
    for excluded in (held_out(workshop), rows(dataset.test.pixels), rows(dataset.val.pixels)):
        assert not found & excluded


@pytest.mark.parametrize("method", [RandomReal(ipc=5), MATCHING], ids=lambda method: method.name)
def test_smaller_sets_are_the_first_of_each_class_of_larger_ones(workshop, method):
    large = workshop.prepare(using(method)).condensed
    small = workshop.prepare(using(replace(method, ipc=2))).condensed
    assert small.labels.tolist() == [k for k in range(10) for _ in range(2)]
    assert torch.equal(small.images, large.images.view(10, 5, *large.images.shape[1:])[:, :2].flatten(0, 1))
    assert torch.equal(small.logits, large.logits.view(10, 5, 10)[:, :2].flatten(0, 1))


def test_the_condensed_set_comes_with_the_teachers_logits(workshop):
    prepared = workshop.prepare(CONFIG)
    assert torch.allclose(prepared.condensed.logits, prepared.teacher.logits(prepared.condensed.images), atol=1e-5)


def test_without_condensation_there_is_no_set(workshop):
    prepared = workshop.prepare(using(None))
    assert prepared.condensed is None
    assert prepared.hashes["condensed"] == ""
    assert prepared.hashes["proxy"] == workshop.prepare(CONFIG).hashes["proxy"]


def test_weights_of_the_user_are_used_and_identified_by_their_content(tmp_path, workshop, logged):
    trained = workshop.prepare(CONFIG)
    weights = {name: value.contiguous() for name, value in trained.teacher.network.state_dict().items()}
    (tmp_path / "elsewhere").mkdir()
    paths = [tmp_path / "w.safetensors", tmp_path / "elsewhere" / "v.safetensors"]
    for path in paths:
        save_file(weights, path)
    configs = [replace(CONFIG, teacher=replace(RECIPE, weights=path)) for path in paths]
    found = [Workshop(tmp_path / "cache").prepare(config) for config in configs]
    assert trainings(logged) == 0
    assert found[0].hashes == found[1].hashes == trained.hashes
    assert trial_hash(configs[0], found[0]) == trial_hash(configs[1], found[1])
    save_file(weights | {"classifier.bias": torch.ones(10)}, paths[0])
    other = Workshop(tmp_path / "cache").prepare(configs[0])
    assert trial_hash(configs[0], other) != trial_hash(configs[1], found[1])
    assert other.teacher.network.classifier.bias.eq(1).all()


def test_moving_the_data_changes_no_hash_and_trains_nothing_anew(tmp_path, logged):
    for place in ("here", "there"):
        for part, seed in (("train", 0), ("test", 1)):
            images = blobs(48, seed)
            write_folder(tmp_path / place / part, images.pixels, images.labels, list("abcd"))
    hashes = []
    for place in ("here", "there"):
        data = DataConfig(name="image_folder", root=tmp_path / place)
        teacher = replace(RECIPE, training=Supervised(epochs=20, batch=16))
        config = replace(CONFIG, data=data, teacher=teacher, student=ResNet(width=2))
        prepared = Workshop(tmp_path / "cache").prepare(config)
        hashes.append((prepared.hashes, trial_hash(config, prepared)))
    assert hashes[0] == hashes[1]
    assert trainings(logged) == 1


def older_key(parts: list) -> str:
    """Return an artifact's name as before version 2 of the numbers: a hash of all fields, also those at defaults."""
    text = json.dumps([parts, {}], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Older(SqueezeRecover):
    """The method as before its code changed; it counts as a class of this package, not as a plug-in."""

    __module__ = SqueezeRecover.__module__
    code_version = 1


@pytest.mark.parametrize("method", [MATCHING, Older(ipc=1, iterations=1, squeeze="teacher")])
def test_artifacts_of_an_older_version_are_found_by_the_hash_of_all_their_fields(tmp_path, workshop, method, logged):
    config = using(method)
    made, dataset = workshop.prepare(config), workshop.data(config)
    logged.clear()
    read_as = [dataset.digest, dataset.mean, dataset.std, dataset.flip_ok, 0]
    recipe = to_tree(RECIPE)
    for by_content in ("weights", "card", "force"):
        del recipe[by_content]
    teacher = older_key(["1", recipe, "bfloat16" if bf16_pays() else "float32", read_as])
    few = older_key(["1", to_tree(method), "", 0, read_as, *[teacher] * method.needs_teacher])
    for kind, name, tensors in (
        ("teachers", teacher, made.teacher.network.state_dict()),
        ("condensed", few, {"images": made.condensed.images, "labels": made.condensed.labels}),
    ):
        (tmp_path / kind).mkdir()
        path = tmp_path / kind / f"{name}.safetensors"
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
    files = set(tmp_path.rglob("*.safetensors"))
    assert Workshop(tmp_path).prepare(config).hashes == made.hashes
    stand_ins = StandIns()
    Workshop(tmp_path, stand_ins=stand_ins).prepare(config)
    assert (logged, stand_ins) == ([], StandIns({}, {}))
    assert set(tmp_path.rglob("*.safetensors")) == files
    other = replace(config, teacher=replace(RECIPE, training=Supervised(epochs=3, lr=0.1)))
    Workshop(tmp_path).prepare(other)
    assert trainings(logged) == 1


def test_a_teacher_that_learnt_nothing_is_refused_and_not_kept(tmp_path):
    config = replace(CONFIG, teacher=replace(RECIPE, training=Supervised(epochs=1, lr=1e-9)))
    with pytest.raises(
        InputError, match=r"balanced train accuracy of teacher resnet-8-4 after training is 0\.\d+; accepted: more than"
    ):
        Workshop(tmp_path).prepare(config)
    assert not list((tmp_path / "teachers").glob("*.safetensors"))


def write_set(path: Path, workshop: Workshop, shuffled: bool) -> Path:
    dataset = workshop.data(CONFIG)
    first = dataset.train[dataset.train.labels.argsort(stable=True)].samples(dataset.mean, dataset.std)
    few = torch.cat([(first.labels == k).nonzero()[:4, 0] for k in range(10)])
    labels = first.labels[few]
    torch.save({"data": [[first.images[few], labels.roll(4) if shuffled else labels]]}, path)
    return path


def test_an_imported_set_is_accepted_if_the_teacher_recognises_it(tmp_path, cache, logged):
    workshop = Workshop(cache)
    known = Imported(path=write_set(tmp_path / "set.pt", workshop, shuffled=False), ipc=4, space="normalised")
    assert len(workshop.prepare(using(known)).condensed) == 40
    assert any(line.startswith("condensed set set.pt, 4 per class: the teacher classifies ") for line in logged)
    foreign = replace(known, path=write_set(tmp_path / "foreign.pt", workshop, shuffled=True))
    with pytest.raises(
        InputError, match=r"teacher's accuracy on condensed set foreign.pt, 4 per class is 0\.\d+; accepted"
    ):
        workshop.prepare(using(foreign))
    assert workshop.prepare(using(replace(foreign, force=True))).condensed is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"condensation": RandomReal(ipc=200)}, "number of images per class is 200; accepted: at most 9"),
        (
            {"condensation": replace(MATCHING, condensed_together=200)},
            "number of images per class is 200; accepted",
        ),
        (
            {"student": ConvNet(depth=4)},
            "network convnet-4-128 on images of 8x8: smallest side is 8; accepted: 16",
        ),
        ({"data": DataConfig(size=4)}, "network resnet-8-4 on images of 4x4: smallest side is 4; accepted: 8 or more"),
    ],
)
def test_impossible_configs_are_refused_before_anything_is_made(tmp_path, changes, message, logged):
    workshop = Workshop(tmp_path)
    with pytest.raises(InputError, match=message):
        workshop.prepare_all([CONFIG, replace(CONFIG, **changes)])
    assert trainings(logged) == 0


def test_weights_that_do_not_fit_are_refused_before_anything_is_made(tmp_path):
    save_file({"weight": torch.ones(1)}, tmp_path / "w.safetensors")
    config = using(MATCHING, teacher=replace(RECIPE, weights=tmp_path / "w.safetensors"))
    with pytest.raises(InputError, match=r"weights in .*w.safetensors do not fit the network: missing: conv.weight"):
        Workshop(tmp_path / "cache").prepare_all([config])
    assert not (tmp_path / "cache").exists()


def test_weights_whose_project_pools_otherwise_are_refused_before_anything_is_made(tmp_path):
    def published(name: str) -> str:
        """Return the name in RepDistiller, whose pooling layers are not in its blocks."""
        stage, place, rest = name.removeprefix("stages.").split(".")
        return f"block{stage}.{int(place) - (stage in '123')}.{rest}"

    own = Vgg11(width=2).build((1, 32, 32), 10).state_dict()
    save_file({name if "fier" in name else published(name): own[name] for name in own}, tmp_path / "w.safetensors")
    teacher = replace(RECIPE, network=Vgg11(width=2), weights=tmp_path / "w.safetensors")
    config = using(MATCHING, teacher=teacher, data=DataConfig(size=96))
    with pytest.raises(InputError, match=r"RepDistiller.* is '96 x 96'; accepted: images with sides below 64 pixels"):
        Workshop(tmp_path / "cache").prepare_all([config])
    assert not (tmp_path / "cache").exists()


def test_an_inversion_that_needs_batch_normalisation_refuses_a_teacher_without_it(tmp_path):
    lenet = replace(CONFIG, data=DataConfig(size=16), teacher=replace(RECIPE, network=ConvNet(depth=2, width=4)))
    with pytest.raises(InputError, match="batch normalisation"):
        Workshop(tmp_path).prepare_all([lenet])


OF_TEACHER = SqueezeRecover(squeeze="teacher", ipc=2, iterations=2)


def test_slow_preparations_have_a_progress_bar_and_cached_ones_have_none(tmp_path):
    bars: dict[str, list[tuple[int, int]]] = {}

    class Bars(Silent):
        @contextmanager
        def bar(self, name):
            bars[name] = []
            yield lambda *step: bars[name].append(step)

    Workshop(tmp_path, view=Bars()).prepare_all([using(MATCHING)])
    assert bars["distribution_matching, seed 0"] == [(1, 2), (2, 2)]
    assert [done for done, total in bars["teacher resnet-8-4 on digits"] if done == total] == [24]
    bars.clear()
    Workshop(tmp_path, view=Bars()).prepare_all([using(MATCHING)])
    assert not bars


def test_a_set_condensed_from_the_teacher_differs_for_another_teacher(tmp_path, workshop, logged):
    fresh = Workshop(tmp_path)
    of_teacher, own = fresh.prepare_all([using(OF_TEACHER), using(replace(MATCHING, ipc=2))])
    assert trainings(logged) == 1
    assert logged[0].startswith("condensing digits by distribution_matching")
    assert any(line == "condensing digits by squeeze_recover (of the teacher), seed 0" for line in logged)
    assert of_teacher.teacher is own.teacher
    again = Workshop(tmp_path).prepare(using(OF_TEACHER))
    assert again.hashes == of_teacher.hashes
    assert sum("squeeze_recover" in line for line in logged) == 1
    other = workshop.prepare(using(OF_TEACHER, teacher=replace(RECIPE, seed=1)))
    assert other.hashes["condensed"] != of_teacher.hashes["condensed"]


def test_a_teacher_that_cannot_be_inverted_is_refused_before_it_is_trained(tmp_path, logged):
    plain = replace(RECIPE, network=ConvNet(depth=2, width=4))
    config = using(OF_TEACHER, teacher=plain, inversion=Dafl(steps=1, batch=16, width=8), memory=Latest())
    with pytest.raises(InputError, match="number of the teacher's BN layers to invert is 0"):
        Workshop(tmp_path).prepare_all([config])
    own = replace(config, condensation=replace(OF_TEACHER, squeeze="own"))
    Workshop(tmp_path).check(own)
    assert not logged


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"teacher_layers": ("stages.3",)}, "attention teacher_layers is 'stages.3'; accepted: conv, bn, stages"),
        ({"student_layers": ("penultimate",)}, "attention student_layers is 'penultimate'; accepted: conv, bn, stages"),
    ],
)
def test_layers_that_a_loss_cannot_compare_are_refused_before_the_teacher_is_trained(tmp_path, layers, message, logged):
    loss = Attention(**{"teacher_layers": ("stages.1",), "student_layers": ("stages.1",)} | layers)
    with pytest.raises(InputError, match=message):
        Workshop(tmp_path).prepare(replace(CONFIG, distiller=replace(CONFIG.distiller, loss=loss)))
    assert not logged


def test_one_image_a_class_without_augmentation_is_too_few_for_a_covariance_before_the_teacher_is_trained(
    tmp_path, logged
):
    bare = Dafl(steps=1, batch=20, width=8, images_per_round=20)
    config = replace(CONFIG, condensation=RandomReal(ipc=1), inversion=bare, guidance=Gaussian())
    with pytest.raises(InputError, match="ipc of guidance gaussian under a host that augments nothing is 1; accepted"):
        Workshop(tmp_path).prepare(config)
    assert not logged
    for fits in (
        {"condensation": RandomReal(ipc=2)},
        {"guidance": Gaussian(augment="dsa")},
        {"guidance": Gaussian(covariance="none")},
        {"inversion": Fast(batch=20, width=8)},
    ):
        Workshop(tmp_path).check(replace(config, **fits))


def test_the_memory_that_trials_need_for_their_rounds_is_compared_with_the_free_memory(tmp_path, monkeypatch, logged):
    """A row of the bank takes 128 bytes here, and 256 bytes while it is added."""
    devices = []
    free = [2 * 128 * 20, 0]
    monkeypatch.setattr(artifacts, "free_bytes", lambda device: devices.append(device) or free.pop(0))
    workshop, config = Workshop(tmp_path), replace(CONFIG, inversion=Cmi(batch=10))
    for rounds in (1, 2):
        workshop.check(replace(config, rounds=rounds))
    with pytest.raises(InputError, match="memory of inversion bank, 30 rows of 2 x 16 values"):
        workshop.prepare_all([replace(config, rounds=rounds) for rounds in (1, 3)])
    assert devices == [torch.device("cpu")]
    assert not logged


def test_a_cache_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/condensed'; accepted: a folder that can be written"):
        Workshop(tmp_path / "file").prepare(CONFIG)


def test_no_prepared_tensor_requires_a_gradient(workshop):
    prepared = workshop.prepare(CONFIG)
    tensors = [prepared.condensed.images, prepared.condensed.logits, prepared.proxy.images, prepared.proxy.logits]
    assert not any(tensor.requires_grad for tensor in [*tensors, *prepared.teacher.network.parameters()])


def test_an_existing_artifact_is_not_made_again(tmp_path: Path):
    path = tmp_path / "teachers" / "a.safetensors"
    first = cached(path, lambda: {"x": torch.arange(3)}, "numbers")
    again = cached(path, lambda: pytest.fail("made again"), "numbers")
    assert torch.equal(first["x"], again["x"])
    assert path.stat().st_mode & 0o044 == 0o044, "others may read it"


DAMAGES = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "all but the last byte": lambda content: content[:-1],
    "zeros": lambda content: bytes(len(content)),
    "other bytes": lambda content: b"<html>" * 50,
}


def replaced(path: Path, content: bytes) -> None:
    """Write a new file, so that processes that have mapped the old one keep its content."""
    path.unlink()
    path.write_bytes(content)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_artifact_is_made_again_and_logged(tmp_path: Path, damage, logged):
    path = tmp_path / "a.safetensors"
    first = cached(path, lambda: {"x": torch.arange(3)}, "numbers")
    whole = path.read_bytes()
    replaced(path, damage(whole))
    again = cached(path, lambda: {"x": torch.arange(3)}, "numbers")
    assert torch.equal(first["x"], again["x"])
    assert path.read_bytes() == whole
    (message,) = logged
    assert message.startswith(f"{path} is damaged or does not contain numbers (")
    assert message.endswith("): it will be made again")
    cached(path, lambda: pytest.fail("made again"), "numbers")


def test_waiting_for_another_process_is_logged_with_what_it_makes(tmp_path: Path, logged):
    path = tmp_path / "a.safetensors"
    held = os.open(path.with_suffix(".lock"), os.O_CREAT | os.O_RDWR)
    fcntl.flock(held, fcntl.LOCK_EX)
    threading.Timer(0.3, os.close, [held]).start()
    cached(path, lambda: {"x": torch.arange(3)}, "numbers")
    assert logged == [f"waiting for another process that is making numbers ({path})"]


def test_an_artifact_is_synced_to_disk_before_it_is_renamed(tmp_path: Path, monkeypatch):
    synced, fsync, replace_ = [], os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda number: (synced.append(os.readlink(f"/proc/self/fd/{number}")), fsync(number))
    )
    monkeypatch.setattr(os, "replace", lambda source, target: (synced.append("renamed"), replace_(source, target)))
    cached(tmp_path / "a.safetensors", lambda: {"x": torch.arange(3)}, "numbers")
    file, renamed, folder = synced
    assert (Path(file).parent, renamed, folder) == (tmp_path, "renamed", str(tmp_path))
    assert file.endswith(".partial")


def test_damaged_and_foreign_artifacts_are_made_again_and_give_equal_trials(tmp_path, logged):
    config = using(MATCHING)
    first = Workshop(tmp_path).prepare(config)
    teacher, condensed = (next((tmp_path / kind).glob("*.safetensors")) for kind in ("teachers", "condensed"))
    for one, other in ((teacher, condensed), (condensed, teacher)):
        for content in (b"", other.read_bytes()):
            whole = one.read_bytes()
            replaced(one, content)
            stand_ins = StandIns()
            Workshop(tmp_path, stand_ins=stand_ins).prepare(config)
            assert len(stand_ins.teachers) + len(stand_ins.sets) == 1
            assert one.read_bytes() == content
            logged.clear()
            assert Workshop(tmp_path).prepare(config).hashes == first.hashes
            assert sum("it will be made again" in line and str(one) in line for line in logged) == 1
            assert one.read_bytes() == whole


def test_an_error_while_making_is_passed_on_and_leaves_nothing(tmp_path: Path):
    def broken() -> dict[str, torch.Tensor]:
        raise FileNotFoundError("the data")

    with pytest.raises(FileNotFoundError, match="the data"):
        cached(tmp_path / "a.safetensors", broken, "numbers")
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == []
    assert cached(tmp_path / "a.safetensors", lambda: {"x": torch.ones(1)}, "numbers")["x"] == 1


def test_a_cache_folder_that_cannot_be_written_raises_an_input_error(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"--cache is .*file.*; accepted: a folder that can be written"):
        cached(tmp_path / "file" / "a.safetensors", lambda: {}, "numbers")


def test_the_environment_names_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CONDKD_CACHE", raising=False)
    assert default_cache() == tmp_path / "condkd"
    monkeypatch.setitem(os.environ, "CONDKD_CACHE", str(tmp_path / "mine"))
    assert default_cache() == tmp_path / "mine"


def test_empty_variables_and_a_relative_cache_home_count_as_not_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CONDKD_CACHE", "")
    for home in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", home)
        assert default_cache() == tmp_path / ".cache" / "condkd"


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def test_users_of_one_cache_share_its_folders_and_locks_whatever_their_umask(tmp_path: Path):
    tmp_path.chmod(0o775)
    path = tmp_path / "teachers" / "a.safetensors"
    with umask(0o077):
        cached(path, lambda: {"x": torch.arange(3)}, "numbers")
    assert path.parent.stat().st_mode & 0o777 == 0o775
    assert path.with_suffix(".lock").stat().st_mode & 0o777 == 0o666


@pytest.fixture
def users() -> Iterator[tuple[Path, Callable[[int], AbstractContextManager[None]]]]:
    """A folder that all users can read, and a function after which this process acts as the user with that number."""
    if os.geteuid() != 0:
        pytest.skip("only root can act as other users")

    @contextmanager
    def acting(number: int) -> Iterator[None]:
        group = os.getegid()
        os.setegid(60_000)
        os.seteuid(number)
        try:
            with umask(0o022):
                yield
        finally:
            os.seteuid(0)
            os.setegid(group)

    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder), acting


def test_two_users_of_a_group_make_and_read_artifacts_in_one_cache(users):
    folder, acting = users
    cache = folder / "cache"
    cache.mkdir()
    os.chown(cache, 60_001, 60_000)
    cache.chmod(0o2775)
    with acting(60_001):
        first = cached(cache / "teachers" / "a.safetensors", lambda: {"x": torch.arange(3)}, "numbers")
        with pytest.raises(ZeroDivisionError):
            cached(cache / "teachers" / "b.safetensors", lambda: 1 / 0, "numbers")  # leaves its lock file
    with acting(60_002):
        again = cached(cache / "teachers" / "a.safetensors", lambda: pytest.fail("made again"), "numbers")
        for name in ("b", "c"):
            cached(cache / "teachers" / f"{name}.safetensors", lambda: {"x": torch.ones(1)}, "numbers")
    assert torch.equal(first["x"], again["x"])


def test_a_user_who_cannot_write_to_a_cache_reads_what_is_there(users):
    folder, acting = users
    path = folder / "teachers" / "a.safetensors"
    cached(path, lambda: {"x": torch.arange(3)}, "numbers")
    path.with_suffix(".lock").chmod(0o644)  # as earlier versions left it
    with acting(60_001):
        assert cached(path, lambda: pytest.fail("made again"), "numbers")["x"].tolist() == [0, 1, 2]
        with pytest.raises(InputError, match=r"--cache is .*; accepted: a folder that can be written"):
            cached(path.with_name("b.safetensors"), lambda: {}, "numbers")
    path.parent.chmod(0o700)
    with acting(60_001), pytest.raises(InputError, match=r"--cache is .*; accepted: a folder that can be written"):
        cached(path, lambda: {}, "numbers")


def test_a_folder_of_another_user_with_a_lock_file_is_refused_before_the_work(users):
    folder, acting = users
    path = folder / "teachers" / "a.safetensors"
    with pytest.raises(ZeroDivisionError):
        cached(path, lambda: 1 / 0, "numbers")  # leaves its lock file, which all users can lock
    with acting(60_001), pytest.raises(InputError, match=r"--cache is .*/teachers'; accepted: a folder that can be wr"):
        cached(path, lambda: pytest.fail("the work has begun"), "numbers")
    assert [one.name for one in path.parent.iterdir()] == ["a.lock"]


def test_an_artifact_that_is_deleted_while_it_is_read_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.safetensors"

    def existed(file: Path) -> bool:
        """Another process deletes the file directly after the check."""
        there = isfile(file)
        path.unlink(missing_ok=True)
        return there

    isfile = os.path.isfile
    monkeypatch.setattr(os.path, "isfile", existed)
    for found in (lambda: artifacts._identity(path), lambda: artifacts._stored_tensors(path, "x", lambda _: None)):
        save_file({"x": torch.zeros(1)}, path)
        assert found() is None
    save_file({"x": torch.zeros(1)}, path)
    assert cached(path, lambda: {"x": torch.ones(1)}, "numbers")["x"].tolist() == [1]


def test_an_order_of_classes_is_refused_if_two_have_the_same_name(tmp_path: Path):
    dataset = replace(Workshop(tmp_path).data(TrialConfig()), class_names=("cat", "dog", "cat"))
    with pytest.raises(
        InputError, match=r"class names of digits for --class-order .* is \['cat'\]; accepted: unique names"
    ):
        artifacts.class_places(("dog", "cat", "cat"), dataset)
