"""The scripts in `experiments/`: their plans, their size, and that they run."""

import importlib.util
import sys
from collections import Counter
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import get_args, get_type_hints

import programs
import pytest
import yaml
from places import EXPERIMENTS

from condkd_ray.commands.experiment import Flags
from condkd_ray.core.method import InputError
from condkd_ray.core.records import read_manifest, read_records
from condkd_ray.methods.condensation import AllReal, AnyCondensation, Imported
from condkd_ray.methods.guidance import NoGuidance
from condkd_ray.methods.guidance.guidance import Augmentation
from condkd_ray.methods.inversion import NoInversion
from condkd_ray.methods.targets import Balanced
from condkd_ray.runs.arms import PRIOR, Prior
from condkd_ray.runs.presets import NAMES as SYSTEMS

SCRIPTS = sorted(path for path in EXPERIMENTS.glob("*.py") if not path.name.startswith("benchmark"))
NAMES = [path.stem for path in SCRIPTS if "def plans(" in path.read_text()]
CHEAPER = {"validate_proxy": {(12, 5, 128)}}
"""Rounds, student steps a round and batch of scripts whose question is also about poor trials."""
PRIOR_OF_GUIDED = {"oh_weight": PRIOR.weight, "oh_temperature": PRIOR.temperature}
TINY = {
    "inversion": {"steps": 1, "batch": 128, "width": 8, "latent": 16},
    "distiller": {"steps": 2, "batch": 32},
    "teacher": {"network": {"name": "resnet", "depth": 8, "width": 4}},
}


