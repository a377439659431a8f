from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from toy import make_prepared, samples, toy_config

from condkd_ray.core import checkpoint as states
from condkd_ray.core.method import InputError, Metrics, NonFiniteError
from condkd_ray.methods.distiller import Distiller
from condkd_ray.methods.guidance import Discriminator, Mmd, NoGuidance
from condkd_ray.methods.inversion import Cmi, Dafl, DeepInversion, Fast, NoInversion, PreDfkd
from condkd_ray.methods.memory import Bank, Generative, Growing, Latest, Prioritized, Reservoir
from condkd_ray.models import ConvNet
from condkd_ray.trial.config import Prepared, TrialConfig
from condkd_ray.trial.loop import TrialState, run_round, start
from condkd_ray.trial.run import local_store
from condkd_ray.trial.synthesis import settle

FAST = Fast(steps=2, batch=16, latent=16, width=8)
INVERSIONS = {
    "fast": FAST,
    "dafl": Dafl(steps=2, batch=16, latent=16, width=8, images_per_round=24),
    "deep_inversion": DeepInversion(steps=2, batch=16),
    "cmi": Cmi(steps=2, batch=16, latent=16, width=8, head=8, negatives=8, bank=24),
    "pre_dfkd": PreDfkd(steps=2, batch=16, latent=16, width=8, images_per_round=24),
}
MEMORIES = {
    "latest": Latest(),
    "growing": Growing(capacity=40),
    "reservoir": Reservoir(capacity=20),
    "bank": Bank(entry_size=4, period=1, share=0.25),
    "generative": Generative(steps=2, batch=8, latent=4, width=4, share=0.25),
    "prioritized": Prioritized(scale=0.02),
}
MIXED = Distiller(steps=2, batch=16, condensed_share=0.25)
PURE = Distiller(steps=2, batch=16)


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return make_prepared()


def numbers(metrics: Metrics) -> Metrics:
    """Return the metrics without times."""
    return {name: value for name, value in metrics.items() if not name.startswith("time/")}


def rounds(config: TrialConfig, prepared: Prepared, count: int, folder: Any = None) -> tuple[TrialState, Any]:
    state, store = start(config, prepared), local_store(config, prepared, folder)
    for _ in range(count):
        run_round(config, prepared, state, store)
        store.commit()
    return state, store


def test_a_round_reports_what_it_did(prepared):
    config = toy_config(guidance=Discriminator(), rounds=2)
    state, store = rounds(config, prepared, 2)
    for number, metrics in enumerate(state.history, 1):
        assert metrics["round"] == number
        assert 0 <= metrics["student/test_accuracy"] <= 1
        assert 0 <= metrics["proxy/agreement"] <= 1
        assert metrics["proxy/kl"] >= 0
        for name in ("inversion/bn", "inversion/guide", "guidance/accuracy", "kd/loss", "student/val_accuracy"):
            assert name in metrics
        parts = [metrics[f"time/{part}_seconds"] for part in ("inversion", "distillation", "evaluation")]
        assert min(parts) > 0
        assert sum(parts) <= metrics["time/wall_seconds"]
    assert (state.round, state.num_ids) == (2, 32)
    assert state.history[-1]["memory/bytes"] == store.num_bytes == 32 * (64 + 8)


def test_the_last_round_is_always_evaluated(prepared):
    state, _ = rounds(toy_config(rounds=5, evaluate_every=2), prepared, 5)
    measured = [int(m["round"]) for m in state.history if "student/test_accuracy" in m]
    assert measured == [2, 4, 5]


