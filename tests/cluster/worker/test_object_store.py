import torch
import toy

from condkd_ray.cluster.worker import object_store
from condkd_ray.cluster.worker.object_store import Packer, unpack


def assert_same(a: torch.Tensor, b: torch.Tensor) -> None:
    assert torch.equal(a, b)
    assert a.stride() == b.stride()


def test_what_is_unpacked_is_what_was_packed(cluster):
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


def test_a_trial_may_have_neither_condensed_nor_validation_images(cluster):
    import dataclasses

    prepared = dataclasses.replace(toy.make_prepared(condensed=False), val=None)
    unpacked = unpack(toy.toy_config(), Packer().pack(prepared), "cpu")
    assert unpacked.condensed is None
    assert unpacked.val is None
    assert unpacked.landmarks is not None
    assert unpacked.landmarks.condensed is None
    bare = unpack(toy.toy_config(), Packer().pack(dataclasses.replace(prepared, landmarks=None)), "cpu")
    assert bare.landmarks is None


def test_landmarks_follow_the_proxy_images_they_avoid(cluster):
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
    assert len(object_store._unpacked) == 5
