"""The public API: the commands as functions that print nothing, do not change the process, and are imported quickly."""

import asyncio
import copy
import faulthandler
import importlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from places import README
from torch import Tensor, nn
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
from condkd_ray.report.kept import choose
from condkd_ray.runs.options import Options
from condkd_ray.trial.artifacts import Workshop
from condkd_ray.trial.config import TrialConfig, dump
from condkd_ray.trial.plan import Plan

PUBLIC = ("load", "read_config", "search", "sweep", "train", "InputError", "Options", "Plan", "Results", "SearchSpec",
          "Teacher", "Trained", "TrialConfig")  # fmt: skip
TINY = TrialConfig(
    data=DataConfig(name="digits"),
    teacher=TeacherConfig(network=TEACHER, training=Supervised(epochs=3)),
    student=ResNet(depth=8, width=2),
    condensation=RandomReal(ipc=2),
    inversion=Fast(steps=2, batch=16, latent=16, width=8),
    distiller=Distiller(steps=2, batch=16, condensed_share=0.25),
    rounds=2,
)
NOTEBOOK_CLASS = """
from torch import nn

class Own(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network(images)
"""
(NOTEBOOK,) = (
    block.split("```")[0]
    for block in README.read_text(encoding="utf-8").split("```python\n")[1:]
    if "condkd_ray.train(" in block
)
"""The README's example for notebooks."""
OWN_TRAINING = NOTEBOOK.index("teacher = condkd_ray.")
"""End of the user's own training in the notebook, in which PyTorch and scikit-learn set environment variables."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def module(cache) -> nn.Module:
    """The teacher of `TINY` as it is after training in a notebook: its class cannot be imported."""
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(NOTEBOOK_CLASS, names)
    network = Workshop(cache).teacher(TINY).network
    return names["Own"](network).train().requires_grad_(True)


@pytest.fixture(scope="module")
def teacher(cache, module) -> Teacher:
    known = Workshop(cache).teacher(TINY)
    return Teacher.from_module(module, num_classes=10, image_shape=(1, 8, 8), mean=known.mean, std=known.std)


def process() -> dict[str, Any]:
    """Return the state of the process that a library must not change."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    loggers = [logging.root, *map(logging.getLogger, ("condkd_ray", "ray.tune", "optuna"))]
    return {
        "environment": dict(os.environ),
        "signals": [signal.getsignal(number) for number in numbers],
        "loggers": [(one.level, list(one.handlers), one.propagate) for one in loggers],
        "streams": (sys.stdout, sys.stderr, sys.excepthook, sys.displayhook),
        "torch": (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()),
        "random": torch.get_rng_state().tolist(),
        "folder": os.getcwd(),
        "faults": faulthandler.is_enabled(),
        "backend": os.environ.get("MPLBACKEND"),
    }


@contextmanager
def unchanged_process(capfd) -> Iterator[None]:
    """Check that the block writes nothing to the standard streams and leaves the process as it was."""
    importlib.import_module("condkd_ray.api")
    before = process()
    capfd.readouterr()
    yield
    assert capfd.readouterr() == ("", "")
    after = process()
    assert {name: (before[name], after[name]) for name in before if before[name] != after[name]} == {}


def test_the_package_is_imported_without_heavy_packages_and_has_its_public_names():
    code = "import condkd_ray, sys; assert not {'torch', 'ray', 'numpy'} & set(sys.modules); print(dir(condkd_ray))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert all(f"'{name}'" in output and hasattr(condkd_ray, name) for name in PUBLIC)
    assert condkd_ray.Teacher is Teacher
    with pytest.raises(AttributeError, match="has no attribute 'teach'"):
        _ = condkd_ray.teach


def test_submodules_are_available_after_importing_only_the_package():
    code = "import sys, condkd_ray; assert 'torch' not in sys.modules; condkd_ray.testing.check; condkd_ray.api.train"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_all_public_names_have_types():
    shipped = files(condkd_ray)
    assert (shipped / "py.typed").is_file()
    text = (shipped / "__init__.pyi").read_text(encoding="utf-8")
    assert all(f" import {name} as {name}\n" in text for name in PUBLIC)


def test_options_need_neither_ray_nor_optuna():
    code = "import sys; from condkd_ray import Options; print(*({'ray', 'optuna', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


