"""`condkd try` as its user runs it: a teacher's weights, a folder of digits, seconds instead of minutes."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import programs
import pytest
import torch
import tyro
from data.image_files import write_folder
from safetensors.torch import save_file
from toy import MEAN as BLOB_MEAN
from toy import NUM_CLASSES, TEACHER, blobs, make_teacher
from toy import STD as BLOB_STD

from condkd_ray.commands import try_teacher
from condkd_ray.commands.try_teacher import (
    ARMS,
    CONFIG,
    Try,
    agreement_with_folders,
    check_classes,
    check_form,
    configure,
    mirrors,
    plans_of,
    try_out,
)
from condkd_ray.core.config import to_tree
from condkd_ray.core.method import InputError
from condkd_ray.core.records import read_manifest, read_records
from condkd_ray.core.rng import Streams
from condkd_ray.data.datasets import CONSTANTS, DataConfig, Dataset, RealImages, load
from condkd_ray.methods.supervised import Supervised
from condkd_ray.models import ResNet
from condkd_ray.runs.arms import PRIOR, Prior
from condkd_ray.trial.artifacts import Workshop
from condkd_ray.trial.config import TrialConfig, read
from condkd_ray.trial.hardware import CPU, settled

EACH = 6
SMALL = """
inversion: {steps: 2, batch: 32, width: 8, latent: 16}
distiller: {steps: 4, batch: 32}
"""
MEAN, STD = CONSTANTS["mnist"]
NAMES = ("nw", "ne", "sw", "se")
WHERE = Path("photos")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the weights of a teacher of digits, its card, and photos of digits, six per class."""
    home = tmp_path_factory.mktemp("try")
    digits = load(DataConfig(name="digits"))
    with Streams(0).forked("init/teacher"):
        network = ResNet(depth=8, width=4).build(digits.image_shape, 10)
    recipe = {"mean": MEAN, "std": STD, "flip_ok": False, "rng": Streams(0)}
    Supervised(epochs=6).train(network, digits.train.pixels, digits.train.labels, **recipe)
    save_file(
        {name: tensor.contiguous() for name, tensor in network.state_dict().items()}, home / "teacher.safetensors"
    )
    card = {"network": "resnet-8-4", "num_classes": 10, "image_shape": [1, 8, 8], "mean": MEAN, "std": STD}
    (home / "teacher.json").write_text(json.dumps(card))
    rows = torch.cat([(digits.test.labels == label).nonzero()[:EACH, 0] for label in range(10)])
    write_folder(home / "photos", digits.test.pixels[rows], digits.test.labels[rows], list(map(str, range(10))))
    (home / "small.yaml").write_text(SMALL)
    return home


