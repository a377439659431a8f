"""Replay memory: which synthetic samples stay and which are drawn. The samples themselves lie in a store."""

from condkd_ray.methods.memory.bank import Bank as Bank
from condkd_ray.methods.memory.generative import Generative as Generative
from condkd_ray.methods.memory.growing import Growing as Growing
from condkd_ray.methods.memory.latest import Latest as Latest
from condkd_ray.methods.memory.memory import Draw as Draw
from condkd_ray.methods.memory.memory import ReplayMemory as ReplayMemory
from condkd_ray.methods.memory.prioritized import Prioritized as Prioritized
from condkd_ray.methods.memory.reservoir import Reservoir as Reservoir
from condkd_ray.methods.memory.store import LocalStore as LocalStore
from condkd_ray.methods.memory.store import Store as Store

AnyMemory = Growing | Latest | Reservoir | Bank | Generative | Prioritized
