"""Model cards: what a JSON file beside weights says of them, and the config that follows from it.

`condkd export` writes such a card; one of a user's own may tell as little as it likes.
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
from condkd_ray.data.datasets import NO_FLIP, Dataset
from condkd_ray.models import AnyNetwork
from condkd_ray.models.weights import located, recognised

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Card:
    """What a file like `student.json`, beside weights, says of them; None where it does not."""

    network: AnyNetwork | None = None
    num_classes: int | None = None
    image_shape: tuple[int, int, int] | None = None
    """(C, H, W)."""
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    """Of the normalisation, a channel, in units of [0, 1] pixels."""
    flip_ok: bool | None = None
    """Whether a mirrored image keeps its class."""
    test_accuracy: float | None = None
    """The fraction of its test images that the network names right."""

    def __post_init__(self) -> None:
        require((self.mean is None) == (self.std is None), "mean, std", (self.mean, self.std), "both or none")
        share = self.test_accuracy
        require(share is None or 0 <= share <= 1, "test_accuracy", share, "a fraction, 0 to 1")

    @property
    def tree(self) -> Tree:
        """The fields of a `TrialConfig` that it tells."""
        data: Tree = {"mean": self.mean, "std": self.std, "flip_ok": self.flip_ok}
        if self.image_shape is not None:
            _, height, width = self.image_shape
            data["size"] = height if height == width else None
        tree: Tree = {"data": {name: to_tree(value) for name, value in data.items() if value is not None}}
        return tree | ({} if self.network is None else {"teacher": {"network": to_tree(self.network)}})


ACCEPTED = f"JSON with any of {', '.join(field.name for field in fields(Card))}, as `condkd export` writes it"


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Raises `ValueError` where a key stands twice: which is meant nobody knows."""
    names = [name for name, _ in pairs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"the key {twice!r} stands twice")
    return dict(pairs)


def read_card(path: Path) -> Card:
    """The card in a JSON file; what else stands there is not read. Raises `InputError` for what it cannot be."""
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
    """`flip_ok` where an exported card tells it by the data that its network was taught for."""
    data = tree.get("config", {}).get("data", {}) if isinstance(tree.get("config"), dict) else {}
    if not isinstance(data, dict) or "name" not in data:
        return {}
    told = data.get("flip_ok")
    return {"flip_ok": data["name"] not in NO_FLIP if told is None else bool(told)}


def find_card(weights: Path | str | None, given: Path | str | None = None) -> Path | None:
    """The card `given`, or the .json of the same name beside the weights where there is one."""
    if given is not None or weights is None:
        return None if given is None else Path(given)
    file = located(Path(weights))[0]
    if not file.name:  # as of "" and ".", which are no file
        return None
    beside = file.with_suffix(".json")
    return beside if os.path.isfile(beside) else None


def known_card(weights: Path | str | None, given: Path | str | None = None) -> tuple[Path, Card] | None:
    """Where the card `given` lies, or else that beside the weights, and what it says; None where there is none.

    A .json beside the weights may be anything: one that cannot be read as a card is told of and left alone. Raises
    `InputError` for a given card that cannot be read.
    """
    path = find_card(weights, given)
    if path is None:
        return None
    try:
        return path, read_card(path)
    except InputError as error:
        if given is not None:
            raise
        _tell_once(f"{path}, beside the weights, is no card and is not read: {error}")
        return None


@cache
def _tell_once(text: str) -> None:
    """One command makes its config, and so looks for the card, several times."""
    log.info(text)


def with_card(tree: Tree) -> Tree:
    """The tree of a config, or of a search space, over what is known of its teacher's weights.

    What the tree gives itself goes before the card, if there is one, and that before the network of which the weights
    have the names. Raises `InputError` for a card or weights that cannot be read.
    """
    teacher = tree.get("teacher")
    if not isinstance(teacher, Mapping):
        return tree
    weights, given = (_path(teacher, name) for name in ("weights", "card"))
    known = known_card(weights, given)
    return with_network(tree if known is None else under(*known, tree))


def _path(teacher: Mapping[str, Any], name: str) -> Path | str | None:
    """A path of a teacher's tree. Raises `InputError` for anything else, an open leaf of a search space too."""
    value = teacher.get(name)
    require(value is None or isinstance(value, (str, Path)), f"teacher.{name}", value, "the path of one file")
    return value


def with_network(tree: Tree) -> Tree:
    """The tree with the network of which its teacher's weights have the names, told, where it names none itself."""
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
    _tell_once(f"{weights} are weights of {name} (--teacher, or teacher.network, names another)")
    return merge(tree, {"teacher": {"network": to_tree(known.network)}})


def under(path: Path, card: Card, tree: Tree) -> Tree:
    """The `tree` over what the card tells that was read from `path`."""
    told, data = card.tree, tree.get("data", {})
    name = data.get("name") if isinstance(data, Mapping) else data
    if name is not None:
        # What it tells holds for any data; without their name these would replace it whole.
        told["data"]["name"] = name
    return merge(merge(told, tree), {"teacher": {"card": str(path)}})


def overruled(card: Card, tree: Tree) -> list[str]:
    """A sentence for each field in which the complete tree of a config is other than its card says."""
    given, pairs = flattened(tree, "."), flattened(card.tree, ".")
    return [
        f"{name} is {given.get(name)}, as given; the card says {value}"
        for name, value in pairs.items()
        if given.get(name) != value
    ]


def check_card(path: Path, card: Card, dataset: Dataset) -> None:
    """Raise `InputError` where the images have another shape, or another number of classes, than the card says."""
    shape, known = dataset.image_shape, card.image_shape
    accepted = f"{known}, of which card {path} tells: images of these channels, and --size (data.size) for the side"
    require(known is None or shape == known, f"shape of the images of {dataset.name}", shape, accepted)
    count, accepted = dataset.num_classes, f"{card.num_classes}, as card {path} tells"
    require(card.num_classes in (None, count), f"number of classes of {dataset.name}", count, accepted)
