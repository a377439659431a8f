"""Costs of the cluster, one function per figure: the pool, whole sweeps against plain processes, and finished trials.

All are measured with trials on the bundled digits. Finished trials have their outcome stored already, so that they only
cost their administration.
"""

import gc
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from statistics import fmean, median
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, NamedTuple

import psutil
import torch
from chaos.cluster import machine
from chaos.processes import TITLES, titles

from benchmark.plain import prepare
from benchmark.rows import Measured
from condkd_ray.cluster.actors import WATCH
from condkd_ray.cluster.connection import connect
from condkd_ray.cluster.files import trial_file
from condkd_ray.cluster.options import ClusterOptions
from condkd_ray.cluster.pool.actor import make_pool
from condkd_ray.cluster.pool.limits import default_limit
from condkd_ray.cluster.pool.stores import PoolStore
from condkd_ray.cluster.sweep import sweep as run_sweep
from condkd_ray.core import checkpoint as states
from condkd_ray.core.config import to_tree
from condkd_ray.core.records import Outcome
from condkd_ray.core.samples import Codec, Encoded
from condkd_ray.methods.memory.chunk_table import joinable
from condkd_ray.methods.memory.memory import gathered
from condkd_ray.trial.config import Prepared, TrialConfig, from_tree
from condkd_ray.trial.loop import run_round, start
from condkd_ray.trial.outcome import save_outcome
from condkd_ray.trial.plan import Plan, PlannedTrial, Scope
from condkd_ray.trial.run import CHECKPOINT_SECONDS, local_store
from condkd_ray.trial.synthesis import codec

CPUS = 2
"""CPUs on which sweeps are measured."""
HELD, ROUND, BATCH = 65_536, 512, 256
"""Number of images in the pool, per round, and per draw."""
CODE = Codec("unit", (0.5,) * 3, (0.25,) * 3)
READ_BYTES = 500e6
TRIAL_CPU_SECONDS, TRIALS = 42.0, 8
"""CPU seconds of a trial, at least 40, and number of trials, in the sweep that is compared with plain processes."""
STUDENTS = 12
"""Number of students of one shared inversion."""
SHARED: dict[str, tuple[dict[str, Any], int]] = {
    "deep_inversion": ({"steps": 100, "batch": 128}, 15),
    "fast": ({"steps": 10, "batch": 128, "width": 64, "adv_weight": 0.0}, 20),
}
"""Settings of inversions that are shared, and student steps per round."""
MANY, FEW = 3000, 1000
WARM, TIMED = 40, 200
"""Numbers of finished trials: in the driver's sweeps (MANY, FEW); on raylets, to warm up (WARM) and timed (TIMED)."""


def draw() -> Iterator[Measured]:
    """Draws from the pool against draws from private tensors, in turns, in seconds of this thread."""
    ids, places, private = torch.arange(HELD), torch.Generator().manual_seed(0), random_samples(HELD)

    def rows() -> torch.Tensor:
        return torch.randint(HELD, (BATCH,), generator=places)

    with own_pool() as pool:
        stores = {name: _filled(pool, name, HELD, ROUND, seal=name == "after") for name in ("before", "after")}
        draws: dict[str, Callable[[], Any]] = {
            name: lambda store=store: gathered(store, ids[rows()]) for name, store in stores.items()
        }
        draws["own"] = lambda: _picked(private, rows())
        runs = []
        for _ in range(6):
            turns = [{name: seconds(call, time.thread_time) for name, call in draws.items()} for _ in range(300)]
            runs.append({name: median(turn[name] for turn in turns) for name in draws})
        chunks = {name: len(store.table.spans()) for name, store in stores.items()}
    for name, bound in (("after", 1.2), ("before", 2.0)):
        what = (
            f"draw of {BATCH} normalised float32 images 3x32x32 of {HELD}, with labels and logits, from the pool "
            f"{name} compaction ({chunks[name]} chunks) / from one private uint8 tensor, and one each of the others, "
            "by `index_select`"
        )
        why = "Ids are looked up in the table of chunks first, and these are in shared memory, in pages of 4 KiB."
        yield Measured(what, [run[name] / run["own"] for run in runs[1:]], "x", "<=", bound, why)


