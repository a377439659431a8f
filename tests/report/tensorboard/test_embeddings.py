"""Stored points, and embeddings as TensorBoard's own plugin serves them."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins.base_plugin import TBContext
from werkzeug.test import Client

from condkd_ray.core.method import InputError
from condkd_ray.report.tensorboard.embeddings import COLUMNS, Points, points_path, read_points, write_points
from condkd_ray.report.tensorboard.writer import EventFiles, rebuild, run_name
from report.report_factory import make_record

with warnings.catch_warnings():
    # TensorBoard's bundled code raises deprecation warnings.
    warnings.simplefilter("ignore", DeprecationWarning)
    from tensorboard.plugins.projector.projector_plugin import ProjectorPlugin

COUNTS = {"real": 6, "condensed": 3, "synthetic": 4}


class Reader:
    """Reads the embeddings in a folder."""

    def __init__(self, root: Path) -> None:
        multiplexer = EventMultiplexer().AddRunsFromDirectory(str(root)).Reload()
        provider = MultiplexerDataProvider(multiplexer, str(root))
        self._apps = ProjectorPlugin(TBContext(logdir=str(root), data_provider=provider)).get_plugin_apps()

    def get(self, route: str, **query: str) -> bytes:
        response = Client(self._apps[route]).get("/", query_string=query)
        assert response.status_code == 200, response.data
        return response.data

    @property
    def runs(self) -> set[str]:
        return set(json.loads(self.get("/runs")))

    def read(self, run: str) -> tuple[np.ndarray, list[dict[str, str]]]:
        """Return the vectors and the metadata of each."""
        (embedding,) = json.loads(self.get("/info", run=run))["embeddings"]
        name = embedding["tensorName"]
        vectors = np.frombuffer(self.get("/tensor", run=run, name=name), np.float32)
        head, *rows = self.get("/metadata", run=run, name=name).decode().splitlines()
        assert head.split("\t") == list(COLUMNS)
        metadata = [dict(zip(COLUMNS, row.split("\t"), strict=True)) for row in rows]
        assert embedding["tensorShape"] == [len(metadata), 5]
        return vectors.reshape(len(metadata), 5), metadata


def kept_trial(out: Path, arm: str, ipc: int, kinds=tuple(COUNTS), **changes):
    """Return a record whose points are stored, and the points, whose values differ between trials and kinds."""
    record = make_record(arm, ipc, 0, **{"condensed_hash": f"c{ipc}"} | changes)
    number = int(record.config_hash[:4], 16) / 1e4
    found = {
        kind: Points(number + torch.arange(5.0 * COUNTS[kind]).view(-1, 5) / 100, torch.arange(COUNTS[kind]) % 3)
        for kind in kinds
    }
    write_points(points_path(out, record.config_hash), found)
    return record, found


def test_written_points_are_read_back(tmp_path):
    _, found = kept_trial(tmp_path, "mixed", 10)
    (path,) = (tmp_path / "points").iterdir()
    again = read_points(path)
    assert list(again) == list(found)
    for kind, one in found.items():
        assert torch.allclose(again[kind].features, one.features, atol=2e-3, rtol=2e-3)
        assert torch.equal(again[kind].classes, one.classes)
    path.write_bytes(b"no")
    with pytest.raises(InputError, match=r"points.* cannot be read"):
        read_points(path)


def test_each_kept_trial_has_its_embedding(tmp_path):
    (mixed, found), (none, _) = (
        kept_trial(tmp_path, "mixed", 10),
        kept_trial(tmp_path, "none", 0, ("real", "synthetic")),
    )
    other = make_record("guided", 10, 0)
    rebuild(tmp_path, [none, mixed, other])
    reader = Reader(tmp_path / "tensorboard")
    assert reader.runs == {".", run_name(mixed), run_name(none)}
    vectors, metadata = reader.read(run_name(mixed))
    assert np.allclose(vectors, torch.cat([one.features for one in found.values()]), atol=5e-3, rtol=5e-3)
    assert [row["kind"] for row in metadata] == [kind for kind, count in COUNTS.items() for _ in range(count)]
    assert [row["class"] for row in metadata[:6]] == ["0", "1", "2", "0", "1", "2"]
    assert metadata[0] == {"what": "real", "kind": "real", "class": "0", "arm": "-", "ipc": "-", "seed": "-"}
    assert metadata[6] | {"class": ""} == metadata[0] | {
        "what": "condensed ipc 10",
        "kind": "condensed",
        "ipc": "10",
        "class": "",
    }
    assert metadata[9] == {
        "what": "synthetic mixed ipc 10", "kind": "synthetic", "class": "0", "arm": "mixed", "ipc": "10", "seed": "0"
    }  # fmt: skip
    assert {row["what"] for row in reader.read(run_name(none))[1]} == {"real", "synthetic none no ipc"}


def test_colours_can_be_chosen_by_existing_columns(tmp_path):
    record, _ = kept_trial(tmp_path, "mixed", 10)
    rebuild(tmp_path, [record])
    run = run_name(record)
    views = json.loads(Reader(tmp_path / "tensorboard").get("/bookmarks", run=run, name="teacher features"))
    assert [view["selectedColorOptionName"] for view in views] == ["what", "class"]
    assert all(view["selectedColorOptionName"] in COLUMNS for view in views)
    assert all(view["dataSetDimensions"] == [sum(COUNTS.values()), 5] for view in views)


def test_all_arms_are_in_one_space_with_shared_points_once(tmp_path):
    trials = [kept_trial(tmp_path, arm, ipc) for arm in ("mixed", "guided") for ipc in (1, 10)]
    other_teacher, _ = kept_trial(tmp_path, "none", 0, teacher_hash="another")
    rebuild(tmp_path, [record for record, _ in trials] + [other_teacher])
    vectors, metadata = Reader(tmp_path / "tensorboard").read(".")
    counted = {what: sum(row["what"] == what for row in metadata) for what in {row["what"] for row in metadata}}
    synthetic = {f"synthetic {arm} ipc {ipc}": 4 for arm in ("mixed", "guided") for ipc in (1, 10)}
    assert counted == {"real": 6, "condensed ipc 1": 3, "condensed ipc 10": 3} | synthetic
    for record, found in trials:
        rows = [i for i, row in enumerate(metadata) if (row["arm"], row["ipc"]) == (record.arm, str(record.ipc))]
        assert np.allclose(vectors[rows], found["synthetic"].features, atol=5e-3, rtol=5e-3)


def test_all_real_images_are_no_condensed_set(tmp_path):
    record, _ = kept_trial(tmp_path, "real", 0, ("real", "condensed"), condensation="all_real")
    rebuild(tmp_path, [record])
    reader = Reader(tmp_path / "tensorboard")
    assert reader.runs == {run_name(record)}
    assert {row["kind"] for row in reader.read(run_name(record))[1]} == {"real"}


def test_without_points_there_is_no_embedding(tmp_path):
    rebuild(tmp_path, [make_record("mixed", 10, 0)])
    assert Reader(tmp_path / "tensorboard").runs == set()


def test_a_live_board_has_the_embedding_as_soon_as_the_trial_has_ended(tmp_path):
    record, _ = kept_trial(tmp_path, "mixed", 10)
    files = EventFiles(tmp_path)
    files.trial_finished(record)
    assert Reader(tmp_path / "tensorboard").runs == {run_name(record)}


def test_of_trials_that_end_at_once_a_live_board_has_the_first_embedding_and_the_rebuilt_board_has_all(tmp_path):
    first, _ = kept_trial(tmp_path, "mixed", 10)
    second, _ = kept_trial(tmp_path, "guided", 10)
    files = EventFiles(tmp_path, pause=60.0)
    for record in (first, second):
        files.trial_finished(record)
    assert Reader(tmp_path / "tensorboard").runs == {run_name(first)}
    rebuild(tmp_path, [first, second])
    assert Reader(tmp_path / "tensorboard").runs >= {run_name(first), run_name(second)}
