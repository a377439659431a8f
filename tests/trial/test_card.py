"""Cards beside weights: reading them, their values in a config, and contradictions with the data."""

import json
import logging
import re
from dataclasses import replace
from pathlib import Path

import pytest

from condkd_ray.core.config import to_tree
from condkd_ray.core.method import InputError
from condkd_ray.data.datasets import DataConfig, load
from condkd_ray.models import ResNet
from condkd_ray.study.space import parse
from condkd_ray.trial.card import Card, check_card, find_card, overruled, read_card, with_card
from condkd_ray.trial.config import TrialConfig, from_tree

CARD = Card(ResNet(depth=8, width=4), 10, (1, 8, 8), (0.3,), (0.4,), False, 0.9)


def write(path: Path, tree: object) -> Path:
    path.write_text(json.dumps(tree))
    return path


def test_an_exported_card_is_read_and_flip_ok_is_that_of_its_data_set(tmp_path: Path):
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
    assert card == Card(ResNet(depth=8, width=4), 10, (1, 8, 8), (0.3,), (0.4,), False, 0.9)
    tree["config"] = {"data": {"name": "cifar10", "flip_ok": None}}
    assert read_card(write(tmp_path / "card.json", tree)).flip_ok is True
    tree["flip_ok"] = False
    assert read_card(write(tmp_path / "card.json", tree)).flip_ok is False


def test_a_users_card_may_be_partial_and_name_the_network_by_its_label(tmp_path: Path):
    card = read_card(write(tmp_path / "card.json", {"network": "resnet-8-4", "notes": "mine"}))
    assert card == Card(network=ResNet(depth=8, width=4))


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ([1], "holds a list"),
        ({"network": "resnext"}, "network is 'resnext'"),
        ({"num_classes": "many"}, "num_classes is 'many'"),
        ({"mean": "grey"}, "mean is 'grey'"),
        ({"mean": [0.5]}, "mean, std is ((0.5,), None); accepted: both or none"),
        ({"test_accuracy": 91.6}, "test_accuracy is 91.6; accepted: a fraction, 0 to 1"),
    ],
)
def test_invalid_cards_are_refused(tmp_path: Path, tree: object, expected: str):
    with pytest.raises(InputError, match=re.escape(expected)):
        read_card(write(tmp_path / "card.json", tree))


def test_a_card_with_a_key_twice_is_refused(tmp_path: Path):
    (tmp_path / "card.json").write_text('{"std": [0.5], "std": [0.1]}', encoding="utf-8")
    with pytest.raises(InputError, match=r"cannot be read \(the key 'std' occurs twice\); accepted: JSON"):
        read_card(tmp_path / "card.json")


def test_a_missing_card_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="which cannot be read"):
        read_card(tmp_path / "card.json")


def test_the_card_beside_the_weights_is_found_unless_another_is_given(tmp_path: Path):
    weights = tmp_path / "teacher.pt"
    assert find_card(weights) is None
    beside = write(tmp_path / "teacher.json", {})
    assert find_card(weights) == beside
    assert find_card(str(weights), "other.json") == Path("other.json")
    assert find_card(None) is None


def test_a_config_takes_from_its_card_the_values_that_it_does_not_set(tmp_path: Path):
    write(tmp_path / "teacher.json", to_tree(CARD))
    teacher = {"weights": str(tmp_path / "teacher.pt")}
    config = from_tree(with_card({"teacher": teacher}))
    assert config.teacher.network == CARD.network
    assert config.teacher.card == tmp_path / "teacher.json"
    assert (config.data.mean, config.data.std, config.data.size, config.data.flip_ok) == ((0.3,), (0.4,), 8, False)
    assert overruled(CARD, to_tree(config)) == []
    own = {"teacher": teacher, "data": {"mean": [0.5], "std": [0.5], "flip_ok": True}}
    config = from_tree(with_card(own))
    assert (config.data.mean, config.data.size, config.data.flip_ok) == ((0.5,), 8, True)
    assert overruled(CARD, to_tree(config)) == [
        "data.mean is [0.5], as given; the card states [0.3]",
        "data.std is [0.5], as given; the card states [0.4]",
        "data.flip_ok is True, as given; the card states False",
    ]


