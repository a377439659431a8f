import json

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FixedTrial
from places import SPACES

from condkd_ray.core.config import merge, to_tree
from condkd_ray.core.method import InputError
from condkd_ray.methods.guidance import Discriminator, Mmd, NoGuidance
from condkd_ray.methods.inversion import Dafl, DeepInversion, Fast
from condkd_ray.study.space import Open, close, conditional, corners, default, leaves, params_of, parse, read
from condkd_ray.trial.config import TrialConfig, from_tree
from condkd_ray.trial.hardware import CPU, settled

FILES = sorted(SPACES.glob("*.yaml"))
METHODS = """
condensation: {name: random_real, ipc: 5}
inversion: !choice
  - {name: deep_inversion, bn_weight: !log_uniform [1e-1, 10], steps: !int [1, 4]}
  - {name: fast, bn_momentum: !uniform [0, 0.9]}
  - dafl
guidance: !choice [none, {name: discriminator, weight: !uniform [0.1, 2]}]
distiller: {condensed_share: !choice [0.25, 0.5], augment: !choice [true, false]}
"""


def study() -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))


def test_each_tag_opens_its_leaf():
    tree = parse(METHODS)
    fixed = {
        "inversion/name": "deep_inversion",
        "inversion/bn_weight": 0.5,
        "inversion/steps": 4,
        "guidance/name": "discriminator",
        "guidance/weight": 2.0,
        "distiller/condensed_share": 0.5,
        "distiller/augment": False,
    }
    trial = FixedTrial(fixed)
    config = close(tree, trial)
    assert config.inversion == DeepInversion(bn_weight=0.5, steps=4)
    assert config.guidance == Discriminator(weight=2.0)
    assert (config.distiller.condensed_share, config.distiller.augment) == (0.5, False)
    assert trial.params == fixed
    assert trial.distributions == {
        "inversion/name": CategoricalDistribution(["deep_inversion", "fast", "dafl"]),
        "inversion/bn_weight": FloatDistribution(0.1, 10, log=True),
        "inversion/steps": IntDistribution(1, 4),
        "guidance/name": CategoricalDistribution(["none", "discriminator"]),
        "guidance/weight": FloatDistribution(0.1, 2),
        "distiller/condensed_share": CategoricalDistribution([0.25, 0.5]),
        "distiller/augment": CategoricalDistribution([True, False]),
    }


def test_only_the_leaves_of_the_chosen_method_are_opened():
    choices = {"distiller/condensed_share": 0.25, "distiller/augment": True, "guidance/name": "none"}
    trial = FixedTrial({"inversion/name": "fast", "inversion/bn_momentum": 0.5} | choices)
    config = close(parse(METHODS), trial)
    assert config.inversion == Fast(bn_momentum=0.5)
    assert config.guidance == NoGuidance()
    assert not {"inversion/bn_weight", "guidance/weight"} & set(trial.params)
    assert close(parse(METHODS), FixedTrial({"inversion/name": "dafl"} | choices)).inversion == Dafl()


def test_proposed_values_are_within_the_bounds_and_give_the_same_config_again():
    tree, found = parse(METHODS), study()
    for _ in range(40):
        trial = found.ask()
        config = close(tree, trial)
        assert close(tree, FixedTrial(trial.params)) == config
        if isinstance(config.inversion, DeepInversion):
            assert 0.1 <= config.inversion.bn_weight <= 10
        found.tell(trial, 0.0)
    names = {trial.params["inversion/name"] for trial in found.trials}
    assert names == {"deep_inversion", "fast", "dafl"}
    steps = {trial.params["inversion/steps"] for trial in found.trials if "inversion/steps" in trial.params}
    assert steps == {1, 2, 3, 4}  # both ends included


def stored(config: TrialConfig) -> TrialConfig:
    """Return the config as a record stores it."""
    return from_tree(json.loads(json.dumps(to_tree(settled(config, CPU)))))


def opened(tree: dict, config: TrialConfig) -> dict:
    return params_of(tree, config, lambda one: settled(one, CPU))


@pytest.mark.parametrize("path", [*FILES, None], ids=lambda path: path.stem if path else "methods")
def test_the_values_of_open_leaves_are_recovered_from_the_config(path):
    tree = parse(METHODS) if path is None else read(path)
    for seed in range(10):
        trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed)).ask()
        config = close(tree, trial)
        assert opened(tree, stored(config)) == trial.params


@pytest.mark.parametrize(
    ("space", "params"),
    [
        ("precision: !choice [null, bfloat16]", {"precision": None}),
        ("precision: !choice [null, bfloat16]", {"precision": "bfloat16"}),
        ("data: !choice [digits, mnist]", {"data": "mnist"}),
        (
            "data: !choice [digits, {name: mnist, val_fraction: !uniform [0, 0.5]}]",
            {"data/name": "mnist", "data/val_fraction": 0.25},
        ),
        ("distiller: {lr: !choice [1, 0.5, 1e-3]}", {"distiller/lr": 1}),
        ("distiller: {lr: !choice [1, 0.5, 1e-3]}", {"distiller/lr": "1e-3"}),
    ],
)
def test_recovered_values_have_the_form_of_the_space(space, params):
    tree = parse(space)
    assert opened(tree, stored(close(tree, FixedTrial(params)))) == params


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"inversion": {"name": "nayer"}}, r"^inversion is .*; accepted: deep_inversion, fast, dafl$"),
        ({"distiller": {"condensed_share": 0.75}}, "^distiller/condensed_share is 0.75; accepted: 0.25, 0.5$"),
        ({"rounds": 99}, "^config is 'different in its fixed fields'; accepted: a config of this space$"),
    ],
)
def test_a_config_of_another_space_is_refused(other, message):
    tree = parse(METHODS)
    config = close(tree, study().ask())
    with pytest.raises(InputError, match=message):
        opened(tree, from_tree(merge(to_tree(config), other)))


