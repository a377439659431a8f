"""How many rounds of each published system take as many CPU seconds as `fast` at the same scale?

Runs each system once in this process, at --scale of its published length, and writes its rounds times the seconds of
`fast` over its own seconds, for compare_methods.py. Measure on an idle machine; the file makes later runs repeatable.

    python experiments/equal_seconds.py --teacher wrn-40-2 --student wrn-16-1 --to rounds.yaml
"""

from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from condkd_ray.commands.console.exit_codes import log_line
from condkd_ray.commands.experiment import Flags, arm, command_line
from condkd_ray.core.method import require
from condkd_ray.core.storage import atomic_write
from condkd_ray.runs.presets import NAMES


@dataclass(frozen=True, kw_only=True)
class Args(Flags):
    """Flags of this measurement, and the common ones; flags of Ray and condensed images have no effect."""

    seeds: tuple[int, ...] = (0,)
    scale: float | None = 0.003
    to: Path = Path(__file__).parent / "results" / "equal_seconds.yaml"


def main(args: Args) -> int:
    """Measure, and write the file."""
    # Imported here, so that help and wrong flags do not wait for PyTorch.
    from condkd_ray.core.environment import default_device
    from condkd_ray.runs.estimate import trial_cpu_seconds
    from condkd_ray.trial.artifacts import Workshop

    given = {"--host": args.host, "--config": args.config, "--size": args.size, "--explain": args.explain or None}
    for flag, value in given.items():
        require(value is None, flag, value, "none: each system is measured as published, at --scale")
    workshop = Workshop(args.cache, device=default_device())
    configs = {name: arm(replace(args, host=name).base(), "none", 0, args.seeds[0]).config for name in NAMES}
    for config in configs.values():
        workshop.check(config)
    seconds = {}
    for name, config in configs.items():
        # Without evaluation, whose images would take most of the time.
        prepared = replace(workshop.prepare(config), landmarks=None, test=None, val=None)
        seconds[name] = trial_cpu_seconds(config, prepared)
        log_line(f"{name}: {config.total_rounds} rounds, {seconds[name]:.1f} CPU s")
    rounds = {name: max(1, round(configs[name].rounds * seconds["fast"] / took)) for name, took in seconds.items()}
    spent = {name: round(took, 2) for name, took in seconds.items()}
    what = {"dataset": args.dataset, "teacher": args.teacher_label, "student": args.student_label, "scale": args.scale}
    atomic_write(args.to, yaml.safe_dump(what | {"rounds": rounds, "cpu_seconds": spent}, sort_keys=False).encode())
    print(args.to)
    return 0


if __name__ == "__main__":
    command_line(Args, main, own_folder=False)
