import contextlib
import copy
from dataclasses import replace
from functools import cache

import pytest
import torch
import toy

from condkd_ray.core import compilation
from condkd_ray.core.method import InputError, Metrics
from condkd_ray.core.records import Outcome
from condkd_ray.methods.guidance import Discriminator
from condkd_ray.methods.inversion import DeepInversion, Fast
from condkd_ray.methods.memory import Latest
from condkd_ray.methods.weighing import Modulating
from condkd_ray.trial.config import Pipeline, Prepared, TrialConfig
from condkd_ray.trial.loop import run_round, start
from condkd_ray.trial.run import local_store, run_trial
from condkd_ray.trial.synthesis import begin, codec, own_compilation, produce, settle

CPU = torch.device("cpu")
FAST = Fast(steps=2, batch=16, latent=16, width=8)
USES_STUDENT = toy.toy_config(inversion=FAST, guidance=Discriminator(hidden=16), rounds=6)
FREE = toy.toy_config(inversion=DeepInversion(steps=2, batch=16), rounds=5)
WEIGHS = replace(FREE, weighing=Modulating(), memory=Latest())
WARMS = replace(USES_STUDENT, inversion=replace(FAST, warm_up=2), rounds=3)


@cache
def undisturbed(config: TrialConfig) -> Outcome:
    prepared = toy.make_prepared()
    return run_trial(config, prepared, local_store(config, prepared, None))


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return toy.make_prepared()


def numbers(history: list[Metrics]) -> list[Metrics]:
    return [{k: v for k, v in metrics.items() if not k.startswith("time/")} for metrics in history]


def piped(config: TrialConfig, **fields: int) -> TrialConfig:
    return replace(config, pipeline=Pipeline(**fields))


def by_definition(config: TrialConfig, prepared: Prepared) -> list[Metrics]:
    """Compute every round by its definition, with copies of the students and counts of all earlier rounds."""
    assert config.pipeline is not None
    producers, staleness = config.pipeline.producers, config.pipeline.staleness
    productions = [begin(config, prepared, number) for number in range(producers)]
    students, counts = [], []

    def source(config, prepared, state, store):
        students.append(copy.deepcopy(state.distiller.student))
        counts.append(store.class_counts.clone())
        seen = max(0, state.round - staleness)
        return produce(config, prepared, productions[state.round % producers], students[seen], counts[seen])

    state, store = start(config, prepared), local_store(config, prepared, None)
    for _ in range(config.total_rounds):
        run_round(config, prepared, state, store, source)
    return state.history


@pytest.mark.parametrize("config", [USES_STUDENT, WEIGHS, WARMS], ids=["asks", "weighs", "warms up"])
def test_staleness_0_equals_the_plain_loop(config):
    assert numbers(undisturbed(piped(config, staleness=0)).history) == numbers(undisturbed(config).history)


def test_without_use_of_the_student_any_staleness_equals_the_plain_loop():
    assert numbers(undisturbed(piped(FREE, staleness=3)).history) == numbers(undisturbed(FREE).history)


@pytest.mark.parametrize(
    "config",
    [
        piped(USES_STUDENT, staleness=1),
        piped(USES_STUDENT, staleness=2, producers=2),
        piped(WARMS, staleness=2),
        piped(WEIGHS, staleness=2, producers=3),
    ],
)
def test_each_round_uses_the_student_and_the_counts_of_staleness_rounds_before(config, prepared):
    history = numbers(undisturbed(config).history)
    assert history == numbers(by_definition(config, prepared))
    assert history != numbers(undisturbed(replace(config, pipeline=None)).history)


class StopTrialError(Exception):
    """Raised by a test to leave a trial."""