def test_train_prints_nothing_and_gives_the_same_numbers_with_and_without_a_folder(cache, tmp_path, capfd):
    with unchanged_process(capfd):
        trained = condkd_ray.train(TINY, cache=cache, device="cpu")
        assert trained.record.status == "finished"
        assert len(trained.record.history) == 2
        assert trained.samples is not None
        assert trained.samples.images.shape == (32, 1, 8, 8)
        again = condkd_ray.train(TINY, out=tmp_path / "out", cache=cache, device="cpu")
        assert again.record.outcome.predictions == trained.record.outcome.predictions
        loaded = condkd_ray.load(tmp_path / "out").best()
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "gpu"}, "device is 'gpu'; accepted: cpu"),
        ({"device": "cuda:99"}, "device is 'cuda:99'; accepted: cpu"),
        ({"device": 0}, "device is 0; accepted: cpu"),
        ({"cache": 3}, "cache is 3; accepted: a path"),
        ({"out": 3}, "out is 3; accepted: a path"),
        ({"device_pool_limit": 4}, "device_pool_limit is 4; accepted: a size such as 500MB or 4GB"),
        ({"view": 3}, "view is 'int'; accepted: an object with the methods of condkd_ray.core.view.View"),
        (
            {"config": replace(TINY, data="digits")},
            "config: data is 'digits'; accepted: an object of the method digits",
        ),
        (
            {"config": replace(TINY, inversion=Fast(steps=2.5))},
            "config: inversion: steps is 2.5; accepted: a valid int",
        ),
    ],
)
def test_train_refuses_an_invalid_argument(arguments, message, tmp_path):
    given = {"config": TINY, "out": tmp_path / "out"} | arguments
    with pytest.raises(InputError, match=message):
        condkd_ray.train(**given)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("call", [condkd_ray.load, condkd_ray.read_config])
def test_load_and_read_config_refuse_values_that_are_no_paths(call):
    for path in (3, {"rounds": 1}, None):
        with pytest.raises(InputError, match=r"path is .*; accepted: (a folder of results|the path of a YAML file)"):
            call(path)


def test_numbers_of_numpy_and_lists_for_tuples_give_the_same_trial(cache, module, teacher, tmp_path):
    shape = [np.int64(1), np.int32(8), 8]
    mean, std = np.array(teacher.mean), torch.tensor(teacher.std, dtype=torch.float64)
    same = Teacher.from_module(module, num_classes=np.int64(10), image_shape=shape, mean=mean, std=std)  # type: ignore[arg-type]
    assert (same.image_shape, same.mean, same.std) == ((1, 8, 8), teacher.mean, teacher.std)
    data = replace(TINY.data, mean=list(teacher.mean), std=np.array(teacher.std), flip_ok=np.bool_(False))
    loose = replace(TINY, rounds=np.int64(2), seed=np.int64(0), data=data)
    given = {"out": tmp_path, "cache": str(cache), "device": torch.device("cpu")}
    first = condkd_ray.train(TINY, teacher=teacher, **given)
    assert condkd_ray.train(loose, teacher=same, **given).record == first.record


def test_a_trial_has_its_own_student_in_a_folder_with_other_trials(cache, tmp_path):
    given = {"out": tmp_path, "cache": cache, "device": "cpu"}
    configs = [TINY, replace(TINY, rounds=1, distiller=Distiller(steps=1, batch=16, condensed_share=0.25))]
    for config in [*configs, *configs]:
        trained = condkd_ray.train(config, **given)
        assert trained.student is not None
        assert condkd_ray.load(tmp_path).best().record == trained.record == choose(tmp_path)
    for path in (tmp_path / "products").iterdir():
        path.unlink()
    with pytest.raises(InputError, match=r"product of trial \w+ is None; accepted: .* run it in another folder"):
        _ = condkd_ray.train(configs[0], **given).student


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"holds no experiment\.json"):
        condkd_ray.load(tmp_path)


def test_read_config_reads_a_file_as_the_command_does(tmp_path):
    (tmp_path / "trial.yaml").write_text(dump(TINY), encoding="utf-8")
    assert condkd_ray.read_config(str(tmp_path / "trial.yaml")) == TINY
    (tmp_path / "trial.yaml").write_text("round: 2", encoding="utf-8")
    with pytest.raises(InputError, match=r"'round' names no field \(did you mean rounds\?\)"):
        condkd_ray.read_config(tmp_path / "trial.yaml")


