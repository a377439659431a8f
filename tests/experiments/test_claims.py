"""Tests of claims: strict parsing, complete plans, no pairs across machines, and texts rendered from rows alone."""

import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import programs
import pytest
import yaml
from campaign.claims import Claim, located, read_claim, read_claims
from campaign.halving import chosen, climb
from campaign.rendering import NOTHING, differences, images, render, sentence, table, whole, write
from campaign.rows import Row, metrics_of, read_rows, write_rows
from campaign.running import rows_in
from campaign.sources import set_digest
from campaign.state import State, listed, plans_of, read_state
from campaign.units import trials_of
from claims import Args, main
from places import EXPERIMENTS, README

from condkd_ray.core.config import to_tree
from condkd_ray.core.method import InputError
from condkd_ray.core.records import Outcome, Record, write_record
from condkd_ray.trial.plan import NUMBERS

TINY = {
    "order": 1,
    "question": "Does guiding beat mixing?",
    "hypothesis": "It does.",
    "chosen": "Nothing.",
    "data": {"name": "digits"},
    "inversion": "fast",
    "condensation": {"name": "random_real", "ipc": 1},
    "cells": {"one": {}, "two": {"condensation": {"name": "random_real", "ipc": 2}}},
    "prior": {"weight": 30, "temperature": 4},
    "arms": ["none", "mixed", "mixed_prior", "guided"],
    "seeds": [10, 11, 12],
    "cpu_seconds": 2,
}
HALVING = {
    **{key: value for key, value in TINY.items() if key not in ("cells", "arms", "prior")},
    "kind": "choosing",
    "seeds": [100, 101],
    "rungs": [{"seeds": 1, "keep": 2}, {"seeds": 2}],
    "candidates": {
        "light": {"arm": "guided", "group": "weight", "config": {"guidance": {"weight": 1}}},
        "heavy": {"arm": "guided", "group": "weight", "config": {"guidance": {"weight": 100}}},
        "middle": {"arm": "guided", "group": "weight", "config": {"guidance": {"weight": 10}}},
        "plain": {"arm": "mixed", "group": "none"},
    },
}
ACCURACIES = {"none": 0.2, "mixed": 0.5, "mixed_prior": 0.55, "guided": 0.6}


def stated(folder: Path, tree: dict, **changes) -> Claim:
    folder.mkdir(exist_ok=True)
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({**tree, **changes}), encoding="utf-8")
    return read_claim(path)


@pytest.fixture
def empty(tmp_path) -> State:
    return State(trials_of(stated(tmp_path / "claims", TINY)), [])


def made(state: State, cell: str, arm: str, seed: int, metrics: dict[str, float], **changes) -> Row:
    """Return the row of a trial; `changes` are fields of the row or of its record."""
    planned = state.trials.planned[cell, arm, seed]
    own = {key: changes.pop(key) for key in ("machine", "claim_hash", "set_digest") if key in changes}
    outcome = Outcome(status=changes.pop("status", "finished"), metrics=metrics, node="")
    fields = {"numbers": NUMBERS, "teacher_hash": f"teacher{seed % 2}", "data_hash": "data", "proxy_hash": "proxy"}
    fields |= {"condensed_hash": "" if arm == "none" else f"set {cell} {seed}", "versions": {"torch": "2.14.1"}}
    kinds = ("dataset", "teacher", "student", "condensation", "inversion", "guidance", "memory")
    record = Record(
        **{"experiment": state.claim.name, "arm": arm, "ipc": planned.plan.ipc, "seed": seed, "config_hash": "hash"},
        **dict.fromkeys(kinds, "x") | {"config": {"seed": seed}, **fields, **changes},
        outcome=outcome,
    )
    row = {"claim_hash": planned.claim_hash, "machine": "a machine"} | own
    return Row(claim=state.claim.name, cell=cell, test_images=600, date="2026-11-29", record=record, **row)


