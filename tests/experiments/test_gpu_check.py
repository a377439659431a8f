import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, get_args

import gpu_check
import psutil
import pytest
import torch
from gpu import halves, parts, recipes, segmentation, steps, suite, waits, world
from gpu.parts import Box, BoxEndedError, Part, Report, Setup, SkippedError, Verdict, boxed, run, run_part
from gpu.plan import MINUTES, PARTS
from gpu.settings import FIELDS, choose, write
from gpu.sizes import RECIPE, full, tiny
from gpu.teacher import Kept, Training, read, teacher
from gpu.timing import PEAKS, gpu_work, launched, milliseconds
from guard import DEVICE, Guard, WaitsError, covered_without_classes, simulated, without_logits
from PIL import Image
from places import EXPERIMENTS, TESTS
from torch import Tensor
from torch._dynamo.utils import counters
from torch.autograd.profiler_util import DeviceType, Interval

from condkd_ray.core import compilation
from condkd_ray.core.method import InputError, Meter
from condkd_ray.data.datasets import Dataset, RealImages
from condkd_ray.data.readers import read_parquet
from condkd_ray.methods.guidance import AnyGuidance, Gaussian, Guidance
from condkd_ray.methods.inversion import AnyInversion, NoInversion, nayer
from condkd_ray.methods.losses.kd import LogitL1
from condkd_ray.methods.memory import AnyMemory, Prioritized, device_rows
from condkd_ray.methods.memory.prioritized import PrioritizedState
from condkd_ray.methods.memory.store import LiveIds
from condkd_ray.models import ResNet
from condkd_ray.models.cost import cost_of
from condkd_ray.trial.config import TrialConfig

CPU = torch.device("cpu")
BLOCKED = """
import importlib.metadata
import sys

MISSING = ("ray", "optuna", "tyro")
found = importlib.metadata.version

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in MISSING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

def version(name):
    if name in MISSING:
        raise importlib.metadata.PackageNotFoundError(name)
    return found(name)

sys.meta_path.insert(0, Blocked())
importlib.metadata.version = version
"""


def command(*flags: str, paths: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    found = os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])])
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": found}
    script = [sys.executable, str(EXPERIMENTS / "gpu_check.py"), *flags]
    return subprocess.run(script, capture_output=True, text=True, env=env, timeout=3600)


def numbers(tree):
    if isinstance(tree, dict):
        return [number for value in tree.values() for number in numbers(value)]
    return [float(tree)] if isinstance(tree, (int, float)) else []


