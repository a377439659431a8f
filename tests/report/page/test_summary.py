"""The first sentences of a page, which separate the effect of guidance from that of its class prior."""

from collections.abc import Sequence
from typing import Any

import pytest

from condkd_ray.core.records import Record
from condkd_ray.report.page.elements import mood
from condkd_ray.report.page.summary import guides, side, unguided, verdict
from condkd_ray.report.statistics import ACCURACY, comparisons, judged
from report.report_factory import make_record, sweep

NOISE = (0.001, -0.001, 0.0)


def trials(tail: str = "", noise: Sequence[float] = NOISE, **means: float) -> list[Record]:
    """Return trials of three seeds an arm around these means; each arm has the noise in another order."""
    found = []
    for turn, (arm, mean) in enumerate(means.items()):
        values = [mean + noise[(seed + turn) % len(noise)] for seed in range(len(noise))]
        found += [make_record(f"{arm}{tail}", 10, seed, metrics={ACCURACY: v}) for seed, v in enumerate(values)]
    return found


def sentences(records: Sequence[Record]) -> list[str]:
    return guides(judged(comparisons(records)))


def test_guided_must_beat_both_controls():
    first, second = sentences(trials(mixed=0.60, mixed_prior=0.62, guided=0.65))
    assert first.startswith("Guided beats both mixed and mixed_prior: guided - mixed is +5.00 points (95 % +4.")
    assert "; guided - mixed_prior is +3.00 points (95 % +2." in first
    assert second.startswith("The condensed images give +3.00 points as guides; a class prior alone gives part of the ")
    assert second.endswith(").")
    assert "mixed_prior - mixed is +2.00 points (95 % +1." in second


@pytest.mark.parametrize(
    ("means", "needs", "prior"),
    [
        ((0.60, 0.65, 0.65), "It is not shown that the condensed images give anything as guides", "gives part of the"),
        ((0.60, 0.67, 0.65), "The condensed images cost \N{MINUS SIGN}2.00 points as guides", "gives part of the"),
        ((0.60, 0.60, 0.60), "It is not shown that the condensed images give anything as guides", "it is not shown"),
        ((0.60, 0.55, 0.60), "The condensed images give +5.00 points as guides", "a class prior alone does harm"),
    ],
)
def test_effects_that_are_not_shown_are_not_claimed(means: tuple[float, float, float], needs: str, prior: str):
    first, second = sentences(trials(**dict(zip(("mixed", "mixed_prior", "guided"), means, strict=True))))
    assert first.startswith("It is not shown that guided beats both mixed and mixed_prior: guided - mixed is ")
    assert second.startswith(needs)
    assert prior in second.split("; ")[1]


@pytest.mark.parametrize(
    ("means", "first", "second"),
    [
        ((0.60, 0.62, 0.55), "Guided is worse than both mixed and mixed_prior: ", "a class prior alone helps: "),
        ((0.60, 0.55, 0.55), "Guided is worse than mixed: ", "a class prior alone does harm: "),
        (
            (0.60, 0.50, 0.55),
            "Guided is worse than mixed, and better than mixed_prior: ",
            "a class prior alone does harm: ",
        ),
        ((0.60, 0.65, 0.60), "It is not shown that guided beats both mixed and ", "a class prior alone helps: "),
    ],
)
def test_without_a_gain_no_part_of_it_is_stated(means: tuple[float, float, float], first: str, second: str):
    lines = sentences(trials(**dict(zip(("mixed", "mixed_prior", "guided"), means, strict=True))))
    assert lines[0].startswith(first)
    assert lines[1].split("; ")[1].startswith(second)
    assert "part" not in " ".join(lines)
    assert "needs no condensed image" not in " ".join(lines)


def test_without_a_gain_and_a_prior_arm_the_gain_is_unknown():
    (only,) = sentences(trials(mixed=0.60, guided=0.55))
    assert only.endswith(
        "; the gain from the condensed images as guides is unknown, because there is no arm mixed_prior."
    )


@pytest.mark.parametrize(("mean", "needless"), [(0.65, True), (0.63, True), (0.68, False)])
def test_a_gain_due_to_the_class_prior_alone_is_stated_to_need_no_guide(mean: float, needless: bool):
    _, second = sentences(trials(mixed=0.60, mixed_prior=0.65, guided=mean))
    words = (
        "; so all of the gain over mixed that is shown is due to the class prior and needs no condensed image as a "
        "guide."
    )
    assert second.endswith(words) == needless


@pytest.mark.parametrize("baseline", ["none", "mixed", "mixed_prior", "guided"])
def test_the_sentences_on_guides_do_not_depend_on_the_baseline(baseline: str):
    records = trials(none=0.3, mixed=0.60, mixed_prior=0.62, guided=0.65)
    assert guides(comparisons(records, baseline=baseline)) == guides(comparisons(records))


