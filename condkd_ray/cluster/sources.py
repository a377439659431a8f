"""Where images come from that a trial does not make alone: its producers, or trials that share them."""

import threading
import time
from contextlib import AbstractContextManager
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from condkd_ray.cluster.jobs import own_device, unpack
from condkd_ray.cluster.lost import is_lost
from condkd_ray.cluster.pool import Taken
from condkd_ray.cluster.stores import FilledStore, SharedStore, SweepStore, ask
from condkd_ray.core import checkpoint as states
from condkd_ray.core.environment import set_up_process
from condkd_ray.core.method import Metrics
from condkd_ray.core.samples import Samples
from condkd_ray.core.storage import Location
from condkd_ray.methods.memory import Store
from condkd_ray.methods.memory.store import to_arrays
from condkd_ray.trial.allowance import Allowance
from condkd_ray.trial.config import Prepared, TrialConfig
from condkd_ray.trial.loop import TrialState
from condkd_ray.trial.packing import PreparedRefs, to_plain, to_tensor
from condkd_ray.trial.synthesis import Pipelined, Producer, Production, begin, codec, produce

RESTARTS = 3
"""Of producers that die while the trial waits for one round (our choice); then the trial itself is to begin again."""
HEARTBEAT_SECONDS = 2.0
"""Between two heartbeats of a trial that makes rounds for others."""
LONGEST_NAP = 0.2
"""Seconds between two questions of a trial that waits."""


class ProducerProcess:
    """A `Producer` as an actor; see `Crew`."""

    def __init__(self, config: TrialConfig, refs: PreparedRefs, pool: Any, key: str, each: Allowance) -> None:
        set_up_process(each.threads, each.gpus)
        self._config, self._refs, self._pool, self._key = config, refs, pool, key
        self._producer: Producer | None = None

    def make(self, number: int, round: int, look: Any, state: Any) -> tuple[Metrics, Any]:
        """Put a round into the pool. What is to be logged of it, and the state after it, to be sent.

        `state`: to go on from, where this is its first round here and there is one.
        """
        wall, cpu = time.perf_counter(), time.process_time()
        if self._producer is None:
            prepared = unpack(self._config, self._refs, own_device())
            self._codec = codec(self._config, prepared.teacher)
            self._producer = Producer(self._config, prepared, number, to_tensor(state))
        samples, terms = self._producer.make(to_tensor(look))
        arrays, start = to_arrays(self._codec.encode(samples)), round * len(samples)
        ask(self._pool.fill, self._key, start, arrays)
        terms["time/production_seconds"] = time.perf_counter() - wall
        terms["time/production_cpu_seconds"] = time.process_time() - cpu
        return terms, to_plain(self._producer.state())


class Crew(AbstractContextManager):
    """The producers of one trial; a source of its images. Use as a context: they end with it.

    At most `staleness` + 1 rounds are in the making: the one that the trial wants, and those that it is ahead of.
    """

    def __init__(self, refs: PreparedRefs, pool: Any, key: str, per_producer: Allowance) -> None:
        self._refs, self._pool, self._key, self._each = refs, pool, key, per_producer
        self._actors: dict[int, Any] = {}
        self._asked: dict[int, tuple[Any, Any]] = {}

    def __exit__(self, *_: object) -> None:
        self._dismiss()

    def __call__(
        self, config: TrialConfig, prepared: Prepared, state: TrialState, store: Store
    ) -> tuple[Samples, Metrics]:
        """The next round; blocks until it is there, which `time/waiting_seconds` tells."""
        assert isinstance(store, FilledStore)
        assert isinstance(state.production, Pipelined)
        assert config.pipeline is not None
        pipeline, production, round = config.pipeline, state.production, state.round
        production.record(config, round, state.distiller.student, store.class_counts)
        begun = time.perf_counter()
        terms = self._await(config, production, round, store)
        terms["time/waiting_seconds"] = time.perf_counter() - begun
        store.refresh()
        _, reached = self._asked.pop(round)
        production.states[pipeline.producer(round)] = lambda: to_tensor(ray.get(reached))
        production.forget(pipeline.shown(round + 1))
        return store.look(config.inversion.images_per_round), terms

    def _await(self, config: TrialConfig, production: Pipelined, round: int, store: FilledStore) -> Metrics:
        """What is to be logged of `round`, once it is in the pool. Producers that died meanwhile are replaced."""
        for left in reversed(range(RESTARTS + 1)):
            self._ask_ahead(config, production, round)
            try:
                return ray.get(self._asked[round][0])
            except RayError as error:
                if isinstance(error, RayTaskError) and not is_lost(error):
                    # What a producer raised, as if it had been raised here.
                    raise error.cause from None
                if not (left and is_lost(error)):
                    raise
                self._dismiss()
                store.clear_ahead()
        raise AssertionError

    def _ask_ahead(self, config: TrialConfig, production: Pipelined, round: int) -> None:
        """Have made, beside `round`, as many rounds after it as may be ahead."""
        pipeline = config.pipeline
        assert pipeline is not None
        for ahead in range(round, min(round + pipeline.staleness + 1, config.total_rounds)):
            if ahead in self._asked:
                continue
            number, state = pipeline.producer(ahead), None
            if number not in self._actors:
                self._actors[number] = self._hire(config, number)
                state = production.states.get(number)
            look = to_plain(production.past[pipeline.shown(ahead)])
            make = self._actors[number].make.options(num_returns=2)
            self._asked[ahead] = make.remote(number, ahead, look, to_plain(state()) if state else None)

    def _hire(self, config: TrialConfig, number: int) -> Any:
        # The first bundle is the learner's own.
        group = ray.util.get_current_placement_group()
        assert group is not None, "trials run in placement groups"
        place = PlacementGroupSchedulingStrategy(group, number + 1)
        options = {"num_cpus": self._each.cpus, "num_gpus": self._each.gpus, "scheduling_strategy": place}
        actor = ray.remote(**options)(ProducerProcess)
        return actor.remote(config, self._refs, self._pool, self._key, self._each)

    def _dismiss(self) -> None:
        for actor in self._actors.values():
            ray.kill(actor)
        self._actors, self._asked = {}, {}


