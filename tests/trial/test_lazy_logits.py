"""The number of the teacher's passes over a round's images; results do not depend on when logits are computed."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from contracts.toy_methods import INVERTERS, small
from methods.student_steps import begin_fresh, gradients, ones
from toy import NUM_CLASSES, make_prepared, make_teacher, samples, toy_config

from condkd_ray.core.chunk_files import MissingSamplesError
from condkd_ray.core.method import Metrics
from condkd_ray.core.records import Outcome
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import UNLABELLED, Codec, unseen
from condkd_ray.methods.distiller import Distiller
from condkd_ray.methods.inversion import DeepInversion, Fast, PreDfkd
from condkd_ray.methods.losses.kd import Attention, LogitL1
from condkd_ray.methods.memory import Bank, Generative, Growing, Latest, LocalStore, Prioritized
from condkd_ray.methods.weighing import Equal, Modulating
from condkd_ray.trial.config import Prepared, TrialConfig
from condkd_ray.trial.diagnosis import histograms
from condkd_ray.trial.loop import run_round, start
from condkd_ray.trial.outcome import Product, read_product
from condkd_ray.trial.run import local_store, run_trial
from condkd_ray.trial.synthesis import begin as begin_production
from condkd_ray.trial.synthesis import codec, produce, settle, stored_logits, synthesise

FAST = Fast(steps=2, batch=16, latent=16, width=8)
PRE_DFKD = PreDfkd(steps=2, batch=16, latent=16, width=8, images_per_round=24)
DEEP = DeepInversion(steps=2, batch=16)
AUGMENTING = Distiller(steps=3, batch=16)
PLAIN = replace(AUGMENTING, augment=False)
LAYERED = replace(PLAIN, loss=Attention(teacher_layers=("stages.0",), student_layers=("stages.0",)))
COUNTS = torch.zeros(NUM_CLASSES, dtype=torch.int64)
STEPS, TAUGHT = 2 * 16, 3 * 16
"""Number of images in the teacher's passes in a round's inversion, and in its distillation with augmentation."""


@pytest.fixture
def prepared() -> Prepared:
    """Toy preparations without landmarks, because passes that only the report uses are not counted."""
    return replace(make_prepared(), landmarks=None)


def counted(prepared: Prepared, work: Callable[[], Any]) -> int:
    """Return the number of images in the teacher's forward passes in `work`."""
    seen: list[int] = []
    teacher = prepared.teacher
    with teacher.network.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0]))):
        teacher.to(teacher.device)  # observers made from now on have the hook too
        work()
    teacher.to(teacher.device)
    return sum(seen)


def config_of(**changes: Any) -> TrialConfig:
    return toy_config(**{"memory": Latest(), "distiller": AUGMENTING, "rounds": 2} | changes)


def numbers(history: list[Metrics], *, but: str = "time/") -> list[Metrics]:
    return [{k: v for k, v in row.items() if not k.startswith(("time/", but))} for row in history]


@pytest.mark.parametrize(
    ("inversion", "distiller", "passes"),
    [
        (PRE_DFKD, PLAIN, STEPS + 24),
        (PRE_DFKD, AUGMENTING, STEPS + 24 + TAUGHT),
        (FAST, PLAIN, STEPS + 16),
        (FAST, AUGMENTING, STEPS + TAUGHT),
        (FAST, LAYERED, STEPS + TAUGHT),
        (DEEP, PLAIN, STEPS + 16),
        (DEEP, AUGMENTING, STEPS + TAUGHT),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_logits_of_fresh_images_are_computed_once_and_only_if_they_are_read(prepared, inversion, distiller, passes):
    config = config_of(inversion=inversion, distiller=distiller)
    state, store = start(config, prepared), local_store(config, prepared, None)
    for _ in range(2):
        assert counted(prepared, lambda: run_round(config, prepared, state, store)) == passes


@pytest.mark.parametrize("kind", INVERTERS, ids=lambda kind: kind.__name__)
def test_no_inversion_computes_logits_of_the_images_it_returns(prepared, kind):
    inversion: Any = small(kind)
    config = config_of(inversion=inversion)
    production, student = begin_production(config, prepared), start(config, prepared).distiller.student
    passes = counted(prepared, lambda: synthesise(config, prepared, production, student, COUNTS))
    of_steps = inversion.steps * inversion.batch
    # Some hosts observe two views in a step.
    assert passes in (of_steps, 2 * of_steps)


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({}, False),
        ({"distiller": PLAIN}, True),
        ({"distiller": LAYERED}, False),
        ({"weighing": Modulating()}, True),
        ({"weighing": Equal()}, False),
        ({"inversion": PRE_DFKD}, True),
        *(({"memory": small(kind)}, False) for kind in (Growing, Latest, Bank, Generative, Prioritized)),
    ],
)
def test_logits_are_kept_only_if_they_are_read(prepared, changes, kept):
    config = config_of(**changes)
    assert config.keeps_logits is kept
    state, store = start(config, prepared), local_store(config, prepared, None)
    run_round(config, prepared, state, store)
    found = store.gather(config.memory.live(state.memory))
    assert found.logits.shape[1] == (NUM_CLASSES if kept else 0)
    assert store.num_bytes == len(found) * (64 * (1 if store.codec.space == "unit" else 2) + 8 + 8 * kept)
    if kept:
        assert torch.equal(found.logits, stored_logits(prepared.teacher, found.images))


def ran(config: TrialConfig, prepared: Prepared, folder: Any) -> tuple[Outcome, Product]:
    outcome = run_trial(config, prepared, local_store(config, prepared, None), product=folder / "product")
    return outcome, read_product(folder / "product")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", [Growing, Latest, Bank, Generative, Prioritized])
