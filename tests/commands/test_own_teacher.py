"""A user's own teacher in every command that takes one.

A faulty teacher is refused before anything is written; a forced one is used, and its fault is logged.
"""

import json
import re
import runpy
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from places import EXPERIMENTS
from safetensors.torch import save_file
from torch import nn

from condkd_ray import __main__, api
from condkd_ray.commands.experiment import Flags
from condkd_ray.core.method import InputError
from condkd_ray.core.records import read_manifest, read_records
from condkd_ray.core.rng import Streams
from condkd_ray.data.datasets import DataConfig, load
from condkd_ray.methods.supervised import Supervised, TeacherConfig
from condkd_ray.models import ResNet
from condkd_ray.trial.config import read

TRIAL = """
teacher: {network: {name: resnet, depth: 8, width: 8}}
student: {name: resnet, depth: 8, width: 2}
condensation: {name: random_real, ipc: 1}
inversion: {name: fast, steps: 1, batch: 16, latent: 16, width: 8}
distiller: {steps: 1, batch: 16, condensed_share: 0.25}
rounds: 1
"""
SPACE = TRIAL.replace("steps: 1, batch: 16, latent", "steps: 1, bn_weight: !log_uniform [0.1, 10], batch: 16, latent")
OF_TEACHER = TRIAL.replace("{name: random_real, ipc: 1}", "{name: squeeze_recover, squeeze: teacher, ipc: 1}")
ORDER = (3, 0, 9, 1, 5, 4, 8, 2, 7, 6)


def save(module: nn.Module, path: Path, **card: object) -> None:
    save_file({name: tensor.contiguous() for name, tensor in module.state_dict().items()}, path)
    if card:
        path.with_suffix(".json").write_text(json.dumps(card))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with weights of digits (good ones with and without a card, one file per fault), a trial and a space."""
    home, digits = tmp_path_factory.mktemp("teachers"), load(DataConfig(name="digits"))
    (home / "trial.yaml").write_text(TRIAL)
    (home / "space.yaml").write_text(SPACE)
    (home / "set.yaml").write_text(OF_TEACHER)
    with Streams(0).forked("init/teacher"):
        network = ResNet(depth=8, width=8).build(digits.image_shape, 10)
    # The teacher is trained on grey values of 0 to 255, not with the default constants of digits.
    about = {"mean": (0.0,), "std": (1 / 255,)}
    recipe = about | {"flip_ok": False, "rng": Streams(0)}
    Supervised(epochs=8).train(network, digits.train.pixels, digits.train.labels, **recipe)
    save(network, home / "good.safetensors")
    known = {"num_classes": 10, "image_shape": [1, 8, 8], "test_accuracy": 0.96}
    save(network, home / "carded.safetensors", network="resnet-8-8", **about, **known)
    save(network, home / "classes.safetensors", network="resnet-8-8", **about, num_classes=100)
    save(network, home / "colour.safetensors", network="resnet-8-8", image_shape=[3, 8, 8])
    with torch.no_grad():
        last, rows = network.classifier, torch.tensor(ORDER)
        last.weight.copy_(last.weight[rows])
        last.bias.copy_(last.bias[rows])
    save(network, home / "order.safetensors")
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
    save(network, home / "fresh.safetensors")
    save(ResNet(depth=8, width=8).build(digits.image_shape, 10), home / "untrained.safetensors")
    return home


Run = Callable[..., int]


@pytest.fixture(params=["train", "search", "ablation", "condense"])
def program(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def call(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A function that runs a program with a teacher and facts about it as flags; it returns the exit code."""

    def call(program: str, weights: str, **about: object) -> int:
        of_config = program in ("train", "condense")
        spelled = {"mean": "data.mean", "std": "data.std", "card": "teacher.card"}
        spelled |= {"class-order": "teacher.class-order", "force-teacher": "teacher.force"}
        flags: list[object] = [f"--teacher{'.' if of_config else '-'}weights", home / f"{weights}.safetensors"]
        for name, value in about.items():
            name = name.replace("_", "-")
            values = value if isinstance(value, tuple) else () if value is True else (value,)
            flags += [f"--{spelled.get(name, name) if of_config else name}", *values]
        out = tmp_path / ("set.parquet" if program == "condense" else "out")
        flags += ["--out", out, "--cache", tmp_path / "cache"]
        first = {
            "train": ["condkd", "train", home / "trial.yaml"],
            "search": ["condkd", "search", home / "space.yaml", "--trials", 1],
            "condense": ["condkd", "condense", home / "set.yaml"],
            "ablation": ["ablate_ipc", "--teacher", "resnet-8-8", "--config", home / "trial.yaml"],
        }[program]
        if program == "ablation":
            first += ["--ipcs", 1, "--seeds", 0, "--arms", "condensed_only", "--no-reference"]
        monkeypatch.setattr(sys, "argv", list(map(str, [*first, *flags])))
        script = partial(runpy.run_path, str(EXPERIMENTS / "ablate_ipc.py"), run_name="__main__")
        run = script if program == "ablation" else __main__.main
        with pytest.raises(SystemExit) as ended:
            run()
        return int(ended.value.code or 0)

    return call