def flags(home: Path, **more: object) -> Try:
    known = {"config": home / "small.yaml", "cache": home / "cache", "seeds": (0, 1), "student": "resnet-8-2"}
    paths = {"teacher_weights": home / "teacher.safetensors", "images": home / "photos", "out": home / "out"}
    return Try(**known | paths | more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def tried(cluster, home: Path) -> subprocess.CompletedProcess[str]:
    paths = ["--teacher-weights", home / "teacher.safetensors", "--images", home / "photos", "--out", home / "out"]
    more = ["--config", home / "small.yaml", "--cache", home / "cache", "--student", "resnet-8-2"]
    done = programs.condkd("try", *paths, *more, "--seeds", "0", "1", "--minutes", "0.4")
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.slow
def test_a_try_prints_accuracy_table_differences_cost_and_one_verdict(tried: subprocess.CompletedProcess[str]):
    assert (
        "of your 60 images as their folders do; 30 of them are held out for the verdict, and 2 per class guide the "
        "inversion." in tried.stdout
    )
    assert "10 trials, " in tried.stderr
    assert "measured with the teacher" in tried.stderr
    for arm in ARMS:
        assert sum(line.startswith(f"{arm} ") for line in tried.stdout.splitlines()) == 1
    assert "accuracy, guided - mixed " in tried.stdout
    assert "accuracy, guided - mixed_prior " in tried.stdout
    assert "accuracy, mixed_prior - mixed " in tried.stdout
    assert "agreement, guided - none " in tried.stdout
    verdict = tried.stdout.strip().splitlines()[-1]
    assert verdict.startswith("Verdict: with 2 seeds ")
    assert "over the 30 held-out images" in verdict
    assert "times the CPU time of mixing" in verdict
    assert "; as guides your images " in verdict
    assert "and a class prior without guides gives " in verdict


@pytest.mark.slow
def test_a_try_writes_a_result_folder_with_the_verdict(tried: subprocess.CompletedProcess[str], home: Path):
    found, verdict = read_records(home / "out"), tried.stdout.strip().splitlines()[-1]
    assert sorted((record.arm, record.seed) for record in found) == sorted(
        (arm, seed) for arm in ARMS for seed in (0, 1)
    )
    assert {len(record.outcome.predictions) for record in found} == {30}
    assert len({record.outcome.rounds for record in found}) == 1
    assert read_manifest(home / "out").notes[-1] == verdict
    assert verdict in (home / "out" / "table.md").read_text()
    assert "Verdict: with 2 seeds" in (home / "out" / "report.html").read_text()
    guided = next(record for record in found if (record.arm, record.seed) == ("guided", 0))
    assert to_tree(settled(read(home / "out" / CONFIG), CPU)) == guided.config


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_the_same_try_again_runs_nothing_and_prints_the_same(
    tried: subprocess.CompletedProcess[str], home: Path, capsys: pytest.CaptureFixture[str], logged: list[str]
):
    before = {path.name: path.stat().st_mtime_ns for path in (home / "out" / "records").iterdir()}
    assert try_out(flags(home)) == 0
    again = capsys.readouterr()
    assert any("rounds per trial, as in the earlier run" in line for line in logged)
    assert any("10 trials, 10 of them already finished" in line for line in logged)
    assert again.out.strip() == tried.stdout.strip()
    assert {path.name: path.stat().st_mtime_ns for path in (home / "out" / "records").iterdir()} == before
    manifest = read_manifest(home / "out")
    assert sum("Verdict" in note for note in manifest.notes) == 1


def inversions(base: TrialConfig) -> dict[str, tuple[float, float]]:
    """Return weight and temperature of the class prior of each arm with an inversion."""
    found = {plan.arm: plan.config.inversion for plan in plans_of(base, (0,)) if plan.arm != "condensed_only"}
    return {arm: (one.oh_weight, one.oh_temperature) for arm, one in found.items()}


USUAL = {"none": (0.5, 1.0), "mixed": (0.5, 1.0)}


@pytest.mark.parametrize(
    ("given", "prior"),
    [
        ("", PRIOR),
        (", oh_weight: 0.5, oh_temperature: 1", PRIOR),
        (", oh_weight: 100, oh_temperature: 4", PRIOR),
        (", oh_weight: 30, oh_temperature: 2", Prior(30.0, 2.0)),
        (", oh_temperature: 4", Prior(0.5, 4.0)),
    ],
)
def test_a_class_prior_in_the_users_config_is_used_by_guided_and_mixed_prior(
    home: Path, tmp_path: Path, logged: list[str], given: str, prior: Prior
):
    (tmp_path / "own.yaml").write_text(SMALL.replace("latent: 16", f"latent: 16{given}"), encoding="utf-8")
    base = configure(flags(home, config=tmp_path / "own.yaml"), Workshop(home / "cache"))
    theirs = (prior.weight, prior.temperature)
    assert inversions(base) == USUAL | {"mixed_prior": theirs, "guided": theirs}
    lines = [line for line in logged if "mixed_prior and guided use the class prior of" in line]
    own = f"weight {prior.weight:g}, temperature {prior.temperature:g}; mixed uses the default one of fast: weight 0.5"
    assert [own in line for line in lines] == [True] * ("oh_" in given and "0.5, oh_temperature: 1" not in given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "inversion: {oh_weight: 0}",
            "inversion.oh_weight is 0.0; accepted: more than 0, for the class prior of mixed_prior",
        ),
        ("inversion: {name: none}", "accepted: "),
    ],
)
def test_a_config_without_a_class_prior_or_inversion_is_refused(home: Path, tmp_path: Path, given: str, message: str):
    (tmp_path / "own.yaml").write_text(given, encoding="utf-8")
    with pytest.raises(InputError) as refused:
        try_out(flags(home, config=tmp_path / "own.yaml", out=tmp_path / "out"))
    assert message in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_held_out_images_are_neither_guides_nor_in_the_proxy_set(home: Path):
    workshop = Workshop(home / "cache")
    base = configure(flags(home), workshop)
    for seed in (0, 1):
        prepared, dataset = workshop.prepare(replace(base, seed=seed)), workshop.data(base)
        assert prepared.condensed is not None
        assert len(prepared.condensed) == 20
        held_out = dataset.test.samples(dataset.mean, dataset.std).images.flatten(1)
        assert torch.cdist(prepared.condensed.images.flatten(1), held_out).min() > 1e-3
    everything = torch.cat([dataset.train.pixels, dataset.test.pixels])
    assert len(everything.flatten(1).unique(dim=0)) == 60


