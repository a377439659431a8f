"""The study as the truth of a search: what it proposes, remembers and hands out again."""

import logging
import math

import optuna
import pytest
from killing import killed_after
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from condkd_ray.core.method import InputError
from condkd_ray.study.objective import Objective, parse_constraints
from condkd_ray.study.space import parse
from condkd_ray.study.storage import open_storage
from condkd_ray.study.strategies import make_pruner
from condkd_ray.study.study import REPEATS, Study
from condkd_ray.trial.plan import NUMBERS

SPACE = """
data: {name: digits}
inversion: {name: fast, width: 64, bn_weight: !log_uniform [0.1, 100], steps: !int [2, 10]}
"""
SMALL = "{data: {name: digits}, rounds: !choice [1, 2, 3]}"
CONDITIONAL = """
data: {name: digits}
condensation: {name: distribution_matching, ipc: 1}
guidance: !choice
  - {name: discriminator, weight: !log_uniform [1, 100]}
  - {name: moments, covariance_weight: !uniform [0, 2]}
"""


def study(folder, space=SPACE, objective=("proxy/agreement",), place=None, **options) -> Study:
    storage = open_storage(place, folder)
    return Study(storage, "s", parse(space), Objective(objective), **options)


def stored(folder) -> optuna.Study:
    """What is kept of it, as anybody may open it."""
    return optuna.load_study(study_name="s", storage=open_storage(None, folder))


def values(proposal) -> tuple[float, int]:
    return proposal.config.inversion.bn_weight, proposal.config.inversion.steps


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random", "qmc"])
def test_a_driver_that_goes_on_proposes_what_it_would_have_proposed(tmp_path, sampler):
    alone = study(tmp_path / "a", sampler=sampler)
    for number in range(14):
        alone.complete(alone.propose().number, [number / 20])
    for number in range(14):
        other = study(tmp_path / "b", sampler=sampler)
        other.complete(other.propose().number, [number / 20])
    found = [[trial.params for trial in each.finished] for each in (alone, other)]
    assert found[0] == found[1]
    assert len({str(params) for params in found[0]}) == 14


def test_another_seed_proposes_others(tmp_path):
    found = [study(tmp_path / str(seed), sampler="random", seed=seed).propose().params for seed in (0, 1)]
    assert found[0] != found[1]


def test_what_was_running_is_handed_out_again_with_its_number(tmp_path):
    first = study(tmp_path)
    proposals = [first.propose() for _ in range(3)]
    first.complete(1, [0.5])
    first.report(2, 1, 0.25)
    again = study(tmp_path)
    assert again.left_running() == [proposals[0], proposals[2]]
    # What was told before is not told twice, and may be told again.
    again.report(2, 1, 0.75)
    again.report(2, 2, 0.5)
    assert again.trials[2].intermediate_values == {1: 0.25, 2: 0.5}
    again.complete(2, [0.5])
    again.complete(2, [0.9])
    assert again.trials[2].value == 0.5


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc"])
def test_a_driver_killed_over_a_proposal_leaves_one_that_is_finished_first(tmp_path, sampler, monkeypatch):
    count = 0
    for writes in range(12):
        driver = study(tmp_path / str(writes), sampler=sampler)
        with killed_after(writes, monkeypatch) as killed:
            driver.propose()
        count += len(killed)
        again = study(tmp_path / str(writes), sampler=sampler)
        proposals = again.left_running() or [again.propose()]
        proposals.append(again.propose())
        assert [proposal.number for proposal in proposals] == [0, 1]
        assert all(set(proposal.params) == {"inversion/bn_weight", "inversion/steps"} for proposal in proposals)
        assert study(tmp_path / str(writes)).left_running() == proposals
    # Before it was there, with none, one and both of its parameters, and after all was written.
    assert count >= 4


