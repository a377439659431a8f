"""Which proxy of test accuracy can guide a search without validation data?

Runs trials of very different configs, then compares each student with its teacher on sets that no trial has used: a few
real images, a few condensed ones, images of a fixed inversion. The measure is Spearman's rho with test accuracy.

    python experiments/validate_proxy.py --dataset fashion_mnist --data-root DIR --teacher-epochs 5
"""

from dataclasses import dataclass
from pathlib import Path

from condkd_ray.commands.experiment import Flags, Plan, Plans, command_line, run
from condkd_ray.core.config import to_tree
from condkd_ray.core.method import require


@dataclass(frozen=True, kw_only=True)
class Args(Flags):
    """Flags of this experiment, and the common ones, of which data, networks and rounds apply to the trials."""

    configs: int = 24
    space: Path = Path(__file__).parents[1] / "search_spaces" / "wide.yaml"
    out: Path = Path("runs/validate_proxy")


def plans(args: Args) -> Plans:
    """Yield random configs of the space, all with one seed."""
    # Imported here, so that help and wrong flags do not wait for PyTorch.
    import optuna

    from condkd_ray.study.space import close, read
    from condkd_ray.study.storage import quiet

    require(args.host is None, "--host", args.host, "none: the space defines all parts of a trial")
    base = to_tree(args.base())
    tree = read(args.space) | {name: base[name] for name in ("data", "teacher", "student", "rounds", "test_rounds")}
    with quiet():
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for number in range(args.configs):
        config = close(tree, study.ask())
        yield Plan(f"config {number}", config.ipc, config.seed, config)


def main(args: Args) -> int:
    """Run the trials, then rank the proxies."""
    from condkd_ray.runs.proxy_validation import validate
    from condkd_ray.trial.artifacts import Workshop

    planned = list(plans(args))
    code = run("validate_proxy", __doc__ or "", planned, args)
    if code <= 1 and not args.explain:
        print(validate(args.out, Workshop(args.cache), planned[0].config))
    return code


if __name__ == "__main__":
    command_line(Args, main)
