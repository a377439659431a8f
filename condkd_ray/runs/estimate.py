"""Estimate of the time, memory and disk space that the rest of a run needs, and its text. Nothing is trained in full.

The costs of finished trials are in their records. For each arm without a finished trial, one trial is run for a few
rounds in this process, a probe. A teacher or a condensed set that does not exist yet is replaced by a stand-in.
"""

from __future__ import annotations

import contextlib
import heapq
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from condkd_ray.cluster.connection import connect
from condkd_ray.core.config import content_hash
from condkd_ray.core.environment import clean_process, peak_bytes, set_up_process
from condkd_ray.core.families import plugins_in
from condkd_ray.core.method import InputError, Metrics, NonFiniteError
from condkd_ray.core.records import Record, check_same_experiment, grid_path, read_records, record_path, write_record
from condkd_ray.core.rng import Streams
from condkd_ray.core.units import byte_size, duration
from condkd_ray.core.view import SILENT, OnStep, View, no_bar
from condkd_ray.methods.condensation import AnyCondensation
from condkd_ray.methods.supervised import bf16_pays
from condkd_ray.report.figures.image_grids import write_grid
from condkd_ray.report.kept import kept_path
from condkd_ray.report.tables.table import Table
from condkd_ray.report.tensorboard.embeddings import points_path
from condkd_ray.runs.options import Options
from condkd_ray.runs.products import PER_STORED_BYTE, most_bytes
from condkd_ray.runs.recorder import make_record
from condkd_ray.study.space import corners, default
from condkd_ray.trial.artifacts import StandIns, Workshop
from condkd_ray.trial.config import Prepared, TrialConfig, from_tree
from condkd_ray.trial.loop import run_round, start
from condkd_ray.trial.outcome import product_path
from condkd_ray.trial.plan import NUMBERS, Plan, can_share
from condkd_ray.trial.run import local_store, run_trial
from condkd_ray.trial.synthesis import stored_logits

if TYPE_CHECKING:
    from condkd_ray.cluster.options import ClusterOptions

ROUNDS = 3
"""Number of rounds of a probe. The first, with one-time work, counts once; the others stand for all later rounds."""
STEPS = 20
"""Number of steps of a teacher's training in its probe."""
IMAGES = 2048
"""Largest number of real images that a condenser gets in its probe."""
NOTHING = "Nothing is left to run.\n"
UNITS = {"iterations": 2, "epochs": 1, "expert_epochs": 1}
"""Fields to which a condenser's work is proportional, and the amount by which a probe raises each above `LEAST`."""
LEAST = {"iterations": 1, "epochs": 1, "expert_epochs": 1, "ahead": 1, "max_start": 0}
"""Values of a condenser's fields in its cheapest probe."""


@dataclass(frozen=True)
class Span:
    """A quantity that lies between two bounds."""

    low: float = 0.0
    high: float = 0.0

    def __add__(self, other: Span) -> Span:
        return Span(self.low + other.low, self.high + other.high)

    def __mul__(self, factor: float | Span) -> Span:
        factors = factor if isinstance(factor, Span) else Span(factor, factor)
        return Span(self.low * factors.low, self.high * factors.high)


PROBED, RECORDED = Span(0.7, 1.7), Span(0.8, 1.4)
"""Factors on the cost of a probe and on a recorded cost.

They are ranges, because a probe is short and runs alone on the machine, and because trials differ by their seeds.
"""
PROBING_SECONDS = 90.0
"""Time after which no further arm is probed; its cost is then assumed to lie in the range of the measured costs."""
STARTED = Span(5, 30)
"""Seconds until the first trial of a sweep computes: its process starts and imports PyTorch."""
BETWEEN = Span(0.1, 1.5)
"""Seconds from a trial's end to the next one's start, final test included."""
REPORTED = Span(3, 15)
"""Seconds for tables and figures at the end."""
WRITTEN = Span(0.5e6, 4e6)
"""Bytes of tables, figures and event files, without the files of single trials."""
DRIVER = Span(0.4e9, 1.5e9)
"""Bytes of memory of this program and of Ray's own processes."""