GOOD = {"mean": 0, "std": 1 / 255}
BETTER = (
    "another --mean and --std than it was trained with: with --mean 0 --std 0.00392157 (data.mean, data.std) it wou"
)
FAULTS = [
    ("order", GOOD, f"in the order {', '.join(map(str, ORDER))} it would be 0.9"),
    ("order", GOOD, f"--class-order {' '.join(map(str, ORDER))} (teacher.class_order)"),
    ("fresh", GOOD, "its BN layers have untrained statistics"),
    ("untrained", GOOD, "its BN layers have untrained statistics"),
    ("good", {}, BETTER),
    ("good", {"mean": 0, "std": 1}, BETTER),
    ("carded", {"mean": 0, "std": 1}, BETTER),
    ("classes", {}, "number of classes of digits is 10; accepted: 100, as card"),
    ("colour", {}, "shape of the images of digits is (1, 8, 8); accepted: (3, 8, 8), as card"),
    ("good", {"card": "none.json"}, "card is 'none.json', which cannot be read"),
    (
        "good",
        {"class_order": (0, 1, 2)},
        "--class-order (teacher.class_order) is '0 1 2'; accepted: each of 0, 1, 2",
    ),
]


@pytest.mark.parametrize(("weights", "about", "fault"), FAULTS, ids=[f"{w} {fault[:20]}" for w, _, fault in FAULTS])
def test_a_faulty_teacher_is_refused_before_anything_is_written(
    program: str, weights: str, about: dict, fault: str, call: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert call(program, weights, **about) == 2
    errors = capsys.readouterr().err.splitlines()
    assert errors[-1].startswith("error: ")
    assert fault in errors[-1]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("weights", "about", "pattern"),
    [
        ("good", GOOD, r"^the teacher classifies 9\d\.\d% of 970 images of digits correctly \(95 % interval 9.*%\)$"),
        ("carded", {}, r"^the teacher classifies 9\d.*%\); its card states 96\.0%$"),
        ("order", GOOD | {"class_order": ORDER}, r"^the teacher classifies 9\d\.\d% of 970"),
        ("order", GOOD | {"force_teacher": True}, "^taken by force: teacher's accuracy on 970 images of digits is 0.0"),
        ("fresh", GOOD | {"force_teacher": True}, "^taken by force: .* untrained statistics"),
    ],
)
def test_a_good_or_forced_teacher_runs_with_one_note(
    weights: str, about: dict, pattern: str, call: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert call("train", weights, **about) == 0
    errors = capsys.readouterr().err
    assert len(re.findall(pattern, errors, re.MULTILINE)) == 1, errors
    assert errors.count("card of the teacher: ") == (weights == "carded")
    note = read_manifest(tmp_path / "out").notes[0]
    assert re.search(pattern.strip("^$"), note[0].lower() + note[1:].removesuffix("."))
    (record,) = read_records(tmp_path / "out")
    assert record.config["data"]["mean"] == [0.0]


def test_flags_of_an_experiment_become_a_config_over_the_card(home: Path):
    config = Flags(teacher_weights=home / "carded.safetensors").base()
    assert (config.teacher.network, config.teacher.card) == (ResNet(depth=8, width=8), home / "carded.json")
    assert (config.data.mean, config.data.std, config.data.size) == ((0.0,), (1 / 255,), 8)
    given = {"teacher": "resnet-8-4", "mean": (0.5,), "std": (0.25,), "class_order": ("a", "b"), "force_teacher": True}
    config = Flags(teacher_weights=home / "carded.safetensors", size=16, **given).base()
    assert (config.teacher.network, config.teacher.class_order) == (ResNet(depth=8, width=4), ("a", "b"))
    assert config.teacher.force
    assert (config.data.mean, config.data.std, config.data.size) == ((0.5,), (0.25,), 16)
    assert Flags().base().teacher == TeacherConfig()
    labels = [
        Flags(**own).teacher_label for own in ({}, {"teacher": "wrn-16-1"}, {"teacher_weights": home / "carded.pt"})
    ]
    assert labels == ["resnet-8-16", "wrn-16-1", "resnet-8-8"]
    for fields, what in (({"mean": (0.5,)}, "--mean, --std is"), ({"card": home / "carded.json"}, "teacher.card is ")):
        with pytest.raises(InputError, match=what):
            Flags(**fields).base()


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    ("program", "weights"), [("ablation", "carded"), pytest.param("search", "carded", marks=pytest.mark.slow)]
)
def test_an_experiment_and_a_search_take_a_card(
    program: str, weights: str, call: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert call(program, weights) == 0
    errors = capsys.readouterr().err
    assert errors.count("card of the teacher: ") == 1
    assert errors.count("; its card states 96.0%") == 1
    for record in read_records(tmp_path / "out"):
        assert (record.config["data"]["mean"], record.config["data"]["size"]) == ([0.0], 8)


def test_the_api_refuses_a_faulty_teacher_too(home: Path, tmp_path: Path):
    tree = read(home / "trial.yaml")
    wrong = replace(tree, teacher=replace(tree.teacher, weights=home / "fresh.safetensors"))
    for out in (None, tmp_path / "out"):
        with pytest.raises(InputError, match="untrained statistics"):
            api.train(wrong, out=out, cache=tmp_path / "cache")
    assert not list(tmp_path.iterdir())
