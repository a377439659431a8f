"""(d) Costs of a step of synthesis and of distillation: milliseconds, launches, idle time, share of the peak."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import torch

from condkd_ray.core import compilation
from condkd_ray.core.environment import clean_process, set_up_gpu
from condkd_ray.core.method import InputError
from condkd_ray.core.rng import Streams
from condkd_ray.models.teacher import Teacher
from condkd_ray.runs.compute import compute
from condkd_ray.runs.presets import with_rounds
from condkd_ray.trial.config import TrialConfig
from condkd_ray.trial.loop import distil
from condkd_ray.trial.synthesis import arithmetic
from gpu import world
from gpu.ceilings import MATRICES
from gpu.parts import Box, BoxEndedError, Setup, SkippedError, Verdict
from gpu.timing import launched, milliseconds, peak_tflops

EAGER: dict[str, dict[str, Any]] = {
    "bfloat16": {"precision": "bfloat16"},
    "float32": {"precision": "float32"},
    "bfloat16, cuDNN by time": {"precision": "bfloat16"},
    "bfloat16, graphs": {"precision": "bfloat16", "graphs": True},
}
BY_TIME = "bfloat16, cuDNN by time"
"""The row in which cuDNN chooses the fastest algorithms, which need not be repeatable; it shows the possible gain."""
COMPILED: dict[str, dict[str, Any]] = {
    "bfloat16, compiled": {"precision": "bfloat16", "compile": "default"},
    "bfloat16, compiled, graphs": {"precision": "bfloat16", "compile": "default", "graphs": True},
}
"""Changed fields of the trial's config, by row name. The device pool and the folded teacher are always used."""
SHARE = 0.25
"""Share of the bfloat16 peak that distillation should reach."""
LEAST = 3
"""Smallest number of timed calls, each of several steps."""


def steps(setup: Setup, box: Box) -> Verdict:
    """Measure the teacher's logits alone, then both steps and the draw under each setting at each batch size."""
    found = world.teacher(setup.sizes.teacher.network, setup.sizes.shape, setup.sizes.classes, setup.device)
    calls: dict[str, Callable[[], dict[str, float]]] = {
        **{f"teacher alone, batch {batch}": partial(_alone, setup, box, found, batch) for batch in setup.sizes.batches},
        **{row_name(*one, "distillation"): partial(_row, setup, box, found, *one) for one in order(setup)},
    }
    best: dict[str, float] = {}
    failed: list[str] = []
    ended = ""
    try:
        for name, call in calls.items():
            share = _tried(box, name, call)
            best |= share or {}
            failed += [name] if share is None else []
    except BoxEndedError:
        ended = "; the time was over before all rows were measured"
    _clear()
    if failed:
        return Verdict(False, f"these rows failed: {'; '.join(failed)}{ended}")
    if not best:
        raise SkippedError(f"no share of a peak is known; of a device that is in no list (a) measures one{ended}")
    name, share = max(best.items(), key=lambda pair: pair[1])
    return setup.verdict(share >= SHARE, f"distillation at {share:.1%} of the peak ({name}){ended}", f"{SHARE:.0%}")


def order(setup: Setup) -> list[tuple[str, int]]:
    """Return rows with batch sizes. Compiled rows take a minute or more and come last, the first batch size first."""
    batches = setup.sizes.batches
    return [*product(EAGER, batches), *((row, batch) for batch in batches for row in COMPILED if setup.sizes.compiled)]


def row_name(row: str, batch: int, step: str) -> str:
    """Return the name under which a row's figures are noted."""
    return f"{row}, batch {batch}, {step}"


def _tried(box: Box, name: str, call: Callable[[], dict[str, float]]) -> dict[str, float] | None:
    """Return the result of `call`; None if it failed, which is noted under `name`.

    A batch may be too large for the memory, or a kernel may be missing; the other rows are measured nevertheless.
    """
    try:
        return call()
    except Exception as error:
        box.note(name, {"failed": f"{type(error).__name__}: {error}"})
    # Here the exception, and the memory that it kept alive, is gone.
    _clear()
    return None


def _clear() -> None:
    """Free the memory of compiled or failed calls, and restore a trial's settings of the GPU."""
    compilation.clear_compiled()
    clean_process(1)


def _alone(setup: Setup, box: Box, found: Teacher, batch: int) -> dict[str, float]:
    """Note the times of the teacher's logits alone, which have no goal."""
    box.note(f"teacher alone, batch {batch}", _logits_ms(setup, found, batch))
    return {}


def _row(setup: Setup, box: Box, found: Teacher, row: str, batch: int) -> dict[str, float]:
    """Note the figures of a row, and return the share of the peak that its distillation reaches, by the row's name."""
    name, config = f"{row}, batch {batch}", _config(setup, batch, **(EAGER | COMPILED)[row])
    try:
        compilation.check(config.compile, config.graphs, setup.device)
    except InputError as refused:
        box.note(name, {"skipped": str(refused)})
        return {}
    compilation.clear_compiled()
    set_up_gpu(by_time=row == BY_TIME)
    bench = Bench(setup, config, world.Running(config, world.prepared(found)))
    box.note(row_name(row, batch, "synthesis"), bench.synthesis(box))
    box.note(row_name(row, batch, "draw"), bench.draw())
    box.note(row_name(row, batch, "distillation"), learnt := bench.distillation(box))
    share = learnt.get("share_of_peak", learnt.get("share_of_product"))
    return {} if share is None or row == "float32" else {name: share}