def test_evaluations_do_not_change_the_training(prepared):
    often = rounds(toy_config(), prepared, 3)[0].history[-1]
    seldom = rounds(toy_config(evaluate_every=3), prepared, 3)[0].history[-1]
    assert numbers(often) == numbers(seldom)


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("inversion", INVERSIONS)
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, prepared, inversion, memory):
    config = toy_config(
        inversion=INVERSIONS[inversion], memory=MEMORIES[memory], guidance=Discriminator(), distiller=MIXED, rounds=4
    )
    straight, _ = rounds(config, prepared, 4)
    stopped, store = rounds(config, prepared, 2, tmp_path)
    states.save(stopped, tmp_path / "state")
    run_round(config, prepared, stopped, store)  # lost, because it is not saved
    torch.manual_seed(99)
    resumed = states.load(start(config, make_prepared()), tmp_path / "state")
    store = local_store(config, prepared, tmp_path)
    store.restore(resumed.num_ids, config.memory.live(resumed.memory))
    for _ in range(2):
        run_round(config, prepared, resumed, store)
        store.commit()
    assert list(map(numbers, resumed.history)) == list(map(numbers, straight.history))
    pairs = zip(_tensors(resumed), _tensors(straight), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("memory", MEMORIES)
def test_a_trial_on_a_gpu_resumes_to_nearly_the_same_numbers(tmp_path, memory):
    """A GPU computes some sums in varying order. Ids are drawn on the host and must be equal."""
    prepared = on_gpu(make_prepared())
    config = toy_config(inversion=FAST, memory=MEMORIES[memory], guidance=Discriminator(), distiller=MIXED, rounds=4)
    with torch.backends.cudnn.flags(deterministic=True, benchmark=False):
        straight, _ = rounds(config, prepared, 4)
        stopped, _ = rounds(config, prepared, 2, tmp_path)
        states.save(stopped, tmp_path / "state")
        resumed = states.load(start(config, prepared), tmp_path / "state", prepared.teacher.device)
        store = local_store(config, prepared, tmp_path)
        store.restore(resumed.num_ids, config.memory.live(resumed.memory))
        for _ in range(2):
            run_round(config, prepared, resumed, store)
            store.commit()
    live = config.memory.live(resumed.memory)
    assert live.device.type == "cpu"
    assert torch.equal(live, config.memory.live(straight.memory))
    assert next(resumed.distiller.student.parameters()).is_cuda
    for name in ("inversion/loss", "kd/loss", "proxy/kl"):
        assert resumed.history[-1][name] == pytest.approx(straight.history[-1][name], rel=1e-2), name


def on_gpu(prepared: Prepared) -> Prepared:
    """Move all but test and validation images, which stay on the host."""
    assert prepared.condensed is not None
    return replace(
        prepared,
        teacher=prepared.teacher.to("cuda"),
        condensed=prepared.condensed.to("cuda"),
        proxy=prepared.proxy.to("cuda"),
        landmarks=None,
    )


def _tensors(state: TrialState) -> list[torch.Tensor]:
    parts = (state.distiller, state.production, state.memory)
    found = [tensor for part in parts for tensor in states.pack(part)["tensors"].values()]
    return [*found, *_streams(state).values()]


def _streams(state: TrialState) -> dict[str, torch.Tensor]:
    assert state.production is not None
    both = [state.streams.state_dict(), state.production.streams.state_dict()]
    found = [(f"{kind}/{name}", opened[kind][name]) for opened in both for kind in opened for name in opened[kind]]
    assert len(dict(found)) == len(found), "two random streams have the same name"
    return dict(sorted(found))


@pytest.mark.parametrize("guidance", [Mmd(), Discriminator(augment="dsa"), Discriminator(augment="condensed")])
def test_every_guidance_resumes_bit_for_bit(tmp_path, prepared, guidance):
    config = toy_config(guidance=guidance)
    straight, _ = rounds(config, prepared, 2)
    stopped, _ = rounds(config, prepared, 1, tmp_path)
    states.save(stopped, tmp_path / "state")
    resumed = states.load(start(config, prepared), tmp_path / "state")
    store = local_store(config, prepared, tmp_path)
    store.restore(resumed.num_ids, config.memory.live(resumed.memory))
    run_round(config, prepared, resumed, store)
    assert numbers(resumed.history[-1]) == numbers(straight.history[-1])


@pytest.mark.parametrize("memory", MEMORIES)
def test_all_arms_use_the_same_draws(prepared, memory):
    arms = {
        "none": {"condensation": None, "distiller": PURE},
        "mixed": {"distiller": MIXED},
        "guided": {"distiller": MIXED, "guidance": Discriminator()},
    }
    seen = {
        arm: _streams(rounds(toy_config(memory=MEMORIES[memory], **changes), prepared, 2)[0])
        for arm, changes in arms.items()
    }
    shared = set.intersection(*map(set, seen.values()))
    assert {"host/draw", "device/latents", "device/augment/inversion", "device/augment/student"} <= shared
    for name in shared:
        assert torch.equal(seen["none"][name], seen["mixed"][name]), name
        assert torch.equal(seen["none"][name], seen["guided"][name]), name
    assert torch.equal(seen["mixed"]["host/condensed"], seen["guided"]["host/condensed"])


def test_with_weight_zero_a_guided_run_is_the_mixed_run(prepared):
    mixed = rounds(toy_config(), prepared, 2)[0].history
    guided = rounds(toy_config(guidance=Discriminator(weight=0.0)), prepared, 2)[0].history
    kept = [{k: v for k, v in numbers(m).items() if not k.startswith("guidance/")} for m in guided]
    assert kept == list(map(numbers, mixed))


def test_equal_seeds_give_equal_trials_and_others_do_not(prepared):
    first, again, other = (rounds(toy_config(seed=seed), prepared, 2)[0].history for seed in (0, 0, 1))
    assert list(map(numbers, first)) == list(map(numbers, again))
    assert numbers(first[0]) != numbers(other[0])


def test_without_inversion_the_student_learns_only_from_condensed_images(prepared):
    alone = Distiller(steps=2, batch=16, condensed_share=1.0)
    state, store = rounds(toy_config(inversion=NoInversion(), distiller=alone), prepared, 2)
    assert (store.num_ids, store.num_bytes) == (0, 0)
    assert "host/draw" not in _streams(state)
    assert state.history[-1]["kd/loss"] > 0


def test_the_student_is_in_training_mode_in_its_steps_and_in_eval_mode_in_the_inversion(prepared):
    state, _ = rounds(toy_config(), prepared, 2)
    # Each forward pass in training mode counts a batch; those of the inversion count none.
    assert state.distiller.student.bn.num_batches_tracked == 2 * 2


def test_shared_teacher_and_images_do_not_change(prepared):
    own = make_prepared()
    assert own.condensed is not None
    before = {name: value.clone() for name, value in own.teacher.network.state_dict().items()}
    rounds(toy_config(guidance=Discriminator()), own, 2)
    assert all(torch.equal(value, before[name]) for name, value in own.teacher.network.state_dict().items())
    assert torch.equal(own.condensed.images, prepared.condensed.images)
    assert torch.equal(own.proxy.images, prepared.proxy.images)


def test_settled_samples_equal_those_that_a_store_returns(prepared):
    store = local_store(toy_config(), prepared, None)
    settled = settle(samples(6), store.codec, prepared.teacher)
    back = store.gather(store.append(settled))
    assert torch.equal(back.images, settled.images)
    assert torch.equal(back.logits, settled.logits)
    assert torch.allclose(settled.logits, prepared.teacher.logits(back.images), atol=1e-2)


def test_a_loss_that_is_not_finite_raises_before_anything_is_stored(prepared):
    config = toy_config(inversion=Fast(steps=2, batch=16, latent=16, width=8, bn_weight=1e39))  # infinite in float32
    state, store = start(config, prepared), local_store(config, prepared, None)
    with pytest.raises(NonFiniteError, match=r"loss term inversion/loss is not finite at step 1"):
        run_round(config, prepared, state, store)
    assert (store.num_ids, state.round, state.history) == (0, 0, [])


def test_bfloat16_trains_the_same_trial(prepared):
    """With this number of steps, a student with stale rounded weights (autocast's cache) would not learn."""
    # At this learning rate, rounding differences between CPUs grow to less than 1 %.
    distiller = Distiller(steps=20, batch=16, condensed_share=0.25, lr=3e-3)
    exact = rounds(toy_config(distiller=distiller), prepared, 3)[0].history
    rough = rounds(toy_config(distiller=distiller, precision="bfloat16"), prepared, 3)[0].history
    assert [r["kd/loss"] for r in rough] == pytest.approx([r["kd/loss"] for r in exact], rel=0.05)
    assert rough[0]["kd/loss"] != exact[0]["kd/loss"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": 0}, "rounds is 0; accepted: an integer >= 1"),
        ({"evaluate_every": 0}, "evaluate_every is 0; accepted: an integer >= 1"),
        ({"seed": -1}, "seed is -1; accepted: an integer >= 0"),
        ({"condensation": None}, "condensed_share without a condensation is 0.25; accepted: 0, or a condensation"),
        (
            {"condensation": None, "distiller": PURE, "guidance": Discriminator()},
            "guidance without a condensation is 'discriminator'; accepted: none, or a condensation",
        ),
        ({"inversion": NoInversion()}, "smallest condensed_share without an inversion is 0.25; accepted: 1"),
    ],
)
def test_contradictory_configs_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        toy_config(**changes)


