"""Exports: a student that gives the same predictions without this package, and its synthetic images."""

import io
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from report.report_factory import SCENE, altered, make_manifest, make_scene, scenes_manifest
from runs.test_products import PREPARED, folder_of, ran
from toy import MEAN, STD, toy_config

from condkd_ray.commands.export import export
from condkd_ray.core import checkpoint as states
from condkd_ray.core.method import InputError
from condkd_ray.core.records import Record, write_manifest, write_record
from condkd_ray.core.samples import MASK, to_unit
from condkd_ray.data.datasets import RealImages
from condkd_ray.data.readers import read_parquet
from condkd_ray.data.writers import VOID
from condkd_ray.methods.inversion import Dafl, NoInversion
from condkd_ray.methods.scores import mean_iou, predicted_confusion
from condkd_ray.report.kept import choose, kept_path
from condkd_ray.runs.products import BestProducts
from condkd_ray.trial.card import read_card
from condkd_ray.trial.outcome import Product, read_product


def test_trials_that_cannot_be_exported_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"holds no experiment\.json"):
        choose(tmp_path)
    out = folder_of(tmp_path)
    with pytest.raises(InputError, match=r"trials kept in .* is 0"):
        choose(out)
    BestProducts(out).update(ran(out, "abc"))
    with pytest.raises(InputError, match=r"trial is 'x'; accepted: the beginning of just one of abc \(mixed ipc 2"):
        choose(out, "x")
    kept_path(out, "abc").write_bytes(b"torn")
    with pytest.raises(InputError, match="which cannot be read"):
        export(out, choose(out), tmp_path / "to")


PLAIN = """
import json, sys, torch
pixels, labels = torch.load(sys.argv[1], weights_only=True)
program = torch.export.load(sys.argv[2]).module()
with torch.no_grad():
    one = torch.cat([program(image[None]) for image in pixels])
    many = program(pixels)
assert "condkd_ray" not in sys.modules
print(json.dumps([(many.argmax(1)).tolist(), (one - many).abs().max().item()]))
"""


SMALL = Dafl(steps=1, batch=16, latent=16, width=8, images_per_round=24)


