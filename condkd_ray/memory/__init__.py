"""Replay memory: which synthetic samples stay and which are drawn. The samples themselves lie in a store."""

from condkd_ray.memory.bank import Bank
from condkd_ray.memory.generative import Generative
from condkd_ray.memory.growing import Growing
from condkd_ray.memory.latest import Latest
from condkd_ray.memory.memory import Draw, ReplayMemory
from condkd_ray.memory.prioritized import Prioritized
from condkd_ray.memory.reservoir import Reservoir
from condkd_ray.memory.store import LocalStore, Store

AnyMemory = Growing | Latest | Reservoir | Bank | Generative | Prioritized

__all__ = [
    "AnyMemory",
    "Bank",
    "Draw",
    "Generative",
    "Growing",
    "Latest",
    "LocalStore",
    "Prioritized",
    "ReplayMemory",
    "Reservoir",
    "Store",
]