def rows_of(
    state: State, cells=("one", "two"), seeds=(10, 11, 12), accuracies=ACCURACIES, score="accuracy", **changes
) -> list[Row]:
    """Return rows of complete units; the seed shifts the score of all arms, and that of guided a little more."""
    found = []
    for cell in cells:
        for seed in seeds:
            for arm in state.claim.arms:
                moved = accuracies[arm] + 0.01 * (seed - 11) + (0.002 * seed - 0.02) * (arm == "guided")
                metrics = {f"student/test_{score}": moved, "time/cpu_seconds": 3.0, "diagnosis/frechet_real": 0.2}
                found.append(made(state, cell, arm, seed, metrics, **changes))
    return found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"wibble": 1}, "'wibble' names no field"),
        ({"seeds": [10, 100]}, "seeds is (10, 100); accepted: different integers from 0 to 99"),
        ({"seeds": [10, 10, 11]}, "seeds is (10, 10, 11)"),
        ({"seeds": []}, "seeds is ()"),
        ({"arms": ["mixed", "gided"]}, "arms is ['mixed', 'gided']; accepted: 'none'"),
        ({"arms": ["mixed", "mixed"]}, "arms is ('mixed', 'mixed')"),
        ({"teachers": 4}, "teachers is 4; accepted: 1 to the number of seeds"),
        ({"cpu_seconds": 0}, "cpu_seconds is 0.0"),
        ({"prior": None}, "prior is None; accepted: {weight, temperature}"),
        ({"prior": {"weight": 30}}, "temperature is not given"),
        ({"data": {"name": "digits", "root": "/somewhere"}}, "root is '/somewhere'; accepted: none"),
        ({"data": {"name": "image_folder"}}, "data: name is 'image_folder'"),
        ({"cells": {}}, "cells is {}; accepted: one or more settings by name"),
        ({"cells": {"one": {"studnt": "resnet-8-8"}}}, "cells: one: 'studnt' names no field (did you mean student?)"),
        ({"cells": {"one": {"student": "resnet-8-"}}}, "claim tiny, one: network is 'resnet-8-'"),
        ({"cells": {"one": {"config": {"rounds": 0}}}}, "rounds is 0; accepted: an integer >= 1"),
        ({"cells": {"one": {"arm": "guided"}}}, "'arm' names no field"),
        ({"cells": {"one": {"host": "cmi", "scale": 0.01, "config": {"rounds": 3}}}}, "rounds with --host cmi"),
        (
            {"condensation": {"name": "imported", "ipc": 1, "path": "/set.pt"}},
            "path is '/set.pt'; accepted: a path below",
        ),
        ({"condensation": {"name": "imported", "ipc": 1, "path": "../set.pt"}}, "accepted: a path below the data root"),
        ({"condensation": None}, "condensation is None"),
        ({"condensation": {"name": "all_real"}}, "condensation: ipc is 0; accepted: an integer >= 1"),
        ({"config": {"seed": 3}}, "config is ['seed']; accepted: other fields"),
        ({"name": "other"}, "name is 'other'; accepted: none"),
        ({"rungs": [{"seeds": 1}]}, "rungs is 1; accepted: none, or kind: choosing"),
        ({"candidates": {"x": {}}}, "candidates is ['x']; accepted: cells of a measuring claim"),
        ({"config": {"teacher": {"weights": "x.pt"}}}, "accepted: none: a claim trains its teachers"),
    ],
)
def test_an_invalid_claim_is_refused_in_one_message(tmp_path, changes, message):
    with pytest.raises(InputError) as refused:
        stated(tmp_path, TINY, **changes)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [10, 11]}, "seeds is (10, 11); accepted: different integers from 100"),
        ({"rungs": []}, "rungs: seeds is []"),
        ({"rungs": [{"seeds": 2, "keep": 2}, {"seeds": 1}]}, "rungs: seeds is [2, 1]"),
        ({"rungs": [{"seeds": 1}, {"seeds": 3}]}, "rungs: seeds is [1, 3]"),
        ({"rungs": [{"seeds": 1}, {"seeds": 2}]}, "rungs: keep is [None, None]"),
        ({"rungs": [{"seeds": 2, "keep": 1}]}, "rungs: keep is [1]"),
        ({"arms": ["mixed"]}, "arms is ('mixed',); accepted: none"),
        ({"data": {"name": "cifar10"}}, "data: val_fraction is 0.0; accepted: a part above 0 of the train images"),
        ({"candidates": {"x": {"arm": "gided"}}}, "arm is 'gided'"),
        ({"candidates": {"x": {}}}, "arm is not given"),
        ({"cells": {"x": {}}}, "cells is ['x']; accepted: candidates of a choosing claim"),
    ],
)
def test_an_invalid_choosing_claim_is_refused_in_one_message(tmp_path, changes, message):
    with pytest.raises(InputError) as refused:
        stated(tmp_path, HALVING, **changes)
    assert message in str(refused.value)


@pytest.mark.parametrize("prior", [{"weight": 0.5, "temperature": 1}, {"weight": 0, "temperature": 1}])
def test_an_invalid_prior_is_refused_with_its_claim_and_cell(tmp_path, prior):
    with pytest.raises(InputError, match="claim tiny, two: prior of the arm mixed_prior"):
        trials_of(stated(tmp_path, TINY, cells={"one": {}, "two": {"prior": prior}}))


def test_an_unknown_claim_is_refused_with_the_names_of_the_claims():
    with pytest.raises(
        InputError, match="claim is 'cor'; accepted: budget, camvid, choosing_camvid, choosing_guidance"
    ):
        read_claims(EXPERIMENTS / "claims", ["cor"])


def test_all_claims_of_the_project_are_valid_and_in_their_planned_order():
    claims = read_claims(EXPERIMENTS / "claims")
    names = [
        "choosing_prior",
        "choosing_guidance",
        "core",
        "digits",
        "own_prior",
        "systems",
        "heterogeneous",
        "fashion",
        "budget",
        "gpu",
        "choosing_camvid",
        "camvid",
    ]
    assert [claim.name for claim in claims] == names
    trials = {claim.name: plans_of(State(trials_of(claim), []).units) for claim in claims}
    assert len(trials["core"]) == 65
    assert {plan.config.teacher.seed for plan in trials["core"]} == {0, 1}
    assert [claim.name for claim in claims if claim.needs_gpu] == ["gpu"]
    seeds = [seed for claim in claims if not claim.choosing for seed in claim.seeds]
    assert len(seeds) == len(set(seeds))
    assert not {*seeds} & {seed for claim in claims if claim.choosing for seed in claim.seeds}


