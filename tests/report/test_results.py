"""Results as used in a notebook: frames, comparisons, figures and texts, also of an unfinished folder."""

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from condkd_ray.core.method import InputError
from condkd_ray.core.records import write_manifest, write_record
from condkd_ray.report.results import read
from report.report_factory import IMAGES, ROUNDS, make_manifest, make_record, results, sweep

ARMS = ("none", "mixed", "guided")
RECORDS = sweep(ARMS, ipcs=(1, 10), seeds=range(3))


@pytest.fixture(scope="module")
def found():
    return results(RECORDS)


def test_frames_have_a_row_per_trial_round_or_test_image(found):
    assert len(found.trials) == len(RECORDS)
    assert list(found.trials["config_hash"]) == [one.config_hash for one in found.records]
    assert list(found.trials["student/test_accuracy"]) == [one.metrics["student/test_accuracy"] for one in RECORDS]
    assert len(found.rounds) == ROUNDS * len(RECORDS)
    assert len(found.predictions) == IMAGES * len(RECORDS)
    assert {"config_hash", "arm", "seed"} <= set(found.rounds) & set(found.predictions)


def test_comparisons_are_those_of_the_tables(found):
    frame = found.comparisons
    assert len(frame) == len(found.differences) > 0
    for row, one in zip(frame.itertuples(), found.differences, strict=True):
        assert (row.left, row.right, row.ipc, row.n, row.mean, row.p) == (*_key(one), one.n, one.mean, one.p)
        assert (row.low, row.high) == one.over_seeds
        assert (row.images_low, row.images_high) == one.over_images


def _key(one) -> tuple[str, str, int]:
    return one.left, one.right, one.ipc


def test_one_seed_has_a_difference_and_no_interval():
    frame = results(sweep(ARMS, ipcs=(1,), seeds=(0,))).comparisons
    assert set(frame["n"]) == {1}
    assert all(math.isnan(value) for name in ("std", "low", "high", "p") for value in frame[name])
    assert results().comparisons.empty


def test_frames_can_be_converted_to_arrow_tables(found):
    for name in ("trials", "rounds", "predictions", "comparisons"):
        pd.testing.assert_frame_equal(found.to_arrow(name).to_pandas(), getattr(found, name))
    with pytest.raises(InputError, match=r"frame is 'records'; accepted: trials, rounds, predictions, comparisons"):
        found.to_arrow("records")


def test_a_notebook_shows_tables_and_figures(found):
    assert repr(found) == "<Results of out: ablation, 15 of 15 trials finished>"
    assert "Paired differences in test accuracy" in str(found)
    page = found._repr_html_()
    assert page.count("<table") == 2
    assert "guided - mixed" in page
    assert "figure" in found.figures
    picture, size = found.figures["figure"]._repr_png_()
    assert picture.startswith(b"\x89PNG")
    assert size["width"] >= 500
    assert results().figures == {}


def test_names_given_by_users_are_escaped_in_html():
    assert "<script>" not in results([replace(RECORDS[0], arm="<script>")])._repr_html_()


def test_a_folder_with_missing_trials_has_results(tmp_path):
    write_manifest(tmp_path, make_manifest(RECORDS))
    for record in RECORDS[:4]:
        write_record(tmp_path, record)
    incomplete = read(tmp_path)
    assert len(incomplete.trials) == 4
    assert repr(incomplete).endswith("ablation, 4 of 15 trials finished>")
    with pytest.raises(InputError, match=r"trials kept in .* is 0; accepted"):
        incomplete.best()
    with pytest.raises(InputError, match=r"study of .* is None; accepted: the folder of a search"):
        _ = incomplete.study


def test_a_finished_trial_without_a_limited_metric_is_not_ranked():
    about = {"objective": ["proxy/agreement"], "directions": ["maximize"], "constraints": ["proxy/kl<=2"]}
    given = [
        make_record(seed=number, history=[{"round": 1.0}], metrics={"proxy/agreement": 0.5} | more)
        for number, more in enumerate(({"proxy/kl": 1.0}, {}, {"proxy/kl": math.nan}, {"proxy/kl": 3.0}))
    ]
    assert results(given, make_manifest(given, search=about)).ranked == given[:1]


def test_figures_need_no_pyplot_and_switch_no_backend():
    code = """
import sys
from report.report_factory import results, sweep
assert not {"pandas", "matplotlib"} & set(sys.modules), "imported before a frame or a figure is used"
results(sweep(("none", "mixed"), ipcs=(1,), seeds=(0, 1))).figures["figure"]._repr_png_()
assert "matplotlib.pyplot" not in sys.modules
import matplotlib
assert matplotlib.rcParams._get("backend") is matplotlib.rcsetup._auto_backend_sentinel
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
