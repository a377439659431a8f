"""Model cards: JSON files beside weights that describe the network, and the config fields that follow from them.

`condkd export` writes a complete card. A card written by a user may contain any subset of the fields.
"""

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from condkd_ray import models
from condkd_ray.core.config import Tree, build, flattened, merge, to_tree
from condkd_ray.core.method import InputError, require
from condkd_ray.core.task import Task
from condkd_ray.data.datasets import NO_FLIP, Dataset
from condkd_ray.models import AnyNetwork
from condkd_ray.models.weights import located, recognised

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Card:
    """Content of a file such as `student.json` beside weights; fields that the file does not contain are None."""

    network: AnyNetwork | None = None
    num_classes: int | None = None
    image_shape: tuple[int, int, int] | None = None
    """(C, H, W)."""
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    """Mean and standard deviation of the normalisation, one value per channel, in units of [0, 1] pixels."""
    flip_ok: bool | None = None
    """True if a mirrored image has the same class."""
    test_accuracy: float | None = None
    """Accuracy of the network on its test images, as a fraction."""
    test_miou: float | None = None
    """Mean IoU of a segmentation network on its test images, as a fraction."""
    task: Task | None = None
    """`classification` or `segmentation`."""

    def __post_init__(self) -> None:
        require((self.mean is None) == (self.std is None), "mean, std", (self.mean, self.std), "both or none")
        for name in ("test_accuracy", "test_miou"):
            share = getattr(self, name)
            require(share is None or 0 <= share <= 1, name, share, "a fraction, 0 to 1")

    @property
    def tree(self) -> Tree:
        """The fields of a `TrialConfig` that the card determines."""
        data: Tree = {"mean": self.mean, "std": self.std, "flip_ok": self.flip_ok}
        if self.image_shape is not None:
            _, height, width = self.image_shape
            data["size"] = height if height == width else (height, width)
        tree: Tree = {"data": {name: to_tree(value) for name, value in data.items() if value is not None}}
        return tree | ({} if self.network is None else {"teacher": {"network": to_tree(self.network)}})


