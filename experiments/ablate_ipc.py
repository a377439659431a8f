"""How much does guiding the inversion with a few condensed images per class (IPC) help the student?

Against not using them (`none`), merely mixing them into the distillation batches (`mixed`), and distilling from them
alone (`condensed_only`); `real`, KD on all real data, is a reference. Every arm takes the same student steps.

    python experiments/ablate_ipc.py --dataset cifar10 --data-root DIR --ipcs 1 10 --seeds 0 1 2 --out runs/cifar10
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Literal

from condkd_ray.condensation import AllReal
from condkd_ray.experiment import Flags, Plan, command_line, run
from condkd_ray.guidance import NoGuidance
from condkd_ray.inversion import NoInversion
from condkd_ray.trial import TrialConfig


@dataclass(frozen=True, kw_only=True)
class Args(Flags):
    """Flags of this experiment, and those common to all."""

    arms: tuple[Literal["none", "condensed_only", "mixed", "guided", "guided_only"], ...] = (
        "none", "condensed_only", "mixed", "guided",
    )  # fmt: skip
    """guided_only keeps the condensed images out of the student's batches."""
    reference: bool = True
    """Also distil from all real data, once per seed."""
    out: Path = Path("runs/ablate_ipc")


def arm(base: TrialConfig, name: str, ipc: int, seed: int) -> Plan:
    """What differs: who sees the condensed images, the student, the inversion, both or neither."""
    mixed, few = base.distiller.condensed_share, base.condensation
    share = {"condensed_only": 1.0, "real": 1.0, "mixed": mixed, "guided": mixed}.get(name, 0.0)
    config = replace(
        base,
        seed=seed,
        condensation=replace(few, ipc=ipc) if few and ipc else AllReal() if name == "real" else None,
        inversion=NoInversion() if share == 1 else base.inversion,
        guidance=base.guidance if name.startswith("guided") else NoGuidance(),
        distiller=replace(base.distiller, condensed_share=share),
    )
    return Plan(name, ipc, seed, config)


def plans(args: Args) -> Iterator[Plan]:
    """Every trial of the ablation; those without condensed images once per seed."""
    base = args.base()
    once = [name for name in ("none", *["real"] * args.reference) if name == "real" or name in args.arms]
    rest = [name for name in args.arms if name != "none"]
    for name, ipc, seed in [*product(once, [0], args.seeds), *product(rest, args.ipcs, args.seeds)]:
        yield arm(base, name, ipc, seed)


if __name__ == "__main__":
    command_line(Args, lambda args: run("ablate_ipc", __doc__ or "", plans(args), args))
