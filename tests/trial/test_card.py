"""Cards beside weights: what is read of them, what a config takes of them, and what the data contradict."""

import json
import logging
import re
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
    assert card == Card(ResNet(depth=8, width=4), 10, (1, 8, 8), (0.3,), (0.4,), False, 0.9)
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
        ({"mean": [0.5]}, "mean, std is ((0.5,), None); accepted: both or none"),
        ({"test_accuracy": 91.6}, "test_accuracy is 91.6; accepted: a fraction, 0 to 1"),
    ],
)
def test_what_is_no_card_is_refused(tmp_path: Path, tree: object, said: str):
    with pytest.raises(InputError, match=re.escape(said)):
        read_card(write(tmp_path / "card.json", tree))


def test_a_card_with_a_key_twice_is_refused(tmp_path: Path):
    (tmp_path / "card.json").write_text('{"std": [0.5], "std": [0.1]}', encoding="utf-8")
    with pytest.raises(InputError, match=r"cannot be read \(the key 'std' occurs twice\); accepted: JSON"):
        read_card(tmp_path / "card.json")


def test_a_card_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="which cannot be read"):
        read_card(tmp_path / "card.json")


def test_the_card_beside_the_weights_is_found_and_another_goes_before_it(tmp_path: Path):
    weights = tmp_path / "teacher.pt"
    assert find_card(weights) is None
    beside = write(tmp_path / "teacher.json", {})
    assert find_card(weights) == beside
    assert find_card(str(weights), "other.json") == Path("other.json")
    assert find_card(None) is None


def test_a_config_takes_what_its_card_tells_where_it_says_nothing_itself(tmp_path: Path):
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


@pytest.mark.parametrize("data", [{"name": "digits"}, {"name": "digits", "val_fraction": 0.0}, "digits", {}])
def test_a_card_lies_under_data_of_any_name(tmp_path: Path, data: object):
    write(tmp_path / "teacher.json", to_tree(CARD))
    config = from_tree(with_card({"teacher": {"weights": str(tmp_path / "teacher.pt")}, "data": data}))
    assert (config.data.name, config.data.mean, config.data.std, config.data.size) == ("digits", (0.3,), (0.4,), 8)


def test_a_config_without_weights_or_without_a_card_stays_as_it_is(tmp_path: Path):
    write(tmp_path / "teacher.json", to_tree(CARD))
    for tree in ({}, {"teacher": {"seed": 1}}, {"teacher": {"weights": str(tmp_path / "other.pt")}}):
        assert with_card(tree) is tree
    assert from_tree({}) == TrialConfig()


@pytest.mark.parametrize(
    ("card", "said"),
    [
        (
            Card(image_shape=(3, 8, 8)),
            "shape of the images of digits is (1, 8, 8); accepted: (3, 8, 8), as card c.json states",
        ),
        (Card(image_shape=(1, 28, 28)), "shape of the images of digits is (1, 8, 8); accepted: (1, 28, 28)"),
        (Card(num_classes=100), "number of classes of digits is 10; accepted: 100, as card c.json states"),
    ],
)
def test_what_the_data_contradict_is_refused(card: Card, said: str):
    data = load(DataConfig(name="digits"))
    check_card(Path("c.json"), CARD, data)
    with pytest.raises(InputError, match=re.escape(said)):
        check_card(Path("c.json"), card, data)


@pytest.mark.parametrize("weights", ["", ".", "/"])
def test_weights_that_are_no_file_have_no_card(weights: str):
    assert find_card(weights) is None
    assert with_card({"teacher": {"weights": weights}}) == {"teacher": {"weights": weights}}


@pytest.mark.parametrize(("name", "value"), [("weights", 5), ("weights", [1]), ("card", 3), ("weights", {"a": 1})])
def test_paths_that_are_none_are_refused(name: str, value: object):
    with pytest.raises(InputError, match=re.escape(f"teacher.{name} is {value!r}; accepted: the path of one file")):
        with_card({"teacher": {name: value}})


def test_an_open_choice_of_weights_is_refused():
    said = "teacher.weights is !choice ['a.pt', 'b.pt']; accepted: the path of one file"
    with pytest.raises(InputError, match=re.escape(said)):
        with_card(parse("teacher: {weights: !choice [a.pt, b.pt]}"))


@pytest.mark.parametrize("text", ["[1]", "{", '{"network": "resnext"}', "[" * 100_000])
def test_another_json_beside_the_weights_is_told_of_and_not_read(tmp_path: Path, text: str, caplog):
    (tmp_path / "teacher.json").write_text(text)
    tree = {"teacher": {"weights": str(tmp_path / "teacher.pt")}}
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            assert with_card(tree) == tree
    [told] = caplog.messages
    assert told.startswith(
        f"{tmp_path / 'teacher.json'}, beside the weights, is not a model card and is ignored: card "
    )
    given = {"teacher": {"weights": str(tmp_path / "teacher.pt"), "card": str(tmp_path / "teacher.json")}}
    with pytest.raises(InputError, match=re.escape(str(tmp_path / "teacher.json"))):
        with_card(given)