def test_guided_and_mixed_prior_share_the_prior_and_the_arm_none_is_run_once(empty):
    plans = plans_of(empty.units)
    assert len(plans) == 3 * (1 + 2 * 3)
    one = {arm: empty.trials.planned["one", arm, 10].plan.config for arm in TINY["arms"]}
    assert one["guided"].inversion == one["mixed_prior"].inversion != one["mixed"].inversion == one["none"].inversion
    assert (one["guided"].inversion.oh_weight, one["guided"].inversion.oh_temperature) == (30, 4)
    assert one["none"] == empty.trials.planned["two", "none", 10].plan.config


def test_without_a_prior_every_arm_keeps_the_inversion_of_its_host(tmp_path):
    claim = stated(tmp_path, TINY, prior=None, arms=["mixed", "guided"])
    planned = trials_of(claim).planned
    assert planned["one", "guided", 10].plan.config.inversion == planned["one", "mixed", 10].plan.config.inversion


def test_the_host_of_a_cell_replaces_the_inversion_of_the_claim(tmp_path):
    claim = stated(tmp_path, TINY, cells={"one": {}, "cmi": {"host": "cmi", "scale": 0.003}})
    assert (claim.base("one").inversion.name, claim.base("cmi").inversion.name) == ("fast", "cmi")


def test_paths_lie_below_the_data_root(tmp_path):
    few = {"name": "imported", "ipc": 1, "path": "condensed/set.pt"}
    claim = stated(tmp_path, TINY, data={"name": "fashion_mnist"}, condensation=few)
    config = located(claim.base("one"), Path("/data"))
    assert (config.data.root, config.condensation.path) == (Path("/data/FashionMNIST"), Path("/data/condensed/set.pt"))
    with pytest.raises(InputError, match="--data-root is None; accepted: the folder that holds cifar10"):
        located(claim.base("one"), None)


def test_rows_are_read_as_they_were_written(empty, tmp_path):
    rows, path = rows_of(empty), tmp_path / "rows.parquet"
    write_rows(path, rows)
    assert sorted(read_rows(path), key=lambda row: row.place) == sorted(rows, key=lambda row: row.place)


def test_equal_rows_give_equal_bytes_in_any_order(empty, tmp_path):
    rows = rows_of(empty)
    write_rows(tmp_path / "a", rows)
    write_rows(tmp_path / "b", reversed(rows))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    before = (tmp_path / "a").stat().st_mtime_ns
    write_rows(tmp_path / "a", read_rows(tmp_path / "a"))
    assert (tmp_path / "a").stat().st_mtime_ns == before
    assert (tmp_path / "a").stat().st_size < 30_000


def test_a_missing_file_has_no_rows_and_another_kind_of_file_is_refused(tmp_path):
    assert read_rows(tmp_path / "none.parquet") == []
    (tmp_path / "text.parquet").write_text("no", encoding="utf-8")
    with pytest.raises(InputError, match="is no readable Parquet"):
        read_rows(tmp_path / "text.parquet")
    with pytest.raises(InputError, match="columns missing from"):
        read_rows(EXPERIMENTS / "benchmark_cluster.parquet")


def test_a_unit_is_missing_until_all_its_arms_have_rows(empty):
    rows = rows_of(empty)
    assert len(empty.missing) == 6
    assert State(empty.trials, rows).missing == []
    (missing,) = State(empty.trials, rows[:-1]).missing
    assert (missing.label, missing.seed) == ("two", 12)


def test_the_train_set_of_the_arm_real_is_no_other_condensed_set(tmp_path):
    claim = stated(tmp_path, TINY, arms=[*TINY["arms"], "real"])
    state = State(trials_of(claim), [])
    rows = rows_of(state, accuracies=ACCURACIES | {"real": 0.9})
    assert len({row.record.condensed_hash for row in rows if row.member == ("one", "real")}) == 3
    assert State(state.trials, rows).missing == []


@pytest.mark.parametrize(
    "other",
    [
        {"machine": "another machine"},
        {"teacher_hash": "another"},
        {"data_hash": "another"},
        {"condensed_hash": "another"},
        {"versions": {"torch": "2.15.0"}},
        {"numbers": NUMBERS - 1},
        {"claim_hash": "another"},
    ],
    ids=lambda other: next(iter(other)),
)
def test_arms_made_on_another_machine_or_from_other_parts_are_never_paired(empty, other):
    rows = rows_of(empty, cells=["one"], seeds=[10])
    foreign = rows_of(empty, cells=["one"], seeds=[10], **other)
    mixed = [foreign[0], foreign[1], rows[2], rows[3]]
    state = State(empty.trials, mixed)
    assert any(unit.seed == 10 and unit.label == "one" for unit in state.missing)
    assert state.rows_of_cell("one") == []
    # Once the unit has run completely here, only rows made here are used, and the others are deleted.
    again = state.with_rows(rows)
    assert again.rows_of_cell("one") == rows
    assert len([row for row in again.rows if row.record.seed == 10]) == len(rows)


def test_rows_of_an_incomplete_unit_stay(empty):
    own, foreign = rows_of(empty, ["one"], [10]), rows_of(empty, ["one"], [10], machine="another")
    state = State(empty.trials, foreign[:2]).with_rows(own[:3])
    assert len(state.rows) == 5
    assert len(state.with_rows(own[:3]).rows) == 5
    assert len(state.with_rows(own).rows) == 4


