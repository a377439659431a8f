"""Condensed sets of blobs in published formats, and with changes and damage from programs, disks and users."""

import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from data.image_files import png
from hypothesis import strategies as st
from torch import Tensor
from toy import MEAN, NUM_CLASSES, STD, blobs

from fuzz.files import Foreign, damaged

UNITS: dict[str, Callable[[Tensor], Tensor]] = {
    "uint8": lambda pixels: pixels,
    "unit": lambda pixels: pixels / 255,
    "signed": lambda pixels: pixels / 127.5 - 1,
    "normalised": lambda pixels: (pixels / 255 - MEAN[0]) / STD[0],
}
LABELS: dict[str, Callable[[Tensor], Any]] = {
    "int64": lambda labels: labels,
    "float32": lambda labels: labels.float(),
    "uint8": lambda labels: labels.to(torch.uint8),
    "a column": lambda labels: labels[:, None],
    "a list": lambda labels: labels.tolist(),
    "numpy scalars": lambda labels: [np.int64(label) for label in labels.tolist()],
    "one-hot": lambda labels: torch.eye(NUM_CLASSES)[labels] - 0.1,
    "soft": lambda labels: (4 * torch.eye(NUM_CLASSES)[labels] + torch.linspace(0, 1, NUM_CLASSES)).softmax(1),
}
"""Formats of correct labels."""
OTHER_PIXELS: list[Callable[[Tensor], Any]] = [
    *(lambda x: x.half(), lambda x: x.double(), lambda x: x.bfloat16(), lambda x: x.long(), lambda x: x.bool()),
    *(lambda x: x.to(torch.complex64), lambda x: x.to_sparse(), lambda x: x.float() * float("nan"), lambda x: x[:0]),
    *(lambda x: x.float() * 1e30, lambda x: x[..., :4], lambda x: x[None], lambda x: x.flatten(), lambda x: x[:-1]),
    *(lambda x: x.expand(-1, 3, -1, -1), lambda x: x.permute(0, 2, 3, 1), lambda x: x.squeeze(1), lambda x: x * 0),
    *(lambda x: torch.randn(x.shape), lambda x: x[torch.randperm(len(x))], lambda x: x.tolist(), lambda x: None),
    lambda x: torch.nn.Parameter(x.float()),
    lambda x: torch.where(torch.arange(len(x)).view(-1, 1, 1, 1) == 1, torch.inf, x.float()),
]
OTHER_LABELS: list[Callable[[Tensor], Any]] = [
    *(lambda y: y + 1, lambda y: -y, lambda y: y * 10**12, lambda y: y.clamp(max=2), lambda y: (y + 1) % NUM_CLASSES),
    *(lambda y: y + 0.5, lambda y: y * float("nan"), lambda y: y[:-1], lambda y: y[None], lambda y: y[:0]),
    *(lambda y: [str(label) for label in y.tolist()], lambda y: [y.tolist()], lambda y: torch.ones(len(y), 3)),
    *(
        lambda y: y.to(torch.complex64),
        lambda y: y.float().to_sparse(),
        lambda y: y.bool(),
        lambda y: None,
        lambda y: 3,
    ),
    *(lambda y: [2**70, *y.tolist()[1:]], lambda y: [None, *y.tolist()[1:]], lambda y: y[torch.randperm(len(y))]),
    *(lambda y: [[], *y.tolist()[1:]], lambda y: torch.eye(9)[y], lambda y: y.to(torch.float64) * 1e300),
]
WRAPPED: list[Callable[[Any], Any]] = [
    *(lambda x: {"data": x}, lambda x: {"images": x}, lambda x: [x], lambda x: {"x": x, "y": x}, lambda x: None),
    *(lambda x: Foreign(), lambda x: {"data": [[x, Foreign()]]}, lambda x: 7, lambda x: (x, x, x), lambda x: "text"),
    *(lambda x: {"data": []}, lambda x: {"data": [x]}, lambda x: {}, lambda x: (), lambda x: {b"data": x, 3: x}),
]
"""Other structures that a file may hold."""
LAYOUTS = ["dc", "idc", "mtt", "zca", "dc_bench", "named", "kip", "npy", "parquet", "folder"]
FIELDS: dict[str, list[Any]] = {
    "space": ["unit", "signed", "normalised", "uint8", "zca", "lab"],
    "which": [0, 1, -2, 5],
    "factor": [0, 2, 3, 8, 16],
    "ipc": [2, 3, 50, 0],
    "order": [(1, 2, 3, 0), (0, 1), (0, 0, 1, 2)],
    "mean": [(0.5,), (0.5, 0.5, 0.5), (float("nan"),)],
    "std": [(0.5,), (0.0,)],
    "force": [True],
}


@dataclass(frozen=True)
class GivenSet:
    """Files by their paths, the path that is passed, and the fields that are passed with it."""

    files: dict[str, bytes]
    path: str
    fields: dict[str, Any]
    sound: bool


