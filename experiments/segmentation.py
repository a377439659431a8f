"""Segmentation: do a few labelled images help to invert a teacher that has a class for every pixel?

`none` is data-free. The labelled images are distilled alone (`condensed_only`), or mixed into the batches (`mixed`). In
the last three arms the generator gets a layout, a class for each pixel, and the class prior demands it: `mixed_prior`
with random layouts, `layouts` with the masks of the labelled images, flipped and shifted, and `guided` with a guidance
by features under the masks in addition. `real`, distillation from all images, is a reference. All arms take the same
number of student steps. Without flags the data are small artificial scenes.

    python experiments/segmentation.py --dataset camvid --data-root DIR --size 72 96 --ipcs 5 20 --out runs/camvid
"""

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from condkd_ray.commands.experiment import Flags, Plan, Plans, arm, command_line, run

if TYPE_CHECKING:
    from condkd_ray.trial.config import TrialConfig


BASELINES = {
    **{"condensed_only": "none", "mixed": "condensed_only", "mixed_prior": "mixed"},
    **{"layouts": "mixed_prior", "guided": "layouts", "real": "mixed"},
}
"""The arm with which each arm is compared: it differs in one step only."""


@dataclass(frozen=True, kw_only=True)
class Args(Flags):
    """Flags of this experiment, and the common ones."""

    dataset: str = "scenes"
    ipcs: tuple[int, ...] = (5,)
    """Numbers of labelled images, one or more values."""
    seeds: tuple[int, ...] = (0, 1, 2)
    inversion: str | None = "dfad"
    """The inversion: dfad, dafl, fast, cmi or deep_inversion."""
    rounds: int | None = 20
    prior_weight: float = 1.0
    prior_temperature: float = 1.0
    reference: bool = True
    """Also distil from all real images, once per seed."""
    out: Path = Path("runs/segmentation")


def with_layouts(base: "TrialConfig") -> "TrialConfig":
    """Return the base config with a generator that gets layouts, made of the masks of the labelled images."""
    # Imported here, so that help and wrong flags do not wait for PyTorch.
    from condkd_ray.methods.targets import Layouts

    given = {"conditional": True} if hasattr(base.inversion, "conditional") else {}
    return replace(base, inversion=replace(base.inversion, **given), targets=Layouts())


def plans(args: Args) -> Plans:
    """Yield every trial; `none` and `real` run once per seed."""
    from condkd_ray.methods.guidance import NoGuidance

    base = args.base()
    asked = with_layouts(base)
    yield from (arm(base, "none", 0, seed) for seed in args.seeds)
    yield from (arm(base, "real", 0, seed) for seed in args.seeds if args.reference)
    for ipc, seed in product(args.ipcs, args.seeds):
        yield arm(base, "condensed_only", ipc, seed)
        yield arm(base, "mixed", ipc, seed)
        yield arm(asked, "mixed_prior", ipc, seed, prior=args.prior)
        guided = arm(asked, "guided", ipc, seed, prior=args.prior)
        yield Plan("layouts", ipc, seed, replace(guided.config, guidance=NoGuidance()))
        yield guided


if __name__ == "__main__":
    command_line(Args, lambda args: run("segmentation", __doc__ or "", plans(args), args, baseline=BASELINES))