def test_trials_are_proposed_once_until_there_is_no_other(tmp_path):
    found = study(tmp_path, SMALL)
    rounds = []
    while (proposal := found.propose()) is not None:
        rounds.append(proposal.config.rounds)
        found.complete(proposal.number, [proposal.config.rounds / 10])
    assert sorted(rounds) == [1, 2, 3]
    assert len(found.finished) == 3
    assert {trial.state for trial in found.trials} == {TrialState.COMPLETE}


def test_a_repeat_of_one_that_runs_or_failed_is_no_knowledge(tmp_path):
    found = study(tmp_path, "{data: {name: digits}, rounds: !choice [1, 2]}")
    first, second = found.propose(), found.propose()
    found.fail(first.number, "nan")
    assert found.propose() is None
    others = [trial for trial in found.trials if trial.number not in (first.number, second.number)]
    assert {trial.state for trial in others} == {TrialState.FAIL}
    assert found.finished[0].user_attrs["reason"] == "nan"


def test_what_cannot_be_run_is_passed_over(tmp_path):
    def check(config):
        if config.rounds < 3:
            raise InputError("rounds is too few")

    found = study(tmp_path, SMALL, sampler="random")
    assert found.propose(check).config.rounds == 3
    assert found.propose(check) is None
    assert len(found.left_running()) == 1
    assert found.finished == []
    assert "rounds is too few" in {trial.user_attrs.get("impossible") for trial in found.trials}
    assert len(study(tmp_path, SMALL).left_running()) == 1


def test_a_grid_is_run_whole(tmp_path):
    found = study(
        tmp_path, "{data: {name: digits}, rounds: !int [1, 3], evaluate_every: !choice [1, 2]}", sampler="grid"
    )
    seen = set()
    while (proposal := found.propose()) is not None:
        seen.add((proposal.config.rounds, proposal.config.evaluate_every))
        found.complete(proposal.number, [0.5])
    assert len(seen) == 6


def test_a_value_that_is_not_finite_is_a_failure_with_its_name(tmp_path):
    found = study(tmp_path)
    found.complete(found.propose().number, [math.nan])
    assert found.trials[0].state == TrialState.FAIL
    assert found.trials[0].user_attrs["reason"] == "no finite proxy/agreement"
    assert found.ranked == []


def test_a_pruner_decides_by_what_stands_in_the_study(tmp_path):
    first = study(tmp_path, pruner=make_pruner("median", least=1, most=4))
    for _ in range(6):
        number = first.propose().number
        for step in range(1, 5):
            first.report(number, step, 0.5)
        first.complete(number, [0.5])
    number = first.propose().number
    again = study(tmp_path, pruner=make_pruner("median", least=2, most=4))
    again.report(number, 1, 0.1)
    assert not again.should_prune(number)
    again.report(number, 2, 0.1)
    assert again.should_prune(number)
    again.prune(number)
    assert again.trials[number].state == TrialState.PRUNED
    assert len(again.finished) == 7


def test_several_objectives_have_a_front(tmp_path):
    found = study(tmp_path, objective=("proxy/agreement", "time/wall_seconds"))
    for told in ([0.5, 10.0], [0.6, 20.0], [0.4, 30.0]):
        number = found.propose().number
        found.report(number, 1, 0.1)
        assert not found.should_prune(number)
        found.complete(number, told)
    assert [trial.values for trial in found.front] == [[0.6, 20.0], [0.5, 10.0]]


def test_given_points_come_first_and_once(tmp_path):
    point = {"inversion/bn_weight": 7.0, "inversion/steps": 3}
    for _ in range(2):
        found = study(tmp_path)
        found.suggest_first([point])
        assert found.finished == []
    assert values(found.propose()) == (7.0, 3)
    assert values(found.propose()) != (7.0, 3)


WIDE = "{data: {name: digits}, rounds: !int [1, 40], evaluate_every: !int [1, 5]}"


def in_memory(sampler, space=SPACE) -> Study:
    return Study(InMemoryStorage(), "s", parse(space), Objective(), sampler=sampler)


