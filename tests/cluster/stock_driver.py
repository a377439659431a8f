"""A search by Ray's own `OptunaSearch` with its study in a journal, to be killed and restored.

usage: stock_driver.py FOLDER [restore]
"""

import os
import sys
import time
from pathlib import Path

from condkd_ray.cluster.connection import connect
from condkd_ray.study.storage import open_storage


def space(trial):
    trial.suggest_float("x", 0.0, 1.0)


def wait(config):
    from ray import tune

    for _ in range(2):
        time.sleep(0.05)
        tune.report({"score": config["x"]})


def main(folder: Path, restore: bool) -> None:
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    with connect("local", cpus=2):
        # This package changes the interval of Tune's snapshots; here it is Tune's default.
        os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = "auto"
        if restore:
            tune.Tuner.restore(str(folder / "tune" / "stock"), trainable=wait).fit()
            return
        searcher = OptunaSearch(
            space,
            storage=open_storage(None, folder),
            study_name="stock",
            metric="score",
            mode="max",
            seed=0,
        )
        tune.Tuner(
            wait,
            tune_config=tune.TuneConfig(
                search_alg=searcher, num_samples=120, max_concurrent_trials=2, reuse_actors=True
            ),
            run_config=tune.RunConfig(name="stock", storage_path=str(folder / "tune"), verbose=0),
        ).fit()


if __name__ == "__main__":
    main(Path(sys.argv[1]), "restore" in sys.argv[2:])
