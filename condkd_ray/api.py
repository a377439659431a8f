"""What a notebook or another program calls: `train`, `sweep`, `search`, `load`. Silent unless a `View` is given.

They do what the commands do, with the same numbers. They raise `InputError` where a command would end with code 2, and
`KeyboardInterrupt` after Ctrl-C, when all that has ended is recorded; the same call again goes on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from condkd_ray.core.environment import default_device
from condkd_ray.core.records import Record, read_manifest, read_records
from condkd_ray.core.view import SILENT, View
from condkd_ray.report.statistics import Baseline
from condkd_ray.runs import experiment
from condkd_ray.runs import search as searches
from condkd_ray.runs.options import Options, RunResult
from condkd_ray.runs.products import Trained, choose, kept_product
from condkd_ray.runs.recorder import make_record
from condkd_ray.runs.search_spec import SearchSpec
from condkd_ray.study.space import read
from condkd_ray.trial.artifacts import Workshop
from condkd_ray.trial.config import TrialConfig
from condkd_ray.trial.hardware import hardware_of, settled
from condkd_ray.trial.outcome import product_path, read_product
from condkd_ray.trial.plan import Plan, trial_hash
from condkd_ray.trial.run import local_store, run_trial

__all__ = ["load", "search", "sweep", "train"]


def train(
    config: TrialConfig,
    *,
    out: Path | str | None = None,
    cache: Path | str | None = None,
    device: str | None = None,
    device_pool_limit: str | None = None,
    view: View = SILENT,
) -> Trained:
    """Run one trial in this process, without Ray.

    On a GPU it sets PyTorch's settings of cuDNN and TF32, which stay so, see `core.environment.set_up_gpu`.

    Args:
        config: The trial.
        out: A folder for record, checkpoint and product, as `condkd train` writes it; the same call again continues.
            Without it nothing is kept but what is returned.
        cache: Teachers and condensed sets; $CONDKD_CACHE or a folder in the user's cache home if not given.
        device: `cpu` or `cuda`; the GPU where there is one if not given.
        device_pool_limit: Such as 4GB of the GPU for synthetic images; what is beyond it is sent from the host's memory
            when it is drawn. A quarter of the GPU if not given.
        view: Shows the training of a teacher, the making of a condensed set, and the trial as it runs.

    Returns:
        The record, with status `failed` where a loss was not finite or a GPU out of memory, and the product.
    """
    cache = None if cache is None else Path(cache)
    if out is not None:
        kept = {"cache": cache, "device": device, "device_pool_limit": device_pool_limit, "view": view}
        record = experiment.run_alone(config, Path(out), **kept)
        return Trained(record, kept_product(Path(out), record.config_hash))
    workshop = Workshop(cache, device or default_device(), view)
    limit = experiment.alone_limit(device_pool_limit, config, workshop)
    config = settled(config, hardware_of(workshop.device))
    prepared = workshop.prepare(config)
    with TemporaryDirectory() as folder:
        path = product_path(Path(folder))
        outcome = run_trial(config, prepared, local_store(config, prepared, None, limit), product=path)
        product = read_product(path) if outcome.status == "finished" else None
    plan = Plan("trial", config.ipc, config.seed, config)
    return Trained(make_record("train", plan, trial_hash(config, prepared), prepared, outcome), product)


def sweep(
    arms: Mapping[str, TrialConfig],
    options: Options,
    *,
    seeds: Sequence[int] = (0,),
    baseline: Baseline = "none",
    question: str = "",
    view: View = SILENT,
) -> list[Record]:
    """Run each arm with each seed on a Ray cluster, and write records, tables, figures and page to `options.out`.

    Args:
        arms: Configs by the names that tables give them; their own seeds do not count.
        options: Where and how much is run. The same call again runs what is missing.
        seeds: Of the trials; a condensed set has its trial's seed.
        baseline: The arm that every other is compared with, or for each arm its own.
        question: What is asked, for the page.
        view: Shows the trials as they run.

    Returns:
        The records of all trials planned in that folder that have ended, by arm, images per class and seed; not of all
        of them once the time budget is spent.
    """
    plans = [Plan(arm, one.ipc, seed, replace(one, seed=seed)) for arm, one in arms.items() for seed in seeds]
    result = experiment.run("sweep", question, plans, options, baseline=baseline, view=view)
    _build(result)
    planned = {trial["config_hash"] for trial in read_manifest(options.out).planned}
    return [record for record in read_records(options.out) if record.config_hash in planned]


def search(
    space: Path | str | dict[str, Any], spec: SearchSpec, *, question: str = "", view: View = SILENT
) -> list[Record]:
    """Search a space on a Ray cluster, and write study, records, tables, figures and page to `spec.out`.

    Args:
        space: A YAML file of a config with open leaves, or what `study.space.read` makes of one.
        spec: The objective, who proposes, how many trials, and where they run. The same call again goes on.
        question: What is asked, for the page.
        view: Shows the trials as they run.

    Returns:
        The records of complete trials that keep to the constraints, the best by the objective first; of those so far
        once a budget is spent.
    """
    tree = space if isinstance(space, dict) else read(Path(space))
    result = searches.run(question, tree, spec, view=view)
    _build(result)
    records = {record.config_hash: record for record in read_records(spec.out)}
    ranked = [trial.user_attrs.get("config_hash") for trial in searches.study_of(tree, spec).ranked]
    return [records[key] for key in ranked if key in records]


def load(path: Path | str, trial: str | None = None) -> Trained:
    """The best kept trial of a result folder, or the one whose hash begins with `trial`, with its student and images.

    The best by validation accuracy, or by agreement on the proxy set where there is none; never by test accuracy.
    Raises `InputError` where none is kept.
    """
    record = choose(Path(path), trial)
    return Trained(record, kept_product(Path(path), record.config_hash))


def _build(result: RunResult) -> None:
    """Make the report; then pass on a Ctrl-C that has ended the run."""
    # It draws, which whoever imports this module need not wait for.
    from condkd_ray.report.build import build

    build(result.out)
    if not result.complete and not result.spent:
        raise KeyboardInterrupt
