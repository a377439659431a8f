"""Data-free and condensed-data knowledge distillation as a Ray-distributed ablation and search system."""

import logging
from importlib import import_module

__version__ = "0.1.0"

_PUBLIC = {
    "InputError": "core.method",
    "Options": "runs.options",
    "Plan": "trial.plan",
    "Results": "report.results",
    "SearchSpec": "runs.search_spec",
    "Teacher": "models.teacher",
    "Trained": "report.kept",
    "TrialConfig": "trial.config",
    "register": "core.families",
    **dict.fromkeys(("load", "read_config", "search", "sweep", "train"), "api"),
}
"""Modules that define the public names, relative to this package; type checkers read `__init__.pyi`."""

logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> object:
    """Import a public name on first use, because importing PyTorch takes seconds."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