def script(name):
    spec = importlib.util.spec_from_file_location(name, EXPERIMENTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def planned(name, **flags):
    module = script(name)
    return list(module.plans(module.Args(**flags)))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_is_one_question_on_one_screen(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 60
    assert lines[0].startswith('"""')
    assert "?" in path.read_text().split("\n\n")[0]


@pytest.mark.parametrize("name", NAMES)
def test_defaults_stay_below_ten_minutes_on_two_cores(name):
    """A default trial on digits takes about 10 CPU seconds, so at most 100 trials are allowed."""
    plans = planned(name)
    assert 10 <= len(plans) <= 100
    twice = [place for place, count in Counter((p.arm, p.ipc, p.seed) for p in plans).items() if count > 1]
    assert not twice
    assert len({(plan.config, plan.scope) for plan in plans}) == len(plans)
    work = [(plan.config.rounds, plan.config.distiller.steps, plan.config.distiller.batch) for plan in plans]
    if name == "compare_methods":
        assert sum(map(prod, work)) <= 100 * prod((12, 20, 128))
    elif name == "segmentation":
        # About 20 CPU seconds each.
        assert len(plans) < 30
        assert set(work) == {(20, 20, 16)}
    else:
        assert set(work) == {(12, 20, 128)} | CHEAPER.get(name, set())


def test_lists_in_scripts_name_every_condenser_and_augmentation():
    condensers = [kind.name for kind in get_args(AnyCondensation) if kind not in (AllReal, Imported)]
    assert tuple(condensers) == script("ablate_condensation").NAMES
    augments = get_type_hints(script("ablate_guidance").Args)["augments"]
    assert get_args(augments) == (Augmentation, ...)


def test_guidance_arms_name_their_differences_and_each_share_has_its_controls():
    plans = planned("ablate_guidance", forms=("mmd", "moments"), layers=("penultimate", "stages.1"), shares=(0.5, 0.25),
                    weights=(1.0,), seeds=(0,))  # fmt: skip
    assert [plan.arm for plan in plans] == [
        *("none", "mixed", "mixed_prior", "mmd penultimate share 0.5", "mmd stages.1 share 0.5"),
        *("moments penultimate share 0.5", "moments stages.1 share 0.5"),
        *("mixed share 0.25", "mixed_prior share 0.25", "mmd penultimate share 0.25", "mmd stages.1 share 0.25"),
        *("moments penultimate share 0.25", "moments stages.1 share 0.25"),
    ]
    assert plans[4].config.guidance.layers == ("stages.1",)
    assert {plan.config.distiller.condensed_share for plan in plans[7:]} == {0.25}
    # Every form has the class prior of its control.
    for share in (plans[2:7], plans[8:]):
        assert {plan.config.inversion for plan in share} == {replace(plans[1].config.inversion, **PRIOR_OF_GUIDED)}


@pytest.mark.parametrize("name", ["ablate_guidance", "few_shot", "compare_methods", "ablate_memory"])
def test_every_script_gives_guided_the_same_prior_and_has_no_control_without_a_prior(name):
    flags = {"seeds": (0,), "ipcs": (2,)} | ({} if name in ("ablate_guidance", "few_shot") else {"condensed": True})
    # Soft targets have their own temperature, so a temperature of the prior is refused.
    if name == "compare_methods":
        flags |= {"methods": tuple(one for one in SYSTEMS if one != "soft_target"), "equal": ("proportion",)}
    own, given = {}, Prior(3.0, 5.0)
    for weight in (0.0, given.weight):
        plans = planned(name, prior_weight=weight, prior_temperature=given.temperature, **flags)
        assert any(plan.arm.startswith("mixed_prior") for plan in plans) == (weight > 0 and name != "ablate_memory")
        guided = {p.arm: p.config.inversion for p in plans if not isinstance(p.config.guidance, NoGuidance)}
        assert guided
        own = own or guided
        changes = {"oh_weight": 3.0, "oh_temperature": 5.0} if weight else {}
        assert guided == {arm: replace(inversion, **changes) for arm, inversion in own.items()}


@pytest.mark.parametrize("name", ["ablate_ipc", "ablate_condensation"])
def test_without_a_prior_the_control_is_left_out_and_refused_if_named(name):
    flags = {"seeds": (0,), "ipcs": (2,)} | ({"condensers": ()} if name == "ablate_condensation" else {})
    usual = [plan.arm for plan in planned(name, **flags)]
    without = [plan.arm for plan in planned(name, prior_weight=0.0, **flags)]
    assert without == [arm for arm in usual if not arm.startswith("mixed_prior")] != usual
    with pytest.raises(InputError, match=r"prior of the arm mixed_prior .* is 'weight 0, temperature 4'"):
        planned(name, prior_weight=0.0, arms=("mixed", "mixed_prior"), **flags)


def test_the_control_of_a_system_with_soft_targets_has_the_temperature_of_the_targets():
    flags = {"methods": ("soft_target",), "condensed": True, "seeds": (0,), "equal": ("proportion",)}
    plans = {plan.arm.split()[0]: plan.config.inversion for plan in planned("compare_methods", **flags)}
    assert plans["guided"] == plans["mixed_prior"] == replace(plans["mixed"], oh_weight=PRIOR.weight)
    with pytest.raises(
        InputError, match=r"--prior-temperature with targets soft is 5\.0; accepted: 20, the targets' own"
    ):
        planned("compare_methods", prior_temperature=5.0, **flags)


@pytest.mark.parametrize(
    ("name", "flags", "left_out"),
    [
        ("ablate_memory", {}, {"generative"}),
        (
            "ablate_condensation",
            {"arms": ("mixed",)},
            {"distribution_matching", "gradient_matching", "trajectory_matching", "squeeze_recover"},
        ),
    ],
)
def test_an_ablation_of_methods_has_by_default_those_that_work_for_the_task(name, flags, left_out):
    arms = {
        dataset: {plan.arm.split()[-1] for plan in planned(name, dataset=dataset, seeds=(0,), ipcs=(2,), **flags)}
        for dataset in ("digits", "scenes")
    }
    assert arms["digits"] - arms["scenes"] == left_out
    assert arms["scenes"] < arms["digits"]


def test_arms_of_the_memory_script_differ_only_in_the_memory():
    plans = planned("ablate_memory", seeds=(3,))
    assert [plan.arm for plan in plans] == [plan.config.memory.name for plan in plans]
    same = {replace(plan.config, memory=plans[0].config.memory) for plan in plans}
    assert len(same) == 1
    assert same.pop().condensation is None
    assert {plan.ipc for plan in planned("ablate_memory", seeds=(3,), condensed=True)} == {10}


def test_at_each_scale_memories_have_one_size_and_arms_differ_in_one_part():
    module, flags = script("ablate_scale"), {"scales": (0.5, 0.1), "seeds": (3,)}
    plans = {plan.arm: plan.config for plan in planned("ablate_scale", **flags)}
    small = [f"{name} {scale}" for scale in ("0.5", "0.1") for name in ("reservoir", "prioritized", "modulated")]
    assert list(plans) == ["growing", *small]
    for scale, kept in (("0.5", 500), ("0.1", 100)):
        fair, first, modulated = (plans[f"{name} {scale}"] for name in ("reservoir", "prioritized", "modulated"))
        assert fair.memory.capacity == kept
        assert modulated.memory == first.memory
        assert round(1000 * first.memory.scale) == kept
        assert replace(first, memory=fair.memory) == fair == replace(plans["growing"], memory=fair.memory)
        assert replace(modulated, weighing=first.weighing) == first != modulated
    read_against = module.baselines(module.Args(**flags))
    assert set(read_against) == set(small)
    assert set(read_against.values()) <= set(plans)
    assert read_against["modulated 0.1"] == "prioritized 0.1"


def test_every_condenser_is_compared_with_as_many_random_real_images(tmp_path):
    plans = planned("ablate_condensation", ipcs=(1, 20), seeds=(0,), condensers=("trajectory_matching", "herding"))
    names = ("random_real", "trajectory_matching", "herding")
    arms = [f"{arm} {name}" for name in names for arm in ("condensed_only", "mixed", "mixed_prior", "guided")]
    assert [(plan.arm, plan.ipc) for plan in plans if plan.arm.startswith("guided")] == [
        (f"guided {name}", ipc) for name in names for ipc in (1, 20)
    ]
    assert {plan.arm for plan in plans} == set(arms)
    control, *others = [plan.config for plan in plans if plan.arm.startswith("guided") and plan.ipc == 20]
    assert [replace(config, condensation=control.condensation) for config in others] == [control, control]
    foreign = planned("ablate_condensation", condensers=("imported",), condensed_path=tmp_path / "set.pt", seeds=(0,))
    assert {plan.config.condensation.name for plan in foreign} == {"random_real", "imported"}


def test_methods_are_compared_as_complete_systems_at_equal_proportion_and_in_equal_time():
    plans = {plan.arm: plan.config for plan in planned("compare_methods", seeds=(0,))}
    known = yaml.safe_load((EXPERIMENTS / "results" / "equal_seconds.yaml").read_text())
    for name in SYSTEMS:
        recipe = replace(Flags(host=name, scale=0.003).base(), seed=0)
        assert plans[name].inversion == recipe.inversion
        assert (plans[name].memory, plans[name].weighing) == (recipe.memory, recipe.weighing)
        assert plans[name].distiller == replace(recipe.distiller, condensed_share=0.0)
        # Where both comparisons have the same number of rounds, they are one trial.
        timed = plans.get(f"{name} in equal time", plans[name])
        assert timed.rounds == known["rounds"][name]
        assert getattr(timed.inversion, "steps", 0) == getattr(recipe.inversion, "steps", 0)
    assert "fast in equal time" not in plans
    assert len(plans) > 1.5 * len(SYSTEMS)


def test_equal_time_is_refused_for_networks_and_scales_that_were_not_measured(tmp_path):
    with pytest.raises(InputError, match=r"--equal seconds by .* is .*'scale': 0.1.*; accepted: .*, as measured there"):
        planned("compare_methods", scale=0.1)
    with pytest.raises(InputError, match="'student': 'resnet-8-8'"):
        planned("compare_methods", pairs=("wrn-16-1/resnet-8-8",))
    assert planned("compare_methods", scale=0.1, equal=("proportion",))
    with pytest.raises(InputError, match="--host or --inversion is 'cmi'; accepted: --methods"):
        planned("compare_methods", inversion="cmi")


def test_arms_name_pairs_and_condensed_images():
    flags = {"methods": ("fast",), "seeds": (0,), "pairs": ("resnet-8-16/resnet-8-8", "wrn-16-1/resnet-8-8")}
    plans = planned("compare_methods", condensed=True, equal=("proportion",), **flags)
    assert [plan.arm for plan in plans] == [
        f"{w} fast ({pair})" for pair in flags["pairs"] for w in ("mixed", "mixed_prior", "guided")
    ]
    assert [plan.config.teacher.network.name for plan in plans] == [*["resnet"] * 3, *["wrn"] * 3]
    with pytest.raises(InputError, match="--pairs is 'wrn-16-1'; accepted: TEACHER/STUDENT"):
        planned("compare_methods", pairs=("wrn-16-1",))


def test_arms_of_the_sharing_script_differ_only_in_scope_and_refuse_an_inversion_that_uses_the_student():
    plans = planned("ablate_sharing", seeds=(0,), ipcs=(1, 10))
    assert {plan.arm: plan.scope for plan in plans} == {
        "own": "trial",
        "shared inversion": "inversion",
        "sweep's pool": "sweep",
    }
    assert len({plan.config for plan in plans}) == 2
    with pytest.raises(
        InputError, match="--inversion is 'fast'; accepted: an inversion that does not depend on the student"
    ):
        planned("ablate_sharing", inversion="fast")


def test_the_curriculum_begins_with_real_images_and_ends_with_synthetic_ones():
    plans = {plan.arm: plan.config for plan in planned("few_shot", seeds=(0,), ipcs=(5,))}
    config = plans["guided_curriculum"]
    shares = [config.distiller.num_condensed(config.progress(round)) / 128 for round in (0, 6, 11)]
    assert shares == pytest.approx([0.9, 0.2, 0.2], abs=0.01)
    assert config.guidance.schedule.at(1.0) == pytest.approx(0.2 / 0.9)
    assert isinstance(plans["mixed_curriculum"].guidance, NoGuidance)
    assert plans["mixed_prior_curriculum"] == replace(config, guidance=NoGuidance())
    assert plans["mixed"].condensation.name == "random_real"


@pytest.mark.parametrize("inversion", ["dfad", "fast"])
def test_arms_of_the_segmentation_script_differ_step_by_step(inversion):
    plans = {plan.arm: plan.config for plan in planned("segmentation", seeds=(3,), inversion=inversion)}
    assert list(plans) == ["none", "real", "condensed_only", "mixed", "mixed_prior", "layouts", "guided"]
    none, few, mixed, prior, layouts, guided = (plans[arm] for arm in plans if arm != "real")
    assert replace(guided, guidance=NoGuidance()) == layouts
    assert replace(layouts, targets=Balanced()) == prior
    assert replace(prior, inversion=mixed.inversion) == mixed
    assert (prior.inversion.oh_weight, prior.inversion.oh_temperature) == (1.0, 1.0)
    assert replace(mixed, condensation=None, distiller=none.distiller) == none
    assert isinstance(few.inversion, NoInversion)
    assert {config.condensation.ipc for config in (few, mixed, prior, layouts, guided)} == {5}
    assert set(script("segmentation").BASELINES) == set(plans) - {"none"}


def test_a_published_system_replaces_the_defaults_of_the_segmentation_script():
    plans = {plan.arm: plan.config for plan in planned("segmentation", seeds=(3,), host="dfad", scale=0.001)}
    assert {config.inversion.name for arm, config in plans.items() if arm not in ("real", "condensed_only")} == {"dfad"}
    assert plans["none"].rounds != 20
    assert {config.rounds for config in plans.values()} == {plans["none"].rounds}
    with pytest.raises(InputError, match="rounds is 0; accepted: an integer >= 1"):
        planned("segmentation", rounds=0)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """Cache of all experiments of this file, which share one teacher."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize(
    ("name", "flags", "comparison"),
    [
        ("ablate_guidance", ["--forms", "projection", "--weights", "1", "--ipcs", "2"], "projection - mixed "),
        ("ablate_guidance", ["--forms", "mmd", "--weights", "1", "--ipcs", "2"], "mmd - mixed_prior "),
        ("ablate_memory", ["--memories", "latest", "generative"], "generative - latest"),
        ("few_shot", ["--ipcs", "1"], "guided_curriculum - mixed"),
        ("ablate_scale", ["--scales", "0.1"], "modulated 0.1 - prioritized 0.1"),
        ("ablate_sharing", ["--inversion", "dafl", "--steps", "1", "--ipcs", "1", "2"], "shared inversion - own"),
        ("ablate_condensation", ["--condensers", "herding", "--ipcs", "2"], "guided herding - guided random_real"),
        (
            "compare_methods",
            ["--methods", "fast", "nayer", "--equal", "proportion", "--scale", "None", "--condensed"],
            "guided nayer - mixed nayer",
        ),
    ],
)
def test_a_script_runs_and_compares_with_its_baseline(cluster, name, flags, comparison, tmp_path, cache):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    fixed = ["--seeds", "0", "--rounds", "1", "--teacher-epochs", "1", "--config", tmp_path / "tiny.yaml"]
    fixed += ["--condensation", "random_real", "--out", tmp_path / "out", "--cache", cache]
    done = programs.script(EXPERIMENTS / f"{name}.py", *fixed, *flags)
    assert done.returncode == 0, done.stderr
    assert comparison in done.stdout
    assert {record.status for record in read_records(tmp_path / "out")} == {"finished"}
    assert read_manifest(tmp_path / "out").experiment == name


@pytest.mark.slow
@pytest.mark.ray
def test_the_segmentation_script_reports_mean_iou(cluster, tmp_path, cache):
    small = {"teacher": {"network": {"depth": 8, "width": 4}}, "student": {"width": 4}, "inversion": {"width": 8}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(small))
    flags = ["--seeds", "0", "1", "--rounds", "1", "--teacher-epochs", "3", "--config", tmp_path / "tiny.yaml"]
    done = programs.script(EXPERIMENTS / "segmentation.py", *flags, "--out", tmp_path / "out", "--cache", cache)
    assert done.returncode == 0, done.stderr
    for text in ("guided - layouts", "layouts - mixed_prior", "mixed_prior - mixed", "IoU of each class", "triangle"):
        assert text in done.stdout
    records = read_records(tmp_path / "out")
    assert {record.status for record in records} == {"finished"}
    assert len(records) == 14
    assert all(0 <= record.metrics["student/test_miou"] <= 1 for record in records)


def test_padding_is_compared_on_the_data_and_teacher_of_a_trial(tmp_path, cache):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({"teacher": TINY["teacher"]}))
    flags = ["--hosts", "fast", "nayer", "--seeds", "0", "1", "--rounds", "2", "--inversion-steps", "1"]
    flags += ["--teacher-epochs", "1", "--config", tmp_path / "tiny.yaml", "--out", tmp_path / "out", "--cache", cache]
    done = programs.script(EXPERIMENTS / "compare_padding.py", *flags)
    assert done.returncode == 0, done.stderr
    written = [line.split(" | ") for line in (tmp_path / "out" / "padding.md").read_text().splitlines()]
    rows = {(line[0], line[1]): line[2:] for line in written if len(line) == 7}
    figures = ("Frechet", "MMD", "BN")
    assert [key for key in rows if key[1] in figures] == [
        (f"| {host}", f) for host in ("fast", "nayer") for f in figures
    ]
    # The generator's second image depends on its first step, in which only the padding differs.
    n, old, new, *_ = rows["| fast", "BN"]
    assert n == "2"
    assert old != new
    assert "BN" in done.stdout
    refused = programs.script(EXPERIMENTS / "compare_padding.py", *flags, "--inversion-steps", "0")
    assert refused.returncode == 2
    assert "inversion steps is 0; accepted: an integer >= 1" in refused.stderr