def proposed(found: Study, most: int) -> list[dict]:
    """Parameters of its next trials, each of which is complete before the next is proposed."""
    told = []
    while len(told) < most and (proposal := found.propose()) is not None:
        found.complete(proposal.number, [0.5])
        told.append(dict(proposal.params))
    return told


def taken_back(lost: Study, sampler, space=SPACE, but=()) -> Study:
    """A new study that has the trials of a lost one from their records, but for some that had not ended."""
    found, begun = in_memory(sampler, space), {trial.number for trial in lost.own}
    for trial in lost.own:
        if trial.number not in but:
            assert found.restore(trial.number, trial.params, begun) == trial.number
            found.complete(trial.number, [0.5])
    return found


def test_a_sequence_that_begins_anew_comes_to_what_is_behind_the_trials_that_were_taken_back():
    alone = in_memory("qmc")
    assert len(proposed(alone, REPEATS + 10)) == REPEATS + 10
    found = taken_back(alone, "qmc")
    assert proposed(found, 10) == proposed(alone, 10)


def test_no_place_of_a_grid_is_left_out_where_its_trials_were_taken_back():
    alone = in_memory("grid", WIDE)
    alone.suggest_first([{"rounds": number, "evaluate_every": 1} for number in range(1, 6)])
    before = proposed(alone, 150)
    found = taken_back(alone, "grid", WIDE)
    after = proposed(found, 60)
    assert len({tuple(one.items()) for one in before + after}) == 200


@pytest.mark.parametrize("sampler", ["qmc", "grid", "tpe", "random"])
def test_a_space_all_of_which_was_taken_back_comes_to_its_end(sampler):
    alone = in_memory(sampler, SMALL)
    assert len(proposed(alone, 9)) == 3
    found = taken_back(alone, sampler, SMALL)
    assert found.propose() is None
    assert len(found.trials) < len(alone.trials) + 3 * REPEATS


@pytest.mark.parametrize("sampler", ["random", "grid"])
@pytest.mark.parametrize("running", [(0,), (0, 2), (1, 3), (0, 1, 2, 3), (2, 5, 7)])
def test_what_ran_when_the_study_was_lost_is_proposed_again_points_first(sampler, running):
    points = [{"rounds": 5}, {"rounds": 6}, {"rounds": 8, "evaluate_every": 2}, {"rounds": 7}]
    alone = in_memory(sampler, WIDE)
    alone.suggest_first(points)
    for _ in range(9):
        alone.propose()
    found = taken_back(alone, sampler, WIDE, but=running)
    for _ in range(2):
        found.suggest_first(points)
    again = [found.propose() for _ in running]
    assert [(one.number, one.params) for one in again] == [(n, alone.trials[n].params) for n in running]
    assert len(found.trials) == 9


def test_a_point_that_ran_is_not_taken_for_one_that_it_fits_and_new_points_come_before_lost_numbers():
    points = [{"rounds": 5}, {"rounds": 5, "evaluate_every": 2}]
    alone = in_memory("random", WIDE)
    alone.suggest_first(points)
    for _ in range(4):
        alone.propose()
    found = taken_back(alone, "random", WIDE, but=(0, 2))
    found.suggest_first([*points, {"rounds": 9, "evaluate_every": 1}, {"rounds": 39}, {"rounds": 38}])
    told = [found.propose() for _ in range(5)]
    assert told[0].params == alone.trials[0].params
    assert [one.params["rounds"] for one in told[:4]] == [5, 9, 39, 38]
    # What has the number of a new point by chance has given it away, and nothing is undecided.
    assert all("to_run" in trial.user_attrs for trial in found.trials)


def test_a_point_that_equals_a_trial_that_was_taken_back_is_not_tried_again():
    alone = in_memory("random", WIDE)
    alone.suggest_first([{"rounds": 5}])
    drawn = alone.propose().params
    points = [{"rounds": 5}, dict(drawn), {"rounds": 5}]
    found = taken_back(alone, "random", WIDE)
    found.suggest_first(points)
    assert len(found.trials) == 1


