"""The published systems: complete recipes with the source of each line, which can be scaled down in proportion."""

import re
from dataclasses import fields, replace
from math import sqrt
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy import make_prepared, toy_config

from condkd_ray.commands.experiment import Flags
from condkd_ray.core.config import read_tree
from condkd_ray.core.method import InputError
from condkd_ray.methods.memory import Growing
from condkd_ray.runs import presets
from condkd_ray.runs.arms import Arm, arm
from condkd_ray.runs.presets import FOLDER, LEAST_BATCH, NAMES, PARTS, equal_rounds, published, scaled, with_rounds
from condkd_ray.trial.loop import start

LEAF = re.compile(r"  (?P<field>\w+): .*")


def test_there_is_one_file_for_each_system_and_no_other_file():
    assert sorted(path.stem for path in FOLDER.iterdir()) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_complete_and_names_the_source_of_each_line(name):
    recipe, text = published(name), presets.path_of(name).read_text()
    assert (recipe.data.name, recipe.teacher.network.name, recipe.student.name) == ("cifar10", "resnet34", "resnet18")
    sources = set(re.findall(r"\[(\w)\]", "".join(line for line in text.splitlines() if line.startswith("#"))))
    stated = [line for line in text.splitlines() if LEAF.fullmatch(line) and "name:" not in line.split("#")[0]]
    assert len(stated) > 15
    for line in stated:
        named = set(re.findall(r"\[(\w)\]", line.partition("#")[2]))
        assert named, f"{name}: no source in {line!r}"
        assert named <= sources, f"{name}: {line!r} names a source that the head does not explain"
    tree = read_tree(presets.path_of(name))
    left = {f.name for f in fields(recipe.inversion)} - tree["inversion"].keys()
    # A left-out field belongs to other paths through the code, or the file says that the config cannot express it.
    assert left <= {"name", "reptile_scale", "temperature", "js_reduction", "first_bn_factor", "l2_weight", "loops"}
    required = {"steps", "batch", "lr", "lr_schedule", "warm_up", "augment", "weight_decay", "loss"}
    assert required <= tree["distiller"].keys()
    assert "rounds" in tree


def test_published_budgets_are_those_of_the_released_scripts():
    fast, nayer, cmi, dafl = (published(name) for name in ("fast", "nayer", "cmi", "dafl"))
    assert (fast.total_rounds, fast.inversion.steps, fast.inversion.batch, fast.inversion.resets) == (
        220,
        10,
        256,
        (140,),
    )
    student = fast.distiller
    assert (student.steps, student.batch, student.lr, student.last_lr, student.nesterov) == (400, 256, 0.2, 2e-4, False)
    assert (nayer.inversion.steps, nayer.inversion.life, nayer.inversion.images_per_round) == (30, 10, 800)
    # 20 epochs of 10 loops of 400 images without the student, then 300 epochs of 2 loops with it.
    assert nayer.total_rounds * nayer.inversion.images_per_round == 20 * 10 * 400 + 300 * 2 * 400
    assert (cmi.inversion.steps, cmi.inversion.layers) == (200, "stages")
    assert published("deep_inversion").inversion.steps == 2000
    assert dafl.rounds * dafl.distiller.steps == 2000 * 120
    assert [epoch * 12 for epoch in (800, 1600)] == list(dafl.distiller.milestones)
    pre = published("pre_dfkd")
    assert (pre.rounds, pre.distiller.steps, pre.inversion.steps, pre.distiller.augment) == (400 * 36, 10, 1, False)
    assert pre.distiller.batch - round(pre.memory.share * pre.distiller.batch) == 1024
    assert published("zskt").distiller.optimizer == "adam"
    assert not any(published(name).distiller.augment for name in ("dafl", "dfad", "dfq", "zskt", "pre_dfkd", "mb_dfkd"))


@pytest.mark.parametrize("name", NAMES)
def test_scale_1_changes_nothing_and_smaller_scales_keep_the_proportions(name):
    recipe = published(name)
    assert scaled(recipe, 1.0) == recipe
    for scale in (0.3, 0.05, 0.003):
        small = scaled(recipe, scale)
        parts = [(small.inversion, recipe.inversion), (small.distiller, recipe.distiller)]
        total = [(a.steps * small.rounds, b.steps * recipe.rounds) for a, b in parts]
        fewest = min(part.steps for part, _ in parts)
        for (less, whole), (part, _) in zip(total, parts, strict=True):
            # Rounds and steps are whole numbers; the part with the fewest steps has no rounding error of its own.
            slack = 0.51 / (small.rounds - 0.5) + (0.51 / part.steps if part.steps > fewest else 0)
            assert less / whole == pytest.approx(scale, rel=slack)
        for a, b in parts:
            assert a.batch == max(round(b.batch * sqrt(scale)), min(b.batch, LEAST_BATCH))
        if recipe.inversion.fresh_each_round:
            # Each image of the student, except recalled ones, is still a new image.
            shares = [c.inversion.images_per_round / (c.distiller.steps * c.distiller.batch) for c in (small, recipe)]
            assert shares[0] == pytest.approx(shares[1], rel=0.01)


