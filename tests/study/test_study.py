"""The study of a search: its proposals, its stored trials, and trials that it proposes again."""

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
    """Return the stored study, opened with Optuna alone."""
    return optuna.load_study(study_name="s", storage=open_storage(None, folder))


def values(proposal) -> tuple[float, int]:
    return proposal.config.inversion.bn_weight, proposal.config.inversion.steps


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random", "qmc"])
def test_a_restarted_driver_proposes_the_same_trials(tmp_path, sampler):
    alone = study(tmp_path / "a", sampler=sampler)
    for number in range(14):
        alone.complete(alone.propose().number, [number / 20])
    for number in range(14):
        other = study(tmp_path / "b", sampler=sampler)
        other.complete(other.propose().number, [number / 20])
    found = [[trial.params for trial in each.finished] for each in (alone, other)]
    assert found[0] == found[1]
    assert len({str(params) for params in found[0]}) == 14


def test_another_seed_proposes_other_trials(tmp_path):
    found = [study(tmp_path / str(seed), sampler="random", seed=seed).propose().params for seed in (0, 1)]
    assert found[0] != found[1]


def test_running_trials_are_returned_again_with_their_numbers(tmp_path):
    first = study(tmp_path)
    proposals = [first.propose() for _ in range(3)]
    first.complete(1, [0.5])
    first.report(2, 1, 0.25)
    again = study(tmp_path)
    assert again.left_running() == [proposals[0], proposals[2]]
    # Values reported before are kept when they are reported again.
    again.report(2, 1, 0.75)
    again.report(2, 2, 0.5)
    assert again.trials[2].intermediate_values == {1: 0.25, 2: 0.5}
    again.complete(2, [0.5])
    again.complete(2, [0.9])
    assert again.trials[2].value == 0.5


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc"])
def test_a_proposal_interrupted_by_a_kill_is_completed_first(tmp_path, sampler, monkeypatch):
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
    # Kills before the trial exists, with none, one and both of its parameters, and after all was written.
    assert count >= 4


def test_each_trial_of_a_finite_space_is_proposed_once(tmp_path):
    found = study(tmp_path, SMALL)
    rounds = []
    while (proposal := found.propose()) is not None:
        rounds.append(proposal.config.rounds)
        found.complete(proposal.number, [proposal.config.rounds / 10])
    assert sorted(rounds) == [1, 2, 3]
    assert len(found.finished) == 3
    assert {trial.state for trial in found.trials} == {TrialState.COMPLETE}


def test_a_repeat_of_a_running_or_failed_trial_fails(tmp_path):
    found = study(tmp_path, "{data: {name: digits}, rounds: !choice [1, 2]}")
    first, second = found.propose(), found.propose()
    found.fail(first.number, "nan")
    assert found.propose() is None
    others = [trial for trial in found.trials if trial.number not in (first.number, second.number)]
    assert {trial.state for trial in others} == {TrialState.FAIL}
    assert found.finished[0].user_attrs["reason"] == "nan"


def test_proposals_that_cannot_be_run_are_skipped(tmp_path):
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


def test_a_grid_is_run_completely(tmp_path):
    found = study(
        tmp_path, "{data: {name: digits}, rounds: !int [1, 3], evaluate_every: !choice [1, 2]}", sampler="grid"
    )
    seen = set()
    while (proposal := found.propose()) is not None:
        seen.add((proposal.config.rounds, proposal.config.evaluate_every))
        found.complete(proposal.number, [0.5])
    assert len(seen) == 6


def test_a_value_that_is_not_finite_fails_the_trial_with_its_name(tmp_path):
    found = study(tmp_path)
    found.complete(found.propose().number, [math.nan])
    assert found.trials[0].state == TrialState.FAIL
    assert found.trials[0].user_attrs["reason"] == "no finite proxy/agreement"
    assert found.ranked == []


def test_a_pruner_decides_by_the_stored_study(tmp_path):
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
    for outcomes in ([0.5, 10.0], [0.6, 20.0], [0.4, 30.0]):
        number = found.propose().number
        found.report(number, 1, 0.1)
        assert not found.should_prune(number)
        found.complete(number, outcomes)
    assert [trial.values for trial in found.front] == [[0.6, 20.0], [0.5, 10.0]]


def test_suggested_points_are_proposed_first_and_once(tmp_path):
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
    """Return parameters of the next trials, each of which is completed before the next is proposed."""
    params = []
    while len(params) < most and (proposal := found.propose()) is not None:
        found.complete(proposal.number, [0.5])
        params.append(dict(proposal.params))
    return params


def restored(lost: Study, sampler, space=SPACE, but=()) -> Study:
    """Return a new study with the trials of a lost one, except those in `but`, which had not ended."""
    found, begun = in_memory(sampler, space), {trial.number for trial in lost.own}
    for trial in lost.own:
        if trial.number not in but:
            assert found.take_back(trial.number, trial.params, begun) == trial.number
            found.complete(trial.number, [0.5])
    return found


