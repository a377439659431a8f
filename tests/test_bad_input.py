"""Bad input ends a command at once with exit code 2 and one message: the thing, its value and what is accepted."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from places import EXPERIMENTS
from safetensors.torch import save_file

from condkd_ray import __main__
from condkd_ray.core.records import Manifest, write_manifest
from condkd_ray.core.samples import to_model
from condkd_ray.data.datasets import DataConfig, load

ABLATION = EXPERIMENTS / "ablate_ipc.py"
GRAPHS = "graphs on a CPU is True; accepted: false, or trials on a GPU"
TRIAL = """
teacher: {network: {name: resnet, depth: 8, width: 4}, training: {epochs: 1}}
student: {name: resnet, depth: 8, width: 2}
condensation: {name: random_real, ipc: 2}
inversion: {name: fast, steps: 1, batch: 16, latent: 16, width: 8}
distiller: {steps: 1, batch: 16, condensed_share: 0.25}
rounds: 1
"""


def condensed(path: Path, *, classes: int = 10, side: int = 8, value: float | None = None) -> Path:
    """Write a condensed set in DC's format, of noise with the standard deviation of real images."""
    labels = torch.arange(classes).repeat_interleave(2)
    images = torch.randn(len(labels), 1, side, side, generator=torch.Generator().manual_seed(0))
    if value is not None:
        images[3, 0, 2, 2] = value
    torch.save({"data": [[images, labels]]}, path)
    return path