@pytest.mark.parametrize("inversion", [None, pytest.param(SMALL, marks=pytest.mark.slow)])
def test_an_exported_student_gives_the_same_predictions_in_plain_torch(tmp_path, inversion):
    out = folder_of(tmp_path / "out")
    record = ran(out, "a", toy_config(rounds=2, **({"inversion": inversion} if inversion else {})))
    BestProducts(out).update(record)
    written = export(out, record, tmp_path / "to")
    assert len(written) == 3
    test = PREPARED.test
    torch.save((test.pixels / 255, test.labels), tmp_path / "test.pt")
    command = [sys.executable, "-c", PLAIN, str(tmp_path / "test.pt"), str(tmp_path / "to" / "student.pt2")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    predictions, difference = json.loads(done.stdout)
    assert predictions == record.outcome.predictions
    assert difference < 1e-4
    card = json.loads((tmp_path / "to" / "student.json").read_text())
    assert card["test_accuracy"] == record.metrics["student/test_accuracy"]
    assert (card["mean"], card["std"]) == (list(MEAN), list(STD))


def test_the_synthetic_set_is_the_memory_with_the_teachers_logits(tmp_path):
    out = folder_of(tmp_path / "out")
    record = ran(out, "a", toy_config(rounds=2))
    BestProducts(out).update(record)
    export(out, record, tmp_path / "to")
    kept = read_product(kept_path(out, "a")).samples
    assert kept is not None
    assert len(kept) == 32
    raw = read_parquet([tmp_path / "to" / "synthetic.parquet"])
    assert torch.equal(raw.pixels, kept.images)
    assert torch.equal(raw.labels, kept.labels)
    logits = torch.tensor(pq.read_table(tmp_path / "to" / "synthetic.parquet").column("logits").to_pylist())
    teacher = PREPARED.teacher
    with torch.no_grad():
        expected = teacher.logits(teacher.normalise(raw.pixels / 255))
    torch.testing.assert_close(logits, expected, rtol=2e-3, atol=2e-3)


def test_images_of_the_model_space_are_clipped_to_8_bit_with_a_note(tmp_path):
    out = folder_of(tmp_path / "out")
    dafl = Dafl(steps=1, batch=16, latent=16, width=8, images_per_round=24)
    record = ran(out, "a", toy_config(rounds=1, inversion=dafl))
    BestProducts(out).update(record)
    assert "clipped" in export(out, record, tmp_path / "to")[-1]
    kept = read_product(kept_path(out, "a"))
    assert kept.images is not None
    unit = to_unit(kept.images.float(), MEAN, STD).clamp(0, 1)
    raw = read_parquet([tmp_path / "to" / "synthetic.parquet"])
    assert (raw.pixels / 255 - unit).abs().max() <= 0.5 / 255 + 1e-6


def test_a_trial_without_synthetic_images_exports_its_student(tmp_path):
    out = folder_of(tmp_path / "out")
    base = toy_config()
    config = toy_config(rounds=1, inversion=NoInversion(), distiller=replace(base.distiller, condensed_share=1.0))
    record = ran(out, "a", config)
    BestProducts(out).update(record)
    assert "no synthetic.parquet" in export(out, record, tmp_path / "to")[-1]
    assert not (tmp_path / "to" / "synthetic.parquet").exists()


DENSE = """
import json, sys, torch
pixels, labels = torch.load(sys.argv[1], weights_only=True)
program = torch.export.load(sys.argv[2]).module()
with torch.no_grad():
    predicted = program(pixels).argmax(1)
assert "condkd_ray" not in sys.modules
ious = []
for k in range(int(sys.argv[3])):
    a, b = (predicted == k) & (labels >= 0), labels == k
    if (a | b).any():
        ious.append(((a & b).sum() / (a | b).sum()).item())
print(json.dumps(sum(ious) / len(ious)))
"""


def dense_trial(out, monkeypatch) -> tuple[Record, RealImages]:
    """Store a finished trial of a segmentation whose student is one convolution; return its record and test images."""
    rng = torch.Generator().manual_seed(0)
    student = torch.nn.Conv2d(3, len(SCENE), 3, padding=1).eval()
    test = RealImages(
        torch.randint(0, 256, (6, 3, 8, 12), generator=rng).to(torch.uint8),
        torch.randint(-1, len(SCENE), (6, 8, 12), generator=rng).to(MASK),
    )
    monkeypatch.setattr("condkd_ray.commands.export.load_student", lambda product, record: student)
    counts = predicted_confusion(student, test, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), len(SCENE))
    record = make_scene()
    record = altered(record, metrics=record.metrics | {"student/test_miou": mean_iou(counts).item()})
    write_manifest(out, make_manifest([record], **scenes_manifest()))
    write_record(out, record)
    product = Product(
        student.state_dict(), "resnet-8-2", len(SCENE), (3, 8, 12), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4),
        images=test.pixels, labels=test.labels,
    )  # fmt: skip
    kept_path(out, record.config_hash).parent.mkdir()
    states.save(product, kept_path(out, record.config_hash))
    return record, test


def test_an_exported_segmentation_student_has_the_same_mean_iou_in_plain_torch(tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    record, test = dense_trial(out, monkeypatch)
    written = export(out, record, tmp_path / "to")
    assert "logits (B, K, H, W)" in written[1]
    assert "6 images with masks" in written[2]
    torch.save((test.pixels / 255, test.labels.long()), tmp_path / "test.pt")
    names = [str(tmp_path / "test.pt"), str(tmp_path / "to" / "student.pt2"), str(len(SCENE))]
    command = [sys.executable, "-c", DENSE, *names]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert json.loads(done.stdout) == pytest.approx(record.metrics["student/test_miou"], abs=1e-6)
    card = json.loads((tmp_path / "to" / "student.json").read_text())
    assert card["test_miou"] == record.metrics["student/test_miou"]
    assert "test_accuracy" not in card
    assert (card["task"], card["class_names"]) == ("segmentation", list(SCENE))
    assert card["chosen_by"] == {"student/val_miou": record.metrics["student/val_miou"]}
    read = read_card(tmp_path / "to" / "student.json")
    assert (read.task, read.test_miou) == ("segmentation", record.metrics["student/test_miou"])


def test_synthetic_images_of_a_segmentation_are_written_with_their_masks(tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    record, test = dense_trial(out, monkeypatch)
    export(out, record, tmp_path / "to")
    table = pq.read_table(tmp_path / "to" / "synthetic.parquet")
    assert table.column_names == ["image", "mask"]
    pictures = {
        name: [np.asarray(Image.open(io.BytesIO(one["bytes"]))) for one in table.column(name).to_pylist()]
        for name in table.column_names
    }
    np.testing.assert_array_equal(np.stack(pictures["image"]), test.pixels.permute(0, 2, 3, 1))
    wanted = test.labels.long()
    np.testing.assert_array_equal(np.stack(pictures["mask"]), wanted.where(wanted >= 0, torch.tensor(VOID)))
