"""Thirty random combinations of inversion, guidance, memory, condensation, targets, weighing and loss.

Each trains three rounds, is stopped after the first and continues from its checkpoint to equal numbers, and all are
reported together. Every member of every family is drawn.
"""

import random
from dataclasses import replace
from typing import get_args

import pytest
from contracts.toy_methods import INVERTERS, sized, small
from toy import IPC, MEAN, NUM_CLASSES, STD, blobs, make_prepared, toy_config

from condkd_ray.core import checkpoint
from condkd_ray.core.records import Manifest, read_records, write_manifest, write_record
from condkd_ray.core.rng import Streams
from condkd_ray.methods.condensation import AllReal, AnyCondensation, Imported
from condkd_ray.methods.distiller import Distiller
from condkd_ray.methods.guidance import AnyGuidance
from condkd_ray.methods.losses.kd import AnyKdLoss
from condkd_ray.methods.memory import AnyMemory
from condkd_ray.methods.targets import AnyTargets, Balanced
from condkd_ray.methods.weighing import AnyWeighing
from condkd_ray.report.build import build
from condkd_ray.runs.recorder import make_record
from condkd_ray.trial.config import TrialConfig
from condkd_ray.trial.loop import run_round, start
from condkd_ray.trial.plan import Plan
from condkd_ray.trial.run import local_store, run_trial

COUNT = 30
CONDENSERS = [kind for kind in get_args(AnyCondensation) if kind not in (AllReal, Imported)]
QUICK = {
    "iterations": 2,
    "steps": 2,
    "epochs": 1,
    "width": 4,
    "experts": 1,
    "expert_epochs": 2,
    "ahead": 1,
    "max_start": 0,
}
LAYERS = {"teacher_layers": ("stages.1",), "student_layers": ("stages.1",)}
FAMILIES = {
    "inversion": INVERTERS,
    "targets": [kind for kind in get_args(AnyTargets) if "classification" in kind.tasks],
    "weighing": get_args(AnyWeighing),
    "guidance": get_args(AnyGuidance),
    "memory": get_args(AnyMemory),
    "condensation": CONDENSERS,
    "loss": get_args(AnyKdLoss),
    "mix": ("share", "concat"),
    "precision": ("float32", "bfloat16"),
}


def combinations() -> list[TrialConfig]:
    """Return configs in which each family's members alternate, in a random order of each family."""
    rng = random.Random(0)
    drawn = {}
    for name, members in FAMILIES.items():
        turns = list(members) * -(-COUNT // len(members))
        rng.shuffle(turns)
        # Every member occurs once before any occurs again.
        drawn[name] = [*rng.sample(list(members), len(members)), *turns][:COUNT]
        rng.shuffle(drawn[name])
    return [configured(**dict(zip(drawn, one, strict=True))) for one in zip(*drawn.values(), strict=True)]


def configured(*, inversion, targets, weighing, guidance, memory, condensation, loss, mix, precision) -> TrialConfig:
    supported = targets if inversion.uses_targets == "soft" else Balanced
    distiller = Distiller(steps=2, batch=16, condensed_share=0.25, loss=sized(loss, **LAYERS), mix=mix)
    return toy_config(
        inversion=small(inversion),
        targets=supported(),
        weighing=weighing(),
        guidance=small(guidance),
        memory=small(memory),
        condensation=sized(condensation, ipc=IPC, **QUICK),
        distiller=distiller,
        precision=precision,
        evaluate_every=2,
    )


CONFIGS = combinations()


def prepared_for(config: TrialConfig):
    """Return the toy preparations with the condensed set of this config."""
    prepared = make_prepared()
    made = config.condensation.condense(
        blobs(64, seed=8).samples(MEAN, STD),
        num_classes=NUM_CLASSES,
        mean=MEAN,
        std=STD,
        flip_ok=False,
        rng=Streams(0),
    )
    logits = prepared.teacher.logits(made.images)
    return replace(prepared, condensed=replace(made, logits=logits.detach()))


def numbers(history):
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in history]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("combinations")
    labels = make_prepared().test.labels.tolist()
    write_manifest(folder, Manifest(experiment="test", question="", command="", created="", test_labels=labels))
    return folder


@pytest.mark.parametrize("number", range(COUNT))
def test_a_combination_trains_resumes_to_equal_numbers_and_is_recorded(number, out, tmp_path):
    config = CONFIGS[number]
    prepared = prepared_for(config)
    whole = run_trial(config, prepared, local_store(config, prepared, None))
    assert whole.status == "finished", whole.reason
    stopped, store = start(config, prepared), local_store(config, prepared, tmp_path)
    run_round(config, prepared, stopped, store)
    checkpoint.save(stopped, tmp_path / "state")
    store.commit()
    again = local_store(config, prepared, tmp_path)
    resumed = run_trial(config, prepared, again, checkpoint=tmp_path / "state")
    assert numbers(resumed.history) == numbers(whole.history)
    assert resumed.predictions == whole.predictions
    write_record(out, make_record("test", Plan(f"arm {number:02d}", IPC, 0, config), str(number), prepared, whole))


def test_all_combinations_are_reported_together(out):
    text = build(out)
    recorded = read_records(out)
    assert recorded
    assert all(f"arm {int(record.config_hash):02d}" in text for record in recorded)


def test_every_member_of_every_family_is_drawn():
    seen = {
        "inversion": {type(c.inversion) for c in CONFIGS},
        "targets": {type(c.targets) for c in CONFIGS},
        "weighing": {type(c.weighing) for c in CONFIGS},
        "guidance": {type(c.guidance) for c in CONFIGS},
        "memory": {type(c.memory) for c in CONFIGS},
        "condensation": {type(c.condensation) for c in CONFIGS},
        "loss": {type(c.distiller.loss) for c in CONFIGS},
    }
    assert seen == {name: set(FAMILIES[name]) for name in seen}
    assert len(set(CONFIGS)) == COUNT