def test_a_number_in_a_list_may_be_open():
    tree = parse("data: {mean: [!uniform [0, 1]], std: [0.5]}")
    config = close(tree, FixedTrial({"data/mean/0": 0.25}))
    assert config.data.mean == (0.25,)


def test_a_space_without_open_leaves_is_a_config():
    assert close(parse("rounds: 3"), FixedTrial({})) == from_tree({"rounds": 3})


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_space_file_of_the_project_gives_valid_configs(path):
    tree, found = read(path), study()
    for _ in range(20):
        close(tree, found.ask())


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        ("!uniform [1, 1]", "low < high"),
        ("!uniform [2, 1]", "low < high"),
        ("!int [4, 3]", "low < high"),
        ("!int [1, 2.5]", "two whole numbers"),
        ("!log_uniform [0, 1]", "both > 0"),
        ("!log_uniform [-1, 1]", "both > 0"),
        ("!uniform [0, .inf]", "two numbers"),
        ("!uniform [.nan, 1]", "two numbers"),
        ("!uniform [1]", "two numbers"),
        ("!uniform [1, 2, 3]", "two numbers"),
        ("!uniform [a, b]", "two numbers"),
        ("!uniform 3", "accepted: a list"),
        ("!choice []", "at least one"),
        ("!choice 3", "accepted: a list"),
        ("!choice [{steps: 3}, {name: fast}]", "name"),
        ("!choice [fast, {name: fast, steps: 3}]", "a unique name for each"),
    ],
)
def test_an_invalid_leaf_is_refused_with_its_value(leaf, message):
    with pytest.raises(InputError, match=message) as caught:
        parse(f"inversion: {leaf}")
    assert leaf.split()[0] in str(caught.value)


def test_a_key_that_names_no_field_is_refused():
    with pytest.raises(InputError, match=r"search space: inversion: 'stepz' names no field \(did you mean steps\?\)"):
        close(parse("inversion: {stepz: !int [1, 2]}"), study().ask())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"rounds: [1", "not YAML"),
        (b"rounds: !between [1, 2]", "not YAML"),
        (b"a: !!python/object/apply:os.getcwd []", "not YAML"),
        (b"- 1", "is a list; accepted: a mapping"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_a_file_without_a_space_is_refused(tmp_path, content, message):
    (tmp_path / "space.yaml").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read(tmp_path / "space.yaml")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"none.yaml', which cannot be read"):
        read(tmp_path / "none.yaml")


CHOICES = """
data: {name: digits}
inversion: {name: fast, width: 64, steps: !int [2, 10], bn_weight: !log_uniform [0.5, 2]}
condensation: {name: random_real, ipc: 1}
guidance: !choice
  - {name: discriminator, weight: !log_uniform [1, 10], augment: !choice [host, dsa]}
  - {name: mmd, weight: !log_uniform [5, 100]}
"""


def test_leaves_include_those_that_a_choice_opens():
    found = leaves(parse(CHOICES))
    assert list(found) == [
        "inversion/steps", "inversion/bn_weight", "guidance/name", "guidance/weight", "guidance/augment"
    ]  # fmt: skip
    assert found["guidance/weight"] == Open("log_uniform", (1.0, 100.0))
    assert found["guidance/name"].examples == ["discriminator", "mmd"]
    assert conditional(parse(CHOICES))
    assert not conditional(parse("{data: {name: digits}, rounds: !int [1, 3], memory: !choice [latest, growing]}"))


def test_a_leaf_with_two_kinds_of_values_is_refused():
    text = CHOICES.replace("!log_uniform [5, 100]", "!choice [5, 100]")
    with pytest.raises(InputError, match=r"open leaf guidance/weight of two methods is .*; accepted: the same choices"):
        leaves(parse(text))


def test_the_default_has_default_values_and_the_first_method_of_a_choice():
    config = default(parse(CHOICES))
    assert config.inversion == Fast(width=64)
    assert config.guidance == Discriminator()


def test_corners_have_both_ends_of_the_ranges_for_each_choice():
    found = corners(parse(CHOICES))
    assert list(found) == [
        "default", "lowest, choice 1", "highest, choice 1", "lowest, choice 2", "highest, choice 2"
    ]  # fmt: skip
    assert [config.inversion.steps for config in found.values()][1:] == [2, 10, 2, 10]
    assert found["highest, choice 1"].guidance == Discriminator(weight=10.0, augment="host")
    assert found["lowest, choice 2"].guidance == Mmd(weight=5.0)
    assert list(corners(parse("{data: {name: digits}, rounds: !int [1, 3]}"))) == ["default", "lowest", "highest"]
