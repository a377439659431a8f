"""Do trials gain or lose by sharing their synthetic images?

`own`: each trial makes its own. `shared inversion`: trials with equal images (here all IPCs of a seed) make them once;
the numbers equal `own`, in less time. `sweep's pool`: every trial draws from the images of all trials: more images per
student, but numbers depend on timing. The inversion must not depend on the student.

    python experiments/ablate_sharing.py --ipcs 1 2 5 10 --dataset cifar10 --data-root DIR --out runs/sharing_cifar10
"""

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from condkd_ray.commands.experiment import Flags, Plans, arm, command_line, run
from condkd_ray.core.method import require
from condkd_ray.trial.plan import Scope, can_share

SCOPES: dict[str, Scope] = {"own": "trial", "shared inversion": "inversion", "sweep's pool": "sweep"}


@dataclass(frozen=True, kw_only=True)
class Args(Flags):
    """Flags of this experiment, and the common ones. All arms mix condensed images in; none is guided."""

    seeds: tuple[int, ...] = (0, 1, 2)
    inversion: str | None = None
    """`deep_inversion` without this flag and --host."""
    guidance: str = "none"
    steps: int = 20
    """Inversion steps per round; a host keeps its own."""
    out: Path = Path("runs/ablate_sharing")


def plans(args: Args) -> Plans:
    """Yield every scope at every IPC for every seed."""
    default = args.inversion is None and args.host is None
    base = (replace(args, inversion="deep_inversion") if default else args).base()
    require(args.share == "trial", "--share", args.share, "trial: here each arm sets its own scope")
    require(base.pipeline is None, "--producers", args.producers, "0: images of producers cannot be shared")
    accepted = "an inversion that does not depend on the student, such as deep_inversion or dafl"
    flag = "--inversion" if args.host is None else "--host"
    require(can_share(base), flag, args.host or base.inversion.name, accepted)
    if args.host is None:
        base = replace(base, inversion=replace(base.inversion, steps=args.steps))  # type: ignore[call-arg]
    for (name, scope), ipc, seed in product(SCOPES.items(), args.ipcs, args.seeds):
        yield replace(arm(base, "mixed", ipc, seed, name), scope=scope)


if __name__ == "__main__":
    command_line(Args, lambda args: run("ablate_sharing", __doc__ or "", plans(args), args, baseline="own"))
