"""Image grids contain the given images, enlarged; several grids side by side are complete."""

import numpy as np
import pytest
import torch
from PIL import Image

from condkd_ray.report.figures.image_grids import beside, write_grid


def pixels(count: int, channels: int, size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (count, channels, size, size), dtype=np.uint8)


@pytest.mark.parametrize(("channels", "size", "factor"), [(1, 8, 6), (3, 32, 2), (1, 28, 2), (3, 64, 1)])
def test_every_image_is_in_its_place(tmp_path, channels, size, factor):
    images = pixels(6, channels, size)
    write_grid(tmp_path / "deep" / "grid.png", images, per_class=3)
    with Image.open(tmp_path / "deep" / "grid.png") as picture:
        grid = np.asarray(picture)
    step = size * factor + 2
    assert grid.shape[:2] == (2 * step + 2, 3 * step + 2)
    for number, image in enumerate(images):
        top, left = 2 + number // 3 * step, 2 + number % 3 * step
        cell = grid[top : top + size * factor : factor, left : left + size * factor : factor]
        expected = image[0] if channels == 1 else image.transpose(1, 2, 0)
        np.testing.assert_array_equal(cell, expected)
    assert (grid[:2] == 255).all()
    assert (grid[:, -2:] == 255).all()


def test_torch_images_and_a_short_last_row_are_drawn(tmp_path):
    images = pixels(3, 1, 8)
    write_grid(tmp_path / "a.png", torch.from_numpy(images), per_class=2)
    write_grid(tmp_path / "b.png", images, per_class=2)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as picture:
        assert (np.asarray(picture)[52:, 52:] == 255).all()
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("images", "per_class"),
    [
        (np.zeros((2, 1, 8, 8), dtype=np.float32), 1),
        (np.zeros((2, 2, 8, 8), dtype=np.uint8), 1),
        (np.zeros((2, 8, 8), dtype=np.uint8), 1),
        (np.zeros((0, 1, 8, 8), dtype=np.uint8), 1),
        (np.zeros((2, 1, 8, 8), dtype=np.uint8), 0),
    ],
)
def test_invalid_images_are_refused(tmp_path, images, per_class):
    with pytest.raises(ValueError, match="accepted"):
        write_grid(tmp_path / "grid.png", images, per_class)
    assert list(tmp_path.iterdir()) == []


def test_grey_and_colour_grids_side_by_side_are_complete_and_in_colour(tmp_path):
    rng = np.random.default_rng(0)
    for name, channels, rows in (("grey", 1, 2), ("colour", 3, 4)):
        write_grid(tmp_path / name, rng.integers(0, 256, (3 * rows, channels, 8, 8), dtype=np.uint8), 3)
    both = beside([("a", tmp_path / "grey"), ("b", tmp_path / "colour")])
    assert both.mode == "RGB"
    with Image.open(tmp_path / "grey") as grey, Image.open(tmp_path / "colour") as colour:
        head = both.height - colour.height
        assert np.array_equal(
            np.asarray(both.crop((0, head, grey.width, head + grey.height)))[..., 0], np.asarray(grey)
        )
        place = (both.width - colour.width, head, both.width, both.height)
        assert np.array_equal(np.asarray(both.crop(place)), np.asarray(colour))
        assert both.width > grey.width + colour.width
    assert beside([("a", tmp_path / "grey")]).mode == "L"


def test_rows_with_captions_stand_below_their_captions_with_all_pixels(tmp_path):
    images, captions = pixels(6, 3, 48), ("synthetic images", "teacher", "student")
    write_grid(tmp_path / "grid.png", images, 2, captions)
    write_grid(tmp_path / "plain.png", images, 2)
    with Image.open(tmp_path / "grid.png") as one, Image.open(tmp_path / "plain.png") as other:
        grid, plain = np.asarray(one), np.asarray(other)
    each, head = len(grid) // 3, len(grid) // 3 - 52
    assert len(grid) == 3 * each
    for row in range(3):
        strip = grid[row * each : (row + 1) * each]
        np.testing.assert_array_equal(strip[head:, : plain.shape[1]], plain[row * 50 : row * 50 + 52])
        assert (strip[:head] < 100).any(), "a caption is drawn"
    assert grid.shape[1] >= plain.shape[1]


def test_captions_that_do_not_fit_the_number_of_rows_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"captions are .* for 6 images"):
        write_grid(tmp_path / "grid.png", pixels(6, 3, 8), 2, ["a", "b"])
