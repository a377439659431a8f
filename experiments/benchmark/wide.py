"""Costs of a wide cluster: many clients of one pool, many trials on several raylets, and a large teacher for all nodes.

Everything runs on this machine, whose cores clients, pool, driver and Ray's own processes share. On a real cluster the
clients have cores of their own, so what carries over are the CPU seconds of pool and driver, from which
`benchmark.simulation` computes waiting times of wider clusters.
"""

import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import psutil
import torch
from chaos.cluster import machine
from chaos.processes import TITLES, titles
from torch import Tensor

from benchmark.figures import CODE, CPUS, digits, of_seeds, own_pool, random_samples, scratch
from benchmark.names import DRIVER_CPU, POOL_CPU, UNPACED, UNPACED_POOL_CPU, UNPACED_REST_CPU
from benchmark.plain import prepare
from benchmark.rows import Measured
from condkd_ray.cluster.connection import connect
from condkd_ray.cluster.jobs import Packer, own_device, unpack
from condkd_ray.cluster.options import ClusterOptions
from condkd_ray.cluster.pool.stores import PoolStore, SweepStore
from condkd_ray.cluster.sweep import sweep as run_sweep
from condkd_ray.core.method import ClusterError, Metrics
from condkd_ray.core.records import Outcome
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import Encoded, Samples, unseen
from condkd_ray.methods.inversion.inversion import Inversion
from condkd_ray.methods.targets import Targets
from condkd_ray.models.teacher import Teacher
from condkd_ray.trial.config import Prepared, TrialConfig
from condkd_ray.trial.packing import TEACHER_FIELDS, PreparedRefs
from condkd_ray.trial.plan import PlannedTrial

ROUND = 256
"""Images of a round of `clients`."""
PROCESSES, WIDE = 16, 64
"""Processes of clients, and the largest number of clients. A process of a client or trial has 0.4 GB of its own, most
of it PyTorch and Ray, so that 64 of them do not fit into 24 GB: the clients of a process are threads of it."""
REPEATS, PACED_REPEATS = 3, 2
"""Runs of each kind of `clients` and of `broadcast`, and of `clients` with pauses."""
ALONE_ROUNDS, UNPACED_ROUNDS = 128, 48
"""Rounds of each client: one client, and `PROCESSES` clients, both without pauses."""
PACED: Mapping[int, tuple[float, int]] = {PROCESSES: (1.0, 24), WIDE: (4.0, 18)}
"""Mean pause between two rounds of a client in seconds, and rounds of each client, by the number of clients."""
TINY = (3, 8, 8)
TINY_ROUND = 16
"""Shape and number of images of a round of `contribute`."""
SHARED_ROUNDS, SLICES, SLICE = 200, 4, 4
"""Rounds of each client on the shared key; the last SLICES times SLICE of them are paced and timed."""
IDLE_SECONDS = 10.0
"""Time for which the CPU time of a pool is measured that nobody calls, before each of the SLICES."""
SLEEP_SECONDS, SLEEPERS, SLEEPING_ROUNDS, WINDOWS = 0.5, 32, 104, 4
"""Length of a sleeping round, number of trials (see `PROCESSES`), their rounds, and parts of these that are timed."""
RAYLETS = 4
TEACHER = {"name": "resnet", "depth": 8, "width": 290}
"""A network of 100 MB."""


def percentile(values: Sequence[float], percent: float) -> float:
    """Return a percentile of the values, interpolated linearly."""
    return float(np.percentile(values, percent))


def cpu_seconds() -> dict[str, float]:
    """Return the CPU seconds so far of this process and of those below it.

    The keys are `driver`, `pool` and `rest`; a process that has ended is not counted.
    """
    spent = {"driver": time.process_time(), "pool": 0.0, "rest": 0.0}
    for pid, title in titles(os.getpid()).items():
        with suppress(psutil.Error):
            kind = "pool" if title.startswith(TITLES["pool"]) else "rest"
            spent[kind] += sum(psutil.Process(pid).cpu_times()[:2])
    return spent


class Calls(NamedTuple):
    """The timed calls of several clients: the seconds of each, calls a second, and CPU seconds a call by process."""

    seconds: list[float]
    rate: float
    cpu: dict[str, float]


def timed(run: Callable[[], Sequence[Sequence[tuple[float, float]]]]) -> Calls:
    """Run clients, which return the (begin, end) of each of their calls, and return their calls."""
    before = cpu_seconds()
    spans = [span for client in run() for span in client]
    spent = cpu_seconds()
    begin, end = min(begin for begin, _ in spans), max(end for _, end in spans)
    cpu = {kind: (seconds - before[kind]) / len(spans) for kind, seconds in spent.items()}
    return Calls([end - begin for begin, end in spans], len(spans) / (end - begin), cpu)


