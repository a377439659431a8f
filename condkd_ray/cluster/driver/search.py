"""A search: trials that are proposed one by one, run by Tune on the connected cluster, and stopped where poor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

from condkd_ray.cluster.driver.gpu_memory import check_packing
from condkd_ray.cluster.driver.monitor import Progress
from condkd_ray.cluster.driver.options import Terms
from condkd_ray.cluster.driver.sweep import fit
from condkd_ray.cluster.worker.board import Board
from condkd_ray.cluster.worker.jobs import Job
from condkd_ray.cluster.worker.object_store import Depot
from condkd_ray.cluster.worker.producers import crew_size
from condkd_ray.cluster.worker.retries import last_reason, start_anew
from condkd_ray.cluster.worker.trainable import RESTS, UNTESTED, halt_path, outcome_path, trial_folder, untested_path
from condkd_ray.cluster.worker.trials import Trial
from condkd_ray.core.config import to_tree
from condkd_ray.core.method import Metrics
from condkd_ray.core.records import Outcome
from condkd_ray.core.storage import put_text, remove
from condkd_ray.trial.outcome import load_outcome
from condkd_ray.trial.run import passed


class Guide(Protocol):
    """Who decides in a search. Nothing it is shown before `tested` has to do with a test image."""

    def propose(self) -> Trial | Literal["later"] | None:
        """The next trial, to be run from its checkpoint where it has one; None: there is no other.

        `later`: that depends on what comes of those that run, of which there must be some.
        """
        ...

    def round(self, trial: Trial, metrics: Metrics) -> None:
        """A trial has ended a round."""
        ...

    def goes_on(self, trial: Trial) -> bool:
        """Whether a trial shall go on after the round that was heard of last."""
        ...

    def untested(self, trial: Trial, outcome: Outcome) -> None:
        """A trial has ended all its rounds."""
        ...

    def rested(self, trial: Trial) -> None:
        """A trial has come to the round after which it rests."""
        ...

    def ended(self, trial: Trial, outcome: Outcome) -> None:
        """A trial is over: finished and tested, stopped early (`pruned`), or failed."""
        ...


def search(guide: Guide, terms: Terms) -> bool:
    """Run what `guide` proposes until it proposes nothing more; what becomes of a trial's files: as in a sweep.

    Each trial is blind: it looks at test images once all else that came of it has been heard of. False after Ctrl-C, or
    when the deadline came first, or the GPU budget was spent; raises as `condkd_ray.cluster.driver.sweep.sweep`.
    """
    board = Board()
    halt_path(terms.place).unlink(missing_ok=True)
    try:
        # How large chunks will be nobody knows yet; a limit below one is refused as soon as there is a trial.
        with terms.pool([0]) as pool:
            progress = Searching(guide, terms, pool, board)
            fit(progress, terms, crew_of=_told, searches=True)
            return progress.exhausted and not progress.open
    except KeyboardInterrupt:
        return False
    finally:
        board.close()
        if terms.gpu_budget is not None:
            terms.gpu_budget.close()
            halt_path(terms.place).unlink(missing_ok=True)


def _told(setup: dict[str, Any]) -> int:
    return setup["crew"]


class Searching(Progress):
    """The listener of a search; see `condkd_ray.cluster.driver.tune_hooks` and `condkd_ray.cluster.driver.searcher`."""

    def __init__(self, guide: Guide, terms: Terms, pool: Any, board: Board) -> None:
        super().__init__([], terms.work(pool, board, blind=True), guide.round, guide.ended)
        self._guide, self._terms, self._board, self._depot = guide, terms, board, Depot()
        self._jobs: dict[str, Job] = {}
        self._budget, self._halting = terms.gpu_budget, False
        self._resting = set[str]()
        self.exhausted = False
        """Whether there is no other trial."""

    def propose(self) -> dict[str, Any] | str | None:
        """The setup of the next trial, whose job has been put up; or the guide's answer."""
        if passed(self._terms.deadline) or self._spent:
            return None
        trial = self._guide.propose()
        if trial is None:
            self.exhausted = True
            return None
        if isinstance(trial, str):
            return trial
        self._bury(trial.buries)
        work = (to_tree(trial.config), self._depot.pack(trial.prepared), *trial.place)
        job = Job(trial.label, *work, trial.heir_of, trial.rests)
        self._check(trial, job)
        start_anew(trial_folder(self.work.folder, trial.key))
        self._jobs[trial.key] = job
        self.add(trial, job.pool_key)
        self._board.put(trial.key, job)
        return {"key": trial.key, "crew": crew_size(trial.config)}

    @property
    def over(self) -> bool:
        """Also once the GPU budget is spent, and every trial that ran has stopped after its round."""
        if self._spent and not self._halting:
            self._halting = True
            put_text(halt_path(self.work.folder), "the GPU budget is spent")
        return super().over or (self._halting and not self.running)

    @property
    def _spent(self) -> bool:
        return self._budget is not None and self._budget.spent

    def started(self, key: str) -> None:
        """It holds GPUs from now on."""
        super().started(key)
        if self._budget is not None:
            self._budget.hold(key, self._terms.gpus(self.trials[key].config))

    def failed(self, key: str, reason: str) -> None:
        """See `Progress`."""
        self._released(key)
        super().failed(key, reason)

    def _released(self, key: str) -> None:
        if self._budget is not None:
            self._budget.release(key)

    def heard(self, key: str, result: dict[str, Any]) -> None:
        """A round, or all of them."""
        super().heard(key, result)
        if RESTS in result:
            self._resting.add(key)
        if UNTESTED in result:
            self._guide.untested(self.trials[key], load_outcome(untested_path(self.work.folder, key)))

    def goes_on(self, key: str) -> bool:
        """Whether the trial shall go on."""
        return self._guide.goes_on(self.trials[key])

    def retried(self, key: str, reason: str) -> None:
        """Its job is put up again: the board may have been lost with a node."""
        self._released(key)
        super().retried(key, reason)
        self._board.put(key, self._jobs[key])

    def completed(self, key: str) -> None:
        """It has left its outcome, was given up, or was stopped early."""
        self._released(key)
        folder = trial_folder(self.work.folder, key)
        left = outcome_path(self.work.folder, key).is_file() or last_reason(folder)
        if key in self._resting:
            # Its files stay, for its heirs.
            self.running.discard(key)
            self.open.discard(key)
            self._guide.rested(self.trials[key])
        elif key in self.running and not left and key not in self.stopped:
            self.running.discard(key)
            self.over_with(key, self.outcome_so_far(key, "pruned"))
        else:
            super().completed(key)
        if key not in self.open:
            self._board.remove(key)

    def _bury(self, keys: Sequence[str]) -> None:
        for key in keys:
            self.work.pool.forget.remote(key)
            remove(trial_folder(self.work.folder, key))

    def _check(self, trial: Trial, job: Job) -> None:
        self._terms.check([trial.config])
        check_packing([job], self._terms.gpus_per_trial, self._terms.per_producer.gpus)
