"""Nodes that lack code of the trials are named before any trial runs, whichever trial would need the code."""

import importlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import everywhere
import pytest
from places import INSTALLED
from toy import TEACHER

import condkd_ray
from condkd_ray.cluster.module_check import check_plugins
from condkd_ray.core.families import origin_of, unregister
from condkd_ray.core.method import InputError
from condkd_ray.data.datasets import DataConfig
from condkd_ray.methods.condensation import RandomReal
from condkd_ray.methods.distiller import Distiller
from condkd_ray.methods.inversion import Fast
from condkd_ray.methods.losses.kd import KdLoss
from condkd_ray.methods.supervised import Supervised, TeacherConfig
from condkd_ray.models import ResNet
from condkd_ray.runs.options import Options
from condkd_ray.study.space import parse, plugin_classes
from condkd_ray.trial.config import TrialConfig, dump

TINY = TrialConfig(
    data=DataConfig(name="digits"),
    teacher=TeacherConfig(network=TEACHER, training=Supervised(epochs=3)),
    student=ResNet(depth=8, width=2),
    condensation=RandomReal(ipc=2),
    inversion=Fast(steps=1, batch=16, latent=16, width=8),
    distiller=Distiller(steps=1, batch=16, condensed_share=0.25),
    rounds=1,
)
MISSING = (
    r"^plug-in driver_only source [0-9a-f]{12} with driver_only\.DriverOnly cannot be loaded on node \S+ "
    r"\(ModuleNotFoundError: No module named 'driver_only'\); accepted: the same version installed on every node, or "
    r"code that is not installed and is therefore sent$"
)
TEACHERS = """
from torch import nn

class Net(nn.Sequential):
    pass

def teacher():
    return Net(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
"""


def with_loss(loss: KdLoss) -> TrialConfig:
    return replace(TINY, distiller=replace(TINY.distiller, loss=loss))


@pytest.fixture
def driver_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type]:
    """A plug-in that is installed for this process only, and a module with a teacher beside it."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    text = Path(everywhere.__file__).read_text(encoding="utf-8")
    text = text.replace("everywhere", "driver_only").replace("Everywhere", "DriverOnly")
    (folder / "driver_only.py").write_text(text, encoding="utf-8")
    (folder / "driver_only_teachers.py").write_text(TEACHERS, encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    kind = condkd_ray.register(importlib.import_module("driver_only").DriverOnly)
    yield kind
    unregister(kind)
    for name in ("driver_only", "driver_only_teachers"):
        sys.modules.pop(name, None)


@pytest.fixture
def on_every_node() -> Iterator[type]:
    """A plug-in that workers can import."""
    yield condkd_ray.register(everywhere.Everywhere)
    unregister(everywhere.Everywhere)


def test_a_plug_in_that_nodes_can_import_is_accepted(cluster, on_every_node):
    assert Path(everywhere.__file__).parent == INSTALLED
    check_plugins([TINY, with_loss(on_every_node())])
    check_plugins([on_every_node])


def test_a_plug_in_that_is_not_installed_is_sent_and_accepted(cluster, driver_only, tmp_path: Path, monkeypatch):
    (tmp_path / "site-packages").rename(tmp_path / "sources")
    monkeypatch.setattr(sys.modules["driver_only"], "__file__", str(tmp_path / "sources" / "driver_only.py"))
    check_plugins([driver_only])


def test_another_version_of_a_plug_in_on_a_node_is_named(cluster, on_every_node, monkeypatch):
    there = origin_of(on_every_node)
    monkeypatch.setattr(everywhere, "FACTOR", 2.0)
    refused = rf"^plug-in {origin_of(on_every_node)} with \S+ cannot be loaded on node \S+ "
    with pytest.raises(InputError, match=rf"{refused}\({there} is installed there\); accepted: "):
        check_plugins([with_loss(on_every_node())])
    assert there != origin_of(on_every_node)


def test_a_sweep_with_a_plug_in_that_only_the_driver_can_import_runs_no_trial(cluster, driver_only, tmp_path: Path):
    arms = {"ours": TINY, "theirs": with_loss(driver_only())}
    with pytest.raises(InputError, match=MISSING):
        condkd_ray.sweep(arms, Options(out=tmp_path / "out", cache=tmp_path / "cache"))
    assert not list(tmp_path.glob("out/records/*"))


def test_a_search_that_can_choose_a_plug_in_that_only_the_driver_can_import_runs_no_trial(
    cluster, driver_only, on_every_node, tmp_path: Path
):
    losses = "loss: !choice [hinton, {name: everywhere}, {name: driver_only}]"
    space = dump(TINY).replace("loss:\n    name: hinton\n    temperature: 20.0", losses)
    assert plugin_classes(parse(space)) == [on_every_node, driver_only]
    with pytest.raises(InputError, match=MISSING):
        condkd_ray.search(space, out=tmp_path / "out", cache=tmp_path / "cache", trials=1)
    assert not list(tmp_path.glob("out/records/*"))


def test_a_search_that_can_choose_a_teacher_that_only_the_driver_can_import_runs_no_trial(
    cluster, driver_only, tmp_path: Path
):
    space = dump(TINY).replace("module: null", "module: !choice [null, 'driver_only_teachers:teacher']")
    with pytest.raises(InputError, match=r"teacher module driver_only_teachers:teacher cannot be loaded on node \S+ "):
        condkd_ray.search(space, out=tmp_path / "out", cache=tmp_path / "cache", trials=1)
    assert not list(tmp_path.glob("out/records/*"))