def test_a_users_module_as_teacher_gives_the_numbers_of_its_weights(cache, module, teacher, tmp_path, capfd):
    with unchanged_process(capfd):
        before = {name: value.clone() for name, value in module.state_dict().items()}
        own = condkd_ray.train(TINY, teacher=teacher, out=tmp_path, cache=cache, device="cpu")
        same = condkd_ray.train(TINY, cache=cache, device="cpu")
        assert own.record.outcome.predictions == same.record.outcome.predictions
        assert own.record.config["teacher"]["module"] == own.record.teacher != same.record.teacher
        assert own.record.teacher.startswith("given:")
        assert module.training
        assert all(weight.requires_grad for weight in module.parameters())
        assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
        # The record and the student can be loaded without the module.
        loaded = condkd_ray.load(tmp_path)
        assert loaded.best().student is not None
        assert "the teacher classifies" in " ".join(loaded.manifest.notes).lower()


def test_an_equal_teacher_continues_a_trial_and_another_starts_a_new_one(cache, module, teacher, tmp_path):
    def key(one: Teacher, config: TrialConfig = TINY) -> str:
        return condkd_ray.train(config, teacher=one, out=tmp_path, cache=cache, device="cpu").record.config_hash

    known = {"num_classes": 10, "image_shape": (1, 8, 8), "mean": teacher.mean, "std": teacher.std}
    first = key(teacher)
    assert key(Teacher.from_module(module, **known)) == first
    assert key(teacher, replace(TINY, teacher=TeacherConfig(network=ResNet(depth=14), seed=3))) == first
    changed = Teacher.from_module(module, **known)
    with torch.no_grad():
        next(changed.network.parameters()).mul_(1.001)
    assert key(changed) != first


class Mapped(nn.Module):
    """A module whose output is a function of the output of a linear layer."""

    def __init__(self, function):
        super().__init__()
        self.linear, self.function = nn.Linear(64, 10), function

    def forward(self, images: Tensor):
        return self.function(self.linear(images.flatten(1)))


KNOWN: dict[str, Any] = {"num_classes": 10, "image_shape": (1, 8, 8), "mean": [0.5], "std": [0.25]}


@pytest.mark.parametrize(
    ("module", "changes", "message"),
    [
        ("net", {}, r"teacher module is 'str'; accepted: a torch.nn.Module"),
        (nn.Flatten(), {}, r"parameters of the teacher module is 0"),
        (Mapped(lambda x: x[:, :9]), {}, r"output for 2 images is \(2, 9\); accepted: '?\(2, 10\)"),
        (Mapped(lambda x: {"logits": x}), {}, r"type of the teacher's output .* is 'dict'; accepted: a tensor"),
        (Mapped(lambda x: {}["logits"]), {}, r"cannot read images of shape \(1, 8, 8\): 'logits'"),
        (Mapped(lambda x: x * float("nan")), {}, r"is 'NaN or infinite'; accepted: finite logits of 10 classes"),
        (nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten()), {}, r"last linear layer of the teacher is None"),
        (Mapped(abs), {"std": [0.0]}, r"std of the teacher is \(0\.0,\); accepted: positive"),
        (Mapped(abs), {"mean": 0.5}, r"mean of the teacher is 0\.5; accepted: a sequence with one finite number per"),
        (Mapped(abs), {"mean": ["0.5"]}, r"mean of the teacher is \['0\.5'\]; accepted: a sequence with one finite"),
        (Mapped(abs), {"std": [float("nan")]}, r"std of the teacher is \[nan\]; accepted: a sequence with one finite"),
        (Mapped(abs), {"image_shape": 8}, r"image_shape of the teacher is 8; accepted: three integers >= 1"),
        (Mapped(abs), {"image_shape": (8, 8)}, r"image_shape of the teacher is \(8, 8\); accepted: three integers"),
        (Mapped(abs), {"num_classes": "10"}, r"num_classes of the teacher is '10'; accepted: an integer >= 1"),
        (Mapped(abs), {"train_size": 0}, r"train_size of the teacher is 0; accepted: an integer >= 1"),
        (Mapped(abs), {"flip_ok": "no"}, r"flip_ok of the teacher is 'no'; accepted: True or False"),
    ],
)
def test_a_module_that_cannot_be_a_teacher_is_refused(module, changes, message):
    with pytest.raises(InputError, match=message):
        Teacher.from_module(module, **KNOWN | changes)


