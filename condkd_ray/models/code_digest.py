"""Digest of a network's structure and code, for modules that no file and no name identifies."""

from torch import Tensor, nn

from condkd_ray.core.code_digest import CodeWalk

ACCEPTED = (
    "a teacher whose attributes, and the values that its code reads, can be pickled; "
    "remove this one, or store plain values in its place"
)


def structure_digest(network: nn.Module) -> str:
    """Return 16 hex digits for all of a network except its tensors: layers, settings, and code of the user's classes.

    The digest is equal for a network and its copies, in any process of one minor version of Python, on any device.
    Raises `InputError` that names the attribute or variable whose content cannot be read.
    """
    walk = CodeWalk(f"teacher module {type(network).__name__}", ACCEPTED)
    for name, layer in network.named_modules():
        walk.add(name)
        walk.layer(layer)
    return walk.digest.hexdigest()[:16]


def all_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by name, including buffers that a state dict leaves out."""
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}
