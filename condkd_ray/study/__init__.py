"""Search: spaces, objectives, samplers, pruners, and the study that stores all results."""

import sys
import warnings

if "IPython" in sys.modules:
    # Optuna imports tqdm.auto, which warns in a notebook without widgets. No progress bar is displayed, so the warning
    # is suppressed.
    with warnings.catch_warnings(action="ignore"):
        import tqdm.auto  # noqa: F401