class SharedSource(AbstractContextManager):
    """Rounds that all trials of one production share: made by one of them, taken by the rest.

    Use as a context, so that another can follow at once when the maker is done. `path`: of the production's state,
    which is saved every `save_seconds` and at the end; a successor makes again what is made but not yet in it.
    """

    def __init__(self, pool: Any, key: str, who: str, path: Location, save_seconds: float) -> None:
        self._pool, self._key, self._who = pool, key, who
        self._path, self._save_seconds = path, save_seconds
        self._production: Production | None = None
        self._saved = time.monotonic()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._save()
            self._thread.join()
            self._pool.release.remote(self._key, self._who)

    def __call__(
        self, config: TrialConfig, prepared: Prepared, state: TrialState, store: Store
    ) -> tuple[Samples, Metrics]:
        """The next round, as everybody gets it; blocks until it is there."""
        assert isinstance(store, SharedStore)
        begun, taken, made = time.monotonic(), store.take(state.round), False
        while taken.metrics is None:
            if taken.turn:
                taken, made = self._make(config, prepared, state, store), True
            else:
                # Longer naps the longer it takes: they cost a tenth of the waiting at most.
                time.sleep(min(LONGEST_NAP, 0.005 + (time.monotonic() - begun) / 10))
                taken = store.take(state.round)
        return store.look(config.inversion.images_per_round), taken.metrics | {"pool/made": float(made)}

    def _make(self, config: TrialConfig, prepared: Prepared, state: TrialState, store: SharedStore) -> Taken:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._heartbeat, daemon=True)
            self._thread.start()
        production = self._production or self._load(config, prepared)
        if production.round > state.round:
            production = begin(config, prepared)
        # In pieces while it is at work: should that fail, there is nothing to be saved.
        self._production, samples, terms = None, None, {}
        while production.round <= state.round:
            parts = (config, prepared, production, state.distiller.student, store.class_counts)
            samples, terms = produce(*parts, promised=True)
        assert samples is not None
        self._production = production
        taken = store.deliver(state.round, samples, terms)
        if time.monotonic() - self._saved >= self._save_seconds:
            self._save()
        return taken

    def _load(self, config: TrialConfig, prepared: Prepared) -> Production:
        production = begin(config, prepared)
        states.load_whole(production, self._path, prepared.teacher.device)
        return production

    def _save(self) -> None:
        if self._production is not None:
            states.save(self._production, self._path)
            self._saved = time.monotonic()

    def _heartbeat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                ours = ray.get(self._pool.claim.remote(self._key, self._who))
            except RayError:  # the pool is being restarted
                continue
            if not ours:
                # We were given up while this process was held: who makes the rounds now has a later state.
                self._production = None
                return


def sweep_source(config: TrialConfig, prepared: Prepared, state: TrialState, store: Store) -> tuple[Samples, Metrics]:
    """The trial's own images, after it has remembered what the other trials of the sweep have made meanwhile."""
    assert isinstance(store, SweepStore)
    assert isinstance(state.production, Production), "trials with a pipeline share nothing"
    parts = (config, prepared, state.production, state.distiller.student, store.class_counts)
    own, terms = produce(*parts, promised=True)
    taken = 0
    for _ in range(store.contribute(state.round, own) - 1):
        samples = store.look()
        config.memory.add(state.memory, store, samples, teacher=prepared.teacher, rng=state.streams)
        taken += len(samples)
    return store.look(), terms | {"pool/taken": float(taken)}
