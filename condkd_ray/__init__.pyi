"""Types of the public names, which `__init__.py` imports on first use."""

from condkd_ray import api as api
from condkd_ray import testing as testing
from condkd_ray.api import load as load
from condkd_ray.api import read_config as read_config
from condkd_ray.api import search as search
from condkd_ray.api import sweep as sweep
from condkd_ray.api import train as train
from condkd_ray.core.families import register as register
from condkd_ray.core.method import InputError as InputError
from condkd_ray.models.teacher import Teacher as Teacher
from condkd_ray.report.kept import Trained as Trained
from condkd_ray.report.results import Results as Results
from condkd_ray.runs.options import Options as Options
from condkd_ray.runs.search_spec import SearchSpec as SearchSpec
from condkd_ray.trial.config import TrialConfig as TrialConfig
from condkd_ray.trial.plan import Plan as Plan

__version__: str