@pytest.mark.parametrize(
    ("sampler", "space", "points"), [("qmc", WIDE, [{"rounds": 5}, {"rounds": 6}]), ("grid", SMALL, [])]
)
def test_nothing_is_heard_of_optuna_while_trials_are_proposed(sampler, space, points):
    heard = list[str]()
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())
    found = in_memory(sampler, space)
    found.suggest_first(points)
    logging.getLogger("optuna").addHandler(handler)
    try:
        for _ in range(4):
            found.propose()
    finally:
        logging.getLogger("optuna").removeHandler(handler)
    assert heard == []


def test_an_earlier_study_of_the_space_is_known_once_and_counts_for_nothing(tmp_path):
    earlier = study(tmp_path / "a")
    for number in range(4):
        earlier.complete(earlier.propose().number, [number / 10])
    other = optuna.load_study(study_name="s", storage=open_storage(None, tmp_path / "a"))
    wide = optuna.create_study(study_name="wide", direction="maximize")
    wide.set_user_attr("numbers", NUMBERS)
    wide.enqueue_trial({"inversion/bn_weight": 1000.0, "inversion/steps": 3})
    trial = wide.ask()
    trial.suggest_float("inversion/bn_weight", 0.1, 1e4), trial.suggest_int("inversion/steps", 2, 10)
    wide.tell(trial, 0.9)
    found = study(tmp_path / "b")
    assert [found.learn_from(other), found.learn_from(other), found.learn_from(wide)] == [4, 0, 0]
    assert found.finished == [] == found.front
    assert len(found.trials) == 4


def test_of_an_earlier_study_it_is_said_what_is_not_of_the_space(tmp_path, logged):
    earlier = study(tmp_path / "a", SPACE.replace("[0.1, 100]", "[0.01, 1000]").replace("fast,", "fast, batch: 32,"))
    for weight, steps in ((0.05, 3), (7.0, 4), (500.0, 4)):
        earlier.suggest_first([{"inversion/bn_weight": weight, "inversion/steps": steps}])
        earlier.complete(earlier.propose().number, [0.5])
    other = optuna.load_study(study_name="s", storage=open_storage(None, tmp_path / "a"))
    found = study(tmp_path / "b", SPACE.replace("fast,", "fast, batch: 16,"))
    assert found.learn_from(other) == 1
    assert logged == [
        "2 of 3 complete trials of study 's' are not of this space and left out: of trial 0, parameters: "
        "inversion/bn_weight is 0.05; accepted: a number from 0.1 to 100",
        "study 's' has other fixed fields, which may make its values differ: inversion/batch 32 there and 16 here",
    ]
    assert found.propose() is not None


def test_choices_that_were_others_do_not_break_a_study_that_learns(tmp_path):
    earlier = study(tmp_path / "a", "{data: {name: digits}, rounds: !choice [1, 2, 3, 4]}", sampler="grid")
    for _ in range(4):
        earlier.complete(earlier.propose().number, [0.5])
    found = study(tmp_path / "b", SMALL, sampler="random")
    assert found.learn_from(optuna.load_study(study_name="s", storage=open_storage(None, tmp_path / "a"))) == 3
    assert found.propose().params["rounds"] in (1, 2, 3)
    narrow = study(tmp_path / "c", "{data: {name: digits}, rounds: !choice [1, 2], seed: !choice [0, 1]}")
    assert narrow.learn_from(optuna.load_study(study_name="s", storage=open_storage(None, tmp_path / "a"))) == 0


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (("proxy/kl",), "^objective of study 's' is 'proxy/kl'; accepted: proxy/agreement$"),
        (("proxy/agreement", "memory/bytes"), "^objective of study 's' is 'proxy/agreement memory/bytes'; accepted"),
    ],
)
def test_values_of_another_objective_are_not_taken_for_this_one(tmp_path, objective, message):
    earlier = study(tmp_path / "a", objective=objective)
    earlier.complete(earlier.propose().number, [0.5] * len(objective))
    found = study(tmp_path / "b")
    with pytest.raises(InputError, match=message):
        found.learn_from(optuna.load_study(study_name="s", storage=open_storage(None, tmp_path / "a")))
    bare = optuna.create_study(study_name="bare", direction="minimize")
    bare.set_user_attr("numbers", NUMBERS)
    with pytest.raises(InputError, match=r"^direction of objective of study 'bare' is 'minimize'; accepted"):
        found.learn_from(bare)
    assert found.trials == []


