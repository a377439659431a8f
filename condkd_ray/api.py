"""Functions for notebooks and other programs: `train`, `sweep`, `search`, `load` and `read_config`.

They compute the same numbers as the commands. They print nothing unless a `View` is given, and restore the state of the
process: random number generators, loggers, signal handlers, environment, thread counts, and a running Ray connection.
They raise `InputError` if a command would exit with code 2. After Ctrl-C they raise `KeyboardInterrupt` once all
trials that have ended are recorded; calling the function again with the same arguments continues.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar, get_args

from condkd_ray.core.config import Natural, build, checked, checked_fields, merge
from condkd_ray.core.environment import checked_device, default_device, settings_kept
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
from condkd_ray.trial.plan import Plan, Scope, trial_hash
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
        teacher: Your own teacher, which replaces the config's teacher: see `Teacher.from_module`. Its normalisation and
            `flip_ok` also replace those of the config's data set.
        out: Folder for the record, the checkpoint and the product, in the format of `condkd train`; the same call
            again continues the trial. If not given, no file is kept.
        cache: Folder of teachers and condensed sets. Default: $CONDKD_CACHE, or a folder in the user's cache home.
        device: `cpu`, `cuda`, or the name of one of several GPUs, such as `cuda:1`. Default: the GPU if there is one.
        device_pool_limit: GPU memory for synthetic images, such as 4GB; images beyond it stay in the CPU's memory and
            are copied when they are drawn. Default: a quarter of the GPU's memory.
        view: Shows the progress of the teacher's training, of the condensation and of the trial.

    Returns:
        The record and the product of this trial, even if another trial in `out` has a better student. The record's
        status is `failed` if a loss was not finite or the GPU ran out of memory.

    Raises:
        InputError: The config or an argument cannot be used, or `teacher` does not recognise the images of the data
            set.
        NonFiniteError: The training of a teacher, or the making of a condensed set, has diverged.
    """
    config = _config("config", config)
    given = None if teacher is None else GivenTeacher(teacher)
    config = config if given is None else given.in_config(config)
    folder, cached = checked(Path | None, out, "out"), checked(Path | None, cache, "cache")
    device_pool_limit = checked(str | None, device_pool_limit, "device_pool_limit", "a size such as 500MB or 4GB")
    device = default_device() if device is None else checked_device(device)
    _check_view(view)
    with settings_kept():
        if folder is not None:
            kept = {"cache": cached, "device": device, "device_pool_limit": device_pool_limit, "view": view}
            with alone_in(folder):
                record = experiment.run_alone(config, folder, given=given, **kept)
                return Trained(record, kept_product(folder, record.config_hash))
        workshop = Workshop(cached, device, view, given=given)
        limit = experiment.alone_limit(device_pool_limit, config, workshop)
        config = settled(config, hardware_of(workshop.device))
        prepared = workshop.prepare(config)
        with TemporaryDirectory() as temporary:
            path = product_path(Path(temporary))
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
    """Run each arm with each seed on a Ray cluster, and write records, tables, figures and an HTML page to a folder.

    If this process is connected to Ray, that connection is used and left open; otherwise the call starts a Ray cluster,
    or connects to one, and ends or leaves it when it returns.

    Args:
        arms: Configs by the names of their arms, in which `seed` is ignored; or plans, which have their own seeds.
        options: Output folder, budget and resources. The same call again runs only the missing trials.
        out: The output folder; required if `options` is not given.
        seeds: Seeds of the trials of each arm. Default: 0 only. A condensed set is made with the seed of its trial.
        baseline: The arm that every other arm is compared with, or a mapping from each arm to its baseline.
        question: The question of the experiment, shown on the page.
        teacher: Your own teacher for all arms, as in `train`. The code of its classes is sent to the workers unless it
            is installed.
        view: Shows the progress of the trials.
        fields: Fields of `Options`, such as `cache` or `time_budget`; they override those in `options`.

    Returns:
        The results of all planned trials in the folder that have ended. Some are missing if the time budget was spent.

    Raises:
        InputError: An arm, an option or the teacher cannot be used. No trial has run then.
        ClusterError: Ray does not start or does not respond, or was lost.
        NonFiniteError: The training of a teacher, or the making of a condensed set, has diverged.
        StorageFullError: There is no room for the files of a trial.
    """
    _check_view(view)
    plans, question = _plans(arms, seeds, baseline), checked(str, question, "question", "a text")
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
    """Search a space on a Ray cluster, and write study, records, tables, figures and an HTML page to a folder.

    Ray is used as in `sweep`.

    Args:
        space: A config with open leaves (values to search): the path of a YAML file, YAML text, or the tree that
            `study.space.parse` returns.
        spec: Objective, sampler, number of trials, output folder and resources. The same call again continues.
        out: The output folder; required if `spec` is not given.
        question: The question of the search, shown on the page.
        teacher: Your own teacher for all trials, as in `sweep`. The space must then have no open leaf of the teacher.
        view: Shows the progress of the trials.
        fields: Fields of `SearchSpec`, such as `trials` or `objective`; they override those in `spec`.

    Returns:
        The results of the trials that have ended. `ranked` lists the finished trials that satisfy the constraints, the
        best by the objective first; `best()` returns the best kept trial with its student.

    Raises:
        InputError: The space, the spec or the teacher cannot be used. No trial has run then.
        ClusterError: Ray does not start or does not respond, or was lost.
        NonFiniteError: The training of a teacher, or the making of a condensed set, has diverged.
        StorageFullError: There is no room for the files of a trial.
    """
    _check_view(view)
    chosen, question = _options(SearchSpec, spec, out, fields), checked(str, question, "question", "a text")
    tree, given = _tree(space), None if teacher is None else GivenTeacher(teacher)
    tree = tree if given is None else _with_teacher(tree, given)
    with settings_kept(), alone_in(chosen.out):
        workshop = Workshop(chosen.cache, default_device(), view, given=given)
        return _reported(searches.run(question, tree, chosen, workshop=workshop, view=view))