@pytest.mark.parametrize("config", [piped(USES_STUDENT, staleness=2, producers=2), piped(WARMS, staleness=1)])
@pytest.mark.parametrize("left_after", [1, 4])
def test_a_pipelined_trial_continues_from_a_checkpoint_to_the_same_numbers(config, left_after, prepared, tmp_path):
    def leave(metrics: Metrics) -> None:
        if metrics["round"] == left_after:
            raise StopTrialError

    files = {"checkpoint": tmp_path / "state", "checkpoint_seconds": 0.0}
    with pytest.raises(StopTrialError):
        run_trial(config, prepared, local_store(config, prepared, tmp_path), on_round=leave, **files)
    continued = run_trial(config, prepared, local_store(config, prepared, tmp_path), **files)
    assert numbers(continued.history) == numbers(undisturbed(config).history)
    assert continued.predictions == undisturbed(config).predictions


def test_a_trial_keeps_only_the_snapshots_that_later_rounds_use(prepared):
    config = piped(USES_STUDENT, staleness=2)
    state, store = start(config, prepared), local_store(config, prepared, None)
    kept = []
    for _ in range(config.total_rounds):
        run_round(config, prepared, state, store)
        kept.append(sorted(state.production.past))
    assert kept == [[0], [0, 1], [1, 2], [2, 3], [3, 4], [4, 5]]


def test_producers_draw_from_their_own_streams(prepared):
    config = piped(FREE, producers=2)
    counts = torch.zeros(toy.NUM_CLASSES, dtype=torch.int64)
    student = prepared.teacher.network
    made = [produce(config, prepared, begin(config, prepared, n), student, counts)[0].images for n in (0, 1)]
    alone = produce(FREE, prepared, begin(FREE, prepared), student, counts)[0].images
    assert not any(torch.equal(left, right) for left, right in [(made[0], made[1]), (made[0], alone)])


def test_settled_samples_share_no_memory_with_the_given_ones(prepared):
    code, given = codec(FREE, prepared.teacher), toy.samples(6)
    for with_logits in (False, True):
        kept = settle(given, code, prepared.teacher, logits=with_logits)
        encoded = code.encode(kept)
        own = {tensor.untyped_storage().data_ptr() for tensor in (given.images, given.labels)}
        assert torch.equal(kept.labels, given.labels)
        for tensor in (kept.images, kept.labels, encoded.images, encoded.labels):
            assert tensor.untyped_storage().data_ptr() not in own


@compilation.whole
def doubled(x: torch.Tensor) -> torch.Tensor:
    """Return 2 x."""
    return x + x


def compile_doubled() -> None:
    """Call `doubled`, compiled unless it has been compiled already."""
    with compilation.in_mode(compilation.Mode("eager")):
        doubled(torch.ones(2))


@pytest.fixture
def compile_calls(monkeypatch):
    """Replace `torch.compile`, which takes minutes, by a function that records its calls and compiles nothing."""
    calls = []
    monkeypatch.setattr(torch, "compile", lambda function, **_: (calls.append(function), function)[1])
    compilation.clear_compiled()
    yield calls
    compilation.clear_compiled()


@pytest.mark.parametrize("ending", ["an outcome", "a lack of memory", "another error"])
def test_compiled_functions_are_dropped_at_the_end_of_a_trial(ending, prepared, compile_calls):
    """A function that the trial compiled is compiled anew after it."""
    held = []

    def round(metrics: Metrics) -> None:
        compile_doubled()
        compile_doubled()
        held.append(len(compile_calls))
        if ending == "a lack of memory":
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        if ending == "another error":
            raise StopTrialError

    with pytest.raises(StopTrialError) if ending == "another error" else contextlib.nullcontext():
        run_trial(FREE, prepared, local_store(FREE, prepared, None), on_round=round)
    assert set(held) == {1}
    compile_doubled()
    assert len(compile_calls) == 2


def test_settings_that_a_device_does_not_support_are_refused_at_the_start(prepared, compile_calls):
    with pytest.raises(InputError, match="graphs on a CPU is True"), own_compilation(replace(FREE, graphs=True), CPU):
        pytest.fail("not to be reached")
    with own_compilation(FREE, CPU):
        compile_doubled()
        compile_doubled()
        assert len(compile_calls) == 1
    compile_doubled()
    assert len(compile_calls) == 2
