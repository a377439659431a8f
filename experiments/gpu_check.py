"""Does this machine's GPU compute what it should, and how near its limits does it come?

One process without Ray, Optuna and downloads, in nine minutes, unless a call into a library never returns: that cannot
be interrupted. Each part is printed and stored as soon as it is known; one that fails stops no other. (f) to (h) need
CIFAR-10, which `gpu/halves.py` makes small enough to be copied in two parts; the others have random images. The same
command goes on where (g) was at the end of its time. It has not yet run on a GPU.

    python experiments/gpu_check.py --data-root DIR
    python experiments/gpu_check.py --tiny          # tries the code out on a CPU: a minute, no goals
"""

import argparse
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # A clone that nobody has installed is enough.
from gpu.ceilings import versions
from gpu.opening import opened
from gpu.parts import Report, run
from gpu.plan import LETTERS, MINUTES, PARTS

from condkd_ray.core.environment import git_state
from condkd_ray.core.method import InputError, require

# By the standard library: such a machine has PyTorch, and little else.
PARSER = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
SAVED = "a later call adds to it; one of another commit, device, size or PyTorch is renamed and begun anew"
PARSER.add_argument("--data-root", type=Path, help="folder of CIFAR-10; without it (f) to (h) are left out")
PARSER.add_argument("--minutes", type=float, default=MINUTES, help="of all parts together")
PARSER.add_argument("--out", type=Path, default=Path(__file__).with_name("results") / "gpu_check.json", help=SAVED)
PARSER.add_argument("--work", type=Path, default=Path("runs/gpu_check"), help="teacher and checkpoint, to go on from")
PARSER.add_argument("--only", default=LETTERS, help="letters of the parts to run")
PARSER.add_argument("--tiny", action="store_true", help="small networks and numbers, on the CPU")


def check(given: argparse.Namespace) -> int:
    """Run the parts. Raises `InputError`."""
    require(0 < given.minutes <= 600, "--minutes", given.minutes, "a number above 0, at most 600")
    require(bool(given.only) and {*given.only} <= {*LETTERS}, "--only", given.only, f"letters of {LETTERS}")
    begun = time.monotonic()
    setup = opened(given.data_root, given.out.parent, given.work, only=given.only, small=given.tiny)
    about = {"git": git_state(), "tiny": given.tiny, "minutes": given.minutes} | versions(setup.device)
    chosen = [part for part in PARTS if part.letter in given.only]
    minutes = max(given.minutes - (time.monotonic() - begun) / 60, 0.0)
    return run(chosen, setup, Report.opened(given.out, about), minutes)


if __name__ == "__main__":
    # Whoever ends it, such as a scheduler, ends what it has started too: that would hold the GPU.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        sys.exit(check(PARSER.parse_args()))
    except InputError as refused:
        print(f"error: {refused}", file=sys.stderr)
        sys.exit(2)
