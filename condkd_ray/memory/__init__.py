"""Replay memory: which synthetic samples stay and which are drawn. The samples themselves lie in a store."""

from condkd_ray.memory.bank import Bank
from condkd_ray.memory.growing import Growing
from condkd_ray.memory.latest import Latest
from condkd_ray.memory.memory import Draw, ReplayMemory
from condkd_ray.memory.store import LocalStore, Store

AnyMemory = Growing | Latest | Bank

__all__ = ["AnyMemory", "Bank", "Draw", "Growing", "Latest", "LocalStore", "ReplayMemory", "Store"]
