import json
from pathlib import Path

import condkd_ray
from condkd_ray.cluster.connection.shipping import JOB, in_job_folder, runtime_env


def test_the_package_is_shipped_as_it_lies_here(monkeypatch):
    monkeypatch.delenv(JOB, raising=False)
    assert runtime_env() == {
        "py_modules": [str(Path(condkd_ray.__file__).parent)],
        "excludes": ["**/__pycache__/"],
    }


def test_a_job_that_brought_its_code_needs_no_more(monkeypatch):
    monkeypatch.setenv(JOB, json.dumps({"runtime_env": {"working_dir": "gcs://x.zip"}, "metadata": {}}))
    assert runtime_env() is None
    monkeypatch.setenv(JOB, json.dumps({"runtime_env": {"env_vars": {"A": "1"}}, "metadata": {}}))
    assert runtime_env() is not None


def test_results_in_the_folder_of_a_job_would_be_lost(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(JOB, raising=False)
    assert not in_job_folder(Path("runs/x"))
    monkeypatch.setenv(JOB, json.dumps({"runtime_env": {"working_dir": "gcs://x.zip"}}))
    assert in_job_folder(Path("runs/x"))
    assert not in_job_folder(tmp_path.parent / "x")
