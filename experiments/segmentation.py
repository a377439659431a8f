"""Do a few labelled images help to invert a teacher that has a class for every pixel?

`none` is data-free. The labelled images are distilled alone (`condensed_only`) or mixed into the batches (`mixed`). In
the next arms the generator gets a class for each pixel, a layout, and the class prior demands it: random layouts in
`mixed_prior`, the masks of the labelled images, flipped and shifted, in `layouts`; `guided` adds a guidance by features
under the masks. `real` is distilled from all images. `--inversion fast` has random layouts and a prior in all arms:
`mixed_prior` then changes only its weight. The data are small artificial scenes.

    python experiments/segmentation.py --dataset camvid --data-root DIR --size 72 96 --ipcs 5 20 --out runs/camvid
"""

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from condkd_ray.commands.experiment import Flags, Plan, Plans, arm, command_line, run

BASELINES = {"condensed_only": "none", "mixed": "condensed_only", "mixed_prior": "mixed", "real": "mixed"}
BASELINES |= {"layouts": "mixed_prior", "guided": "layouts"}
"""The arm with which each arm is compared, mostly that from which it differs in one step."""


@dataclass(frozen=True, kw_only=True)
class Args(Flags):
    """Flags of this experiment, and the common ones."""

    dataset: str = "scenes"
    ipcs: tuple[int, ...] = (5,)
    seeds: tuple[int, ...] = (0, 1, 2)
    inversion: str | None = None
    """The inversion, with its own recipe of this project; default: `dfad`, or the inversion of --host."""
    rounds: int | None = None
    """Rounds of the student; default: 20, or the rounds of --host."""
    guidance_weight: float | None = 1.0
    prior_weight: float = 1.0
    prior_temperature: float = 1.0
    out: Path = Path("runs/segmentation")


def plans(args: Args) -> Plans:
    """Yield every trial; `none` and `real` run once per seed."""
    # Imported here, so that help and wrong flags do not wait for PyTorch.
    from condkd_ray.methods.guidance import NoGuidance
    from condkd_ray.methods.targets import Layouts

    own = {"inversion": args.inversion or "dfad", "rounds": 20 if args.rounds is None else args.rounds}
    base = replace(args, **({} if args.host else own)).base()
    conditional = {"conditional": True} if hasattr(base.inversion, "conditional") else {}
    asked = replace(base, inversion=replace(base.inversion, **conditional), targets=Layouts())
    for name, seed in product(("none", "real"), args.seeds):
        yield arm(base, name, 0, seed)
    for ipc, seed in product(args.ipcs, args.seeds):
        yield from (arm(base, name, ipc, seed) for name in ("condensed_only", "mixed"))
        yield arm(asked, "mixed_prior", ipc, seed, prior=args.prior)
        guided = arm(asked, "guided", ipc, seed, prior=args.prior)
        yield from (Plan("layouts", ipc, seed, replace(guided.config, guidance=NoGuidance())), guided)


if __name__ == "__main__":
    command_line(Args, lambda args: run("segmentation", __doc__ or "", plans(args), args, baseline=BASELINES))