def test_a_module_that_cannot_be_copied_is_refused():
    module = Mapped(abs)
    module.held = threading.Lock()
    with pytest.raises(InputError, match=r"teacher module is a Mapped, which cannot be copied \(cannot pickle"):
        Teacher.from_module(module, **KNOWN)


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (
            TINY,
            {"image_shape": (1, 16, 16)},
            r"image_shape of the teacher is \(1, 16, 16\); accepted: \(1, 8, 8\), that",
        ),
        (TINY, {"num_classes": 4}, r"num_classes of the teacher is 4; accepted: 10, that of the data set digits"),
        (TINY, {}, r"teacher's accuracy on 970 images of digits is 0\.\d+; accepted: more than 0\.250"),
        (
            replace(TINY, data=DataConfig(mean=(0.1,), std=(1.0,))),
            {},
            r"data\.mean is \(0\.1,\); accepted: none, or \(0",
        ),
        (replace(TINY, data=DataConfig(flip_ok=True)), {}, r"data\.flip_ok is True; accepted: none, or False"),
        (
            replace(TINY, teacher=TeacherConfig(weights=Path("w.pt"))),
            {},
            r"teacher\.weights is .*; accepted: none if",
        ),
        ("digits.yaml", {}, r"config is 'str'; accepted: a condkd_ray\.TrialConfig"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(cache, config, changes, message, tmp_path):
    known = KNOWN | changes
    torch.manual_seed(0)
    head = nn.Linear(8, known["num_classes"])
    module = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    with pytest.raises(InputError, match=message):
        condkd_ray.train(config, teacher=Teacher.from_module(module, **known), out=tmp_path / "out", cache=cache)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ((), r"^task of the teacher is 'segmentation'; accepted: classification, the task of digits$"),
        (
            (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, 10)),
            r"^image_shape of the teacher is \(3, 24, 32\); accepted: \(1, 8, 8\), that of the data set digits$",
        ),
    ],
)
def test_a_teacher_of_other_images_is_refused_for_its_task_and_shape_before_its_normalisation(head, message, cache):
    known = {"num_classes": 10, "image_shape": (3, 24, 32), "mean": (0.5,) * 3, "std": (0.25,) * 3}
    teacher = Teacher.from_module(nn.Sequential(nn.Conv2d(3, 10, 1), *head), **known)
    with pytest.raises(InputError, match=message):
        condkd_ray.train(TrialConfig(rounds=1), teacher=teacher, cache=cache)


def test_a_teacher_with_outputs_in_another_order_is_refused_with_the_right_order(cache, module):
    known = Workshop(cache).teacher(TINY)
    facts = {"num_classes": 10, "image_shape": (1, 8, 8), "mean": known.mean, "std": known.std}
    turned = Teacher.from_module(module, **facts).in_order([1, 2, 3, 4, 5, 6, 7, 8, 9, 0])
    with pytest.raises(InputError) as refused:
        condkd_ray.train(TINY, teacher=turned, cache=cache)
    order = str(refused.value).partition("give teacher.in_order(")[2].partition(")")[0]
    assert order == "[9, 0, 1, 2, 3, 4, 5, 6, 7, 8]"
    assert condkd_ray.train(TINY, teacher=turned.in_order(json.loads(order)), cache=cache).record.status == "finished"


