"""Are inverted images closer to real ones if the shift moves in black, as published, instead of mean grey?

Each host makes its images both ways from the same draws, without a student; both are compared with test images.

    python experiments/compare_padding.py --dataset cifar10 --data-root DIR --teacher resnet-14-16 --teacher-weights W
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from condkd_ray.commands.console.exit_codes import log_line, show
from condkd_ray.commands.experiment import Flags, arm, command_line
from condkd_ray.core.method import require
from condkd_ray.core.storage import atomic_write


@dataclass(frozen=True, kw_only=True)
class Args(Flags):
    """Flags of this experiment, and the common ones; flags of students, condensed images and Ray have no effect."""

    hosts: tuple[Literal["fast", "cmi", "nayer"], ...] = ("fast", "cmi", "nayer")
    seeds: tuple[int, ...] = (0, 1, 2)
    rounds: int = 8
    inversion_steps: int = 1000
    """Largest number of Adam steps per round; a host's smaller number is kept."""
    out: Path = Path("runs/compare_padding")


def grey(self: Any, images: Any, *, teacher: Any, rng: Any) -> Any:
    """Augment as a host did before: zeros of the normalised space, which are mean grey, move in."""
    from condkd_ray.data.augment import shift_flip

    return shift_flip(images, rng=rng, share=self.shift, flip=teacher.flip_ok, black=0.0)


def main(args: Args) -> int:
    """Make the images, measure them, and write the table."""
    from condkd_ray.core.environment import default_device  # imported here, so that help does not wait for PyTorch
    from condkd_ray.runs.inverted import held_out, measure, side_by_side
    from condkd_ray.runs.output_folder import open_folder
    from condkd_ray.trial.artifacts import Workshop

    require(args.host is None, "--host", args.host, "none: --hosts selects the hosts")
    bases: Any = {name: arm(replace(args, inversion=name).base(), "none", 0, 0).config for name in args.hosts}
    workshop, found = Workshop(args.cache, device=default_device()), {}
    open_folder(args.out, "compare_padding", fresh=args.fresh)
    for name, base in bases.items():
        host = replace(base.inversion, adv_weight=0.0, steps=min(base.inversion.steps, args.inversion_steps))
        ways = (type("Old", (type(host),), {"augment": grey})(**vars(host)), host)
        real, trials = held_out(made := workshop.prepare(base)), [replace(base, inversion=way) for way in ways]
        found[name] = [[measure(replace(one, seed=seed), made, real) for seed in args.seeds] for one in trials]
        log_line(f"{name} is measured")
    show((table := side_by_side("Old padding (mean grey) and new (black)", found)).text())
    atomic_write(args.out / "padding.md", table.markdown().encode())
    return 0


if __name__ == "__main__":
    command_line(Args, main)