def test_settings_counted_in_rounds_scale_with_the_rounds():
    fast, dafl, bank = (published(name) for name in ("fast", "dafl", "mb_dfkd"))
    tenth = with_rounds(fast, 20)
    assert (tenth.rounds, tenth.inversion.warm_up, tenth.inversion.resets, tenth.distiller.lr_epoch) == (
        20,
        2,
        (14,),
        1,
    )
    assert with_rounds(dafl, 240).distiller.milestones == (96, 192)
    assert with_rounds(dafl, 240).evaluate_every == 3
    assert with_rounds(dafl, 12000).evaluate_every == 120
    assert with_rounds(fast, 20).evaluate_every == 1
    assert with_rounds(bank, 1440).memory.period == 18
    # Two equal milestones become one, and a milestone at the end is dropped.
    assert with_rounds(dafl, 3).distiller.milestones == (1, 2)
    assert with_rounds(dafl, 2).distiller.milestones == (1,)
    last = with_rounds(dafl, 1).distiller
    assert (last.milestones, last.lr_schedule) == ((), "constant")


@given(rounds=st.integers(1, 400), name=st.sampled_from(NAMES))
def test_any_number_of_rounds_gives_a_valid_config(rounds, name):
    config = with_rounds(published(name), rounds)
    assert config.rounds == rounds
    assert with_rounds(published(name), published(name).rounds) == published(name)
    assert all(1 <= reset <= config.total_rounds for reset in getattr(config.inversion, "resets", ()))


@pytest.mark.parametrize("scale", [0.0, -0.1, 1.5])
def test_a_scale_outside_its_range_is_refused(scale):
    with pytest.raises(InputError, match=re.escape(f"scale is {scale}; accepted: 0 < scale <= 1")):
        scaled(published("fast"), scale)


def test_a_scale_that_leaves_no_round_is_refused_with_the_smallest_accepted_scale():
    with pytest.raises(InputError, match=r"scale is 1e-05; accepted: above 0.00025, at which no round of 200 is left"):
        scaled(published("fast"), 1e-5)
    assert scaled(published("fast"), 0.00026).rounds == 1


