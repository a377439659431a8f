import io
from pathlib import Path

import pytest
import torch
from PIL import Image

from condkd_ray.core.method import InputError
from condkd_ray.data.readers import read_folder, resize
from data.image_files import as_image, random_pixels, write_folder


def test_images_of_several_sizes_need_a_size(tmp_path: Path):
    write_folder(tmp_path, random_pixels(3, side=8), torch.zeros(3, dtype=torch.int64), ["a"])
    write_folder(tmp_path, random_pixels(3, side=12, seed=1), torch.zeros(3, dtype=torch.int64), ["b"])
    with pytest.raises(InputError, match=r"\(12, 12\); accepted: \(8, 8\) as the first, or give a size"):
        read_folder(tmp_path)
    raw = read_folder(tmp_path, size=6)
    both = torch.cat([resize(random_pixels(3, side=8), 6), resize(random_pixels(3, side=12, seed=1), 6)])
    assert torch.equal(raw.pixels, both)


def test_grey_and_colour_together_are_colour(tmp_path: Path):
    grey, colour = random_pixels(1, 1), random_pixels(1, 3)
    write_folder(tmp_path, grey, torch.tensor([0]), ["a"])
    write_folder(tmp_path, colour, torch.tensor([0]), ["b"])
    assert torch.equal(read_folder(tmp_path).pixels, torch.cat([grey.expand(-1, 3, -1, -1), colour]))


@pytest.mark.parametrize(("mode", "channels"), [("1", 1), ("LA", 1), ("RGBA", 3), ("P", 3)])
def test_other_modes_become_grey_or_colour(tmp_path: Path, mode: str, channels: int):
    (tmp_path / "a").mkdir()
    as_image(random_pixels(1)[0]).convert("L" if mode == "1" else "RGB").convert(mode).save(tmp_path / "a" / "0.png")
    assert read_folder(tmp_path).pixels.shape == (1, channels, 8, 8)


def test_sixteen_bits_and_other_formats_are_refused(tmp_path: Path):
    path = tmp_path / "a" / "0.png"
    path.parent.mkdir()
    Image.new("I;16", (8, 8)).save(path)
    with pytest.raises(InputError, match=r"I;16.*8 bits"):
        read_folder(tmp_path)
    # Pillow would hand PostScript to another program.
    file = io.BytesIO()
    as_image(random_pixels(1)[0]).save(file, "EPS")
    path.write_bytes(file.getvalue())
    with pytest.raises(InputError, match="cannot read"):
        read_folder(tmp_path)


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "bmp", "webp", "PNG"])
def test_formats_of_folders(tmp_path: Path, suffix: str):
    (tmp_path / "a").mkdir()
    as_image(random_pixels(1)[0]).save(tmp_path / "a" / f"0.{suffix}")
    (tmp_path / "a" / "notes.txt").write_text("no image")
    assert read_folder(tmp_path).pixels.shape == (1, 3, 8, 8)
