"""Data-free and condensed-data knowledge distillation as a Ray-distributed ablation and search system."""

import logging
from importlib import import_module

__version__ = "0.1.0"

_PUBLIC = {
    "Options": "runs.options",
    "SearchSpec": "runs.search_spec",
    "Teacher": "models.teacher",
    "Trained": "runs.products",
    "TrialConfig": "trial.config",
    "register": "core.families",
    **dict.fromkeys(("load", "search", "sweep", "train"), "api"),
}
"""Modules of the public names; their types stand in `__init__.pyi`."""

logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> object:
    """A public name. It is imported on first use: PyTorch takes seconds to import, and this package none."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