class Client:
    """A process whose threads each run the store of one trial. An actor."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self._shared: dict[str, _Contributor] = {}

    def rounds(self, pool: Any, key: str, rounds: int, pause: float) -> list[tuple[float, float]]:
        """Append `rounds` rounds to the pool and return (begin, end) of each call. `pause`: mean seconds between."""
        store, pauses = PoolStore(CODE, 10, pool, key), _pauses(key, pause)
        samples, spans = CODE.decode(random_samples(ROUND)), []
        for _ in range(rounds):
            time.sleep(next(pauses))
            begin = time.monotonic()
            store.append(samples)
            store.commit()
            spans.append((begin, time.monotonic()))
        return spans

    def contribute(self, pool: Any, key: str, trial: str, rounds: int, pause: float) -> list[tuple[float, float]]:
        """Add `rounds` rounds of a trial to the shared key; return (begin, end) of each call of `contribute`."""
        if trial not in self._shared:
            self._shared[trial] = _Contributor(pool, key, trial)
        return self._shared[trial].run(rounds, pause)

    def bare_calls(self, pool: Any, trial: str, calls: int, pause: float) -> list[tuple[float, float]]:
        """Call a method of the pool that does nothing; return (begin, end) of each call."""
        import ray

        spans, pauses = [], _pauses(f"bare {trial}", pause)
        for _ in range(calls):
            time.sleep(next(pauses))
            begin = time.monotonic()
            ray.get(pool.folder.remote())
            spans.append((begin, time.monotonic()))
        return spans

    def reply_bytes(self, trial: str) -> int:
        """Return the size of the pool's last reply to the trial, as Ray stores it."""
        return self._shared[trial].reply_bytes()


def _pauses(seed: str, mean: float) -> Iterator[float]:
    """Yield pauses from 0.5 to 1.5 times the mean, in seconds; the first is from 0 to the mean, so starts differ."""
    draws = random.Random(seed)
    yield draws.uniform(0.0, mean)
    while True:
        yield draws.uniform(0.5 * mean, 1.5 * mean)


class _Contributor:
    """One trial of a sweep whose trials share all samples; it keeps the latest round, as memory `latest` does."""

    def __init__(self, pool: Any, key: str, trial: str) -> None:
        self._pool = _Remembering(pool)
        self._store = SweepStore(CODE, 10, self._pool, key, reader=trial)
        images = torch.randint(256, (TINY_ROUND, *TINY), dtype=torch.uint8)
        labels, logits = torch.randint(10, (TINY_ROUND,)), torch.randn(TINY_ROUND, 10).half()
        self._samples = CODE.decode(Encoded(images, labels, logits))
        self._trial, self._round = trial, 0
        self._kept = torch.empty(0, dtype=torch.int64)

    def run(self, rounds: int, pause: float) -> list[tuple[float, float]]:
        """Contribute rounds; return (begin, end) of each call."""
        spans, pauses = [], _pauses(f"{self._trial}/{self._round}", pause)
        for _ in range(rounds):
            time.sleep(next(pauses))
            begin = time.monotonic()
            sizes = self._store.contribute(self._round, self._samples)
            spans.append((begin, time.monotonic()))
            for size in sizes:
                self._store.drop(self._kept)
                self._kept = self._store.append(self._store.peek(size))
            self._store.commit()
            self._round += 1
        return spans

    def reply_bytes(self) -> int:
        """Return the size of the pool's last reply as an object of Ray."""
        import ray
        from ray.experimental import get_object_locations

        copy = ray.put(ray.get(self._pool.last))
        return get_object_locations([copy])[copy]["object_size"]


