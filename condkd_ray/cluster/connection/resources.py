"""What trials ask of the connected cluster's machines, and how many of them fit."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from condkd_ray.core.method import require
from condkd_ray.trial.config import Allowance, TrialConfig

NO_MORE: Mapping[str, float] = MappingProxyType({})
"""No custom resources."""


def check_resources(cpus_per_trial: float, gpus_per_trial: float, more: Mapping[str, float] = NO_MORE) -> None:
    """Raise `InputError` where no node of the connected cluster could ever run such a trial.

    `more`: amounts of custom resources by name.
    """
    _check_amounts("per trial", cpus_per_trial, gpus_per_trial)
    asked = {"CPU": cpus_per_trial, "GPU": gpus_per_trial, **more}
    offers = sorted(map(_countable, _nodes()), key=lambda offer: (-offer["GPU"], -offer["CPU"]))
    there = "; ".join(dict.fromkeys(map(_all_told, offers)))
    fits = any(all(offer.get(name, 0) >= amount for name, amount in asked.items()) for offer in _nodes())
    require(fits, "resources per trial", _all_told(asked), f"at most what one machine has, of {there or 'none'}")


def slots(cpus_per_trial: float, gpus_per_trial: float, more: Mapping[str, float] = NO_MORE) -> int:
    """How many such trials run at once on the connected cluster."""
    asked = {"CPU": cpus_per_trial, "GPU": gpus_per_trial, **more}
    return sum(int(min(offer.get(name, 0) / amount for name, amount in asked.items() if amount)) for offer in _nodes())


def crew_size(config: TrialConfig) -> int:
    """How many processes a trial has beside its own."""
    return 0 if config.pipeline is None else config.pipeline.producers


def check_room(cpus: float, gpus: float, each: Allowance, configs: Sequence[TrialConfig]) -> None:
    """Raise `InputError` where the machines of the connected cluster cannot hold one of these with its producers."""
    crew = max(map(crew_size, configs))
    _check_amounts("per producer", each.cpus, each.gpus)
    asked = f"{_told(cpus, gpus)} and {crew} producers of {_told(each.cpus, each.gpus)}"
    held = " + ".join(_told(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in _nodes())
    there = f"at most what the machines have, {held}"
    require(teams(cpus, gpus, each, crew) > 0, "resources per trial", asked, there)


def teams(cpus: float, gpus: float, each: Allowance, crew: int) -> int:
    """How many trials with so many producers run at once on the connected cluster."""
    free, count = [(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in _nodes()], 0
    while _seat(free, [(cpus, gpus), *[(each.cpus, each.gpus)] * crew]):
        count += 1
    return count


def _seat(free: list[tuple[float, float]], wanted: Sequence[tuple[float, float]]) -> bool:
    """Take what is wanted, bundle by bundle, from what nodes have left."""
    for cpus, gpus in wanted:
        found = next((node for node in free if node[0] >= cpus and node[1] >= gpus), None)
        if found is None:
            return False
        free[free.index(found)] = found[0] - cpus, found[1] - gpus
    return True


def _check_amounts(whose: str, cpus: float, gpus: float) -> None:
    require(cpus > 0, f"CPUs {whose}", cpus, "more than 0")
    require(0 <= gpus <= 1 or gpus == int(gpus) > 0, f"GPUs {whose}", gpus, "0 to 1, or a whole number")


def _nodes() -> list[dict[str, float]]:
    """Resources of each."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _countable(resources: Mapping[str, float]) -> dict[str, float]:
    """What of a node's resources a user counts: not memory, and not the names by which Ray itself finds it."""
    own = {name: amount for name, amount in resources.items() if not name.startswith(("node:", "accelerator_type:"))}
    return {"CPU": 0.0, "GPU": 0.0} | {k: v for k, v in own.items() if k not in ("memory", "object_store_memory")}


def _all_told(amounts: Mapping[str, float]) -> str:
    custom = [f"{amount:g} {name}" for name, amount in amounts.items() if name not in ("CPU", "GPU")]
    return ", ".join([f"{amounts['CPU']:g} CPUs", f"{amounts['GPU']:g} GPUs", *custom])


def _told(cpus: float, gpus: float) -> str:
    return f"{cpus:g} CPUs and {gpus:g} GPUs" if gpus else f"{cpus:g} CPUs"