@pytest.mark.parametrize(
    "point", [{"inversion/bn_weight": -3.0}, {"inversion/bn_weight": 1e9}, {"inversion/steps": "x"}]
)
def test_a_study_that_was_asked_for_the_impossible_goes_on(tmp_path, point, logged):
    # Before points were checked, the first of these was tried again by each command, and ended it.
    found = study(tmp_path)
    found.suggest_first([point, {"inversion/bn_weight": 7.0, "inversion/steps": 3}])
    assert values(found.propose()) == (7.0, 3)
    assert [trial.state for trial in found.trials] == [TrialState.FAIL, TrialState.RUNNING]
    assert [line.partition("{")[0] for line in logged] == ["the point "]


def few_steps(config) -> None:
    """Refuse half of what there is to draw."""
    if config.inversion.steps > 5:
        raise InputError("steps is too many")


def refuse_all(config) -> None:
    raise InputError("nothing fits")


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc", "gp"])
def test_what_a_point_leaves_open_is_drawn_until_it_fits(tmp_path, sampler, logged):
    found = study(tmp_path, sampler=sampler)
    weights = (7.0, 8.0, 9.0, 10.0)
    found.suggest_first([{"inversion/bn_weight": weight} for weight in weights])
    proposals = [found.propose(few_steps) for _ in weights]
    assert sorted(proposal.config.inversion.bn_weight for proposal in proposals) == list(weights)
    assert all(proposal.config.inversion.steps <= 5 for proposal in proposals)
    # Some had to be: half of the steps do not fit.
    assert len(found.trials) > 4
    assert logged == []
    assert found.propose(few_steps).config.inversion.bn_weight not in weights


def test_a_point_is_drawn_again_where_it_equals_an_earlier_trial(tmp_path, logged):
    space = "{data: {name: digits}, rounds: !choice [1, 2, 3], evaluate_every: !choice [1, 2]}"
    found = study(tmp_path, space)
    found.suggest_first([{"rounds": 2, "evaluate_every": 1}, {"rounds": 2, "evaluate_every": 2}])
    for value in (0.1, 0.2):
        found.complete(found.propose().number, [value])
    found.suggest_first([{"rounds": 3}, {"evaluate_every": 2}, {"rounds": 2}])
    asked = [found.propose().params for _ in range(2)]
    assert asked[0]["rounds"] == 3
    assert asked[1]["evaluate_every"] == 2
    # Of the third there is none left: a repeat as often as it is drawn.
    assert found.propose().params["rounds"] != 2
    (told,) = logged
    assert told.startswith(f"the point {{'rounds': 2}} is skipped after {REPEATS} draws of what it leaves open: tri")
    assert sum(trial.system_attrs.get("fixed_params") == {"rounds": 2} for trial in found.trials) == REPEATS
    assert len(found.finished) == 2