ACCEPTED = f"JSON with any of {', '.join(field.name for field in fields(Card))}, as `condkd export` writes it"


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object as a dict. Raises `ValueError` for a duplicate key, whose meaning would be ambiguous."""
    names = [name for name, _ in pairs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"the key {twice!r} occurs twice")
    return dict(pairs)


def read_card(path: Path) -> Card:
    """Read the card in a JSON file; unknown keys are ignored. Raises `InputError` for an unreadable or invalid card."""
    try:
        tree = json.loads(path.read_bytes(), object_pairs_hook=_each_once)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"card is {str(path)!r}, which cannot be read ({error}); accepted: {ACCEPTED}") from None
    if not isinstance(tree, dict):
        raise InputError(f"card {path} holds a {type(tree).__name__}; accepted: {ACCEPTED}")
    known = {field.name: tree[field.name] for field in fields(Card) if field.name in tree}
    if isinstance(known.get("network"), str):
        try:
            known["network"] = to_tree(models.parse(known["network"]))
        except InputError as error:
            raise InputError(f"card {path}: {error}") from None
    return build(Card, _mirrored(tree) | known, f"card {path}")


def _mirrored(tree: dict[str, Any]) -> dict[str, bool]:
    """Return `flip_ok` as the data config of an exported card implies it; empty if the card names no data set."""
    data = tree.get("config", {}).get("data", {}) if isinstance(tree.get("config"), dict) else {}
    if not isinstance(data, dict) or "name" not in data:
        return {}
    flip_ok = data.get("flip_ok")
    return {"flip_ok": data["name"] not in NO_FLIP if flip_ok is None else bool(flip_ok)}


def find_card(weights: Path | str | None, given: Path | str | None = None) -> Path | None:
    """Return the path `given`, else that of a .json file beside the weights with the same stem; None without either."""
    if given is not None or weights is None:
        return None if given is None else Path(given)
    file = located(Path(weights))[0]
    if not file.name:  # "" and "." name no file
        return None
    beside = file.with_suffix(".json")
    return beside if os.path.isfile(beside) else None


def known_card(weights: Path | str | None, given: Path | str | None = None) -> tuple[Path, Card] | None:
    """Return path and content of the card `given`, else of the card beside the weights; None if there is no card.

    A .json file beside the weights may be something else: if it is no valid card, a note is logged and the file
    ignored. Raises `InputError` if the card `given` is not valid.
    """
    path = find_card(weights, given)
    if path is None:
        return None
    try:
        return path, read_card(path)
    except InputError as error:
        if given is not None:
            raise
        _log_once(f"{path}, beside the weights, is not a model card and is ignored: {error}")
        return None


@cache
def _log_once(text: str) -> None:
    """Log `text`, once per process: a command builds its config, and therefore looks for the card, several times."""
    log.info(text)


def with_card(tree: Tree) -> Tree:
    """Complete the tree of a config or search space with the fields that the card and the weights determine.

    Precedence: first the tree's own values, then the card, then the network recognised by the weights' parameter names.
    Raises `InputError` if the card or the weights cannot be read.
    """
    teacher = tree.get("teacher")
    if not isinstance(teacher, Mapping):
        return tree
    weights, given = (_path(teacher, name) for name in ("weights", "card"))
    known = known_card(weights, given)
    return with_network(tree if known is None else under(*known, tree))


def _path(teacher: Mapping[str, Any], name: str) -> Path | str | None:
    """Return a path in a teacher's tree. Raises `InputError` for other values, such as a search space's leaf."""
    value = teacher.get(name)
    require(value is None or isinstance(value, (str, Path)), f"teacher.{name}", value, "the path of one file")
    return value


def with_network(tree: Tree) -> Tree:
    """Add the network recognised by its weights' parameter names, and log it, if the tree names no network."""
    teacher = tree.get("teacher")
    if not isinstance(teacher, Mapping) or not {"network", "module"}.isdisjoint(teacher):
        return tree
    weights = teacher.get("weights")
    if not isinstance(weights, (str, Path)) or not os.path.isfile(located(Path(weights))[0]):
        return tree
    known = recognised(Path(weights))
    if known is None:
        return tree
    name = models.label(known.network)
    _log_once(f"{weights} are weights of {name} (set --teacher, or teacher.network, for another network)")
    return merge(tree, {"teacher": {"network": to_tree(known.network)}})


def under(path: Path, card: Card, tree: Tree) -> Tree:
    """Complete the `tree` with the values of the card read from `path`; the tree's own values have precedence."""
    from_card, data = card.tree, tree.get("data", {})
    name = data.get("name") if isinstance(data, Mapping) else data
    if name is not None:
        # The card's values apply to any data set. Without the name, `merge` would replace them as a whole.
        from_card["data"]["name"] = name
    return merge(merge(from_card, tree), {"teacher": {"card": str(path)}})


def overruled(card: Card, tree: Tree) -> list[str]:
    """Return a sentence for each field of a complete config tree that differs from the card."""
    given, pairs = flattened(tree, "."), flattened(card.tree, ".")
    return [
        f"{name} is {given.get(name)}, as given; the card states {value}"
        for name, value in pairs.items()
        if given.get(name) != value
    ]


def check_card(path: Path, card: Card, dataset: Dataset) -> None:
    """Raise `InputError` if the images' shape, task or number of classes differs from the card's."""
    accepted = f"{card.task}, as card {path} states"
    require(card.task in (None, dataset.task), f"task of {dataset.name}", dataset.task, accepted)
    shape, known = dataset.image_shape, card.image_shape
    accepted = f"{known}, as card {path} states: images with these channels, and --size (data.size) for the side"
    require(known is None or shape == known, f"shape of the images of {dataset.name}", shape, accepted)
    count, accepted = dataset.num_classes, f"{card.num_classes}, as card {path} states"
    require(card.num_classes in (None, count), f"number of classes of {dataset.name}", count, accepted)
