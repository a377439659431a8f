"""How long do 64 to 4000 trials wait for pool and driver? A simulation with the CPU times that the benchmark measured.

Prints one Markdown table, which is also in `condkd_ray/docs/many_machines.md`. Takes a few seconds.

    python experiments/simulate_cluster.py --trials 1000 --round-seconds 5 --pools 1 2 8
"""

from dataclasses import dataclass
from pathlib import Path

from condkd_ray.commands.experiment import command_line


@dataclass(frozen=True, kw_only=True)
class Args:
    """Clusters to simulate: each combination of the flags."""

    trials: tuple[int, ...] = (64, 250, 1000, 4000)
    """Numbers of trials that run at once."""
    round_seconds: tuple[float, ...] = (1.0, 10.0)
    """Mean times of a round without waiting."""
    pools: tuple[int, ...] = (1, 4)
    """Numbers of pools, and of as many drivers, among which the trials are divided."""
    rows: Path = Path(__file__).with_name("benchmark_cluster.parquet")
    """The benchmark's rows, which contain the CPU times."""


def main(args: Args) -> int:
    """Simulate and print."""
    # Imported here, so that help and wrong flags do not wait for PyTorch.
    from benchmark.names import DRIVER_CPU, POOL_CPU
    from benchmark.simulation import Wide, stored, table

    from condkd_ray.core.method import require

    for name, values in {"trials": args.trials, "round-seconds": args.round_seconds, "pools": args.pools}.items():
        require(bool(values) and min(values) > 0, f"--{name}", " ".join(map(str, values)), "positive numbers")
    cpu = {"pool_seconds": stored(args.rows, POOL_CPU) / 1e3, "driver_seconds": stored(args.rows, DRIVER_CPU) / 1e3}
    clusters = [
        Wide(trials=trials, round_seconds=seconds, pools=pools, drivers=pools, **cpu)
        for seconds in args.round_seconds
        for pools in args.pools
        for trials in args.trials
    ]
    print(table(clusters), end="")
    return 0


if __name__ == "__main__":
    command_line(Args, main)
