"""What a search may look at, who proposes and who stops, and the study in which all of it is written down."""

from condkd_ray.study.objective import Constraint, Objective
from condkd_ray.study.storage import JOURNAL, open_storage, stored_study
from condkd_ray.study.strategies import Pruner, Sampler
from condkd_ray.study.study import Proposal, Study, TrialLog

__all__ = [
    "JOURNAL",
    "Constraint",
    "Objective",
    "Proposal",
    "Pruner",
    "Sampler",
    "Study",
    "TrialLog",
    "open_storage",
    "stored_study",
]
