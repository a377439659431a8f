"""Exports: a student that gives the same predictions without this package, and its synthetic images."""

import json
import subprocess
import sys
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import torch
from runs.test_products import PREPARED, folder_of, ran
from toy import MEAN, STD, toy_config

from condkd_ray.commands.export import export
from condkd_ray.core.method import InputError
from condkd_ray.core.samples import to_unit
from condkd_ray.data.readers import read_parquet
from condkd_ray.methods.inversion import Dafl, NoInversion
from condkd_ray.report.kept import choose, kept_path
from condkd_ray.runs.products import BestProducts
from condkd_ray.trial.outcome import read_product


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