def test_logits_computed_at_the_end_equal_those_computed_at_once(tmp_path, monkeypatch, kind, precision):
    config = config_of(memory=small(kind), distiller=replace(AUGMENTING, condensed_share=0.25), precision=precision)
    lazy, made = ran(config, make_prepared(), tmp_path)
    monkeypatch.setattr(TrialConfig, "keeps_logits", True)
    eager, wanted = ran(config, make_prepared(), tmp_path)
    assert numbers(lazy.history, but="memory/bytes") == numbers(eager.history, but="memory/bytes")
    assert lazy.history[-1]["memory/bytes"] == eager.history[-1]["memory/bytes"] - 8 * sum(lazy.held["class"])
    assert (lazy.predictions, lazy.held) == (eager.predictions, eager.held)
    for name in ("images", "labels", "logits"):
        assert torch.equal(getattr(made, name), getattr(wanted, name))
    assert made.logits is not None
    assert lazy.held == histograms(made.logits)


def test_the_end_of_a_trial_computes_logits_once(tmp_path, prepared):
    config = config_of(memory=Growing(), rounds=3)
    state, store = start(config, prepared), local_store(config, prepared, None)
    rounds = counted(prepared, lambda: [run_round(config, prepared, state, store) for _ in range(3)])
    assert counted(prepared, lambda: ran(config, prepared, tmp_path)) == rounds + 3 * 16


class StopTrialError(Exception):
    """Raised by a test to leave a trial."""


@pytest.mark.parametrize("memory", [Growing(), Latest(), Bank(entry_size=4, period=1, share=0.25)])
def test_a_trial_continues_from_files_of_a_version_that_always_stored_logits(tmp_path, monkeypatch, prepared, memory):
    config = config_of(memory=memory, rounds=4)
    files: dict[str, Any] = {"checkpoint": tmp_path / "state", "checkpoint_seconds": 0.0}

    def leave(metrics: Metrics) -> None:
        if metrics["round"] == 2:
            raise StopTrialError

    with monkeypatch.context() as before:
        before.setattr(TrialConfig, "keeps_logits", True)
        with pytest.raises(StopTrialError):
            run_trial(config, prepared, local_store(config, prepared, tmp_path), on_round=leave, **files)
    continued = run_trial(config, prepared, local_store(config, prepared, tmp_path), **files)
    straight = run_trial(config, prepared, local_store(config, prepared, None))
    assert numbers(continued.history[2:]) == numbers(straight.history[2:])
    assert (continued.predictions, continued.held) == (straight.predictions, straight.held)


def test_a_store_whose_trial_reads_logits_refuses_files_without_them(tmp_path):
    lazy, eager = Codec("unit", (0.25,), (0.25,), logits=False), Codec("unit", (0.25,), (0.25,))
    LocalStore(lazy, NUM_CLASSES, tmp_path).append(unseen(samples(3).images, torch.arange(3)))
    with pytest.raises(MissingSamplesError, match="without the teacher's logits, which this trial reads"):
        LocalStore(eager, NUM_CLASSES, tmp_path)
    assert LocalStore(lazy, NUM_CLASSES, tmp_path).gather(torch.arange(3)).labels.tolist() == [0, 1, 2]


class Clipped(PreDfkd):
    """Its images are stored as pixels in [0, 1], so storing changes them much."""

    pixel_space = "unit"
    name: Literal["pre_dfkd"] = "pre_dfkd"


def test_the_teachers_labels_are_those_of_the_stored_images(prepared):
    config = config_of(inversion=Clipped(steps=2, batch=16, latent=16, width=8, images_per_round=64))
    student = start(config, prepared).distiller.student
    raw, _ = synthesise(config, prepared, begin_production(config, prepared), student, COUNTS)
    made, _ = produce(config, prepared, begin_production(config, prepared), student, COUNTS)
    code, teacher = codec(config, prepared.teacher), prepared.teacher
    stored = code.decode(code.encode(made))
    assert torch.equal(stored.images, made.images)
    wanted = stored_logits(teacher, stored.images).argmax(1)
    assert torch.equal(made.labels, wanted)
    assert not torch.equal(stored_logits(teacher, raw.images).argmax(1), wanted)


def test_settled_samples_keep_their_target_labels(prepared):
    wanted = unseen(samples(8).images, torch.arange(8) % NUM_CLASSES)
    code = Codec("unit", (0.25,), (0.25,))
    for with_logits in (False, True):
        settled = settle(wanted, code, prepared.teacher, logits=with_logits)
        assert torch.equal(settled.labels, wanted.labels)
        assert settled.has_logits is with_logits
    settled = settle(unseen(wanted.images, torch.full((8,), UNLABELLED)), code, prepared.teacher, relabel=True)
    assert torch.equal(settled.labels, settled.classes)
    assert not settled.labels.eq(UNLABELLED).any()


def test_a_step_without_stored_logits_computes_them():
    teacher, batch, found = make_teacher(), samples(8), []
    bare, answered = unseen(batch.images, batch.labels), replace(batch, logits=teacher.logits(batch.images).detach())
    for given in (bare, answered):
        distiller = Distiller(augment=False, loss=LogitL1())
        state = begin_fresh(distiller, teacher)
        terms, gap = distiller.step(state, given, ones(given), teacher=teacher, rng=Streams(0))
        found.append((terms["loss"], gap, gradients(state.student)))
    assert found[0][0] > 0
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