class _Remembering:
    """A pool's handle that keeps the reference of the last reply to `contribute`."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self.last: Any = None

    def __getattr__(self, method: str) -> Any:
        found = getattr(self._pool, method)
        return SimpleNamespace(remote=partial(self._remember, found)) if method == "contribute" else found

    def _remember(self, method: Any, *args: Any, **options: Any) -> Any:
        self.last = method.remote(*args, **options)
        return self.last


@contextmanager
def _clients() -> Iterator[tuple[Any, list[Any]]]:
    """Yield a pool and `PROCESSES` actors `Client` that have started."""
    import ray

    with own_pool() as pool:
        options: dict[str, Any] = {"num_cpus": 0, "max_concurrency": -(-WIDE // PROCESSES)}
        actors: list[Any] = [ray.remote(**options)(Client).remote() for _ in range(PROCESSES)]
        ray.get([actor.rounds.remote(pool, f"warm-{number}", 2, 0.0) for number, actor in enumerate(actors)])
        yield pool, actors


def clients() -> Iterator[Measured]:
    """Calls of one round by 1, 16 and 64 clients of one pool."""
    import ray

    with _clients() as (pool, actors):

        def calls(count: int, rounds: int, pause: float, run: int) -> Calls:
            keys = {f"{count}-{pause}-{run}-{number}": actors[number % len(actors)] for number in range(count)}
            found = timed(
                lambda: ray.get([actor.rounds.remote(pool, key, rounds, pause) for key, actor in keys.items()])
            )
            ray.get([pool.delete.remote(key) for key in keys])
            return found

        alone = [calls(1, ALONE_ROUNDS, 0.0, run) for run in range(REPEATS)]
        crowd = [calls(PROCESSES, UNPACED_ROUNDS, 0.0, run) for run in range(REPEATS)]
        paced = {
            count: [calls(count, rounds, pause, run) for run in range(PACED_REPEATS)]
            for count, (pause, rounds) in PACED.items()
        }
    one = f"append of {ROUND} images 3x32x32 and commit"
    yield from _percentiles(f"{one}, 1 client", alone)
    yield from _percentiles(UNPACED, crowd)
    yield Measured(f"rounds a second, 1 client without pauses on {CPUS} cores", [run.rate for run in alone], "")
    yield Measured(f"rounds a second, {PROCESSES} clients without pauses", [run.rate for run in crowd], "")
    ratios = [percentile(run.seconds, 95) / percentile(run.seconds, 50) for run in crowd]
    what = f"p95 / p50 of the same calls, in runs of {UNPACED_ROUNDS} rounds a client, in which its chunks are joined"
    yield Measured(what, ratios, "x", "<=", 3.0, "Joins take their part of the two cores.")
    yield Measured(UNPACED_POOL_CPU, [1e3 * run.cpu["pool"] for run in crowd], "ms")
    yield Measured(UNPACED_REST_CPU, [1e3 * run.cpu["rest"] for run in crowd], "ms")
    for count, runs in paced.items():
        rate = np.mean([run.rate for run in runs])
        yield from _percentiles(f"{one}, {count} clients that pause {PACED[count][0]:.0f} s, {rate:.0f} a second", runs)
    yield Measured(POOL_CPU, [1e3 * run.cpu["pool"] for run in paced[WIDE]], "ms")


def _percentiles(what: str, runs: Sequence[Calls]) -> Iterator[Measured]:
    for percent in (50, 99):
        yield Measured(f"{what}, p{percent}", [1e3 * percentile(run.seconds, percent) for run in runs], "ms")


def _idle_pool(seconds: float) -> float:
    """Return the CPU seconds a second of a pool that nobody calls."""
    before = cpu_seconds()["pool"]
    time.sleep(seconds)
    return (cpu_seconds()["pool"] - before) / seconds


def contribute() -> Iterator[Measured]:
    """Calls of `contribute` by many trials that share one key, after many rounds."""
    import ray

    untimed = SHARED_ROUNDS - SLICES * SLICE
    with _clients() as (pool, actors):
        trials = [(actors[number % len(actors)], f"trial{number}") for number in range(WIDE)]

        def calls(rounds: int, pause: float) -> Calls:
            return timed(
                lambda: ray.get([one.contribute.remote(pool, "all", trial, rounds, pause) for one, trial in trials])
            )

        def bare() -> Calls:
            pause = PACED[WIDE][0]
            return timed(lambda: ray.get([one.bare_calls.remote(pool, trial, SLICE, pause) for one, trial in trials]))

        calls(untimed, 0.0)
        idle, empty, slices = list[float](), list[Calls](), list[Calls]()
        for _ in range(SLICES):
            idle.append(_idle_pool(IDLE_SECONDS))
            empty.append(bare())
            slices.append(calls(SLICE, PACED[WIDE][0]))
        replies = ray.get([actors[number % len(actors)].reply_bytes.remote(f"trial{number}") for number in range(WIDE)])
    where = f"`contribute`, {WIDE} trials of `--share sweep`, rounds {untimed + 1} to {SHARED_ROUNDS}"
    made = f"{where} of {TINY_ROUND} images {'x'.join(map(str, TINY))}"
    why = "Ray's part of any call is in the next row; the rest is the reply, which names the rounds of all others."
    rate = np.mean([run.rate for run in slices])

    def beside_idle(runs: Sequence[Calls]) -> list[float]:
        return [1e3 * (run.cpu["pool"] - still / run.rate) for run, still in zip(runs, idle, strict=True)]

    what = f"CPU time of the pool's process a call, besides what it takes when no trial calls, {made}"
    yield Measured(what, beside_idle(slices), "ms", "<=", 3.0, why)
    yield Measured("the same of a call that does nothing, by as many clients", beside_idle(empty), "ms")
    what = "CPU time of the pool's process a second, when no trial calls"
    yield Measured(what, [1e3 * still for still in idle], "ms")
    yield from _percentiles(f"the same call in the trial, with mapping {WIDE} chunks, {rate:.0f} a second", slices)
    yield Measured("bytes of the pool's reply to the same call", [size / 1e3 for size in replies], "kB")


@dataclass(frozen=True, kw_only=True)
class Sleeping(Inversion[None]):
    """Sleeps, and returns random images. The first round waits until all trials of the sweep have begun it."""

    pixel_space = "unit"
    name: Literal["sleeping"] = "sleeping"
    seconds: float
    """Length of a round's sleep, in seconds."""
    trials: int
    """Number of trials that meet before their first round."""
    meeting: str
    """Folder in which each trial makes a file when it has begun."""
    patience: ClassVar[float] = 400.0

    @property
    def images_per_round(self) -> int:
        """Number of images of a round."""
        return 16

    def init(self, teacher: Teacher, rng: Streams) -> None:
        """Return None: there is no state."""

    def meet(self, seed: int) -> None:
        """In a trial's first round, wait for the other trials. Raises `ClusterError` if they do not come."""
        folder, deadline = Path(self.meeting), time.monotonic() + self.patience
        if (own := folder / str(seed)).is_file():
            return
        own.touch()
        while len(list(folder.iterdir())) < self.trials:
            if time.monotonic() > deadline:
                raise ClusterError(f"{self.trials} trials have not all begun in {self.patience:.0f} s")
            time.sleep(1.0)

    def synthesize(
        self, state: None, targets: Targets, *, teacher: Teacher, rng: Streams, **_: object
    ) -> tuple[Samples, Metrics]:
        """Sleep; return uniform images, and the seconds for which the trial has waited for Ray so far."""
        from condkd_ray.cluster.actors import WATCH  # the one of this process: the class is sent by value

        self.meet(rng.seed)
        waited = WATCH.seconds
        time.sleep(self.seconds)
        images: Tensor = torch.rand(len(targets.labels), *teacher.image_shape, generator=rng["latents"])
        return unseen(images, targets.labels), {"sleeping/waited_seconds": waited}