def hull(values: Iterable[float | Span]) -> Span:
    """Return the smallest span that contains all values and spans."""
    spans = [value if isinstance(value, Span) else Span(value, value) for value in values]
    return Span(min(span.low for span in spans), max(span.high for span in spans))


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of one trial, in seconds and bytes."""

    wall: Span = Span()
    cpu: Span = Span()
    kept: Span = Span()
    """Bytes of record and image grid."""
    product: Span = Span()
    """Bytes of student and synthetic images, kept for the best trial of an arm and IPC."""
    working: Span = Span()
    """Bytes of checkpoint and chunks while the trial runs."""
    memory: Span = Span()
    """Peak memory of the trial's processes or, for a trial on a GPU, peak GPU memory."""


def join(costs: Sequence[Cost]) -> Cost:
    """Return the smallest cost that contains all costs."""
    return Cost(**{field.name: hull(getattr(cost, field.name) for cost in costs) for field in fields(Cost)})


def probe_trial(plan: Plan, prepared: Prepared, folder: Path) -> Cost:
    """Run a trial's first rounds, with files under `folder`, and return the cost of the whole trial.

    Raises `NonFiniteError` if the trial diverges.
    """
    config, whole = _short(plan.config), plan.config
    clean_process(torch.get_num_threads())
    wall, cpu = time.perf_counter(), time.process_time()
    place = {"checkpoint": folder / "state", "product": product_path(folder), "checkpoint_seconds": 0.0}
    outcome = run_trial(config, prepared, local_store(config, prepared, folder), **place)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    if outcome.status != "finished":
        raise NonFiniteError(outcome.reason)
    first, *others = outcome.history
    rest = max(0.0, wall - sum(row["time/wall_seconds"] for row in outcome.history))
    rounds = hull(_seconds(row, whole) for row in others)
    labelling = 0.0
    if whole.shares_logits and not whole.keeps_logits:
        # The teacher's logits are computed at the end instead of each round, for all images still in the memory.
        images = torch.zeros(whole.inversion.images_per_round, *prepared.teacher.image_shape)
        images = images.to(prepared.teacher.device)
        labelling = whole.total_rounds * _time(lambda: stored_logits(prepared.teacher, images))
    seconds = Span(rest + rounds.low, rest + first["time/wall_seconds"] + rounds.high + labelling) * PROBED
    record = make_record("explain", plan, "probe", prepared, outcome)
    write_record(folder, record)
    if outcome.images is not None and outcome.images_per_class:
        write_grid(grid_path(folder, "probe"), outcome.images, outcome.images_per_class, outcome.grid_rows)
    left, chunks = whole.total_rounds - ROUNDS, _bytes(folder / "chunks") / ROUNDS
    row = _bytes(record_path(folder, "probe")) - len(str(outcome.predictions))
    kept = _bytes(folder / "records") + _bytes(folder / "grids")
    product, state = _bytes(place["product"]), _bytes(place["checkpoint"])
    # A product has logits even if the trial's memory stores none; in segmentation it has none.
    added = whole.shares_logits and not whole.keeps_logits
    logits = 2 * prepared.teacher.num_classes * whole.inversion.images_per_round if added else 0
    peak = peak_bytes(prepared.teacher.device)
    producers, ahead = (0, 0) if whole.pipeline is None else (whole.pipeline.producers, whole.pipeline.staleness)
    return Cost(
        # In the probe, producers and student take turns; in a sweep they run at the same time.
        wall=seconds * Span(1 / (1 + min(producers, ahead)), 1),
        cpu=seconds * min(1.0, cpu / wall),
        kept=Span(kept, kept + max(0, left) * row / ROUNDS),
        product=Span(product, product + max(0, left) * (chunks + logits) + most_bytes(prepared.teacher)),
        working=Span(state, state + whole.total_rounds * chunks),
        memory=Span(peak * 0.7, (1 + producers) * peak * 1.5 + whole.total_rounds * chunks),
    )


