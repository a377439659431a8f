"""What Tune asks in a search: which trial next, and whether one goes on. Both are passed on to who follows the search.

Not Ray's `OptunaSearch`: with a study in a storage it cannot go on after its driver has died, counts trials that were
stopped early as complete, and leaves those that end with a NaN running for ever: see
`tests/cluster/driver/test_optuna_search.py`.
Tune pickles both classes: they hold the word of a listener.
"""

from __future__ import annotations

from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from condkd_ray.cluster.driver.tune_hooks import asked, told

LATER = "later"
"""The answer of a listener whose next proposal depends on trials that run."""


class Proposing(Searcher):
    """Asks the listener of `word` for trials until it has none left."""

    def __init__(self, word: str) -> None:
        super().__init__()
        self._word = word

    def suggest(self, trial_id: str) -> Any:
        """The setup of the next trial; None where it depends on those that run."""
        setup = asked(self._word, "propose")
        if setup == LATER:
            return None
        return Searcher.FINISHED if setup is None else setup

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The listener hears it from `Events`."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: what is known is in the study."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing is ever restored from Tune's files."""


class Pruning(FIFOScheduler):
    """Trials run in their order; the listener of `word` says after each round whether one goes on."""

    def __init__(self, word: str) -> None:
        super().__init__()
        self._word = word

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Asked before the callbacks hear of the round, so that it is told first."""
        # Here, and here alone, it comes with the trial's setup spread out in it.
        told(self._word, "heard", trial, {k: v for k, v in result.items() if not k.startswith("config/")})
        on = asked(self._word, "goes_on", trial.config["key"])
        return TrialScheduler.STOP if on is False else TrialScheduler.CONTINUE