def test_a_restored_qmc_study_continues_its_sequence_after_the_restored_trials():
    alone = in_memory("qmc")
    assert len(proposed(alone, REPEATS + 10)) == REPEATS + 10
    found = restored(alone, "qmc")
    assert proposed(found, 10) == proposed(alone, 10)


def test_a_restored_grid_study_runs_every_remaining_point():
    alone = in_memory("grid", WIDE)
    alone.suggest_first([{"rounds": number, "evaluate_every": 1} for number in range(1, 6)])
    before = proposed(alone, 150)
    found = restored(alone, "grid", WIDE)
    after = proposed(found, 60)
    assert len({tuple(params.items()) for params in before + after}) == 200


@pytest.mark.parametrize("sampler", ["qmc", "grid", "tpe", "random"])
def test_a_study_whose_whole_space_was_restored_proposes_nothing(sampler):
    alone = in_memory(sampler, SMALL)
    assert len(proposed(alone, 9)) == 3
    found = restored(alone, sampler, SMALL)
    assert found.propose() is None
    assert len(found.trials) < len(alone.trials) + 3 * REPEATS


@pytest.mark.parametrize("sampler", ["random", "grid"])
@pytest.mark.parametrize("running", [(0,), (0, 2), (1, 3), (0, 1, 2, 3), (2, 5, 7)])
def test_trials_that_ran_when_the_study_was_lost_are_proposed_again_points_first(sampler, running):
    points = [{"rounds": 5}, {"rounds": 6}, {"rounds": 8, "evaluate_every": 2}, {"rounds": 7}]
    alone = in_memory(sampler, WIDE)
    alone.suggest_first(points)
    for _ in range(9):
        alone.propose()
    found = restored(alone, sampler, WIDE, but=running)
    for _ in range(2):
        found.suggest_first(points)
    again = [found.propose() for _ in running]
    assert [(proposal.number, proposal.params) for proposal in again] == [(n, alone.trials[n].params) for n in running]
    assert len(found.trials) == 9


def test_a_lost_point_is_matched_to_its_own_suggestion_and_new_points_come_first():
    points = [{"rounds": 5}, {"rounds": 5, "evaluate_every": 2}]
    alone = in_memory("random", WIDE)
    alone.suggest_first(points)
    for _ in range(4):
        alone.propose()
    found = restored(alone, "random", WIDE, but=(0, 2))
    found.suggest_first([*points, {"rounds": 9, "evaluate_every": 1}, {"rounds": 39}, {"rounds": 38}])
    proposals = [found.propose() for _ in range(5)]
    assert proposals[0].params == alone.trials[0].params
    assert [proposal.params["rounds"] for proposal in proposals[:4]] == [5, 9, 39, 38]
    # A lost trial whose number a new point got has another number now, and every trial is decided.
    assert all("to_run" in trial.user_attrs for trial in found.trials)


def test_a_point_that_equals_a_restored_trial_is_not_tried_again():
    alone = in_memory("random", WIDE)
    alone.suggest_first([{"rounds": 5}])
    drawn = alone.propose().params
    points = [{"rounds": 5}, dict(drawn), {"rounds": 5}]
    found = restored(alone, "random", WIDE)
    found.suggest_first(points)
    assert len(found.trials) == 1


@pytest.mark.parametrize(
    ("sampler", "space", "points"), [("qmc", WIDE, [{"rounds": 5}, {"rounds": 6}]), ("grid", SMALL, [])]
)
def test_optuna_logs_nothing_while_trials_are_proposed(sampler, space, points):
    messages = list[str]()
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    found = in_memory(sampler, space)
    found.suggest_first(points)
    logging.getLogger("optuna").addHandler(handler)
    try:
        for _ in range(4):
            found.propose()
    finally:
        logging.getLogger("optuna").removeHandler(handler)
    assert messages == []


def test_an_earlier_study_is_learnt_once_and_its_trials_do_not_count_as_results(tmp_path):
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


def test_trials_of_an_earlier_study_outside_the_space_are_logged_and_left_out(tmp_path, logged):
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


def test_a_study_can_learn_from_one_with_other_choices(tmp_path):
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
def test_learning_from_a_study_with_another_objective_is_refused(tmp_path, objective, message):
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
def test_a_study_with_a_stored_invalid_point_continues(tmp_path, point, logged):
    # In versions that did not check points, each command tried the first of these again and ended with an error.
    found = study(tmp_path)
    found.suggest_first([point, {"inversion/bn_weight": 7.0, "inversion/steps": 3}])
    assert values(found.propose()) == (7.0, 3)
    assert [trial.state for trial in found.trials] == [TrialState.FAIL, TrialState.RUNNING]
    assert [line.partition("{")[0] for line in logged] == ["the point "]


def few_steps(config) -> None:
    """Refuse half of the values that can be drawn."""
    if config.inversion.steps > 5:
        raise InputError("steps is too many")


