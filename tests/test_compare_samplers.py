"""The comparison of samplers reads each seed's own searches."""

import importlib.util
import sys
from pathlib import Path

import pytest
from report.report_factory import make_record

from condkd_ray.report.records import write_record

SCRIPT = Path(__file__).parents[1] / "experiments" / "compare_samplers.py"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("compare_samplers", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "compare_samplers", module)
    spec.loader.exec_module(module)
    return module


def test_each_seed_has_its_own_curve(script, tmp_path):
    for seed in (0, 1):
        for place, value in (("first", 0.1), ("random", 0.2), ("tpe", 0.3 + 0.2 * seed)):
            told = {"proxy/agreement": value, "student/test_accuracy": value}
            record = make_record(arm="trial 0", seed=seed, metrics=told, config_hash=f"{place}{seed}")
            write_record(tmp_path / f"seed-{seed}" / place, record)
    script.compared(script.Args(out=tmp_path, sampler_seeds=(0, 1), first=1, trials=2))
    rows = [
        line.split(" | ") for line in (tmp_path / "samplers.md").read_text().splitlines() if line.startswith("| tpe")
    ]
    assert rows[0][2:4] == ["0.4 ± 0.14", "+0.2 (-1.07 to +1.47, paired t, df 1)"]