def round_seconds(plan: Plan, prepared: Prepared) -> float:
    """Return the wall-clock time of one round in seconds, measured on a trial's first rounds.

    Raises `NonFiniteError` if the trial diverges.
    """
    config = _short(plan.config)
    clean_process(torch.get_num_threads())
    outcome = run_trial(config, prepared, local_store(config, prepared, None))
    if outcome.status != "finished":
        raise NonFiniteError(f"{plan.label}, run for {ROUNDS} rounds: {outcome.reason}")
    return max(row["time/wall_seconds"] for row in outcome.history[1:])


def trial_cpu_seconds(config: TrialConfig, prepared: Prepared) -> float:
    """Run all rounds of a trial and return their CPU time in seconds. Raises `NonFiniteError` if the trial diverges."""
    clean_process(torch.get_num_threads())
    state, store = start(config, prepared), local_store(config, prepared, None)
    return sum(run_round(config, prepared, state, store)["time/cpu_seconds"] for _ in range(config.total_rounds))


def recorded(record: Record, out: Path) -> Cost:
    """Return the cost of trials similar to a finished one, from its record and files in `out`."""
    key, held = record.config_hash, record.metrics.get("memory/bytes", 0.0)
    kept, product = _bytes(record_path(out, key)) + _bytes(grid_path(out, key)), _bytes(kept_path(out, key))
    return Cost(
        wall=RECORDED * record.outcome.wall_seconds,
        cpu=RECORDED * record.outcome.cpu_seconds,
        kept=Span(kept, kept),
        product=Span(product or held, (product or held) + PER_STORED_BYTE * _bytes(points_path(out, key))),
        working=Span(held, 2 * held + 2 * product),
        memory=RECORDED * record.outcome.peak_bytes,
    )


def _short(config: TrialConfig) -> TrialConfig:
    names = {field.name for field in fields(config.inversion)}
    inversion = replace(config.inversion, **({"warm_up": 0} if "warm_up" in names else {}))
    distiller = config.distiller.within(ROUNDS)
    return replace(config, rounds=ROUNDS, evaluate_every=1, inversion=inversion, distiller=distiller)


def _seconds(row: Metrics, config: TrialConfig) -> float:
    """Return the seconds of all rounds of a trial, if each part takes as long as in the round with metrics `row`."""
    measured = sum(config.measures(number) for number in range(config.total_rounds))
    times = {"distillation": config.rounds, "evaluation": measured, "diagnosis": measured}
    parts = {name: row.get(f"time/{name}_seconds", 0.0) for name in times}
    always = row["time/wall_seconds"] - sum(parts.values())
    return config.total_rounds * always + sum(parts[name] * count for name, count in times.items())


def probe_teacher(config: TrialConfig, workshop: Workshop) -> Span:
    """Return the seconds of a teacher's training, extrapolated from a few steps."""
    dataset, recipe = workshop.data(config), replace(config.teacher.training, epochs=1)
    few = dataset.train[: STEPS * recipe.batch]
    rest: dict[str, Any] = {"mean": dataset.mean, "std": dataset.std, "flip_ok": dataset.flip_ok}
    rest |= {"precision": "bfloat16" if bf16_pays(workshop.device) else "float32", "rng": Streams(0, workshop.device)}
    network = config.teacher.build(dataset).to(workshop.device)
    images, labels = few.pixels.to(workshop.device), few.labels.to(workshop.device)
    taken = hull(_time(lambda: recipe.train(network, images, labels, **rest)) for _ in range(2))
    return taken * (config.teacher.training.epochs * len(dataset.train) / len(few)) * PROBED


