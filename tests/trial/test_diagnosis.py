"""The diagnosis of synthetic images, compared with plain loops in float64 and on sets with known values."""

from dataclasses import replace
from math import dist, exp, isnan, log
from pathlib import Path
from statistics import fmean

import pytest
import torch
from toy import MEAN, NUM_CLASSES, STD, blobs, make_prepared, make_teacher, toy_config

import condkd_ray
from condkd_ray.core.method import NonFiniteError
from condkd_ray.core.samples import Samples, cat
from condkd_ray.methods.inversion import Fast, NoInversion
from condkd_ray.methods.losses.discrepancy import class_frechet, class_mmd, median_distance
from condkd_ray.models import ResNet
from condkd_ray.trial.diagnosis import NEIGHBOUR, NUM_IMAGES, diagnose, histograms, make_landmarks
from condkd_ray.trial.run import local_store, run_trial

TEACHER = make_teacher()
STUDENT = ResNet(depth=8, width=2).build(TEACHER.image_shape, NUM_CLASSES)
REAL = blobs(10 * NUM_CLASSES, seed=6).samples(MEAN, STD)
GUIDES = blobs(3 * NUM_CLASSES, seed=7).samples(MEAN, STD)
FRESH = blobs(24, seed=8).samples(MEAN, STD)
CONDENSED_SIDE = {"mmd_condensed", "frechet_condensed", "coverage", "nearest_guide"}
REAL_SIDE = {"mmd_real", "frechet_real", "diversity", "confidence", "gap"}


def found(fresh: Samples, guides: Samples | None = GUIDES, real: Samples = REAL) -> dict[str, float]:
    metrics = diagnose(fresh, make_landmarks(TEACHER, real, guides), teacher=TEACHER, student=STUDENT)
    return {name.removeprefix("diagnosis/"): value for name, value in metrics.items()}


def features(samples: Samples) -> torch.Tensor:
    with torch.no_grad():
        return TEACHER.observe(samples.images).features.double()


SCALE = features(REAL).square().sum(1).mean().sqrt()


def classes(samples: Samples) -> list[list[list[float]]]:
    """Return scaled features by class, as lists."""
    scaled = features(samples) / SCALE
    return [scaled[samples.labels == k].tolist() for k in range(NUM_CLASSES)]


def mean_pair(points):
    return fmean(dist(a, b) for i, a in enumerate(points) for j, b in enumerate(points) if i != j)


def mean_nearest(points, guides):
    return fmean(min(dist(a, g) for g in guides) for a in points)


def test_diversity_coverage_and_nearest_guide_by_plain_loops():
    ours, real, guides = classes(FRESH), classes(REAL), classes(GUIDES)
    hits = [
        min(dist(a, g) for a in ours[k]) <= sorted(dist(r, g) for r in real[k])[NEIGHBOUR - 1]
        for k in range(NUM_CLASSES)
        for g in guides[k]
    ]
    near = [fmean(mean_nearest(x, g) for x, g in zip(side, guides, strict=True)) for side in (ours, real)]
    spread = [fmean(map(mean_pair, side)) for side in (ours, real)]
    figures = found(FRESH)
    assert figures["coverage"] == pytest.approx(fmean(hits))
    assert figures["nearest_guide"] == pytest.approx(near[0] / near[1], rel=1e-4)
    assert figures["diversity"] == pytest.approx(spread[0] / spread[1], rel=1e-4)


def test_confidence_and_gap_by_plain_loops():
    STUDENT.eval()
    with torch.no_grad():
        pairs = zip(TEACHER.logits(FRESH.images).tolist(), STUDENT(FRESH.images).tolist(), strict=True)
    tops, gaps = [], []
    for teacher, student in pairs:
        p, q = ([exp(x) / sum(map(exp, row)) for x in row] for row in (teacher, student))
        tops.append(max(p))
        gaps.append(sum(a * log(a / b) for a, b in zip(p, q, strict=True)))
    figures = found(FRESH)
    assert (figures["confidence"], figures["gap"]) == pytest.approx((fmean(tops), fmean(gaps)), rel=1e-4)


@pytest.mark.parametrize(("side", "other"), [("real", REAL), ("condensed", GUIDES)])
def test_distances_are_of_scaled_features_with_the_bandwidth_of_real_ones(side, other):
    sides = features(FRESH) / SCALE, FRESH.labels, features(other) / SCALE, other.labels
    median = median_distance(features(REAL) / SCALE)
    mmd = class_mmd(*sides, num_classes=NUM_CLASSES, median=median).item()
    frechet = class_frechet(*sides, num_classes=NUM_CLASSES).item()
    figures = found(FRESH)
    assert (figures[f"mmd_{side}"], figures[f"frechet_{side}"]) == pytest.approx((mmd, frechet), rel=1e-3)


def repeated(samples: Samples, each: int) -> Samples:
    return cat([samples] * each)


def test_images_collapsed_onto_one_guide_a_class_are_detected():
    one = GUIDES[:NUM_CLASSES]
    figures = found(repeated(one, 6), one)
    assert figures["diversity"] == pytest.approx(0, abs=1e-5)
    assert figures["nearest_guide"] == pytest.approx(0, abs=1e-5)
    assert figures["frechet_condensed"] == pytest.approx(0, abs=1e-5)
    assert figures["coverage"] == 1
    assert figures["frechet_real"] > 1.2 * found(FRESH, one)["frechet_real"]


def test_real_images_are_as_spread_as_real_ones_and_cover_the_guides():
    figures = found(REAL)
    assert figures["diversity"] == pytest.approx(1, rel=1e-5)
    assert figures["nearest_guide"] == pytest.approx(1, rel=1e-5)
    assert figures["frechet_real"] == pytest.approx(0, abs=1e-5)
    assert figures["mmd_real"] == pytest.approx(0, abs=1e-5)
    assert figures["coverage"] == 1


