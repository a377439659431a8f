"""A frozen network as it answers fastest, where neither its gradients nor its statistics are wanted."""

import copy
import logging
from collections import Counter

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from condkd_ray.models.hooks import BatchNorms, Weighted

log = logging.getLogger(__name__)


class _Tracer(fx.Tracer):
    """Follows a forward pass, and takes each BN layer, ours too, as one step of it."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether to step over it."""
        return isinstance(m, BatchNorms) or super().is_leaf_module(m, module_qualified_name)


def folded(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy in eval mode with BN folded into what stands right before it, and weights cast to `dtype` once.

    Each BN behind a convolution or linear layer that nothing else reads is gone; other BN stays as it is. Networks
    whose forward pass cannot be followed without values (it branches on them) are cast alone, and that is logged.
    """
    network = copy.deepcopy(network).eval().requires_grad_(False)
    try:
        graph = _Tracer().trace(network)
    except Exception as error:  # whatever a network's own code raises where it meets no values
        log.info(f"the teacher's batch normalisation stays apart, as its forward pass cannot be followed: {error}")
    else:
        network = fx.GraphModule(network, graph)
        _fold(network)
    for layer in network.modules():
        if isinstance(layer, Weighted):
            layer.to(dtype)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _fold(traced: fx.GraphModule) -> None:
    layers = dict(traced.named_modules())
    calls = Counter(node.target for node in traced.graph.nodes if node.op == "call_module")
    for node in list(traced.graph.nodes):
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        weighted, bn = layers[str(before.target)], layers[str(node.target)]
        alone = calls[before.target] == 1 and calls[node.target] == 1
        if alone and isinstance(bn, BatchNorms) and bn.running_mean is not None and isinstance(weighted, Weighted):
            fuse = fuse_linear_bn_eval if isinstance(weighted, nn.Linear) else fuse_conv_bn_eval
            traced.set_submodule(str(before.target), fuse(weighted, bn))  # type: ignore[type-var]
            node.replace_all_uses_with(before)
            traced.graph.erase_node(node)
    traced.graph.lint()
    traced.recompile()
    traced.delete_all_unused_submodules()