def test_a_complete_stored_unit_is_not_replaced_by_rows_of_another_machine(empty):
    own, foreign = rows_of(empty, ["one"], [10]), rows_of(empty, ["one"], [10], machine="another")
    assert list(State(empty.trials, foreign).with_rows(own).rows) == foreign


def test_stale_rows_are_counted_but_not_shown(empty):
    state = State(empty.trials, rows_of(empty, numbers=NUMBERS - 1) + rows_of(empty, claim_hash="edited"))
    text = whole(state)
    assert text.startswith(NOTHING)
    assert f"24 rows of `numbers` {NUMBERS - 1} (now {NUMBERS}); 24 rows with settings that differ" in text
    assert "|" not in text
    assert "Stale and not shown" in listed([state], gpus=False)


def test_the_list_shows_stored_units_missing_trials_and_their_expected_time(empty):
    text = listed([State(empty.trials, rows_of(empty, seeds=[10, 11]))], gpus=False)
    assert "there: 4 of 6 units (cell, seed), 16 fresh rows" in text
    assert "missing: 7 trials, of one (seeds 12), two (seeds 12); about 21 CPU s (21 s)" in text


def test_the_table_and_the_verdict_are_computed(empty):
    state = State(empty.trials, rows_of(empty))
    assert table(state) == (
        "| cell | n | none | mixed | mixed_prior | guided | guided - mixed (95 % interval); Holm p "
        "| guided - mixed_prior (95 % interval); Holm p | mixed_prior - mixed (95 % interval) |\n"
        "| --- | --: | --: | --: | --: | --: | --: | --: | --: |\n"
        "| one | 3 | 20.0 ± 1.0 | 50.0 ± 1.0 | 55.0 ± 1.0 | 60.2 ± 1.2 | **+10.2 (+9.7 to +10.7); < 0.001** "
        "| **+5.2 (+4.7 to +5.7); < 0.001** | +5.0 |\n"
        "| two | 3 | 20.0 ± 1.0 | 50.0 ± 1.0 | 55.0 ± 1.0 | 60.2 ± 1.2 | **+10.2 (+9.7 to +10.7); < 0.001** "
        "| **+5.2 (+4.7 to +5.7); < 0.001** | +5.0 |"
    )
    assert sentence(state) == (
        "Guided beats both mixed and mixed_prior, with both paired 95 % intervals above 0, in 2 of 2 cells (one, two); "
        "after Holm's correction over all cells, in 2 (one, two). n = 3 seeds per cell."
    )
    assert "Intervals are not corrected for the number of cells. Bold: the interval excludes 0, and p after " in (
        whole(state)
    )
    values = "test accuracy in percent on 600 images: mean ± standard deviation over n seeds; 2 teachers. "
    assert f"{values}Measured on a machine;" in whole(state)


def test_guided_has_to_beat_the_controls_that_a_claim_names(tmp_path):
    controls = ["condensed_only", "mixed", "mixed_prior"]
    claim = stated(tmp_path, TINY, arms=[*TINY["arms"], "condensed_only"], controls=controls)
    state = State(trials_of(claim), [])
    rows = rows_of(state, accuracies=ACCURACIES | {"condensed_only": 0.65})
    state = State(state.trials, rows)
    assert "| guided - condensed_only (95 % interval); Holm p | guided - mixed (95 % interval)" in table(state)
    assert sentence(state).startswith(
        "Guided beats all of condensed_only, mixed and mixed_prior, with all paired 95 % intervals above 0, in 0 of 2 "
        "cells; after Holm's correction over all cells, in 0. Not shown in one (guided - condensed_only -5.3 to -4.3), "
    )


def test_students_of_segmentation_are_compared_by_their_mean_iou(tmp_path):
    claim = stated(tmp_path, TINY, data={"name": "scenes"})
    state = State(trials_of(claim), [])
    state = State(state.trials, rows_of(state, score="miou", dataset="scenes"))
    assert "| one | 3 | 20.0 ± 1.0 | 50.0 ± 1.0 |" in table(state)
    assert "Values are test mean IoU in percent on 600 images" in whole(state)
    choosing = State(trials_of(stated(tmp_path, HALVING, data={"name": "scenes"})), [])
    state = State(choosing.trials, scored(choosing, FIRST, "student/val_miou", dataset="scenes"))
    assert "| candidate | group | seeds | validation mean IoU | Frechet to real | diversity | dropped" in table(state)
    assert "| heavy | weight | 1 | 50.0 |" in table(state)
    for row in state.rows:
        for metric in ("frechet_real", "diversity"):
            del row.record.metrics[f"diagnosis/{metric}"]
    assert "| candidate | group | seeds | validation mean IoU | dropped after |" in table(state)
    rest = scored(choosing, {(name, 101): score for (name, _), score in FIRST.items()}, "student/val_miou")
    rest = [replace(row, record=replace(row.record, dataset="scenes")) for row in rest]
    state = State(choosing.trials, [*state.rows, *rest])
    assert "Chosen by mean validation IoU: weight: heavy (50.0 % over 2 seeds)" in sentence(state)