def twice(path: Path) -> None:
    """Write a condensed set of digits that were normalised twice."""
    dataset = load(DataConfig())
    rows = torch.cat([(dataset.train.labels == k).nonzero()[:2, 0] for k in range(10)])
    once = dataset.train[rows].samples(dataset.mean, dataset.std)
    torch.save({"data": [[to_model(once.images, dataset.mean, dataset.std), once.labels]]}, path)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with input files, and `out` with earlier results of both programs."""
    for name, experiment in (("train", "train"), ("ablation", "ablate_ipc")):
        earlier = Manifest(experiment=experiment, question="", command="", created="")
        write_manifest(tmp_path / "out" / name, earlier)
        (tmp_path / "out" / name / "table.md").write_text("earlier")
    (tmp_path / "trial.yaml").write_text(TRIAL)
    (tmp_path / "typo.yaml").write_text("distiller: {stepz: 3}")
    (tmp_path / "broken.yaml").write_text("rounds: [")
    (tmp_path / "rounds.yaml").write_text("test_rounds: all")
    (tmp_path / "graphs.yaml").write_text("graphs: true")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "text.pt").write_text("weights")
    save_file({"fc.weight": torch.ones(1)}, tmp_path / "other.safetensors")
    condensed(tmp_path / "classes.pt", classes=7)
    condensed(tmp_path / "shape.pt", side=16)
    condensed(tmp_path / "nan.pt", value=float("nan"))
    twice(tmp_path / "twice.pt")
    condensed(tmp_path / "noise.pt")
    return tmp_path


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


def refusal(monkeypatch: pytest.MonkeyPatch, capsys, folder: Path, program: str, line: str) -> str:
    """Run a command, check that it ends with code 2 and changes no file, and return its message."""
    arguments = line.format(folder=folder).split()
    if program == "train" and not arguments[0].endswith(".yaml"):
        arguments = [str(folder / "trial.yaml"), *arguments]
    if "--out" not in arguments:
        arguments += ["--out", str(folder / "out" / program)]
    whole = [program, *arguments, "--cache", str(folder / "cache")]
    before, entries = files(folder), set(folder.iterdir())
    monkeypatch.setenv("COLUMNS", "200")  # tyro breaks lines to fit
    monkeypatch.setattr(sys, "argv", whole if program == "ablation" else ["condkd", *whole])
    with pytest.raises(SystemExit) as caught:
        __main__.main() if program == "train" else runpy.run_path(str(ABLATION), run_name="__main__")
    found = capsys.readouterr()
    assert caught.value.code == 2, found
    assert files(folder) == before
    assert set(folder.iterdir()) - {folder / "cache"} == entries
    assert "training teacher" not in found.err
    assert found.out == ""
    return found.err


def one_message(errors: str) -> str:
    *notes, line = errors.splitlines()
    assert all(note.startswith("condensing") for note in notes)
    assert line.startswith("error: ")
    return line


FLAGS = [
    ("--dataset imagenet", "flags: data is 'imagenet'; accepted: digits, mnist, fashion_mnist, cifar10"),
    ("--dataset {folder}", "flags: data is '{folder}'; accepted: digits, mnist"),
    ("--dataset cifar10", "data.root of cifar10 is None; accepted: the folder that holds the data set"),
    ("--dataset mnist --data-root {folder}/none", "data.root is '{folder}/none'; accepted: an existing folder"),
    ("--dataset mnist --data-root {folder}/empty", "data.root of mnist is '{folder}/empty'; accepted: train-images"),
    ("--dataset parquet --data-root {folder}/empty", "data.root is '{folder}/empty'; accepted: a folder with train*"),
    ("--teacher resnt-8-16", "network is 'resnt-8-16'; accepted: lenet5, lenet5_half, resnet-DEPTH-WIDTH"),
    ("--teacher {folder}/text.pt", "network is '{folder}/text.pt'; accepted: lenet5"),
    ("--student resnet-9-8", "resnet depth is 9; accepted: 6n + 2, such as 8, 14, 20"),
    ("--student lenet5", "network lenet5 on images of 8x8: smallest side is 8; accepted: 16 or more"),
    ("--size 4", "network resnet-8-16 on images of 4x4: smallest side is 4; accepted: 8 or more"),
    ("--size 16 --teacher lenet5", "number of the teacher's batch normalisation layers is 0; accepted: 1 or more"),
    ("--inversion gan", "flags: inversion is 'gan'; accepted: fast, "),
    ("--guidance gan", "flags: guidance is 'gan'; accepted: none, "),
    ("--guidance-weight -1", "guidance weight is -1.0; accepted: >= 0"),
    ("--condensation gan", "flags: condensation is 'gan'; accepted: random_real, "),
    ("--condensation {folder}/noise.pt", "flags: condensation is '{folder}/noise.pt'; accepted: random_real, "),
    ("--condensation imported", "--condensed-path is None; accepted: the condensed set to import"),
    ("--condensed-share 1.5", "condensed_share is 1.5; accepted: 0 <= share <= 1"),
    ("--condensed-share nan", "condensed_share is nan; accepted: 0 <= share <= 1"),
    ("--ipcs 0 5", "--ipcs is (0, 5); accepted: one or more integers >= 1"),
    ("--seeds -1", "--seeds is (-1,); accepted: one or more integers >= 0"),
    ("--teachers 0", "--teachers is 0; accepted: 1 to 5, the number of --seeds"),
    ("--teachers 3 --seeds 0 1", "--teachers is 3; accepted: 1 to 2, the number of --seeds"),
    (
        "--teachers 2 --teacher-weights {folder}/other.safetensors",
        "--teachers with --teacher-weights {folder}/other.safetensors is 2; accepted: 1, that of the file",
    ),
    ("--config {folder}/rounds.yaml", "flags: test_rounds is 'all'; accepted: 'subset' or 'full'"),
    ("--seeds 0 0", "trial planned twice is 'none seed 0 and none seed 0'; accepted: arms, IPCs and seeds"),
    ("--condensed-share 0 --arms guided guided_only", "guided ipc 1 seed 0 and guided_only ipc 1 seed 0'; accepted"),
    ("--rounds 0", "rounds is 0; accepted: an integer >= 1"),
    ("--teacher-epochs 0", "epochs of the teacher is 0; accepted: 1 or more"),
    ("--teacher-weights {folder}/none.pt", "'{folder}/none.pt', which cannot be read"),
    ("--teacher-weights {folder}/text.pt", "weights file {folder}/text.pt cannot be read safely"),
    ("--teacher-weights {folder}/other.safetensors", "do not fit the network: missing: conv.weight, "),
    ("--config {folder}/typo.yaml", "flags: distiller: 'stepz' names no field (did you mean steps?); accepted: "),
    ("--config {folder}/none.yaml", "config file is '{folder}/none.yaml', which cannot be read"),
    ("--config {folder}/broken.yaml", "{folder}/broken.yaml is not YAML"),
    ("--out {folder}/file", "--out {folder}/file is a file; accepted: a new folder"),
    ("--out {folder}/file/deeper", "--out is '{folder}/file/deeper'; accepted: a folder that can be written"),
    ("--out /proc/results", "--out is '/proc/results'; accepted: a folder that can be written"),
    ("--storage what://bucket/x", "--storage is 'what://bucket/x'; accepted: a folder, or the URI of one in an object"),
    ("--storage s3://KEY:SECRET@bucket/x", "--storage is 's3://...'; accepted: a URI without secrets"),
    ("--fresh --storage {folder}/file", "--storage is '{folder}/file'; accepted: a folder, or the URI"),
    ("--out {folder}/out/train", "holds experiment 'train'; accepted: a new folder, or one of 'ablate_ipc'"),
    ("--explain --out {folder}/out/train", "holds experiment 'train'; accepted: a new folder, or one of 'ablate_ipc'"),
    ("--max-concurrent 0", "--max-concurrent is 0; accepted: an integer >= 1"),
    ("--time-budget soon", "--time-budget is 'soon'; accepted: hours, minutes and seconds such as 2h"),
    ("--resource GPU=1", "--resource is 'GPU=1'; accepted: --cpus-per-trial and --gpus-per-trial for these"),
    ("--resource disk=1 --resource disk=2", "--resource is 'disk=1 disk=2'; accepted: each NAME once"),
    (
        "--device-pool-limit 1GB",
        "--device-pool-limit for a trial on a CPU is '1GB'; accepted: none, or --gpus-per-trial above 0",
    ),
    (
        "--device-pool-limit 9kB --gpus-per-trial 1",
        "--device-pool-limit is '9000 bytes'; accepted: at least the 9216 bytes of a round's 128 images",
    ),
    ("--only ab", "--only is 'ab'; accepted: the beginning of the hash of one planned trial: none"),
    ("--only ab --out {folder}/new", "holds no experiment.json; accepted: a folder that an experiment has written"),
    ("--only ab --fresh", "--only is 'ab'; accepted: hashes of trials of an earlier run, without --fresh"),
    ("--fresh --config {folder}/graphs.yaml", GRAPHS),
    ("--explain --config {folder}/graphs.yaml", GRAPHS),
    ("--out {folder}/new --config {folder}/graphs.yaml", GRAPHS),
    ("--fresh --dataset imagenet", "flags: data is 'imagenet'; accepted: digits"),
    ("--fresh --size 4", "network resnet-8-16 on images of 4x4"),
]


@pytest.mark.parametrize(("line", "message"), FLAGS, ids=[line for line, _ in FLAGS])
def test_an_experiment_refuses_bad_flags(monkeypatch, capsys, folder, line, message):
    error = one_message(refusal(monkeypatch, capsys, folder, "ablation", line))
    assert message.format(folder=folder) in error


def test_a_missing_bucket_is_refused(monkeypatch, capsys, folder, s3):
    line = f"--storage s3://nobody/x?{s3}"
    error = one_message(refusal(monkeypatch, capsys, folder, "ablation", line))
    assert "--storage is 's3://nobody/x'; accepted: a folder, or the URI" in error
    assert "NO_SUCH_BUCKET" in error


SET = "--condensation.path {folder}/"
FIELDS = [
    ("{folder}/none.yaml", "config file is '{folder}/none.yaml', which cannot be read"),
    ("{folder}/typo.yaml", "typo.yaml: distiller: 'stepz' names no field (did you mean steps?); accepted: loss, steps"),
    ("{folder}/broken.yaml", "{folder}/broken.yaml is not YAML"),
    ("--threads 0", "--threads is 0; accepted: an integer >= 1"),
    ("--device-pool-limit soon", "--device-pool-limit is 'soon'; accepted: a size such as 500MB or 4GB"),
    ("--device-pool-limit 1GB", "--device-pool-limit for a trial on a CPU is '1GB'; accepted: none, or a GPU"),
    ("--condensation.ipc 1000", "number of images per class is 1000; accepted: at most "),
    ("--data.size 4", "network resnet-8-4 on images of 4x4: smallest side is 4; accepted: 8 or more"),
    ("--teacher.weights {folder}/other.safetensors", "do not fit the network: missing: conv.weight, "),
    ("--teacher.weights {folder}/text.pt", "weights file {folder}/text.pt cannot be read safely"),
    ("--data.name cifar10", "data.root of cifar10 is None; accepted: the folder that holds the data set"),
    ("--out {folder}/file", "--out {folder}/file is a file; accepted: a new folder"),
    ("--out {folder}/out/ablation", "holds experiment 'ablate_ipc'; accepted: a new folder, or one of 'train'"),
    ("--fresh --graphs", GRAPHS),
    ("--out {folder}/new --graphs", GRAPHS),
    ("--fresh --data.size 4", "network resnet-8-4 on images of 4x4"),
]


@pytest.mark.parametrize(("line", "message"), FIELDS, ids=[line for line, _ in FIELDS])
def test_condkd_train_refuses_bad_input(monkeypatch, capsys, folder, line, message):
    error = one_message(refusal(monkeypatch, capsys, folder, "train", line))
    assert message.format(folder=folder) in error


NAMED = [
    ("--teacher.weights {path}", "which cannot be read (File name too long)"),
    ("--teacher.weights {folder}/text.pt --teacher.card {path}", "which cannot be read"),
    ("{path}", "which cannot be read"),
    ("--out {path}", "accepted: a folder that can be written (File name too long)"),
    ("--fresh --out {path}", "accepted: a folder that can be written (File name too long)"),
    *((f"--data.name {name} --data.root {{path}}", "accepted: an existing folder") for name in ("parquet", "mnist")),
    *((f"--data.name {name} --data.root {{path}}", "existing folder") for name in ("image_folder", "class_folders")),
    ("--data.name parquet --data.root {folder} --data.train-file {path}", "accepted: a file or pattern in "),
]


@pytest.mark.parametrize(("line", "message"), NAMED, ids=[line for line, _ in NAMED])
def test_a_path_that_raises_an_error_in_the_operating_system_is_refused(monkeypatch, capsys, folder, line, message):
    """`Path.is_file` raises for names that are too long and for files in folders without permission."""
    path = f"{folder}/{'x' * 300}.yaml"
    line = line.replace("{path}", path)
    error = one_message(refusal(monkeypatch, capsys, folder, "train", line))
    assert message in error


METHODS = [
    (
        "guidance: {name: discriminator, layer: stages.9}",
        "teacher layer is 'stages.9'; accepted: penultimate, conv",
    ),
    ("guidance: {name: discriminator, held_out: 1.0}", "discriminator held_out is 1.0; accepted: 0 <= share < 1"),
    ("guidance: {name: discriminator, loss: hinge, label_smoothing: 0.1}", "under loss hinge is 0.1; accepted: 0, or "),
    ("guidance: {name: discriminator, condition: lable}", "guidance: condition is 'lable'; accepted: 'auxiliary', "),
    ("guidance: {name: moments, covariance_weight: -1}", "covariance_weight is -1.0; accepted: >= 0"),
    (
        "guidance: {name: moments, stages: 4}",
        "guidance stages is 4; accepted: 0 to 2; in addition to its features this teacher",
    ),
    (
        "guidance: {name: mmd, stages: 1, layer: stages.1}",
        "guidance layer with stages 1 is 'stages.1'; accepted: penultimate, or a layer other than the stages",
    ),
    (
        "guidance: {name: discriminator, alignment: marginal}",
        "under alignment marginal is 'projection'; accepted: none",
    ),
    ("inversion: {name: fast, lr_latent: -1}", "inversion lr_latent is -1.0; accepted: >= 0, and finite"),
    ("guidance: {name: gaussian, mixup: 0.5}", "gaussian mixup is 0.5; accepted: 0: it reads no condensed images"),
    ("guidance: {name: gaussian, shrinkage: some}", "shrinkage is 'some'; accepted: 'ledoit_wolf', 'oas' or 'none'"),
    ("guidance: {name: mmd, schedule: {start: -1}}", "schedule start or end is -1.0; accepted: a factor >= 0"),
    ("inversion: {name: cmi, layers: stage3}", "inversion: layers is 'stage3'; accepted: 'stages' or 'all'"),
    (
        "inversion: {name: cmi, bank: 1000000000, batch: 1000000000}",
        "memory of inversion bank, 1000000000 rows of 2 x ",
    ),
    ("memory: {name: bank, entry_size: 1000}", "memory entry_size is 1000; accepted: at most "),
    ("distiller: {share_schedule: {start: 9}, condensed_share: 0.5}", "share_schedule is 4.5; accepted: at most 1"),
    (
        "distiller: {optimizer: adam, nesterov: true}",
        "nesterov with optimizer adam is True; accepted: off, or optimizer",
    ),
    ("distiller: {lr_schedule: multi_step, milestones: [1, 40]}", "milestone is 40; accepted: less than "),
]


@pytest.mark.parametrize("program", ["train", "ablation"])
@pytest.mark.parametrize(("fields", "message"), METHODS, ids=[fields for fields, _ in METHODS])
def test_a_method_that_does_not_fit_is_refused(monkeypatch, capsys, folder, program, fields, message):
    tree = yaml.safe_load(fields) if program == "ablation" else yaml.safe_load(TRIAL) | yaml.safe_load(fields)
    (folder / "own.yaml").write_text(yaml.safe_dump(tree))
    line = "--config {folder}/own.yaml" if program == "ablation" else "{folder}/own.yaml"
    assert message in one_message(refusal(monkeypatch, capsys, folder, program, line))


def test_guidance_without_a_condensed_set_is_refused(monkeypatch, capsys, folder):
    tree = yaml.safe_load(TRIAL) | {"condensation": None, "distiller": {}, "guidance": {"name": "mmd"}}
    (folder / "own.yaml").write_text(yaml.safe_dump(tree))
    error = one_message(refusal(monkeypatch, capsys, folder, "train", "{folder}/own.yaml"))
    assert "guidance without a condensation is 'mmd'; accepted: none, or a condensation" in error


SETS = [
    ("none.pt", 2, "condensed set is '{folder}/none.pt'; accepted: an existing file or folder"),
    (f"{'x' * 300}.pt", 2, "x.pt'; accepted: an existing file or folder"),
    ("file", 2, "condensed set is '{folder}/file'; accepted: .pt or .pth"),
    ("text.pt", 2, "cannot read {folder}/text.pt"),
    ("classes.pt", 2, "labels in {folder}/classes.pt is [0, 1, 2, 3, 4, 5, 6]; accepted: 10 classes, each of 0 to 9"),
    ("shape.pt", 2, "shape of the images in {folder}/shape.pt is (1, 16, 16); accepted: (1, 8, 8)"),
    ("nan.pt", 2, "pixels in {folder}/nan.pt is 'not all finite'; accepted: finite values"),
    ("twice.pt", 2, "space of condensed set twice.pt, 2 a class is 'normalised twice, by its pixels'; accepted: "),
    ("noise.pt", 3, "condensation.ipc of {folder}/noise.pt is 3; accepted: 1 to 2, as many as the file has"),
    ("noise.pt", 0, "condensation.ipc is 0; accepted: 1 or more"),
]


@pytest.mark.parametrize(("name", "ipc", "message"), SETS, ids=[f"{name[-20:]} {ipc}" for name, ipc, _ in SETS])
def test_a_condensed_set_that_does_not_fit_is_refused(monkeypatch, capsys, folder, name, ipc, message):
    old, new = "{name: random_real, ipc: 2}", f"{{name: imported, path: {folder}/{name}, ipc: {ipc}}}"
    (folder / "own.yaml").write_text(TRIAL.replace(old, new))
    error = one_message(refusal(monkeypatch, capsys, folder, "train", "{folder}/own.yaml"))
    assert message.format(folder=folder) in error


# Refused while the command line is parsed: messages of tyro, in a frame.
WORDS = [
    ("train", "--inversion.stepz 3", ("stepz", "--inversion.steps")),
    ("train", "--rounds three", ("rounds", "three", "INT")),
    ("train", "--rounds 0", ("rounds is 0", "an integer >= 1")),
    ("train", "--distiller.steps 0", ("student steps is 0", "an integer >= 1")),
    ("train", "--condensation.ipc 0", ("condensation.ipc is 0", "1 or more")),
    ("train", "--precision half", ("precision", "half", "bfloat16")),
    ("ablation", "--inversoin dafl", ("--inversoin", "--inversion")),
    ("ablation", "--arms guidde", ("arms", "guidde", "guided")),
    ("ablation", "--rounds many", ("rounds", "many", "INT")),
]


@pytest.mark.parametrize(("program", "line", "words"), WORDS, ids=[f"{p} {line}" for p, line, _ in WORDS])
def test_the_command_line_refuses_bad_flags_and_values(monkeypatch, capsys, folder, program, line, words):
    errors = refusal(monkeypatch, capsys, folder, program, line)
    assert "Traceback" not in errors
    for word in words:
        assert word in errors, errors


def test_a_report_of_a_folder_without_results_is_refused(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["condkd", "report", str(tmp_path)])
    with pytest.raises(SystemExit) as caught:
        __main__.main()
    assert caught.value.code == 2
    assert one_message(capsys.readouterr().err).startswith(f"error: {tmp_path} holds no experiment.json; accepted: ")


def test_the_real_command_ends_with_code_two_and_one_line(folder):
    command = [sys.executable, "-m", "condkd_ray", "train", str(folder / "typo.yaml"), "--out", str(folder / "new")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 2
    assert done.stdout == ""
    assert one_message(done.stderr).startswith("error: ")
    assert not (folder / "new").exists()