@pytest.mark.parametrize("call", [condkd_ray.train, condkd_ray.sweep, condkd_ray.search])
def test_a_bare_module_is_no_teacher(call, tmp_path):
    what = {condkd_ray.train: TINY, condkd_ray.sweep: {"one": TINY}, condkd_ray.search: "rounds: !int [1, 2]"}[call]
    with pytest.raises(InputError, match=r"teacher is 'Linear'; accepted: Teacher\.from_module\(module, num_classes="):
        call(what, teacher=nn.Linear(1, 1), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "more", "message"),
    [
        ([{"one": TINY}], {}, r"out is None; accepted: a folder for the results, as out= or in Options"),
        ([{"one": "config"}], {}, r"arm 'one' is 'str'; accepted: a condkd_ray\.TrialConfig"),
        ([[TINY]], {}, r"plan is 'TrialConfig'; accepted: a condkd_ray\.Plan"),
        ([TINY], {}, r"arms is 'TrialConfig'; accepted: configs by their names, or a list of plans"),
        ([{"one": TINY}, "x"], {}, r"Options of the call is 'str'; accepted: a condkd_ray\.Options"),
        ([{"one": TINY}], {"seeds": 3}, r"seeds is 3; accepted: a sequence of integers"),
        ([{"one": TINY}], {"seeds": [0.5]}, r"seeds is \[0\.5\]; accepted: a sequence of integers"),
        ([{"one": TINY}], {"seeds": ["0"]}, r"seeds is \['0'\]; accepted: a sequence of integers"),
        ([{"one": TINY}], {"seeds": [True]}, r"seeds is \[True\]; accepted: a sequence of integers"),
        ([{"one": TINY}], {"seeds": [-1]}, r"seeds is \[-1\]; accepted: a sequence of integers >= 0"),
        ([{1: TINY}], {}, r"name of an arm is 1; accepted: a text"),
        ([[Plan("one", 2, 0.5, TINY)]], {}, r"seed of plan 'one' is 0\.5; accepted: an integer >= 0"),  # type: ignore[arg-type]
        ([[Plan("one", 2, 0, TINY, "all")]], {}, r"scope of plan 'one' is 'all'; accepted: trial, inversion"),  # type: ignore[arg-type]
        ([{"one": replace(TINY, rounds=1.5)}], {}, r"arm 'one': rounds is 1\.5; accepted: a valid integer"),
        ([{"one": TINY}], {"baseline": 3}, r"baseline is 3; accepted: none, the name of an arm, or a mapping"),
        ([{"one": TINY}], {"question": 3}, r"question is 3; accepted: a text"),
        ([{"one": TINY}], {"view": 3}, r"view is 'int'; accepted: an object with the methods of condkd_ray\.core"),
        ([{"one": TINY}, Options(cache=3)], {}, r"Options: cache is 3; accepted: a path"),  # type: ignore[arg-type]
        ([{"one": TINY}], {"baseline": "two"}, r"baseline is 'two'; accepted: none, or one of one"),
        ([{"one": TINY}], {"out": "x", "outt": "x"}, r"Options: 'outt' names no field \(did you mean out\?\)"),
        ([{"one": TINY}], {"out": "x", "max_concurrent": "two"}, r"Options: max_concurrent is 'two'; accepted"),
        ([[Plan("one", 2, 0, TINY)]], {"seeds": (0,)}, r"seeds with plans is \(0,\); accepted: none"),
        ([{}], {"out": "x"}, r"number of trials is 0; accepted: at least one arm"),
    ],
)
def test_an_invalid_sweep_is_refused(arguments, more, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        condkd_ray.sweep(*arguments, **more)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("space", "more", "message"),
    [
        (3, {}, r"search space is 'int'; accepted: a path, YAML text or a tree"),
        ("rounds: !int [1, 2]", {"question": 3}, r"question is 3; accepted: a text"),
        ("rounds: !int [1, 2]", {"trials": "few"}, r"SearchSpec: trials is 'few'; accepted: a valid integer"),
        ("rounds: !int [1, 2]", {"view": 3}, r"view is 'int'; accepted: an object with the methods"),
        ("nowhere.yaml", {}, r"nowhere\.yaml"),
        ("rounds: 2", {}, r"open leaves of the space is 0"),
        ("teacher: {seed: !int [0, 3]}", {}, r"open leaves of the space is 'teacher/seed'; accepted: none if"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused(space, more, message, teacher, tmp_path):
    with pytest.raises(InputError, match=message):
        condkd_ray.search(space, out=tmp_path / "out", teacher=teacher, **more)
    assert not (tmp_path / "out").exists()


def test_a_folder_is_locked_during_a_call_and_unlocked_afterwards(cache, tmp_path, monkeypatch):
    from condkd_ray.core.locks import busy
    from condkd_ray.runs.output_folder import alone_in

    out = tmp_path / "out"
    with alone_in(out), pytest.raises(InputError, match=r"in use by another call of this process"):
        condkd_ray.train(TINY, out=out, cache=cache)
    condkd_ray.train(TINY, out=out, cache=cache)
    script = f"from pathlib import Path; from condkd_ray.core.locks import busy; print(busy(Path({str(out)!r})))"
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert output == "False\n"
    assert not busy(out)


@pytest.mark.slow
@pytest.mark.ray
def test_arms_are_swept_over_seeds(cluster, cache, tmp_path, capfd):
    with unchanged_process(capfd):
        import ray

        results = condkd_ray.sweep({"mixed": TINY}, Options(cache=cache), out=str(tmp_path / "out"), seeds=(0, 1))
        records = results.records
        assert [(one.arm, one.seed, one.status) for one in records] == [
            ("mixed", 0, "finished"),
            ("mixed", 1, "finished"),
        ]
        assert (tmp_path / "out" / "table.md").is_file()
        alone = condkd_ray.train(TINY, cache=cache, device="cpu")
        assert records[0].outcome.predictions == alone.record.outcome.predictions
        loaded = condkd_ray.load(tmp_path / "out")
        assert loaded.records == records
        assert loaded.best().record in records
        assert loaded.trained(
            records[1].config_hash[:12] if loaded.best().record == records[1] else records[0].config_hash
        )
        # A folder with missing trials can be loaded, too.
        (tmp_path / "out" / "records" / f"{records[1].config_hash}.json").unlink()
        assert repr(condkd_ray.load(tmp_path / "out")).endswith("sweep, 1 of 2 trials finished>")
        plans = [Plan("mixed", 2, seed, replace(TINY, seed=seed)) for seed in (0, 1)]
        assert len(condkd_ray.sweep(plans, out=tmp_path / "out", cache=cache).finished) == 2
        assert ray.is_initialized()


@pytest.mark.slow
@pytest.mark.ray
def test_a_search_returns_ranked_records_figures_and_a_student(cluster, cache, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "program.py", raising=False)
    with unchanged_process(capfd):
        tree = to_tree(TINY)
        text = yaml.safe_dump(tree).replace("steps: 2", "steps: !int [1, 2]", 1)
        found = condkd_ray.search(text, out=tmp_path / "out", cache=cache, trials=2, objective="proxy/agreement")
        scores = [record.metrics["proxy/agreement"] for record in found.ranked]
        assert len(scores) == 2
        assert scores == sorted(scores, reverse=True)
        assert set(found.study["config_hash"]) >= {record.config_hash for record in found.records}
        assert {"course", "rounds"} <= set(found.figures)
        assert found.best().student is not None
        assert "condkd_ray" not in found.manifest.command


@pytest.mark.slow
@pytest.mark.ray
def test_sweeps_and_searches_with_a_users_module_run_in_threads_and_event_loops(
    cluster, cache, teacher, tmp_path, capfd
):
    with unchanged_process(capfd):
        found: list[condkd_ray.Results] = []

        def sweep() -> None:
            found.append(
                condkd_ray.sweep({"one": replace(TINY, rounds=1)}, out=tmp_path / "a", cache=cache, teacher=teacher)
            )

        async def in_event_loop() -> None:
            sweep()

        with pytest.raises(InputError):
            condkd_ray.sweep({"one": TINY}, out=tmp_path / "a", cache=cache, time_budget="soon")
        thread = threading.Thread(target=sweep)
        thread.start()
        thread.join()
        asyncio.run(in_event_loop())
        assert [len(one.finished) for one in found] == [1, 1]
        text = yaml.safe_dump(to_tree(replace(TINY, rounds=1))).replace("steps: 2", "steps: !int [1, 2]", 1)
        searched = condkd_ray.search(text, out=tmp_path / "b", cache=cache, trials=1, teacher=teacher)
        assert {one.teacher for one in searched.records} == {found[0].records[0].teacher}


class Halves(nn.Module):
    """A network with weights in bfloat16, to which it converts the images."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.bfloat16()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images.bfloat16())


@pytest.mark.slow
@pytest.mark.ray
def test_a_teacher_in_bfloat16_gives_the_same_numbers_in_a_sweep_as_in_this_process(cluster, cache, module, tmp_path):
    known = Workshop(cache).teacher(TINY)
    facts = {"num_classes": 10, "image_shape": (1, 8, 8), "mean": known.mean, "std": known.std}
    teacher = Teacher.from_module(Halves(copy.deepcopy(module)), **facts)
    alone = condkd_ray.train(TINY, teacher=teacher, cache=cache, device="cpu").record
    (swept,) = condkd_ray.sweep({"one": TINY}, out=tmp_path / "out", cache=cache, teacher=teacher).finished
    assert swept.metrics["student/test_accuracy"] == alone.metrics["student/test_accuracy"]
    assert swept.teacher_hash == alone.teacher_hash


class Unsendable:
    """An object that can be copied but not pickled."""

    def __deepcopy__(self, memo: dict) -> "Unsendable":
        return self

    def __reduce__(self):
        raise TypeError("a handle of the device")


@pytest.mark.ray
def test_a_module_that_workers_cannot_load_is_refused_before_any_trial(
    cluster, cache, module, teacher, tmp_path, monkeypatch
):
    known = {"num_classes": 10, "image_shape": (1, 8, 8), "mean": teacher.mean, "std": teacher.std}
    module = type(module)(module.network)
    module.handle = Unsendable()
    held = Teacher.from_module(module, **known)
    with pytest.raises(
        InputError,
        match=r"handle is a test_api\.Unsendable, .* cannot be read \(TypeError: a handle of the device\); accepted",
    ):
        condkd_ray.sweep({"one": TINY}, out=tmp_path / "a", cache=cache, teacher=held)
    # This module is installed only here: installed code is not sent to the workers, which do not find it.
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "nets_installed_here.py").write_text(NOTEBOOK_CLASS, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path / "site-packages"))
    installed = importlib.import_module("nets_installed_here").Own(module.network)
    missing = Teacher.from_module(installed, **known)
    with pytest.raises(InputError, match=r"cannot be loaded on node .*No module named 'nets_installed_here'"):
        condkd_ray.search("rounds: !int [1, 2]", out=tmp_path / "b", cache=cache, teacher=missing)
    assert not list(tmp_path.glob("*/records/*"))


BEFORE = """
import faulthandler, logging, os, signal, sys, threading

def process():
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    return (dict(os.environ), [signal.getsignal(one) for one in numbers], list(logging.root.handlers), sys.stdout,
            sys.stderr, sys.excepthook, faulthandler.is_enabled(), threading.active_count(), os.getcwd())

before = process()
"""
OWN_INVERSION = """
from dataclasses import dataclass
from typing import Literal
from condkd_ray.methods.inversion.pixelwise import Pixelwise

def differences(images):
    return (images[:, :, 1:] - images[:, :, :-1]).square().mean((1, 2, 3))

@condkd_ray.register
@dataclass(frozen=True, kw_only=True)
class Smooth(Pixelwise):
    betas = (0.9, 0.999)
    name: Literal["smooth"] = "smooth"
    oh_weight: float = 1.0
    smooth_weight: float = 0.1

    def terms(self, batch, *, teacher, student):
        return {"oh": batch.oh, "smooth": batch.mean(differences(batch.images))}

own = condkd_ray.TrialConfig(rounds=1, inversion=Smooth(steps=2, batch=16))
alone = condkd_ray.train(own, teacher=teacher, device="cpu")
swept = condkd_ray.sweep({"own": own}, out="runs/own", teacher=teacher)
space = "{rounds: 1, inversion: !choice [{name: fast, steps: 2}, {name: smooth, steps: 2, batch: 16}]}"
chosen = condkd_ray.search(space, out="runs/choice", trials=2, teacher=teacher)
(record,) = swept.records
assert record.outcome.predictions == alone.record.outcome.predictions
assert record.plugins == alone.record.plugins != {}
assert {one.inversion: one.plugins for one in chosen.finished} == {"fast": {}, "smooth": record.plugins}
"""
AFTER = """
import ray
assert not ray.is_initialized()
assert process() == before, [pair for pair in zip(process(), before) if pair[0] != pair[1]]
assert "matplotlib.pyplot" not in sys.modules
assert net.training and all(weight.requires_grad for weight in net.parameters())
assert teacher.network is not net and len(results.finished) == 4 and len(found.finished) == 3
assert figure._repr_png_()[0].startswith(b"\\x89PNG") and "<table" in results._repr_html_()
assert results.manifest.command == "condkd_ray.sweep(...)"
"""


@pytest.mark.slow
@pytest.mark.ray
def test_the_readmes_notebook_with_an_own_inversion_prints_nothing_and_does_not_change_the_process(cache, tmp_path):
    """The process has no script, as that of a notebook, so its classes cannot be imported."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment["CONDKD_CACHE"] = str(cache)
    script = NOTEBOOK[:OWN_TRAINING] + BEFORE + NOTEBOOK[OWN_TRAINING:] + OWN_INVERSION + AFTER
    run = {"capture_output": True, "text": True, "env": environment, "cwd": tmp_path, "timeout": 500}
    done = subprocess.run([sys.executable, "-"], input=script, **run)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