def test_a_point_none_of_whose_draws_fits_is_told_once_and_the_search_goes_on(tmp_path, logged):
    def check(config):
        if config.inversion.bn_weight == 7.0:
            raise InputError("7 is none")

    whole = {"inversion/bn_weight": 7.0, "inversion/steps": 3}
    for _ in range(2):
        found = study(tmp_path)
        found.suggest_first([{"inversion/bn_weight": 7.0}, whole])
        assert found.propose(check).params["inversion/bn_weight"] != 7.0
    # The whole one is tried no second time.
    asked = [trial.system_attrs.get("fixed_params") for trial in found.trials]
    assert (asked.count({"inversion/bn_weight": 7.0}), asked.count(whole)) == (REPEATS, 1)
    assert [line.rpartition(": ")[2] for line in logged] == ["7 is none"] * 2


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_driver_killed_over_a_point_that_is_drawn_again_comes_to_the_same(tmp_path, sampler, monkeypatch):
    points = [{"inversion/bn_weight": 7.0}, {"inversion/bn_weight": 8.0}, {"inversion/steps": 9}]
    points = [*points, {"inversion/steps": 4}]

    def driver(folder):
        found = study(folder, sampler=sampler)
        found.suggest_first(points)
        return found

    alone = driver(tmp_path / "alone")
    wanted = [alone.propose(few_steps).params for _ in range(4)]
    passed = [trial.params for trial in alone.trials]
    assert len(passed) > 2 * len(points)
    for writes in (1, 12, 25, 33, 47, 200):
        folder = tmp_path / str(writes)
        with killed_after(writes, monkeypatch) as killed:
            found = driver(folder)
            for _ in range(4):
                found.propose(few_steps)
        again = driver(folder)
        proposals = [*again.left_running()]
        while len(proposals) < 4:
            proposals.append(again.propose(few_steps))
        assert sorted(map(str, (proposal.params for proposal in proposals))) == sorted(map(str, wanted)), writes
        assert [trial.params for trial in again.trials] == passed
    assert killed


def test_two_points_have_draws_of_their_own(tmp_path):
    found = study(tmp_path)
    found.suggest_first([{"inversion/steps": 3}, {"inversion/steps": 4}])
    first, second = values(found.propose()), values(found.propose())
    assert (first[1], second[1]) == (3, 4)
    assert first[0] != second[0]


def test_a_point_of_a_grid_is_drawn_too(tmp_path):
    space = "{data: {name: digits}, rounds: !int [1, 3], evaluate_every: !choice [1, 2]}"
    found = study(tmp_path, space, sampler="grid")
    found.suggest_first([{"rounds": 3}, {"rounds": 1}, {"rounds": 3}])
    seen = []
    while (proposal := found.propose()) is not None:
        seen.append((proposal.config.rounds, proposal.config.evaluate_every))
        found.complete(proposal.number, [0.5])
    assert [rounds for rounds, _ in seen[:2]] == [3, 1]
    assert len(seen) == len(set(seen)) == 6


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_what_a_killed_driver_had_begun_to_draw_is_drawn_to_its_end_as_it_would_have_been(
    tmp_path, sampler, monkeypatch
):
    wanted = study(tmp_path / "alone", sampler=sampler).propose().params
    for writes in range(12):
        with killed_after(writes, monkeypatch):
            study(tmp_path / str(writes), sampler=sampler).propose()
        again = study(tmp_path / str(writes), sampler=sampler)
        (proposal,) = again.left_running() or [again.propose()]
        assert proposal.params == wanted, writes


def test_a_driver_killed_while_it_made_its_study_leaves_one_that_goes_on(tmp_path, monkeypatch):
    study(tmp_path / "alone", constraints=parse_constraints(("memory/bytes<=9",)))
    for writes in range(8):
        with killed_after(writes, monkeypatch):
            study(tmp_path / str(writes), constraints=parse_constraints(("memory/bytes<=9",)))
        study(tmp_path / str(writes), constraints=parse_constraints(("memory/bytes<=9",)))
        again, calm = (stored(tmp_path / name) for name in (str(writes), "alone"))
        assert again.user_attrs == calm.user_attrs
        assert again.metric_names == calm.metric_names
        with pytest.raises(InputError, match="was made for another space"):
            study(tmp_path / str(writes), SMALL)


def test_a_study_that_was_not_made_whole_is_not_taken_for_one_of_another_direction(tmp_path, monkeypatch):
    with killed_after(1, monkeypatch):
        study(tmp_path)
    with pytest.raises(InputError, match="direction of the objectives of study 's' is 'maximize'; accepted: minimize"):
        study(tmp_path, objective=("proxy/kl",))
    assert study(tmp_path).propose() is not None


