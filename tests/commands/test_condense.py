"""The command `condkd condense`: its files, its output, and input that it refuses."""

import json
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from condkd_ray import __main__
from condkd_ray.core.config import read_tree
from condkd_ray.core.samples import Samples, to_pixels, to_unit
from condkd_ray.data.datasets import DataConfig, load
from condkd_ray.data.readers import read_parquet
from condkd_ray.methods.condensation import Imported
from condkd_ray.models import ConvNet
from condkd_ray.trial.artifacts import Workshop
from condkd_ray.trial.config import from_tree, read

METHOD = "{name: distribution_matching, ipc: 3, condensed_together: 3, iterations: 8, width: 4, lr: 30}"
NETWORK = "{name: deeplab_resnet, depth: 8, width: 8}"
NETWORKS = f"student: {NETWORK}\nteacher: {{network: {NETWORK}}}\n"
"""Networks for segmentation."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("condense")
    (folder / "dm.yaml").write_text(f"data: digits\nseed: 4\ncondensation: {METHOD}\n")
    (folder / "real.yaml").write_text("data: digits\ncondensation: {name: random_real, ipc: 2}\n")
    (folder / "none.yaml").write_text("data: digits\n")
    return folder


@pytest.fixture
def run(folder, monkeypatch):
    """A function that runs the command and returns its exit code; the test fails if a teacher is made."""
    monkeypatch.setattr(Workshop, "teacher", lambda *_: pytest.fail("a teacher was made"))

    def run(config: str, out: str, *flags: str) -> int:
        files = [str(folder / config), "--out", str(folder / out), "--cache", str(folder / "cache")]
        monkeypatch.setattr(sys, "argv", ["condkd", "condense", *files, *flags])
        with pytest.raises(SystemExit) as caught:
            __main__.main()
        assert isinstance(caught.value.code, int)
        return caught.value.code

    return run


def made(folder: Path, **changes) -> Samples:
    """Return the condensed set that a trial of `dm.yaml` uses."""
    config = from_tree(read_tree(folder / "dm.yaml") | changes)
    samples = Workshop(folder / "cache").condensed(config)
    assert samples is not None
    return samples


def read_back(folder: Path, name: str) -> Samples:
    """Read a written set with the condensation `imported`."""
    data = Workshop(folder / "cache").data(read(folder / "dm.yaml"))
    options = {"num_classes": 10, "image_shape": (1, 8, 8), "mean": data.mean, "std": data.std}
    return Imported(path=folder / name, ipc=1, force=True).read(**options)  # type: ignore[arg-type]


def test_the_torch_file_is_exact_and_parquet_is_clipped_and_rounded(folder, run, capsys):
    assert run("dm.yaml", "sets/dm.parquet", "--dc", str(folder / "sets/dm.pt"), "--control") == 0
    data = Workshop(folder / "cache").data(read(folder / "dm.yaml"))
    sets = {"dm": made(folder), "dm_random_real": made(folder, condensation={"name": "random_real", "ipc": 3})}
    printed = capsys.readouterr().out.splitlines()
    for (name, expected), line in zip(reversed(sets.items()), printed[1:], strict=True):
        exact, rounded = read_back(folder, f"sets/{name}.pt"), read_back(folder, f"sets/{name}.parquet")
        assert torch.equal(exact.images, expected.images)
        assert torch.equal(exact.labels, expected.labels)
        assert torch.equal(rounded.labels, expected.labels)
        wanted = to_unit(expected.images, data.mean, data.std).clamp(0, 1)
        assert (to_unit(rounded.images, data.mean, data.std) - wanted).abs().max() <= 0.5 / 255 + 1e-6
        words = line.split()
        assert words[1:4] == ["4", "3", "30"]
        assert [float(word) for word in words[4:6]] == pytest.approx(
            [expected.images.mean().item(), expected.images.std().item()], abs=6e-4
        )
        assert line.endswith(f"{folder / 'sets' / name}.parquet, {folder / 'sets' / name}.pt")
    share = ((made(folder).images * data.std[0] + data.mean[0]) * 255 - 127.5).abs().gt(128).float().mean().item()
    assert share > 0.01
    assert f"{share:.1%}" == printed[2].split()[6]
    assert printed[1].split()[6] == "0.0%"


def test_the_torch_file_is_read_without_unpickling_code_and_has_metadata(folder, run):
    assert run("dm.yaml", "own.parquet", "--dc", str(folder / "own.pt")) == 0
    content = torch.load(folder / "own.pt", weights_only=True)
    (pair,) = content["data"]
    assert content["accs_all_exps"] == {}
    assert [(part.dtype, part.shape) for part in pair] == [
        (torch.float32, (30, 1, 8, 8)),
        (torch.int64, (30,)),
    ]
    about = content["about"]
    assert (about["method"], about["seed"], about["dataset"]) == ("distribution_matching", "4", "digits")
    assert json.loads(about["config"])["iterations"] == 8
    data = Workshop(folder / "cache").data(read(folder / "dm.yaml"))
    assert (json.loads(about["mean"]), json.loads(about["std"])) == (list(data.mean), list(data.std))
    metadata = pq.read_schema(folder / "own.parquet").metadata
    assert {key: metadata[key.encode()].decode() for key in about if key != "pixels"} == {
        key: value for key, value in about.items() if key != "pixels"
    }
    assert b"clipped" in metadata[b"pixels"]
    assert read_parquet([folder / "own.parquet"]).class_names == data.class_names


def test_real_images_are_stored_exactly(folder, run, capsys):
    assert run("real.yaml", "real.parquet") == 0
    data = Workshop(folder / "cache").data(read(folder / "real.yaml"))
    pixels = read_parquet([folder / "real.parquet"]).pixels
    assert all((data.train.pixels == image).flatten(1).all(1).any() for image in pixels)
    assert "clipped;" not in capsys.readouterr().err


def test_clipping_is_logged_if_no_file_keeps_the_values(folder, run, capsys):
    assert run("dm.yaml", "clipped.parquet") == 0
    assert "8 bit: values outside [0, 1] were clipped; --dc FILE.pt keeps them" in capsys.readouterr().err


def test_flags_have_precedence_over_the_file(folder, run):
    assert run("dm.yaml", "flags.parquet", "--condensation.ipc", "1", "--seed", "5") == 0
    assert len(read_back(folder, "flags.parquet")) == 10
    assert pq.read_schema(folder / "flags.parquet").metadata[b"seed"] == b"5"


def test_existing_files_are_kept_without_force(folder, run, capsys, monkeypatch):
    (folder / "kept_random_real.parquet").write_text("precious")
    assert run("dm.yaml", "kept.parquet", "--control") == 2
    assert "kept_random_real.parquet'; accepted: a new one; or --force" in capsys.readouterr().err
    assert (folder / "kept_random_real.parquet").read_text() == "precious"
    assert not (folder / "kept.parquet").exists()
    assert run("dm.yaml", "kept.parquet", "--control", "--force") == 0
    assert len(read_back(folder, "kept_random_real.parquet")) == 30


@pytest.mark.parametrize(
    ("config", "out", "flags", "problem"),
    [
        ("none.yaml", "x.parquet", (), "condensation in"),
        ("dm.yaml", "x.png", (), "ends in .parquet"),
        ("dm.yaml", "x.parquet", ("--dc", "x.npz"), "ends in .pt"),
        ("dm.yaml", "dm.yaml/x.parquet", (), "dm.yaml is not writable"),
        ("real.yaml", "x.parquet", ("--control",), "other than random_real and all_real"),
        ("dm.yaml", "x.parquet", ("--threads", "0"), "--threads is 0"),
        ("dm.yaml", "x.parquet", ("--condensation.ipc", "4"), "condensed_together is 3"),
        ("absent.yaml", "x.parquet", (), "absent.yaml"),
        ("dm.yaml", "x.parquet", ("--no-such-flag", "4"), "no-such-flag"),
    ],
)
def test_bad_input_is_refused_before_any_work(config, out, flags, problem, folder, run, capsys, monkeypatch):
    monkeypatch.setattr(Workshop, "condensed", lambda *_: pytest.fail("work was begun"))
    assert run(config, out, *flags) == 2
    error = capsys.readouterr().err
    assert problem in error
    assert "Traceback" not in error
    assert not (folder / out).exists()


def test_more_images_than_the_data_set_has_are_refused(folder, run, capsys):
    flags = ("--condensation.ipc", "200", "--condensation.condensed-together", "200")
    assert run("dm.yaml", "many.parquet", "--control", *flags) == 2
    assert "number of images per class is 200; accepted: at most" in capsys.readouterr().err
    assert not (folder / "many.parquet").exists()


@pytest.fixture
def imported(folder: Path) -> str:
    """The text of a config of an imported set of real images in [0, 1]."""
    data = Workshop(folder / "cache").data(read(folder / "dm.yaml"))
    rows = data.train.labels.argsort(stable=True)[:: len(data.train) // 60]
    images, labels = data.train.pixels[rows].float() / 255, data.train.labels[rows]
    torch.save({"data": [[images, labels]]}, folder / "set.pt")
    return f"data: digits\ncondensation: {{name: imported, path: {folder / 'set.pt'}, ipc: 2}}\n"


def test_an_imported_set_is_checked_without_training_a_teacher(folder, run, imported):
    (folder / "imported.yaml").write_text(imported)
    assert run("imported.yaml", "sets/imported.parquet") == 0
    assert len(pq.read_table(folder / "sets/imported.parquet")) == 20


def test_a_users_teacher_is_checked_before_it_is_used_to_check_an_imported_set(
    folder, run, imported, monkeypatch, capsys
):
    network = ConvNet(depth=1, width=4)
    torch.save(network.build((1, 8, 8), 10).state_dict(), folder / "w.pt")
    teacher = f"teacher: {{network: {{name: convnet, depth: 1, width: 4}}, weights: {folder / 'w.pt'}}}\n"
    (folder / "own.yaml").write_text(imported + teacher)
    monkeypatch.undo()
    monkeypatch.setattr(Workshop, "condensed", lambda *_: pytest.fail("a set was made"))
    assert run("own.yaml", "sets/own.parquet") == 2
    assert "error: teacher's accuracy on " in capsys.readouterr().err
    assert not (folder / "sets/own.parquet").exists()


@pytest.mark.parametrize("method", ["random_real, ipc: 20", "herding, epochs: 1, ipc: 20"])
def test_images_with_masks_are_read_back_equally_with_void(method, folder, run, capsys, tmp_path):
    data = "data: {name: scenes, size: [16, 24]}\n"
    (folder / "masks.yaml").write_text(f"{NETWORKS}{data}condensation: {{name: {method}}}\n")
    for name, seed in (("train", 0), ("test", 1)):
        assert run("masks.yaml", str(tmp_path / f"{name}.parquet"), "--seed", str(seed)) == 0
    lines = capsys.readouterr().out.splitlines()
    found = load(DataConfig(name="parquet_masks", root=tmp_path))
    for seed, part in enumerate((found.train, found.test)):
        workshop = Workshop(folder / "cache")
        config = from_tree(read_tree(folder / "masks.yaml") | {"seed": seed})
        data, expected = workshop.data(config), workshop.condensed(config)
        assert expected is not None
        rows = lines[3 * seed : 3 * seed + 3]
        assert rows[0].split() == ["set", "seed", "ipc", "images", "mean", "std", "clipped", "files"]
        assert rows[1].split()[1:4] == [str(seed), "20", "20"]
        assert rows[1].split()[6] == "0.0%"
        names, labels = ("sky", "ground", "disc", "square", "triangle", "cross", "void"), (0, 1, 2, 3, 4, 5, -1)
        counts = [int((expected.labels == label).sum()) for label in labels]
        assert counts[-1] > 0
        assert rows[2] == "  pixels: " + ", ".join(f"{name} {n}" for name, n in zip(names, counts, strict=True))
        # A set that is read is shuffled by its split, so images are compared in the order of their bytes.
        wanted = to_pixels(expected.images, data.mean, data.std)
        assert by_bytes(part.pixels, part.labels) == by_bytes(wanted, expected.labels.to(part.labels.dtype))
    metadata = pq.read_schema(tmp_path / "train.parquet").metadata
    assert json.loads(metadata[b"class_names"]) == ["sky", "ground", "disc", "square", "triangle", "cross"]
    assert (metadata[b"dataset"], metadata[b"seed"]) == (b"scenes", b"0")
    assert b"255" in metadata[b"masks"]


def by_bytes(pixels: torch.Tensor, masks: torch.Tensor) -> list[tuple[bytes, bytes]]:
    """Return the images and masks as bytes, sorted."""
    return sorted((image.numpy().tobytes(), mask.numpy().tobytes()) for image, mask in zip(pixels, masks, strict=True))


def test_a_file_with_one_label_an_image_is_refused_for_masks_before_any_work(folder, run, capsys, monkeypatch):
    (folder / "few.yaml").write_text(f"{NETWORKS}data: scenes\ncondensation: {{name: random_real, ipc: 4}}\n")
    monkeypatch.setattr(Workshop, "data", lambda *_: pytest.fail("data were read"))
    assert run("few.yaml", "few.parquet", "--dc", str(folder / "few.pt")) == 2
    printed = capsys.readouterr()
    assert f"--dc is '{folder / 'few.pt'}'; accepted: none in segmentation: a .pt file holds one label" in printed.err
    assert not printed.out
    assert not (folder / "few.parquet").exists()
