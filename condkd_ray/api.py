"""Functions for notebooks and other programs: `train`, `sweep`, `search`, `load` and `read_config`.

They compute what the commands compute, with the same numbers. They print nothing unless a `View` is given, and leave
the process as it was: its streams, loggers, signals, environment, threads, and a Ray that runs there. They raise
`InputError` where a command would end with code 2, and `KeyboardInterrupt` after Ctrl-C, when all trials that have
ended are recorded; the same call again goes on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from condkd_ray.core.config import build, merge
from condkd_ray.core.environment import default_device, settings_kept
from condkd_ray.core.method import require
from condkd_ray.core.view import SILENT, View
from condkd_ray.models.teacher import Teacher
from condkd_ray.report.kept import Trained, kept_product
from condkd_ray.report.results import Results
from condkd_ray.report.results import read as read_results
from condkd_ray.report.statistics import Baseline
from condkd_ray.runs import experiment
from condkd_ray.runs import search as searches
from condkd_ray.runs.options import Options, RunResult
from condkd_ray.runs.output_folder import alone_in
from condkd_ray.runs.recorder import make_record
from condkd_ray.runs.search_spec import SearchSpec
from condkd_ray.study.space import Open, default, leaves, parse
from condkd_ray.study.space import read as read_space
from condkd_ray.trial.artifacts import Workshop
from condkd_ray.trial.config import TrialConfig
from condkd_ray.trial.config import read as read_trial
from condkd_ray.trial.given_teacher import GivenTeacher
from condkd_ray.trial.hardware import hardware_of, settled
from condkd_ray.trial.outcome import product_path, read_product
from condkd_ray.trial.plan import Plan, trial_hash
from condkd_ray.trial.run import local_store, run_trial

__all__ = ["load", "read_config", "search", "sweep", "train"]

AnyOptions = TypeVar("AnyOptions", bound=Options)


def train(
    config: TrialConfig,
    *,
    teacher: Teacher | None = None,
    out: Path | str | None = None,
    cache: Path | str | None = None,
    device: str | None = None,
    device_pool_limit: str | None = None,
    view: View = SILENT,
) -> Trained:
    """Run one trial in this process, without Ray.

    Args:
        config: The trial.
        teacher: Your own, in place of the config's: see `Teacher.from_module`. The data set of the config has its
            normalisation and `flip_ok`.
        out: A folder for record, checkpoint and product, as `condkd train` writes it; the same call again continues.
            Without it nothing is kept but what is returned.
        cache: Folder of teachers and condensed sets; $CONDKD_CACHE or a folder in the user's cache home if not given.
        device: `cpu` or `cuda`; the GPU where there is one if not given.
        device_pool_limit: Such as 4GB of the GPU for synthetic images; those beyond it are sent from the host's memory
            when they are drawn. A quarter of the GPU if not given.
        view: Shows the training of a teacher, the making of a condensed set, and the trial as it runs.

    Returns:
        The record, with status `failed` where a loss was not finite or a GPU out of memory, and the product.

    Raises:
        InputError: The config or an argument cannot be used, or `teacher` does not recognise the images of the data
            set.
    """
    _check_kind("config", config, TrialConfig)
    given = None if teacher is None else GivenTeacher(teacher)
    config = config if given is None else given.in_config(config)
    cache = None if cache is None else Path(cache)
    with settings_kept():
        if out is not None:
            kept = {"cache": cache, "device": device, "device_pool_limit": device_pool_limit, "view": view}
            with alone_in(Path(out)):
                record = experiment.run_alone(config, Path(out), given=given, **kept)
                return Trained(record, kept_product(Path(out), record.config_hash))
        workshop = Workshop(cache, device or default_device(), view, given=given)
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
    arms: Mapping[str, TrialConfig] | Sequence[Plan],
    options: Options | None = None,
    *,
    out: Path | str | None = None,
    seeds: Sequence[int] | None = None,
    baseline: Baseline = "none",
    question: str = "",
    teacher: Teacher | None = None,
    view: View = SILENT,
    **fields: Any,
) -> Results:
    """Run each arm with each seed on a Ray cluster, and write records, tables, figures and page to a folder.

    A Ray that this process is connected to is used and left running; otherwise one is started, or connected to, for
    the length of the call.

    Args:
        arms: Configs by the names that tables give them, whose own seeds do not count; or plans, which have seeds.
        options: Where and how much is run. The same call again runs what is missing.
        out: The folder; needed where `options` are not given.
        seeds: Of the trials of each arm, 0 alone if not given; a condensed set has its trial's seed.
        baseline: The arm that every other is compared with, or for each arm its own.
        question: The question of the experiment, for the page.
        teacher: Your own, for all arms, as in `train`. Code of its classes that is not installed goes to the workers.
        view: Shows the trials as they run.
        fields: Fields of `Options`, which come before those in `options`, such as `cache` or `time_budget`.

    Returns:
        The results of all trials planned in that folder that have ended; not all have once the time budget is spent.

    Raises:
        InputError: An arm, an option or the teacher cannot be used; nothing has run then.
        ClusterError: Ray does not come up.
    """
    plans = _plans(arms, seeds, baseline)
    chosen = _options(Options, options, out, fields)
    given = None if teacher is None else GivenTeacher(teacher)
    if given is not None:
        plans = [replace(plan, config=given.in_config(plan.config)) for plan in plans]
    with settings_kept(), alone_in(chosen.out):
        workshop = Workshop(chosen.cache, default_device(), view, given=given)
        more: dict[str, Any] = {"baseline": baseline, "workshop": workshop, "view": view}
        return _reported(experiment.run("sweep", question, plans, chosen, **more))


def search(
    space: Path | str | dict[str, Any],
    spec: SearchSpec | None = None,
    *,
    out: Path | str | None = None,
    question: str = "",
    teacher: Teacher | None = None,
    view: View = SILENT,
    **fields: Any,
) -> Results:
    """Search a space on a Ray cluster, and write study, records, tables, figures and page to a folder.

    Ray is used as in `sweep`.

    Args:
        space: A config with open leaves: the path of a YAML file, YAML text, or the tree that `study.space.parse` makes
            of it.
        spec: The objective, the sampler, the number of trials, and where they run. The same call again goes on.
        out: The folder; needed where `spec` is not given.
        question: The question of the search, for the page.
        teacher: Your own, for all trials, as in `sweep`. The space then opens no leaf of the teacher.
        view: Shows the trials as they run.
        fields: Fields of `SearchSpec`, which come before those in `spec`, such as `trials` or `objective`.

    Returns:
        The results of the trials that have ended. `ranked` are those that keep to the constraints, the best by the
        objective first; `best()` is the best of those that are kept, with its student.

    Raises:
        InputError: The space, the spec or the teacher cannot be used; nothing has run then.
        ClusterError: Ray does not come up.
    """
    chosen = _options(SearchSpec, spec, out, fields)
    tree, given = _tree(space), None if teacher is None else GivenTeacher(teacher)
    tree = tree if given is None else _with_teacher(tree, given)
    with settings_kept(), alone_in(chosen.out):
        workshop = Workshop(chosen.cache, default_device(), view, given=given)
        return _reported(searches.run(question, tree, chosen, workshop=workshop, view=view))


def load(path: Path | str) -> Results:
    """Read the results of a folder that a command, `train`, `sweep` or `search` has written, finished or not.

    Raises `InputError` where `path` is no such folder.
    """
    return read_results(Path(path))


def read_config(path: Path | str) -> TrialConfig:
    """Read a trial's config from a YAML file; leaves not given keep their defaults.

    Raises `InputError` with the first bad key, its value and what is accepted.
    """
    return read_trial(Path(path))


def _reported(result: RunResult) -> Results:
    """Make the report and read the results; then pass on a Ctrl-C that has ended the run."""
    # It draws, which whoever imports this module need not wait for.
    from condkd_ray.report.build import build as build_report

    build_report(result.out)
    if not result.complete and not result.spent:
        raise KeyboardInterrupt
    return read_results(result.out)


def _check_kind(what: str, value: object, kind: type) -> None:
    require(isinstance(value, kind), what, type(value).__name__, f"a condkd_ray.{kind.__name__}")


def _plans(
    arms: Mapping[str, TrialConfig] | Sequence[Plan], seeds: Sequence[int] | None, baseline: Baseline
) -> list[Plan]:
    """The plans of a sweep. Raises `InputError`."""
    if isinstance(arms, Mapping):
        accepted = "a sequence of integers, such as (0, 1, 2)"
        require(seeds is None or not isinstance(seeds, int | str), "seeds", seeds, accepted)
        for name, config in arms.items():
            _check_kind(f"arm {name!r}", config, TrialConfig)
        plans = [
            Plan(name, config.ipc, seed, replace(config, seed=seed))
            for name, config in arms.items()
            for seed in ((0,) if seeds is None else seeds)
        ]
    else:
        require(isinstance(arms, Sequence), "arms", type(arms).__name__, "configs by their names, or a list of plans")
        require(seeds is None, "seeds beside plans", seeds, "none: each plan has its own")
        plans = list(arms)
        for plan in plans:
            _check_kind("plan", plan, Plan)
    names = {plan.arm for plan in plans}
    others = [baseline] if isinstance(baseline, str) else [*baseline, *baseline.values()]
    for other in others:
        require(other == "none" or other in names, "baseline", other, f"none, or one of {', '.join(sorted(names))}")
    return plans


def _options(
    kind: type[AnyOptions], given: AnyOptions | None, out: Path | str | None, more: Mapping[str, Any]
) -> AnyOptions:
    """The options that are given and, before these, their fields in `more`. Raises `InputError`."""
    named, what = {field.name: field for field in fields(kind)}, kind.__name__
    if given is not None:
        _check_kind(f"{what} of the call", given, kind)
    tree = {} if given is None else {name: getattr(given, name) for name in named}
    tree |= more if out is None else {**more, "out": out}
    require("out" in tree, "out", None, f"a folder for the results, as out= or in {what}")
    for name, value in tree.items():
        if isinstance(value, str) and name in named and isinstance(named[name].default, tuple):
            tree[name] = (value,)
    return build(kind, tree, what)


def _tree(space: Path | str | dict[str, Any]) -> dict[str, Any]:
    """The tree of a search space. A text of one line without a colon and a space is a path. Raises `InputError`."""
    if isinstance(space, dict):
        return space
    require(isinstance(space, str | Path), "search space", type(space).__name__, "a path, YAML text or a tree")
    is_text = isinstance(space, str) and ("\n" in space or ": " in space)
    return parse(str(space)) if is_text else read_space(Path(space))


def _with_teacher(tree: dict[str, Any], given: GivenTeacher) -> dict[str, Any]:
    """The space with a teacher that is handed over. Raises `InputError` where it opens a leaf of another."""
    fixed = "none beside a teacher that is handed over"
    opened = [name for name in leaves(tree) if name.split("/")[0] == "teacher"]
    require(not opened, "open leaves of the space", ", ".join(opened), fixed)
    data = tree.get("data", {})
    require(not isinstance(data, Open), "open leaf data of the space", data, fixed)
    config = given.in_config(default(tree))
    theirs = {name: getattr(config.data, name) for name in ("mean", "std", "flip_ok")}
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in theirs.items()}
    base = {"data": {}} | {key: value for key, value in tree.items() if key != "teacher"}
    teacher = {"module": config.teacher.module, "force": config.teacher.force}
    return merge(base, {"teacher": teacher, "data": plain})