@pytest.mark.slow
def test_all_parts_pass_with_tiny_on_a_cpu_without_ray_optuna_and_tyro(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(BLOCKED)
    out = tmp_path / "found" / "check.json"
    # On an idle machine the tiny check takes a minute. With ten hours, no part runs out of time on a slow machine.
    flags = ("--tiny", "--minutes", "600", "--out", str(out), "--work", str(tmp_path / "work"))
    done = command(*flags, paths=(str(tmp_path),))
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    parts = found["parts"]
    assert list(parts) == list("abcdefghi")
    assert {entry["status"] for entry in parts.values()} == {"passed"}, done.stdout
    assert found["about"]["tiny"] is True
    for letter, entry in parts.items():
        assert f"({letter}) {entry['name']}: passed: " in done.stdout
        values = numbers(entry["figures"])
        assert values or letter == "b"
        assert all(map(math.isfinite, values))
    figures = {letter: entry["figures"] for letter, entry in parts.items()}
    assert any("test_out_of_memory.py" in line for line in figures["b"]["left out"])
    assert figures["a"]["matrix product"]["tflops"] > 0
    assert figures["c"]["rounds"] == {"run": 60, "failed": 0, "checked": False}
    for row in ("float32, batch 8", "bfloat16, batch 16"):
        for step in ("synthesis", "distillation"):
            measured = figures["d"][f"{row}, {step}"]
            assert min(measured["ms"], measured["operators"], measured["images_per_second"], measured["tflops"]) > 0
    assert figures["e"]["200 chunks"]["ms"] > 0
    assert figures["f"]["test_accuracy"] > 0.2
    assert figures["g"]["progress"]["rounds"] == figures["g"]["progress"]["of"]
    assert 0 <= figures["g"]["student"]["test_accuracy"] <= 1
    assert {"mixed", "mixed_prior", "guided"} <= set(figures["h"])
    assert {"published", "guided", "float32", "bfloat16"} <= set(figures["i"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--tiny", "--only", "z"), "--only is 'z'; accepted: letters of abcdefghi"),
        (("--tiny", "--minutes", "0"), "--minutes is 0.0; accepted: a number above 0, at most 600"),
        (("--tiny", "--data-root", "nowhere"), "--data-root is 'nowhere'; accepted: a folder"),
        (("--only", "a"), "device is 'cpu'; accepted: a CUDA device; or --tiny, on the CPU"),
    ],
)
def test_invalid_flags_are_refused_before_anything_is_written(flags, message, tmp_path):
    if flags == ("--only", "a") and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    args = gpu_check.PARSER.parse_args([*flags, "--out", str(tmp_path / "check.json"), "--work", str(tmp_path)])
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        gpu_check.check(args)
    assert not list(tmp_path.iterdir())


def test_an_output_folder_that_cannot_be_made_is_refused_with_exit_code_2(tmp_path):
    (tmp_path / "file").touch()
    done = command("--tiny", "--out", str(tmp_path / "file" / "check.json"), "--work", str(tmp_path / "work"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: folder of --out is '{tmp_path}/file'; accepted: a folder")


UNINSTALLED = """
import sys
from pathlib import Path

sys.path[:] = [folder for folder in sys.path if not Path(folder, "condkd_ray").is_dir()]
# An editable installation is found by a finder, not by its folder on the path.
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
"""


def test_the_script_runs_from_a_clone_that_is_not_installed(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(BLOCKED + UNINSTALLED)
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path)}
    options = {"capture_output": True, "text": True, "env": env, "cwd": tmp_path, "timeout": 300}
    assert subprocess.run([sys.executable, "-c", "import condkd_ray"], **options).returncode == 1
    flags = ["--tiny", "--only", "e", "--out", "check.json", "--work", "work"]
    done = subprocess.run([sys.executable, EXPERIMENTS / "gpu_check.py", *flags], **options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "check.json").read_text())["parts"]["e"]["status"] == "passed"


def test_the_plan_fits_into_nine_minutes_and_the_full_recipe_has_the_longest_part():
    assert "".join(part.letter for part in PARTS) == "abcdefghi"
    assert sum(part.seconds for part in PARTS) <= 540 == 60 * MINUTES
    assert max(PARTS, key=lambda part: part.seconds).letter == "g"
    assert [part.letter for part in PARTS if part.takes_rest] == ["g"]


def setup(tmp_path, **changes) -> Setup:
    return replace(Setup(CPU, tiny(), None, tmp_path / "work"), **changes)


def report(tmp_path) -> Report:
    return Report(tmp_path / "check.json", {"device": "cpu"})


def box(tmp_path, part: str = "g", seconds: float = 100.0) -> Box:
    return Box(report(tmp_path), part, parts.time.monotonic() + seconds)


def breaks(_: Setup, box: Box) -> Verdict:
    box.note("before", 1)
    raise RuntimeError("no such kernel")


def hangs(_: Setup, box: Box) -> Verdict:
    box.note("begun", 1)
    # The time limit of the part is over now. The alarm repeats, as that of `boxed` does.
    signal.setitimer(signal.ITIMER_REAL, 0.01, 1.0)
    while True:
        with suppress(Exception):
            time.sleep(0.01)


def finds_no_number(_: Setup, box: Box) -> Verdict:
    box.note("share", float("nan"))
    return Verdict(True, "never reached")


def is_skipped(_: Setup, box: Box) -> Verdict:
    raise SkippedError("needs a GPU")


def misses_its_goal(_: Setup, box: Box) -> Verdict:
    return Verdict(False, "3 %; goal: 25 %")


def reads_the_report(_: Setup, box: Box) -> Verdict:
    box.note("here", 1.5)
    box.note("parts", list(json.loads(box.report.path.read_text())["parts"]))
    return Verdict(True, "fine")


def test_a_part_that_fails_stops_no_other_part_and_its_figures_stay(tmp_path):
    functions = (breaks, hangs, finds_no_number, is_skipped, misses_its_goal, reads_the_report)
    parts = [Part(letter, letter * 2, 1, function) for letter, function in zip("abcdef", functions, strict=True)]
    found = report(tmp_path)
    assert run(parts, setup(tmp_path), found, minutes=60) == 1
    entries = json.loads(found.path.read_text())["parts"]
    kinds = ["failed", "skipped", "failed", "skipped", "failed", "passed"]
    assert [entry["status"] for entry in entries.values()] == kinds
    assert entries["a"]["told"] == "RuntimeError: no such kernel"
    assert "raise RuntimeError" in "\n".join(entries["a"]["trace"])
    assert entries["a"]["figures"] == {"before": 1}
    assert entries["b"]["told"].startswith("time: ")
    assert entries["b"]["figures"] == {"begun": 1}
    assert entries["c"]["told"].startswith("ValueError: ")
    assert "figures" not in entries["c"]
    assert entries["d"]["told"] == "needs a GPU"
    assert entries["f"]["figures"] == {"here": 1.5, "parts": list("abcdef")}


def test_figures_of_earlier_calls_are_kept_under_earlier(tmp_path):
    """Figures are kept whether the call failed, was cut short, was killed or passed; other parts read the newest."""
    given, found = setup(tmp_path), report(tmp_path)
    known: list[dict[str, Any]] = []

    def is_killed(_: Setup, box: Box) -> Verdict:
        box.note("rows", 1)
        raise SystemExit(143)

    for function, status, figures in (
        (finds(-1.0), "failed", {"value": -1.0}),
        (finds(5.0), "passed", {"value": 5.0}),
        (breaks, "failed", {"before": 1}),
        (hangs, "skipped", {"begun": 1}),
        (is_killed, "begun", {"rows": 1}),
        (finds(6.0), "passed", {"value": 6.0}),
    ):
        with suppress(SystemExit):
            run([Part("d", "rows", 1, function)], given, found, 60)
        entry = json.loads(found.path.read_text())["parts"]["d"]
        assert (entry["status"], entry["figures"]) == (status, figures)
        assert entry.pop("earlier", []) == known
        known.insert(0, entry)
        values = [one["figures"]["value"] for one in known if "value" in one["figures"]]
        assert Box(found, "g", math.inf).found("d", "value") == values[0]
    # A call without figures is not kept.
    with suppress(SystemExit):
        run([Part("d", "rows", 1, finds_no_number)], given, found, 60)
    run([Part("d", "rows", 1, finds(7.0))], given, found, 60)
    assert found.parts["d"]["earlier"] == known


def finds(value: float):
    def part(_: Setup, box: Box) -> Verdict:
        box.note("value", value)
        return Verdict(value > 0, "found")

    return part


def test_a_later_call_adds_to_the_report_of_the_same_commit_and_device(tmp_path):
    about = {"git": "1", "device": "cpu", "tiny": True, "torch": "2", "minutes": 9}
    path, given = tmp_path / "check.json", setup(tmp_path)
    bad, good = Part("c", "c", 1, finds(-1.0)), Part("a", "a", 1, finds(1.0))
    assert run([bad, Part("d", "d", 1, finds(3.0))], given, Report.opened(path, about), 1) == 1
    # The exit code is that of the parts of this call.
    assert run([good], given, Report.opened(path, about | {"minutes": 1}), 1) == 0
    found = json.loads(path.read_text())
    assert {letter: entry["status"] for letter, entry in found["parts"].items()} == {
        "a": "passed",
        "c": "failed",
        "d": "passed",
    }
    assert list(found["parts"]) == ["a", "c", "d"]
    assert found["about"]["minutes"] == 1
    # A part that is run again gets a new entry; the entry of a part that is skipped this time stays.
    again = [replace(bad, run=finds(5.0)), Part("d", "d", 1, is_skipped)]
    assert run(again, given, Report.opened(path, about), 1) == 0
    parts = json.loads(path.read_text())["parts"]
    assert (parts["c"]["status"], parts["c"]["figures"]) == ("passed", {"value": 5.0})
    assert (parts["d"]["status"], parts["d"]["figures"]) == ("passed", {"value": 3.0})


@pytest.mark.parametrize("other", ["git", "device", "tiny", "torch"])
def test_a_report_of_another_commit_or_device_is_renamed_and_a_new_one_begun(tmp_path, capsys, other):
    about = {"git": "1", "device": "cpu", "tiny": True, "torch": "2"}
    path = tmp_path / "check.json"
    for value in ("x", "y", "z"):
        Report.opened(path, about | {other: value}).note("a", status=value)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == f"{path} was of another {other}: it is now check.2.json, and a new report begins"
    files = {name: json.loads((tmp_path / name).read_text()) for name in ("check.json", "check.1.json", "check.2.json")}
    assert [found["parts"]["a"]["status"] for found in files.values()] == ["z", "x", "y"]


REPORT = '{"about": {"git": "1"}, "parts": %s}'


@pytest.mark.parametrize(
    "text", ["no JSON", "[]", "{}", '{"about": 3, "parts": {}}', REPORT % "[]", REPORT % '{"a": 3}']
)
def test_a_file_that_is_no_report_is_refused_and_not_changed(tmp_path, text):
    path = tmp_path / "check.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"^--out is .*check.json'; accepted: a report of this script, or no file yet"):
        Report.opened(path, {"git": "1"})
    assert path.read_text() == text


class Clock:
    """Replacement for `time` in `gpu.parts`; the test sets the current time."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    found = Clock()
    monkeypatch.setattr("gpu.parts.time", found)
    return found


def test_the_exit_code_is_0_and_unused_time_goes_to_the_part_that_takes_the_rest(tmp_path, clock):
    seconds: dict[str, float] = {}

    def records_its_seconds(setup: Setup, box: Box) -> Verdict:
        seconds[box.part] = box.left
        clock.now += 2
        return Verdict(True, "recorded")

    parts = [
        Part("a", "short", 4, records_its_seconds),
        Part("b", "the rest", 2, records_its_seconds, takes_rest=True),
        Part("c", "last", 4, records_its_seconds),
    ]
    assert run(parts, setup(tmp_path), report(tmp_path), minutes=0.5) == 0
    # Part (a) used two of its twelve seconds.
    assert seconds == {"a": 12, "b": 16, "c": 12}


@pytest.mark.parametrize("seconds", [0.0, -3.0])
def test_a_part_without_time_left_is_skipped(tmp_path, seconds):
    begun: list[Box] = []
    found = report(tmp_path)
    late = Part("b", "late", 1, lambda _, box: Verdict(True, str(begun.append(box))))
    run_part(late, setup(tmp_path), found, seconds)
    assert not begun
    assert found.parts["b"]["status"] == "skipped"
    assert found.parts["b"]["told"] == "time: 0 s were not enough"


def test_without_data_the_full_teacher_and_the_parts_that_need_it_are_skipped(tmp_path):
    whole = setup(tmp_path, sizes=replace(full(), recipe=tiny().recipe))
    for part in (teacher, recipes.published, recipes.arms):
        with pytest.raises(SkippedError, match="needs CIFAR-10: --data-root"):
            part(whole, box(tmp_path))
    with pytest.raises(SkippedError, match=r"needs the teacher of \(f\)"):
        recipes.published(setup(tmp_path), box(tmp_path))


def colours(count: int, seed: int) -> RealImages:
    """Random 32x32 images, three of each ten in a class's own shade, so that no two classes are alike."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 10
    pixels = torch.randint(0, 100, (count, 3, 32, 32), generator=rng) + 15 * labels.view(-1, 1, 1, 1)
    return RealImages(pixels.to(torch.uint8), labels)


@pytest.fixture
def dataset() -> Dataset:
    train, test, names = colours(201, 0), colours(60, 1), tuple("abcdefghij")
    return Dataset("cifar10", train, None, test, 10, names, (0.5,) * 3, (0.25,) * 3, True, "0")


def test_two_halves_form_a_data_root_with_every_pixel_of_the_dataset(tmp_path, dataset):
    folder = tmp_path / "halves"
    sizes = halves.write(dataset, folder)
    names = sorted(path.name for path in folder.iterdir())
    assert names == [f"{split}-0000{n}-of-00002.parquet" for split in ("test", "train") for n in range(2)]
    for number, size in enumerate(sizes):
        assert size == sum((folder / name).stat().st_size for name in names if f"-0000{number}-" in name)
    found = read(setup(tmp_path, data_root=folder))
    assert (found.name, found.image_shape, found.class_names) == ("cifar10", (3, 32, 32), dataset.class_names)
    for loaded, original in ((found.train, dataset.train), (found.test, dataset.test)):
        assert torch.equal(loaded.pixels, original.pixels)
        assert torch.equal(loaded.labels, original.labels)
    assert len(read_parquet([folder / names[2]])) == 101


def test_data_other_than_cifar10_are_refused_before_anything_is_measured(tmp_path, dataset):
    def refused(folder: str) -> str:
        out = ("--out", str(tmp_path / "found" / "check.json"), "--work", str(tmp_path / "work"))
        args = gpu_check.PARSER.parse_args(["--tiny", *out, "--data-root", str(tmp_path / folder)])
        with pytest.raises(InputError) as found:
            gpu_check.check(args)
        assert not (tmp_path / "found" / "check.json").exists()
        return str(found.value)

    def seven(images: RealImages) -> RealImages:
        return RealImages(images.pixels, images.labels % 7)

    fewer = {"train": seven(dataset.train), "test": seven(dataset.test), "num_classes": 7}
    halves.write(replace(dataset, class_names=tuple("abcdefg"), **fewer), tmp_path / "seven")
    message = "data in --data-root is (7, (3, 32, 32), 201, 60); accepted: CIFAR-10, (10, (3, 32, 32), 50000, 10000)"
    assert refused("seven") == message
    (tmp_path / "empty").mkdir()
    assert refused("empty").startswith("cannot read CIFAR10")
    halves.write(dataset, tmp_path / "few")
    with pytest.raises(InputError, match=re.escape("data in --data-root is (10, (3, 32, 32), 201, 60); accepted: ")):
        read(setup(tmp_path, sizes=full(), data_root=tmp_path / "few"))


@contextmanager
def begun(*flags: str):
    """Start the command; yield its process and that of its pytest, which is suspended."""
    program = [sys.executable, str(EXPERIMENTS / "gpu_check.py"), "--tiny", "--only", "b", *flags]
    inner: list[psutil.Process] = []
    with subprocess.Popen(program, stdout=subprocess.DEVNULL) as check:
        try:
            until = time.monotonic() + 300
            while not (inner := [one for one in psutil.Process(check.pid).children() if runs_pytest(one)]):
                assert check.poll() is None
                assert time.monotonic() < until
                time.sleep(0.01)
            inner[0].suspend()
            yield check, inner[0]
        finally:
            check.kill()
            for process in inner:
                with suppress(psutil.NoSuchProcess):
                    process.kill()


def runs_pytest(process: psutil.Process) -> bool:
    """Return whether the process runs pytest; between fork and exec it is still a copy of its parent."""
    with suppress(psutil.NoSuchProcess):
        return "pytest" in process.cmdline()
    return False


@pytest.mark.slow
def test_another_call_in_the_same_folders_is_refused_and_sigterm_ends_pytest_too(tmp_path):
    flags = ("--out", str(tmp_path / "found" / "check.json"), "--work", str(tmp_path / "work"))
    with begun(*flags) as (check, tests):
        for name, flag in (("folder of --out", flags[:2]), ("--work", flags[2:])):
            own = ("--out", str(tmp_path / "own" / "check.json"), "--work", str(tmp_path / "own"))
            done = command("--tiny", "--only", "e", *own, *flag)
            assert (done.returncode, done.stdout) == (2, "")
            assert done.stderr.startswith(f"error: {name} is '{tmp_path}/")
            assert "where another process runs; accepted: another folder" in done.stderr
        check.send_signal(signal.SIGTERM)
        assert check.wait(60) == 128 + signal.SIGTERM
        assert not running(tests.pid)


def test_the_halves_command_writes_halves_and_prints_their_size(tmp_path, dataset, capsys, monkeypatch):
    halves.write(dataset, tmp_path / "source")
    flags = ["--data-root", str(tmp_path / "source"), "--out"]
    assert halves.main([*flags, str(tmp_path / "copy")]) == 0
    assert capsys.readouterr().out.startswith("201 train and 60 test images in halves of ")
    monkeypatch.setattr(halves, "LARGEST", 1000)
    assert halves.main([*flags, str(tmp_path / "other")]) == 1
    done = subprocess.run(
        [sys.executable, "-m", "gpu.halves", *flags, str(tmp_path / "copy")],
        capture_output=True, text=True, cwd=EXPERIMENTS, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert "copy is ['test-00000-of-00002.parquet'," in done.stderr


def test_a_teacher_is_trained_once_and_the_full_recipe_continues_from_its_checkpoint(tmp_path, dataset, monkeypatch):
    halves.write(dataset, tmp_path / "halves")
    given = setup(
        tmp_path, data_root=tmp_path / "halves", sizes=replace(tiny(), recipe=replace(tiny().recipe, rounds=4))
    )
    first, again = box(tmp_path, "f"), box(tmp_path, "f")
    assert teacher(given, first).passed
    passed, text = teacher(given, again)
    assert passed
    assert "of 60 test images, teacher of 2 of 2 epochs; " in text
    found, reused = (one.report.parts["f"]["figures"] for one in (first, again))
    assert found["data"] == {"train": 201, "test": 60, "notes": []}
    assert found["training"]["images_per_second"] > 0
    assert "training" not in reused
    assert reused["epochs"] == found["epochs"] == {"trained": 2, "of_the_recipe": 2}
    assert reused["test_accuracy"] == found["test_accuracy"]

    deadlines: list[float] = []
    monkeypatch.setattr(
        "condkd_ray.trial.run.passed", lambda deadline: deadlines.append(deadline) or len(deadlines) > 3
    )
    stopped = box(tmp_path)
    with pytest.raises(SkippedError, match=UNFINISHED):
        recipes.published(given, stopped)
    assert stopped.report.parts["g"]["figures"]["progress"]["rounds"] == 3
    monkeypatch.setattr("condkd_ray.trial.run.passed", lambda deadline: False)
    rounds: list[int] = []
    monkeypatch.setattr("condkd_ray.trial.run.run_round", counted(rounds))
    rest = box(tmp_path)
    # Another setting is faster now, but the checkpoint was made under the first one.
    rows = {"bfloat16": 0.3, "float32": 0.2, "bfloat16, graphs": 0.1}
    figures = {f"{row}, batch 16, distillation": {"ms": ms} for row, ms in rows.items()}
    assert choose(measured_as(rest, figures), recipes.config_of(given)[0], None).fields["graphs"]
    assert recipes.published(given, rest).passed
    settings = [one.report.parts["g"]["figures"]["setting"] for one in (stopped, rest)]
    assert [one["graphs"] for one in settings] == [False, False]
    assert [one["because"] for one in settings] == [
        "(d) has not measured its distillation at batch 16",
        "a checkpoint was made under it",
    ]
    assert len(rounds) == 2
    assert rest.report.parts["g"]["figures"]["progress"]["rounds"] == 5


UNFINISHED = r"^time: 3 of 5 rounds, projected end at \d+ s, teacher of 2 of 2 epochs; the same command continues$"


def test_a_teacher_with_fewer_epochs_is_reported_and_trained_anew_where_more_epochs_fit(tmp_path, monkeypatch):
    given = setup(tmp_path)
    recipe = replace(given.sizes.teacher, training=replace(given.sizes.teacher.training, epochs=3))
    given = replace(given, sizes=replace(given.sizes, teacher=recipe))
    trained: list[int] = []
    run = Training.run
    monkeypatch.setattr(Training, "run", lambda self, box, epochs: trained.append(epochs) or run(self, box, epochs))
    # Seconds of an epoch; the part has 100, of which it plans to use 80.
    for seconds, wanted in ((50.0, 1), (70.0, 1), (1000.0, 1), (39.0, 2), (1.0, 3), (1000.0, 3)):
        monkeypatch.setattr(Training, "epoch_seconds", lambda self, seconds=seconds: seconds)
        one = box(tmp_path, "f")
        assert f"teacher of {wanted} of 3 epochs" in teacher(given, one).text
        assert one.report.parts["f"]["figures"]["epochs"] == {"trained": wanted, "of_the_recipe": 3}
        config, by = recipes.config_of(given)
        assert (by.epochs, by.of) == (wanted, 3)
        assert config.teacher.weights == by.path
    assert trained == [1, 2, 3]


def test_training_is_skipped_without_time_for_one_epoch(tmp_path, monkeypatch):
    monkeypatch.setattr(Training, "epoch_seconds", lambda self: 1000.0)
    with pytest.raises(SkippedError, match=r"^time: an epoch takes 1000\.0 s$"):
        teacher(setup(tmp_path), box(tmp_path, "f"))


def test_a_little_more_time_trains_no_teacher_anew(tmp_path, monkeypatch, clock):
    given, kept = setup(tmp_path, sizes=full()), Kept(tmp_path / "weights", 60, 80)
    training = Training(given, None, given.sizes.teacher)  # type: ignore[arg-type]
    for fit, wanted in ((40, 60), (65, 60), (66, 66), (80, 80)):
        monkeypatch.setattr(Training, "epoch_seconds", lambda self, fit=fit: 79.9 / fit)
        assert training.planned(box(tmp_path, "f"), kept) == wanted


def measured(tmp_path, **rows: float) -> Box:
    """Return a box whose report has these rows of part (d): milliseconds at batch 256."""
    figures = {f"{row.replace('_', ', ')}, batch 256, distillation": {"ms": ms} for row, ms in rows.items()}
    return measured_as(box(tmp_path), figures | {"bfloat16, batch 1024, distillation": {"ms": 0.01}})


def measured_as(found: Box, figures: dict[str, Any]) -> Box:
    found.report.note("d", figures=figures)
    return found


def test_the_fastest_setting_that_was_measured_is_chosen(tmp_path):
    whole = setup(tmp_path, sizes=full())
    plain = whole.sizes.fast(precision="bfloat16")
    assert plain.distiller.batch == 256

    def chosen(**rows: float) -> tuple[Any, ...]:
        row, fields, _ = choose(measured(tmp_path, **rows), plain, None)
        return (row, *(fields[name] for name in FIELDS))

    assert chosen() == ("bfloat16", "bfloat16", "off", False)
    # Where the row of the default setting is missing, part (d) was cut short or that row failed.
    assert chosen(float32=2.0) == ("bfloat16", "bfloat16", "off", False)
    assert chosen(float32=2.0, bfloat16=3.0) == ("float32", "float32", "off", False)
    eager = {"float32": 9.0, "bfloat16": 5.0, "bfloat16_graphs": 4.0}
    assert chosen(**eager) == ("bfloat16, graphs", "bfloat16", "off", True)
    assert chosen(**eager, bfloat16_compiled=3.0) == ("bfloat16, compiled", "bfloat16", "default", False)
    both = {"bfloat16_compiled": 3.0, "bfloat16_compiled_graphs": 2.0}
    assert chosen(**eager, **both) == ("bfloat16, compiled, graphs", "bfloat16", "default", True)
    # A row that has failed since is not chosen, whatever an earlier call measured.
    again = measured(tmp_path, **eager)
    again.report.parts = {"d": {"earlier": [again.report.parts["d"]]}}
    assert choose(again, plain, None).row == "bfloat16, graphs"
    name = "bfloat16, graphs, batch 256, distillation"
    assert choose(measured_as(again, {name: {"failed": "no room"}}), plain, None).row == "bfloat16"
    # cuDNN's choice by time is not a field of a trial.
    by_time = {"bfloat16_cuDNN by time": 0.5}
    assert chosen(**eager, **by_time) == chosen(**eager)
    assert choose(measured(tmp_path, **eager), plain, None).because == "4 ms, the least of 3 rows of (d)"


def test_a_continued_call_uses_the_setting_of_its_checkpoint(tmp_path):
    whole = setup(tmp_path, sizes=full())
    plain = whole.sizes.fast(precision="bfloat16")
    first = choose(measured(tmp_path, bfloat16=5.0, bfloat16_graphs=4.0), plain, None)
    assert first.row == "bfloat16, graphs"
    write(first, tmp_path)
    again = choose(measured(tmp_path, bfloat16=5.0, bfloat16_compiled=3.0), plain, tmp_path)
    assert again == first._replace(because="a checkpoint was made under it")


def counted(rounds: list[int]):
    from condkd_ray.trial.loop import run_round

    def call(*given):
        rounds.append(1)
        return run_round(*given)

    return call


def test_a_projected_end_beyond_the_goal_is_a_failure(tmp_path):
    late = {"rounds": 30, "of": 220, "projected_seconds": 601.0}
    whole = setup(tmp_path, sizes=full())
    by = Kept(tmp_path / "weights", 60, 80)
    passed, text = recipes.unfinished(whole, late, by)
    assert not passed
    assert text == (
        "30 of 220 rounds, projected end at 601 s, teacher of 60 of 80 epochs; the same command continues; goal: 600 s"
    )
    with pytest.raises(SkippedError, match="no end can be projected yet"):
        recipes.unfinished(whole, {"rounds": 3, "of": 220}, by)


def test_arms_differ_in_the_prior_or_the_guidance_alone(tmp_path):
    made = recipes.arms_of(setup(tmp_path, sizes=full()), full().fast())
    mixed, prior, guided = made.values()
    assert prior == replace(mixed, inversion=replace(mixed.inversion, oh_weight=100.0, oh_temperature=4.0))
    assert guided == replace(prior, guidance=guided.guidance) != prior
    assert mixed.rounds * mixed.distiller.steps <= 0.011 * 200 * 400


def test_every_method_is_combined_with_every_method_of_another_kind():
    made = waits.combinations()
    inversions = {kind().name for kind in get_args(AnyInversion) if kind is not NoInversion}
    guides, memories = ({kind().name for kind in get_args(union)} for union in (AnyGuidance, AnyMemory))
    for left, right in ((inversions, guides), (inversions, memories), (guides, memories)):
        met = {(a, b) for name in made for a in name.split(", ") for b in name.split(", ")}
        assert {(a, b) for a in left for b in right} <= met


def few() -> dict[str, TrialConfig]:
    """Return some of the combinations of part (c) that together cover each inversion, guidance and memory."""
    left = {name: set(name.split(", ")) for name in waits.combinations()}
    chosen: list[str] = []
    while missing := set().union(*left.values()).difference(*(left[name] for name in chosen)):
        chosen.append(max(left, key=lambda name: len(left[name] & missing)))
    return {name: waits.combinations()[name] for name in chosen}


ONCE_A_ROUND = {
    (Meter, "read"): lambda self: {},
    (nayer, "occurrences"): lambda labels, classes: (torch.zeros_like(labels), len(labels)),
    (Guidance, "hold_out"): lambda self, condensed, _: (
        condensed[:-2],
        condensed[-2:] if self.held_out else condensed[:0],
    ),
}
"""Replacements for the calls that part (c) allows to wait, without reading values: the device `meta` has none."""


@pytest.fixture
def without_values(monkeypatch):
    """Run part (c) on the device `meta`, where `guard.Guard` checks what PyTorch checks on CUDA; see `guard`."""

    @contextmanager
    def guarded(device):
        assert device == DEVICE
        with Guard():
            yield

    monkeypatch.setattr(waits, "no_waits", guarded)
    for (owner, name), stand_in in ONCE_A_ROUND.items():
        monkeypatch.setattr(owner, name, stand_in)
    # Outside of what is checked: the memory's part of a round, and how much room the device has.
    monkeypatch.setattr(LiveIds, "cover", covered_without_classes)
    monkeypatch.setattr(PrioritizedState, "read", without_logits)
    # A Gaussian's covariance is shrunk on the host, before the first round.
    monkeypatch.setattr(Gaussian, "pooled_covariance", lambda self, features, labels, views: features.T @ features)
    monkeypatch.setattr(device_rows, "default_limit", lambda device: 10**6)
    with simulated():
        yield world.prepared(
            world.teacher(ResNet(depth=8, width=4), waits.SHAPE, waits.CLASSES, DEVICE), waits.PER_CLASS
        )


@pytest.mark.slow
def test_no_round_of_part_c_waits_for_a_device_without_values(without_values):
    assert set(ONCE_A_ROUND) == set(waits.ALLOWED)
    for name, config in few().items():
        try:
            waits.check_rounds(config, without_values)
        except WaitsError as error:
            pytest.fail(f"{name}: {error} at {waits.place_of(error)}")


def test_part_c_reports_the_line_that_reads_from_the_device_in_a_step(without_values, monkeypatch):
    name = next(name for name in few() if name.endswith("prioritized"))
    priorities: list[Tensor] = []

    def reading(self, state, ids, priority):
        priorities.append(priority)
        # The two steps of the first round are not checked.
        return priority.cpu() if len(priorities) > 2 else None

    monkeypatch.setattr(Prioritized, "feedback", reading)
    with pytest.raises(WaitsError, match="from the device to the host") as found:
        waits.check_rounds(few()[name], without_values)
    assert waits.place_of(found.value).startswith("loop.py:")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_a_wait_raises_an_error_only_inside_the_check():
    device = torch.device("cuda")
    value = torch.ones(1, device=device)
    with pytest.raises(RuntimeError, match="synchroniz"), waits.no_waits(device):
        value.item()
    assert value.item() == 1
    meter = waits.Meter("x")
    with waits.no_waits(device):
        meter.add(loss=value[0])
        assert meter.read() == {"x/loss": 1.0}
    assert torch.cuda.get_sync_debug_mode() == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_launches_are_counted_and_timed_on_the_device():
    device = torch.device("cuda")
    value = torch.randn(4096, 4096, device=device)
    taken = milliseconds(lambda: value @ value, device, repeats=5)
    found = launched(lambda: [value.add_(1) for _ in range(10)], device)
    assert 0.01 < taken < 100
    assert (found["operators"], found["launches"], found["copies"]) == (10, 10, 0)
    assert found["busy_ms"] > 0


def test_operators_inside_others_are_not_counted():
    value = torch.ones(4, 4)
    assert launched(lambda: [value.add_(1) for _ in range(3)], CPU) == {"operators": 3}
    # A linear layer transposes and multiplies inside.
    assert launched(lambda: torch.nn.functional.linear(value, value), CPU) == {"operators": 1}


def test_milliseconds_are_a_median_without_the_first_calls(monkeypatch):
    spent, now = iter([0.25, 0.125, 0.5, 0.125]), 0.0

    def call() -> None:
        nonlocal now
        now += next(spent)

    monkeypatch.setattr("gpu.timing.time", SimpleNamespace(perf_counter=lambda: now))
    assert milliseconds(call, CPU, repeats=3, warm_up=1) == 125


def event(name: str, kind: DeviceType, begin: float, end: float, *, noted: bool = False) -> Any:
    return SimpleNamespace(name=name, device_type=kind, time_range=Interval(begin, end), is_user_annotation=noted)


def test_concurrent_kernels_are_counted_each_and_their_overlap_in_time_once():
    events = [
        event("gemm", DeviceType.CUDA, 0, 1000),
        event("relu", DeviceType.CUDA, 500, 1200),
        event("Memcpy HtoD", DeviceType.CUDA, 600, 700),
        event("Memset", DeviceType.CUDA, 2000, 2100),
        event("a block of the user's", DeviceType.CUDA, 0, 9000, noted=True),
        event("aten::mm", DeviceType.CPU, 0, 9000),
    ]
    assert gpu_work(events) == {"launches": 2, "copies": 2, "busy_ms": pytest.approx(1.3)}


@pytest.mark.parametrize(
    ("name", "peak"),
    [("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H200", 989), ("NVIDIA H100 PCIe", 756), ("Tesla T4", None)],
)
def test_the_peak_is_found_by_the_name_of_the_device(name, peak):
    assert next((value for known, value in PEAKS if known in name), None) == peak


def test_the_recipe_of_the_full_teacher_states_its_operations_and_time():
    recipe, text = full().teacher, RECIPE.read_text()
    forward = cost_of(recipe.network, (3, 32, 32), 10).multiply_adds
    operations = 6 * forward * 50_000 * recipe.training.epochs
    assert f"{6 * forward / 1e9:.2f} GFLOP" in text.replace("\n# ", " ")
    assert f"{operations / 1e15:.1f} PFLOP" in text
    seconds = [operations / (share * 989e12) for share in (0.4, 0.25)]
    assert f"gives {seconds[0]:.0f} s at 40 % of it, {seconds[1]:.0f} s\n# at 25 %" in text


@pytest.fixture
def followed(monkeypatch):
    """A function that returns the number of graphs traced so far; no code is built from them, as it takes minutes."""
    monkeypatch.setitem(compilation.MODES, ("default", False), compilation.Mode("aot_eager"))
    torch.compiler.reset()
    counters.clear()
    yield lambda: counters["stats"]["unique_graphs"]
    compilation.clear_compiled()


@pytest.mark.slow
def test_compiled_rows_are_compiled_and_graphs_on_a_cpu_are_refused(tmp_path, monkeypatch, followed):
    monkeypatch.setattr(compilation, "compiler_fault", lambda device: None)
    given = setup(tmp_path, sizes=replace(tiny(), compiled=True, batches=(8,), repeats=1))
    rows, graphs = box(tmp_path, "d"), []
    with pytest.raises(SkippedError, match="no share of a peak is known"):
        steps.steps(replace(given, sizes=replace(given.sizes, compiled=False)), rows)
    rows.report.note("a", figures={"matrix product": {"tflops": 0.02}})
    note = rows.note
    monkeypatch.setattr(rows, "note", lambda name, values: (graphs.append((name, followed())), note(name, values)))
    assert steps.steps(given, rows).passed
    taken = dict(graphs)
    assert taken["bfloat16, batch 8, distillation"] == 0
    # One graph makes images, two compute their losses (without and with a memory of statistics), one compares logits.
    assert taken["bfloat16, compiled, batch 8, synthesis"] == 3
    assert taken["bfloat16, compiled, batch 8, distillation"] == 4
    figures = rows.report.parts["d"]["figures"]
    assert all(figures[f"bfloat16, compiled, batch 8, {step}"]["ms"] > 0 for step in ("synthesis", "distillation"))
    refused = "graphs on a CPU is True; accepted: false, or a trial on a GPU"
    assert figures["bfloat16, compiled, graphs, batch 8"] == {"skipped": refused}


@pytest.mark.slow
def test_a_row_that_fails_does_not_stop_the_others(tmp_path, monkeypatch):
    real = steps.Bench.distillation

    def failing(self, box):
        if self.config.distiller.batch == 16 and self.config.precision == "bfloat16":
            raise torch.OutOfMemoryError("no room for it")
        return real(self, box)

    monkeypatch.setattr(steps.Bench, "distillation", failing)
    found = box(tmp_path, "d")
    verdict = steps.steps(setup(tmp_path), found)
    failed = [f"{row}, batch 16, distillation" for row in ("bfloat16", "bfloat16, cuDNN by time")]
    assert verdict == Verdict(False, f"these rows failed: {'; '.join(failed)}")
    figures = found.report.parts["d"]["figures"]
    assert figures[failed[0]] == figures[failed[1]] == {"failed": "OutOfMemoryError: no room for it"}
    for row in ("float32, batch 8", "float32, batch 16", "bfloat16, batch 8", "bfloat16, cuDNN by time, batch 8"):
        assert figures[f"{row}, distillation"]["ms"] > 0


def test_compiled_rows_come_last(tmp_path):
    rows = steps.order(setup(tmp_path, sizes=full()))
    eager = ("bfloat16", "float32", "bfloat16, cuDNN by time", "bfloat16, graphs")
    assert rows[:8] == [(row, batch) for row in eager for batch in (256, 1024)]
    compiled = ("bfloat16, compiled", "bfloat16, compiled, graphs")
    assert rows[8:] == [(row, batch) for batch in (256, 1024) for row in compiled]
    assert {row for row, _ in steps.order(setup(tmp_path))} == set(steps.EAGER)


def test_the_operations_of_a_step_are_computed_from_its_networks():
    sizes = full()
    student, taught = (
        cost_of(network, (3, 32, 32), 10).multiply_adds for network in (sizes.student, sizes.teacher.network)
    )
    config = sizes.fast(inversion=replace(sizes.recipe.inversion, warm_up=0))
    synthesis, step = steps.flops(config, Setup(CPU, sizes, None, RECIPE.parent))
    assert step == 2 * 256 * (taught + 3 * student)
    assert 2 * 256 * 2 * (taught + student) < synthesis < 2 * 256 * 4 * (taught + student)


def test_gpu_tests_that_need_ray_are_left_out():
    found = suite.files_of(TESTS)
    assert {TESTS / "trial" / "test_loop.py", TESTS / "trial" / "test_repeats.py"} < set(found)
    assert all(path.parent.name != "cluster" for path in found)
    # Compiled trials take longest.
    assert found[-1] == TESTS / "trial" / "test_compiled_trial.py"
    assert len(set(found)) == len(found)


def test_a_gpu_mark_imported_from_a_module_in_the_same_folder_counts(tmp_path):
    files = {
        "near/where.py": "GPU = pytest.mark.gpu",
        "near/test_compiled.py": "from near.where import GPU",
        "near/test_there.py": "from near.where import GPU",
        "far/test_own.py": "@pytest.mark.gpu",
        "far/test_none.py": "from near.elsewhere import CPU",
        "cluster/test_ray.py": "@pytest.mark.gpu",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    found = [str(path.relative_to(tmp_path)) for path in suite.files_of(tmp_path)]
    assert found == ["far/test_own.py", "near/test_there.py", "near/test_compiled.py"]


def over_once(monkeypatch, ready) -> None:
    """Make the time limit of a program expire when `ready` returns true, and not before."""
    real = subprocess.Popen.communicate

    def communicate(self, input=None, timeout=None):
        while timeout is not None and not ready():
            assert self.poll() is None, "it has ended before it was ready"
            time.sleep(0.01)
        return real(self, input, None if timeout is None else 0.01)

    monkeypatch.setattr(subprocess.Popen, "communicate", communicate)


@pytest.mark.parametrize(
    ("last", "counts"), [("b.py::two FAILED [ 66%]", "1 passed and 1 failed"), ("", "1 passed and 0")]
)
def test_results_printed_before_the_time_limit_count(tmp_path, monkeypatch, clock, last, counts):
    # A program that does not end replaces pytest.
    hanging = tmp_path / "hanging"
    all_printed = tmp_path / "all printed"
    signal_line = f"open({str(all_printed)!r}, 'w').close()"
    lines = f"import time\nprint('a.py::one PASSED [ 33%]\\n{last}', flush=True)\n{signal_line}\ntime.sleep(600)"
    hanging.write_text(f"#!{sys.executable}\n{lines}")
    hanging.chmod(0o755)
    monkeypatch.setattr(suite.sys, "executable", str(hanging))
    over_once(monkeypatch, all_printed.is_file)
    given = box(tmp_path, "b", seconds=4.0)
    if not last:
        with pytest.raises(SkippedError, match=f"^time: {counts} failed when 3 s were over$"):
            suite.suite(setup(tmp_path), given)
        return
    assert suite.suite(setup(tmp_path), given) == Verdict(False, f"{counts} when 3 s were over")
    assert given.report.parts["b"]["figures"]["output"] == [last]


def test_processes_started_by_tests_end_with_the_tests(tmp_path, monkeypatch):
    signal_line = f"open(os.path.join({str(tmp_path)!r}, f'{{os.getpid()}}.there'), 'w').close()"
    sleeper = f"import os, time; print(os.getpid(), flush=True); {signal_line}; time.sleep(600)"
    over_once(monkeypatch, lambda: len(list(tmp_path.glob("*.there"))) == 2)
    starter = tmp_path / "starter"
    starter.write_text(
        f"#!{sys.executable}\nimport os, subprocess, sys, time\n"
        # One in the program's process group, one in a group of its own.
        f"for own in (None, os.setpgrp):\n"
        f"    subprocess.Popen([sys.executable, '-c', {sleeper!r}], preexec_fn=own)\ntime.sleep(60)"
    )
    starter.chmod(0o755)
    begun = time.monotonic()
    code, lines = suite.output_of([str(starter)], 4.0)
    assert code is None
    # The grandchild holds the output pipe too; without a kill, reading would wait for its end.
    assert time.monotonic() - begun < 30
    assert len(lines) == 2
    assert not any(running(int(line)) for line in lines)


def test_the_alarm_of_a_box_repeats_if_its_exception_was_swallowed(monkeypatch):
    monkeypatch.setattr(parts, "AGAIN", 0.5)
    until = time.monotonic() + 60

    def works() -> None:
        while time.monotonic() < until:
            time.sleep(0.001)

    def swallows_it_once() -> None:
        with suppress(BoxEndedError):  # as Python does with what is raised in a finaliser
            works()
        works()

    with pytest.raises(BoxEndedError), boxed(0.01):
        swallows_it_once()


def test_gpu_tests_are_called_without_another_pytests_options(monkeypatch):
    others = {"PYTEST_ADDOPTS": "-x", "PYTEST_XDIST_WORKER": "gw0", "COV_CORE_SOURCE": "there"}
    for name, value in (others | {"PYTHONPATH": "mine", "MINE": "kept"}).items():
        monkeypatch.setenv(name, value)
    found = suite.environment()
    assert not others.keys() & found.keys()
    assert found["MINE"] == "kept"
    assert found["PYTHONPATH"].split(os.pathsep)[-1] == "mine"


def test_processes_started_by_tests_end_when_the_time_of_the_part_is_over(tmp_path):
    number = tmp_path / "number"
    program = f"import os, time; open({str(number)!r}, 'w').write(str(os.getpid())); time.sleep(60)"

    over = threading.Event()

    def end_the_box() -> None:
        while not (number.is_file() and number.read_text()):
            if over.wait(0.01):
                return
        signal.setitimer(signal.ITIMER_REAL, 0.001, 1.0)

    ending = threading.Thread(target=end_the_box, daemon=True)
    ending.start()
    try:
        with pytest.raises(BoxEndedError), boxed(300.0):
            suite.output_of([sys.executable, "-c", program], 300.0)
    finally:
        over.set()
        ending.join()
    assert not running(int(number.read_text()))


def running(number: int) -> bool:
    """Return whether a process with this number runs; a zombie has ended."""
    try:
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_segmentation_runs_both_arms_and_states_what_is_refused(tmp_path):
    given, found = setup(tmp_path), box(tmp_path, "i")
    passed, text = segmentation.segmentation(given, found)
    assert passed
    assert re.match(r"published 3 of 3 rounds, \S+ s each, guided 3 of 3 rounds, \S+ s each; without CUDA, waits", text)
    figures = found.report.parts["i"]["figures"]
    assert figures["images"] == {"kind": "random", "classes": 6, "test": 8, "guides": 3}
    assert figures["waits"] == {"run": 6, "failed": 0, "checked": False}
    for arm in ("published", "guided"):
        one = figures[arm]
        positive = ("inversion_ms_per_round", "distillation_ms_per_round", "made_images_per_second", "peak_gib")
        assert min(one[name] for name in (*positive, "student_images_per_second", "test_miou")) > 0
    assert 0 < figures["bfloat16"]["difference"] <= segmentation.NEAR
    assert set(figures["float32"]["losses"]) == set(segmentation.TERMS)
    refused = "graphs on a CPU is True; accepted: false, or a trial on a GPU"
    assert figures["bfloat16, graphs"] == {"refused": refused}
    assert set(figures["bfloat16, compiled"]) == {"skipped"}


def test_segmentation_fails_if_bfloat16_gives_other_losses_or_an_arm_fails(tmp_path, monkeypatch):
    real = segmentation.round_losses

    def doubled(config, what):
        factor = 2 if config.precision == "bfloat16" else 1
        return [{name: factor * value for name, value in row.items()} for row in real(config, what)]

    monkeypatch.setattr(segmentation, "round_losses", doubled)
    ended = SimpleNamespace(status="failed", reason="round 1: kd/loss is not finite")
    monkeypatch.setattr(segmentation, "run_trial", lambda *given, **more: ended)
    passed, text = segmentation.segmentation(setup(tmp_path), box(tmp_path, "i"))
    assert not passed
    assert re.match(
        r"3 faults: bfloat16: losses differ from float32 by (9|10)\d\.\d%; published has failed: round 1", text
    )


def test_segmentation_keeps_the_figures_of_the_rounds_that_fit(tmp_path, monkeypatch):
    given, found = setup(tmp_path), box(tmp_path, "i")
    published, _ = segmentation.trials(given)
    what, checked = segmentation.inputs(given, found), iter([False, False, True])
    monkeypatch.setattr("condkd_ray.trial.run.passed", lambda deadline: next(checked))
    text, fault = segmentation._arm(given, found, "published", published, what, 1.0)
    assert text.startswith("published 2 of 3 rounds, ")
    assert fault is None
    assert found.report.parts["i"]["figures"]["published"]["rounds"] == 2
    monkeypatch.setattr("condkd_ray.trial.run.passed", lambda deadline: True)
    with pytest.raises(SkippedError, match=r"^time: no round of published was begun$"):
        segmentation._arm(given, found, "published", published, what, 0.0)


def test_the_full_segmentation_is_dfads_recipe_with_a_hundredth_of_its_rounds(tmp_path):
    published, guided = segmentation.trials(setup(tmp_path, sizes=full()))
    assert published.teacher.network.model == "deeplabv3_resnet50"
    assert published.student.model == guided.student.model == "deeplabv3_mobilenet_v3_large"
    assert (published.rounds, published.evaluate_every, published.distiller.steps) == (150, 150, 5)
    assert (published.inversion.steps, published.inversion.batch, published.inversion.images_per_round) == (1, 64, 320)
    assert (published.inversion.latent, published.inversion.width, published.inversion.conditional) == (256, 128, False)
    assert published.distiller == replace(guided.distiller, condensed_share=0.0)
    assert guided.rounds == published.rounds


def test_segmentation_uses_camvid_if_it_is_in_the_data_root(tmp_path):
    for part, count in (("train", 4), ("test", 2)):
        for folder, channels in ((part, 3), (f"{part}annot", 1)):
            path = tmp_path / "camvid" / folder
            path.mkdir(parents=True)
            for number in range(count):
                rng = torch.Generator().manual_seed(number)
                pixels = torch.randint(12, (36, 48, channels), generator=rng, dtype=torch.uint8).squeeze(2).numpy()
                Image.fromarray(pixels).save(path / f"{number}.png")
    given, found = setup(tmp_path, data_root=tmp_path), box(tmp_path, "i")
    what = segmentation.inputs(given, found)
    assert found.report.parts["i"]["figures"]["images"] == {"kind": "camvid", "classes": 11, "test": 2, "guides": 3}
    assert what.test is not None
    assert what.test.pixels.shape == (2, 3, 24, 32)
    assert what.class_names[:2] == ("Sky", "Building")
    assert what.condensed is not None
    assert what.condensed.labels.shape == (3, 24, 32)
    assert (what.condensed.labels == -1).any()


@pytest.fixture
def dense_without_values(without_values, tmp_path, monkeypatch):
    # Outside of what is checked: a guidance starts from the regions that the guides show.
    every_region = "condkd_ray.methods.guidance.guidance.region_numbers"
    monkeypatch.setattr(every_region, lambda shown: torch.arange(shown.numel(), device=shown.device))
    given = setup(tmp_path)
    what = segmentation.inputs(replace(given, device=DEVICE), box(tmp_path, "i"))
    return segmentation.wait_checks(*segmentation.trials(given), what)


@pytest.mark.parametrize("name", ["published", "discriminator", "mmd", "moments", "gaussian", "evaluation"])
def test_no_round_or_evaluation_of_segmentation_waits(name, dense_without_values, monkeypatch):
    monkeypatch.setattr(segmentation, "no_waits", waits.no_waits)
    dense_without_values[name]()


def test_all_wait_checks_of_segmentation_are_tested(dense_without_values):
    assert set(dense_without_values) == {"published", "discriminator", "mmd", "moments", "gaussian", "evaluation"}


def test_a_wait_of_segmentation_is_reported_with_its_line(dense_without_values, monkeypatch):
    real = LogitL1.__call__
    steps: list[int] = []

    def reading(self, student, teacher, labels):
        steps.append(1)
        # The steps of the first round are not checked.
        if len(steps) > 2:
            labels.max().item()
        return real(self, student, teacher, labels)

    monkeypatch.setattr(LogitL1, "__call__", reading)
    with pytest.raises(WaitsError, match="_local_scalar_dense"):
        dense_without_values["discriminator"]()