def test_the_image_metrics_of_each_arm_are_shown_with_their_spread(empty):
    rows = rows_of(empty, ["one"], [10, 11])
    for row in rows:
        # The arm none has no diagnosis here.
        by_arm = {"none": {}, "guided": {"diagnosis/frechet_real": 0.1 * row.record.seed, "diagnosis/diversity": 0.5}}
        metrics = by_arm.get(row.record.arm, {"diagnosis/frechet_real": 0.2})
        row.record.outcome.metrics.clear()
        row.record.outcome.metrics.update(metrics)
    assert images(State(empty.trials, rows)) == (
        "| cell | arm | Frechet to real | to condensed | diversity | coverage | teacher's confidence "
        "| KL to the student |\n"
        "| --- | --: | --: | --: | --: | --: | --: | --: |\n"
        "| one | mixed | 0.200 ± 0.000 | - | - | - | - | - |\n"
        "| one | mixed_prior | 0.200 ± 0.000 | - | - | - | - | - |\n"
        "| one | guided | 1.050 ± 0.071 | - | 0.500 ± 0.000 | - | - | - |"
    )
    assert images(empty) == NOTHING
    assert "1.050 ± 0.071" in render(
        "<!-- claims tiny images -->\n<!-- end claims tiny images -->", {"tiny": State(empty.trials, rows)}, "a file"
    )


def test_a_cell_where_guided_does_not_beat_a_control_is_named_with_its_interval(empty):
    rows = rows_of(empty, ["one"])
    for seed, accuracy in ((10, 0.9), (11, 0.1), (12, 0.6)):
        rows += rows_of(empty, ["two"], [seed])
        rows[-2] = made(empty, "two", "mixed_prior", seed, {"student/test_accuracy": accuracy})
    text = sentence(State(empty.trials, rows))
    assert (
        "in 1 of 2 cells (one); after Holm's correction over all cells, in 1 (one). "
        "Not shown in two (guided - mixed_prior -" in (text)
    )


def test_one_seed_alone_has_no_interval(empty):
    state = State(empty.trials, rows_of(empty, ["one"], [10]))
    text = sentence(state)
    assert (
        "0 of 2 cells; after Holm's correction over all cells, in 0. "
        "Not shown in one (guided - mixed +10.0 (no interval, n = 1)" in (text)
    )
    assert text.endswith(". Not measured yet: two. So far, n = 1 of 3 planned seeds.")
    assert "Intervals are" not in whole(state)


def test_the_sentence_names_the_number_of_seeds_of_each_cell_where_they_differ(empty):
    text = sentence(State(empty.trials, [*rows_of(empty, ["one"]), *rows_of(empty, ["two"], [10, 11])]))
    assert text.endswith(". So far, n = 3 in one, 2 in two, of 3 planned seeds.")


@pytest.mark.parametrize(
    ("names", "cell", "stands"),
    [
        (("one",), "**+3.2 (+0.3 to +6.1); 0.041**", "in 1 (one). n = 3 seeds per cell."),
        # One cell of four: the interval leaves out 0, but after the correction the difference is not significant.
        (
            ("one", "two", "three", "four"),
            "+3.2 (+0.3 to +6.1); 0.163",
            "in 0. Not measured yet: four, three, two. n = 3 seeds per cell.",
        ),
    ],
)
def test_cells_that_are_not_measured_yet_count_in_the_correction(tmp_path, names, cell, stands):
    state = State(trials_of(stated(tmp_path, TINY, cells={name: {} for name in names})), [])
    rows = []
    for seed, gain in ((10, 0.02), (11, 0.033), (12, 0.043)):
        means = {"none": 0.2, "mixed": 0.5, "mixed_prior": 0.5, "guided": 0.5 + gain}
        rows += [made(state, "one", arm, seed, {"student/test_accuracy": mean}) for arm, mean in means.items()]
    state = State(state.trials, rows)
    assert f"| {cell} | {cell} |" in table(state)
    assert sentence(state).endswith(
        f" cell{'s' * (len(names) > 1)} (one); after Holm's correction over all cells, {stands}"
    )


def test_a_block_is_rendered_exactly_and_a_second_rendering_changes_nothing(empty, tmp_path):
    path, states = tmp_path / "text.md", {"tiny": State(empty.trials, rows_of(empty))}
    path.write_text("# A\n<!-- claims tiny table -->\nold\n<!-- end claims tiny table -->\nB\n", encoding="utf-8")
    assert "-old\n" in differences(path, states)
    assert write(path, states)
    assert path.read_text(encoding="utf-8") == (
        f"# A\n<!-- claims tiny table -->\n{table(states['tiny'])}\n<!-- end claims tiny table -->\nB\n"
    )
    assert differences(path, states) == ""
    assert not write(path, states)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- claims other -->\n<!-- end claims other -->\n", "claim of a block is 'other'; accepted: tiny"),
        ("<!-- claims tiny picture -->\n<!-- end claims tiny picture -->\n", "view of the block of tiny is 'picture'"),
        ("<!-- claims tiny -->\n", "markers of claims is '1, 0 of them in pairs'"),
        ("<!-- claims tiny -->\n<!-- end claims tiny table -->\n", "markers of claims"),
        ("  <!-- claims tiny -->\n  <!-- end claims tiny -->\n", "markers of claims is '2, 0 of them in pairs'"),
        ("<!-- claims:tiny -->\n<!-- end claims:tiny -->\n", "markers of claims is '2, 0 of them in pairs'"),
        ("<!--claims tiny-->\n<!-- End Claim tiny -->\n", "markers of claims is '2, 0 of them in pairs'"),
        ("<!-- claims tiny -->\n<!-- end claims tiny --> as said\n", "markers of claims is '2, 0 of them in pairs'"),
    ],
)
def test_a_block_with_an_unknown_claim_or_view_or_a_bad_marker_is_refused(empty, text, message):
    with pytest.raises(InputError) as refused:
        render(text, {"tiny": empty}, "text.md")
    assert message in str(refused.value)


