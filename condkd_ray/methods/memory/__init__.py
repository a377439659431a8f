"""Replay memory: which synthetic samples stay and which are drawn. The samples themselves lie in a store."""

from condkd_ray.methods.memory.bank import Bank
from condkd_ray.methods.memory.generative import Generative
from condkd_ray.methods.memory.growing import Growing
from condkd_ray.methods.memory.latest import Latest
from condkd_ray.methods.memory.memory import Draw, ReplayMemory
from condkd_ray.methods.memory.prioritized import Prioritized
from condkd_ray.methods.memory.reservoir import Reservoir
from condkd_ray.methods.memory.store import LocalStore, Store

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
