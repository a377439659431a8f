"""(c) Checks that no inversion, guidance or memory makes the host wait for the device inside its steps."""

import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from functools import wraps
from itertools import product
from pathlib import Path
from typing import Any, TypeVar, get_args

import torch

from condkd_ray.core.method import Meter
from condkd_ray.methods.condensation import RandomReal
from condkd_ray.methods.distiller import Distiller
from condkd_ray.methods.guidance import AnyGuidance, Guidance
from condkd_ray.methods.inversion import AnyInversion, NoInversion, nayer
from condkd_ray.methods.memory import AnyMemory
from condkd_ray.models import ResNet
from condkd_ray.trial.config import TrialConfig
from condkd_ray.trial.loop import distil
from condkd_ray.trial.synthesis import Production, arithmetic, synthesise
from gpu import world
from gpu.parts import Box, Setup, Verdict

T = TypeVar("T")
SMALL = {
    "steps": 2,
    "batch": 16,
    "images_per_round": 32,
    "latent": 16,
    "width": 8,
    "negatives": 8,
    "bank": 24,
    "head": 8,
}
SMALL |= {"capacity": 40, "entries": 3, "entry_size": 4, "period": 1, "share": 0.25, "scale": 0.02}
ALLOWED: tuple[tuple[Any, str], ...] = ((Meter, "read"), (nayer, "occurrences"), (Guidance, "hold_out"))
"""Functions that may wait once per round: reading the loss terms at its end, counting classes at its beginning (NAYER),
and finding the held-out images of a guidance."""
SHAPE, CLASSES, PER_CLASS = (3, 8, 8), 4, 2


def waits(setup: Setup, box: Box) -> Verdict:
    """Run two rounds of every inversion with every memory and every guidance; PyTorch's sync check covers the second.

    Without CUDA the rounds run, but nothing can be checked.
    """
    found = world.teacher(ResNet(depth=8, width=4), SHAPE, CLASSES, setup.device)
    what = world.prepared(found, PER_CLASS)
    names = combinations()
    failed: dict[str, str] = {}
    for name, config in names.items():
        try:
            check_rounds(config, what)
        except Exception as error:
            failed[name] = f"{error} at {place_of(error)}".splitlines()[0][:300]
            box.note("failed", dict(failed))
    checked = setup.device.type == "cuda"
    box.note("rounds", {"run": len(names), "failed": len(failed), "checked": checked})
    text = f"{len(failed)} of {len(names)} combinations wait or fail; goal: none"
    return Verdict(not failed, text if checked else f"{text}; without CUDA the host never waits: nothing was checked")


def combinations() -> dict[str, TrialConfig]:
    """Return trials in which each inversion occurs with each memory and each guidance, by the names of these."""
    inversions = [small(kind) for kind in get_args(AnyInversion) if kind is not NoInversion]
    memories, guides = [small(kind) for kind in get_args(AnyMemory)], [small(kind) for kind in get_args(AnyGuidance)]
    made = {}
    for (turn, inversion), (place, memory) in product(enumerate(inversions), enumerate(memories)):
        guidance = guides[(turn + place) % len(guides)]
        made[f"{inversion.name}, {guidance.name}, {memory.name}"] = TrialConfig(
            student=ResNet(depth=8, width=2),
            condensation=RandomReal(ipc=PER_CLASS),
            inversion=inversion,
            guidance=guidance,
            memory=memory,
            distiller=Distiller(steps=2, batch=16, condensed_share=0.25),
            rounds=4,
        )
    return made


def small(kind: type[T]) -> T:
    """Return the method `kind` with small sizes."""
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in SMALL.items() if name in names})


def check_rounds(config: TrialConfig, what: Any) -> None:
    """Run two rounds on the prepared data `what`; raise the error of an operation of the second that waits."""
    # One-time work, such as constants moved to the device, may wait: the first round does it outside the check.
    device = what.teacher.device
    config = replace(config, precision="bfloat16" if device.type == "cuda" else "float32")
    trial = world.Running(config, what)
    store = trial.store
    with arithmetic(config, device):
        distil(config, what, trial.state, store)
        production, student = trial.state.production, trial.state.distiller.student
        # This waits, but once per round, not in a step.
        counts = store.class_counts.to(device)
        assert isinstance(production, Production)
        with no_waits(device):
            synthesise(config, what, production, student, counts)
        with no_waits(device):
            distil(config, what, trial.state, store)


@contextmanager
def no_waits(device: torch.device) -> Iterator[None]:
    """On CUDA, raise `RuntimeError` for an operation in the block that makes the host wait; `ALLOWED` may wait."""
    if device.type != "cuda":
        yield
        return
    with ExitStack() as restored:
        for owner, name in ALLOWED:
            restored.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, _relaxed(getattr(owner, name)))
        restored.callback(torch.cuda.set_sync_debug_mode, "default")
        torch.cuda.set_sync_debug_mode("error")
        yield


def _relaxed(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def allowed(*given: Any) -> Any:
        torch.cuda.set_sync_debug_mode("default")
        try:
            return function(*given)
        finally:
            torch.cuda.set_sync_debug_mode("error")

    return allowed


def place_of(error: Exception) -> str:
    """Return the last line of this package in the error's traceback."""
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "condkd_ray" in frame.filename]
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "unknown place"
