"""Choosing and loading the kept trials of a folder."""

import math
from dataclasses import replace

import pytest
import torch
from toy import IMAGE_SHAPE, MEAN, NUM_CLASSES, STD, samples

from condkd_ray.core import checkpoint as states
from condkd_ray.core.method import InputError
from condkd_ray.core.records import write_manifest, write_record
from condkd_ray.core.samples import Codec
from condkd_ray.models import NETWORKS, ResNet, parse
from condkd_ray.report.kept import Trained, choose, chosen, kept_path, kept_product, load_student, merit
from condkd_ray.trial.outcome import Product
from report.report_factory import make_manifest, make_record

NETWORK = "resnet-8-2"
VAL, PROXY = "student/val_accuracy", "proxy/agreement"


def record(name: str, value: float = 0.5, **changes):
    """A trial whose hash begins with `name`, with this validation accuracy."""
    fields = {"config_hash": f"{name}{0:0>15}", "metrics": {VAL: value, "student/test_accuracy": 1 - value}}
    return make_record("mixed", 2, 0, **fields | changes)


def keep(out, *records) -> None:
    """Keep a product of each of these trials."""
    for one in records:
        states.save(Product(), kept_path(out, one.config_hash))


@pytest.fixture
def product() -> Product:
    """A product with a student and six synthetic images."""
    torch.manual_seed(0)
    student = ResNet(depth=8, width=2).build(IMAGE_SHAPE, NUM_CLASSES)
    encoded = Codec("unit", MEAN, STD).encode(samples(6))
    about = {"num_classes": NUM_CLASSES, "image_shape": IMAGE_SHAPE, "mean": MEAN, "std": STD}
    images = {"images": encoded.images, "labels": encoded.labels, "logits": encoded.logits}
    return Product(student=student.state_dict(), network=NETWORK, **about, **images)


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ({VAL: 0.5, PROXY: 0.9, "student/test_accuracy": 1.0}, (VAL, 0.5)),
        ({VAL: math.nan, PROXY: 0.9}, (PROXY, 0.9)),
        ({PROXY: 0.9, "student/test_accuracy": 1.0}, (PROXY, 0.9)),
        ({"student/test_accuracy": 1.0}, ("nothing", -math.inf)),
    ],
)
def test_the_merit_is_the_validation_accuracy_or_the_proxy_and_never_the_test_accuracy(metrics, expected):
    assert merit(record("a", metrics=metrics)) == expected


def test_the_best_of_the_kept_trials_is_chosen(tmp_path):
    found = [record("a", 0.5), record("b", 0.7), record("c", 0.9)]
    keep(tmp_path, *found[:2])
    assert chosen(found, tmp_path) == found[1]


def test_a_reference_on_all_real_images_is_chosen_only_if_it_is_alone(tmp_path):
    real, other = record("a", 0.9, condensation="all_real"), record("b", 0.1)
    keep(tmp_path, real, other)
    assert chosen([real, other], tmp_path) == other
    assert chosen([real], tmp_path) == real


def test_a_hash_is_chosen_by_a_beginning_that_no_other_kept_trial_has(tmp_path):
    found = [record("aa", 0.5), record("ab", 0.7), record("ac", 0.9)]
    keep(tmp_path, *found[:2])
    assert chosen(found, tmp_path, "aa") == found[0]
    for beginning in ("a", "ac", "x"):
        with pytest.raises(InputError, match=rf"trial is '{beginning}'; accepted: the beginning of just one of aa0+ "):
            chosen(found, tmp_path, beginning)


def test_a_trial_that_is_not_planned_is_chosen_by_its_hash_alone(tmp_path):
    old, new = record("a", 0.9), record("b", 0.1)
    keep(tmp_path, old)
    accepted = r"trials kept in .* is 0; accepted: .* of the present plan; .* by hash: a0+ \(mixed ipc 2 seed 0\)"
    with pytest.raises(InputError, match=accepted):
        chosen([new], tmp_path, stored=[old, new])
    assert chosen([new], tmp_path, "a", stored=[old, new]) == old
    keep(tmp_path, new)
    assert chosen([new], tmp_path, stored=[old, new]) == new


@pytest.mark.parametrize("beginning", [None, "a"])
def test_a_folder_without_products_is_refused(tmp_path, beginning):
    with pytest.raises(InputError, match=r"trials kept in .* is 0; accepted: a folder with the product of at least on"):
        chosen([record("a")], tmp_path, beginning)


def test_a_folder_is_read_with_its_plan_and_the_newest_numbers(tmp_path):
    with pytest.raises(InputError):
        choose(tmp_path)
    planned, other = (replace(record(name, value), numbers=2) for name, value in (("a", 0.1), ("b", 0.9)))
    older = replace(record("c", 0.9), numbers=1)
    write_manifest(tmp_path, make_manifest([planned, older]))
    for one in (planned, other, older):
        write_record(tmp_path, one)
    keep(tmp_path, planned, other, older)
    assert choose(tmp_path) == planned
    assert choose(tmp_path, "b") == other


def test_a_product_is_read_if_it_is_kept_and_refused_if_it_is_damaged(tmp_path):
    one = record("a")
    assert kept_product(tmp_path, one.config_hash) is None
    keep(tmp_path, one)
    assert kept_product(tmp_path, one.config_hash).network == ""
    kept_path(tmp_path, one.config_hash).write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"product is .* cannot be read"):
        kept_product(tmp_path, one.config_hash)


def test_a_student_is_loaded_in_eval_mode_and_draws_nothing(product):
    before = torch.get_rng_state()
    student = load_student(product, record("a"))
    assert torch.equal(torch.get_rng_state(), before)
    assert not student.training
    assert type(student) is type(parse(NETWORK).build(IMAGE_SHAPE, NUM_CLASSES))
    assert all(torch.equal(value, product.student[name]) for name, value in student.state_dict().items())


def test_a_student_of_a_plug_in_that_is_not_installed_is_refused(product):
    lost = record("a", plugins={f"{NETWORKS.name}/own_net": "condkd-gone 1.0"})
    with pytest.raises(InputError, match="own_net"):
        load_student(product, lost)
    # A plug-in of another family is not needed to load the student.
    load_student(product, record("a", plugins={"inversion/own": "condkd-gone 1.0"}))


def test_a_trained_trial_returns_new_students_and_decoded_samples(product):
    trained = Trained(record("a", 0.25), product)
    one, other = trained.student, trained.student
    assert one is not other
    assert torch.equal(one(samples(3).images), other(samples(3).images))
    wanted = Codec("unit", MEAN, STD).decode(product.samples)
    assert torch.equal(trained.samples.images, wanted.images)
    assert repr(trained) == f"<Trained mixed seed 0 a{0:0>15}: finished, test accuracy 75.0%>"


def test_a_trial_without_a_product_raises_an_error_with_the_reason(product):
    trained = Trained(record("a"), None)
    assert trained.samples is None
    with pytest.raises(InputError, match=r"product of trial a0+ is None; accepted: a trial whose product is kept\."):
        _ = trained.student
    failed = Trained(record("a", status="failed", metrics={}), None)
    assert repr(failed) == f"<Trained mixed seed 0 a{0:0>15}: failed>"
    with pytest.raises(InputError, match=r"accepted: a trial that finished; this one is failed"):
        _ = failed.student
    assert Trained(record("a"), replace(product, images=None)).samples is None
