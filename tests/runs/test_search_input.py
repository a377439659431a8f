"""The input of a search is checked before anything is written."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from condkd_ray.core.method import InputError
from condkd_ray.runs import search as searches
from condkd_ray.runs.search_spec import SearchSpec
from condkd_ray.study.objective import Objective
from condkd_ray.study.space import parse
from condkd_ray.study.storage import open_storage
from condkd_ray.study.study import Study

TREE = parse("""
data: {name: digits}
teacher: {network: {name: resnet, depth: 8, width: 8}, training: {epochs: 1}}
student: {name: resnet, depth: 8, width: 4}
condensation: {name: random_real, ipc: 1}
inversion: {name: fast, steps: 2, batch: 16, width: 8, bn_weight: !log_uniform [0.1, 100]}
distiller: {steps: 2, batch: 16, condensed_share: !uniform [-1, 1]}
rounds: 2
""")


def refused(folder: Path, message: str, **changes) -> None:
    """Check that a run and its explanation both raise the message, and that no file was written."""
    spec = dataclasses.replace(SearchSpec(out=folder / "out", cache=folder / "cache"), **changes)
    before = sorted(folder.rglob("*"))
    for begin in (lambda: searches.run("Which?", TREE, spec), lambda: searches.explained(TREE, spec)):
        with pytest.raises(InputError, match=message):
            begin()
        assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (
            [{"inversion/bn_wieght": 1}],
            r"point 1 of .*p\.yaml: 'inversion/bn_wieght' .*did you mean inversion/bn_weight",
        ),
        ([{"inversion/bn_weight": 1}, {"inversion/bn_weight": -3}], "point 2 of .*bn_weight is -3; accepted: a number"),
        ([{"inversion/bn_weight": 1, "distiller/condensed_share": -0.5}], "point 1 of .*share.* -0.5; acc"),
        ([], "--points is .*; accepted: a YAML list of mappings"),
        ([{}], "--points is .*; accepted: a YAML list of mappings"),
        ({"inversion/bn_weight": 1}, "--points is .*; accepted: a YAML list of mappings"),
        ([3], "--points is .*; accepted: a YAML list of mappings"),
    ],
)
def test_points_outside_the_space_are_refused(tmp_path, points, message):
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(points))
    refused(tmp_path, message, points=tmp_path / "p.yaml")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("!choice [3, null]", "teacher: module is 3; accepted: "),
        ("!uniform [0, 1]", "teacher: module is 0.0; accepted: "),
        ("!choice [null, 'no_such_package:teacher']", "no_such_package"),
    ],
)
def test_every_teacher_module_that_a_space_can_choose_is_checked(tmp_path, values, message):
    tree = parse(f"{{data: {{name: digits}}, teacher: {{module: {values}}}}}")
    spec = SearchSpec(out=tmp_path / "out", cache=tmp_path / "cache")
    for begin in (lambda: searches.run("Which?", tree, spec), lambda: searches.explained(tree, spec)):
        with pytest.raises(InputError, match=message):
            begin()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("rounds", ["", "many", "!choice [2, many]", "0"])
def test_rounds_that_are_no_number_are_refused(tmp_path, rounds):
    tree = parse(f"inversion: {{bn_weight: !log_uniform [0.1, 100]}}\nrounds: {rounds}")
    spec = SearchSpec(out=tmp_path / "out", cache=tmp_path / "cache", pruner="median")
    with pytest.raises(InputError, match=r"rounds is .*; accepted: (a valid|an) integer"):
        searches.check(tree, spec)


@pytest.mark.parametrize("content", [b"[", b"\xff\xfe\xfa", None])
def test_points_that_cannot_be_read_are_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "p.yaml").write_bytes(content)
    refused(tmp_path, "--points is .*p.yaml.*, which cannot be read", points=tmp_path / "p.yaml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"study": ""}, "--study is ''; accepted: a name"),
        ({"sampler_seed": -1}, "--sampler-seed is -1; accepted: an integer >= 0"),
        ({"sampler": "bayes"}, "--sampler is 'bayes'; accepted: tpe, gp, random, qmc, grid"),
        ({"pruner": "halving"}, "--pruner is 'halving'; accepted: none, asha, hyperband, median"),
        ({"pruner": "hyperband"}, "--least-rounds with --pruner is 3; accepted: at most 2, the rounds of a trial"),
        ({"gpu_hours": float("nan")}, "--gpu-hours is nan; accepted"),
        ({"learn_from": ("nowhere.journal#s",)}, "--learn-from is 'nowhere.journal#s'; accepted: STORAGE#NAME"),
    ],
)
def test_invalid_flags_are_refused(tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    refused(tmp_path, message, **changes)


def test_learning_from_a_study_with_another_objective_is_refused(tmp_path):
    Study(open_storage(None, tmp_path / "earlier"), "s", TREE, Objective(("proxy/kl",)))
    place = f"{tmp_path / 'earlier' / 'study.journal'}#s"
    refused(tmp_path, "objective of study 's' is 'proxy/kl'; accepted: proxy/agreement", learn_from=(place,))


def test_a_storage_that_cannot_be_used_is_refused_before_earlier_results_are_moved(tmp_path):
    (tmp_path / "out").mkdir()
    spec = SearchSpec(
        out=tmp_path / "out", cache=tmp_path / "cache", fresh=True, study_storage="sqlite:////proc/none/s.db"
    )
    with pytest.raises(InputError, match="--study-storage is"):
        searches.run("Which?", TREE, spec)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_study_that_is_moved_aside_can_still_be_learnt_from(tmp_path):
    study = Study(open_storage(None, tmp_path / "out"), "s", TREE, Objective())
    study.complete(study.propose().number, [0.5])
    journal = tmp_path / "out" / "study.journal"
    (earlier,) = searches.earlier_studies(SearchSpec(learn_from=(f"{journal}#s",))).values()
    journal.unlink()
    assert Study(open_storage(None, tmp_path / "new"), "s", TREE, Objective()).learn_from(earlier) == 1


def test_a_finished_trial_without_a_stored_hash_is_counted_as_run(tmp_path):
    spec = SearchSpec(out=tmp_path / "out", cache=tmp_path / "cache", trials=1)
    study = searches.study_of(TREE, spec)
    for attributes in ({"config_hash": "a"}, {}):
        number = study.propose().number
        study.note(number, attributes)
        study.complete(number, [0.5])
    assert "Nothing is left to run." in searches.explained(TREE, spec)
