"""Image sets in the Parquet layout of Hugging Face, which `readers` and `datasets` read back.

Letters: N images, C channels, H W height and width, K classes.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from torch import Tensor

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write_images(
    path: Path, pixels: Tensor, labels: Tensor, *, logits: Tensor | None = None, about: Mapping[str, str] | None = None
) -> None:
    """Write `pixels` (N, C, H, W) uint8 of one or three channels as PNG, and `labels` (N,); atomically.

    `logits` (N, K): a further column, lists of float32. `about`: what the set is, for the file's metadata.
    """
    images = pixels.cpu().permute(0, 2, 3, 1).numpy()
    names = [str(k) for k in range(int(labels.max()) + 1)]
    features: dict[str, object] = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    columns = {
        "image": pa.array([{"bytes": _png(image), "path": None} for image in images], IMAGE),
        "label": pa.array(labels.cpu().numpy(), pa.int64()),
    }
    if logits is not None:
        flat = pa.array(logits.cpu().float().numpy().reshape(-1))
        columns["logits"] = pa.FixedSizeListArray.from_arrays(flat, logits.shape[1]).cast(pa.list_(pa.float32()))
        features["logits"] = {"feature": {"dtype": "float32", "_type": "Value"}, "_type": "Sequence"}
    metadata = {"huggingface": json.dumps({"info": {"features": features}}), **(about or {})}
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        pq.write_table(pa.table(columns).replace_schema_metadata(metadata), partial)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(file, "PNG")
    return file.getvalue()