def probe_set(config: TrialConfig, method: AnyCondensation, workshop: Workshop) -> Span:
    """Return the seconds that `method` takes for a condensed set, extrapolated from a little of each kind of work."""
    dataset, names = workshop.data(config), {field.name for field in fields(method)}
    order = torch.randperm(len(dataset.train), generator=torch.Generator().manual_seed(0))[:IMAGES]
    real = dataset.train[order].samples(dataset.mean, dataset.std).to(workshop.device)
    more: dict[str, Any] = {"teacher": workshop.teacher(config)} if method.needs_teacher else {}
    more |= {"num_classes": dataset.num_classes, "flip_ok": dataset.flip_ok}

    def seconds(tried: AnyCondensation) -> float:
        rng = Streams(config.seed, workshop.device)
        return _time(lambda: tried.condense(real, mean=dataset.mean, std=dataset.std, rng=rng, **more))

    least = replace(method, **{name: value for name, value in LEAST.items() if name in names})
    seconds(least)
    base = seconds(least)
    total, portion = base, len(dataset.train) / len(real)
    for name, step in UNITS.items():
        if name in names:
            slope = max(0.0, seconds(replace(least, **{name: 1 + step})) - base) / step
            total += slope * (getattr(method, name) - 1) * (portion if "epochs" in name else 1)
    return PROBED * total


