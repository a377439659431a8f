"""Contents of event files, read back from the summaries."""

import io
import math
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.plugins.hparams import api_pb2, metadata

from condkd_ray.report.tensorboard import events

API: Any = api_pb2
PLANNED = [{"arm": "none", "seed": 0, "size": 3}, {"arm": "guided", "seed": 0}]


def plugin_data(summary) -> bytes:
    (value,) = summary.value
    return value.metadata.plugin_data.content


def test_columns_that_differ_or_that_a_trial_lacks_are_marked():
    found = events.columns(PLANNED, always=("ipc",))
    assert list(found) == ["ipc", "arm", "seed", "size"]
    assert {name: info.differs for name, info in found.items()} == {
        "ipc": False,
        "arm": True,
        "seed": False,
        "size": True,
    }


@pytest.mark.parametrize(
    ("values", "type", "domain"),
    [
        ([True, False], "BOOL", [False, True]),
        ([2, 1, 0.5], "FLOAT64", [0.5, 1.0, 2.0]),
        (["b", "a"], "STRING", ["a", "b"]),
        ([1, "a"], "STRING", ["1", "a"]),
        ([True, 1.0], "STRING", ["True"]),
    ],
)
def test_the_type_of_a_column_fits_all_its_values(values, type, domain):
    info = events.columns([{"x": value} for value in values], always=())["x"]
    assert info.type == API.DataType.Value(f"DATA_TYPE_{type}")
    found = [getattr(value, value.WhichOneof("kind")) for value in info.domain_discrete.values]
    assert [str(value) for value in found] == [str(value) for value in domain]


def test_a_column_without_values_is_numeric_only_if_it_counts():
    found = events.columns([{}], always=("ipc", "seed", "arm"))
    types = {name: info.type for name, info in found.items()}
    assert types == {"ipc": API.DATA_TYPE_FLOAT64, "seed": API.DATA_TYPE_FLOAT64, "arm": API.DATA_TYPE_STRING}


def test_many_numbers_have_a_range_and_many_words_no_domain():
    found = events.columns([{"number": i, "word": str(i)} for i in range(21)], always=())
    interval = found["number"].domain_interval
    assert (interval.min_value, interval.max_value) == (0, 20)
    assert not found["number"].HasField("domain_discrete")
    assert found["word"].WhichOneof("domain") is None


def test_ranges_become_numeric_columns():
    (info,) = events.intervals({"lr": (0.01, 0.1)}).values()
    assert (info.name, info.type, info.differs) == ("lr", API.DATA_TYPE_FLOAT64, True)
    assert (info.domain_interval.min_value, info.domain_interval.max_value) == (0.01, 0.1)


def test_an_experiment_has_its_columns_and_metrics():
    summary = events.experiment(events.columns(PLANNED, ()), ["kd/loss"])
    assert summary.value[0].tag == metadata.EXPERIMENT_TAG
    found = metadata.parse_experiment_plugin_data(plugin_data(summary))
    assert [info.name for info in found.hparam_infos] == ["arm", "seed", "size"]
    assert [info.name.tag for info in found.metric_infos] == ["kd/loss"]


def test_a_session_has_each_value_in_the_type_of_its_column():
    infos = events.columns([{"mixed": 1, "n": 2}, {"mixed": "a", "n": 3}], ())
    summary = events.session_start("run", {"mixed": 1, "n": 2, "flag": True, "free": 7}, infos, when=12.5)
    found = metadata.parse_session_start_info_plugin_data(plugin_data(summary))
    assert found.start_time_secs == 12.5
    values = {name: getattr(value, value.WhichOneof("kind")) for name, value in found.hparams.items()}
    assert values == {"mixed": "1", "n": 2.0, "flag": True, "free": 7.0}


@pytest.mark.parametrize(
    ("status", "shown"),
    [("finished", "SUCCESS"), ("failed", "FAILURE"), ("pruned", "UNKNOWN")],
)
def test_a_session_ends_with_its_status_and_time(status, shown):
    found = metadata.parse_session_end_info_plugin_data(plugin_data(events.session_end(status, when=20.0)))
    assert (found.status, found.end_time_secs) == (API.Status.Value(f"STATUS_{shown}"), 20.0)


def test_scalars_are_the_finite_metrics_in_order_without_the_round():
    found = events.scalars({"round": 3, "b": 1, "a": 0.5, "nan": math.nan, "inf": math.inf})
    assert [(value.tag, value.simple_value) for value in found.value] == [("a", 0.5), ("b", 1.0)]


def test_a_histogram_counts_each_value_as_the_middle_of_its_bin():
    (value,) = events.histogram("memory/class", [2, 0, 1], [0.0, 1.0, 2.0, 3.0]).value
    found = value.histo
    assert value.tag == "memory/class"
    assert (found.min, found.max, found.num) == (0.0, 3.0, 3)
    assert (found.sum, found.sum_squares) == (2 * 0.5 + 2.5, 2 * 0.25 + 6.25)
    assert [count for count in found.bucket if count] == [2, 1]


@pytest.mark.parametrize(("mode", "bands"), [("L", 1), ("RGB", 3)])
def test_a_picture_keeps_its_size_bands_and_pixels(mode, bands):
    shape = (4, 6) if bands == 1 else (4, 6, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    (value,) = events.image("grid", Image.fromarray(pixels, mode)).value
    assert (value.tag, value.image.height, value.image.width, value.image.colorspace) == ("grid", 4, 6, bands)
    with Image.open(io.BytesIO(value.image.encoded_image_string)) as shown:
        assert np.array_equal(np.asarray(shown), pixels)
