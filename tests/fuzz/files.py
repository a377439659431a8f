"""Folders of images, Parquet files and checkpoints as users have them, and with damage from disks and downloads."""

import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from hypothesis import strategies as st
from PIL import Image

MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "I;16", "F", "HSV"]
KINDS = ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO", "TGA"]
FOLDERS = ["cat", "dog", "0", "1", "10", ".hidden", "__MACOSX", ".ipynb_checkpoints", "Ärger", "a b", "[1]", "train"]
FILES = ["a.png", "b.PNG", "c.jpg", "d.jpeg", "e.tif", "f.gif", "g.pgm", "._a.png", ".DS_Store", "Thumbs.db", "h.txt"]
CLASSES = [b"cat\ndog\n", b"\xef\xbb\xbfdog\r\ncat", b"\xff\xfed\x00o\x00g\x00", b"", b"\x00\xe9"]
OTHERS = [b"", b"version https://git-lfs.github.com/spec/v1\n", b"<html>404</html>", b"\x1f\x8b\x08\x00garbage"]

TRAINS = ["train.parquet", "train-00000-of-00001.parquet", "train-00000-of-00002-abcdef0123456789.parquet"]
TESTS = ["test.parquet", "valid-00000-of-00001.parquet", "validation.parquet", "test-00001-of-00002.parquet"]
COLUMNS = [("image", "label"), ("img", "labels"), ("image", "fine_label"), ("picture", "label"), ("image", "y")]
METADATA = [b"{}", b'{"info": {"features": {"label": {"names": ["a", "b"]}}}}', b"\xff", b"[]"]
LABELS: list[Any] = [0, 1, 2, -1, 10**12, 2**63 - 1, None]
NUMBERS = [pa.int64(), pa.int64(), pa.uint64(), pa.float64(), pa.string(), pa.bool_()]

SUFFIXES = [".pt", ".pth", ".th", ".bin", ".ckpt", ".pkl", ".safetensors", ""]
KEYS = ["state_dict", "model", "net", "ema", "weights", 0, None]
PREFIXES = ["module.", "model.", "_orig_mod.", "net.", "x."]


BESIDE = {
    "criterion.weight": torch.ones(3),
    "loss.centers": torch.ones(3, 16),
    "ema.decay": torch.tensor(0.99),
    "train_acc.correct": torch.tensor(7),
    "normalise.running_mean": torch.zeros(1),
}


class Foreign:
    """An object whose class a safe reader must refuse."""


def put(files: dict[str, bytes], root: Path) -> Path:
    """Write files below `root` and return `root`."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


@st.composite
def damaged(draw: st.DrawFn, whole: bytes, often: int = 3) -> bytes:
    """Bytes that are, once in `often` draws, cut off, changed at a place, zeroed, or replaced by something else."""
    if not whole or draw(st.integers(1, often)) > 1:
        return whole
    way, place = draw(st.integers(0, 4)), draw(st.integers(0, len(whole) - 1))
    return [
        whole[:place],
        whole[:place] + bytes([whole[place] ^ draw(st.integers(1, 255))]) + whole[place + 1 :],
        whole[:place] + draw(st.binary(min_size=1, max_size=6)) + whole[place:],
        draw(st.sampled_from(OTHERS)),
        bytes(len(whole)),
    ][way]


def exif(orientation: int) -> bytes:
    """Return an EXIF block with an orientation, of which 1 to 8 are defined."""
    block = Image.Exif()
    block[0x0112] = orientation
    return block.tobytes()


@st.composite
def images(draw: st.DrawFn, sound: bool = False) -> bytes:
    """The bytes of a file that should hold an image; a `sound` one holds an RGB image of 8 by 8 pixels as PNG."""
    seed = draw(st.integers(0, 10**6 if sound else 3))
    if sound:
        return png(seed)
    kind, mode, side = (draw(st.sampled_from(values)) for values in (KINDS, MODES, [1, 2, 8, 8, 8, 9]))
    more = {"exif": exif(draw(st.integers(0, 9)))} if draw(st.booleans()) else {}
    buffer = io.BytesIO()
    try:
        picture(seed, side).convert(mode).save(buffer, kind, **more)
        whole = buffer.getvalue()
    except (OSError, ValueError, KeyError):  # not every format supports every mode
        whole = png(seed)
    return draw(damaged(whole))


def picture(seed: int, side: int = 8) -> Image.Image:
    """Return an image of noise, 8 pixels wide and `side` high."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, 8, 3), dtype=np.uint8))


def png(seed: int) -> bytes:
    """Return the bytes of a PNG file of a `picture`."""
    buffer = io.BytesIO()
    picture(seed).save(buffer, "PNG")
    return buffer.getvalue()


@st.composite
def folders(draw: st.DrawFn) -> dict[str, bytes]:
    """Files of a data set with one folder per class, by their paths; half of the data sets are sound."""
    found, sound = {}, draw(st.booleans())
    names, files = (FOLDERS[:5], FILES[:6]) if sound else (FOLDERS, FILES)
    for split in draw(st.sampled_from([[""], [""], ["train/"], ["train/", "test/"], ["train/", "val/"]])):
        for name in draw(st.lists(st.sampled_from(names), min_size=1 + sound, max_size=4, unique=True)):
            for file in draw(st.lists(st.sampled_from(files), min_size=5 * sound, max_size=6, unique=True)):
                found[f"{split}{name}/{file}"] = draw(images(sound))
        if not sound and draw(st.integers(0, 3)) == 0:
            found[f"{split}classes.txt"] = draw(st.sampled_from(CLASSES))
    return found


