"""The student's optimiser and learning rate against PyTorch's, which are stepped as in the papers' released code."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from toy import make_prepared, make_teacher, samples, toy_config

from condkd_ray.cluster.gpu_memory import short
from condkd_ray.core import checkpoint as states
from condkd_ray.core.config import to_tree
from condkd_ray.core.method import InputError
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import Samples
from condkd_ray.methods.distiller import Distiller, DistillerState
from condkd_ray.methods.inversion import Fast
from condkd_ray.methods.losses.kd import LogitL1
from condkd_ray.models.teacher import Teacher
from condkd_ray.runs.estimate import probe_trial
from condkd_ray.trial.config import dump, from_tree, read
from condkd_ray.trial.loop import run_round, start
from condkd_ray.trial.plan import Plan
from condkd_ray.trial.run import inherit, local_store, resume, run_trial
from methods.student_steps import begin, gradients, ones

SGD, COSINE = torch.optim.SGD, torch.optim.lr_scheduler.CosineAnnealingLR
MULTI_STEP = torch.optim.lr_scheduler.MultiStepLR
PLAIN = {"loss": LogitL1(), "augment": False, "warm_up": 0.0}


@pytest.fixture
def teacher() -> Teacher:
    return make_teacher()


def student_of(teacher: Teacher) -> nn.Module:
    return copy.deepcopy(teacher.network).requires_grad_().train()


def weights(network: nn.Module) -> Tensor:
    return torch.cat([weight.detach().flatten() for weight in network.parameters()])


def batches(count: int) -> list[Samples]:
    return [samples(8, seed=seed) for seed in range(count)]


def distilled(distiller: Distiller, teacher: Teacher, count: int, rounds: int) -> tuple[list[float], DistillerState]:
    """Return the learning rate of each of `count` steps, and the state after them."""
    state, rates = begin(distiller, teacher, rounds), []
    for batch in batches(count):
        rates.append(state.optimizer.param_groups[0]["lr"])
        distiller.step(state, batch, ones(batch), teacher=teacher, rng=Streams(0))
    return rates, state


def by_hand(student: nn.Module, optimizer: torch.optim.Optimizer, batch: Samples, clip: float = 0.0) -> None:
    images = batch.images.contiguous(memory_format=torch.channels_last)
    optimizer.zero_grad()
    F.l1_loss(student(images), batch.logits).backward()
    if clip:
        found = [weight.grad for weight in student.parameters()]
        norm = torch.stack([gradient.square().sum() for gradient in found]).sum().sqrt()
        for gradient in found:
            gradient.mul_(torch.clamp(clip / (norm + 1e-6), max=1.0))
    optimizer.step()


OPTIMISERS = {
    "as by default": ({}, lambda weights: SGD(weights, 0.1, momentum=0.9, weight_decay=1e-4, fused=True)),
    "no momentum": ({"momentum": 0.0, "weight_decay": 0.0}, lambda weights: SGD(weights, 0.1, fused=True)),
    "nesterov": ({"nesterov": True}, lambda w: SGD(w, 0.1, momentum=0.9, weight_decay=1e-4, nesterov=True, fused=True)),
    "adam": (
        {"optimizer": "adam", "lr": 2e-3, "weight_decay": 0.0},
        lambda weights: torch.optim.Adam(weights, 2e-3, fused=True),
    ),
    "adam of other beta": (
        {"optimizer": "adam", "lr": 1e-3, "momentum": 0.5, "weight_decay": 0.01},
        lambda weights: torch.optim.Adam(weights, 1e-3, betas=(0.5, 0.999), weight_decay=0.01, fused=True),
    ),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_steps_equal_those_of_torchs_optimiser_bit_for_bit(name, teacher):
    fields, make = OPTIMISERS[name]
    rates, state = distilled(Distiller(**PLAIN | fields, lr_schedule="constant"), teacher, 5, rounds=1)
    student = student_of(teacher)
    optimizer = make(student.parameters())
    for batch in batches(5):
        by_hand(student, optimizer, batch)
    assert set(rates) == {optimizer.param_groups[0]["lr"]}
    assert torch.equal(weights(state.student), weights(student))


@pytest.mark.parametrize(("clip", "clips"), [(0.05, True), (1e6, False)])
def test_a_gradient_longer_than_clip_is_scaled_down_to_it(clip, clips, teacher):
    fields = PLAIN | {"optimizer": "adam", "lr": 2e-3, "weight_decay": 0.0, "lr_schedule": "constant"}
    whole, clipped = Distiller(**fields), Distiller(**fields, clip=clip)
    (_, free), (_, bound) = distilled(whole, teacher, 1, rounds=1), distilled(clipped, teacher, 1, rounds=1)
    before, after = gradients(free.student), gradients(bound.student)
    assert (before.norm() > clip) == clips
    torch.testing.assert_close(after, before * min(1.0, clip / before.norm().item()), rtol=1e-4, atol=1e-8)
    student = student_of(teacher)
    optimizer = torch.optim.Adam(student.parameters(), 2e-3)
    for batch in batches(4):
        by_hand(student, optimizer, batch, clip)
    _, state = distilled(clipped, teacher, 4, rounds=1)
    torch.testing.assert_close(weights(state.student), weights(student), rtol=1e-5, atol=1e-6)


STEPS = 2
RECIPES = {
    # Fields of the config; PyTorch's optimiser and schedule; number of rounds; rounds per epoch; true if the schedule
    # is stepped before each epoch, false if after it.
    "CMI": (
        {"lr_epoch": 1},
        lambda w: SGD(w, 0.1, momentum=0.9, weight_decay=1e-4),
        lambda optimizer: COSINE(optimizer, T_max=6),
        *(6, 1, False),
    ),
    "Fast": (
        {"lr": 0.2, "last_lr": 2e-4, "lr_epoch": 1},
        lambda w: SGD(w, 0.2, momentum=0.9, weight_decay=1e-4),
        lambda optimizer: COSINE(optimizer, 6, eta_min=2e-4),
        *(6, 1, False),
    ),
    "PRE-DFKD": (
        {"weight_decay": 5e-4, "lr_epoch": 3},
        lambda w: SGD(w, 0.1, momentum=0.9, weight_decay=5e-4),
        lambda optimizer: COSINE(optimizer, T_max=4),
        *(12, 3, False),
    ),
    "DAFL": (
        {"weight_decay": 5e-4, "lr_schedule": "multi_step", "milestones": (4, 8)},
        lambda w: SGD(w, 0.1, momentum=0.9, weight_decay=5e-4),
        lambda optimizer: MULTI_STEP(optimizer, [2, 4]),
        *(10, 2, False),
    ),
    "DFAD": (
        {"weight_decay": 5e-4, "lr_schedule": "multi_step", "milestones": (2, 6)},
        lambda w: SGD(w, 0.1, momentum=0.9, weight_decay=5e-4),
        lambda optimizer: MULTI_STEP(optimizer, [2, 4]),
        *(10, 2, True),
    ),
    "ZSKT": (
        {"optimizer": "adam", "lr": 2e-3, "weight_decay": 0.0, "lr_epoch": 1, "clip": 5.0},
        lambda w: torch.optim.Adam(w, 2e-3),
        lambda optimizer: COSINE(optimizer, 6),
        *(6, 1, False),
    ),
}


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("name", RECIPES)
def test_published_recipes_can_be_expressed_as_configs(name, teacher):
    fields, make, schedule, rounds, epoch, before = RECIPES[name]
    distiller = Distiller(**PLAIN | {"steps": STEPS} | fields)
    config = toy_config(distiller=distiller, condensation=None, rounds=rounds)
    assert from_tree(to_tree(config)) == config
    rates, state = distilled(config.distiller, teacher, rounds * STEPS, rounds)
    student = student_of(teacher)
    optimizer = make(student.parameters())
    scheduler, wanted, left = schedule(optimizer), [], iter(batches(rounds * STEPS))
    for _ in range(rounds // epoch):
        if before:
            scheduler.step()
        for _ in range(epoch * STEPS):
            wanted.append(optimizer.param_groups[0]["lr"])
            by_hand(student, optimizer, next(left), distiller.clip)
        if not before:
            scheduler.step()
    assert rates == pytest.approx(wanted, rel=1e-12)
    assert len(set(np.round(rates, 9))) > 2
    torch.testing.assert_close(weights(state.student), weights(student), rtol=1e-4, atol=1e-5)


def closed_form(distiller: Distiller, rounds: int) -> np.ndarray:
    """Return the learning rate of each step in float64 by the definition: warm-up factor times schedule."""
    total = rounds * distiller.steps
    step = np.arange(total, dtype=np.float64)
    rising = distiller.warm_up * total
    rise = np.where(step < rising, (step + 1) / (rising + 1), 1.0)
    if distiller.lr_schedule == "multi_step":
        number = step // distiller.steps + 1
        passed = (number[:, None] > np.array(distiller.milestones)).sum(1)
        return distiller.lr * rise * distiller.decay**passed
    if distiller.lr_schedule == "constant":
        return distiller.lr * rise
    epoch = distiller.steps * distiller.lr_epoch
    at = np.floor(step / epoch) * epoch if epoch else step
    passed = np.clip((at - rising) / (total - rising), 0, 1)
    cosine = distiller.last_lr + (distiller.lr - distiller.last_lr) * (1 + np.cos(np.pi * passed)) / 2
    return rise * cosine


@pytest.mark.parametrize(
    ("fields", "rounds"),
    [
        ({"warm_up": 0.1}, 7),
        ({"warm_up": 0.25, "last_lr": 0.03}, 8),
        ({"warm_up": 0.3, "lr_epoch": 2, "last_lr": 0.01}, 9),
        ({"lr_epoch": 5}, 5),
        ({"warm_up": 0.2, "lr_schedule": "multi_step", "milestones": (1, 4, 5), "decay": 0.3}, 6),
        ({"warm_up": 0.5, "lr_schedule": "constant"}, 5),
        ({}, 1),
    ],
)
def test_the_rate_is_warm_up_times_schedule(fields, rounds):
    distiller = Distiller(**{"steps": 3, "lr": 0.2, "warm_up": 0.0} | fields)
    weight = nn.Linear(1, 1)
    state, rates = distiller.init(weight, rounds), []
    for _ in range(rounds * distiller.steps):
        rates.append(state.optimizer.param_groups[0]["lr"])
        state.optimizer.step()
        state.schedule.step()
    np.testing.assert_allclose(rates, closed_form(distiller, rounds), rtol=1e-12)
    if distiller.lr_schedule == "cosine" and rounds % max(distiller.lr_epoch, 1) == 0:
        assert state.optimizer.param_groups[0]["lr"] == pytest.approx(distiller.last_lr, abs=1e-15)


def test_the_schedule_does_not_advance_while_the_inversion_warms_up():
    distiller = Distiller(steps=2, batch=16, warm_up=0.0, lr_schedule="multi_step", milestones=(1,))
    inversion = Fast(steps=2, batch=16, latent=16, width=8, warm_up=2)
    config, prepared = (
        toy_config(condensation=None, inversion=inversion, distiller=distiller, rounds=2),
        make_prepared(),
    )
    state, store, rates = start(config, prepared), local_store(config, prepared, None), []
    for _ in range(4):
        run_round(config, prepared, state, store)
        rates.append(state.distiller.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01])


RESUMED = {
    "nesterov, cosine by epoch": {"nesterov": True, "lr_epoch": 2, "last_lr": 0.01, "clip": 1.0},
    "adam, multi-step": {
        **{"optimizer": "adam", "lr": 0.01, "lr_schedule": "multi_step", "milestones": (1, 3)},
        **{"clip": 0.5, "augment": False},
    },
    "constant": {"lr_schedule": "constant", "warm_up": 0.5},
}


def without_times(history):
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in history]


@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_trial_gives_the_same_numbers(name, tmp_path):
    distiller = Distiller(steps=2, batch=16, condensed_share=0.25, **RESUMED[name])
    config, prepared = toy_config(distiller=distiller, rounds=4), make_prepared()
    whole = run_trial(config, prepared, local_store(config, prepared, None))
    assert whole.status == "finished"
    for done in (1, 3):
        stopped, store = start(config, prepared), local_store(config, prepared, tmp_path / str(done))
        for _ in range(done):
            run_round(config, prepared, stopped, store)
        states.save(stopped, tmp_path / f"state{done}")
        store.commit()
        again = local_store(config, prepared, tmp_path / str(done))
        resumed = run_trial(config, prepared, again, checkpoint=tmp_path / f"state{done}")
        assert without_times(resumed.history) == without_times(whole.history)
        assert resumed.predictions == whole.predictions


@pytest.mark.parametrize(
    ("old", "message"),
    [
        (Distiller(steps=2, batch=16, nesterov=True), "nesterov in .*old is True; accepted: False; or delete the file"),
        (Distiller(steps=2, batch=16, momentum=0.5), r"momentum in .*old is 0\.5; accepted: 0\.9"),
        (Distiller(steps=2, batch=16, optimizer="adam", lr=0.1), "momentum in .*old is None; accepted: 0.9"),
    ],
)
def test_a_checkpoint_of_another_optimiser_is_refused(old, message, tmp_path):
    prepared, config = make_prepared(), toy_config(condensation=None, distiller=Distiller(steps=2, batch=16))
    before = replace(config, distiller=old)
    states.save(start(before, prepared), tmp_path / "old")
    assert resume(before, prepared, local_store(before, prepared, None), tmp_path / "old").round == 0
    with pytest.raises(InputError, match=message):
        resume(config, prepared, local_store(config, prepared, None), tmp_path / "old")


@pytest.mark.parametrize(
    ("fields", "rate"),
    [
        ({"lr": 0.02, "momentum": 0.5, "nesterov": True}, 0.01),
        ({"lr": 0.05, "last_lr": 0.01}, 0.03),
        ({"lr": 0.05, "lr_schedule": "multi_step", "milestones": (1, 2), "decay": 0.2}, 0.002),
        ({"lr": 0.05, "lr_schedule": "constant", "weight_decay": 0.0}, 0.05),
    ],
)
def test_a_trial_with_an_inherited_state_has_the_rate_of_its_own_recipe_at_once(fields, rate, tmp_path):
    plain = Distiller(steps=2, batch=16, condensed_share=0.25, warm_up=0.0)
    prepared, config = make_prepared(), toy_config(distiller=plain, rounds=4)
    state, store = start(config, prepared), local_store(config, prepared, None)
    for _ in range(2):
        run_round(config, prepared, state, store)
    states.save(state, tmp_path / "old")
    own = replace(config, distiller=replace(plain, **fields))
    inherit(own, prepared, tmp_path / "old", tmp_path / "new")
    inherited = resume(own, prepared, store, tmp_path / "new")
    assert inherited.distiller.optimizer.param_groups[0]["lr"] == pytest.approx(rate)
    assert inherited.distiller.schedule.get_last_lr() == pytest.approx([rate])
    assert torch.equal(weights(inherited.distiller.student), weights(state.distiller.student))


STEPPED = Distiller(steps=2, batch=16, condensed_share=0.25, lr_schedule="multi_step", milestones=(2, 40, 70))
EPOCHS = Distiller(steps=2, batch=16, condensed_share=0.25, lr_epoch=50)


@pytest.mark.parametrize(("distiller", "fields"), [(STEPPED, {"milestones": (2,)}), (EPOCHS, {"lr_epoch": 3})])
def test_a_probe_of_a_few_rounds_drops_later_milestones_and_shortens_epochs(distiller, fields, tmp_path):
    config = toy_config(distiller=distiller, rounds=100)
    assert probe_trial(Plan("guided", 2, 0, config), make_prepared(), tmp_path).wall.high > 0
    assert distiller.within(3) == replace(distiller, **fields)
    assert short(config).rounds == 1


def test_without_a_milestone_left_the_rate_of_a_probe_is_constant():
    assert STEPPED.within(2) == replace(STEPPED, lr_schedule="constant", milestones=())
    assert Distiller().within(1) == Distiller()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"optimizer": "adam", "nesterov": True}, "nesterov with optimizer adam is True; accepted: off, or optimizer"),
        ({"momentum": 0.0, "nesterov": True}, "nesterov with momentum 0 is True; accepted: off, or momentum > 0"),
        ({"momentum": 1.0}, "student momentum is 1.0; accepted: 0 <= momentum < 1"),
        ({"weight_decay": -1e-4}, "student weight_decay is -0.0001; accepted: >= 0"),
        ({"clip": -1.0}, "student clip is -1.0; accepted: >= 0; 0 is none"),
        ({"clip": math.nan}, "student clip is nan"),
        ({"last_lr": 0.2}, "last_lr is 0.2; accepted: 0 to 0.1, the student's lr"),
        ({"last_lr": -0.1}, "last_lr is -0.1; accepted: 0 to 0.1"),
        ({"decay": 0.0}, "student decay is 0.0; accepted: 0 < factor <= 1"),
        ({"lr_epoch": -1}, "lr_epoch is -1; accepted: an integer >= 0"),
        ({"lr_schedule": "multi_step"}, r"milestones under lr_schedule multi_step is \(\); accepted: at least one"),
        (
            {"milestones": (3,)},
            r"milestones under lr_schedule cosine is \(3,\); accepted: \(\), or lr_schedule multi_step",
        ),
        (
            {"lr_schedule": "constant", "last_lr": 0.01},
            "last_lr under lr_schedule constant is 0.01; accepted: 0.0, or lr_schedule cosine",
        ),
        (
            {"lr_schedule": "multi_step", "milestones": (3,), "lr_epoch": 2},
            "lr_epoch under lr_schedule multi_step is 2; accepted: 0, or lr_schedule cosine",
        ),
        *(
            ({"lr_schedule": "multi_step", "milestones": found}, rf"milestones is \({found[0]}, .*each later than the")
            for found in [(3, 2), (3, 3), (0, 2), (-1, 2)]
        ),
    ],
)
def test_contradictory_recipes_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        Distiller(**fields)


@pytest.mark.parametrize(
    ("fields", "rounds", "message"),
    [
        ({"lr_schedule": "multi_step", "milestones": (3, 12)}, 12, "milestone is 12; accepted: less than 12"),
        ({"lr_schedule": "multi_step", "milestones": (1,)}, 1, "milestone is 1; accepted: less than 1, the student's"),
        ({"lr_epoch": 13}, 12, "lr_epoch is 13; accepted: at most 12, the student's rounds"),
    ],
)
def test_a_schedule_beyond_the_end_is_refused(fields, rounds, message):
    distiller = Distiller(**fields)
    with pytest.raises(InputError, match=message):
        toy_config(condensation=None, distiller=distiller, rounds=rounds)
    assert toy_config(condensation=None, distiller=distiller, rounds=rounds + 1).distiller == distiller


RECIPE = """
distiller:
  optimizer: adam
  lr: 2e-3
  weight_decay: 0
  lr_schedule: multi_step
  milestones: [3, 9]
  decay: 0.5
  clip: 5
  warm_up: 0
  augment: false
"""


def test_a_recipe_is_equal_after_yaml(tmp_path):
    (tmp_path / "trial.yaml").write_text(RECIPE)
    config = read(tmp_path / "trial.yaml")
    assert config.distiller == Distiller(
        optimizer="adam",
        lr=2e-3,
        weight_decay=0.0,
        lr_schedule="multi_step",
        milestones=(3, 9),
        decay=0.5,
        clip=5.0,
        warm_up=0.0,
        augment=False,
    )
    (tmp_path / "again.yaml").write_text(dump(config))
    assert read(tmp_path / "again.yaml") == config
