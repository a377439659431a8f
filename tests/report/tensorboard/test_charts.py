"""The layout of the custom scalars, read by TensorBoard's own plugin."""

import json
import math
import re
import warnings
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext

from condkd_ray.report.tensorboard.charts import ARMS, charted, layout, over_seeds
from condkd_ray.report.tensorboard.writer import EventFiles, hparams, rebuild, run_name
from report.report_factory import altered, diagnosed, make_record

with warnings.catch_warnings():
    # TensorBoard's bundled code raises deprecation warnings.
    warnings.simplefilter("ignore", DeprecationWarning)
    from tensorboard.plugins.custom_scalar.custom_scalars_plugin import CustomScalarsPlugin
    from tensorboard.plugins.scalar.scalars_plugin import ScalarsPlugin

LOSSES = {"kd/loss": 1.0, "inversion/bn": 2.0, "inversion/bn_first": 3.0, "guidance/adversarial": 4.0}


def plugin(root: Path) -> CustomScalarsPlugin:
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(root)).Reload()
    provider = MultiplexerDataProvider(multiplexer, str(root))
    plugins: dict[str, Any] = {}
    context = TBContext(logdir=str(root), data_provider=provider, plugin_name_to_instance=plugins)
    plugins["scalars"] = ScalarsPlugin(context)
    return CustomScalarsPlugin(context)


def charts_by_title(root: Path) -> dict[str, tuple[str, list[str]]]:
    """Return the category and the expressions of each chart, by title."""
    found: Any = plugin(root).layout_impl(RequestContext(), "")
    return {
        chart["title"]: (category["title"], chart["multiline"]["tag"])
        for category in json.loads(found)["category"]
        for chart in category["chart"]
        if "multiline" in chart
    }


def with_losses(arm: str, seed: int):
    record = diagnosed(make_record(arm, 10, seed))
    return altered(record, history=[row | LOSSES for row in record.history])


def test_each_chart_has_every_trial_and_a_single_scalar(tmp_path):
    records = [with_losses(arm, seed) for arm in ("mixed", "guided") for seed in (0, 1)]
    rebuild(tmp_path, records)
    root = tmp_path / "tensorboard"
    charts, reader = charts_by_title(root), plugin(root)
    assert {"student/test_accuracy", "proxy/agreement", "diagnosis/frechet_real", *LOSSES} <= set(charts)
    for title, (category, expressions) in charts.items():
        (expression,) = expressions
        assert title.startswith(f"{category}/")
        for record in records:
            matched: Any = reader.scalars_impl(RequestContext(), run_name(record), expression, "")
            assert matched["regex_valid"]
            assert list(matched["tag_to_events"]) == [title]


def test_of_the_layouts_written_while_trials_run_the_last_is_used(tmp_path):
    record = make_record("mixed", 10, 0)
    files = EventFiles(tmp_path)
    for arm, row in (("mixed", {"kd/loss": 1.0, "inversion/bn": math.nan}), ("guided", LOSSES)):
        files.trial_started(run := f"ipc10/{arm}", hparams(record))
        files.round(run, 1, row)
    assert set(charts_by_title(tmp_path / "tensorboard")) == set(LOSSES)


def test_without_any_scalar_there_is_no_layout(tmp_path):
    rebuild(tmp_path, [make_record(status="failed", metrics={"student/test_accuracy": math.nan}, history=[])])
    assert plugin(tmp_path / "tensorboard").layout_impl(RequestContext(), "") == {}


@pytest.mark.parametrize("tag", ["student/test_rounds", "time/wall_seconds", "pool/made", "round", "kd", "other/term"])
def test_uninformative_tags_have_no_chart(tag):
    assert charted([tag, "kd/loss"]) == {"kd/loss"}


def test_categories_are_in_order_and_expressions_literal():
    found = layout(["diagnosis/a+b", "kd/loss", "student/val_accuracy", "time/x"])
    assert list(found) == ["student", "kd", "diagnosis"]
    ((_, (expression,)),) = found["diagnosis"].values()
    assert re.match(expression, "diagnosis/a+b")
    assert not re.match(expression, "diagnosis/aab")


def test_perfect_accuracy_is_in_the_chart_of_the_accuracy():
    tags = ["guidance/accuracy", "guidance/adversarial", "guidance/perfect_accuracy"]
    (charts,) = layout(tags).values()
    assert list(charts.items()) == [
        ("guidance/accuracy", ("Multiline", ["^guidance/accuracy$", "^guidance/perfect_accuracy$"])),
        ("guidance/adversarial", ("Multiline", ["^guidance/adversarial$"])),
    ]
    (alone,) = layout(tags[2:]).values()
    assert alone == {tags[2]: ("Multiline", ["^guidance/perfect_accuracy$"])}


def test_charts_with_bands_are_listed_in_reverse_because_tensorboard_reverses_them():
    (arms,) = layout([], ["student/test_accuracy", "proxy/kl"]).values()
    assert [title.partition(",")[0] for title in arms] == ["proxy/kl", "student/test_accuracy"]


def test_arms_come_first_with_mean_and_range_over_their_seeds(tmp_path):
    records = [make_record(arm, 10, seed) for arm in ("mixed", "guided") for seed in (0, 1, 2)]
    rebuild(tmp_path, [*records, make_record("none", 0, 0)])
    reader = plugin(tmp_path / "tensorboard")
    found: Any = reader.layout_impl(RequestContext(), "")
    arms, *_ = json.loads(found)["category"]
    assert arms["title"] == ARMS
    (series,) = arms["chart"][0]["margin"]["series"]
    assert list(series.values()) == [f"{part}/student/test_accuracy" for part in ("mean", "lowest", "highest")]
    for name in ("mixed", "guided"):
        members = [record.history for record in records if record.arm == name]
        for tag, reduce in zip(series.values(), (fmean, min, max), strict=True):
            drawn: Any = reader.scalars_impl(RequestContext(), f"ipc10/{name}", f"^{tag}$", "")
            expected = [
                (int(rows[0]["round"]), pytest.approx(reduce([row["student/test_accuracy"] for row in rows])))
                for rows in zip(*members, strict=True)
            ]
            assert [(step, value) for _, step, value in drawn["tag_to_events"][tag]] == expected
    assert not list((tmp_path / "tensorboard" / "none").glob("events*"))


def test_rounds_that_a_seed_lacks_and_failed_trials_are_ignored():
    first, second = (make_record("mixed", 10, seed) for seed in (0, 1))
    shorter = altered(second, history=second.history[:2])
    failed = make_record("mixed", 10, 2, status="failed")
    ((_, rows),) = over_seeds([first, shorter, failed])
    assert [row["round"] for row in rows] == [1, 2]
    value = [row["student/test_accuracy"] for row in (first.history[1], second.history[1])]
    assert rows[1]["mean/student/test_accuracy"] == pytest.approx(sum(value) / 2)
    assert list(over_seeds([first, failed])) == []


def test_a_continuing_writer_removes_curves_over_seeds(tmp_path):
    records = [make_record("mixed", 10, seed) for seed in (0, 1)]
    rebuild(tmp_path, records)
    EventFiles(tmp_path)
    root = tmp_path / "tensorboard"
    assert not list((root / "ipc10" / "mixed").glob("events*"))
    assert len(list((root / "ipc10" / "mixed").rglob("events*"))) == 2
