"""Event files read back with TensorBoard's own readers."""

import io
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chaos.small_disk import fill, small_disk
from PIL import Image
from places import permitted
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.hparams import api_pb2, metadata

from condkd_ray.core.records import condensed_path, grid_path
from condkd_ray.report.figures.image_grids import write_grid
from condkd_ray.report.tensorboard.writer import GRID, METRICS, EventFiles, hparams, rebuild, run_name, varying
from report.report_factory import ROUNDS, altered, diagnosed, make_record, remembering, sweep

API: Any = api_pb2


def content(run: Path, tag: str) -> bytes | None:
    """Return the HParams plugin data of one run under `tag`, of which there is at most one."""
    found = [
        value.metadata.plugin_data.content
        for file in run.glob("events.out.tfevents.*")
        for event in EventFileLoader(str(file)).Load()
        for value in event.summary.value
        if value.tag == tag
    ]
    assert len(found) <= 1
    return found[0] if found else None


def start(run: Path):
    return metadata.parse_session_start_info_plugin_data(content(run, metadata.SESSION_START_INFO_TAG))


def end(run: Path):
    found = content(run, metadata.SESSION_END_INFO_TAG)
    return found and metadata.parse_session_end_info_plugin_data(found)


def read(run: Path) -> EventAccumulator:
    return EventAccumulator(str(run), size_guidance={"scalars": 0, "images": 0}).Reload()


def points(run: Path, tag: str) -> list[tuple[int, float]]:
    return [(point.step, pytest.approx(point.value)) for point in read(run).Scalars(tag)]


def test_a_full_disk_raises_an_error_and_prints_nothing(tmp_path, capfd):
    with permitted(), small_disk(tmp_path / "tensorboard", "16k") as folder:
        fill(folder)
        with pytest.raises(OSError, match="No space left on device"):
            EventFiles(tmp_path)
    assert capfd.readouterr() == ("", "")


def test_run_names_contain_ipc_arm_seed_and_hash():
    assert run_name(make_record("guided", 10, 0, config_hash="1a2b3c4d")) == "ipc10/guided/seed0-1a2b3c"
    assert run_name(make_record("none", 0, 3, config_hash="1a2b3c4d")) == "none/seed3-1a2b3c"


@pytest.mark.parametrize(
    ("arm", "shown"),
    [
        ("trial 7", "trial-7"),
        ("sweep's pool", "sweeps-pool"),
        ("guided (sweep's pool)", "guided-sweeps-pool"),
        ("bn 0.5 + cmi|fast", "bn-0.5-cmi-fast"),
        ("a/b", "a-b"),
        ("?", "-"),
    ],
)
def test_run_names_are_found_by_typing_them_into_a_filter(arm, shown):
    name = run_name(make_record(arm, 2, 0, config_hash="1a2b3c4d"))
    assert name == f"ipc2/{shown}/seed0-1a2b3c"
    assert re.search(name, f"before {name} after")


def test_rebuild_writes_every_trial_once(folder):
    records = sweep(("none", "mixed", "guided"), (1, 10), (0, 1))
    out = folder(records)
    (out / "tensorboard" / "stale").mkdir(parents=True)
    for _ in range(2):
        rebuild(out, records)
    board = out / "tensorboard"
    runs = {str(path.parent.relative_to(board)) for path in board.rglob("events.out.tfevents.*")}
    arms = {"none", *(f"ipc{ipc}/{arm}" for ipc in (1, 10) for arm in ("mixed", "guided"))}
    assert runs == {"."} | arms | {run_name(record) for record in records}
    assert not (board / "stale").exists()
    for record in records:
        run = board / run_name(record)
        assert len(list(run.iterdir())) == 1
        scalars = read(run).Tags()["scalars"]
        assert set(scalars) == set(record.metrics) | {name for row in record.history for name in row} - {"round"}
        assert len(read(run).Scalars("kd/loss")) == ROUNDS
        # The last round has the same accuracy as the final measurement, so it is written once.
        assert points(run, "student/test_accuracy") == [
            (int(row["round"]), row["student/test_accuracy"]) for row in record.history
        ]
        assert points(run, "proxy/kl") == [(ROUNDS, record.metrics["proxy/kl"])]
        assert read(run).Tags()["images"] == ([GRID] if record is records[0] else [])
        assert end(run).status == API.STATUS_SUCCESS


def test_the_diagnosis_is_written_for_each_round_and_as_metrics(tmp_path):
    record = diagnosed(make_record("guided", 5, 0))
    rebuild(tmp_path, [record])
    run = tmp_path / "tensorboard" / run_name(record)
    for name in [name for name in record.metrics if name.startswith("diagnosis/")]:
        assert points(run, name) == [(int(row["round"]), row[name]) for row in record.history]
    assert {"student/forgetting", "diagnosis/frechet_real", "diagnosis/diversity"} <= set(METRICS)