def test_a_scaled_memory_keeps_its_proportion_to_the_student():
    bank, small = published("mb_dfkd"), scaled(published("mb_dfkd"), 0.01)
    assert bank.memory.entry_size / bank.distiller.batch == pytest.approx(1 / 9)
    assert small.memory.entry_size / small.distiller.batch == pytest.approx(1 / 9, abs=0.01)
    vae, less = published("pre_dfkd"), scaled(published("pre_dfkd"), 0.01)
    assert less.memory.batch / less.inversion.batch == pytest.approx(vae.memory.batch / vae.inversion.batch, abs=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_at_any_scale_a_system_is_a_valid_config_with_about_100_measured_rounds(name):
    for scale in (1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 0.9):
        steps = [part.steps for part in (published(name).inversion, published(name).distiller)]
        if scale > 1 / (published(name).rounds * min(steps)):
            config = scaled(published(name), scale)
            measured = sum(config.measures(number) for number in range(config.total_rounds))
            assert measured <= 101 or config.rounds == published(name).rounds


@pytest.mark.parametrize("name_of_arm", get_args(Arm))
@pytest.mark.parametrize("name", NAMES)
def test_every_arm_accepts_every_system(name, name_of_arm):
    config = arm(Flags(host=name, scale=0.003).base(), name_of_arm, 10, 0).config
    assert config.distiller.steps == scaled(published(name), 0.003).distiller.steps


@pytest.mark.parametrize("name", NAMES)
def test_a_trial_of_a_scaled_recipe_starts(name):
    recipe, toy = scaled(published(name), 0.003), toy_config(seed=3)
    names = {field.name for field in fields(recipe.inversion)}
    sizes = {"width": 8, "latent": 8, "bank": 40, "negatives": 8}
    inversion = replace(recipe.inversion, **{what: size for what, size in sizes.items() if what in names})
    memory = Growing() if name == "pre_dfkd" else recipe.memory
    parts = {part: getattr(recipe, part) for part in PARTS} | {"inversion": inversion, "memory": memory}
    assert start(replace(toy, **parts), make_prepared()).round == 0


@pytest.mark.parametrize("name", NAMES)
def test_the_flag_host_sets_every_part_of_the_system(name):
    base, recipe = Flags(host=name, scale=0.003, dataset="cifar10").base(), scaled(published(name), 0.003)
    for part in ("targets", "weighing", "inversion", "memory", "rounds", "evaluate_every"):
        assert getattr(base, part) == getattr(recipe, part), part
    assert replace(base.distiller, condensed_share=0.0) == recipe.distiller
    assert base.distiller.condensed_share == 0.5
    assert base.guidance.name == "discriminator"


def test_rounds_may_replace_a_scale():
    base = Flags(host="fast", rounds=20).base()
    assert (base.rounds, base.inversion.warm_up, base.inversion.resets, base.distiller.steps) == (20, 2, (14,), 400)
    assert Flags().base().rounds == 12
    assert Flags(rounds=7).base().rounds == 7


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"host": "slow"}, "published system is 'slow'; accepted: deep_inversion, dafl"),
        (
            {"host": "fast", "inversion": "cmi"},
            "--inversion with --host is 'cmi'; accepted: one of them: --host fast",
        ),
        ({"host": "fast", "scale": 0.1, "rounds": 3}, "--rounds with --scale is 3; accepted: one of them"),
        ({"scale": 0.1}, "--scale without --host is 0.1; accepted: a published system to scale, --host NAME"),
        ({"host": "fast", "scale": 1e-9}, "scale is 1e-09; accepted: above 0.00025"),
        ({"host": "fast", "rounds": 0}, "rounds is 0; accepted: an integer >= 1"),
        ({"rounds": 0}, "rounds is 0; accepted: an integer >= 1"),
    ],
)
def test_flags_that_contradict_a_host_are_refused(flags, message):
    with pytest.raises(InputError, match=re.escape(message)):
        Flags(**flags).base()


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("inversion: {name: cmi}", "inversion is 'cmi'; accepted: fast, as of --host fast"),
        ("memory: latest", "memory is 'latest'; accepted: growing"),
        ("rounds: 5", "rounds with --host fast is 5; accepted: the flag --rounds"),
        ("distiller: {loss: l1}", "distiller: loss is 'l1'; accepted: hinton"),
        ("weighing: {name: modulating}", "weighing is 'modulating'; accepted: equal"),
    ],
)
def test_a_config_that_changes_a_part_of_the_host_is_refused(tmp_path, text, what):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=re.escape(f"{path}: {what}")):
        Flags(host="fast", config=path).base()


def test_a_config_that_is_no_mapping_is_refused_with_a_message(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("distiller: l1")
    with pytest.raises(InputError, match="distiller is 'l1'"):
        Flags(host="fast", config=path).base()


@pytest.mark.parametrize(
    ("host", "text"),
    [("fast", "inversion: fast"), ("mb_dfkd", "memory: bank"), ("dafl", "distiller: {loss: hinton}")],
)
def test_a_config_that_names_the_part_of_the_host_changes_nothing(tmp_path, host, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    assert Flags(host=host, scale=0.003, config=path).base() == Flags(host=host, scale=0.003).base()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "rounds in .* is None; accepted: a number of rounds, 1 or more, for each system"),
        ("rounds: {fast: x}", "rounds in .* is {'fast': 'x'}"),
        ("rounds: {fast: 6.5}", "rounds in .* is {'fast': 6.5}"),
        ("rounds: {cmi: 3}", "a system whose seconds are not in .* is 'fast'; accepted: cmi"),
        ("scale: 0.1", "--equal seconds by .* is .*'scale': 0.5"),
    ],
)
def test_an_invalid_file_of_rounds_is_refused(tmp_path, text, message):
    path = tmp_path / "rounds.yaml"
    path.write_text(text if "scale" in text else f"dataset: digits\nscale: 0.5\n{text}")
    with pytest.raises(InputError, match=message):
        equal_rounds(path, Flags(scale=0.5), {}, "fast")


def test_a_config_may_change_the_numbers_of_a_host(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("inversion: {oh_weight: 30}\ndistiller: {loss: {temperature: 4}}")
    base = Flags(host="fast", scale=0.003, dataset="cifar10", config=path).base()
    assert (base.inversion.oh_weight, base.distiller.loss.temperature) == (30, 4)
    assert base.inversion.bn_weight == published("fast").inversion.bn_weight


@pytest.mark.parametrize(("dataset", "shift"), [("digits", 0.0), ("cifar10", 0.0625)])
def test_images_of_8x8_are_recovered_without_jitter(dataset, shift):
    assert Flags(condensation="squeeze_recover", dataset=dataset).base().condensation.shift == shift