@pytest.mark.parametrize(
    ("change", "what"),
    [({"space": SMALL}, "space"), ({"objective": ("proxy/kl",)}, "objective")],
)
def test_another_search_under_the_same_name_is_refused_and_the_study_left(tmp_path, change, what):
    study(tmp_path).propose()
    before = (tmp_path / "study.journal").read_bytes()
    with pytest.raises(InputError, match=f"study 's' was made for another {what}, .*; accepted: the same {what}"):
        study(tmp_path, **change)
    assert (tmp_path / "study.journal").read_bytes() == before


def test_a_study_of_other_plug_in_versions_is_refused_with_both(tmp_path, monkeypatch):
    from condkd_ray.study import study as module

    monkeypatch.setattr(module, "plugins", lambda tree: ["inversion/mine: mine 1.0"])
    study(tmp_path).propose()
    monkeypatch.setattr(module, "plugins", lambda tree: ["inversion/mine: mine 2.0"])
    said = (
        "made with plug-ins inversion/mine: mine 1.0; this run has inversion/mine: mine 2.0; accepted: the same plug-in"
    )
    with pytest.raises(InputError, match=said):
        study(tmp_path)


def test_a_study_of_other_numbers_is_refused_and_taught_to_none(tmp_path):
    study(tmp_path).propose()
    other = optuna.load_study(study_name="s", storage=open_storage(None, tmp_path))
    other.set_user_attr("numbers", 1)
    before = (tmp_path / "study.journal").read_bytes()
    message = f"version of the numbers of study 's' is 1; accepted: {NUMBERS}, that of this program; or another --out"
    with pytest.raises(InputError, match=message):
        study(tmp_path)
    assert (tmp_path / "study.journal").read_bytes() == before
    new = study(tmp_path / "new")
    with pytest.raises(InputError, match=message):
        new.learn_from(other)
    # Studies from before there were versions have none.
    with pytest.raises(InputError, match="version of the numbers of study 'bare' is 1; accepted"):
        new.learn_from(optuna.create_study(study_name="bare", direction="maximize"))
    assert new.trials == []


@pytest.mark.parametrize("sampler", ["gp", "qmc", "grid"])
def test_samplers_are_not_asked_for_what_they_cannot_do(tmp_path, sampler):
    with pytest.raises(InputError, match=f"--sampler is '{sampler} for a space in which a choice opens .* tpe, random"):
        study(tmp_path, CONDITIONAL, sampler=sampler)
    assert study(tmp_path, CONDITIONAL).propose() is not None


def test_a_grid_of_real_numbers_is_refused(tmp_path):
    with pytest.raises(InputError, match="grid for a space with a real number, inversion/bn_weight'"):
        study(tmp_path, sampler="grid")


@pytest.mark.parametrize(
    "place",
    ["/proc/none/study.journal", "sqlite:////proc/none/study.db", "nonsense://x", "postgresql://nobody@localhost:1/x"],
)
def test_a_storage_that_cannot_be_used_is_refused(tmp_path, place):
    with pytest.raises(InputError, match=r"--study-storage is '.*', which cannot be used \(.*; accepted: a file for"):
        study(tmp_path, place=place)


def test_what_trials_held_of_gpus_is_known_to_the_next_driver(tmp_path):
    study(tmp_path).keep_gpu_seconds(7.5)
    assert study(tmp_path).gpu_seconds == 7.5
    assert study(tmp_path / "new").gpu_seconds == 0


def test_a_study_in_sqlite(tmp_path):
    place = f"sqlite:///{tmp_path / 'study.db'}"
    first = study(tmp_path, place=place)
    proposal = first.propose()
    first.report(0, 1, 0.5)
    again = study(tmp_path, place=place)
    assert again.left_running() == [proposal]
    again.complete(0, [0.75])
    assert again.front[0].value == 0.75
