"""A teacher whose class only the driver can import, on a real cluster."""

import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import condkd_ray
from condkd_ray.cluster.jobs import Packer, unpack
from condkd_ray.core.method import InputError
from condkd_ray.data.datasets import DataConfig
from condkd_ray.methods.condensation import RandomReal
from condkd_ray.methods.distiller import Distiller
from condkd_ray.methods.inversion import Fast
from condkd_ray.methods.supervised import TeacherConfig
from condkd_ray.models import ResNet
from condkd_ray.runs.options import Options
from condkd_ray.trial.artifacts import Workshop
from condkd_ray.trial.config import TrialConfig

BLOCKS = """
from torch import nn

def block(inputs, outputs):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 2, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())

class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.stages = nn.Sequential(block(1, 8), block(8, 16))
        self.narrow = nn.Conv2d(16, 16, 1)
"""
NETS = """
from torch import nn
from teachers_of_a_user.blocks import Base
from teachers_of_a_user import blocks

class Net(Base):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(16, 10)

    def forward(self, images):
        assert blocks.Base is not None
        return self.head(self.narrow(self.stages(images)).mean((2, 3)))

def teacher():
    return Net()
"""
PLACE = "teachers_of_a_user.nets"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TrialConfig]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "teachers_of_a_user").mkdir()
    for name, text in (("blocks", BLOCKS), ("nets", NETS)):
        (tmp_path / "teachers_of_a_user" / f"{name}.py").write_text(text)
    yield TrialConfig(
        data=DataConfig(name="digits"),
        teacher=TeacherConfig(module=f"{PLACE}:teacher", force=True),
        student=ResNet(depth=8, width=2),
        condensation=RandomReal(ipc=2),
        inversion=Fast(steps=1, batch=16, latent=16, width=8),
        distiller=Distiller(steps=1, batch=16, condensed_share=0.25),
        rounds=1,
    )
    for name in [name for name in sys.modules if name.startswith("teachers_of_a_user")]:
        del sys.modules[name]


def test_a_worker_that_cannot_import_the_class_computes_the_same_logits(cluster, config: TrialConfig, tmp_path: Path):
    import ray

    prepared = Workshop(tmp_path / "cache").prepare(config)
    refs, images = Packer().pack(prepared), torch.randn(4, 1, 8, 8)

    @ray.remote
    def logits(refs, images: torch.Tensor):
        try:
            found = importlib.util.find_spec(PLACE)
        except ModuleNotFoundError:
            found = None
        return found is None, unpack(config, refs, "cpu").teacher.logits(images).tolist()

    missing, found = ray.get(logits.remote(refs, images))
    assert missing
    assert found == prepared.teacher.logits(images).tolist()


@pytest.mark.slow
def test_a_sweep_with_the_teacher_gives_the_same_numbers_as_one_process(cluster, config: TrialConfig, tmp_path: Path):
    options = Options(out=tmp_path / "out", cache=tmp_path / "cache")
    [record] = condkd_ray.sweep({"one": config}, options, seeds=(0,)).records
    assert record.status == "finished"
    assert record.teacher == f"{PLACE}:teacher"
    alone = condkd_ray.train(config, cache=tmp_path / "cache", device="cpu").record
    assert alone.metrics["student/test_accuracy"] == record.metrics["student/test_accuracy"]
    assert alone.teacher_hash == record.teacher_hash


def test_teachers_with_other_code_or_weights_have_other_hashes(config: TrialConfig, tmp_path: Path):
    def hashed(wanted: TrialConfig) -> str:
        return Workshop(tmp_path / "cache").prepare(wanted).hashes["teacher"]

    first = hashed(config)
    assert hashed(config) == first
    state = Workshop(tmp_path / "cache").teacher(config).network.state_dict()
    torch.save({"model": {f"module.{k}": v + 1 if k == "head.bias" else v for k, v in state.items()}}, "w.pt")
    loaded = replace(config, teacher=replace(config.teacher, weights=Path("w.pt")))
    teacher = Workshop(tmp_path / "cache").teacher(loaded)
    assert torch.equal(teacher.network.state_dict()["head.bias"], state["head.bias"] + 1)
    del sys.modules[PLACE]
    (tmp_path / "teachers_of_a_user" / "nets.py").write_text(NETS.replace(".mean(", ".amax("))
    assert len({first, hashed(loaded), hashed(config)}) == 3


def test_weights_and_modules_that_do_not_fit_are_refused(config: TrialConfig, tmp_path: Path):
    torch.save({"head.weight": torch.ones(10, 16)}, tmp_path / "w.pt")
    workshop = Workshop(tmp_path / "cache")
    with pytest.raises(InputError, match=r"w.pt do not fit the network: missing: stages"):
        workshop.check(replace(config, teacher=replace(config.teacher, weights=tmp_path / "w.pt")))
    with pytest.raises(InputError, match=r"teacher module is 'nets'; accepted: package.module:function"):
        workshop.check(replace(config, teacher=TeacherConfig(module="nets")))