def test_the_size_of_a_card_may_be_height_and_width(tmp_path: Path):
    card = replace(CARD, image_shape=(1, 8, 12))
    write(tmp_path / "teacher.json", to_tree(card))
    config = from_tree(with_card({"teacher": {"weights": str(tmp_path / "teacher.pt")}}))
    assert config.data.size == (8, 12)
    assert overruled(card, to_tree(config)) == []


@pytest.mark.parametrize("data", [{"name": "digits"}, {"name": "digits", "val_fraction": 0.0}, "digits", {}])
def test_the_values_of_a_card_are_used_with_data_given_in_any_form(tmp_path: Path, data: object):
    write(tmp_path / "teacher.json", to_tree(CARD))
    config = from_tree(with_card({"teacher": {"weights": str(tmp_path / "teacher.pt")}, "data": data}))
    assert (config.data.name, config.data.mean, config.data.std, config.data.size) == ("digits", (0.3,), (0.4,), 8)


def test_a_config_without_weights_or_without_a_card_does_not_change(tmp_path: Path):
    write(tmp_path / "teacher.json", to_tree(CARD))
    for tree in ({}, {"teacher": {"seed": 1}}, {"teacher": {"weights": str(tmp_path / "other.pt")}}):
        assert with_card(tree) is tree
    assert from_tree({}) == TrialConfig()


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        (
            Card(image_shape=(3, 8, 8)),
            "shape of the images of digits is (1, 8, 8); accepted: (3, 8, 8), as card c.json states",
        ),
        (Card(image_shape=(1, 28, 28)), "shape of the images of digits is (1, 8, 8); accepted: (1, 28, 28)"),
        (Card(num_classes=100), "number of classes of digits is 10; accepted: 100, as card c.json states"),
    ],
)
def test_a_card_that_contradicts_the_data_is_refused(card: Card, expected: str):
    data = load(DataConfig(name="digits"))
    check_card(Path("c.json"), CARD, data)
    with pytest.raises(InputError, match=re.escape(expected)):
        check_card(Path("c.json"), card, data)


@pytest.mark.parametrize("score", ["test_accuracy", "test_miou"])
def test_a_score_that_is_no_fraction_is_refused(score: str):
    with pytest.raises(InputError, match=f"{score} is 50.0; accepted: a fraction, 0 to 1"):
        Card(**{score: 50.0})


def test_a_card_of_another_task_is_refused(tmp_path: Path):
    card = read_card(write(tmp_path / "net.json", {"task": "segmentation", "test_miou": 0.4, "class_names": ["a"]}))
    assert card.test_miou == 0.4
    with pytest.raises(InputError, match=r"task of digits is 'classification'; accepted: segmentation, as card"):
        check_card(Path("c.json"), card, load(DataConfig(name="digits")))


@pytest.mark.parametrize("weights", ["", ".", "/"])
def test_weights_that_are_no_file_have_no_card(weights: str):
    assert find_card(weights) is None
    assert with_card({"teacher": {"weights": weights}}) == {"teacher": {"weights": weights}}


@pytest.mark.parametrize(("name", "value"), [("weights", 5), ("weights", [1]), ("card", 3), ("weights", {"a": 1})])
def test_values_that_are_no_paths_are_refused(name: str, value: object):
    with pytest.raises(InputError, match=re.escape(f"teacher.{name} is {value!r}; accepted: the path of one file")):
        with_card({"teacher": {name: value}})


def test_an_open_choice_of_weights_is_refused():
    expected = "teacher.weights is !choice ['a.pt', 'b.pt']; accepted: the path of one file"
    with pytest.raises(InputError, match=re.escape(expected)):
        with_card(parse("teacher: {weights: !choice [a.pt, b.pt]}"))


@pytest.mark.parametrize("text", ["[1]", "{", '{"network": "resnext"}', "[" * 100_000])
def test_another_json_file_beside_the_weights_is_logged_and_ignored(tmp_path: Path, text: str, caplog):
    (tmp_path / "teacher.json").write_text(text)
    tree = {"teacher": {"weights": str(tmp_path / "teacher.pt")}}
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            assert with_card(tree) == tree
    [message] = caplog.messages
    assert message.startswith(
        f"{tmp_path / 'teacher.json'}, beside the weights, is not a model card and is ignored: card "
    )
    given = {"teacher": {"weights": str(tmp_path / "teacher.pt"), "card": str(tmp_path / "teacher.json")}}
    with pytest.raises(InputError, match=re.escape(str(tmp_path / "teacher.json"))):
        with_card(given)