def test_readme_and_log_match_the_stored_rows():
    states = {c.name: read_state(c, EXPERIMENTS / "results") for c in read_claims(EXPERIMENTS / "claims")}
    for path in (README, EXPERIMENTS / "LOG.md"):
        assert differences(path, states) == "", "put in what `python experiments/claims.py --write` writes"


def test_the_sentence_says_that_all_candidates_failed(halving):
    def ended(names: list[str], seeds: list[int]) -> list[Row]:
        arms = {name: halving.claim.cells[name].arm for name in names}
        return [made(halving, name, arms[name], seed, {}, status="failed") for name in names for seed in seeds]

    heavy_and_light = ended(["light", "heavy"], [100, 101]) + ended(["middle"], [100])
    nothing = State(halving.trials, heavy_and_light + ended(["plain"], [100, 101]))
    assert sentence(nothing) == "All candidates that reached the last rung failed; nothing is chosen."
    plain = scored(halving, {("plain", 100): 0.1, ("plain", 101): 0.1})
    assert sentence(State(halving.trials, [*heavy_and_light, *plain])) == (
        "Chosen by mean validation accuracy: none: plain (10.0 % over 2 seeds); weight: none, because all failed."
    )


def scored(
    state: State, scores: dict[tuple[str, int], float], metric: str = "student/val_accuracy", **changes
) -> list[Row]:
    found = []
    for (name, seed), score in scores.items():
        arm = state.claim.cells[name].arm
        metrics = {metric: score, "diagnosis/frechet_real": 0.1, "diagnosis/diversity": 0.5}
        found.append(made(state, name, arm, seed, metrics, **changes))
    return found


@pytest.fixture
def halving(tmp_path) -> State:
    return State(trials_of(stated(tmp_path / "claims", HALVING)), [])


FIRST = {("light", 100): 0.3, ("heavy", 100): 0.5, ("middle", 100): 0.4, ("plain", 100): 0.1}


FOREIGN = {"name": "imported", "ipc": 1, "path": "set.pt"}


@pytest.mark.parametrize("change", [{"set_digest": "files B"}, {"data_hash": "data B"}], ids=str)
def test_seeds_with_different_files_or_data_are_never_pooled(tmp_path, change):
    state = State(trials_of(stated(tmp_path, TINY, cells={"one": {"condensation": FOREIGN}})), [])
    known = {"condensation": "imported", "set_digest": "files A"}
    other = rows_of(state, ["one"], [10], **(known | change))
    state = State(state.trials, [*other, *rows_of(state, ["one"], [11, 12], **known)])
    assert state.missing == []
    assert {row.record.seed for row in state.rows_of_cell("one")} == {11, 12}
    assert sentence(state).endswith(". So far, n = 2 of 3 planned seeds.")
    data, files = change.get("data_hash", "data"), change.get("set_digest", "files A")
    assert (
        f"Left out of one: seed 10, from data {data} and files of the condensed set {files}; the other seeds are from "
        "data data and files of the condensed set files A."
    ) in whole(state)
    write_rows(tmp_path / "tiny.parquet", state.rows)
    assert read_state(state.claim, tmp_path).rows_of_cell("one") == state.rows_of_cell("one")


def test_rows_with_unrecorded_files_are_pooled_with_those_of_one_set_and_named(tmp_path):
    state = State(trials_of(stated(tmp_path, TINY, cells={"one": {"condensation": FOREIGN}})), [])
    older = rows_of(state, ["one"], [10], condensation="imported")
    newer = rows_of(state, ["one"], [11, 12], condensation="imported", set_digest="files A")
    together = State(state.trials, [*older, *newer])
    assert len({row.record.seed for row in together.rows_of_cell("one")}) == 3
    assert "one: the files of the condensed set are not recorded for seed 10." in whole(together)
    # A row read again from the records, now with the digest of its files, replaces the older row.
    found = rows_of(state, ["one"], [10], condensation="imported", set_digest="files A")
    assert together.with_rows(found).rows_of_cell("one")[: len(found)] == found
    assert "is not stored" not in whole(together.with_rows(found))


def test_the_digest_of_a_set_is_empty_where_its_files_are_newer_than_the_trial(tmp_path):
    one, folder = tmp_path / "set.pt", tmp_path / "set"
    (folder / "0").mkdir(parents=True)
    for path in (one, folder / "0" / "a.png"):
        path.write_bytes(b"images")
        os.utime(path, (1000, 1000))
    for path in (one, folder):
        assert set_digest(path, 2000) == set_digest(path, 3000) != ""
        assert set_digest(path, 500) == ""
    before = set_digest(folder, 2000)
    (folder / "0" / "a.png").rename(folder / "0" / "b.png")
    assert set_digest(folder, 2000) != before
    assert set_digest(tmp_path / "none", 2000) == ""


