"""Importance of parameters: the ranking and its spread."""

import optuna
import pytest

from condkd_ray.core.method import InputError
from condkd_ray.study.importance import LEAST, importances, stored_trials
from condkd_ray.study.storage import open_storage
from condkd_ray.study.study import REPEAT


def explored(count: int = 40, storage=None, name="search") -> optuna.Study:
    study = optuna.create_study(
        study_name=name, storage=storage, direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0)
    )
    for _ in range(count):
        trial = study.ask()
        weight = trial.suggest_float("weight", -1, 1)
        kind = trial.suggest_categorical("kind", ["a", "b"])
        trial.suggest_float("idle", 1e-3, 1, log=True) if kind == "a" else None
        study.tell(trial, -(weight**2))
    return study


def test_the_parameter_that_matters_comes_first():
    first, *others = importances(explored().trials, ["maximize"])
    assert first.name == "weight"
    assert {one.name for one in others} == {"kind", "idle"}
    assert first.share > 0.6
    assert first.low <= first.share + 0.05
    assert first.low > max(one.share for one in others)
    assert first.share + sum(one.share for one in others) == pytest.approx(1)


def test_the_same_trials_give_the_same_importances():
    trials = explored().trials
    assert importances(trials, ["maximize"]) == importances(trials, ["maximize"])


def test_the_importances_depend_on_the_direction():
    falling = importances(explored().trials, ["minimize"])
    assert falling != importances(explored().trials, ["maximize"])


def test_few_trials_have_no_importances_and_repeats_do_not_count():
    study = explored(LEAST)
    assert importances(study.trials, ["maximize"])
    for trial in study.trials[1:]:
        trial.user_attrs[REPEAT] = 0
    assert importances(explored(LEAST - 1).trials, ["maximize"]) == []
    marked = study.get_trials()
    marked[0].user_attrs[REPEAT] = 3
    assert importances(marked, ["maximize"]) == []


def test_stored_trials_are_read_from_the_folder_or_refused(tmp_path):
    explored(3, open_storage(None, tmp_path), "search")
    assert len(stored_trials(tmp_path, "search", None)) == 3
    with pytest.raises(InputError, match="with a NAME of search"):
        stored_trials(tmp_path, "other", None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"study\.journal'; accepted: the storage that the search used"):
        stored_trials(tmp_path / "empty", "search", None)
    assert not list((tmp_path / "empty").iterdir())
