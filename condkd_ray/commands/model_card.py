"""`student.json`: what a file beside weights says of them. Written by `condkd export`, read of a teacher's."""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from condkd_ray import models
from condkd_ray.core.config import build, to_tree
from condkd_ray.core.method import InputError
from condkd_ray.core.records import Record
from condkd_ray.data.datasets import NO_FLIP
from condkd_ray.models import AnyNetwork
from condkd_ray.runs.products import merit
from condkd_ray.trial.outcome import Product

ACCEPTED = "JSON with any of network, num_classes, image_shape, mean, std, flip_ok, as `condkd export` writes it"


@dataclass(frozen=True)
class Card:
    """What is known of a network's weights; None where it is not."""

    network: AnyNetwork | None = None
    num_classes: int | None = None
    image_shape: tuple[int, int, int] | None = None
    """(C, H, W)."""
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    """Of the normalisation, a channel, in units of [0, 1] pixels."""
    flip_ok: bool | None = None
    """Whether a mirrored image keeps its class."""


def read_card(path: Path) -> Card:
    """The card in a JSON file; what else stands there is not read. Raises `InputError` for what it cannot be."""
    try:
        tree = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"card is {str(path)!r}, which cannot be read ({error}); accepted: {ACCEPTED}") from None
    if not isinstance(tree, dict):
        raise InputError(f"card {path} holds a {type(tree).__name__}; accepted: {ACCEPTED}")
    known = {field.name: tree[field.name] for field in fields(Card) if field.name in tree}
    if isinstance(known.get("network"), str):
        known["network"] = to_tree(models.parse(known["network"]))
    return build(Card, _mirrored(tree) | known, f"card {path}")


def _mirrored(tree: dict[str, Any]) -> dict[str, bool]:
    """`flip_ok` where an exported card tells it by the data that its network was taught for."""
    data = tree.get("config", {}).get("data", {}) if isinstance(tree.get("config"), dict) else {}
    if not isinstance(data, dict) or "name" not in data:
        return {}
    told = data.get("flip_ok")
    return {"flip_ok": data["name"] not in NO_FLIP if told is None else bool(told)}


def card_of(product: Product, record: Record) -> dict[str, object]:
    """All a reader needs to use the weights, and where they come from."""
    name, value = merit(record)
    return {
        "network": to_tree(models.parse(product.network)),
        "num_classes": product.num_classes,
        "image_shape": list(product.image_shape),
        "mean": list(product.mean),
        "std": list(product.std),
        "chosen_by": {name: value},
        "test_accuracy": record.metrics["student/test_accuracy"],
        **{key: getattr(record, key) for key in ("experiment", "arm", "ipc", "seed", "dataset", "teacher")},
        **{key: getattr(record, key) for key in ("config_hash", "teacher_hash", "data_hash", "versions", "git")},
        "config": record.config,
    }