def test_flags_have_precedence_over_the_card_of_the_teacher(home: Path):
    workshop = Workshop(home / "cache")
    by_card = configure(flags(home), workshop)
    assert (by_card.data.mean, by_card.data.std, by_card.data.size) == (MEAN, STD, 8)
    assert by_card.teacher.network == ResNet(depth=8, width=4)
    assert by_card.data.flip_ok is False
    given = flags(home, mean=(0.5,), std=(0.5,), flip_ok=True, guides=1)
    with pytest.raises(InputError, match=r"with --mean 0.1307 --std 0.3081 \(data.mean, data.std\) it would be 0\.\d"):
        configure(given, workshop)
    own = configure(replace(given, force_teacher=True), workshop)
    assert (own.data.mean, own.data.flip_ok, own.condensation.ipc) == ((0.5,), True, 1)  # type: ignore[union-attr]


@pytest.mark.parametrize(("minutes", "wanted"), [(10.0, 115), (100.0, 200), (0.1, 3)])
def test_the_number_of_rounds_fits_into_the_minutes(
    home: Path, monkeypatch: pytest.MonkeyPatch, minutes: float, wanted: int
):
    monkeypatch.setattr(try_teacher, "time", SimpleNamespace(monotonic=lambda: 0.0))
    monkeypatch.setattr(try_teacher, "round_seconds", lambda plan, prepared: 1.0)
    monkeypatch.setattr(try_teacher, "slots", lambda cpus, gpus: 2)
    workshop, command = Workshop(home / "cache"), flags(home, minutes=minutes, out=home / "unused")
    # 575 s of 10 minutes for 2 seeds of 5 arms, 2 trials at once.
    assert try_teacher.rounds_of(command, configure(command, workshop), workshop, 0.0) == wanted


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"images": Path("nowhere")}, "--images is 'nowhere'"),
        ({"teacher_weights": Path("nothing.pt")}, "--teacher-weights is 'nothing.pt'"),
        ({"minutes": 0.0}, "--minutes is 0"),
        ({"rounds": 0}, "--rounds is 0"),
        ({"seeds": ()}, r"--seeds is \(\)"),
        ({"guides": 3}, "--guides is 3; accepted: 1 to 2"),
        ({"mean": (0.5,)}, "--mean, --std is"),
        ({"teacher": "resnet-8-8"}, "do not fit the network"),
        ({"card": Path("none.json")}, "card is 'none.json'"),
        ({"mean": (9.0,), "std": (0.01,), "flip_ok": False}, "likely causes: another --mean and --std"),
        (
            {"mean": (0.0,), "std": (1.0,), "flip_ok": False},
            "images in .*photos is .*likely causes: another --mean",
        ),
        (
            {"class_order": tuple("1023456789")},
            "in the order 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 it would be 0.*: --class-order 0 1 2 3 4 5 6 7 8 9",
        ),
        ({"class_order": tuple("012")}, "--class-order .teacher.class_order. is '0 1 2'; accepted: each of 0, 1, 2, 3"),
        ({"size": 16}, "shape of the images of class_folders is .1, 16, 16.; accepted: .1, 8, 8., as card"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(home: Path, more: dict[str, object], message: str):
    with pytest.raises(InputError, match=message):
        try_out(flags(home, out=home / "refused", **more))
    assert not (home / "refused").exists()


def test_a_teacher_of_a_segmentation_is_refused(home: Path, tmp_path: Path):
    card = tmp_path / "dense.json"
    card.write_text(json.dumps({"network": "resnet-8-4", "task": "segmentation"}))
    message = "task of class_folders is 'classification'; accepted: segmentation, as card .*dense"
    with pytest.raises(InputError, match=message):
        try_out(flags(home, card=card, out=home / "refused"))
    assert not (home / "refused").exists()


def test_weights_without_card_or_architecture_are_refused(home: Path):
    (home / "bare").mkdir(exist_ok=True)
    bare = home / "bare" / "teacher.safetensors"
    bare.write_bytes((home / "teacher.safetensors").read_bytes())
    unknown = home / "bare" / "unknown.safetensors"
    save_file({"encoder.weight": torch.ones(10, 4)}, unknown)
    with pytest.raises(InputError, match="--teacher is None; accepted: an architecture"):
        try_out(flags(home, teacher_weights=unknown, out=home / "refused"))
    assert (
        configure(flags(home, teacher_weights=bare, teacher="resnet-8-4"), Workshop(home / "cache")).data.size is None
    )
    found = configure(flags(home, teacher_weights=bare), Workshop(home / "cache"))
    assert found.teacher.network == ResNet(depth=8, width=4)


def dataset(order: tuple[int, ...] = (0, 1, 2, 3)) -> Dataset:
    """Return a data set of blobs in which folder k has the class `order[k]`."""
    folder_of = torch.tensor([order.index(corner) for corner in range(NUM_CLASSES)])
    train, test = (RealImages(part.pixels, folder_of[part.labels]) for part in (blobs(40, seed=5), blobs(40, seed=6)))
    names = tuple(NAMES[corner] for corner in order)
    return Dataset("toy", train, None, test, NUM_CLASSES, names, BLOB_MEAN, BLOB_STD, False, "digest")


def test_the_teachers_predictions_are_compared_with_the_folders():
    share, predictions = agreement_with_folders(make_teacher(), dataset())
    assert share > 0.8
    assert predictions.shape == (40,)
    assert (predictions == dataset().test.labels).double().mean() > 0.8


def test_mirroring_is_decided_by_the_teachers_predictions():
    part = blobs(64, seed=5)
    assert not mirrors(make_teacher(), part)
    both_ways = torch.maximum(part.pixels, part.pixels.flip(3))
    assert mirrors(make_teacher(), RealImages(both_ways, part.labels))


def test_channels_and_classes_of_the_weights_must_be_those_of_the_images(tmp_path: Path):
    weights, images = tmp_path / "teacher.safetensors", dataset()
    for shape, classes, message in (
        ((3, 8, 8), 4, "channels of the images in photos is 1; accepted: 3"),
        ((1, 8, 8), 7, "number of class folders in photos is 4; accepted: 7"),
    ):
        save_file(TEACHER.build(shape, classes).state_dict(), weights)
        with pytest.raises(InputError, match=message):
            check_form(TEACHER.build((1, 8, 8), 4), weights, images, WHERE)
    save_file(TEACHER.build((1, 8, 8), 4).state_dict(), weights)
    check_form(TEACHER.build((1, 8, 8), 4), weights, images, WHERE)
    check_classes(4, images, WHERE)


def test_both_spellings_of_force_are_one_flag():
    given = ["--teacher-weights", "w.pt", "--images", "photos"]
    assert not tyro.cli(Try, args=given).force_teacher
    for flag in ("--force", "--force-teacher"):
        assert tyro.cli(Try, args=[*given, flag]).force_teacher
