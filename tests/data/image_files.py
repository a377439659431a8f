"""Writes small image sets in the layouts that `condkd_ray.data.readers` reads."""

import gzip
import io
import json
import struct
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor


def random_pixels(count: int, channels: int = 3, side: int = 8, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, side, side), generator=rng, dtype=torch.uint8)


def as_image(pixels: Tensor) -> Image.Image:
    """Convert `pixels` (C, H, W) uint8 with one or three channels."""
    return Image.fromarray((pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0)).contiguous().numpy())


def png(pixels: Tensor) -> bytes:
    file = io.BytesIO()
    as_image(pixels).save(file, "PNG")
    return file.getvalue()


def write_parquet(
    path: Path,
    pixels: Tensor,
    labels: Tensor,
    *,
    names: list[str] | None = None,
    columns: tuple[str, str] = ("image", "label"),
    plain: bool = False,
) -> Path:
    cells = [png(image) for image in pixels]
    images = pa.array(cells) if plain else pa.array([{"bytes": cell, "path": None} for cell in cells])
    table = pa.table({columns[0]: images, columns[1]: pa.array(labels.tolist(), pa.int64())})
    if names is not None:
        features = {columns[0]: {"_type": "Image"}, columns[1]: {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def write_folder(root: Path, pixels: Tensor, labels: Tensor, names: list[str]) -> Path:
    for place, (image, label) in enumerate(zip(pixels, labels.tolist(), strict=True)):
        folder = root / names[label]
        folder.mkdir(parents=True, exist_ok=True)
        as_image(image).save(folder / f"{place:05d}.png")
    return root


def idx_bytes(values: Tensor) -> bytes:
    header = struct.pack(">BBBB", 0, 0, 8, values.ndim) + struct.pack(f">{values.ndim}I", *values.shape)
    return header + values.to(torch.uint8).contiguous().numpy().tobytes()


def write_idx(folder: Path, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], *, zipped: bool) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for stem, (pixels, labels) in (("train", train), ("t10k", test)):
        for kind, values in (("images-idx3", pixels[:, 0]), ("labels-idx1", labels)):
            data = idx_bytes(values)
            name = f"{stem}-{kind}-ubyte"
            (folder / (f"{name}.gz" if zipped else name)).write_bytes(gzip.compress(data) if zipped else data)
    return folder
