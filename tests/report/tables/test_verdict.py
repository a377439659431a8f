"""The verdict never claims more than its intervals show."""

import numpy as np
import pytest

from condkd_ray.core.records import Record
from condkd_ray.report.statistics import ACCURACY
from condkd_ray.report.tables.verdict import arms_table, cost, differences_table, graded, lines, sentence
from report.report_factory import LABELS, altered, make_record

TRUTH = LABELS.tolist()


def predicted(wrong: int, seed: int) -> list[int]:
    """Return correct predictions for all images but `wrong` random ones."""
    found = LABELS.copy()
    rows = np.random.default_rng(seed).permutation(len(found))[:wrong]
    found[rows] = (found[rows] + 1) % 10
    return found.tolist()


def trial(arm: str, seed: int, wrong: int, cpu: float = 10.0) -> Record:
    ipc = 0 if arm == "none" else 4
    record = make_record(arm, ipc, seed)
    return altered(record, predictions=predicted(wrong, seed), metrics=record.metrics | {"time/cpu_seconds": cpu})


def trials(
    guided: tuple[int, ...],
    mixed: tuple[int, ...] = (100, 100, 100),
    alone: int = 200,
    prior: tuple[int, ...] = (99, 98, 100),
) -> list[Record]:
    found = [trial("guided", seed, wrong, 30.0) for seed, wrong in enumerate(guided)]
    found += [trial("mixed", seed, wrong, 20.0) for seed, wrong in enumerate(mixed)]
    found += [trial("mixed_prior", seed, wrong, 20.0) for seed, wrong in enumerate(prior)]
    return found + [trial("condensed_only", seed, alone) for seed in range(len(guided))]


@pytest.mark.parametrize(
    ("guided", "expected"),
    [
        ((60, 62, 64), "guidance helps here: guided - mixed is +9.5 points"),
        ((140, 141, 144), "guidance hurts here: guided - mixed is -10.4 points"),
        ((60, 100, 130), "it is not shown that guidance helps or hurts here"),
        ((99, 98, 99), "it is not shown that guidance helps or hurts here"),
    ],
)
def test_the_verdict_follows_both_intervals(guided: tuple[int, ...], expected: str):
    text = sentence(trials(guided), TRUTH)
    assert text.startswith(f"Verdict: with 3 seeds {expected}")
    assert "at 1.50 times the CPU time of mixing" in text
    assert text.count(". ") == 0
    assert text.endswith(".")


@pytest.mark.parametrize(
    ("prior", "expected", "parts"),
    [
        ((99, 98, 100), "guidance helps here: ", "; as guides your images give +9.2 of these points (over seeds +"),
        (
            (62, 62, 61),
            "guided is better here, but it is not shown that your images help as guides: ",
            "; as guides your images give -0.1 of these points (over seeds ",
        ),
        (
            (30, 31, 33),
            "guided is better here, but it is not shown that your images help as guides: ",
            "; as guides your images cost -7.7 of these points (over seeds -",
        ),
        (
            (),
            "guided is better here, but it is not shown that your images help as guides: ",
            "; the part of this that your images give as guides is unknown, because guided and mixed_prior have no "
            "finished seed in common.",
        ),
    ],
)
def test_a_gain_of_the_class_prior_is_not_attributed_to_guidance(prior: tuple[int, ...], expected: str, parts: str):
    text = sentence(trials((60, 62, 64), prior=prior), TRUTH)
    assert text.startswith(f"Verdict: with 3 seeds {expected}guided - mixed is +9.5 points")
    assert parts in text
    assert ("; not distinguishable from 0), and a class prior" in text) == ("give -" in parts)
    assert ("and a class prior without guides gives +" in text) == bool(prior)
    assert text.count(". ") == 0


@pytest.mark.parametrize(
    ("prior", "expected"),
    [
        ((200, 201, 203), "; as guides your images give +14.9 points (over seeds"),
        (
            (),
            "; the gain from your images as guides is unknown, because guided and mixed_prior have no finished seed in "
            "common.",
        ),
    ],
)
def test_without_a_gain_no_part_of_it_is_stated(prior: tuple[int, ...], expected: str):
    text = sentence(trials((140, 141, 144), prior=prior), TRUTH)
    assert expected in text
    assert "of these points" not in text


def test_one_seed_shows_nothing():
    text = sentence(trials((50,)), TRUTH)
    assert text.startswith("Verdict: with 1 seed it is not shown")
    assert "over seeds unknown" in text


def test_without_a_pair_there_is_no_verdict():
    assert sentence([], TRUTH).startswith("Verdict: none yet")
    assert sentence([trial("guided", 0, 10), trial("mixed", 1, 10)], TRUTH).startswith("Verdict: none yet")
    failed = altered(trial("mixed", 0, 10), status="failed", predictions=[])
    assert sentence([trial("guided", 0, 10), failed], TRUTH).startswith("Verdict: none yet")
    assert cost([]) == ""


@pytest.mark.parametrize(
    ("alone", "expected"),
    [
        ((10, 12, 13), "; your images alone are better (-12.6, over seeds "),
        ((20, 60, 120), "; guided is not shown to beat your images alone (+1.2, over seeds "),
        ((200, 201, 202), ""),
    ],
)
def test_the_comparison_with_the_images_alone_is_stated_only_if_guided_is_not_better(
    alone: tuple[int, ...], expected: str
):
    found = [one for one in trials((60, 62, 64)) if one.arm != "condensed_only"]
    text = sentence(found + [trial("condensed_only", seed, wrong) for seed, wrong in enumerate(alone)], TRUTH)
    assert expected in text
    assert bool(expected) == ("images alone" in text)


def test_agreement_is_with_the_teacher_and_accuracy_with_the_labels_of_the_folders():
    found, teacher = trials((60, 62, 64)), predicted(60, 0)
    first = next(record for record in graded(found, teacher) if (record.arm, record.seed) == ("guided", 0))
    assert first.metrics[ACCURACY] == 1
    rows = {row[0]: row for row in arms_table(found, TRUTH, teacher).rows}
    assert rows["guided"][2:4] == ["3", "84.5 ± 0.5"]
    assert rows["guided"][4] != rows["guided"][3]
    assert rows["mixed"][-1] == "20.0"
    differences = {row[0]: row for row in differences_table(found, TRUTH, teacher).rows}
    assert differences["accuracy, guided - mixed"][1:3] == ["3", "+9.5"]
    assert differences["accuracy, guided - condensed_only"][2] == "+34.5"
    assert differences["accuracy, mixed_prior - mixed"][2] == "+0.2"
    assert len(differences) == 8


def test_students_that_barely_agree_with_the_teacher_are_stated_before_the_verdict():
    found = lines(trials((250, 251, 252), (255, 260, 265), prior=(255, 261, 262)), TRUTH, TRUTH)
    assert len(found) == 2
    assert found[0].startswith("The students agree with the teacher on at most 37% of the held-out images")
    assert found[1].startswith("Verdict: ")
    assert lines(trials((60, 62, 64)), TRUTH, TRUTH) == [sentence(trials((60, 62, 64)), TRUTH)]
    assert len(lines([], TRUTH, TRUTH)) == 1
