"""The example package, installed by pip into a folder of its own: commands and a cluster can use its methods."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from places import DOCS, EXPERIMENTS

from condkd_ray.core.families import register, unregister
from condkd_ray.data.datasets import DataName
from condkd_ray.testing import check

EXAMPLE = Path(__file__).parent / "plugin_example"
CONFIG = """
data: {name: blobs, count: 200}
teacher: {network: tiny, training: {epochs: 5}}
student: {name: tiny, width: 4}
condensation: {name: random_real, ipc: 2}
inversion: {name: smooth, steps: 2, batch: 16}
guidance: class_means
distiller: {loss: logit_l2, steps: 2, batch: 16, condensed_share: 0.25}
rounds: 2
"""
SPACE = CONFIG.replace("{name: smooth, steps: 2, batch: 16}", "!choice [{name: smooth, steps: !int [1, 2]}, dafl]")
PLUGINS = {
    "datasets/blobs": "condkd-blobs 1.0.0",
    "networks/tiny": "condkd-blobs 1.0.0",
    "inversion/smooth": "condkd-blobs 1.0.0",
    "guidance/class_means": "condkd-blobs 1.0.0",
    "kd_loss/logit_l2": "condkd-blobs 1.0.0",
}
Program = Callable[..., subprocess.CompletedProcess]


def installed(source: Path, target: Path) -> Path:
    """Install the package of a folder into `target`, without a network."""
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--target", str(target)]
    command = [sys.executable, "-m", "pip", "install", *options, str(source)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return target


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the example package."""
    source = tmp_path_factory.mktemp("source") / "example"
    shutil.copytree(EXAMPLE, source)
    return installed(source, tmp_path_factory.mktemp("site"))


@pytest.fixture
def program(site: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Program:
    """A function that runs Python in `tmp_path` with the package on its path, or without it if `without` is true."""
    (tmp_path / "trial.yaml").write_text(CONFIG)
    (tmp_path / "space.yaml").write_text(SPACE)

    def run(*arguments: object, without: bool = False) -> subprocess.CompletedProcess:
        paths = [os.environ.get("PYTHONPATH", ""), *([] if without else [str(site)])]
        variables = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "CONDKD_CACHE": str(site.parent / "cache"),
        }
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=variables, check=False)

    return run


def records(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted((folder / "records").glob("*.json"))]


def test_condkd_methods_lists_each_plug_in_with_its_distribution(program: Program):
    done = program("-m", "condkd_ray", "methods")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.endswith("| condkd-blobs 1.0.0 |")]
    assert [line.split("|")[1].strip() for line in lines] == [
        *("inversion", "guidance", "distiller.loss", "student, teacher.network", "data")
    ]
    assert "| inversion | `smooth` | classification | an example | steps 100, batch 128, lr 0.1, " in done.stdout
    assert "condkd-blobs" not in program("-m", "condkd_ray", "methods", without=True).stdout


@pytest.mark.slow
def test_a_trial_runs_with_flags_of_its_fields_and_repeats_from_its_record(program: Program, tmp_path: Path):
    flags = ("--inversion.smooth-weight", "0.2", "--student.width", "3", "--data.count", "240")
    trained = program("-m", "condkd_ray", "train", "trial.yaml", "--out", "out", *flags)
    assert trained.returncode == 0, trained.stderr
    (record,) = records(tmp_path / "out")
    assert record["plugins"] == PLUGINS
    assert record["config"]["inversion"]["smooth_weight"] == 0.2
    assert (record["student"], record["teacher"], record["dataset"]) == ("tiny-3", "tiny-8", "blobs")
    key = record["config_hash"][:8]
    again = program("-m", "condkd_ray", "train", "--from-record", "out", key, "--out", "again")
    assert again.returncode == 0, again.stderr
    assert again.stdout.splitlines()[-1].startswith("equal: test accuracy")
    # Without the package, a report can still be made; commands that need its code name the missing plug-in.
    report = program("-m", "condkd_ray", "report", "out", without=True)
    assert report.returncode == 0, report.stderr
    missing = "is from plug-in condkd-blobs 1.0.0, which is neither installed nor registered here"
    for command in (("train", "--from-record", "out", key, "--out", "third"), ("export", "out", "--to", "exported")):
        refused = program("-m", "condkd_ray", *command, without=True)
        assert refused.returncode == 2
        assert missing in refused.stderr
    unknown = program("-m", "condkd_ray", "train", "trial.yaml", "--out", "fourth", without=True)
    accepted = f"{', '.join(get_args(DataName))}, or a plug-in once it is installed or registered"
    message = f"data is 'blobs'; accepted: {accepted}"
    assert (unknown.returncode, message in unknown.stderr) == (2, True)
    assert not {"third", "fourth", "exported"} & {path.name for path in tmp_path.iterdir()}


