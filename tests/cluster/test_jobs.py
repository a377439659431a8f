import io
import pickle
import weakref
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import toy
from torch import nn

from condkd_ray.cluster import jobs as module
from condkd_ray.cluster.jobs import Job, Packer, SweepJobs, unpack
from condkd_ray.core.config import content_hash
from condkd_ray.methods.inversion import Fast
from condkd_ray.models.teacher import Teacher
from condkd_ray.trial.packing import TEACHER_FIELDS
from condkd_ray.trial.plan import Lineage, Plan, PlannedTrial


def made(count: int) -> list[Job]:
    packer, prepared = Packer(), toy.make_prepared()
    plans = [Plan("toy", 0, n, toy.toy_config(seed=n)) for n in range(count)]
    lineage = Lineage("parent", 3, ("grandparent",))
    return [packer.job(PlannedTrial(f"key {plan.seed}", plan, prepared, lineage)) for plan in plans]


def test_jobs_are_equal_after_a_round_trip_through_the_object_store(cluster):
    import ray

    plain = made(3)
    jobs = ray.get(ray.put(SweepJobs(plain)))
    assert list(jobs.values()) == plain
    assert list(jobs) == [job.key for job in plain]
    assert [(one.scope, one.pool_key) for one in (jobs["key 1"], plain[1])] == [("trial", "key 1")] * 2
    assert len(jobs) == 3


def test_a_trial_unpickles_only_its_own_job(cluster, monkeypatch):
    import ray

    ref, opened = ray.put(SweepJobs(made(20))), []
    monkeypatch.setattr(
        PlannedTrial, "__setstate__", lambda job, state: opened.append(vars(job).update(state)), raising=False
    )
    assert ray.get(ref)["key 7"].label == "toy seed 7"
    assert len(opened) == 1


def test_references_are_stored_once_for_all_jobs(cluster):
    import ray

    class Pickler(pickle.Pickler):
        """Writes each object reference as a number, and counts them."""

        references = 0

        def persistent_id(self, value):
            self.references += isinstance(value, ray.ObjectRef)
            return self.references if isinstance(value, ray.ObjectRef) else None

    jobs = SweepJobs(made(20))
    pickler = Pickler(pickled := io.BytesIO(), protocol=5)
    pickler.dump(jobs)
    assert pickler.references == len(next(iter(jobs.values())).prepared.contents)
    assert len(pickled.getvalue()) < 20 * 4000


class Converting(nn.Module):
    """A network with weights of another float type, to which it converts the images."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.dtype = network.to(dtype), dtype

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images.to(self.dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_a_teacher_of_another_float_type_gives_the_same_logits_after_packing(cluster, dtype):
    plain = toy.make_teacher()
    known = {name: getattr(plain, name) for name in TEACHER_FIELDS}
    teacher = Teacher.from_module(Converting(plain.network, dtype), **known)
    prepared = toy.make_prepared()
    hashes = prepared.hashes | {"teacher": str(dtype)}
    prepared = replace(prepared, teacher=teacher, own_module="given:toy", hashes=hashes)
    images = toy.samples(8).images
    found = unpack(toy.toy_config(), Packer().pack(prepared), "cpu").teacher
    assert next(found.network.parameters()).dtype == dtype
    assert torch.equal(found.logits(images), teacher.logits(images))
    assert torch.equal(found.bn[0], teacher.bn[0])


@pytest.mark.slow
def test_a_method_defined_in_a_script_or_notebook_can_be_sent(cluster):
    import ray

    @dataclass(frozen=True, kw_only=True)
    class Own(Fast):
        steps: int = 3

    config = toy.toy_config(inversion=Own(batch=8))
    job = Packer().job(PlannedTrial("key", Plan("own", 0, 0, config), toy.make_prepared()))
    names = ray.remote(lambda jobs: (type(jobs["key"].config.inversion).__name__, jobs["key"].config.inversion.steps))
    assert ray.get(names.remote(SweepJobs([job]))) == ("Own", 3)
    # The hash of the config is the same after it was sent.
    assert content_hash(SweepJobs([job])["key"].config) == content_hash(config)


def assert_same(a: torch.Tensor, b: torch.Tensor) -> None:
    assert torch.equal(a, b)
    assert a.stride() == b.stride()


def test_unpacked_contents_equal_the_packed_ones(cluster):
    prepared = toy.make_prepared()
    unpacked = unpack(toy.toy_config(), Packer().pack(prepared), "cpu")
    for name in ("test", "val", "condensed", "proxy", "landmarks"):
        for tensor, other in zip(*(vars(getattr(p, name)).values() for p in (unpacked, prepared)), strict=True):
            assert_same(tensor, other)
    old, new = prepared.teacher, unpacked.teacher
    for name, tensor in old.network.state_dict().items():
        assert_same(new.network.state_dict()[name], tensor)
    for name in ("num_classes", "image_shape", "mean", "std", "train_size", "flip_ok"):
        assert getattr(new, name) == getattr(old, name)
    assert torch.equal(new.logits(prepared.proxy.images), old.logits(prepared.proxy.images))
    assert unpacked.hashes == prepared.hashes


def test_contents_without_condensed_and_validation_images_can_be_unpacked(cluster):
    import dataclasses

    prepared = dataclasses.replace(toy.make_prepared(condensed=False), val=None)
    unpacked = unpack(toy.toy_config(), Packer().pack(prepared), "cpu")
    assert unpacked.condensed is None
    assert unpacked.val is None
    assert unpacked.landmarks is not None
    assert unpacked.landmarks.condensed is None
    bare = unpack(toy.toy_config(), Packer().pack(dataclasses.replace(prepared, landmarks=None)), "cpu")
    assert bare.landmarks is None


def test_landmarks_depend_on_the_proxy_images(cluster):
    import dataclasses

    packer, prepared = Packer(), toy.make_prepared()
    other = dataclasses.replace(prepared, hashes=prepared.hashes | {"proxy": "another data seed"})
    assert packer.pack(prepared).contents["landmarks"] != packer.pack(other).contents["landmarks"]


def test_equal_contents_are_stored_once_and_unpacked_once(cluster):
    packer = Packer()
    first, second = packer.pack(toy.make_prepared()), packer.pack(toy.make_prepared(condensed=False))
    assert first.contents["test"] == second.contents["test"]
    assert set(first.contents) - set(second.contents) == {"condensed"}
    assert first.contents["landmarks"] != second.contents["landmarks"]
    one, two = (unpack(toy.toy_config(), refs, "cpu") for refs in (first, second))
    assert one.teacher is two.teacher
    assert one.test is two.test
    released = [weakref.ref(kept) for kept in (one.condensed, one.landmarks)]
    del one
    assert [kept() for kept in released] == [None, None]
    again = unpack(toy.toy_config(), second, "cpu")
    assert all(getattr(again, kind) is getattr(two, kind) for kind in second.contents)


def test_a_users_module_is_stored_again_if_a_node_is_lost(monkeypatch):
    lost = [b"pickled"]

    def put(content):
        if isinstance(content, np.ndarray) and content.tobytes() in lost:
            lost.clear()
            raise module.ray.exceptions.NodeDiedError("gone")
        return "ref"

    monkeypatch.setattr(module.ray, "put", put)
    monkeypatch.setattr(module, "by_value", lambda network, function: b"pickled")
    prepared = replace(toy.make_prepared(), own_module="own:network")
    assert Packer().pack(prepared).contents["module"].ref == "ref"
    assert not lost
