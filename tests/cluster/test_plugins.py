"""Methods that exist only in the driver's process, registered in a script, a notebook or a user's module, on a cluster.

The example package, which workers can import, is swept in `tests/test_plugin_example.py`.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from toy import TEACHER

import condkd_ray
from condkd_ray.core.families import origin_of, plugins_in, unregister
from condkd_ray.core.method import InputError
from condkd_ray.data.datasets import DataConfig
from condkd_ray.methods.condensation import RandomReal
from condkd_ray.methods.distiller import Distiller
from condkd_ray.methods.inversion.pixelwise import Pixelwise
from condkd_ray.methods.supervised import Supervised, TeacherConfig
from condkd_ray.models import ResNet
from condkd_ray.runs.options import Options
from condkd_ray.runs.search_spec import SearchSpec
from condkd_ray.study.space import parse
from condkd_ray.trial.config import Pipeline, TrialConfig, dump, of_record

pytestmark = pytest.mark.ray

MODULE = """
from dataclasses import dataclass
from typing import Literal

import condkd_ray
from condkd_ray.methods.losses.kd import KdLoss
from methods_of_a_user.distances import distance

@condkd_ray.register
@dataclass(frozen=True, kw_only=True)
class Far(KdLoss):
    name: Literal["far"] = "far"
    power: int = 2

    def __call__(self, student, teacher, labels):
        return distance(student.logits.float(), teacher.logits.float(), self.power)
"""
HELPER = """
def distance(one, other, power):
    return (one - other).abs().pow(power).mean(1)
"""


def sharp() -> type:
    """Register an inversion as a notebook's cell defines it: workers cannot import its module."""

    @dataclass(frozen=True, kw_only=True)
    class Sharp(Pixelwise):
        betas: ClassVar[tuple[float, float]] = (0.9, 0.999)
        name: Literal["sharp"] = "sharp"
        oh_weight: float = 1.0

        def terms(self, batch, *, teacher, student):
            return {"oh": batch.oh}

    Sharp.__module__ = "__main__"
    return condkd_ray.register(version="0.1")(Sharp)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TrialConfig]:
    folder = tmp_path / "methods_of_a_user"
    folder.mkdir()
    for name, text in (("__init__", ""), ("far", MODULE), ("distances", HELPER)):
        (folder / f"{name}.py").write_text(text)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.chdir(tmp_path)
    from methods_of_a_user.far import Far  # type: ignore[import-not-found]

    inversion = sharp()
    yield TrialConfig(
        data=DataConfig(name="digits"),
        teacher=TeacherConfig(network=TEACHER, training=Supervised(epochs=3)),
        student=ResNet(depth=8, width=2),
        condensation=RandomReal(ipc=2),
        inversion=inversion(steps=2, batch=16),
        distiller=Distiller(loss=Far(), steps=2, batch=16, condensed_share=0.25),
        rounds=2,
    )
    for kind in (inversion, Far):
        unregister(kind)
    for name in [name for name in sys.modules if name.startswith("methods_of_a_user")]:
        del sys.modules[name]


@pytest.mark.slow
def test_a_sweep_with_plug_ins_and_producers_gives_the_numbers_of_one_process(
    cluster, config: TrialConfig, tmp_path: Path
):
    arms = {"alone": config, "piped": replace(config, pipeline=Pipeline(producers=1, staleness=0))}
    options = Options(out=tmp_path / "out", cache=tmp_path / "cache")
    records = condkd_ray.sweep(arms, options).records
    assert {record.arm: record.status for record in records} == {"alone": "finished", "piped": "finished"}
    trained = condkd_ray.train(config, cache=tmp_path / "cache", device="cpu").record
    for record in records:
        assert record.outcome.predictions == trained.outcome.predictions
        assert record.plugins == {
            "inversion/sharp": "__main__ 0.1",
            "kd_loss/far": str(origin_of(type(config.distiller.loss))),
        }
        assert of_record(record) == replace(arms[record.arm], precision="float32")
    assert trained.config_hash == next(record.config_hash for record in records if record.arm == "alone")
    again = condkd_ray.sweep(arms, options).records
    assert [record.config_hash for record in again] == [record.config_hash for record in records]


@pytest.mark.slow
def test_a_search_opens_leaves_of_a_plug_in_and_refuses_another_version(cluster, config: TrialConfig, tmp_path: Path):
    text = dump(config).replace("batch: 16", "batch: !int [8, 16]", 1)
    assert "name: sharp" in text
    spec = SearchSpec(out=tmp_path / "out", cache=tmp_path / "cache", trials=2)
    records = condkd_ray.search(parse(text), spec).records
    assert len(records) == 2
    assert all(record.plugins == plugins_in(config) for record in records)
    condkd_ray.register(version="0.2")(type(config.inversion))
    with pytest.raises(
        InputError, match=r"was made with plug-ins .*sharp: __main__ 0\.1, .*this run has .*__main__ 0\.2, "
    ):
        condkd_ray.search(parse(text), spec)
