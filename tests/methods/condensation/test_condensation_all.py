import pytest

from condkd_ray.core.method import InputError
from condkd_ray.methods.condensation import AllReal
from methods.condensation.condensers import COUNTS, NUM_CLASSES, condense, real_samples


def test_all_images_are_sorted_by_class():
    real, condensed = real_samples(), condense(AllReal())
    assert condensed.labels.bincount().tolist() == list(COUNTS)
    assert condensed.labels.tolist() == sorted(real.labels.tolist())
    for label in range(NUM_CLASSES):
        ours, theirs = condensed.images[condensed.labels == label], real.images[real.labels == label]
        assert (ours == theirs).all()


def test_all_real_has_no_ipc():
    assert AllReal().ipc == 0
    with pytest.raises(InputError, match="0, which means all"):
        AllReal(ipc=10)  # type: ignore[arg-type]
