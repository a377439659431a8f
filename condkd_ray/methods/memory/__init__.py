"""Replay memories, which decide which synthetic samples are kept and drawn. A store holds the samples themselves."""

from typing import get_args

from condkd_ray.core.families import Family
from condkd_ray.methods.memory.generative import Generative
from condkd_ray.methods.memory.memory import Bank, Growing, Latest, Reservoir
from condkd_ray.methods.memory.memory import Draw as Draw
from condkd_ray.methods.memory.memory import ReplayMemory as ReplayMemory
from condkd_ray.methods.memory.prioritized import Prioritized
from condkd_ray.methods.memory.store import LocalStore as LocalStore
from condkd_ray.methods.memory.store import Store as Store

AnyMemory = Growing | Latest | Reservoir | Bank | Generative | Prioritized
MEMORIES = Family("memory", ReplayMemory, get_args(AnyMemory))
