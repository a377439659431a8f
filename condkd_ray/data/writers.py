"""Writers of image sets for other programs: Hugging Face's Parquet, and the dictionary of DC, DSA and DM."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from condkd_ray.core.method import require
from condkd_ray.core.storage import writing

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
VOID = 255
"""Value of pixels without a class in written masks, as in PASCAL VOC."""


def write_images(
    path: Path,
    pixels: Tensor,
    labels: Tensor,
    *,
    logits: Tensor | None = None,
    names: Sequence[str] | None = None,
    about: Mapping[str, str] | None = None,
    webp: bool = False,
) -> None:
    """Write `pixels` (N, C, H, W) uint8 with one or three channels as PNG, and `labels` (N,), to Parquet, atomically.

    `logits` (N, K): written as another column, lists of float32. `names`: class names, by default their numbers.
    `about`: description of the set for the file's metadata. `webp`: use lossless WebP, which is smaller but slower to
    write; grey images are then read back with three equal channels. Raises `InputError` for labels per pixel.
    """
    _require_one_each(labels)
    names = [str(k) for k in range(int(labels.max()) + 1)] if names is None else list(names)
    features: dict[str, object] = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    columns = {
        "image": _image_column(pixels, webp),
        "label": pa.array(labels.cpu().numpy(), pa.int64()),
    }
    if logits is not None:
        flat = pa.array(logits.cpu().float().numpy().reshape(-1))
        columns["logits"] = pa.FixedSizeListArray.from_arrays(flat, logits.shape[1]).cast(pa.list_(pa.float32()))
        features["logits"] = {"feature": {"dtype": "float32", "_type": "Value"}, "_type": "Sequence"}
    _write_table(path, columns, features, about or {})


def write_masks(
    path: Path,
    pixels: Tensor,
    masks: Tensor,
    *,
    names: Sequence[str] = (),
    about: Mapping[str, str] | None = None,
) -> None:
    """Write `pixels` (N, C, H, W) uint8 with one or three channels and `masks` (N, H, W) as PNG to Parquet, atomically.

    Columns `image` and `mask`, which the `datasets` library decodes. A mask's pixels are class numbers, and `VOID` for
    labels below 0; PNG of 16 bits if a class is `VOID` or higher, where no class is 65535. `names`: class names, for
    the file's metadata under `class_names`. `about`: description of the set for the metadata.
    """
    masks = masks.cpu().long()
    deep = bool(len(masks)) and int(masks.max()) >= VOID
    stored = masks.masked_fill(masks < 0, 2**16 - 1 if deep else VOID).numpy().astype(np.uint16 if deep else np.uint8)
    columns = {"image": _image_column(pixels, webp=False), "mask": _column([_png(mask) for mask in stored])}
    named = {"class_names": json.dumps(list(names))} if names else {}
    _write_table(path, columns, {name: {"_type": "Image"} for name in columns}, {**(about or {}), **named})


def _image_column(pixels: Tensor, webp: bool) -> pa.Array:
    return _column([_encoded(image, webp) for image in pixels.cpu().permute(0, 2, 3, 1).numpy()])


def _column(files: Sequence[bytes]) -> pa.Array:
    return pa.array([{"bytes": content, "path": None} for content in files], IMAGE)


def _png(mask: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(mask).save(file, format="PNG")
    return file.getvalue()


def _write_table(
    path: Path, columns: Mapping[str, pa.Array], features: Mapping[str, object], about: Mapping[str, str]
) -> None:
    metadata = {"huggingface": json.dumps({"info": {"features": features}}), **about}
    with writing(path) as partial:
        pq.write_table(pa.table(columns).replace_schema_metadata(metadata), partial)


def write_dc(path: Path, images: Tensor, labels: Tensor, *, about: Mapping[str, str] | None = None) -> None:
    """Write normalised `images` (N, C, H, W) as unclipped float32, and `labels` (N,), to a .pt file, atomically.

    Format: the dictionary that the released code of DC, DSA and DM writes (github.com/VICO-UoE/DatasetCondensation),
    with `data`, a list of one pair [images, labels], and an empty `accs_all_exps`; `about`, a description of the set,
    is added. `torch.load(path, weights_only=True)` reads it. Raises `InputError` for labels per pixel.
    """
    _require_one_each(labels)
    pair = [part.detach().cpu().contiguous().clone() for part in (images.float(), labels)]
    with writing(path) as partial:
        torch.save({"data": [pair], "accs_all_exps": {}, "about": dict(about or {})}, partial)


def _require_one_each(labels: Tensor) -> None:
    accepted = "(N,), one label per image; `write_masks` writes images with masks"
    require(labels.ndim == 1, "shape of the labels to write", tuple(labels.shape), accepted)


def _encoded(image: np.ndarray, webp: bool) -> bytes:
    file, kind = io.BytesIO(), {"format": "WEBP", "lossless": True, "quality": 100} if webp else {"format": "PNG"}
    Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(file, **kind)
    return file.getvalue()