def blocked() -> Iterator[Measured]:
    """Time that rounds on the digits are blocked by the pool, which stores their samples."""
    config = digits(rounds=56, evaluate_every=56)
    config = replace(config, distiller=replace(config.distiller, steps=1))
    prepared, shares = prepare(config), []
    with own_pool() as pool:
        store = PoolStore(codec(config, prepared.teacher), prepared.teacher.num_classes, pool, "blocked")
        state = start(config, prepared)
        for _ in range(56):
            begun = WATCH.seconds
            metrics = run_round(config, prepared, state, store)
            store.commit()
            shares.append(100 * (WATCH.seconds - begun) / metrics["time/inversion_seconds"])
    what = (
        "time per round that a trial waits in the pool (append and refresh, one call) / time of that round's "
        f"inversion, `fast`, digits, {config.inversion.images_per_round} images"
    )
    why = (
        "A round trip to the pool, the file of the chunk and its copy take a few milliseconds, however short the round."
    )
    yield Measured(what, shares[6:], "%", "<=", 3.0, why)


def reader() -> Iterator[Measured]:
    """Memory of processes that each map a whole pool and draw from it."""
    import ray

    with own_pool() as pool:
        held = int(READ_BYTES / 3072)
        _filled(pool, "read", held, 2560, seal=True)
        grown = [ray.get(ray.remote(num_cpus=0)(_read).remote(pool, "read", held)) / 1e6 for _ in range(5)]
    what = (
        f"private memory (USS) of one more reader of a pool of {READ_BYTES / 1e6:.0f} MB, all chunks mapped and read, "
        "after 100 draws"
    )
    why = "Five bytes per sample for its class and whether it is in use, and the buffers of a draw."
    yield Measured(what, grown, "MB", "<=", 5.0, why)


@contextmanager
def own_pool() -> Iterator[Any]:
    """Yield the pool of a private cluster of `CPUS` CPUs."""
    import ray

    with scratch() as folder, connect(cpus=CPUS):
        pool = make_pool(folder / "chunks", default_limit())
        try:
            yield pool
        finally:
            ray.kill(pool)


def _filled(pool: Any, key: str, held: int, round: int, *, seal: bool) -> PoolStore:
    """Return a store with `held` random samples, `round` per round; with `seal`, all rounds are compacted."""
    import ray

    store = PoolStore(CODE, 10, pool, key)
    for first in range(0, held, round):
        store.append(CODE.decode(random_samples(min(round, held - first))))
        if seal:
            store.commit()
    if not seal:
        return store

    # The pool joins chunks while trials go on.
    def spans() -> list[tuple[int, int]]:
        table: Any = ray.get(pool.tend.remote(key, sealed=held))
        return [(start, placed.size) for start, placed in table.changed.items()]

    while joinable(spans()):
        time.sleep(0.05)
    return PoolStore(CODE, 10, pool, key)


def random_samples(count: int) -> Encoded:
    """Return `count` random images 3x32x32 of ten classes, with logits."""
    images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8)
    return Encoded(images, torch.randint(10, (count,)), torch.randn(count, 10).half())


def _picked(samples: Encoded, rows: torch.Tensor) -> Any:
    columns = samples.images, samples.labels, samples.logits
    return CODE.decode(Encoded(*(column.index_select(0, rows) for column in columns)))


def _read(pool: Any, key: str, held: int) -> int:
    """Return by how many bytes this process's own memory grows when it becomes a reader."""
    torch.set_num_threads(1)
    # Memory that any reader needs, however small the pool: code, and the buffers of a draw.
    _filled(pool, f"warm {os.getpid()}", BATCH, BATCH, seal=True).gather(torch.arange(BATCH))
    before = psutil.Process().memory_full_info().uss
    store = PoolStore(CODE, 10, pool, key)
    for first in range(0, held, BATCH):
        store.gather(torch.arange(first, min(first + BATCH, held)))
    for _ in range(100):
        store.gather(torch.randint(held, (BATCH,)))
    return psutil.Process().memory_full_info().uss - before


