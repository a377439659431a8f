"""Two experiments at once on one Ray cluster, one of each task: each gives the numbers that it gives alone."""

import os
import subprocess
import sys

import programs
import pytest
import ray
import yaml
from places import EXPERIMENTS

from condkd_ray.core.records import read_records

DIGITS = {
    "inversion": {"steps": 1, "batch": 128, "width": 8, "latent": 16},
    "distiller": {"steps": 2, "batch": 32},
    "teacher": {"network": {"name": "resnet", "depth": 8, "width": 4}},
}
SCENES = {"teacher": {"network": {"depth": 8, "width": 4}}, "student": {"width": 4}, "inversion": {"width": 8}}
SCRIPTS = {"ablate_memory": (DIGITS, ["--memories", "latest", "reservoir"]), "segmentation": (SCENES, ["--ipcs", "2"])}


def command(name, folder, out):
    tree, more = SCRIPTS[name]
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    fixed = ["--seeds", "0", "--rounds", "2", "--teacher-epochs", "3", "--config", folder / f"{name}.yaml"]
    return [EXPERIMENTS / f"{name}.py", *fixed, *more, "--cache", folder / "cache", "--out", folder / out]


def results(out):
    """Return the metrics of each trial without times and places, by arm."""
    unequal = ("time/", "pool/")
    found = {}
    for record in read_records(out):
        assert record.status == "finished"
        found[record.arm] = {k: v for k, v in record.metrics.items() if not k.startswith(unequal)}
    return found


@pytest.mark.slow
@pytest.mark.ray
def test_two_sweeps_of_different_tasks_on_one_cluster_do_not_change_each_other(cluster, tmp_path):
    for name in SCRIPTS:
        assert programs.script(*command(name, tmp_path, f"{name} alone")).returncode == 0
    address = ray.get_runtime_context().gcs_address
    both = [
        subprocess.Popen(
            [sys.executable, *map(str, command(name, tmp_path, f"{name} beside")), "--address", address],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"COLUMNS": "200"},
        )
        for name in SCRIPTS
    ]
    for process in both:
        _, errors = process.communicate(timeout=400)
        assert process.returncode == 0, errors
    for name in SCRIPTS:
        alone = results(tmp_path / f"{name} alone")
        assert alone == results(tmp_path / f"{name} beside")
        score = "student/test_miou" if name == "segmentation" else "student/test_accuracy"
        assert all(score in metrics for metrics in alone.values())
        assert len(alone) == {"segmentation": 7, "ablate_memory": 2}[name]
