"""Grids side by side: who is shown beside whom, and under which caption."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from toy import NUM_CLASSES, make_prepared

from condkd_ray.core.records import Outcome, condensed_path, grid_path
from condkd_ray.report.figures.grids import beside, captioned, keep
from condkd_ray.report.figures.image_grids import write_grid
from condkd_ray.trial.outcome import pixels
from report.report_factory import make_record

PREPARED = make_prepared()
IMAGES = torch.arange(NUM_CLASSES, dtype=torch.uint8).repeat_interleave(3).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
OUTCOME = Outcome(status="finished", metrics={}, history=[], predictions=[], images=IMAGES, images_per_class=3)


def record(**changes):
    return make_record("guided", 2, 0, **{"condensed_hash": "c0ffee", "inversion": "fast"} | changes)


def names(out, one) -> list[tuple[str, str]]:
    return [(caption, path.stem) for caption, path in captioned(out, one)]


def test_the_condensed_set_is_kept_once_and_stands_first(tmp_path):
    one = record()
    keep(tmp_path, one, OUTCOME, PREPARED)
    guides = condensed_path(tmp_path, "c0ffee")
    write_grid(tmp_path / "expected.png", pixels(PREPARED.condensed[PREPARED.condensed.labels.argsort()], PREPARED), 2)
    assert guides.read_bytes() == (tmp_path / "expected.png").read_bytes()
    guides.write_bytes(b"here")
    keep(tmp_path, record(config_hash="another"), OUTCOME, PREPARED)
    assert guides.read_bytes() == b"here"
    assert names(tmp_path, one) == [("condensed", "condensed-c0ffee"), ("synthetic", one.config_hash)]


@pytest.mark.parametrize(
    ("changes", "prepared", "expected"),
    [
        ({"condensed_hash": "", "condensation": "none"}, make_prepared(condensed=False), ["synthetic"]),
        ({"inversion": "none"}, PREPARED, ["condensed"]),
        ({"inversion": "none", "condensation": "all_real"}, PREPARED, ["real"]),
    ],
)
def test_a_picture_says_what_it_shows(tmp_path, changes, prepared, expected):
    one = record(**changes)
    keep(tmp_path, one, OUTCOME, prepared)
    assert names(tmp_path, one) == [(caption, one.config_hash) for caption in expected]


def test_of_a_failed_trial_only_what_it_was_given_is_shown(tmp_path):
    one = record()
    keep(tmp_path, one, replace(OUTCOME, images=None), PREPARED)
    assert names(tmp_path, one) == [("condensed", "condensed-c0ffee")]
    assert not grid_path(tmp_path, one.config_hash).exists()


def test_grey_beside_colour_is_colour_and_both_are_whole(tmp_path):
    rng = np.random.default_rng(0)
    for name, channels, rows in (("grey", 1, 2), ("colour", 3, 4)):
        write_grid(tmp_path / name, rng.integers(0, 256, (3 * rows, channels, 8, 8), dtype=np.uint8), 3)
    both = beside([("a", tmp_path / "grey"), ("b", tmp_path / "colour")])
    assert both.mode == "RGB"
    with Image.open(tmp_path / "grey") as grey, Image.open(tmp_path / "colour") as colour:
        head = both.height - colour.height
        assert np.array_equal(
            np.asarray(both.crop((0, head, grey.width, head + grey.height)))[..., 0], np.asarray(grey)
        )
        place = (both.width - colour.width, head, both.width, both.height)
        assert np.array_equal(np.asarray(both.crop(place)), np.asarray(colour))
        assert both.width > grey.width + colour.width
    assert beside([("a", tmp_path / "grey")]).mode == "L"
