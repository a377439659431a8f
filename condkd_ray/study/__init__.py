"""What a search may look at, who proposes and who stops, and the study in which all of it is written down."""

from condkd_ray.study.constraints import Constraint
from condkd_ray.study.objective import Objective
from condkd_ray.study.pruners import Pruner
from condkd_ray.study.storage import JOURNAL, open_storage, stored_study
from condkd_ray.study.strategies import Sampler
from condkd_ray.study.study import Proposal, Study
from condkd_ray.study.trial_log import Ledger

__all__ = [
    "JOURNAL",
    "Constraint",
    "Ledger",
    "Objective",
    "Proposal",
    "Pruner",
    "Sampler",
    "Study",
    "open_storage",
    "stored_study",
]
