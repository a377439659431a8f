"""Which replay memory keeps the student from forgetting, and at how many bytes?

`latest` keeps the last round, `growing` all images, `reservoir` a uniform sample of all, `bank` (MB-DFKD) some past
rounds, `generative` (PRE-DFKD) a network trained on past images. Data-free without --condensed. Equal student steps.

    python experiments/ablate_memory.py --host pre_dfkd --scale 0.01 --dataset cifar10 --data-root DIR --out runs/memory
"""

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Literal

from condkd_ray.commands.experiment import Flags, Plans, arm, command_line, run

Memory = Literal["latest", "growing", "reservoir", "bank", "generative"]


@dataclass(frozen=True, kw_only=True)
class Args(Flags):
    """Flags of this experiment, and the common ones."""

    ipcs: tuple[int, ...] = (10,)
    """Condensed images per class, with --condensed."""
    memories: tuple[Memory, ...] | None = None
    """Memories to compare; default: all of these that work for the task of the data."""
    capacity: int = 512
    """Capacity of the reservoir, in samples. The bank keeps at most 10 entries of 128, as in its re-implementation. A
    host's own memory is not changed."""
    condensed: bool = False
    """Guide the inversion and mix condensed images in, as in the arm `guided` of ablate_ipc.py."""
    out: Path = Path("runs/ablate_memory")


def plans(args: Args) -> Plans:
    """Yield every memory for every seed."""
    # Imported here, so that help and wrong flags do not wait for PyTorch.
    from condkd_ray.methods.memory import MEMORIES, Bank, Generative, Growing, Latest, Reservoir

    base = args.base()
    kinds = {
        "latest": Latest, "growing": Growing, "generative": Generative,
        "reservoir": lambda: Reservoir(capacity=args.capacity),
        "bank": lambda: Bank(entry_size=min(Bank().entry_size, base.inversion.images_per_round)),
    }  # fmt: skip
    fitting = [name for name in kinds if base.data.task in MEMORIES.members()[name].tasks]
    names = fitting if args.memories is None else args.memories
    for name, ipc, seed in product(names, args.ipcs if args.condensed else [0], args.seeds):
        # A host's own memory keeps the host's settings.
        memory = base.memory if args.host and base.memory.name == name else kinds[name]()
        arm_name = "guided" if args.condensed else "none"
        yield arm(replace(base, memory=memory), arm_name, ipc, seed, name, prior=args.prior)


if __name__ == "__main__":
    command_line(Args, lambda args: run("ablate_memory", __doc__ or "", plans(args), args, baseline="latest"))