def test_distant_images_have_larger_distances_and_a_smaller_coverage():
    near, far = found(FRESH), found(Samples(FRESH.images.flip(3), FRESH.labels, FRESH.logits))
    for name in ("frechet_real", "mmd_real", "frechet_condensed", "mmd_condensed", "nearest_guide"):
        assert far[name] > 1.5 * near[name]
    assert far["coverage"] < near["coverage"]


def test_without_condensed_images_only_the_real_side_is_measured():
    alone, both = found(FRESH, None), found(FRESH)
    assert set(alone) == REAL_SIDE
    assert set(both) == REAL_SIDE | CONDENSED_SIDE
    assert alone == {name: both[name] for name in alone}


def test_undefined_measures_are_left_out():
    assert set(found(FRESH[:3])) == REAL_SIDE - {"diversity"} | CONDENSED_SIDE
    others = Samples(GUIDES.images, torch.full_like(GUIDES.labels, 3), GUIDES.logits)
    first = FRESH[FRESH.labels == 0]
    assert set(found(first, others)) == REAL_SIDE | {"coverage"}
    assert found(first, others)["coverage"] == 0


def test_real_images_that_are_guides_are_left_out_of_distances_to_guides():
    apart, shared = REAL[:-NUM_CLASSES], REAL[-NUM_CLASSES:]
    wanted, landmarks = make_landmarks(TEACHER, apart, shared), make_landmarks(TEACHER, REAL, shared)
    torch.testing.assert_close(landmarks.nearest * landmarks.scale, wanted.nearest * wanted.scale)
    torch.testing.assert_close(landmarks.radii * landmarks.scale, wanted.radii * wanted.scale)
    everything = make_landmarks(TEACHER, REAL, REAL)
    assert all(isnan(value) for value in [*everything.nearest.tolist(), *everything.radii.tolist()])
    figures = diagnose(FRESH, everything, teacher=TEACHER, student=STUDENT)
    assert not figures.keys() & {"diagnosis/coverage", "diagnosis/nearest_guide"}


def test_the_order_of_images_has_no_effect_and_only_the_first_are_used():
    order = torch.randperm(len(FRESH), generator=torch.Generator().manual_seed(0))
    assert found(FRESH[order]) == pytest.approx(found(FRESH), rel=1e-4)
    many = repeated(FRESH, 1 + NUM_IMAGES // len(FRESH))
    assert found(many) == found(many[:NUM_IMAGES])


def test_autocast_does_not_change_the_diagnosis():
    wanted = found(FRESH)
    with torch.autocast("cpu", torch.bfloat16):
        assert found(FRESH) == wanted


def test_features_that_are_not_finite_are_named():
    with pytest.raises(NonFiniteError, match="features of the synthetic images"):
        found(Samples(FRESH.images * float("nan"), FRESH.labels, FRESH.logits))


def run(prepared, **changes):
    config = toy_config(**changes)
    return run_trial(config, prepared, local_store(config, prepared, None))


def test_a_trial_diagnoses_the_rounds_it_evaluates():
    warm = Fast(steps=2, batch=16, latent=16, width=8, warm_up=1)
    outcome = run(make_prepared(), inversion=warm, rounds=5, evaluate_every=2)
    measured = [metrics["round"] for metrics in outcome.history if "student/test_accuracy" in metrics]
    diagnosed = [metrics["round"] for metrics in outcome.history if "diagnosis/frechet_real" in metrics]
    assert diagnosed == measured == [3, 5, 6]
    last = {name: value for name, value in outcome.history[-1].items() if name.startswith("diagnosis/")}
    assert len(last) == len(REAL_SIDE | CONDENSED_SIDE)
    assert last.items() <= outcome.metrics.items()
    assert outcome.metrics["time/diagnosis_seconds"] > 0


def test_without_landmarks_or_synthetic_images_a_trial_has_no_diagnosis():
    prepared = make_prepared()
    for outcome in (
        run(replace(prepared, landmarks=None)),
        run(prepared, inversion=NoInversion(), distiller=replace(toy_config().distiller, condensed_share=1.0)),
    ):
        assert not [name for name in outcome.metrics if "diagnosis" in name]


def test_only_reports_read_landmarks_or_the_diagnosis():
    package = Path(condkd_ray.__file__).parent
    readers = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if any(word in path.read_text() for word in (".landmarks", "diagnosis/"))
    }
    made_and_sent = {f"trial/{name}.py" for name in ("diagnosis", "artifacts", "loop", "outcome")}
    reports = {f"report/{name}.py" for name in ("tables/arms", "figures/rounds", "tensorboard/writer")}
    assert readers - made_and_sent <= reports | {"runs/products.py"}
    seen = {path.name for path in package.rglob("*.py") if "read_points" in path.read_text()}
    assert seen == {"embeddings.py"}


def test_histograms_count_classes_and_confidences():
    probabilities = torch.tensor([[0.02, 0.98], [0.62, 0.38], [0.5, 0.5], [0.0, 1.0]])
    found = histograms(probabilities.log())
    assert found["class"] == [2, 2]
    bins = {place: count for place, count in enumerate(found["confidence"]) if count}
    assert bins == {10: 1, 12: 1, 19: 2}
    assert len(found["confidence"]) == 20


def test_a_diagnosis_does_not_change_the_trial():
    prepared = make_prepared()
    bare = run(replace(prepared, landmarks=None))
    seen = run(prepared)
    assert bare.predictions == seen.predictions
    for one, other in zip(bare.history, seen.history, strict=True):
        assert {k: v for k, v in one.items() if "time/" not in k}.items() <= other.items()