@st.composite
def sets(draw: st.DrawFn) -> GivenSet:
    """A condensed set; half of them are sound."""
    sound = draw(st.booleans())
    real = blobs(NUM_CLASSES * draw(st.integers(1, 6)), seed=draw(st.integers(0, 10**6)))
    pixels, units, labels = (
        real.pixels,
        UNITS[draw(st.sampled_from(sorted(UNITS)))],
        draw(st.sampled_from(sorted(LABELS))),
    )
    images, named = units(pixels), LABELS[labels](real.labels)
    if not sound and draw(st.booleans()):
        images = draw(st.sampled_from(OTHER_PIXELS))(images)
    if not sound and draw(st.booleans()):
        named = draw(st.sampled_from(OTHER_LABELS))(real.labels)
    layout = draw(st.sampled_from(LAYOUTS))
    if layout in ("parquet", "folder"):
        cells = [png(image) if sound else draw(damaged(png(image), often=20)) for image in pixels]
        numbers = (
            real.labels if sound else (real.labels + draw(st.sampled_from([0, 0, 1, -1]))) % draw(st.integers(2, 6))
        )
        files, path = (in_parquet if layout == "parquet" else in_folder)(cells, numbers.tolist())
    else:
        files, path = as_saved(draw, layout, images, named, sound)
    if sound:
        return GivenSet(files, path, {}, sound)
    for name in draw(st.lists(st.sampled_from(sorted(files)), max_size=1)):
        files[name] = draw(damaged(files[name], often=2))
    if draw(st.integers(0, 9)) == 0:
        files.pop(draw(st.sampled_from(sorted(files))))
    if draw(st.integers(0, 9)) == 0:
        path = draw(st.sampled_from(["", "none.pt", "labels.npy", path + "x", "\0", "x" * 300 + ".pt"]))
    names = draw(st.lists(st.sampled_from(sorted(FIELDS)), max_size=2, unique=True))
    return GivenSet(files, path, {name: draw(st.sampled_from(FIELDS[name])) for name in names}, sound)


def as_saved(draw: st.DrawFn, layout: str, images: Any, labels: Any, sound: bool) -> tuple[dict[str, bytes], str]:
    """Save images and labels in the layout of a paper's code; unless `sound`, sometimes with changes."""
    if layout in ("kip", "npy"):
        return in_numpy(layout, images, labels, sound)
    contents: dict[str, Any] = {
        "dc": {"res_DC.pt": {"data": [[images, labels]] * 2, "accs_all_exps": {"ConvNet": [np.float64(0.5)]}}},
        "idc": {"data.pt": [images, labels]},
        "mtt": {"labels_best.pt": labels, "images_best.pt": images},
        "zca": {"labels_9.pt": labels, "images_zca_9.pt": images, "images_9.pt": torch.randn(4, 1, 8, 8)},
        "dc_bench": {"Toy_IPC1_labels.pt": labels, "Toy_IPC1_images.pt": images},
        "named": {"set.pth": {"train_images": images, "y": labels, "epoch": 3}},
    }[layout]
    path = list(contents)[-1]
    if not sound and draw(st.integers(0, 4)) == 0:
        contents[path] = draw(st.sampled_from(WRAPPED))(contents[path])
    zipped = sound or draw(st.integers(0, 4)) > 0
    files = {name: saved(content, zipped) for name, content in contents.items()}
    if not sound and draw(st.integers(0, 19)) == 0:
        files[path] = pickle.dumps(draw(st.sampled_from([{}, Foreign(), [1, 2], {"data": [[1, 2]]}])))
    return files, "" if layout == "mtt" else path


def saved(content: Any, zipped: bool) -> bytes:
    """Return the bytes that `torch.save` writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def in_numpy(layout: str, images: Any, labels: Any, sound: bool) -> tuple[dict[str, bytes], str]:
    """Write images and labels in KIP's layouts, with channels last; values that are no arrays become object arrays."""
    if isinstance(images, Tensor) and images.ndim == 4:
        images = images.permute(0, 2, 3, 1)
    arrays = {"images": as_array(images), "labels": as_array(labels)}
    buffer = io.BytesIO()
    if layout == "kip":
        np.savez(buffer, **arrays)
        return {"kip.npz": buffer.getvalue()}, "kip.npz"
    files = {}
    for name, array in arrays.items():
        np.save(buffer := io.BytesIO(), array)
        files[f"{name}.npy"] = buffer.getvalue()
    return files, "images.npy"


def as_array(values: Any) -> np.ndarray:
    """Return values as an array, of objects if NumPy cannot convert them."""
    if isinstance(values, Tensor):
        values = values.detach().to_dense() if values.layout != torch.strided else values.detach()
        return np.asarray(values.float() if values.dtype == torch.bfloat16 else values)
    try:
        return np.asarray(values)
    except ValueError:
        return np.asarray(values, dtype=object)


def in_parquet(cells: list[bytes], labels: list[int]) -> tuple[dict[str, bytes], str]:
    """Write a Parquet file with the columns `image` and `label`."""
    buffer = io.BytesIO()
    pq.write_table(pa.table({"image": pa.array(cells), "label": pa.array(labels)}), buffer)
    return {"set.parquet": buffer.getvalue()}, "set.parquet"


def in_folder(cells: list[bytes], labels: list[int]) -> tuple[dict[str, bytes], str]:
    """Write one sub-folder per class."""
    return {f"new{label}/{place}.png": cell for place, (cell, label) in enumerate(zip(cells, labels, strict=True))}, ""
