import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, PngImagePlugin

from condkd_ray.core.method import InputError
from condkd_ray.data.datasets import DataConfig, load
from condkd_ray.data.readers import read_folder, read_parquet, resize
from condkd_ray.data.readers.decoding import Decoded, decode_all
from data.image_files import as_image, png, random_pixels, write_folder, write_parquet


def test_images_of_several_sizes_need_a_size(tmp_path: Path):
    write_folder(tmp_path, random_pixels(3, side=8), torch.zeros(3, dtype=torch.int64), ["a"])
    write_folder(tmp_path, random_pixels(3, side=12, seed=1), torch.zeros(3, dtype=torch.int64), ["b"])
    with pytest.raises(InputError, match=r"\(12, 12\); accepted: \(8, 8\) as in the first image, or set a size"):
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


def test_floating_grey_and_other_formats_are_refused(tmp_path: Path):
    path = tmp_path / "a" / "0.png"
    path.parent.mkdir()
    Image.new("F", (8, 8)).save(path, "TIFF")
    with pytest.raises(InputError, match=r"'F'.*8 bits"):
        read_folder(tmp_path)
    Image.fromarray(np.full((8, 8), 70_000, np.int32)).save(path, "TIFF")
    with pytest.raises(InputError, match=r"grey values of .* is \(70000, 70000\); accepted: 0 to 65535"):
        read_folder(tmp_path)
    # Pillow would pass PostScript to another program.
    file = io.BytesIO()
    as_image(random_pixels(1)[0]).save(file, "EPS")
    path.write_bytes(file.getvalue())
    with pytest.raises(InputError, match="cannot read"):
        read_folder(tmp_path)


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "bmp", "webp", "PNG", "ppm", "tif", "tiff", "TIFF", "gif", "jfif"])
def test_image_files_of_all_formats_are_read(tmp_path: Path, suffix: str):
    (tmp_path / "a").mkdir()
    as_image(random_pixels(1)[0]).save(tmp_path / "a" / f"0.{suffix}")
    (tmp_path / "a" / "notes.txt").write_text("no image")
    assert read_folder(tmp_path).pixels.shape == (1, 3, 8, 8)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def decoded(*files: bytes, size: int | None = None, ground=None) -> Decoded:
    return decode_all(iter([(f"image {k}", data) for k, data in enumerate(files)]), size, "the set", ground)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_images_are_rotated_by_their_exif_orientation(kind: str, orientation: int):
    tag = Image.Exif()
    tag[0x0112] = orientation
    file = encoded(as_image(random_pixels(1, side=8)[0, :, :4]), kind, exif=tag)
    with Image.open(io.BytesIO(file)) as image:
        upright = np.array(ImageOps.exif_transpose(image))
    assert upright.shape[:2] == ((8, 4) if orientation > 4 else (4, 8))
    assert torch.equal(decoded(file).pixels[0], torch.from_numpy(upright).permute(2, 0, 1))


def test_images_in_parquet_are_rotated_by_their_exif_orientation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tag = Image.Exif()
    tag[0x0112] = 6
    monkeypatch.setattr("data.image_files.png", lambda pixels: encoded(as_image(pixels), exif=tag))
    pixels = random_pixels(3)
    path = write_parquet(tmp_path / "x.parquet", pixels, torch.arange(3))
    assert torch.equal(read_parquet([path]).pixels, pixels.rot90(-1, (2, 3)))


def test_a_broken_exif_block_gives_a_note():
    found = decoded(encoded(as_image(random_pixels(1)[0]), "PNG", exif=b"Exif\0\0no such thing"))
    assert torch.equal(found.pixels, random_pixels(1))
    assert found.notes == ("1 image with an EXIF block that cannot be read in the set: used without rotation",)


def glyphs(grey: int, count: int = 3) -> list[Image.Image]:
    """Return RGBA images of a single colour, whose glyphs, squares of different sizes, are in the alpha channel."""
    images = []
    for k in range(count):
        values = np.full((8, 8, 4), grey, np.uint8)
        values[..., 3] = 0
        values[1 : 3 + k, 2:6, 3] = 255
        images.append(Image.fromarray(values))
    return images


@pytest.mark.parametrize(
    ("grey", "ground"), [(0, "white"), (90, "white"), (180, "white"), (230, "black"), (255, "black")]
)
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_glyphs_in_the_alpha_channel_contrast_with_the_ground(mode: str, grey: int, ground: str):
    found = decoded(*(encoded(image.convert(mode)) for image in glyphs(grey)))
    assert found.pixels.shape[1] == len(mode) - 1
    assert found.ground == ground
    assert found.notes == (f"3 images partly transparent in the set: placed on {ground}, like all of the set",)
    for k, image in enumerate(found.pixels):
        square = torch.full_like(image, {"white": 255, "black": 0}[ground])
        square[:, 1 : 3 + k, 2:6] = grey
        assert torch.equal(image, square)


def test_half_transparent_pixels_are_mixed_with_the_ground():
    values = torch.cat([random_pixels(1, 3)[0], random_pixels(1, 1, seed=1)[0]])
    both = {ground: decoded(encoded(as_image4(values)), ground=ground).pixels[0] for ground in ("white", "black")}
    colours, alpha = values[:3].double(), values[3:].double() / 255
    for ground, grey in (("white", 255), ("black", 0)):
        assert (both[ground] - (colours * alpha + grey * (1 - alpha))).abs().max() <= 0.5


