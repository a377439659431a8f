import pytest
import torch

from condkd_ray.core.method import InputError
from condkd_ray.models import Vgg11


def test_the_number_of_parameters_is_that_of_the_usual_cifar_network():
    with torch.device("meta"):
        assert sum(p.numel() for p in Vgg11().build((3, 32, 32), 10).parameters()) == 9_231_114


@pytest.mark.parametrize(("shape", "places"), [((3, 63, 64), (7, 8)), ((3, 64, 64), (4, 4)), ((1, 8, 8), (1, 1))])
def test_the_last_stage_is_pooled_for_large_images_only(shape, places):
    stages = Vgg11(width=1).build(shape, 2).get_submodule("stages")
    assert stages(torch.randn(2, *shape)).shape == (2, 8, *places)


def test_a_width_of_0_is_refused():
    with pytest.raises(InputError, match=r"^vgg11 width is 0; accepted: 1 or more$"):
        Vgg11(width=0)