def test_a_row_of_an_imported_set_records_the_digest_of_its_files(tmp_path):
    state = State(trials_of(stated(tmp_path, HALVING, condensation=FOREIGN)), [])
    (tmp_path / "set.pt").write_bytes(b"images")
    os.utime(tmp_path / "set.pt", (1000, 1000))
    left_behind(tmp_path, state, "heavy", 100, root=tmp_path, status="finished", metrics={"student/val_accuracy": 0.5})
    (row,) = rows_in(tmp_path, state.trials, "a machine")
    assert row.set_digest == set_digest(tmp_path / "set.pt", 2000) != ""
    assert row.record.config["condensation"]["path"] == "set.pt"


def test_candidates_are_not_ranked_over_seeds_with_different_files(halving):
    first = scored(halving, FIRST, set_digest="files A")
    second = {("heavy", 101): 0.2, ("middle", 101): 0.5, ("plain", 101): 0.1}
    for digest, missing in (("files A", 0), ("", 0), ("files B", 1)):
        state = State(halving.trials, [*first, *scored(halving, second, set_digest=digest)])
        assert len(state.missing) == missing


def test_halving_is_a_function_of_the_rows(halving):
    assert [(unit.seed, len(unit.members)) for unit in halving.units] == [(100, 4)]
    after = State(halving.trials, scored(halving, FIRST))
    # The worst candidate of its group is dropped, and none of a group that has no more candidates than are kept.
    assert after.ladder.dropped == {"light": 1}
    assert [(unit.seed, {cell for cell, _ in unit.members}) for unit in after.missing] == [
        (101, {"heavy", "middle", "plain"})
    ]
    second = {("heavy", 101): 0.2, ("middle", 101): 0.5, ("plain", 101): 0.1}
    ended = State(halving.trials, [*after.rows, *scored(halving, second)])
    assert ended.missing == []
    assert chosen(ended.claim, ended.ladder) == {"weight": "middle", "none": "plain"}
    assert climb(ended.trials, list(reversed(ended.fresh))) == climb(ended.trials, ended.fresh)
    assert sentence(ended) == (
        "Chosen by mean validation accuracy: weight: middle (45.0 % over 2 seeds); none: plain (10.0 % over 2 seeds)."
    )
    assert table(ended).splitlines()[2:] == [
        "| middle | weight | 2 | 45.0 ± 7.1 | 0.100 ± 0.000 | 0.500 ± 0.000 | **chosen** |",
        "| heavy | weight | 2 | 35.0 ± 21.2 | 0.100 ± 0.000 | 0.500 ± 0.000 |  |",
        "| light | weight | 1 | 30.0 | 0.100 | 0.500 | rung 1 |",
        "| plain | none | 2 | 10.0 ± 0.0 | 0.100 ± 0.000 | 0.500 ± 0.000 | **chosen** |",
    ]


def test_a_candidate_that_failed_is_dropped_and_counted_in_the_table(halving):
    rows = [row for row in scored(halving, FIRST) if row.cell != "heavy"]
    failed = made(halving, "heavy", "guided", 100, {}, status="failed")
    state = State(halving.trials, [*rows, failed])
    assert state.ladder.dropped == {"heavy": 1}
    assert "(1 failed)" in table(state)


DIVERGED = "round 1: loss term inversion/oh is not finite at step 3"


def left_behind(folder: Path, state: State, name: str, seed: int, root: Path | None = None, **outcome) -> None:
    """Write the record of a candidate's trial as a run writes it."""
    plan = state.trials.planned[name, state.claim.cells[name].arm, seed].plan
    config = located(replace(plan.config, precision="float32"), root)
    kinds = ("dataset", "teacher", "student", "condensation", "inversion", "guidance", "memory")
    fields = {"experiment": "tiny", "arm": "called otherwise", "ipc": 1, "seed": seed, "numbers": NUMBERS}
    hashes = {"config_hash": f"{name}{seed}", "config": to_tree(config)}
    write_record(folder, Record(**fields, **dict.fromkeys(kinds, "x"), **hashes, outcome=Outcome(**outcome)))


@pytest.mark.parametrize(
    "reason",
    [
        "out of memory: 8 attempts in a row without one more round; the last: the node was short of memory",
        "round 1: out of GPU memory: 2 GiB of 2 GiB were in use, and 1 GiB more were requested",
        "the worker died, 3 times in a row",
        "pixels of set.pt is not finite; accepted: finite values",
        "",
    ],
)
def test_a_trial_that_failed_because_of_its_machine_is_missing_and_not_the_worst_candidate(halving, tmp_path, reason):
    for name, score in (("light", 0.3), ("middle", 0.4), ("plain", 0.1)):
        metrics = {"student/val_accuracy": score}
        left_behind(tmp_path, halving, name, 100, status="finished", metrics=metrics)
    left_behind(tmp_path, halving, "heavy", 100, status="failed", reason=reason)
    state = halving.with_rows(rows_in(tmp_path, halving.trials, "a machine"))
    assert sorted(row.cell for row in state.rows) == ["light", "middle", "plain"]
    assert [unit.label for unit in state.missing] == ["rung 1"]
    # A row that an earlier version stored for such a trial is ignored.
    write_rows(tmp_path / "tiny.parquet", [made(halving, "heavy", "guided", 100, {}, status="failed")])
    assert read_state(halving.claim, tmp_path).rows == []
    left_behind(tmp_path, halving, "heavy", 100, status="finished", metrics={"student/val_accuracy": 0.9})
    again = state.with_rows(rows_in(tmp_path, halving.trials, "a machine"))
    assert again.ladder.dropped == {"light": 1}


