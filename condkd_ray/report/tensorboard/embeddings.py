"""Real, condensed and synthetic images in the teacher's feature space, stored per trial and shown by TensorBoard.

    OUT/points/<hash>.safetensors    points of each trial whose product is kept

TensorBoard's projector displays them as embeddings that can be coloured and searched by class and kind: one embedding
in the run of each such trial, and one in the run of the whole experiment, with all trials of one teacher.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import text_format
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from tensorboard.plugins.projector import metadata, projector_config_pb2
from torch import Tensor

from condkd_ray.core.method import InputError
from condkd_ray.core.records import ALL_REAL, Record
from condkd_ray.core.storage import atomic_write

# Protobuf creates the classes of this module at import, so type checkers do not find them.
_CONFIG: Any = projector_config_pb2

KINDS = ("real", "condensed", "synthetic")
COLUMNS = ("what", "kind", "class", "arm", "ipc", "seed")
"""Metadata of each point. `what` combines all but class and seed, for colours."""
MOST_TOGETHER = 50
"""Largest number of trials in one embedding (our choice): a browser shows 200 synthetic images of each at once."""
TENSORS, METADATA, BOOKMARKS = "tensors.tsv", "metadata.tsv", "bookmarks.json"
COLOURS = {"by what it is": "what", "by class": "class"}
"""Bookmarks, each with the column by which it colours the points. Without one, all points have one colour."""


@dataclass(frozen=True)
class Points:
    """Images of one kind."""

    features: Tensor
    """Outputs of the teacher's penultimate layer, shape (N, D), divided by the real images' root mean squared norm."""
    classes: Tensor
    """Labels, shape (N,); of synthetic images, the classes for which they were made."""


Cloud = tuple[Points, Mapping[str, str]]
"""Points of one kind, and their common metadata by column."""


def points_path(out: Path, config_hash: str) -> Path:
    """Return the path of a trial's points; the file need not exist."""
    return Path(out) / "points" / f"{config_hash}.safetensors"


def write_points(path: Path, found: Mapping[str, Points]) -> None:
    """Write points, by kind, atomically. Features are stored as float16, which is precise enough for a picture."""
    tensors = {}
    for kind, points in found.items():
        tensors[kind] = points.features.half().cpu().contiguous()
        tensors[f"{kind}_classes"] = points.classes.short().cpu().contiguous()
    atomic_write(path, save(tensors))


def read_points(path: Path) -> dict[str, Points]:
    """Return the points by kind. Raises `InputError` if the file is damaged."""
    try:
        tensors = load_file(path)
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); delete it to do without its embedding") from None
    return {kind: Points(tensors[kind].float(), tensors[f"{kind}_classes"].long()) for kind in KINDS if kind in tensors}


def write_own(folder: Path, out: Path, record: Record) -> None:
    """Write the embedding of a trial to `folder`, the folder of its run, if the trial's points are kept.

    Raises `InputError` if the file of points is damaged.
    """
    if clouds := _clouds(out, record):
        _write(folder, "teacher features", list(clouds.values()))


def write_together(folder: Path, out: Path, records: Sequence[Record]) -> None:
    """Write one embedding of all trials that share the teacher and the data of the first one.

    Images that several trials share appear once. Of more than `MOST_TOGETHER` trials only the first are written, and
    nothing for fewer than two. Raises `InputError` if a file of points is damaged.
    """
    kept = [record for record in records if points_path(out, record.config_hash).is_file()]
    alike = [one for one in kept if (one.teacher_hash, one.data_hash) == (kept[0].teacher_hash, kept[0].data_hash)]
    if len(alike) < 2:
        return
    together: dict[tuple[str, ...], Cloud] = {}
    for record in alike[:MOST_TOGETHER]:
        for key, cloud in _clouds(out, record).items():
            together.setdefault(key, cloud)
    if together:  # a file can hold no points
        _write(folder, "teacher features of all arms", list(together.values()))


def _clouds(out: Path, record: Record) -> dict[tuple[str, ...], Cloud]:
    """Return a trial's points by kind and hash; points with equal keys are equal."""
    path = points_path(out, record.config_hash)
    found = read_points(path) if path.is_file() else {}
    # If the condensed set consists of all real images, these appear only as real images.
    if record.condensation == ALL_REAL:
        found.pop("condensed", None)
    ipc, name = str(record.ipc), f"ipc {record.ipc}" if record.ipc else "no ipc"
    own = {"arm": record.arm, "ipc": ipc, "seed": str(record.seed)}
    about: dict[str, tuple[str, dict[str, str]]] = {
        "real": ("", {"what": "real"}),
        "condensed": (record.condensed_hash, {"what": f"condensed {name}", "ipc": ipc}),
        "synthetic": (record.config_hash, {"what": f"synthetic {record.arm} {name}"} | own),
    }
    return {(kind, about[kind][0]): (points, {"kind": kind} | about[kind][1]) for kind, points in found.items()}


def _write(folder: Path, name: str, clouds: Sequence[Cloud]) -> None:
    features = np.concatenate([points.features.numpy() for points, _ in clouds])
    form = "\t".join(["%.3g"] * features.shape[1])
    rows = [form % tuple(row) for row in features.tolist()]
    table = [{**about, "class": str(label)} for points, about in clouds for label in points.classes.tolist()]
    lines = ["\t".join(COLUMNS), *("\t".join(row.get(column, "-") for column in COLUMNS) for row in table)]
    atomic_write(folder / TENSORS, "".join(f"{row}\n" for row in rows).encode())
    atomic_write(folder / METADATA, "".join(f"{line}\n" for line in lines).encode())
    views = [_view(label, column, features.shape) for label, column in COLOURS.items()]
    atomic_write(folder / BOOKMARKS, json.dumps(views).encode())
    paths = {"tensor_path": TENSORS, "metadata_path": METADATA, "bookmarks_path": BOOKMARKS}
    embedding = _CONFIG.EmbeddingInfo(tensor_name=name, tensor_shape=features.shape, **paths)
    # This file is written last, because TensorBoard finds the other files through it.
    config = _CONFIG.ProjectorConfig(embeddings=[embedding])
    atomic_write(folder / metadata.PROJECTOR_FILENAME, text_format.MessageToString(config).encode())


def _view(label: str, column: str, shape: Sequence[int]) -> Mapping[str, Any]:
    """Return a bookmark of the projector: the first two principal components, coloured by `column`."""
    sides: dict[str, Any] = {}
    for side in ("XLeft", "XRight", "YUp", "YDown"):
        sides |= {f"custom{side}Text": "", f"custom{side}Regex": False}
    tsne = {"tSNEIteration": 0, "tSNEPerplexity": 30, "tSNELearningRate": 10, "tSNEis3d": False}
    umap = {"umapIs3d": False, "umapNeighbors": 15, "umapMinDist": 0.1}
    shown = {"selectedProjection": "pca", "pcaComponentDimensions": [0, 1], "projections": [], "selectedPoints": []}
    coloured = {"selectedColorOptionName": column, "forceCategoricalColoring": True, "selectedLabelOption": column}
    named = {"label": label, "isSelected": False, "dataSetDimensions": list(shape)}
    return named | shown | coloured | tsne | umap | sides | {"customSelectedSearchByMetadataOption": column}
