"""Real, condensed and synthetic images as the teacher sees them, kept beside a trial's record and shown by TensorBoard.

    OUT/points/<hash>.safetensors    of the trials whose products are kept: the best of each arm and IPC, or of a search

In TensorBoard's projector they are an embedding, coloured and searched by class and kind: one in the run of each such
trial, and in the run of the whole experiment one in which all of them lie in one teacher's space.
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

# The classes of this module are made at import from a descriptor, which no type checker sees.
_CONFIG: Any = projector_config_pb2

KINDS = ("real", "condensed", "synthetic")
COLUMNS = ("what", "kind", "class", "arm", "ipc", "seed")
"""What is said of each point. `what` is all but class and seed in one, for colours."""
TENSORS, METADATA, BOOKMARKS = "tensors.tsv", "metadata.tsv", "bookmarks.json"
COLOURS = {"by what it is": "what", "by class": "class"}
"""Bookmarks, one click each, and the column that each colours the points by: at first they have one colour."""


@dataclass(frozen=True)
class Points:
    """Images of one kind."""

    features: Tensor
    """(N, D): of the teacher's penultimate layer, in units of the real images' root mean squared norm."""
    classes: Tensor
    """(N,): labels; of synthetic images the classes that were asked for."""


Cloud = tuple[Points, Mapping[str, str]]
"""Points of one kind, and what is said of all of them by column."""


def points_path(out: Path, config_hash: str) -> Path:
    """Where the points of that trial are kept, if they are."""
    return Path(out) / "points" / f"{config_hash}.safetensors"


def write_points(path: Path, found: Mapping[str, Points]) -> None:
    """Atomically; features as float16, which is finer than any picture."""
    tensors = {}
    for kind, points in found.items():
        tensors[kind] = points.features.half().cpu().contiguous()
        tensors[f"{kind}_classes"] = points.classes.short().cpu().contiguous()
    atomic_write(path, save(tensors))


def read_points(path: Path) -> dict[str, Points]:
    """Points by kind. Raises `InputError` where the file is damaged."""
    try:
        tensors = load_file(path)
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); delete it to do without its embedding") from None
    return {kind: Points(tensors[kind].float(), tensors[f"{kind}_classes"].long()) for kind in KINDS if kind in tensors}


def write_own(folder: Path, out: Path, record: Record) -> None:
    """The embedding of a trial, where its points are kept, into the `folder` of its run."""
    if clouds := _clouds(out, record):
        _write(folder, "teacher features", list(clouds.values()))


def write_together(folder: Path, out: Path, records: Sequence[Record]) -> None:
    """Those of all `records` of the first one's teacher and data; images that trials have in common stand there once.

    Nothing is written where there are not two of them.
    """
    kept = [record for record in records if points_path(out, record.config_hash).is_file()]
    alike = [one for one in kept if (one.teacher_hash, one.data_hash) == (kept[0].teacher_hash, kept[0].data_hash)]
    if len(alike) < 2:
        return
    together: dict[tuple[str, ...], Cloud] = {}
    for record in alike:
        for key, cloud in _clouds(out, record).items():
            together.setdefault(key, cloud)
    _write(folder, "teacher features of all arms", list(together.values()))


def _clouds(out: Path, record: Record) -> dict[tuple[str, ...], Cloud]:
    """By what makes two of them equal."""
    path = points_path(out, record.config_hash)
    found = read_points(path) if path.is_file() else {}
    # All real images, as a condensed set, stand there as real ones.
    if record.condensation == ALL_REAL:
        found.pop("condensed", None)
    ipc, name = str(record.ipc), f"ipc {record.ipc}" if record.ipc else "no ipc"
    own = {"arm": record.arm, "ipc": ipc, "seed": str(record.seed)}
    told: dict[str, tuple[str, dict[str, str]]] = {
        "real": ("", {"what": "real"}),
        "condensed": (record.condensed_hash, {"what": f"condensed {name}", "ipc": ipc}),
        "synthetic": (record.config_hash, {"what": f"synthetic {record.arm} {name}"} | own),
    }
    return {(kind, told[kind][0]): (points, {"kind": kind} | told[kind][1]) for kind, points in found.items()}


def _write(folder: Path, name: str, clouds: Sequence[Cloud]) -> None:
    features = np.concatenate([points.features.numpy() for points, _ in clouds])
    rows = ["\t".join(f"{value:.3g}" for value in row) for row in features.tolist()]
    said = [{**told, "class": str(label)} for points, told in clouds for label in points.classes.tolist()]
    lines = ["\t".join(COLUMNS), *("\t".join(row.get(column, "-") for column in COLUMNS) for row in said)]
    atomic_write(folder / TENSORS, "".join(f"{row}\n" for row in rows).encode())
    atomic_write(folder / METADATA, "".join(f"{line}\n" for line in lines).encode())
    views = [_view(label, column, features.shape) for label, column in COLOURS.items()]
    atomic_write(folder / BOOKMARKS, json.dumps(views).encode())
    paths = {"tensor_path": TENSORS, "metadata_path": METADATA, "bookmarks_path": BOOKMARKS}
    embedding = _CONFIG.EmbeddingInfo(tensor_name=name, tensor_shape=features.shape, **paths)
    # Last, for who reads it reads the others.
    config = _CONFIG.ProjectorConfig(embeddings=[embedding])
    atomic_write(folder / metadata.PROJECTOR_FILENAME, text_format.MessageToString(config).encode())


def _view(label: str, column: str, shape: Sequence[int]) -> Mapping[str, Any]:
    """A state of the projector: the two largest principal components, which it has computed by then, in colours."""
    sides: dict[str, Any] = {}
    for side in ("XLeft", "XRight", "YUp", "YDown"):
        sides |= {f"custom{side}Text": "", f"custom{side}Regex": False}
    tsne = {"tSNEIteration": 0, "tSNEPerplexity": 30, "tSNELearningRate": 10, "tSNEis3d": False}
    umap = {"umapIs3d": False, "umapNeighbors": 15, "umapMinDist": 0.1}
    shown = {"selectedProjection": "pca", "pcaComponentDimensions": [0, 1], "projections": [], "selectedPoints": []}
    coloured = {"selectedColorOptionName": column, "forceCategoricalColoring": True, "selectedLabelOption": column}
    named = {"label": label, "isSelected": False, "dataSetDimensions": list(shape)}
    return named | shown | coloured | tsne | umap | sides | {"customSelectedSearchByMetadataOption": column}
