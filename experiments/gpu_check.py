"""Are this machine's GPU results correct, and how close is the speed to the GPU's limits?

One process without Ray, Optuna and downloads, for nine minutes; only a library call that never returns cannot be
interrupted. Each part's figures are printed and stored at once, and a failed part stops no other. (f) to (h) need
CIFAR-10, which `gpu/halves.py` splits into two small parts for copying; other parts use random images, and (i) those of
CamVid if the data root has a folder `camvid`. The same command
continues where (g) was when its time ended. It has not yet run on a GPU.

    python experiments/gpu_check.py --data-root DIR
    python experiments/gpu_check.py --tiny          # tests the code on a CPU: a minute, no goals
"""

import argparse
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that a clone works without installation
from gpu.ceilings import versions
from gpu.opening import opened
from gpu.parts import Report, run
from gpu.plan import LETTERS, MINUTES, PARTS

from condkd_ray.core.environment import git_state
from condkd_ray.core.method import InputError, require

# With the standard library: such a machine has PyTorch, and few other packages.
PARSER = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
SAVED = "report; a later call adds to it, and one with another commit, device, size or PyTorch starts a new one"
PARSER.add_argument("--data-root", type=Path, help="folder of CIFAR-10; without it (f) to (h) are left out")
PARSER.add_argument("--minutes", type=float, default=MINUTES, help="time of all parts together")
PARSER.add_argument("--out", type=Path, default=Path(__file__).with_name("results") / "gpu_check.json", help=SAVED)
PARSER.add_argument("--work", type=Path, default=Path("runs/gpu_check"), help="folder of teacher and checkpoints")
PARSER.add_argument("--only", default=LETTERS, help="letters of the parts to run")
PARSER.add_argument("--tiny", action="store_true", help="small networks and numbers, on the CPU")


def check(given: argparse.Namespace) -> int:
    """Run the parts, and return the exit code. Raises `InputError` for flags that cannot be used."""
    require(0 < given.minutes <= 600, "--minutes", given.minutes, "a number above 0, at most 600")
    require(bool(given.only) and {*given.only} <= {*LETTERS}, "--only", given.only, f"letters of {LETTERS}")
    begun = time.monotonic()
    setup = opened(given.data_root, given.out.parent, given.work, only=given.only, small=given.tiny)
    about = {"git": git_state(), "tiny": given.tiny, "minutes": given.minutes} | versions(setup.device)
    chosen = [part for part in PARTS if part.letter in given.only]
    minutes = max(given.minutes - (time.monotonic() - begun) / 60, 0.0)
    return run(chosen, setup, Report.opened(given.out, about), minutes)


if __name__ == "__main__":
    # On SIGTERM, from a scheduler for example, also end the started processes, which would keep the GPU busy.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        sys.exit(check(PARSER.parse_args()))
    except InputError as refused:
        print(f"error: {refused}", file=sys.stderr)
        sys.exit(2)