def refuse_all(config) -> None:
    raise InputError("nothing fits")


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc", "gp"])
def test_open_values_of_a_point_are_drawn_until_the_config_is_accepted(tmp_path, sampler, logged):
    found = study(tmp_path, sampler=sampler)
    weights = (7.0, 8.0, 9.0, 10.0)
    found.suggest_first([{"inversion/bn_weight": weight} for weight in weights])
    proposals = [found.propose(few_steps) for _ in weights]
    assert sorted(proposal.config.inversion.bn_weight for proposal in proposals) == list(weights)
    assert all(proposal.config.inversion.steps <= 5 for proposal in proposals)
    # Half of the steps are refused, so some points were drawn again.
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
    proposals = [found.propose().params for _ in range(2)]
    assert proposals[0]["rounds"] == 3
    assert proposals[1]["evaluate_every"] == 2
    # The third point has no new trial left: each draw is a repeat.
    assert found.propose().params["rounds"] != 2
    (message,) = logged
    assert message.startswith(f"the point {{'rounds': 2}} is skipped after {REPEATS} draws of what it leaves open: tri")
    assert sum(trial.system_attrs.get("fixed_params") == {"rounds": 2} for trial in found.trials) == REPEATS
    assert len(found.finished) == 2


def test_a_point_without_an_accepted_draw_is_logged_and_the_search_continues(tmp_path, logged):
    def check(config):
        if config.inversion.bn_weight == 7.0:
            raise InputError("7 is none")

    whole = {"inversion/bn_weight": 7.0, "inversion/steps": 3}
    for _ in range(2):
        found = study(tmp_path)
        found.suggest_first([{"inversion/bn_weight": 7.0}, whole])
        assert found.propose(check).params["inversion/bn_weight"] != 7.0
    # The complete point has nothing to draw, so it is tried once.
    points = [trial.system_attrs.get("fixed_params") for trial in found.trials]
    assert (points.count({"inversion/bn_weight": 7.0}), points.count(whole)) == (REPEATS, 1)
    assert [line.rpartition(": ")[2] for line in logged] == ["7 is none"] * 2


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_driver_killed_while_points_are_drawn_proposes_the_same_trials(tmp_path, sampler, monkeypatch):
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


def test_two_points_have_independent_draws(tmp_path):
    found = study(tmp_path)
    found.suggest_first([{"inversion/steps": 3}, {"inversion/steps": 4}])
    first, second = values(found.propose()), values(found.propose())
    assert (first[1], second[1]) == (3, 4)
    assert first[0] != second[0]


def test_points_can_be_suggested_to_a_grid(tmp_path):
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
def test_a_proposal_begun_by_a_killed_driver_gets_the_same_parameters(tmp_path, sampler, monkeypatch):
    wanted = study(tmp_path / "alone", sampler=sampler).propose().params
    for writes in range(12):
        with killed_after(writes, monkeypatch):
            study(tmp_path / str(writes), sampler=sampler).propose()
        again = study(tmp_path / str(writes), sampler=sampler)
        (proposal,) = again.left_running() or [again.propose()]
        assert proposal.params == wanted, writes


def test_a_study_whose_creation_was_interrupted_can_be_continued(tmp_path, monkeypatch):
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


def test_an_incomplete_study_keeps_its_direction(tmp_path, monkeypatch):
    with killed_after(1, monkeypatch):
        study(tmp_path)
    with pytest.raises(InputError, match="direction of the objectives of study 's' is 'maximize'; accepted: minimize"):
        study(tmp_path, objective=("proxy/kl",))
    assert study(tmp_path).propose() is not None


@pytest.mark.parametrize(
    ("change", "what"),
    [({"space": SMALL}, "space"), ({"objective": ("proxy/kl",)}, "objective")],
)
def test_another_search_with_the_same_name_is_refused_and_the_study_stays_unchanged(tmp_path, change, what):
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
    message = (
        "made with plug-ins inversion/mine: mine 1.0; this run has inversion/mine: mine 2.0; accepted: the same plug-in"
    )
    with pytest.raises(InputError, match=message):
        study(tmp_path)


def test_a_study_of_another_numbers_version_is_refused_and_not_learnt_from(tmp_path):
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
    # Studies written before versions existed have no version.
    with pytest.raises(InputError, match="version of the numbers of study 'bare' is 1; accepted"):
        new.learn_from(optuna.create_study(study_name="bare", direction="maximize"))
    assert new.trials == []


@pytest.mark.parametrize("sampler", ["gp", "qmc", "grid"])
def test_a_sampler_that_cannot_handle_conditional_spaces_is_refused(tmp_path, sampler):
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


def test_used_gpu_seconds_are_stored_in_the_study(tmp_path):
    study(tmp_path).keep_gpu_seconds(7.5)
    assert study(tmp_path).gpu_seconds == 7.5
    assert study(tmp_path / "new").gpu_seconds == 0


def test_a_study_can_be_stored_in_sqlite(tmp_path):
    place = f"sqlite:///{tmp_path / 'study.db'}"
    first = study(tmp_path, place=place)
    proposal = first.propose()
    first.report(0, 1, 0.5)
    again = study(tmp_path, place=place)
    assert again.left_running() == [proposal]
    again.complete(0, [0.75])
    assert again.front[0].value == 0.75