def sweep() -> Iterator[Measured]:
    """A sweep against plain processes, in turns, each from the start of its processes to the end of the last."""
    config = digits(evaluate_every=1000)
    prepared, ratios, loops = prepare(config), [], []
    store, state = local_store(config, prepared, None), start(config, prepared)
    spent = [run_round(config, prepared, state, store)["time/cpu_seconds"] for _ in range(5)]
    config = replace(config, rounds=math.ceil(TRIAL_CPU_SECONDS / median(spent[1:])))
    for _ in range(2):
        with scratch() as folder, connect(cpus=CPUS):
            trials = of_seeds(config, range(TRIALS), prepared)
            on_ray = seconds(partial(run_all, trials, folder))
        plain = _plain_seconds(config, [range(first, TRIALS, CPUS) for first in range(CPUS)])
        ratios.append(on_ray / plain)
        loops.append(TRIALS * _plain_seconds(config, [[0]]) / plain)
    work = f"{TRIALS} trials of {TRIAL_CPU_SECONDS:.0f} CPU s"
    what = f"sweep of {work} on {CPUS} cores / {CPUS} plain processes of {TRIALS // CPUS} trials each, wall time"
    why = "Driver, pool and Ray's own processes share the cores with the trials."
    yield Measured(what, ratios, "x", "<=", 1.08, why)
    yield Measured(f"{work} one after another on one core (one trial, times {TRIALS}) / the same", loops, "x")


def _plain_seconds(config: TrialConfig, parts: Sequence[Sequence[int]]) -> float:
    """Return the seconds of plain processes that run at once, each with its part of the seeds."""
    command, folder = [sys.executable, "-m", "benchmark.plain", json.dumps(to_tree(config))], Path(__file__).parents[1]
    processes = [subprocess.Popen([*command, *map(str, seeds)], cwd=folder) for seeds in parts]
    begin = time.monotonic()
    assert not any([process.wait() for process in processes])
    return time.monotonic() - begin


def startup() -> Iterator[Measured]:
    """Time of sweeps whose trials are all finished."""
    prepared, taken = prepare(digits(rounds=1)), []
    for _ in range(3):
        with scratch() as folder:
            trials, begin = idle(CPUS, folder, prepared), time.monotonic()
            with connect(cpus=CPUS):
                run_all(trials, folder)
            taken.append(time.monotonic() - begin)
    what = "start-up: connect, first trial processes, shut-down"
    yield Measured(what, taken, "s", "<=", 20.0, "Every process of a trial imports PyTorch.")


