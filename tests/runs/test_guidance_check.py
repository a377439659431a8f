"""Tests of the guidance check, which optimises features directly under each form of guidance."""

from dataclasses import dataclass
from typing import get_args

import pytest
import torch
from toy import make_teacher

from condkd_ray.core.samples import Samples
from condkd_ray.methods.guidance import FORMS, AnyGuidance, NoGuidance
from condkd_ray.methods.guidance.matching import Moments
from condkd_ray.runs import guidance_check
from condkd_ray.runs.guidance_check import BEYOND, CHECKED, NOISE, check, digits, report


@dataclass(frozen=True, kw_only=True)
class NoPull(Moments):
    """A guidance with a constant penalty, so without a gradient."""

    def penalty(self, state, fake, labels, *, rng):
        return 0 * fake.sum()


@dataclass(frozen=True, kw_only=True)
class Scatter(Moments):
    """A guidance whose gradient pushes all features away from the origin."""

    def penalty(self, state, fake, labels, *, rng):
        return -fake.square().sum()


def real():
    teacher = make_teacher()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(90, *teacher.image_shape, generator=generator)
    labels = torch.arange(90) % teacher.num_classes
    return teacher, Samples(images, labels, torch.zeros(90, teacher.num_classes))


def test_a_guidance_without_a_gradient_does_not_move_the_features(monkeypatch):
    monkeypatch.setattr(guidance_check, "STEPS", 5)
    found = check("no pull", NoPull(), *real(), seeds=range(3))
    for ending in (found.perfect, found.collapsed):
        assert ending.end == pytest.approx(ending.start, rel=1e-5)
    assert found.perfect.end == pytest.approx(1, abs=0.25)
    assert found.perfect.spread == pytest.approx(1, abs=0.2)
    assert found.collapsed.spread < 0.2
    assert found.aligns


def test_a_guidance_that_moves_real_features_away_is_marked(monkeypatch):
    monkeypatch.setattr(guidance_check, "STEPS", 1000)
    found = check("scatter", Scatter(), *real(), seeds=(0,))
    assert found.perfect.end > BEYOND > found.perfect.start
    assert found.perfect.spread > 1.2
    assert not found.aligns
    (row,) = [line for line in report([found], "toys").splitlines() if line.startswith("| scatter |")]
    assert row.endswith("| **no** |")


def test_at_the_chosen_rate_optimiser_noise_hardly_moves_real_features(monkeypatch):
    teacher, samples = real()
    found = check(NOISE, CHECKED[NOISE], teacher, samples, seeds=(0,))
    assert found.perfect.end < 1.1 * found.perfect.start
    monkeypatch.setattr(guidance_check, "RATE", 0.1)
    assert check(NOISE, CHECKED[NOISE], teacher, samples, seeds=(0,)).perfect.end > 1.5 * found.perfect.end


def test_parts_are_disjoint_and_balanced():
    labels = torch.tensor([0] * 7 + [2] * 9 + [3] * 6)
    parts = guidance_check.thirds(labels, guidance_check.Streams(0))
    rows = torch.cat(parts).tolist()
    assert len(set(rows)) == len(rows)
    assert all(labels[part].bincount().tolist() == [2, 0, 2, 2] for part in parts)


def test_the_same_seeds_give_the_same_numbers(monkeypatch):
    monkeypatch.setattr(guidance_check, "STEPS", 5)
    first, second = (check("moments", Moments(), *real(), seeds=(3,)) for _ in range(2))
    assert first == second


def test_every_guidance_has_a_form():
    assert {type(form) for form in FORMS.values()} | {NoGuidance} == set(get_args(AnyGuidance))
    assert CHECKED.items() >= FORMS.items()


@pytest.mark.slow
@pytest.mark.long
def test_on_digits_matching_aligns_and_the_class_head_does_not(tmp_path):
    found, what = digits(tmp_path)
    by_form = {one.form: one for one in found}
    assert by_form.keys() == CHECKED.keys()
    for form in (NOISE, "projection", "mmd", "gaussian"):
        assert by_form[form].aligns
    for form in ("auxiliary", "gaussian, means alone"):
        assert not by_form[form].aligns
    for form in ("projection", "mmd, 2 stages", "gaussian"):
        assert by_form[form].collapsed.end < 0.8 * by_form[NOISE].collapsed.end
    for one in found:
        assert one.perfect.start == pytest.approx(1, abs=0.1)
        assert one.collapsed.start > 2
    assert by_form["gaussian, means alone"].collapsed.spread < 0.1 < 0.5 < by_form["gaussian"].collapsed.spread
    assert report(found, what).count("\n| ") == len(CHECKED)