def as_image4(values: torch.Tensor) -> Image.Image:
    return Image.fromarray(values.permute(1, 2, 0).contiguous().numpy(), "RGBA")


def test_resized_images_have_no_seam_where_they_are_transparent():
    image = Image.new("RGBA", (16, 16), (255, 255, 255, 0))
    image.paste((255, 255, 255, 255), (3, 3, 9, 9))
    assert decoded(encoded(image), size=7, ground="white").pixels.eq(255).all()


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "P"])
def test_pixels_of_the_transparent_colour_get_the_colour_of_the_ground(mode: str):
    image = Image.new(mode, (4, 4), 0)
    image.putpixel((1, 1), 1 if mode in "1P" else (9,) * 3 if mode == "RGB" else 9)
    file = encoded(image, transparency=(0,) * 3 if mode == "RGB" else 0)
    found = decoded(file)
    assert found.ground is not None
    corner = found.pixels[0, :, 0, 0]
    assert (corner == (255 if found.ground == "white" else 0)).all()
    assert not torch.equal(found.pixels[0, :, 1, 1], corner)


def test_opaque_alpha_changes_nothing_and_gives_no_note():
    plain = as_image(random_pixels(1)[0])
    found = decoded(encoded(plain.convert("RGBA")))
    assert torch.equal(found.pixels, random_pixels(1))
    assert (found.ground, found.notes) == (None, ())


def test_the_colours_of_fully_transparent_images_are_used():
    image = as_image(random_pixels(1)[0]).convert("RGBA")
    image.putalpha(0)
    found = decoded(encoded(image))
    assert torch.equal(found.pixels, random_pixels(1))
    assert "fully transparent in the set: their colours are used" in found.notes[0]


def test_train_and_test_images_are_placed_on_the_same_ground(tmp_path: Path):
    for split, grey in (("train", 0), ("test", 255)):
        for k, image in enumerate(glyphs(grey, 12)):
            path = tmp_path / split / "ab"[k % 2] / f"{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    dataset = load(DataConfig(name="image_folder", root=tmp_path))
    assert dataset.test.pixels.eq(255).all()
    train, test = (note for note in dataset.notes if "placed on" in note)
    assert train == f"12 images partly transparent in {tmp_path / 'train'}: placed on white, like all of the set"
    assert test.endswith("test: placed on white, like all of the set; 12 of them have a single colour then")


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_grey_of_sixteen_bits_is_scaled(kind: str):
    values = np.array([[0, 128, 129, 257], [32_768, 65_278, 65_406, 65_535]], np.uint16)
    found = decoded(encoded(Image.fromarray(values), kind))
    assert found.pixels.flatten().tolist() == [0, 0, 1, 1, 128, 254, 254, 255]
    assert found.notes == ("1 image of 16 bits a channel in the set: converted to 8 bits, 65 535 to 255",)


def test_only_the_first_of_several_frames_is_read_with_a_note():
    frames = [as_image(pixels) for pixels in random_pixels(3, 1)]
    found = decoded(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert found.pixels.shape == (1, 3, 8, 8)
    assert torch.equal(found.pixels[0, :1], random_pixels(3, 1)[0])
    assert found.notes == ("1 image of several frames in the set: only the first frame is used",)


def test_cmyk_is_converted_to_colour():
    image = as_image(random_pixels(1)[0]).convert("CMYK")
    assert torch.equal(decoded(encoded(image, "TIFF")).pixels, random_pixels(1))


def bomb() -> bytes:
    """Return a PNG whose header declares 100 000 x 100 000 pixels."""
    data = png(random_pixels(1)[0])
    header = b"IHDR" + struct.pack(">II", 100_000, 100_000) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


def large_text() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("a", "b" * (PngImagePlugin.MAX_TEXT_CHUNK + 1), zip=True)
    return encoded(as_image(random_pixels(1)[0]), pnginfo=info)


def large_profile() -> bytes:
    return encoded(as_image(random_pixels(1)[0]), icc_profile=bytes(PngImagePlugin.MAX_TEXT_CHUNK + 1))


BROKEN = {
    "large text": large_text,
    "large profile": large_profile,
    "bomb": bomb,
    "no image": lambda: b"no image",
    "empty": lambda: b"",
    "cut PNG": lambda: png(random_pixels(1, side=64)[0])[:5000],
    "cut JPEG": lambda: encoded(as_image(random_pixels(1, side=64)[0]), "JPEG")[:900],
    "cut TIFF": lambda: encoded(as_image(random_pixels(1, side=64)[0]), "TIFF")[:90],
    "PNG of noise": lambda: png(random_pixels(1)[0])[:40] + bytes(range(256)),
}


@pytest.mark.parametrize("name", BROKEN)
def test_an_image_that_cannot_be_read_is_named(tmp_path: Path, name: str):
    path = tmp_path / "a" / "0.png"
    path.parent.mkdir()
    path.write_bytes(BROKEN[name]())
    with pytest.raises(InputError, match=r"cannot read .*/a/0\.png: ") as error:
        read_folder(tmp_path)
    assert "\n" not in str(error.value)


def test_decoding_in_small_batches_gives_the_same_pixels(monkeypatch: pytest.MonkeyPatch):
    files = [png(pixels) for pixels in random_pixels(7, side=16)]
    whole = decoded(*files, size=8)
    monkeypatch.setattr("condkd_ray.data.readers.decoding.BATCH_BYTES", 2 * 3 * 16 * 16)
    assert torch.equal(decoded(*files, size=8).pixels, whole.pixels)