def waiting() -> Iterator[Measured]:
    """Waiting times of trials on the digits, without the first trial of each process, which belongs to the start-up."""
    config = digits()
    prepared, shares, rounds = prepare(config), [], []
    with scratch() as folder, connect(cpus=CPUS):
        outcomes = run_all(of_seeds(config, range(3 * CPUS), prepared), folder)
    for outcome in outcomes[CPUS:]:
        trial = outcome.metrics["time/wall_seconds"]
        saved = _checkpoint_seconds(config, prepared) * (1 + trial // CHECKPOINT_SECONDS)
        shares.append(100 * (outcome.metrics["time/cluster_seconds"] + saved) / trial)
        rounds.append(trial / config.rounds)
    what = (
        "time a trial waits for Ray (report, checkpoint, append, refresh, next trial) / trial time, "
        f"{config.rounds} rounds of {median(rounds):.1f} s"
    )
    why = "A process waits for its next trial while Tune tidies up after the last, however short the rounds are."
    yield Measured(what, shares, "%", "<=", 3.0, why)


def _checkpoint_seconds(config: TrialConfig, prepared: Prepared) -> float:
    state = start(config, prepared)
    with scratch() as folder:
        return median(seconds(lambda: states.save(state, folder / "state.safetensors")) for _ in range(5))


def sharing() -> Iterator[Measured]:
    """Students with different learning rates, first with an inversion each, then with one shared inversion."""
    for name, (inversion, steps) in SHARED.items():
        parts = {"inversion": {"name": name} | inversion, "distiller": {"steps": steps, "batch": 128}}
        config = digits(**parts, rounds=4, evaluate_every=4)
        prepared, shares, ratios = prepare(config), [], []
        for _ in range(2):
            alone, ratio = _spent(config, prepared, "trial")
            shared, _ = _spent(config, prepared, "inversion")
            shares.append(shared / alone)
            ratios.append(ratio)
        r = fmean(ratios)
        what = (
            f"{STUDENTS} students on one shared inversion / {STUDENTS} unshared, CPU s of trials and pool, `{name}`, "
            f"r = inversion / distillation = {r:.1f}"
        )
        bound = 1.10 * (r + STUDENTS) / (STUDENTS * r + STUDENTS)
        why = "Testing the students and fetching rounds made by other trials costs the same however much is shared."
        yield Measured(what, shares, "x", "<=", bound, why)


def _spent(config: TrialConfig, prepared: Prepared, scope: Scope) -> tuple[float, float]:
    """Return the CPU seconds of all rounds and of the pool, and the ratio of inversion time to distillation time."""
    pool: list[float] = []
    rates = [0.05 + 0.01 * number for number in range(STUDENTS)]
    configs = {f"lr{rate:.2f}": replace(config, distiller=replace(config.distiller, lr=rate)) for rate in rates}

    def sample() -> None:
        """Append the CPU seconds of the process below this one that holds the pool."""
        pool.append(0.0)
        for pid, title in titles(os.getpid()).items():
            if title.startswith(TITLES["pool"]):
                with suppress(psutil.Error):
                    pool[-1] += sum(psutil.Process(pid).cpu_times()[:2])

    with scratch() as folder, connect(cpus=CPUS):
        outcomes = run_all(named(configs, prepared, scope), folder, on_round=sample, on_outcome=sample)
    times = ("time/cpu_seconds", "time/inversion_seconds", "time/distillation_seconds")
    cpu, inversion, distillation = (sum(outcome.metrics[name] for outcome in outcomes) for name in times)
    return cpu + max(pool) - pool[0], inversion / distillation


def driver() -> Iterator[Measured]:
    """One sweep of many finished trials, between two sweeps of a third as many."""
    prepared = prepare(digits(rounds=1))
    with connect(cpus=CPUS):
        _idle_sweep(prepared, 10)
        before = _idle_sweep(prepared, 1, FEW)
        first, few, many = _idle_sweep(prepared, 1, FEW, MANY)
        after = _idle_sweep(prepared, 1, FEW)
    taken, grown = many.seconds - first.seconds, (many.bytes - few.bytes) / (MANY - FEW)
    what = f"memory (USS) of the driver for each trial in which nothing is left to do, from {FEW} to {MANY}"
    why = "Tune keeps every trial (38 kB), the driver its config and its last report."
    yield Measured(what, [grown / 1e3], "kB", "<=", 60.0, why)
    ratios = [taken / (MANY / FEW * (end.seconds - begin.seconds)) for begin, end in (before, after)]
    what = f"time of {MANY} such trials / {MANY // FEW} times {FEW}"
    yield Measured(what, ratios, "x", "<=", 2.0, "Tune looks through all its trials now and then.")
    yield Measured("time of one such trial, of these", [1e3 * taken / MANY], "ms")


def raylets() -> Iterator[Measured]:
    """The same finished trials on two kinds of cluster, in turns."""
    prepared, ratios = prepare(digits(rounds=1)), []
    for _ in range(2):
        taken = []
        for head, nodes in ((1, CPUS - 1), (CPUS, 0)):
            with machine(nodes, head_cpus=head) as made, connect(made.address):
                begin, end = _idle_sweep(prepared, WARM, WARM + TIMED)
            taken.append(end.seconds - begin.seconds)
        ratios.append(taken[1] / taken[0])
    what = f"trials per second, {TIMED} in which nothing is left to do after {WARM} others: "
    what += f"{CPUS} raylets of 1 CPU / 1 of {CPUS}"
    yield Measured(what, ratios, "x", ">=", 0.8, "Each raylet and its agents take their part of the same cores.")


class _Mark(NamedTuple):
    """Time when a trial ended, and the driver's own memory in bytes at that time."""

    seconds: float
    bytes: int


def _idle_sweep(prepared: Prepared, *marks: int) -> list[_Mark]:
    """Sweep as many finished trials as the last number in `marks`; return a mark for each trial number in `marks`."""
    numbers, found = count(1), list[_Mark]()

    def record() -> None:
        if next(numbers) in marks:
            gc.collect()
            found.append(_Mark(time.monotonic(), psutil.Process().memory_full_info().uss))

    with scratch() as folder:
        run_all(idle(marks[-1], folder, prepared), folder, on_outcome=record)
    return found


def digits(**changes: Any) -> TrialConfig:
    """Return a config on the digits with rounds of about a second; the teacher's accuracy does not matter."""
    tree = {
        "data": {"name": "digits"},
        "teacher": {"network": {"name": "resnet", "depth": 8, "width": 16}, "training": {"epochs": 1}},
        "student": {"name": "resnet", "depth": 8, "width": 8},
        "inversion": {"name": "fast", "steps": 10, "batch": 128, "width": 64, "adv_weight": 0.0},
        "distiller": {"steps": 20, "batch": 128},
        "rounds": 12,
    }
    return from_tree(tree | changes, "benchmark")


def named(configs: Mapping[str, TrialConfig], prepared: Prepared, scope: Scope = "trial") -> list[PlannedTrial]:
    """Return a trial for each config, by its name."""
    return [PlannedTrial(name, Plan(name, 0, config.seed, config, scope), prepared) for name, config in configs.items()]


def of_seeds(config: TrialConfig, seeds: Sequence[int], prepared: Prepared) -> list[PlannedTrial]:
    """Return a trial for each seed."""
    return named({f"seed{seed}": replace(config, seed=seed) for seed in seeds}, prepared)


def idle(count: int, folder: Path, prepared: Prepared) -> list[PlannedTrial]:
    """Return trials whose outcomes are in `folder` already, so that only their administration costs time.

    Each trial is scheduled, reads its config and outcome, reports one round, and is collected and removed by the
    driver.
    """
    done = Outcome(status="finished", metrics={}, history=[{"round": 1, "kd/loss": 0.0}], predictions=[], images=None)
    trials = of_seeds(digits(rounds=1), range(count), prepared)
    for trial in trials:
        save_outcome(done, trial_file(folder, trial.key, "outcome"))
    return trials


def run_all(
    trials: Sequence[PlannedTrial],
    folder: Path,
    *,
    on_round: Callable[[], None] = lambda: None,
    on_outcome: Callable[[], None] = lambda: None,
) -> list[Outcome]:
    """Run a sweep and return the outcomes in the order in which the trials ended.

    Raises `KeyboardInterrupt` if the sweep was stopped, because its time would be meaningless.
    """
    outcomes: list[Outcome] = []

    def ended(trial: PlannedTrial, outcome: Outcome) -> None:
        outcomes.append(outcome)
        on_outcome()

    observer: Any = SimpleNamespace(round=lambda trial, metrics: on_round(), ended=ended)
    if not run_sweep(trials, ClusterOptions(folder=folder), observer):
        raise KeyboardInterrupt
    return outcomes


@contextmanager
def scratch() -> Iterator[Path]:
    """Yield a temporary folder."""
    with TemporaryDirectory(prefix=f"condkd-benchmark-{os.getpid()}-") as folder:
        yield Path(folder)


def seconds(call: Callable[[], object], clock: Callable[[], float] = time.monotonic) -> float:
    """Return the seconds that `call` takes."""
    begin = clock()
    call()
    return clock() - begin


FIGURES: dict[str, Callable[[], Iterator[Measured]]] = {
    figure.__name__: figure for figure in (draw, blocked, reader, startup, waiting, sharing, raylets, driver, sweep)
}
"""Figures in the order in which they are measured."""
