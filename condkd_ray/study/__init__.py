"""Search: spaces, objectives, samplers, pruners, and the study that stores all results."""

import sys
import warnings

if "IPython" in sys.modules:
    # Optuna imports it, and in a notebook without widgets it warns about progress bars, of which none is shown.
    with warnings.catch_warnings(action="ignore"):
        import tqdm.auto  # noqa: F401
