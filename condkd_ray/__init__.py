"""Data-free and condensed-data knowledge distillation as a Ray-distributed ablation and search system."""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from condkd_ray.api import Trained, load, search, sweep, train
    from condkd_ray.models.teacher import Teacher
    from condkd_ray.runs.options import Options
    from condkd_ray.runs.search import SearchSpec
    from condkd_ray.trial.config import TrialConfig

__all__ = ["Options", "SearchSpec", "Teacher", "Trained", "TrialConfig", "load", "search", "sweep", "train"]
__version__ = "0.1.0"

_ELSEWHERE = {
    "Options": "runs.options",
    "SearchSpec": "runs.search",
    "Teacher": "models.teacher",
    "TrialConfig": "trial.config",
}
"""Modules of public names that `api` does not define."""

logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    """A public name. It is imported on first use: PyTorch takes seconds to import, and this package none."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ELSEWHERE.get(name, 'api')}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
