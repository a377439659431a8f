"""Weight files from other sources as the teacher of an experiment."""

import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from data.image_files import write_folder
from models import published
from optuna.trial import FixedTrial

from condkd_ray.commands.experiment import Flags
from condkd_ray.commands.search import SearchFlags, with_flags
from condkd_ray.commands.try_teacher import Try, configure, try_out
from condkd_ray.core.method import InputError
from condkd_ray.methods.supervised import TeacherConfig
from condkd_ray.models import parse
from condkd_ray.runs.arms import arm, spread
from condkd_ray.study.space import close, default, leaves
from condkd_ray.study.space import parse as parse_space
from condkd_ray.trial.artifacts import Workshop
from condkd_ray.trial.config import TrialConfig


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    network = published.trained(published.ResNet((3, 3, 3), (4, 4, 8, 16), "shortcut", "linear", pads=True))
    first = network.conv1.weight  # type: ignore[union-attr]
    state = network.state_dict() | {"conv1.weight": first.detach().sum(1, keepdim=True)}
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}, tmp_path / "resnet20.th")
    return tmp_path / "resnet20.th"


def test_the_network_of_a_foreign_weight_file_is_recognised(
    theirs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    config = Flags(teacher_weights=theirs, force_teacher=True, condensation="random_real", ipcs=(1,)).base()
    assert config.teacher.network == parse("resnet:a-20-4")
    workshop = Workshop(tmp_path / "cache")
    with caplog.at_level(logging.INFO, "condkd_ray"):
        workshop.check(config)
        teacher = workshop.teacher(config)
    [message] = [line for line in caplog.messages if "weights in" in line]
    assert message.startswith(
        f"weights in {theirs} are read as resnet:a-20-4, with names used by pytorch_resnet_cifar10, "
    )
    state = torch.load(theirs, weights_only=True)["state_dict"]
    assert torch.equal(teacher.network.state_dict()["classifier.weight"], state["module.linear.weight"])


def test_the_network_is_found_in_a_lightning_checkpoint(theirs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    state = torch.load(theirs, weights_only=True)["state_dict"]
    beside = {"criterion.weight": torch.ones(10), "loss.centers": torch.ones(10, 4), "train_acc.correct": torch.ones(3)}
    content = {f"model.{name}": value for name, value in state.items()} | beside
    path = tmp_path / "last.ckpt"
    torch.save({"epoch": 3, "state_dict": content, "hyper_parameters": {"lr": 0.1}}, path)
    config = Flags(teacher_weights=path, force_teacher=True, condensation="random_real", ipcs=(1,)).base()
    assert config.teacher.network == parse("resnet:a-20-4")
    workshop = Workshop(tmp_path / "cache")
    with caplog.at_level(logging.INFO, "condkd_ray"):
        teacher = workshop.teacher(config)
    assert torch.equal(teacher.network.state_dict()["classifier.weight"], state["module.linear.weight"])
    message = f"weights in {path} are read from 'state_dict/model' (left out: {', '.join(beside)})"
    assert message in caplog.messages


def test_a_config_that_names_another_network_is_refused_with_the_right_name(theirs: Path, tmp_path: Path):
    workshop = Workshop(tmp_path / "cache")
    for network in ("resnet-20-4", "resnet-14-4"):
        config = TrialConfig(teacher=TeacherConfig(network=parse(network), weights=theirs))
        with pytest.raises(InputError, match=r"they are weights of resnet:a-20-4, with names used by pytorch"):
            workshop.check(config)
    flags = Flags(teacher="resnet-20-4", teacher_weights=theirs)
    assert flags.base().teacher.network == parse("resnet-20-4")


def test_a_key_selects_a_teacher_in_a_file(tmp_path: Path):
    network, path = parse("resnet-8-4"), tmp_path / "w.pt"
    first, second = (network.build((1, 8, 8), 10).state_dict() for _ in range(2))
    torch.save({"model": first, "ema": second}, path)
    workshop, base = Workshop(tmp_path / "cache"), TrialConfig()
    teachers = [
        workshop.teacher(replace(base, teacher=TeacherConfig(network=network, weights=Path(f"{path}#{key}"))))
        for key in ("model", "ema")
    ]
    for teacher, state in zip(teachers, (first, second), strict=True):
        assert torch.equal(teacher.network.state_dict()["conv.weight"], state["conv.weight"])


NETS = """
from torch import nn

def teacher():
    return nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 10))
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name `module:function` of a teacher in the working directory."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    Path("a_users_nets.py").write_text(NETS)
    yield "a_users_nets:teacher"
    sys.modules.pop("a_users_nets", None)


def test_experiments_and_searches_take_a_users_module(module: str, tmp_path: Path):
    config = Flags(teacher_module=module, force_teacher=True, condensation="random_real", ipcs=(1,)).base()
    assert config.teacher.label == module
    Workshop(tmp_path / "cache").check(config)
    space = with_flags({"teacher": {"seed": 1}, "rounds": 2}, SearchFlags(out=tmp_path / "out", teacher_module=module))
    assert space == {"teacher": {"seed": 1, "module": module}, "rounds": 2}
    assert with_flags({"rounds": 2}, SearchFlags(out=tmp_path / "out")) == {"rounds": 2}


def test_a_try_takes_a_users_module(module: str, tmp_path: Path):
    pixels = torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8)
    write_folder(tmp_path / "photos", pixels, torch.arange(40) % 10, list(map(str, range(10))))
    given = {"images": tmp_path / "photos", "out": tmp_path / "out", "cache": tmp_path / "cache"}
    known = {"mean": (0.5,), "std": (0.5,), "student": "resnet-8-2", "force_teacher": True}
    base = configure(Try(teacher_module=module, **given, **known), Workshop(tmp_path / "cache"))  # type: ignore[arg-type]
    assert base.teacher == TeacherConfig(module=module, force=True)
    with pytest.raises(InputError, match=r"--teacher-weights is None; accepted: .*; or --teacher-module"):
        try_out(Try(**given))  # type: ignore[arg-type]


def test_several_teachers_of_one_function_are_refused(module: str):
    flags = Flags(teacher_module=module, seeds=(0, 1), condensation="random_real", ipcs=(1,))
    plans = [arm(flags.base(), "mixed", 1, seed) for seed in (0, 1)]
    with pytest.raises(InputError, match=r"--teachers with --teacher-module a_users_nets:teacher is 2; accepted: 1, "):
        spread(plans, (0, 1), 2)


def test_flags_extend_data_that_are_given_by_name(tmp_path: Path):
    flags = SearchFlags(out=tmp_path / "out", mean=(0.1,), std=(0.2,))
    assert with_flags({"data": "mnist"}, flags) == {"data": {"name": "mnist", "mean": [0.1], "std": [0.2]}}
    assert with_flags({"rounds": 2}, flags)["data"] == {"mean": [0.1], "std": [0.2]}


@pytest.mark.parametrize(
    "part", ["data: !choice [digits, mnist]", "data: [digits]", "data:", "teacher: !choice [{name: a}]"]
)
def test_flags_for_a_part_that_is_an_open_leaf_are_refused(tmp_path: Path, part: str):
    flags = SearchFlags(out=tmp_path / "out", mean=(0.1,), std=(0.2,), force_teacher=True)
    with pytest.raises(InputError, match=r"^(data|teacher) of the search space is .*; accepted: a mapping or a name"):
        with_flags(parse_space(part), flags)
    assert with_flags(parse_space(part), SearchFlags(out=tmp_path / "out")) == parse_space(part)


@pytest.mark.parametrize(("given", "why"), [("", "a folder"), (".", "a folder"), ("none.pt", "no such file")])
def test_weights_that_are_no_file_are_refused_with_their_flag(tmp_path, given, why):
    flags = SearchFlags(out=tmp_path / "out", teacher_weights=Path(given))
    message = (
        rf"^--teacher-weights is '{given or '.'}', which cannot be read \({why}\); accepted: a safetensors file, or"
    )
    for use in (
        lambda: with_flags({"rounds": 2}, flags),
        lambda: Flags(teacher_weights=Path(given)).base(),
        lambda: try_out(Try(images=tmp_path, teacher_weights=Path(given), out=tmp_path / "out")),
    ):
        with pytest.raises(InputError, match=message):
            use()
    assert not (tmp_path / "out").exists()


CHOICE = "!choice [digits, {name: mnist, mean: [0.5], std: [0.5]}, {name: class_folders, root: photos}]"


def test_each_data_set_of_an_open_choice_overrides_the_card(tmp_path):
    card = {"network": "resnet-8-4", "mean": [0.3], "std": [0.4], "flip_ok": False, "image_shape": [1, 8, 8]}
    (tmp_path / "w.json").write_text(json.dumps(card))
    (tmp_path / "w.pt").write_bytes(b"")
    flags = SearchFlags(out=tmp_path / "out", teacher_weights=tmp_path / "w.pt")
    space = parse_space(f"data: {CHOICE}")
    tree = with_flags(space, flags)
    names = ("digits", "mnist", "class_folders")
    digits, mnist, folders = (close(tree, FixedTrial({"data/name": name})) for name in names)
    for config in (digits, folders, default(tree)):
        assert (config.data.mean, config.data.std, config.data.size) == ((0.3,), (0.4,), 8)
        assert config.data.flip_ok is False
        assert (config.teacher.network.width, config.teacher.card) == (4, tmp_path / "w.json")
    # Fields of the data set have precedence over the card.
    assert (mnist.data.mean, mnist.data.std, mnist.data.size) == ((0.5,), (0.5,), 8)
    assert folders.data.root == Path("photos")
    # Open leaves of a data set stay open, and a data set given by its name is treated as one with fields.
    nested = with_flags(parse_space("data: !choice [digits, {name: mnist, val_fraction: !uniform [0, 0.5]}]"), flags)
    assert leaves(nested).keys() == {"data/name", "data/val_fraction"}
    assert with_flags(parse_space("data: {name: !choice [digits, mnist]}"), flags)["data"]["mean"] == [0.3]
    # A card without facts about data does not change the choice.
    (tmp_path / "w.json").write_text(json.dumps({"network": "resnet-8-4"}))
    assert with_flags(space, flags)["data"] == space["data"]