def _time(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    # Such a short training may diverge although the whole one does not.
    with contextlib.suppress(NonFiniteError):
        work()
    return time.perf_counter() - begin


def _bytes(path: Path) -> int:
    """Return the bytes of a file, or of all files below a folder; 0 if there is nothing."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


@dataclass
class Workload:
    """The trials of a run, and their known costs."""

    planned: Sequence[Plan]
    done: dict[Plan, Record]
    """Records of the finished trials."""
    costs: dict[str, Cost] = field(default_factory=dict)
    """Costs by arm."""
    based_on: list[str] = field(default_factory=list)
    """Texts with the sources of the costs."""

    @classmethod
    def of_corners(cls, tree: dict[str, Any]) -> Workload:
        """Return a workload of one trial for each corner of a space and for its default.

        Raises `InputError` if one of these configs is invalid.
        """
        return cls([Plan(name, 0, config.seed, config) for name, config in corners(tree).items()], {})

    @classmethod
    def of_search(cls, tree: dict[str, Any], trials: int) -> Workload:
        """Return a workload of `trials` trials of a space whose configs are not chosen yet.

        Raises `InputError` if the default config of the space is invalid.
        """
        return cls([Plan("trial", 0, 0, default(tree))] * trials, {})

    @property
    def missing(self) -> list[Plan]:
        """Trials left to run."""
        return [plan for plan in self.planned if plan not in self.done]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Estimate for the rest of a run, in seconds and bytes."""

    at_once: int
    """Number of trials at once."""
    before: Span
    """Seconds until the first trial can start: for Ray, and for teachers and condensed sets that are not cached."""
    wall: Span
    cpu: Span
    kept: Span
    """Bytes on disk at the end."""
    working: Span
    """Further bytes on disk while it runs."""
    trial_memory: Span
    """Peak memory of a trial, as in `Cost`."""
    memory: Span
    """Peak memory of all trials that run at once, with the driver and Ray."""


def estimate(
    work: Workload,
    options: Options,
    device: str,
    view: View = SILENT,
    *,
    whole: Workload | None = None,
    shortest: float = 1,
) -> Estimate:
    """Return the estimate for the rest of `work`, and fill in its `costs` and `based_on`.

    For a search, `work` contains the corners of its space, and the estimate is for its trials, `whole`, whose costs lie
    between those of the corners. `device`: "cpu" or "cuda", for the probes. `shortest`: fraction of its rounds after
    which a trial may be stopped. Raises `InputError` if the cluster cannot run the trials.
    """
    begin = time.perf_counter()
    with connect(options.address, view=view):
        cluster, configs = options.of_cluster(math.inf), [plan.config for plan in work.missing]
        cluster.check(configs)
        _check_pool(cluster, options, work if whole is None else whole)
        at_once = cluster.at_once(configs)
    connected = time.perf_counter() - begin
    before = Span(connected, 2 * connected) + probe(work, options, device, view)
    if whole is None:
        return total(work, before, at_once)
    if work.costs:
        found, stopped = join(list(work.costs.values())), Span(shortest, 1)
        whole.costs["trial"] = replace(found, wall=found.wall * stopped, cpu=found.cpu * stopped)
    whole.based_on = work.based_on
    return total(whole, before, at_once)


def _check_pool(cluster: ClusterOptions, options: Options, work: Workload) -> None:
    """Raise `InputError` if the pool cannot hold the images of the trials at once; of a search, of its default."""
    # This module imports Ray, which takes a second.
    from condkd_ray.cluster.pool.limits import check_limit, planned_round

    workshop = Workshop(options.cache)
    plans = [replace(plan, scope=options.share) if plan.scope == "trial" else plan for plan in work.missing]
    check_limit(cluster, [p.config for p in plans], [planned_round(p, workshop.data(p.config)) for p in plans])


def probe(work: Workload, options: Options, device: str, view: View = SILENT) -> Span:
    """Fill in the costs, measured with stand-ins for teachers and condensed sets that are not cached.

    Returns the seconds that it will take to make these teachers and sets.
    """
    set_up_process(max(1, int(options.cpus_per_trial)))
    stand_ins = StandIns()
    workshop = Workshop(options.cache, device, stand_ins=stand_ins)
    with view.bar("trying out what trials take") as on_step, tempfile.TemporaryDirectory() as folder:
        for plan in work.missing:
            workshop.teacher(plan.config)
            workshop.condensed(plan.config)
        before, known = sum((probe_teacher(one, workshop) for one in stand_ins.teachers.values()), Span()), {}
        for config, method in stand_ins.sets.values():
            if method not in known:
                known[method] = probe_set(config, method, workshop)
            before += known[method]
        _measure(work, workshop, options.out, Path(folder), on_step, untrained=bool(stand_ins.teachers))
    return before


def total(work: Workload, before: Span, at_once: int) -> Estimate:
    """Return the estimate for the rest of `work`, whose costs are known, with `at_once` trials at a time."""
    costs = [work.costs[plan.arm] for plan in work.missing if plan.arm in work.costs]
    kinds = {(plan.arm, plan.ipc) for plan in work.missing}
    largest = join(costs) if costs else Cost()
    at_once = max(1, min(at_once, len(costs)))
    trials = Span(*(makespan([getattr(cost.wall, end) for cost in costs], at_once) for end in ("low", "high")))
    around = before + STARTED + REPORTED
    return Estimate(
        at_once=at_once,
        before=before,
        wall=trials + around + BETWEEN * (len(costs) / at_once),
        cpu=sum((cost.cpu for cost in costs), Span()) + around + BETWEEN * len(costs),
        kept=sum((cost.kept for cost in costs), WRITTEN) + largest.product * len(kinds),
        working=largest.working * at_once,
        trial_memory=largest.memory,
        memory=largest.memory * at_once + DRIVER,
    )


def finished_before(planned: Sequence[Plan], out: Path) -> dict[Plan, Record]:
    """Return the finished records of planned trials.

    They are matched by config and scope, not by hash, because teachers and condensed sets, which are part of the hash,
    may not exist yet. Raises `InputError` if a record cannot be read.
    """
    records = [record for record in read_records(out) if (record.status, record.numbers) == ("finished", NUMBERS)]
    found: dict[tuple[str, str], Record] = {}
    for record in records:
        # Skip a record of another version, which cannot equal a planned trial.
        with contextlib.suppress(InputError):
            config = from_tree(record.config)
            if plugins_in(config) == record.plugins:
                found[content_hash(config), record.scope] = record
    return {plan: found[key] for plan in planned if (key := (content_hash(plan.config), plan.scope)) in found}


def _measure(
    work: Workload,
    workshop: Workshop,
    out: Path,
    folder: Path,
    on_step: OnStep = no_bar,
    *,
    untrained: bool = False,
) -> None:
    """Fill in the cost of a trial of each missing arm. `untrained`: True if a stand-in replaces the teacher."""
    begin, probed, diverged = time.perf_counter(), 0, []
    arms = {plan.arm: plan for plan in sorted(work.missing, key=lambda plan: (plan.ipc, -plan.seed))}
    for number, (arm, plan) in enumerate(arms.items()):
        on_step(number, len(arms))
        records = [record for other, record in work.done.items() if other.arm == arm]
        if records:
            work.costs[arm] = join([recorded(record, out) for record in records])
        elif time.perf_counter() - begin < PROBING_SECONDS:
            try:
                work.costs[arm] = probe_trial(plan, workshop.prepare(plan.config), folder / str(len(work.costs)))
                probed += 1
            except NonFiniteError:
                diverged.append(arm)
    by_record = len(work.costs) - probed
    rest = [arm for arm in arms if arm not in work.costs]
    if rest and work.costs:
        work.costs |= dict.fromkeys(rest, join(list(work.costs.values())))
    shares = any(plan.scope == "inversion" and can_share(plan.config) for plan in work.missing)
    stand_in = ", a stand-in for the teacher," if untrained else ""
    work.based_on = [
        *[f"records of {len(work.done)} finished trials for {by_record} arms"] * bool(by_record),
        *[f"a few rounds{stand_in} of one trial for {probed} arms, on this machine"] * bool(probed),
        *["each trial making its own images: those that share them take less"] * shares,
        *[f"the other arms for {', '.join(rest)} ({'a stand-in diverged' if diverged else 'time was short'})"]
        * bool(rest),
    ]


def makespan(seconds: Sequence[float], at_once: int) -> float:
    """Return the total time of trials that take `seconds` each and run in this order, `at_once` at a time."""
    places = [0.0] * at_once
    for each in seconds:
        heapq.heapreplace(places, places[0] + each)
    return max(places)


def explain(experiment: str, planned: Sequence[Plan], options: Options, device: str, view: View = SILENT) -> str:
    """Return the estimate of an experiment as text for a terminal. Raises `InputError` as the run itself would."""
    check_same_experiment(options.out, experiment)
    work = Workload(planned, {} if options.fresh else finished_before(planned, options.out))
    head = f"{len(planned)} trials, {len(work.done)} of them finished; results in {options.out}\n"
    return head + (_text(work, estimate(work, options, device, view), options) if work.missing else NOTHING)


def explain_search(
    tree: dict[str, Any], options: Options, device: str, view: View = SILENT, *, trials: int, shortest: float = 1
) -> str:
    """Return the estimate of a search of `trials` more trials, from probes of the space's default and its corners.

    `shortest`: fraction of its rounds after which a trial may be stopped. Raises `InputError` as the search would.
    """
    if trials < 1:
        return NOTHING
    corners, whole = Workload.of_corners(tree), Workload.of_search(tree, trials)
    found = estimate(corners, options, device, view, whole=whole, shortest=shortest)
    head = f"{trials} trials to run; results in {options.out}\n"
    return head + _text(whole, found, options, _arms(corners, "Corners of the space"))


def _text(work: Workload, found: Estimate, options: Options, probed: Table | None = None) -> str:
    if not work.costs:
        return "No trial could be measured.\n"
    place = " of the GPU" if options.gpus_per_trial else ""
    own, memory = (_range(span, byte_size) for span in (found.trial_memory, found.memory))
    lines = [
        "",
        (probed or _arms(work)).text(),
        f"at once      {found.at_once}, with {options.cpus_per_trial:g} CPUs and {options.gpus_per_trial:g} GPUs each",
        f"preparation  {_range(found.before, duration)}: Ray, and teachers and condensed sets not in the cache",
        f"wall time    {_range(found.wall, duration)}",
        f"CPU time     {_range(found.cpu, duration)}",
        f"disk         {_range(found.kept, byte_size)} kept; up to {byte_size(found.working.high)} more while it runs",
        f"memory       {own} per trial{place}, {memory} in all",
        f"based on     {'; '.join(work.based_on)}",
    ]
    return "\n".join(lines) + "\n"


def _arms(work: Workload, title: str = "Trials") -> Table:
    rows = []
    for arm in dict.fromkeys(plan.arm for plan in work.planned):
        plans, cost = [plan for plan in work.planned if plan.arm == arm], work.costs.get(arm)
        done = sum(plan in work.done for plan in plans)
        rows.append([arm, str(len(plans)), str(done), _range(cost.cpu, duration) if cost else "-"])
    return Table(title, ["arm", "trials", "finished", "CPU time of one"], rows, "", keys=1)


def _range(span: Span, text: Callable[[float], str]) -> str:
    return f"{text(span.low)} to {text(span.high)}"
