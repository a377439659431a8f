import pytest
from torch import nn

from condkd_ray.models import LeNet5, LeNet5Half


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("side", "remaining"), [(32, 5), (28, 4), (16, 1)])
def test_number_of_parameters(side, remaining):
    def expected(a: int, b: int, c: int, hidden: int) -> int:
        convs = (25 + 1) * a + (25 * a + 1) * b + (remaining**2 * b + 1) * c
        return convs + (c + 1) * hidden + (hidden + 1) * 10

    assert count(LeNet5().build((1, side, side), 10)) == expected(6, 16, 120, 84)
    assert count(LeNet5Half().build((1, side, side), 10)) == expected(3, 8, 60, 42)


def test_at_32_pixels_it_is_lecuns_network():
    # LeCun's C1, C3, C5, F6 and output. S2 and S4 have no weights here, and C3 reads all maps.
    shapes = [tuple(p.shape) for p in LeNet5().build((1, 32, 32), 10).parameters() if p.ndim > 1]
    assert shapes == [(6, 1, 5, 5), (16, 6, 5, 5), (120, 16, 5, 5), (84, 120), (10, 84)]


def test_weights_saved_before_the_hidden_layer_had_a_name_still_load():
    keys = [f"{layer}.{part}" for layer in (0, 3, 6, 9, 11) for part in ("weight", "bias")]
    assert list(LeNet5().build((1, 28, 28), 10).state_dict()) == keys


def test_there_is_no_batch_normalisation():
    assert not list(LeNet5().build((1, 28, 28), 10).buffers())


def test_the_last_convolution_covers_a_whole_rectangle():
    convs = [m for m in LeNet5().build((1, 28, 40), 10).modules() if isinstance(m, nn.Conv2d)]
    assert convs[-1].kernel_size == (4, 7)
