"""Files kept of trials (products of the best trials, image grids, features), and the choice of the exported trial."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from report.report_factory import altered
from report.report_factory import make_record as a_record
from toy import NUM_CLASSES, make_prepared, samples, toy_config
from toy_dense import dense_config, make_dense_prepared

from condkd_ray.core import checkpoint as states
from condkd_ray.core.method import InputError
from condkd_ray.core.records import (
    ALL_REAL,
    Manifest,
    Outcome,
    condensed_path,
    grid_path,
    record_path,
    write_manifest,
    write_record,
)
from condkd_ray.core.samples import Codec, to_pixels, unseen
from condkd_ray.core.storage import locate
from condkd_ray.data.palette import coloured
from condkd_ray.methods.condensation import AllReal
from condkd_ray.methods.inversion import DeepInversion, NoInversion
from condkd_ray.report.figures.image_grids import captioned, write_grid
from condkd_ray.report.kept import choose, kept_path, merit
from condkd_ray.report.results import read
from condkd_ray.report.tensorboard.embeddings import points_path, read_points, write_points
from condkd_ray.report.tensorboard.writer import rebuild
from condkd_ray.runs import products
from condkd_ray.runs.products import BestProducts, feature_points, most_bytes, write_grids
from condkd_ray.runs.recorder import Recorder, make_record
from condkd_ray.trial.outcome import Product, product_path, read_product
from condkd_ray.trial.plan import Plan, PlannedTrial, trial_hash
from condkd_ray.trial.run import local_store, run_trial

PREPARED = make_prepared()


def folder_of(out: Path) -> Path:
    write_manifest(out, Manifest(experiment="test", question="", command="", created=""))
    return out


def ran(out: Path, key: str, config=None, arm: str = "mixed", **metrics: float):
    """Run a trial with its product in its folder; return its record, in which `metrics` replace measured ones."""
    config = config or toy_config(rounds=1)
    product = product_path(out / "trials" / key)
    outcome = run_trial(config, PREPARED, local_store(config, PREPARED, None), product=product)
    record = make_record("test", Plan(arm, 2, 0, config), key, PREPARED, outcome)
    record = altered(record, metrics=record.metrics | {f"student/{name}": value for name, value in metrics.items()})
    write_record(out, record)
    return record


def test_the_product_with_the_best_validation_accuracy_of_each_arm_is_kept(tmp_path):
    out = folder_of(tmp_path)
    keeper = BestProducts(out)
    scores = {"a": (0.5, 0.9), "b": (0.7, 0.1), "c": (0.6, 1.0)}
    for key, (val, test) in scores.items():
        keeper.update(ran(out, key, val_accuracy=val, test_accuracy=test))
        keeper = BestProducts(out)  # a new one, as after a restart
    other = ran(out, "d", arm="none", val_accuracy=0.1)
    keeper.update(other)
    assert {path.stem for path in (out / "products").iterdir()} == {"b", "d"}
    assert not any(product_path(out / "trials" / key).exists() for key in "abcd")
    assert choose(out).config_hash == "b"
    assert choose(out, "d") == other


def test_a_damaged_product_is_not_kept_in_place_of_an_earlier_one(tmp_path, logged):
    out = folder_of(tmp_path)
    BestProducts(out).update(ran(out, "a", val_accuracy=0.5))
    better = ran(out, "b", val_accuracy=0.9)
    # The driver, and with it its machine, died after it moved the product and before it wrote the record.
    kept = kept_path(out, "b")
    whole = product_path(out / "trials" / "b").read_bytes()
    product_path(out / "trials" / "b").unlink()
    record_path(out, "b").unlink()
    for content in (b"", whole[: len(whole) // 2]):
        kept.write_bytes(content)
        BestProducts(out).update(better, PREPARED)
        assert {path.stem for path in (out / "products").iterdir()} == {"a"}
        assert f"product is {str(kept)!r}, which cannot be read" in logged[-1]
    assert choose(out).config_hash == "a"


def test_a_product_of_an_older_numbers_version_is_not_compared_with_or_preferred_to_a_new_one(tmp_path):
    out = folder_of(tmp_path)
    old = replace(ran(out, "a", val_accuracy=0.9), numbers=1)
    BestProducts(out).update(old)
    write_record(out, old)
    BestProducts(out).update(ran(out, "b", val_accuracy=0.5))
    assert kept_path(out, "b").is_file()
    assert choose(out).config_hash == "b"


def planned_in(out: Path, *keys: str) -> None:
    plan = [{"arm": "mixed", "ipc": 2, "seed": seed, "config_hash": key} for seed, key in enumerate(keys)]
    write_manifest(out, Manifest(experiment="test", question="", command="", created="", planned=plan))


def test_a_better_trial_that_is_no_longer_planned_does_not_displace_a_planned_one(tmp_path):
    out = folder_of(tmp_path)
    planned_in(out, "a")
    BestProducts(out).update(ran(out, "a", val_accuracy=0.9))
    planned_in(out, "b", "c")
    best = BestProducts(out)
    best.update(ran(out, "b", val_accuracy=0.5))
    assert {path.stem for path in (out / "products").iterdir()} == {"a", "b"}
    best.update(ran(out, "c", val_accuracy=0.4))
    results = read(out)
    assert results.best().record == choose(out) == choose(out, "b")
    # A hash still selects the product of the former plan.
    assert results.trained("a").record == choose(out, "a")
    # The product is deleted as soon as a planned trial is as good.
    planned_in(out, "b", "c", "d")
    BestProducts(out).update(ran(out, "d", val_accuracy=0.9))
    assert {path.stem for path in (out / "products").iterdir()} == {"d"}


def test_a_folder_with_only_a_product_that_is_no_longer_planned_names_its_hash(tmp_path):
    out = folder_of(tmp_path)
    BestProducts(out).update(ran(out, "a", val_accuracy=0.9))
    ran(out, "b", val_accuracy=0.5)
    planned_in(out, "b")
    for find in (lambda: choose(out), read(out).best):
        with pytest.raises(InputError, match=r"trials kept in .* is 0; .* by hash: a \(mixed ipc 2 seed 0\)"):
            find()
    assert choose(out, "a").config_hash == "a"


def test_a_product_is_fetched_from_a_bucket(tmp_path, bucket):
    out, storage = folder_of(tmp_path), locate(bucket)
    best = BestProducts(out, storage)
    for key, score in {"a": 0.5, "b": 0.7, "c": 0.6}.items():
        record = ran(out, key, val_accuracy=score)
        fresh, remote = product_path(out / "trials" / key), product_path(storage / "trials" / key)
        states.save(read_product(fresh), remote)
        fresh.unlink()
        best.update(record)
        assert not remote.is_file()
    assert {path.stem for path in (out / "products").iterdir()} == {"b"}
    assert read_product(kept_path(out, "b")).num_classes == 4


def test_a_student_of_all_real_images_is_a_reference_and_not_the_best(tmp_path):
    out = folder_of(tmp_path)
    best = BestProducts(out)
    real = replace(ran(out, "r", arm="real", val_accuracy=0.9), condensation="all_real")
    write_record(out, real)
    best.update(real)
    assert choose(out).config_hash == "r"
    best.update(ran(out, "m", val_accuracy=0.5))
    assert choose(out).config_hash == "m"
    assert choose(out, "r") == real


def test_without_validation_images_trials_are_ranked_by_the_proxy(tmp_path):
    record = ran(folder_of(tmp_path), "a")
    blind = altered(record, metrics={"proxy/agreement": 0.25, "student/test_accuracy": 1.0})
    assert merit(blind) == ("proxy/agreement", 0.25)
    assert merit(record)[0] == "student/val_accuracy"


def test_a_segmentation_has_no_points_and_the_report_of_several_arms_needs_none(tmp_path):
    """A file without points made `rebuild` fail as soon as there were two trials."""
    out, prepared, config = folder_of(tmp_path), make_dense_prepared(), dense_config(rounds=1)
    records = []
    for arm in ("none", "mixed"):
        product = product_path(out / "trials" / arm)
        outcome = run_trial(config, prepared, local_store(config, prepared, None), product=product)
        done = make_record("test", Plan(arm, 4, 0, config), arm, prepared, outcome)
        write_record(out, done)
        records.append(done)
        BestProducts(out).update(done, prepared)
        assert kept_path(out, arm).is_file()
        assert not points_path(out, arm).exists()
    rebuild(out, records)


def test_no_product_of_a_failed_trial_is_kept(tmp_path):
    out = folder_of(tmp_path)
    BestProducts(out).update(altered(ran(out, "a"), status="failed"))
    assert not kept_path(out, "a").exists()


WHOLE = make_prepared()
TEACHER = WHOLE.teacher
IMAGES = torch.arange(NUM_CLASSES, dtype=torch.uint8).repeat_interleave(3).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
OUTCOME = Outcome(status="finished", metrics={}, history=[], predictions=[], images=IMAGES, images_per_class=3)


def record(**changes):
    return a_record("guided", 2, 0, **{"condensed_hash": "c0ffee", "inversion": "fast"} | changes)


def names(out, one) -> list[tuple[str, str]]:
    return [(caption, path.stem) for caption, path in captioned(out, one)]


def test_the_grid_of_the_condensed_set_is_written_once_and_listed_first(tmp_path):
    one = record()
    write_grids(tmp_path, one, OUTCOME, WHOLE)
    guides = condensed_path(tmp_path, "c0ffee")
    images, teacher = WHOLE.condensed.images[WHOLE.condensed.labels.argsort()], WHOLE.teacher
    write_grid(tmp_path / "expected.png", to_pixels(images, teacher.mean, teacher.std), 2)
    assert guides.read_bytes() == (tmp_path / "expected.png").read_bytes()
    guides.write_bytes(b"here")
    write_grids(tmp_path, record(config_hash="another"), OUTCOME, WHOLE)
    assert guides.read_bytes() == b"here"
    assert names(tmp_path, one) == [("condensed", "condensed-c0ffee"), ("synthetic", one.config_hash)]


def test_the_grid_of_a_condensed_set_with_masks_shows_them_below_the_images(tmp_path):
    labels = torch.randint(
        -1, NUM_CLASSES, (3, *WHOLE.condensed.images.shape[2:]), generator=torch.Generator().manual_seed(0)
    )
    dense = replace(WHOLE, condensed=unseen(WHOLE.condensed.images[:3], labels))
    write_grids(tmp_path, record(), OUTCOME, dense)
    pixels = to_pixels(dense.condensed.images, WHOLE.teacher.mean, WHOLE.teacher.std).expand(-1, 3, -1, -1)
    write_grid(tmp_path / "expected.png", torch.cat([pixels, coloured(labels)]), 3, products.MASKED)
    assert condensed_path(tmp_path, "c0ffee").read_bytes() == (tmp_path / "expected.png").read_bytes()


@pytest.mark.parametrize(
    ("changes", "prepared", "expected"),
    [
        ({"condensed_hash": "", "condensation": "none"}, make_prepared(condensed=False), ["synthetic"]),
        ({"inversion": "none"}, WHOLE, ["condensed"]),
        ({"inversion": "none", "condensation": "all_real"}, WHOLE, ["real"]),
    ],
)
def test_an_image_grid_has_a_caption_with_the_kind_of_its_images(tmp_path, changes, prepared, expected):
    one = record(**changes)
    write_grids(tmp_path, one, OUTCOME, prepared)
    assert names(tmp_path, one) == [(caption, one.config_hash) for caption in expected]


def test_a_failed_trial_has_only_the_grid_of_its_condensed_set(tmp_path):
    one = record()
    write_grids(tmp_path, one, replace(OUTCOME, images=None), WHOLE)
    assert names(tmp_path, one) == [("condensed", "condensed-c0ffee")]
    assert not grid_path(tmp_path, one.config_hash).exists()


def product(images, space="unit") -> Product:
    encoded = Codec(space, TEACHER.mean, TEACHER.std).encode(images)
    return Product(
        mean=TEACHER.mean, std=TEACHER.std, space=space,
        images=encoded.images, labels=encoded.labels, logits=encoded.logits,
    )  # fmt: skip


def close(left, right) -> bool:
    return torch.allclose(left, right, atol=2e-3, rtol=2e-3)


def test_points_are_features_in_units_of_the_scale_of_real_features():
    shown = samples(6)
    found = feature_points(WHOLE, product(shown))
    marks = WHOLE.landmarks
    assert set(found) == {"real", "condensed", "synthetic"}
    assert len(found["real"].classes) == len(marks.real)
    assert found["real"].features.square().sum(1).mean().sqrt() == pytest.approx(1, abs=1e-4)
    assert torch.equal(found["condensed"].features, marks.condensed)
    order = sorted(range(6), key=lambda row: int(shown.labels[row]))
    assert found["synthetic"].classes.tolist() == [int(shown.labels[row]) for row in order]
    for place, row in enumerate(order):
        alone = TEACHER.observe(shown.images[row : row + 1]).features[0] / marks.scale
        assert close(found["synthetic"].features[place], alone)


def test_points_take_no_more_bytes_than_the_stated_maximum(tmp_path, monkeypatch):
    monkeypatch.setattr(products, "MOST_POINTS", 20)
    labels = torch.arange(40) % NUM_CLASSES
    found = feature_points(WHOLE, product(samples(40, labels=labels)))
    # The condensed set, too, has the maximum number of points of a kind.
    found["condensed"] = found["real"]
    records = [a_record(arm, 2, 0, condensed_hash=arm) for arm in ("mixed", "guided")]
    for record in records:
        write_points(points_path(tmp_path, record.config_hash), found)
    rebuild(tmp_path, records)
    written = sum(path.stat().st_size for name in ("tensors.tsv", "*.safetensors") for path in tmp_path.rglob(name))
    assert 0.3 < written / (2 * most_bytes(TEACHER)) <= 1


def test_pixels_outside_the_unit_range_are_not_clipped():
    images = samples(4)
    scaled = replace(images, images=3 * images.images)
    expected = TEACHER.observe(scaled.images[scaled.labels.argsort(stable=True)]).features / WHOLE.landmarks.scale
    assert close(feature_points(WHOLE, product(scaled, "model"))["synthetic"].features, expected)
    assert not close(feature_points(WHOLE, product(scaled, "unit"))["synthetic"].features, expected)


def test_many_points_are_thinned_out_evenly_over_the_classes(monkeypatch):
    monkeypatch.setattr(products, "MOST_POINTS", 2 * NUM_CLASSES)
    labels = torch.arange(40) % NUM_CLASSES
    found = feature_points(WHOLE, product(samples(40, labels=labels)))
    for kind in ("real", "synthetic"):
        assert found[kind].classes.bincount().tolist() == [2] * NUM_CLASSES


def test_points_have_no_kind_without_images():
    assert set(feature_points(make_prepared(condensed=False), product(samples(3)))) == {"real", "synthetic"}
    assert set(feature_points(WHOLE, Product())) == {"real", "condensed"}
    assert feature_points(replace(WHOLE, landmarks=None), product(samples(3))) == {}


@pytest.mark.parametrize("inversion", [None, DeepInversion(steps=2, batch=16)])
def test_the_best_trial_of_an_arm_keeps_its_points_and_another_loses_them(tmp_path, inversion):
    more = {} if inversion is None else {"inversion": inversion}
    configs = [toy_config(rounds=1, seed=seed, **more) for seed in (0, 1)]
    trials = [PlannedTrial(trial_hash(one, WHOLE), Plan("mixed", 2, one.seed, one), WHOLE) for one in configs]
    recorder = Recorder("test", tmp_path, trials)
    for trial, better in zip(trials, (0.1, 0.2), strict=True):
        place = product_path(tmp_path / "trials" / trial.key)
        outcome = run_trial(trial.config, WHOLE, local_store(trial.config, WHOLE, None), product=place)
        recorder.ended(trial, replace(outcome, metrics=outcome.metrics | {"student/val_accuracy": better}))
    recorder.close()
    best = trials[1].key
    assert [path.stem for path in (tmp_path / "points").iterdir()] == [best]
    kept = read_product(tmp_path / "products" / f"{best}.safetensors")
    expected = feature_points(WHOLE, kept)["synthetic"]
    assert close(read_points(points_path(tmp_path, best))["synthetic"].features, expected.features)


def test_constants_of_the_reports_equal_the_names_of_the_methods():
    assert (AllReal.name, NoInversion.name) == (ALL_REAL, "none")
