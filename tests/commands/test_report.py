"""The list of kept files that is printed at the end of a report."""

import shlex
from pathlib import Path

from condkd_ray.commands import report
from condkd_ray.commands.console.exit_codes import speak
from condkd_ray.commands.report import Report, kept, rebuild, report_results


def listed(out: Path, study: str | None = None) -> dict[str, str]:
    """Return the list of kept files by its labels, and check that it has columns."""
    lines = kept(out, study)
    (start,) = {len(line) - len(line[12:].lstrip()) for line in lines}
    return {line[:start].strip(): line[start:] for line in lines}


def test_only_existing_files_are_listed_in_columns(tmp_path: Path):
    out = tmp_path / "my runs"
    out.mkdir()
    assert list(listed(out)) == ["records"]
    for name in ("table.md", "figure.png", "curves.png", "report.html"):
        (out / name).touch()
    (out / "tensorboard").mkdir()
    found = listed(out)
    assert list(found) == ["records", "tables", "figures", "page", "look live"]
    assert (found["tables"], found["page"]) == (str(out / "table.md"), str(out / "report.html"))
    assert found["figures"] == f"{out / 'figure.png'}, {out / 'curves.png'}"
    assert shlex.split(found["look live"]) == ["condkd", "dashboard", str(out)]


def test_products_and_studies_are_listed_without_the_password_of_a_storage(tmp_path: Path):
    (tmp_path / "products").mkdir()
    (tmp_path / "tensorboard").mkdir()
    assert not {"study", "take along"} & set(listed(tmp_path))
    (tmp_path / "products" / "ab.safetensors").touch()
    (tmp_path / "study.journal").touch()
    found = listed(tmp_path)
    assert found["take along"] == f"condkd export {tmp_path} --to export/{tmp_path.name}"
    assert found["study"] == str(tmp_path / "study.journal")
    assert found["look live"] == f"condkd dashboard {tmp_path}"
    named = listed(tmp_path, "postgresql://me:secret@host/name")
    assert "secret" not in str(named)
    assert named["look live"] == f"condkd dashboard {tmp_path} --study-storage ..."


def test_tables_fit_the_terminal_and_are_printed_first(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(report, "columns", lambda: 47)
    monkeypatch.setattr("condkd_ray.report.build.build", lambda out, width: f"tables of {out} in {width} columns")
    speak()
    report_results(tmp_path)
    assert capsys.readouterr() == (f"tables of {tmp_path} in 47 columns\n", "\n".join(kept(tmp_path)) + "\n")


def test_the_exit_code_is_1_if_a_part_could_not_be_written(tmp_path: Path, monkeypatch):
    wrong: list[Exception] = []

    def build(out: Path, width: int, failed: list[Exception]) -> str:
        failed += wrong
        return "tables"

    monkeypatch.setattr("condkd_ray.report.build.build", build)
    assert rebuild(Report(tmp_path)) == 0
    wrong.append(OSError("no room"))
    assert rebuild(Report(tmp_path)) == 1