def load(path: Path | str) -> Results:
    """Read the results in a folder that a command, `train`, `sweep` or `search` has written, even while it still runs.

    Raises `InputError` if `path` is not such a folder.
    """
    return read_results(checked(Path, path, "path", "a folder of results"))


def read_config(path: Path | str) -> TrialConfig:
    """Read the config of a trial from a YAML file; fields that the file omits have their defaults.

    Raises `InputError` that names the first bad key, its value and the accepted values.
    """
    return read_trial(checked(Path, path, "path", "the path of a YAML file"))


def _reported(result: RunResult) -> Results:
    """Write the report and return the results. Raises `KeyboardInterrupt` if Ctrl-C has ended the run."""
    # Imported here because it imports plotting libraries, which makes the import of this module slow.
    from condkd_ray.report.build import build as build_report

    build_report(result.out)
    if not result.complete and not result.spent:
        raise KeyboardInterrupt
    return read_results(result.out)


def _check_kind(what: str, value: object, kind: type) -> None:
    require(isinstance(value, kind), what, type(value).__name__, f"a condkd_ray.{kind.__name__}")


def _check_view(view: object) -> None:
    fits = all(callable(getattr(view, name, None)) for name in ("bar", "trials"))
    require(fits, "view", type(view).__name__, "an object with the methods of condkd_ray.core.view.View")


def _config(what: str, value: object) -> TrialConfig:
    """Return a config with fields of the declared types. Raises `InputError` if `value` is not such a config."""
    _check_kind(what, value, TrialConfig)
    assert isinstance(value, TrialConfig)
    return checked_fields(value, what)


def _plan(value: object) -> Plan:
    """Return a plan with fields of the declared types. Raises `InputError` if `value` is not such a plan."""
    _check_kind("plan", value, Plan)
    assert isinstance(value, Plan)
    what = f"plan {value.arm!r}"
    return Plan(
        arm=checked(str, value.arm, "arm of a plan", "a text"),
        ipc=checked(Natural, value.ipc, f"ipc of {what}", "an integer >= 0"),
        seed=checked(Natural, value.seed, f"seed of {what}", "an integer >= 0"),
        config=_config(f"config of {what}", value.config),
        scope=checked(Scope, value.scope, f"scope of {what}", ", ".join(get_args(Scope))),
    )


def _plans(
    arms: Mapping[str, TrialConfig] | Sequence[Plan], seeds: Sequence[int] | None, baseline: Baseline
) -> list[Plan]:
    """Return the plans of a sweep. Raises `InputError` for bad arms, seeds, plans or baselines."""
    if isinstance(arms, Mapping):
        accepted = "a sequence of integers >= 0, such as (0, 1, 2)"
        chosen = (0,) if seeds is None else checked(tuple[Natural, ...], seeds, "seeds", accepted)
        configs = {
            checked(str, name, "name of an arm", "a text"): _config(f"arm {name!r}", config)
            for name, config in arms.items()
        }
        plans = [
            Plan(name, config.ipc, seed, replace(config, seed=seed))
            for name, config in configs.items()
            for seed in chosen
        ]
    else:
        require(isinstance(arms, Sequence), "arms", type(arms).__name__, "configs by their names, or a list of plans")
        require(seeds is None, "seeds with plans", seeds, "none: each plan has its own")
        plans = [_plan(plan) for plan in arms]
    fits = isinstance(baseline, str | Mapping)
    require(fits, "baseline", baseline, "none, the name of an arm, or a mapping from arms to their baselines")
    names = {plan.arm for plan in plans}
    others = [baseline] if isinstance(baseline, str) else [*baseline, *baseline.values()]
    for other in others:
        require(
            isinstance(other, str) and other in {"none", *names},
            "baseline",
            other,
            f"none, or one of {', '.join(sorted(names))}",
        )
    return plans


def _options(
    kind: type[AnyOptions], given: AnyOptions | None, out: Path | str | None, more: Mapping[str, Any]
) -> AnyOptions:
    """Return the options `given`, with `out` and the fields in `more` replaced.

    Raises `InputError` for an unknown field, a bad value, or if there is no output folder.
    """
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
    """Return the tree of a search space, which may be given as a tree, YAML text or a path.

    A text of one line without ": " is a path. Raises `InputError` if the space cannot be read.
    """
    if isinstance(space, dict):
        return space
    require(isinstance(space, str | Path), "search space", type(space).__name__, "a path, YAML text or a tree")
    is_text = isinstance(space, str) and ("\n" in space or ": " in space)
    return parse(str(space)) if is_text else read_space(Path(space))


def _with_teacher(tree: dict[str, Any], given: GivenTeacher) -> dict[str, Any]:
    """Return the space with the given teacher.

    Raises `InputError` if a leaf of the teacher, or `data` as a whole, is open.
    """
    fixed = "none if a teacher object is given"
    opened = [name for name in leaves(tree) if name.split("/")[0] == "teacher"]
    require(not opened, "open leaves of the space", ", ".join(opened), fixed)
    data = tree.get("data", {})
    require(not isinstance(data, Open), "open leaf data of the space", data, fixed)
    config = given.in_config(default(tree))
    normalisation = {name: getattr(config.data, name) for name in ("mean", "std", "flip_ok")}
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in normalisation.items()}
    base = {"data": {}} | {key: value for key, value in tree.items() if key != "teacher"}
    teacher = {"module": config.teacher.module, "force": config.teacher.force}
    return merge(base, {"teacher": teacher, "data": plain})
