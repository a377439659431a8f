"""The public API: what the commands do, callable, silent, and imported in no time."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from toy import TEACHER

import condkd_ray
from condkd_ray.core.config import to_tree
from condkd_ray.core.method import InputError
from condkd_ray.data.datasets import DataConfig
from condkd_ray.methods.condensation import RandomReal
from condkd_ray.methods.distiller import Distiller
from condkd_ray.methods.inversion import Fast
from condkd_ray.methods.supervised import Supervised, TeacherConfig
from condkd_ray.models import ResNet
from condkd_ray.models.teacher import Teacher
from condkd_ray.runs.options import Options
from condkd_ray.runs.search_spec import SearchSpec
from condkd_ray.trial.config import TrialConfig

PUBLIC = ("load", "search", "sweep", "train", "Options", "SearchSpec", "Teacher", "Trained", "TrialConfig")
TINY = TrialConfig(
    data=DataConfig(name="digits"),
    teacher=TeacherConfig(network=TEACHER, training=Supervised(epochs=3)),
    student=ResNet(depth=8, width=2),
    condensation=RandomReal(ipc=2),
    inversion=Fast(steps=2, batch=16, latent=16, width=8),
    distiller=Distiller(steps=2, batch=16, condensed_share=0.25),
    rounds=2,
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_the_package_is_imported_at_once_and_has_all_it_names():
    code = "import condkd_ray, sys; assert not {'torch', 'ray', 'numpy'} & set(sys.modules); print(dir(condkd_ray))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert all(f"'{name}'" in told and hasattr(condkd_ray, name) for name in PUBLIC)
    assert condkd_ray.Teacher is Teacher
    with pytest.raises(AttributeError, match="has no attribute 'teach'"):
        _ = condkd_ray.teach


def test_options_need_neither_ray_nor_optuna():
    code = "import sys; from condkd_ray import Options; print(*({'ray', 'optuna', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


def test_a_trial_is_trained_in_silence_with_the_numbers_of_the_command(cache, tmp_path, capfd):
    trained = condkd_ray.train(TINY, cache=cache, device="cpu")
    assert capfd.readouterr() == ("", "")
    assert trained.record.status == "finished"
    assert len(trained.record.history) == 2
    assert trained.samples is not None
    assert trained.samples.images.shape == (32, 1, 8, 8)
    again = condkd_ray.train(TINY, out=tmp_path / "out", cache=cache, device="cpu")
    assert capfd.readouterr() == ("", "")
    assert again.record.outcome.predictions == trained.record.outcome.predictions
    loaded = condkd_ray.load(tmp_path / "out")
    assert loaded.record == again.record
    for name, tensor in trained.student.state_dict().items():
        assert torch.equal(tensor, loaded.student.state_dict()[name])
    with torch.no_grad():
        assert loaded.student(trained.samples.images).shape == (32, 10)


def test_a_trial_that_fails_has_no_student(cache):
    failed = condkd_ray.train(TrialConfig(**vars(TINY) | {"distiller": Distiller(steps=2, lr=1e30)}), cache=cache)
    assert failed.record.status == "failed"
    assert failed.samples is None
    with pytest.raises(InputError, match="a trial that finished"):
        _ = failed.student


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"holds no experiment\.json"):
        condkd_ray.load(tmp_path)


@pytest.mark.ray
def test_arms_are_swept_over_seeds(cluster, cache, tmp_path, capfd):
    options = Options(out=tmp_path / "out", cache=cache)
    records = condkd_ray.sweep({"mixed": TINY}, options, seeds=(0, 1))
    assert [(one.arm, one.seed, one.status) for one in records] == [("mixed", 0, "finished"), ("mixed", 1, "finished")]
    assert (tmp_path / "out" / "table.md").is_file()
    alone = condkd_ray.train(TINY, cache=cache, device="cpu")
    assert records[0].outcome.predictions == alone.record.outcome.predictions
    assert condkd_ray.load(tmp_path / "out").record in records
    assert capfd.readouterr().out == ""


@pytest.mark.ray
def test_a_space_is_searched(cluster, cache, tmp_path):
    tree = to_tree(TINY)
    text = yaml.safe_dump(tree).replace("steps: 2", "steps: !int [1, 2]", 1)
    (tmp_path / "space.yaml").write_text(text)
    spec = SearchSpec(out=tmp_path / "out", cache=cache, trials=2)
    records = condkd_ray.search(tmp_path / "space.yaml", spec)
    scores = [record.metrics["proxy/agreement"] for record in records]
    assert len(scores) == 2
    assert scores == sorted(scores, reverse=True)
