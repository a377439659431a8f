"""Check, before any trial, that every node can load the users' own modules that are teachers."""

from collections.abc import Mapping

from ray.cloudpickle import loads
from torch import nn

from condkd_ray.cluster.jobs import by_value
from condkd_ray.cluster.storage_check import failing_nodes
from condkd_ray.core.errors import first_line
from condkd_ray.core.method import InputError

ACCEPTED = (
    "a module whose code is installed on every node, or lies in a file of yours that is not installed, or in a "
    "notebook: such code is sent along"
)


def check_modules(modules: Mapping[str, nn.Module]) -> None:
    """Raise `InputError`, naming the node, unless every node can load each of these teacher modules, by name.

    Code that is not installed is sent with them. Nodes that join later are not checked.
    """
    for name, network in modules.items():
        for node, wrong in failing_nodes(load, by_value(network, name)).items():
            raise InputError(f"teacher module {name} cannot be loaded on node {node} ({wrong}); accepted: {ACCEPTED}")


def load(pickled: bytes) -> str:
    """What keeps this machine from loading a pickled module; empty if nothing does."""
    try:
        loads(pickled)
    except Exception as error:  # whatever the code of a user's module raises
        return f"{type(error).__name__}: {first_line(error)}"
    return ""
