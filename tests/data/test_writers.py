from pathlib import Path

import pytest
import torch

from condkd_ray.core.method import InputError
from condkd_ray.data.readers import read_parquet
from condkd_ray.data.writers import write_dc, write_images
from data.image_files import random_pixels


def test_the_default_names_of_classes_are_their_numbers(tmp_path: Path):
    pixels, labels = random_pixels(4, channels=1), torch.tensor([0, 2, 1, 2])
    write_images(tmp_path / "numbers.parquet", pixels, labels)
    write_images(tmp_path / "names.parquet", pixels, labels, names=("ant", "bee", "cat", "dog"))
    assert read_parquet([tmp_path / "numbers.parquet"]).class_names == ("0", "1", "2")
    raw = read_parquet([tmp_path / "names.parquet"])
    assert raw.class_names == ("ant", "bee", "cat", "dog")
    assert torch.equal(raw.pixels, pixels)
    assert torch.equal(raw.labels, labels)


def test_webp_keeps_every_pixel_of_colour_images_in_fewer_bytes(tmp_path: Path):
    shades = torch.arange(32, dtype=torch.uint8).view(1, 1, 1, -1) * 4 + torch.arange(40).view(-1, 1, 1, 1)
    pixels = shades.to(torch.uint8).expand(40, 3, 32, 32).contiguous()
    pixels[:, 1] = random_pixels(40, channels=1)[:1, 0, :1, :1]
    labels = torch.arange(40) % 4
    for name, webp in (("png", False), ("webp", True)):
        write_images(tmp_path / f"{name}.parquet", pixels, labels, webp=webp)
        assert torch.equal(read_parquet([tmp_path / f"{name}.parquet"]).pixels, pixels)
    assert (tmp_path / "webp.parquet").stat().st_size < (tmp_path / "png.parquet").stat().st_size


def test_dc_files_contain_only_one_detached_pair(tmp_path: Path):
    many = torch.randn(100, 3, 4, 4, dtype=torch.float64).requires_grad_()
    write_dc(tmp_path / "a" / "set.pt", many[:2], torch.tensor([0, 1]), about={"method": "none"})
    content = torch.load(tmp_path / "a" / "set.pt", weights_only=True)
    (images, labels) = content["data"][0]
    assert torch.equal(images, many[:2].float())
    assert not images.requires_grad
    assert labels.tolist() == [0, 1]
    assert content["about"] == {"method": "none"}
    assert (tmp_path / "a" / "set.pt").stat().st_size < 8000


def test_a_failed_write_keeps_the_former_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "set.pt"
    path.write_text("former")
    monkeypatch.setattr(torch, "save", lambda _, partial: partial.write_text("half") and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_dc(path, torch.zeros(1, 1, 2, 2), torch.zeros(1, dtype=torch.int64))
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("set.pt", "former")]


def test_masks_are_not_written(tmp_path: Path):
    for write in (write_images, write_dc):
        with pytest.raises(InputError, match=r"shape of the labels to write is \(2, 8, 8\); accepted: \(N,\), one"):
            write(tmp_path / "x", random_pixels(2), torch.zeros(2, 8, 8, dtype=torch.int64))
    assert not list(tmp_path.iterdir())
