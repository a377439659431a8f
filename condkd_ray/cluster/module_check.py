"""Checks, before any trial runs, that every node can load the users' own teacher modules."""

from collections.abc import Mapping

from ray.cloudpickle import loads
from torch import nn

from condkd_ray.cluster.jobs import by_value
from condkd_ray.cluster.storage_check import failing_nodes
from condkd_ray.core.errors import first_line
from condkd_ray.core.method import InputError

ACCEPTED = (
    "a module whose code is installed on every node, or is in a notebook or in a file that is not installed and "
    "that is therefore sent to the nodes"
)


def check_modules(modules: Mapping[str, nn.Module]) -> None:
    """Raise `InputError` that names the node if a node cannot load one of the teacher modules, given by name.

    Code that is not installed is sent with the modules. Nodes that join later are not checked.
    """
    for name, network in modules.items():
        for node, wrong in failing_nodes(load, by_value(network, name)).items():
            raise InputError(f"teacher module {name} cannot be loaded on node {node} ({wrong}); accepted: {ACCEPTED}")


def load(pickled: bytes) -> str:
    """Return the reason why this machine cannot load a pickled module; empty if it can."""
    try:
        loads(pickled)
    except Exception as error:  # whatever the code of a user's module raises
        return f"{type(error).__name__}: {first_line(error)}"
    return ""