def test_a_diverged_trial_counts_as_failed_unless_it_has_finished_too(halving, tmp_path):
    left_behind(tmp_path, halving, "heavy", 100, status="failed", reason=DIVERGED)
    (failed,) = rows_in(tmp_path, halving.trials, "a machine")
    assert failed.failed
    rest = [row for row in scored(halving, FIRST) if row.cell != "heavy"]
    failed = made(halving, "heavy", "guided", 100, {}, status="failed")
    (finished,) = scored(halving, {("heavy", 100): 0.9})
    for order in ([failed, finished], [finished, failed]):
        state = State(halving.trials, order[:1]).with_rows(order[1:])
        assert state.with_rows(rest).ladder.mean("heavy") == 0.9
        assert list(state.rows) == [finished]


def test_candidates_of_a_rung_are_compared_on_one_machine(halving):
    rows = scored(halving, FIRST)
    foreign = scored(halving, {("plain", 100): 0.1}, machine="another")
    state = State(halving.trials, [*rows[:3], *foreign])
    assert state.ladder.rung == 1
    assert len(state.missing) == 1


def test_a_choosing_claim_stores_no_metrics_of_the_test_images():
    for score in ("accuracy", "miou"):
        test, val = f"student/test_{score}", f"student/val_{score}"
        metrics = {test: 1.0, val: 2.0, "student/forgetting": 3.0, "student/test_iou/car": 5.0, "kd/loss": 4.0}
        record = made_record(metrics)
        assert metrics_of(record, choosing=True) == {val: 2.0}
        assert metrics_of(record, choosing=False) == {name: metrics[name] for name in metrics if name != "kd/loss"}


def made_record(metrics: dict[str, float]) -> Record:
    kinds = ("experiment", "arm", "dataset", "teacher", "student", "condensation", "inversion", "guidance", "memory")
    outcome = Outcome(status="finished", metrics=metrics)
    return Record(**dict.fromkeys(kinds, "x"), ipc=1, seed=0, config={}, config_hash="x", outcome=outcome)


script = partial(programs.script, EXPERIMENTS / "claims.py")


@pytest.mark.parametrize("mode", [{}, {"lists": True}, {"checks": True}, {"writes": True}], ids=str)
def test_results_and_claims_that_are_no_folders_are_refused_in_every_mode(tmp_path, empty, mode):
    (tmp_path / "file").write_text("", encoding="utf-8")
    (tmp_path / "bare").mkdir()
    valid = {"--claims": tmp_path / "claims", "--results": tmp_path / "results", "--out": tmp_path / "out"}
    cases = {
        "--results": [(tmp_path / "file", "a folder; "), (tmp_path / "file" / "rows", "a folder; ")],
        "--claims": [(tmp_path / path, "a folder of claims") for path in ("none", "bare", "file")],
    }
    for flag, invalid in cases.items():
        for path, accepted in invalid:
            args = Args(**{name[2:]: value for name, value in (valid | {flag: path}).items()}, **mode)
            with pytest.raises(InputError) as refused:
                main(args)
            assert f"{flag} is {str(path)!r}; accepted: {accepted}" in str(refused.value)
    assert not (tmp_path / "results").exists()
    assert not (tmp_path / "out").exists()


def test_check_mode_prints_a_diff_and_exits_with_1(tmp_path, empty):
    text = tmp_path / "text.md"
    text.write_text("<!-- claims tiny -->\nold\n<!-- end claims tiny -->\n", encoding="utf-8")
    folders = ["--claims", str(tmp_path / "claims"), "--results", str(tmp_path / "results"), "--texts", str(text)]
    done = script("--check", *folders)
    assert (done.returncode, "-old\n" in done.stdout) == (1, True)
    assert script("--write", *folders).returncode == 0
    assert NOTHING in text.read_text(encoding="utf-8")
    assert script("--check", *folders).returncode == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["wibble"], "error: claim is 'wibble'; accepted: tiny\n"),
        (["--share", "sweep"], "error: --share of a claim is 'sweep'; accepted: trial\n"),
        (["--fresh"], "error: --fresh of a claim is True"),
        (["--address", "10.0.0.1:6379"], "error: --address or RAY_ADDRESS of a claim is '10.0.0.1:6379'"),
        (["--only-cells", "three"], "error: --only-cells is 'three'; accepted: some of one, two\n"),
        (["--only-seeds", "7"], "error: --only-seeds is '7'; accepted: some of 10, 11, 12\n"),
        (["--time-budget", "soon"], "error: --time-budget is 'soon'"),
        (
            ["--list", "--check"],
            "error: commands is '--list --check'; accepted: one of --list, --write and --check",
        ),
    ],
    ids=lambda part: part[0] if isinstance(part, list) else "",
)
def test_flags_that_a_claim_cannot_use_are_refused_before_anything_is_written(tmp_path, empty, flags, message):
    folders = [
        "--claims",
        str(tmp_path / "claims"),
        "--results",
        str(tmp_path / "results"),
        "--out",
        str(tmp_path / "out"),
    ]
    done = script(*flags, *folders)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(message)
    assert not (tmp_path / "results").exists()
    assert not (tmp_path / "out").exists()
