"""Which trials' products are kept: the best of each arm, by what may choose; and which of these is exported."""

from dataclasses import replace
from pathlib import Path

from report.report_factory import altered
from toy import make_prepared, toy_config

from condkd_ray.core import checkpoint as states
from condkd_ray.core.records import Manifest, write_manifest, write_record
from condkd_ray.core.storage import locate
from condkd_ray.runs.products import Shelf, choose, kept_path, merit
from condkd_ray.runs.recorder import make_record
from condkd_ray.trial.outcome import product_path, read_product
from condkd_ray.trial.plan import Plan
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
    record = altered(record, metrics=record.metrics | {f"student/{name}": value for name, value in metrics.items()})
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
        states.save(read_product(fresh), remote)
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
    blind = altered(record, metrics={"proxy/agreement": 0.25, "student/test_accuracy": 1.0})
    assert merit(blind) == ("proxy/agreement", 0.25)
    assert merit(record)[0] == "student/val_accuracy"


def test_a_failed_trial_keeps_nothing(tmp_path):
    out = folder_of(tmp_path)
    Shelf(out).offer(altered(ran(out, "a"), status="failed"))
    assert not kept_path(out, "a").exists()
