"""What leaves the house: which student is kept, and that it scores the same without this package."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from toy import MEAN, STD, make_prepared, toy_config

from condkd_ray.commands.export import Shelf, choose, export, kept_path, merit
from condkd_ray.core.method import InputError
from condkd_ray.core.samples import to_unit
from condkd_ray.core.storage import locate
from condkd_ray.data.readers import read_parquet
from condkd_ray.methods.inversion import Dafl, NoInversion
from condkd_ray.report.records import Manifest, write_manifest, write_record
from condkd_ray.runs.plan import Plan
from condkd_ray.runs.recorder import make_record
from condkd_ray.trial.product import product_path, read_product, write_product
from condkd_ray.trial.run import local_store, run_trial

PREPARED = make_prepared()


def folder_of(out: Path) -> Path:
    write_manifest(out, Manifest(experiment="test", question="", command="", created=""))
    return out


def ran(out: Path, key: str, config=None, arm: str = "mixed", **metrics: float):
    """A trial really run, its product in its folder; `metrics` over what it measured."""
    config = config or toy_config(rounds=1)
    product = product_path(out / "trials" / key)
    outcome = run_trial(config, PREPARED, local_store(config, PREPARED, None), product=product)
    record = make_record("test", Plan(arm, 2, 0, config), key, PREPARED, outcome)
    record = replace(record, metrics=record.metrics | {f"student/{name}": value for name, value in metrics.items()})
    write_record(out, record)
    return record


def test_the_best_of_each_arm_is_kept_by_validation_and_never_by_test_accuracy(tmp_path):
    out = folder_of(tmp_path)
    shelf = Shelf(out)
    scores = {"a": (0.5, 0.9), "b": (0.7, 0.1), "c": (0.6, 1.0)}
    for key, (val, test) in scores.items():
        shelf.offer(ran(out, key, val_accuracy=val, test_accuracy=test))
        shelf = Shelf(out)  # as after a restart
    other = ran(out, "d", arm="none", val_accuracy=0.1)
    shelf.offer(other)
    assert {path.stem for path in (out / "products").iterdir()} == {"b", "d"}
    assert not any(product_path(out / "trials" / key).exists() for key in "abcd")
    assert choose(out).config_hash == "b"
    assert choose(out, "d") == other


def test_what_older_numbers_made_is_neither_compared_with_new_nor_chosen_before_it(tmp_path):
    out = folder_of(tmp_path)
    old = replace(ran(out, "a", val_accuracy=0.9), numbers=1)
    Shelf(out).offer(old)
    write_record(out, old)
    Shelf(out).offer(ran(out, "b", val_accuracy=0.5))
    assert kept_path(out, "b").is_file()
    assert choose(out).config_hash == "b"


def test_a_product_is_fetched_from_a_bucket(tmp_path, bucket):
    out, storage = folder_of(tmp_path), locate(bucket)
    shelf = Shelf(out, storage)
    for key, score in {"a": 0.5, "b": 0.7, "c": 0.6}.items():
        record = ran(out, key, val_accuracy=score)
        fresh, remote = product_path(out / "trials" / key), product_path(storage / "trials" / key)
        write_product(read_product(fresh), remote)
        fresh.unlink()
        shelf.offer(record)
        assert not remote.is_file()
    assert {path.stem for path in (out / "products").iterdir()} == {"b"}
    assert read_product(kept_path(out, "b")).num_classes == 4


def test_a_student_of_all_real_images_is_a_reference_and_not_the_best(tmp_path):
    out = folder_of(tmp_path)
    shelf = Shelf(out)
    real = replace(ran(out, "r", arm="real", val_accuracy=0.9), condensation="all_real")
    write_record(out, real)
    shelf.offer(real)
    assert choose(out).config_hash == "r"
    shelf.offer(ran(out, "m", val_accuracy=0.5))
    assert choose(out).config_hash == "m"
    assert choose(out, "r") == real


def test_without_validation_images_the_proxy_judges(tmp_path):
    record = ran(folder_of(tmp_path), "a")
    blind = replace(record, metrics={"proxy/agreement": 0.25, "student/test_accuracy": 1.0})
    assert merit(blind) == ("proxy/agreement", 0.25)
    assert merit(record)[0] == "student/val_accuracy"


def test_a_failed_trial_keeps_nothing(tmp_path):
    out = folder_of(tmp_path)
    Shelf(out).offer(replace(ran(out, "a"), status="failed"))
    assert not kept_path(out, "a").exists()


def test_what_cannot_be_exported_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"holds no experiment\.json"):
        choose(tmp_path)
    out = folder_of(tmp_path)
    with pytest.raises(InputError, match=r"trials kept in .* is 0"):
        choose(out)
    Shelf(out).offer(ran(out, "abc"))
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


@pytest.mark.parametrize("inversion", [None, Dafl(steps=1, batch=16, latent=16, width=8, images_per_round=24)])
def test_an_exported_student_scores_the_same_in_plain_torch(tmp_path, inversion):
    out = folder_of(tmp_path / "out")
    record = ran(out, "a", toy_config(rounds=2, **({"inversion": inversion} if inversion else {})))
    Shelf(out).offer(record)
    written = export(out, record, tmp_path / "to")
    assert len(written) == 3
    test = PREPARED.test
    torch.save((test.pixels / 255, test.labels), tmp_path / "test.pt")
    command = [sys.executable, "-c", PLAIN, str(tmp_path / "test.pt"), str(tmp_path / "to" / "student.pt2")]
    told = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    predictions, difference = json.loads(told.stdout)
    assert predictions == record.predictions
    assert difference < 1e-4
    card = json.loads((tmp_path / "to" / "student.json").read_text())
    assert card["test_accuracy"] == record.metrics["student/test_accuracy"]
    assert (card["mean"], card["std"]) == (list(MEAN), list(STD))


def test_the_synthetic_set_is_that_of_the_memory_with_the_teachers_logits(tmp_path):
    out = folder_of(tmp_path / "out")
    record = ran(out, "a", toy_config(rounds=2))
    Shelf(out).offer(record)
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
        asked = teacher.logits(teacher.normalise(raw.pixels / 255))
    torch.testing.assert_close(logits, asked, rtol=2e-3, atol=2e-3)


def test_images_of_the_models_space_are_clipped_to_eight_bit_and_it_is_said(tmp_path):
    out = folder_of(tmp_path / "out")
    dafl = Dafl(steps=1, batch=16, latent=16, width=8, images_per_round=24)
    record = ran(out, "a", toy_config(rounds=1, inversion=dafl))
    Shelf(out).offer(record)
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
    Shelf(out).offer(record)
    assert "no synthetic.parquet" in export(out, record, tmp_path / "to")[-1]
    assert not (tmp_path / "to" / "synthetic.parquet").exists()