def test_the_content_of_the_memory_is_written_as_histograms(tmp_path):
    record = remembering(make_record("none", 0, 0))
    rebuild(tmp_path, [record])
    found = read(tmp_path / "tensorboard" / run_name(record))
    assert set(found.Tags()["histograms"]) == {"memory/class", "memory/confidence"}
    for name, first, last in (("class", -0.5, 9.5), ("confidence", 0.0, 1.0)):
        (event,) = found.Histograms(f"memory/{name}")
        assert event.step == ROUNDS
        counts, limits = event.histogram_value.bucket, event.histogram_value.bucket_limit
        assert sum(counts) == event.histogram_value.num == 1045
        assert [round(n) for n in counts if n] == [n for n in record.outcome.held[name] if n]
        assert (event.histogram_value.min, event.histogram_value.max, limits[-1]) == (first, last, last)


def picture(run: Path) -> np.ndarray:
    (image,) = read(run).Images(GRID)
    with Image.open(io.BytesIO(image.encoded_image_string)) as opened:
        assert (image.width, image.height) == opened.size
        return np.asarray(opened)


def test_condensed_images_are_shown_beside_synthetic_ones(folder):
    (record,) = records = [make_record("guided", 1, 0, condensed_hash="c0ffee")]
    out = folder(records)
    rebuild(out, records)
    alone = picture(out / "tensorboard" / run_name(record))
    pixels = np.random.default_rng(1).integers(0, 256, (10, 1, 8, 8), dtype=np.uint8)
    write_grid(condensed_path(out, "c0ffee"), pixels, per_class=1)
    rebuild(out, records)
    both = picture(out / "tensorboard" / run_name(record))
    with Image.open(grid_path(out, record.config_hash)) as own, Image.open(condensed_path(out, "c0ffee")) as given:
        own, given = np.asarray(own), np.asarray(given)
    head = len(alone) - len(own)
    assert np.array_equal(alone[head:, : own.shape[1]], own)
    assert np.array_equal(both[head:, : given.shape[1]], given)
    assert np.array_equal(both[head:, -alone.shape[1] :][:, : own.shape[1]], own)
    assert (both[:head] < 128).any()


def test_hparams_have_types_and_values(folder):
    records = sweep(("none", "guided"), (1, 10), (0, 1))
    out = folder(records)
    rebuild(out, records)
    found = metadata.parse_experiment_plugin_data(content(out / "tensorboard", metadata.EXPERIMENT_TAG))
    infos = {info.name: info for info in found.hparam_infos}
    assert set(infos) == {"arm", "ipc", "seed", "condensation", "inversion", "guidance", "memory", "guidance.weight"}
    assert infos["arm"].type == API.DATA_TYPE_STRING
    assert [value.string_value for value in infos["arm"].domain_discrete.values] == ["guided", "none"]
    assert infos["ipc"].type == infos["guidance.weight"].type == API.DATA_TYPE_FLOAT64
    assert [value.number_value for value in infos["ipc"].domain_discrete.values] == [0, 1, 10]
    assert [info.name.tag for info in found.metric_infos] == list(METRICS)
    # TensorBoard shows these first.
    assert {name for name, info in infos.items() if info.differs} == set(infos) - {"inversion", "memory"}
    session = start(out / "tensorboard" / run_name(make_record("guided", 10, 1)))
    assert session.group_name == run_name(make_record("guided", 10, 1))
    assert session.hparams["arm"].string_value == "guided"
    assert session.hparams["ipc"].number_value == 10
    assert session.hparams["guidance.weight"].number_value == 1.0


def test_times_are_those_of_the_record(folder):
    (record,) = records = sweep(("guided",), (1,), (0,))
    out = folder(records)
    rebuild(out, records)
    run = out / "tensorboard" / run_name(record)
    assert end(run).end_time_secs - start(run).start_time_secs == pytest.approx(record.outcome.wall_seconds, abs=1e-3)
    walls = [point.wall_time - start(run).start_time_secs for point in read(run).Scalars("kd/loss")]
    assert walls == [pytest.approx(1.5 * (i + 1), abs=1e-3) for i in range(ROUNDS)]


def test_a_live_board_equals_the_rebuilt_one(folder):
    record = make_record("guided", 10, 0)
    out = folder([record])
    names = varying([record.config, make_record("none", 0, 0).config])
    files = EventFiles(out, [hparams(record, names)])
    run = out / "tensorboard" / run_name(record)
    files.trial_started(run_name(record), hparams(record, names))
    for row in record.history[:2]:
        files.round(run_name(record), int(row["round"]), row)
    # As if the driver were killed here: the trial has no end in TensorBoard. Another driver continues it.
    assert start(run).hparams["arm"].string_value == "guided"
    assert end(run) is None
    files = EventFiles(out, [hparams(record, names)])
    files.trial_started(run_name(record), hparams(record, names), record.history[:2])
    files.trial_started(run_name(record), hparams(record, names))
    for row in record.history[1:]:
        files.round(run_name(record), int(row["round"]), row)
    files.trial_finished(record)
    live = {tag: points(run, tag) for tag in read(run).Tags()["scalars"]}
    images = len(read(run).Images(GRID))
    rebuild(out, [record])
    assert live == {tag: points(run, tag) for tag in read(run).Tags()["scalars"]}
    assert images == len(read(run).Images(GRID)) == 1
    assert content(out / "tensorboard", metadata.EXPERIMENT_TAG)