def _config(setup: Setup, batch: int, **changes: Any) -> TrialConfig:
    """Return Fast at this batch size; adversarial term and distillation are active from the first round on."""
    config = world.without_warm_up(setup.sizes.fast(**changes))
    return replace(
        config,
        inversion=replace(config.inversion, batch=batch),  # type: ignore[call-arg]
        distiller=replace(config.distiller, steps=setup.sizes.student_steps, batch=batch),
    )


@dataclass(frozen=True)
class Bench:
    """A trial in progress whose steps are timed."""

    setup: Setup
    config: TrialConfig
    trial: world.Running

    def synthesis(self, box: Box) -> dict[str, Any]:
        """Return the figures of an inner step, averaged over whole rounds."""
        steps: int = self.config.inversion.steps  # type: ignore[attr-defined]
        images, operations = self.config.inversion.images_per_round, flops(self.config, self.setup)[0]
        return self._figures(box, self.trial.images, steps, images, operations)

    def distillation(self, box: Box) -> dict[str, Any]:
        """Return the figures of a student's step with its draw, averaged over a few steps."""
        settings = self.config.distiller

        def learn() -> None:
            with arithmetic(self.config, self.setup.device):
                distil(self.config, self.trial.prepared, self.trial.state, self.trial.store)

        return self._figures(box, learn, settings.steps, settings.batch, flops(self.config, self.setup)[1])

    def draw(self) -> dict[str, Any]:
        """Time a draw of a batch from the trial's memory; `index_ms`: selecting as many rows of one uint8 tensor."""
        memory, state, store = self.config.memory, self.trial.state, self.trial.store
        teacher, count, device = self.trial.prepared.teacher, self.config.distiller.batch, self.setup.device
        draw = partial(memory.draw, state.memory, store, count, teacher=teacher, rng=state.streams)
        whole = torch.zeros(store.num_ids, *teacher.image_shape, dtype=torch.uint8, device=device)
        rows = torch.randint(store.num_ids, (count,), device=device)
        repeats = self.setup.sizes.repeats
        return {
            "ms": milliseconds(draw, device, repeats=repeats),
            "index_ms": milliseconds(partial(whole.index_select, 0, rows), device, repeats=repeats),
        } | launched(draw, device)

    def _figures(
        self, box: Box, call: Callable[[], object], steps: int, images: int, operations: float
    ) -> dict[str, Any]:
        """Return the figures of one of the `steps` of `call`; a step performs `operations` on `images`."""
        sizes, device = self.setup.sizes, self.setup.device
        repeats = max(LEAST, -(-sizes.repeats // steps))
        taken = milliseconds(call, device, repeats=repeats, warm_up=2) / steps
        counts = {name: value / steps for name, value in launched(call, device, operators=False).items()}
        tflops = operations / taken / 1e9
        found = {"ms": taken, "images_per_second": 1000 * images / taken, "tflops": tflops} | counts
        if "busy_ms" in counts:
            # Busy time under the profiler, compared with the time without it.
            found["idle"] = max(0.0, 1 - counts["busy_ms"] / taken)
        ceilings = {"share_of_peak": peak_tflops(device), "share_of_product": _product(box)}
        return found | {name: tflops / ceiling for name, ceiling in ceilings.items() if ceiling}


def _product(box: Box) -> float | None:
    """Return the TFLOP/s of the matrix product that part (a) measured."""
    return (box.found("a", MATRICES) or {}).get("tflops")


def flops(config: TrialConfig, setup: Setup) -> tuple[float, float]:
    """Return the operations, two per multiply-add, of an inner step of synthesis and of a student's step."""

    def total(student_steps: int) -> float:
        one = with_rounds(replace(config, distiller=replace(config.distiller, steps=student_steps)), 1)
        return 2 * compute(one, setup.sizes.shape, setup.sizes.classes).multiply_adds

    student = total(2) - total(1)
    return (total(1) - student) / config.inversion.steps, student  # type: ignore[attr-defined]


def _logits_ms(setup: Setup, found: Teacher, batch: int) -> dict[str, float]:
    """Return the milliseconds of the teacher's logits under bfloat16, with folded BN and with its plain network."""
    rng = Streams(2, setup.device)
    images = world.noise(batch, setup.sizes.shape, setup.device, rng)

    @torch.no_grad()
    def plain() -> None:
        found.network(images)

    with torch.autocast(setup.device.type, torch.bfloat16, cache_enabled=False):
        calls = {"answers_ms": partial(found.batched_logits, images), "network_ms": plain}
        return {name: milliseconds(call, setup.device, repeats=setup.sizes.repeats) for name, call in calls.items()}