@pytest.mark.slow
def test_another_version_of_a_plug_in_gives_another_hash(program: Program, site: Path, tmp_path: Path):
    def hashed() -> str:
        code = "from condkd_ray.core.config import content_hash; from condkd_ray.trial.config import read; "
        done = program("-c", f"{code}print(content_hash(read(__import__('pathlib').Path('trial.yaml'))))")
        assert done.returncode == 0, done.stderr
        return done.stdout

    first = hashed()
    info = next(site.glob("condkd_blobs-*.dist-info")) / "METADATA"
    text = info.read_text()
    try:
        info.write_text(text.replace("Version: 1.0.0", "Version: 1.0.1"))
        assert hashed() != first
    finally:
        info.write_text(text)
    assert hashed() == first


@pytest.mark.slow
def test_a_plug_in_that_fails_to_load_is_reported_and_does_not_stop_other_commands(
    program: Program, site: Path, tmp_path: Path
):
    module = site / "condkd_blobs" / "guidance.py"
    text = module.read_text()
    try:
        module.write_text("import no_such_library\n")
        done = program("-m", "condkd_ray", "methods")
        reason = (
            "failed to load condkd_blobs.guidance:ClassMeans (ModuleNotFoundError: No module named 'no_such_library')"
        )
        assert done.returncode == 0
        assert "| inversion | `smooth` |" in done.stdout
        assert done.stderr.splitlines() == [f"plug-in condkd-blobs 1.0.0 {reason}"]
        refused = program("-m", "condkd_ray", "train", "trial.yaml", "--out", "out")
        assert refused.returncode == 2
        last = refused.stderr.splitlines()[-1]
        assert last.startswith("error: trial.yaml: guidance is 'class_means'; accepted: none, discriminator, ")
        assert last.endswith(f"; plug-in condkd-blobs 1.0.0 {reason}")
        assert not (tmp_path / "out").exists()
    finally:
        module.write_text(text)


def test_the_package_in_the_docs_declares_its_classes_and_they_keep_their_contracts():
    text = (DOCS / "extending.md").read_text(encoding="utf-8")
    declared = tomllib.loads(text.split("```toml\n")[1].split("```")[0])["project"]["entry-points"]
    space: dict[str, Any] = {"__name__": "my_package"}
    for block in text.split("```python\n")[1:]:
        if "name: Literal" in block:
            exec(block.split("```")[0], space)
    register(space["Plain"])  # in the package its entry point does this
    for method, group in ((space["Sharp"](steps=2, batch=16), "inversion"), (space["Plain"](width=4), "networks")):
        check(method)
        unregister(type(method))
        assert declared.pop(f"condkd_ray.{group}") == {method.name: f"my_package.{method.name}:{type(method).__name__}"}
    assert declared == {}


def test_each_plug_in_keeps_the_contract_of_its_family(program: Program):
    run = program(EXAMPLE / "check.py")
    assert run.returncode == 0, run.stderr
    names = ("smooth", "class_means", "tiny", "blobs", "logit_l2")
    assert run.stdout.splitlines() == [f"{name} keeps its contract" for name in names]


@pytest.mark.ray
@pytest.mark.slow
def test_an_ablation_takes_plug_ins_by_flags_on_a_cluster(program: Program, tmp_path: Path):
    flags = ["--inversion", "smooth", "--guidance", "class_means", "--teacher", "tiny-8", "--student", "tiny-4"]
    flags += ["--dataset", "blobs", "--ipcs", "1", "--seeds", "0", "--arms", "guided", "--no-reference"]
    flags += ["--rounds", "1", "--condensation", "random_real", "--teacher-epochs", "2", "--out", "out"]
    flags += ["--config", "small.yaml"]
    (tmp_path / "small.yaml").write_text("inversion: {steps: 1, batch: 16}\ndistiller: {steps: 1, batch: 16}\n")
    run = program(EXPERIMENTS / "ablate_ipc.py", *flags)
    assert run.returncode == 0, run.stderr
    (record,) = records(tmp_path / "out")
    assert (record["status"], record["inversion"], record["guidance"]) == ("finished", "smooth", "class_means")
    assert record["plugins"] == {name: origin for name, origin in PLUGINS.items() if not name.startswith("kd_loss")}


@pytest.mark.ray
@pytest.mark.slow
def test_a_search_chooses_between_a_plug_in_and_a_built_in_method(program: Program, tmp_path: Path):
    flags = ["--trials", "4", "--sampler", "random", "--out", "out"]
    run = program("-m", "condkd_ray", "search", "space.yaml", *flags)
    assert run.returncode == 0, run.stderr
    found = records(tmp_path / "out")
    assert {record["inversion"] for record in found} == {"smooth", "dafl"}
    assert {record["status"] for record in found} == {"finished"}
    for record in found:
        assert ("inversion/smooth" in record["plugins"]) == (record["inversion"] == "smooth")