def test_one_seed_shows_nothing():
    first, second = sentences(trials(noise=(0.0,), mixed=0.60, mixed_prior=0.62, guided=0.65))
    assert first.startswith("It is not shown that guided beats both")
    assert "guided - mixed is +5.00 points (no interval, n = 1)" in first
    assert second.startswith(
        "It is not shown that the condensed images give anything as guides; it is not shown that a class prior alone"
    )


def test_a_missing_control_is_stated():
    (only,) = sentences(trials(mixed=0.60, guided=0.65))
    assert only.startswith("Guided - mixed is +5.00 points (95 % +4.")
    assert only.endswith(
        "; the part of it that needs the condensed images as guides is unknown, because there is no arm mixed_prior."
    )
    (only,) = sentences(trials(mixed_prior=0.60, guided=0.65))
    assert only.startswith("Guided - mixed_prior is +5.00 points (95 % +4.")
    assert only.endswith("; there is no arm mixed to compare with.")
    assert sentences(trials(mixed=0.60, mixed_prior=0.62, none=0.5)) == []
    assert sentences(trials(none=0.60, guided=0.65)) == []


def test_each_guided_arm_is_compared_with_the_controls_of_its_name():
    records = [one for tail in (" fast", " cmi") for one in trials(tail, mixed=0.60, mixed_prior=0.62, guided=0.65)]
    lines = sentences(records)
    assert len(lines) == 4
    assert lines[0].startswith("Guided cmi beats both mixed cmi and mixed_prior cmi: ")
    assert lines[2].startswith("Guided fast beats both ")


def test_the_number_of_guided_arms_without_a_sentence_is_stated():
    tails = [f" {name}" for name in ("a", "b", "c", "d")]
    records = [one for tail in tails for one in trials(tail, mixed=0.60, mixed_prior=0.62, guided=0.65)]
    assert sentences(records)[4:] == ["2 more guided arms are compared in the table of paired differences."]
    assert sentences([one for one in records if not one.arm.endswith(" d")])[4:] == [
        "1 more guided arm is compared in the table of paired differences."
    ]


def test_an_arm_is_compared_with_itself_without_guidance():
    means: dict[str, Any] = {
        "trial 1": 0.6,
        "trial 1 unguided": 0.65,
        "trial 2": 0.6,
        "trial 2 unguided": 0.5,
        "default": 0.3,
    }
    lines = unguided(judged(comparisons(trials(**means), baseline="default")))
    assert lines[0].startswith("Trial 1 is worse than itself without guidance: trial 1 - trial 1 unguided is ")
    assert lines[1].startswith(
        "Trial 2 beats itself without guidance: trial 2 - trial 2 unguided is +10.00 points (95 % "
    )
    assert unguided(comparisons(trials("", (0.0,), **means)))[0].startswith(
        "It is not shown that trial 1 beats itself "
    )


def test_the_number_of_condensed_images_is_stated_if_an_arm_has_any():
    records = [*sweep(("mixed", "guided"), (1,), (0, 1, 2)), *sweep(("none", "real"), (), (0, 1, 2))]
    lines = verdict(judged(comparisons(records)))
    (against,) = [line for line in lines if line.startswith("Against none")]
    assert against.startswith("Against none with 1 condensed image per class, ")
    assert "real (on all real data, +" in against
    references = verdict(judged(comparisons(sweep(("none", "real"), (), (0, 1, 2)))))
    assert references[0].startswith("Against none, ")
    found = judged(comparisons(records))
    beside = [one for one in found if one.left == "real" or one.right == "mixed"]
    assert "Against none, " in " ".join(verdict(beside))


def test_a_difference_that_is_not_significant_after_correction_is_stated_as_such():
    """The intervals of both arms lie above 0, but p is corrected for two arms."""
    noisy = [0.006, -0.006, 0.003, -0.003, 0.0]
    records = [
        make_record(arm, 10, seed, metrics={ACCURACY: 0.6 + 0.01 * seed + mean + share * noisy[seed]})
        for arm, mean, share in (("mixed", 0.0, 0.0), ("mixed_prior", 0.0066, 1.0), ("guided", 0.0066, -1.0))
        for seed in range(5)
    ]
    found = [one for one in judged(comparisons(records)) if one.right == "mixed"]
    assert [side(one) for one in found] == [1, 1]
    assert [mood(one) for one in found] == ["open", "open"]
    assert "Against mixed with 10 condensed images per class, not distinguishable after Holm's correction: " in (
        " ".join(verdict(found))
    )
    assert "after Holm's correction" not in " ".join(verdict(judged(found[:1])))


def test_a_side_needs_an_interval():
    (one,) = comparisons(trials(noise=(0.0,), mixed=0.60, guided=0.65))
    assert side(one) == 0