@pytest.mark.parametrize(
    ("status", "shown"), [("failed", API.STATUS_FAILURE), ("pruned", API.STATUS_UNKNOWN), ("running", None)]
)
def test_the_status_of_failed_pruned_and_running_trials_is_written(tmp_path, status, shown):
    record = make_record(status=status, metrics={"student/test_accuracy": math.nan}, history=[])
    rebuild(tmp_path, [record])
    run = tmp_path / "tensorboard" / run_name(record)
    assert read(run).Tags()["scalars"] == []
    found = end(run)
    assert (found and found.status) == shown


def test_a_final_value_that_differs_from_the_last_round_is_added(tmp_path):
    record = make_record()
    record = altered(record, metrics=record.metrics | {"student/test_accuracy": 0.5})
    files = EventFiles(tmp_path)
    files.trial_finished(record)
    found = points(tmp_path / "tensorboard" / run_name(record), "student/test_accuracy")
    assert len(found) == ROUNDS + 1
    assert found[-1] == (ROUNDS, 0.5)


def test_a_search_has_its_open_leaves_as_columns_before_any_trial_has_ended(tmp_path):
    examples = [{"loss.name": "hinton"}, {"loss.name": "l1"}, {"resets": [1, 2]}, {"resets": None}]
    files = EventFiles(tmp_path, examples, {"inversion.bn_weight": (0.1, 100.0)})
    record = make_record("trial 0", 2, 0, config={"loss": {"name": "l1"}, "inversion": {"bn_weight": 3.0}})
    files.trial_started(run_name(record), hparams(record, ["loss.name", "inversion.bn_weight"]))
    root = tmp_path / "tensorboard"
    infos = {
        info.name: info
        for info in metadata.parse_experiment_plugin_data(content(root, metadata.EXPERIMENT_TAG)).hparam_infos
    }
    interval = infos["inversion.bn_weight"].domain_interval
    assert (interval.min_value, interval.max_value) == (0.1, 100.0)
    assert [value.string_value for value in infos["loss.name"].domain_discrete.values] == ["hinton", "l1"]
    session = start(root / "ipc2" / "trial-0" / f"seed0-{record.config_hash[:6]}")
    assert session.hparams["inversion.bn_weight"].number_value == 3.0
    assert session.hparams["loss.name"].string_value == "l1"
    assert end(root / "ipc2" / "trial-0" / f"seed0-{record.config_hash[:6]}") is None


def test_varying_lists_only_settings_in_which_trials_differ():
    configs = [
        {"seed": 0, "rounds": 3, "inversion": {"name": "dafl", "steps": 10, "flat": None}, "layers": [1, 2]},
        {"seed": 1, "rounds": 3, "inversion": {"name": "cmi", "steps": 20, "mix": True}, "layers": [1, 3]},
    ]
    assert varying(configs) == ["inversion.steps", "layers"]
    losses = [{"distiller": {"loss": {"name": name}}, "memory": {"name": name}} for name in ("hinton", "l1")]
    assert varying(losses) == ["distiller.loss.name"]
    assert varying([]) == []


def test_columns_never_mix_types(tmp_path):
    mixed = {"flag": True, "size": "all", "many": 0, "text": "0"}
    planned = [mixed, {"flag": False, "size": 3, "many": 1}, *({"many": i, "text": str(i)} for i in range(30))]
    files = EventFiles(tmp_path, planned)
    files.trial_started("run", mixed)
    files.trial_started("other", {"size": 3, "unplanned": 2})
    root = tmp_path / "tensorboard"
    experiment = metadata.parse_experiment_plugin_data(content(root, metadata.EXPERIMENT_TAG))
    infos = {info.name: info for info in experiment.hparam_infos}
    assert infos["flag"].type == API.DATA_TYPE_BOOL
    assert infos["size"].type == API.DATA_TYPE_STRING
    assert (infos["many"].domain_interval.min_value, infos["many"].domain_interval.max_value) == (0, 29)
    assert not infos["text"].HasField("domain_discrete")
    assert start(root / "run").hparams["flag"].bool_value is True
    assert start(root / "other").hparams["size"].string_value == "3"
    assert start(root / "other").hparams["unplanned"].number_value == 2
