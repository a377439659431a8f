"""How much does guiding the inversion with a few condensed images per class help the student?

At 1, 5 and 10 images per class (IPC), against not using them (`none`), merely mixing them into the distillation
batches (`mixed`), and distilling from them alone (`condensed_only`). All arms take the same student steps on batches
of the same size; `real`, KD on real data with the same steps, is drawn as a reference.

    python experiments/ablate_ipc.py
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

Arm = Literal["none", "condensed_only", "mixed", "guided", "guided_only"]


@dataclass(frozen=True, kw_only=True)
class Args(Flags):
    """Flags of this experiment, and those common to all."""

    arms: tuple[Arm, ...] = ("none", "condensed_only", "mixed", "guided")
    """guided_only guides the inversion but keeps the condensed images out of the student's batches."""
    ipcs: tuple[int, ...] = (1, 5, 10)
    """Condensed images per class."""
    reference: bool = True
    """Also distil from all real data with the same student steps: a reference line, once per seed."""
    out: Path = Path("runs/ablate_ipc")


def arm(base: TrialConfig, name: str, ipc: int, seed: int) -> Plan:
    """What differs: who sees the condensed images."""
    share = {"condensed_only": 1.0, "real": 1.0, "mixed": None, "guided": None}.get(name, 0.0)
    distiller = base.distiller if share is None else replace(base.distiller, condensed_share=share)
    changes = {"distiller": distiller, "seed": seed}
    if not name.startswith("guided"):
        changes["guidance"] = NoGuidance()
    if name in ("condensed_only", "real"):
        changes["inversion"] = NoInversion()
    condensation = {"none": None, "real": AllReal()}.get(
        name, base.condensation and replace(base.condensation, ipc=ipc)
    )
    return Plan(name, ipc, seed, replace(base, condensation=condensation, **changes))


def plans(args: Args) -> Iterator[Plan]:
    """Every trial of the ablation, those without condensed images once per seed."""
    base = args.base(max_ipc=max(args.ipcs))
    once = [name for name in ("none", *["real"] * args.reference) if name == "real" or name in args.arms]
    yield from (arm(base, name, 0, seed) for name, seed in product(once, args.seeds))
    rest = [name for name in args.arms if name != "none"]
    yield from (arm(base, *choice) for choice in product(rest, args.ipcs, args.seeds))


if __name__ == "__main__":
    command_line(Args, lambda args: run("ablate_ipc", __doc__ or "", plans(args), args))
