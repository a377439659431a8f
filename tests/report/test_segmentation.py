"""Reports of a segmentation: mean IoU in place of accuracy, the IoU of each class, and grids with coloured masks."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from condkd_ray.commands.report import Report, rebuild
from condkd_ray.core.method import InputError
from condkd_ray.core.records import grid_path, write_manifest, write_record
from condkd_ray.data.palette import coloured, colours
from condkd_ray.report.build import build
from condkd_ray.report.figures import accuracy
from condkd_ray.report.figures.image_grids import write_grid
from condkd_ray.report.kept import merit
from condkd_ray.report.page.summary import alone, forest, verdict
from condkd_ray.report.results import Results, read
from condkd_ray.report.statistics import comparisons, score_of
from condkd_ray.report.tables import classes
from condkd_ray.report.tensorboard.charts import charted
from condkd_ray.report.tensorboard.writer import GRID, measured, run_name
from report.page.page_reader import Seen
from report.report_factory import (
    SCENE,
    SHARES,
    altered,
    make_manifest,
    make_record,
    make_scene,
    results,
    scenes,
    scenes_manifest,
    sweep,
)

MIOU = "student/test_miou"
ROWS = ("synthetic images", "teacher", "student")


def scene_results(records, **changes) -> Results:
    return results(records, make_manifest(records, **scenes_manifest(**changes)))


def store(out: Path, records, **changes) -> Path:
    out.mkdir(exist_ok=True)
    write_manifest(out, make_manifest(records, **changes))
    for record in records:
        write_record(out, record)
    return out


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """The report of three arms at three seeds, with the grid of the first seed of each arm."""
    records, rng = scenes(), np.random.default_rng(0)
    out = store(tmp_path_factory.mktemp("scenes"), records, **scenes_manifest())
    masks = coloured_masks(rng)
    pixels = np.concatenate([rng.integers(0, 256, (4, 3, 72, 96), dtype=np.uint8), masks, masks])
    for record in records[::3]:
        write_grid(grid_path(out, record.config_hash), pixels, 4, ROWS)
    build(out)
    return out


def coloured_masks(rng) -> np.ndarray:
    return coloured(torch.from_numpy(rng.integers(-1, len(SCENE), (4, 72, 96)))).numpy()


def cells(table, **wanted: str) -> dict[str, str]:
    rows = [dict(zip(table.header, row, strict=True)) for row in table.rows]
    (found,) = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    return found


def test_the_score_is_that_of_the_manifest_or_else_that_which_trials_have_measured():
    assert score_of(scenes()).test == MIOU
    assert score_of([altered(make_scene(), metrics={}, status="failed")]).test == MIOU, "from its rounds"
    assert score_of(sweep(("none",), (), (0,))).test == "student/test_accuracy"
    assert score_of([], make_manifest()).name == "accuracy"
    assert score_of([], make_manifest(**scenes_manifest())).name == "mean IoU"


def test_the_iou_of_each_class_is_the_mean_over_seeds_beside_its_share_and_the_teachers():
    records = scenes()
    table = classes.iou_table(scene_results(records))
    assert table.header == ["arm", "IPC", "n", *SCENE]
    assert [row[0] for row in table.rows] == ["share of pixels", "teacher", "none", "mixed", "guided"]
    row = cells(table, arm="guided")
    assert (row["IPC"], row["n"], row["pedestrian"]) == ("5", "3", "-")
    for name in SCENE[:4]:
        values = [100 * one.metrics[f"student/test_iou/{name}"] for one in records if one.arm == "guided"]
        assert row[name] == f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}"
    assert cells(table, arm="share of pixels")["car"] == f"{100 * SHARES['car']:.1f}"
    assert cells(table, arm="teacher")["sign post"] == "30.0"
    assert cells(table, arm="teacher")["pedestrian"] == "-"


def test_a_class_without_an_iou_in_one_trial_shows_its_own_n():
    first, *others = scenes()
    first = altered(first, metrics=first.metrics | {"student/test_iou/car": None})
    row = cells(classes.iou_table(scene_results([first, *others])), arm="none")
    assert row["car"].endswith("(n = 2)")


def test_several_teachers_have_the_mean_of_their_ious():
    teachers = [{"label": "net", "hash": str(n), "test_iou": {"sky": value}} for n, value in enumerate((0.8, 0.9))]
    row = cells(classes.iou_table(scene_results(scenes(), teachers=teachers)), arm="teachers")
    assert (row["n"], row["sky"], row["road"]) == ("2", "85.0 ± 7.1", "-")


def test_classification_has_no_table_of_classes():
    assert classes.iou_table(results(sweep(("none",), (), (0, 1)))).rows == []


def test_tables_name_the_mean_iou_and_differences_are_paired_by_seed(built):
    text = (built / "table.md").read_text()
    assert "accuracy" not in text.lower()
    for words in ("## Mean IoU", "test mean IoU (%)", "## Paired differences in test mean IoU", "not of each class"):
        assert words in text
    assert "no interval over test images" in text
    assert "60 test images" in text
    by_arm = {arm: [r.metrics[MIOU] for r in scenes() if r.arm == arm] for arm in ("guided", "mixed")}
    gains = 100 * (np.array(by_arm["guided"]) - np.array(by_arm["mixed"]))
    assert f"| guided - mixed | 5 | 3 | {gains.mean():+.2f} ± {gains.std(ddof=1):.2f} |" in text
    with (built / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    (row,) = [r for r in rows if (r["table"], r["arm"], r["metric"]) == ("mean IoU", "guided", MIOU)]
    assert float(row["mean"]) == pytest.approx(np.mean(by_arm["guided"]))
    assert {r["metric"] for r in rows if r["table"] == "difference"} == {MIOU}


def test_the_page_has_mean_iou_the_classes_and_a_key_of_their_colours(built):
    seen = Seen(built / "report.html")
    assert "accuracy" not in seen.text.lower()
    assert "test mean IoU of each arm" in [value for tag, name, value in seen.attributes if name == "alt"]
    rows = {row[0]: row for row in seen.rows if row}
    assert rows["share of pixels"][3:] == [f"{100 * share:.1f}" for share in SHARES.values()]
    shown = [value for tag, name, value in seen.attributes if (tag, name) == ("i", "style")]
    wanted = [f"background:#{bytes(rgb).hex()}" for rgb in colours(len(SCENE)).tolist()]
    assert shown[:6] == [*wanted, "background:#000000"]
    assert seen.tags.count("img") >= 3
    assert "with 5 condensed images;" in seen.text, "not of each class"


def test_tensorboard_has_the_scores_the_table_of_classes_and_the_grid(built):
    trial = make_scene("mixed", 5, 0)
    whole = EventAccumulator(str(built / "tensorboard"), size_guidance={"tensors": 0}).Reload()
    (tag,) = [tag for tag in whole.Tags()["tensors"] if "IoU of each class" in tag]
    assert b"| guided | 5 | 3 |" in whole.Tensors(tag)[0].tensor_proto.string_val[0]
    run = EventAccumulator(str(built / "tensorboard" / run_name(trial))).Reload()
    scalars = run.Tags()["scalars"]
    assert {MIOU, "student/val_miou", "student/test_iou/sky", "student/test_iou/sign post"} <= set(scalars)
    assert "student/test_iou/pedestrian" not in scalars
    assert run.Scalars(MIOU)[-1].value == pytest.approx(trial.metrics[MIOU])
    assert GRID in run.Tags()["images"]
    assert measured(score_of([trial]))[0] == MIOU
    assert {MIOU, "student/val_miou"} <= charted(trial.metrics)


def test_figures_are_labelled_with_the_mean_iou():
    records = scenes() + [altered(make_scene(arm, 20, 0)) for arm in ("mixed", "guided")]
    manifest = make_manifest(records, **scenes_manifest())
    over_ipc = accuracy.draw(records, manifest)["figure"]
    assert over_ipc.get_supylabel() == "test mean IoU (%)"
    assert over_ipc.axes[-1].get_xlabel() == "condensed images"
    drawn = accuracy.draw(scenes(), make_manifest(scenes(), **scenes_manifest()))
    assert drawn["figure"].axes[0].get_xlabel() == "test mean IoU (%) at IPC 5"
    assert drawn["curves"].axes[0].get_ylabel() == "test mean IoU (%)"
    assert any("Teacher: 68.8 %" in text.get_text() for text in drawn["figure"].texts)


def test_with_one_seed_nothing_is_said_of_an_interval_over_images():
    found = scene_results(scenes((0,)))
    assert verdict(found.differences, found.score)[-1].startswith("One seed: there is no interval")
    shown = forest(found.differences, found.score)
    assert "none, as there is one seed" in shown.legend
    assert all(ends is None for _, ends in shown.rows)
    assert alone(found)[0].startswith(f"Test mean IoU: none seed 0 ({100 * found.records[0].metrics[MIOU]:.2f} %)")


def test_comparisons_without_a_metric_are_in_the_mean_iou():
    found, wanted = comparisons(scenes()), comparisons(scenes(), metric=MIOU)
    assert len(found) == 3
    assert found == wanted


def test_the_best_trial_is_chosen_by_the_validation_mean_iou():
    one = make_scene()
    assert merit(one) == ("student/val_miou", one.metrics["student/val_miou"])


def test_there_are_no_predictions_in_the_frames(built):
    found = read(built)
    assert len(found.predictions) == 0
    assert found.trials["student/test_iou/car"].notna().all()
    assert found.trials["student/test_iou/pedestrian"].isna().all()


def test_a_segmentation_is_not_compared_with_a_classification(built, tmp_path):
    other = store(tmp_path / "digits", [make_record("none", 0, 0)])
    message = f"task of {re.escape(str(other))} is 'classification'; accepted: segmentation, as in"
    with pytest.raises(InputError, match=message):
        rebuild(Report(built, other))


def test_two_segmentations_are_compared_in_mean_iou(built, tmp_path):
    better = [altered(r, metrics=r.metrics | {MIOU: r.metrics[MIOU] + 0.01}) for r in scenes()]
    other = store(tmp_path / "again", better, **scenes_manifest())
    assert rebuild(Report(built, other, tmp_path / "both.html")) == 0
    seen = Seen(tmp_path / "both.html")
    assert "accuracy" not in seen.text.lower()
    assert "+1.00 points" in seen.text
