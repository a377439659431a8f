"""What stands beside a teacher's weights."""

import json
from pathlib import Path

import pytest

from condkd_ray.commands.model_card import Card, read_card
from condkd_ray.core.method import InputError
from condkd_ray.models import ResNet


def write(path: Path, tree: object) -> Path:
    path.write_text(json.dumps(tree))
    return path


def test_an_exported_card_tells_the_network_and_whether_images_are_mirrored(tmp_path: Path):
    tree = {
        "network": {"name": "resnet", "depth": 8, "width": 4},
        "num_classes": 10,
        "image_shape": [1, 8, 8],
        "mean": [0.3],
        "std": [0.4],
        "test_accuracy": 0.9,
        "config": {"data": {"name": "digits", "flip_ok": None}},
    }
    card = read_card(write(tmp_path / "card.json", tree))
    assert card == Card(ResNet(depth=8, width=4), 10, (1, 8, 8), (0.3,), (0.4,), False)
    tree["config"] = {"data": {"name": "cifar10", "flip_ok": None}}
    assert read_card(write(tmp_path / "card.json", tree)).flip_ok is True
    tree["flip_ok"] = False
    assert read_card(write(tmp_path / "card.json", tree)).flip_ok is False


def test_a_card_of_ones_own_may_tell_little_and_spell_the_network(tmp_path: Path):
    card = read_card(write(tmp_path / "card.json", {"network": "resnet-8-4", "notes": "mine"}))
    assert card == Card(network=ResNet(depth=8, width=4))


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ([1], "holds a list"),
        ({"network": "resnext"}, "network is 'resnext'"),
        ({"num_classes": "many"}, "num_classes is 'many'"),
        ({"mean": "grey"}, "mean is 'grey'"),
    ],
)
def test_what_is_no_card_is_refused(tmp_path: Path, tree: object, said: str):
    with pytest.raises(InputError, match=said):
        read_card(write(tmp_path / "card.json", tree))


def test_a_card_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="which cannot be read"):
        read_card(tmp_path / "card.json")
