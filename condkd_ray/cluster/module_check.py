"""Checks, before any trial runs, that every node can load the users' own teacher modules and the plug-ins."""

from collections.abc import Mapping, Sequence

from ray.cloudpickle import loads
from ray.cloudpickle.cloudpickle_fast import dumps
from torch import nn

from condkd_ray.cluster.jobs import by_value, plugins_by_value
from condkd_ray.cluster.storage_check import failing_nodes
from condkd_ray.core.errors import first_line
from condkd_ray.core.families import origin_of, plugin_kinds
from condkd_ray.core.method import InputError
from condkd_ray.trial.config import TrialConfig

ACCEPTED = (
    "a module whose code is installed on every node, or is in a notebook or in a file that is not installed and "
    "that is therefore sent to the nodes"
)


def check_modules(modules: Mapping[str, nn.Module]) -> None:
    """Raise `InputError` if a node cannot load one of the teacher modules; the message names the node.

    `modules`: networks by the names of their teacher modules. Code that is not installed is sent with them. Nodes that
    join later are not checked.
    """
    for name, network in modules.items():
        for node, wrong in failing_nodes(load, by_value(network, name)).items():
            raise InputError(f"teacher module {name} cannot be loaded on node {node} ({wrong}); accepted: {ACCEPTED}")


def load(pickled: bytes) -> str:
    """Return the reason why this machine cannot load a pickled module; empty if it can load it."""
    try:
        loads(pickled)
    except Exception as error:  # whatever the code of a user's module raises
        return f"{type(error).__name__}: {first_line(error)}"
    return ""


def check_plugins(configs: Sequence[TrialConfig | type]) -> None:
    """Raise `InputError` if a node lacks a plug-in or has another version of it; the message names node and plug-in.

    `configs`: the configs of trials, or the classes of their plug-ins. Code that is not installed is sent with the
    configs. Nodes that join later are not checked.
    """
    for kind in plugin_kinds(tuple(configs)):
        origin = str(origin_of(kind))
        with plugins_by_value(tuple(configs)):
            pickled = dumps(kind)
        for node, wrong in failing_nodes(load_plugin, (pickled, origin)).items():
            what = f"plug-in {origin} with {kind.__module__}.{kind.__qualname__}"
            accepted = "the same version installed on every node, or code that is not installed and is therefore sent"
            raise InputError(f"{what} cannot be loaded on node {node} ({wrong}); accepted: {accepted}")


def load_plugin(pickled: tuple[bytes, str]) -> str:
    """Return the reason why this machine cannot load a pickled class, or loads another version of it; else "".

    `pickled`: the pickle and the class's origin, as text.
    """
    try:
        here = str(origin_of(loads(pickled[0])))
    except Exception as error:  # whatever the code of a plug-in raises
        return f"{type(error).__name__}: {first_line(error)}"
    return "" if here == pickled[1] else f"{here} is installed there"
