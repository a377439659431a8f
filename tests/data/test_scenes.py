import pytest
import torch

from condkd_ray.core.method import InputError
from condkd_ray.core.samples import UNLABELLED, pixel_counts
from condkd_ray.data.datasets import DataConfig, load
from condkd_ray.data.scenes import CLASSES, draw_scenes
from condkd_ray.testing.datasets import check_dataset


def test_scenes_are_a_data_set_with_validation_images_of_its_own():
    dataset = load(DataConfig(name="scenes"))
    assert dataset.val is not None
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (400, 100, 200)
    assert (dataset.task, dataset.image_shape, dataset.class_names) == ("segmentation", (3, 32, 48), CLASSES)
    assert dataset.flip_ok
    assert dataset.notes == ()
    # The same on every machine, and the same as in stored records.
    assert dataset.digest == "9c73f74bdf1d42bd"
    check_dataset(DataConfig(name="scenes"))


def test_every_class_is_in_many_images_of_every_split():
    dataset = load(DataConfig(name="scenes"))
    for part in (dataset.train, dataset.val, dataset.test):
        assert part is not None
        counts = pixel_counts(part.labels, len(CLASSES))
        assert ((counts > 0).float().mean(0) > 0.4).all()
        assert (counts.sum(0) / counts.sum() > 0.02).all()


def test_scenes_depend_on_the_seed_and_not_on_the_number_of_threads():
    threads = torch.get_num_threads()
    one = load(DataConfig(name="scenes"))
    try:
        torch.set_num_threads(3)
        assert load(DataConfig(name="scenes")).digest == one.digest
    finally:
        torch.set_num_threads(threads)
    other = load(DataConfig(name="scenes", seed=1))
    assert other.digest != one.digest
    assert not torch.equal(other.train.pixels[0], one.train.pixels[0])


@pytest.mark.parametrize("size", [(32, 48), (20, 64), (40, 16)])
def test_shapes_have_a_void_border(size: tuple[int, int]):
    raw = draw_scenes("val", size, seed=3)
    assert raw.pixels.shape == (100, 3, *size)
    labels = raw.labels
    ground, shapes = labels.lt(2) & labels.ge(0), labels.ge(2)
    # No pixel of a shape is beside one of sky or ground, and the border is thin: void touches both.
    for axis in (1, 2):
        first, second = (labels.narrow(axis, start, labels.shape[axis] - 1) for start in (0, 1))
        outside = (first < 2) & (first >= 0) & (second >= 2) | (second < 2) & (second >= 0) & (first >= 2)
        assert not outside.any()
    share = labels.eq(UNLABELLED).float().mean()
    assert 0.02 < share < 0.15
    assert ground.float().mean() > shapes.float().mean() > 0.05


def test_small_scenes_and_held_out_validation_images_are_refused():
    with pytest.raises(InputError, match=r"data\.size of scenes is \(15, 40\); accepted: sides of 16 pixels or more"):
        load(DataConfig(name="scenes", size=(15, 40)))
    with pytest.raises(InputError, match=r"data\.val_fraction is 0\.1; accepted: 0: scenes has validation images"):
        load(DataConfig(name="scenes", val_fraction=0.1))