class _Reports:
    """Observes a sweep of sleeping trials.

    `waits`: by trial, the seconds that it waited for Ray up to each of its rounds. `marks`: CPU seconds, when the
    rounds in `at`, of all trials, had been reported.
    """

    def __init__(self, at: Sequence[int]) -> None:
        self._at, self._count = at, 0
        self.waits: dict[str, list[float]] = {}
        self.marks: list[dict[str, float]] = []
        self.outcomes: list[Outcome] = []

    def round(self, trial: PlannedTrial, metrics: Metrics) -> None:
        """Store a report."""
        self._count += 1
        self.waits.setdefault(trial.key, []).append(metrics["sleeping/waited_seconds"])
        if self._count in self._at:
            self.marks.append(cpu_seconds())

    def ended(self, trial: PlannedTrial, outcome: Outcome) -> None:
        """Store an outcome."""
        self.outcomes.append(outcome)


def sleepers() -> Iterator[Measured]:
    """Trials that sleep in each round, on several raylets."""
    each = SLEEPING_ROUNDS // WINDOWS
    # The first rounds warm up, and the last ones end at different times.
    bounds = [2 + number * (each - 1) for number in range(WINDOWS + 1)]
    with (
        machine(RAYLETS - 1, head_cpus=SLEEPERS // RAYLETS, node_cpus=SLEEPERS // RAYLETS) as made,
        scratch() as folder,
    ):
        (meeting := folder / "begun").mkdir()
        config = _sleeping(meeting)
        trials, reports = of_seeds(config, range(SLEEPERS), prepare(config)), _Reports([SLEEPERS * n for n in bounds])
        with connect(made.address):
            complete = run_sweep(trials, ClusterOptions(folder=folder / "out", cpus_per_trial=1), reports)
    assert complete, "the sweep was stopped"
    failed = {outcome.reason for outcome in reports.outcomes if outcome.status != "finished"}
    assert not failed, f"trials failed: {failed}"
    spent = [
        {kind: 1e3 * (after[kind] - before[kind]) / (SLEEPERS * (each - 1)) for kind in ("driver", "pool")}
        for before, after in pairwise(reports.marks)
    ]
    waits = [
        [1e3 * wait for found in reports.waits.values() for wait in np.diff(found[first : last + 1])]
        for first, last in pairwise(bounds)
    ]
    where = f"{SLEEPERS} sleeping trials on {RAYLETS} raylets, rounds of {SLEEP_SECONDS} s"
    for percent in (50, 99):
        what = f"time a trial waits for Ray a round (report, append, refresh), {where}, p{percent}"
        yield Measured(what, [percentile(window, percent) for window in waits], "ms")
    yield Measured(DRIVER_CPU, [window["driver"] for window in spent], "ms")
    yield Measured("CPU time of the pool's process a round, of the same trials", [one["pool"] for one in spent], "ms")


def _sleeping(meeting: Path) -> TrialConfig:
    """Return a config whose rounds cost as little CPU time as possible besides their sleep."""
    config = digits(
        student={"name": "resnet", "depth": 8, "width": 2},
        distiller={"steps": 1, "batch": 8},
        rounds=SLEEPING_ROUNDS,
        evaluate_every=1000,
    )
    return replace(config, inversion=Sleeping(seconds=SLEEP_SECONDS, trials=SLEEPERS, meeting=str(meeting)))


class Holder:
    """A process that receives the inputs of trials. An actor."""

    def ready(self) -> None:
        """Return when the process has started."""

    def hold(self, config: TrialConfig, refs: PreparedRefs) -> tuple[float, float]:
        """Receive the inputs as a trial does; return the times at which it began and ended."""
        begin = time.monotonic()
        unpack(config, refs, own_device())
        return begin, time.monotonic()


def broadcast() -> Iterator[Measured]:
    """The inputs of trials, with a large teacher, sent to one raylet and to several."""
    import ray

    config = digits(teacher={"network": TEACHER, "training": {"epochs": 1}})
    few = prepare(digits())
    taken, sent = {1: [], RAYLETS: []}, {1: [], RAYLETS: []}
    for raylets, head in ((1, RAYLETS), (RAYLETS, 1)):
        with machine(raylets - 1, head_cpus=head) as made, connect(made.address):
            actors: list[Any] = [ray.remote(num_cpus=1)(Holder).remote() for _ in range(RAYLETS)]
            ray.get([actor.ready.remote() for actor in actors])
            for run in range(REPEATS + 1):
                before = _loopback_bytes()
                taken[raylets].append(_hold(actors, config, _with_teacher(few, config, run)))
                sent[raylets].append((_loopback_bytes() - before) / 1e6)
    size = sum(tensor.nbytes for tensor in _with_teacher(few, config, 0).teacher.network.state_dict().values()) / 1e6
    for raylets in taken:
        where = f"{RAYLETS} trials on {raylets} raylet{'s' * (raylets > 1)}"
        what = f"a teacher of {size:.0f} MB, {where}, from the first trial's start until the last has its teacher"
        yield Measured(what, taken[raylets][1:], "s")
        yield Measured(f"bytes sent over loopback for it, {where}", sent[raylets][1:], "MB")


def _with_teacher(prepared: Prepared, config: TrialConfig, run: int) -> Prepared:
    """Return inputs with another random teacher for each `run`, so that no process has it already."""
    fields = {name: getattr(prepared.teacher, name) for name in TEACHER_FIELDS}
    network = config.teacher.network.build(fields["image_shape"], fields["num_classes"])
    hashes = prepared.hashes | {"teacher": f"random {run}"}
    return replace(prepared, teacher=Teacher(network, **fields), hashes=hashes)


def _hold(actors: Sequence[Any], config: TrialConfig, prepared: Prepared) -> float:
    """Send the inputs to each of the actors; return the seconds from the first start to the last end."""
    import ray

    refs = Packer().pack(prepared)
    spans = ray.get([actor.hold.remote(config, refs) for actor in actors])
    return max(end for _, end in spans) - min(begin for begin, _ in spans)


def _loopback_bytes() -> int:
    return psutil.net_io_counters(pernic=True)["lo"].bytes_sent


FIGURES: dict[str, Callable[[], Iterator[Measured]]] = {
    figure.__name__: figure for figure in (clients, contribute, sleepers, broadcast)
}
"""Figures in the order in which they are measured."""