@st.composite
def parquets(draw: st.DrawFn) -> dict[str, bytes]:
    """Files of a Parquet data set, by their paths."""
    below = draw(st.sampled_from(["", "data/", "plain_text/train/", "a[b]/"]))
    names = [draw(st.sampled_from(TRAINS)), *draw(st.lists(st.sampled_from(TESTS), max_size=2, unique=True))]
    sound = draw(st.booleans())
    return {below + name: draw(parquet(sound)) for name in names}


@st.composite
def parquet(draw: st.DrawFn, sound: bool) -> bytes:
    """The bytes of a Parquet file of a few images."""
    count = draw(st.integers(6 * sound, 12))
    cells = [draw(images(sound)) if sound or draw(st.integers(0, 19)) else None for _ in range(count)]
    if sound:
        names, images_, labels = COLUMNS[0], pa.array(cells, pa.binary()), pa.array([i % 3 for i in range(count)])
    else:
        names, images_, labels = draw(st.sampled_from(COLUMNS)), draw(cells_of(cells)), draw(labels_of(cells))
    metadata = METADATA[0] if sound else draw(st.sampled_from(METADATA))
    table = pa.table(dict(zip(names, (images_, labels), strict=True)))
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({b"huggingface": metadata}), buffer)
    return buffer.getvalue() if sound else draw(damaged(buffer.getvalue(), often=6))


@st.composite
def cells_of(draw: st.DrawFn, cells: list[bytes | None]) -> pa.Array:
    """A column of images: as bytes, as structs of bytes and path, or as structs of paths only."""
    form = draw(st.integers(0, 3))
    if form == 1:
        kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        return pa.array([{"bytes": cell, "path": None} for cell in cells], kind)
    if form == 2:
        return pa.array([{"path": "x"} for _ in cells], pa.struct({"path": pa.string()}))
    return pa.array(cells, pa.binary())


@st.composite
def labels_of(draw: st.DrawFn, cells: list[bytes | None]) -> pa.Array:
    """A column of labels, most often of three classes."""
    likely = draw(st.integers(0, 2)) > 0
    labels = pa.array([draw(st.sampled_from(LABELS[:3] if likely else LABELS)) for _ in cells], pa.int64())
    try:
        return labels.cast(draw(st.sampled_from(NUMBERS)), safe=False)
    except pa.ArrowException:
        return labels


@dataclass(frozen=True)
class Checkpoint:
    """A file of the weights of a network."""

    name: str
    content: bytes
    sound: bool
    """Whether it holds valid weights, which must be found in it."""


@st.composite
def checkpoints(draw: st.DrawFn, weights: dict[str, torch.Tensor]) -> Checkpoint:
    """Files that should hold such weights; half of them do, as programs save them."""
    return draw(sound_content(weights) if draw(st.booleans()) else other_content(weights))


@st.composite
def sound_content(draw: st.DrawFn, weights: dict[str, torch.Tensor]) -> Checkpoint:
    """Valid weights with prefixes, under a key, in another precision, or beside other tensors."""
    loaded: dict[str, Any] = {name: value for name, value in weights.items() if "num_batches" not in name}
    if draw(st.booleans()):
        loaded = dict(weights)
    prefix = "".join(draw(st.lists(st.sampled_from(PREFIXES), max_size=3)))
    loaded = {prefix + name: value for name, value in loaded.items()}
    if prefix:
        # Lightning modules have such tensors beside their network; none of these is a complete network.
        beside = draw(st.lists(st.sampled_from(sorted(BESIDE)), max_size=4, unique=True))
        around = draw(st.sampled_from(["", "others."]))
        loaded |= {around + name: BESIDE[name] for name in beside}
    if draw(st.booleans()):
        loaded = {name: value.double() if value.is_floating_point() else value for name, value in loaded.items()}
    content: Any = {"state_dict": loaded, "epoch": 3} if draw(st.booleans()) else loaded
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=draw(st.integers(0, 4)) > 0)
    return Checkpoint(f"weights{draw(st.sampled_from(SUFFIXES[:5]))}", buffer.getvalue(), True)


@st.composite
def other_content(draw: st.DrawFn, weights: dict[str, torch.Tensor]) -> Checkpoint:
    """Weights that are wrapped, renamed, changed or damaged."""
    loaded: dict[Any, Any] = dict(weights)
    for _ in range(draw(st.integers(0, 2))):
        name = draw(st.sampled_from(sorted(weights)))
        loaded[name] = draw(changed(weights[name]))
    if draw(st.integers(0, 4)) == 0:
        loaded.pop(draw(st.sampled_from(sorted(loaded))))
    for prefix in draw(st.lists(st.sampled_from(PREFIXES), max_size=2)):
        loaded = {prefix + str(name): value for name, value in loaded.items()}
    content: Any = loaded
    for key in draw(st.lists(st.sampled_from(KEYS), max_size=2)):
        content = {key: content, "epoch": 3, "best": np.float64(0.9)}
    if draw(st.integers(0, 4)) == 0:
        content = draw(st.sampled_from([[content], (), None, Foreign(), 7]))
    buffer = io.BytesIO()
    if draw(st.integers(0, 9)) == 0:
        buffer.write(pickle.dumps(draw(st.sampled_from([{}, {"a": 1}, Foreign(), [1, 2]]))))
    else:
        torch.save(content, buffer, _use_new_zipfile_serialization=draw(st.integers(0, 4)) > 0)
    return Checkpoint(f"weights{draw(st.sampled_from(SUFFIXES))}", draw(damaged(buffer.getvalue())), False)


def changed(value: torch.Tensor) -> st.SearchStrategy[Any]:
    """Another tensor as a replacement, or a value that is no tensor."""
    reals = [value.half(), value.double(), value * float("nan"), -value, value[None], value.bool(), value.flatten()[:1]]
    return st.sampled_from([*reals, value.to(torch.complex64), value.to_sparse(), value.tolist(), None, 3, "text"])
