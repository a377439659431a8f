"""Weights that others have trained, from a file to the teacher of an experiment."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from models import published

from condkd_ray.commands.experiment import Flags
from condkd_ray.core.method import InputError
from condkd_ray.methods.supervised import TeacherConfig
from condkd_ray.models import parse
from condkd_ray.trial.artifacts import Workshop
from condkd_ray.trial.config import TrialConfig


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    network = published.trained(published.ResNet((3, 3, 3), (4, 4, 8, 16), "shortcut", "linear", pads=True))
    first = network.conv1.weight  # type: ignore[union-attr]
    state = network.state_dict() | {"conv1.weight": first.detach().sum(1, keepdim=True)}
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}, tmp_path / "resnet20.th")
    return tmp_path / "resnet20.th"


def test_an_experiment_takes_weights_of_others_without_being_told_what_they_are(
    theirs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    config = Flags(teacher_weights=theirs, condensation="random_real", ipcs=(1,)).base()
    assert config.teacher.network == parse("resnet:a-20-4")
    workshop = Workshop(tmp_path / "cache")
    with caplog.at_level(logging.INFO, "condkd_ray"):
        workshop.check(config)
        teacher = workshop.teacher(config)
    [told] = [line for line in caplog.messages if "weights in" in line]
    assert told.startswith(f"weights in {theirs} are read as resnet:a-20-4, named as by pytorch_resnet_cifar10, ")
    state = torch.load(theirs, weights_only=True)["state_dict"]
    assert torch.equal(teacher.network.state_dict()["classifier.weight"], state["module.linear.weight"])


def test_a_config_that_names_another_network_is_refused_with_the_right_spelling(theirs: Path, tmp_path: Path):
    workshop = Workshop(tmp_path / "cache")
    for network in ("resnet-20-4", "resnet-14-4"):
        asked = TrialConfig(teacher=TeacherConfig(network=parse(network), weights=theirs))
        with pytest.raises(InputError, match=r"they are those of resnet:a-20-4, named as by pytorch_resnet_cifar10"):
            workshop.check(asked)
    flags = Flags(teacher="resnet-20-4", teacher_weights=theirs)
    assert flags.base().teacher.network == parse("resnet-20-4")


def test_teachers_of_one_file_are_told_apart_by_their_key(tmp_path: Path):
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