def test_the_arms_without_condensed_images_are_accepted():
    assert toy_config(condensation=None, distiller=PURE, guidance=NoGuidance()).condensation is None


def test_a_student_for_larger_images_is_refused(prepared):
    with pytest.raises(InputError, match="network convnet-4-8 on images of 8x8: smallest side is 8; accepted: 16"):
        start(toy_config(student=ConvNet(depth=4, width=8)), prepared)


@dataclass(frozen=True, kw_only=True)
class RecordingFeedback(Growing):
    """A growing memory that records its feedback."""

    def init(self, teacher, rng):
        state = super().init(teacher, rng)
        state.feedback = []
        return state

    def feedback(self, state, ids, priority):
        state.feedback.append((ids, priority))


def test_the_memory_gets_the_gap_between_student_and_teacher_for_each_drawn_sample(prepared):
    config = replace(toy_config(rounds=2), memory=RecordingFeedback())
    state = start(config, prepared)
    store = local_store(config, prepared, None)
    for _ in range(2):
        run_round(config, prepared, state, store)
    distiller = config.distiller
    assert len(state.memory.feedback) == 2 * distiller.steps
    for ids, gap in state.memory.feedback:
        assert len(ids) == len(gap) == distiller.batch - distiller.num_condensed(0)
        assert (ids >= 0).all()
        assert (ids < store.num_ids).all()
        assert (gap >= 0).all()
        assert gap.max() > 0
        assert not gap.requires_grad
