"""Population-based training: which member continues from which parent and parameters, also after a killed driver."""

import math

import pytest
from killing import killed_after
from optuna.trial import TrialState

from condkd_ray.core.method import InputError
from condkd_ray.study.objective import Objective
from condkd_ray.study.population import Member, Population, check_population
from condkd_ray.study.space import parse
from condkd_ray.study.storage import open_storage
from condkd_ray.study.study import Study

SPACE = "{inversion: {name: fast, bn_weight: !log_uniform [0.1, 100], adv_weight: !uniform [0, 2]}}"
SIZES = {"size": 8, "rounds": 2, "total": 7}


def population(folder, **changes) -> tuple[Study, Population]:
    tree = parse(SPACE)
    study = Study(open_storage(None, folder), "s", tree, Objective(), sampler="random", population=(8, 2))
    return study, Population(study, tree, **SIZES | {"seed": 0} | changes)


def quality(member: Member, round: int) -> float:
    """Return a quality that is best at a weight of 10 and grows with every round."""
    return 1 / (1 + abs(math.log(member.life[-1]["params"]["inversion/bn_weight"] / 10))) + round / 100


def live(study: Study, found: Population, generations: int = 99, failing=lambda number, generation: False) -> None:
    """Run `generations` generations, one member after the other."""
    for _ in range(generations):
        members = found.open()
        if not members:
            return
        for member in members:
            generation = len(member.life) - 1
            if failing(member.number, generation):
                found.end_generation(member.number, "kd/loss")
                continue
            last = min(found.pause_after(generation), SIZES["total"])
            for round in range(1, last + 1):
                study.report(member.number, round, quality(member, round))
            if generation < found.generations - 1:
                found.end_generation(member.number)
            else:
                found.set_final_params(member.number)
                study.complete(member.number, [quality(member, last)])


def lives(study: Study) -> list:
    return [trial.user_attrs["life"] for trial in study.trials]


def test_the_worst_quarter_continues_from_the_best_quarter(tmp_path):
    study, found = population(tmp_path)
    live(study, found, 1)
    scores = {member.number: quality(member, 2) for member in found.members}
    ranked = sorted(scores, key=scores.__getitem__)
    found.open()
    for member in found.members:
        first, second = member.life
        if member.number in ranked[:2]:
            assert second["from"] in ranked[-2:]
            parent = found.members[second["from"]].life[0]["params"]
            for name, (low, high) in {"inversion/bn_weight": (0.1, 100), "inversion/adv_weight": (0, 2)}.items():
                assert low <= second["params"][name] <= high
            assert second["params"] != parent
        else:
            assert (second["from"], second["params"]) == (member.number, first["params"])


def test_values_are_scaled_or_drawn_anew(tmp_path):
    found = population(tmp_path)[1]
    params = {"inversion/bn_weight": 10.0, "inversion/adv_weight": 1.0}
    explored = [found.explored(params, number, 1) for number in range(400)]
    weights = [params_of_member["inversion/bn_weight"] for params_of_member in explored]
    moved = [weight for weight in weights if weight in (8.0, 12.0)]
    assert 0.68 < len(moved) / 400 < 0.82
    assert {8.0, 12.0} == set(moved)
    assert sum(weight < 1 for weight in weights) > 20
    edge = [found.explored(params | {"inversion/bn_weight": 99.0}, number, 1) for number in range(40)]
    assert max(params_of_member["inversion/bn_weight"] for params_of_member in edge) == 100.0


def test_each_member_ends_as_a_complete_trial_with_its_last_parameters(tmp_path):
    study, found = population(tmp_path)
    live(study, found)
    assert found.open() == []
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 8
    for trial in study.trials:
        assert len(trial.user_attrs["life"]) == 4
        assert trial.params == trial.user_attrs["life"][-1]["params"]
        assert list(trial.intermediate_values) == [1, 2, 3, 4, 5, 6, 7]
    first = [abs(math.log(life[0]["params"]["inversion/bn_weight"] / 10)) for life in lives(study)]
    last = [abs(math.log(life[-1]["params"]["inversion/bn_weight"] / 10)) for life in lives(study)]
    assert sum(last) < sum(first)
    assert study.ranked[0].value == max(trial.value for trial in study.trials)


def test_the_lives_depend_on_the_seed_alone(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        study, found = population(tmp_path / name, seed=seed)
        live(study, found)
    found = [lives(population(tmp_path / name)[0]) for name in "abc"]
    assert found[0] == found[1] != found[2]


def test_a_driver_killed_at_any_write_makes_the_same_decisions_again(tmp_path, monkeypatch):
    study, found = population(tmp_path / "whole")
    live(study, found, 2)
    found.open()
    count = 0
    for writes in range(9):
        study, found = population(tmp_path / str(writes))
        live(study, found, 2)
        with killed_after(writes, monkeypatch) as killed:
            found.open()
        count += len(killed)
        again, found = population(tmp_path / str(writes))
        assert len(found.open()) == 8
        assert lives(again) == lives(population(tmp_path / "whole")[0])
    assert count == 8


def test_a_failed_member_continues_from_a_good_one(tmp_path):
    study, found = population(tmp_path)
    live(study, found, failing=lambda number, generation: generation == 0 and number in (0, 1, 2, 3))
    for number in range(4):
        life = lives(study)[number]
        assert life[0]["failed"] == "kd/loss"
        assert life[1]["from"] not in (0, 1, 2, 3)
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}


def test_a_population_whose_members_all_failed_ends(tmp_path):
    study, found = population(tmp_path)
    live(study, found, failing=lambda number, generation: generation == 1)
    assert found.open() == []
    assert {len(life) for life in lives(study)} == {2}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 1}, "--population is 1; accepted: an integer >= 2"),
        ({"rounds": 7}, "--generation-rounds is 7; accepted: 1 to 6, fewer than the rounds of a trial"),
        (
            {"objective": Objective(("proxy/agreement", "memory/bytes"))},
            "--objective with --population is 'proxy/ag",
        ),
        (
            {"space": "{inversion: {name: fast, width: !choice [8, 16], bn_weight: !uniform [1, 2]}}"},
            r"--population with open leaves is 'inversion/width'; accepted: real numbers \(!uniform, !log_",
        ),
        (
            {"space": "{rounds: !int [2, 4], guidance: !choice [none, mmd]}"},
            "is 'rounds, guidance'; accepted: real nu",
        ),
        ({"space": "{teacher: {training: {lr: !uniform [0, 1]}}}"}, "is 'teacher/training/lr'; accepted: real numbers"),
        ({"space": "{pipeline: {producers: 1}, distiller: {lr: !uniform [0, 1]}}"}, "--population with a pipeline is"),
    ],
)
def test_an_unsupported_population_is_refused(changes, message):
    options = {"size": 8, "rounds": 2, "total": 7, "space": SPACE, "objective": Objective()} | changes
    with pytest.raises(InputError, match=message):
        check_population(
            options["size"], options["rounds"], options["total"], parse(options["space"]), options["objective"]
        )
