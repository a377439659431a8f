"""Folds the BN layers of a frozen network, for faster logits without gradients or layer statistics."""

import copy
import logging
from collections import Counter

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.nn.utils.parametrize import is_parametrized

from condkd_ray.models.hooks import HALF_TYPES, BatchNorms, WeightLayers, cast
from condkd_ray.models.shortcut import Shortcut

log = logging.getLogger(__name__)

FOLDED, ROUNDED = 0.02, 0.2
"""Largest accepted changes of the logits by folding, relative to the logits' norm (our choice).

`FOLDED`: without autocast; it leaves room for TF32. `ROUNDED`: under bfloat16 autocast. A forward pass that was traced
along the wrong branch of an `if` changes the logits by more."""


class _Tracer(fx.Tracer):
    """Traces a forward pass, with each BN layer and `Shortcut` as a single operation."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether the tracer does not enter the module."""
        return isinstance(m, (*BatchNorms, Shortcut)) or super().is_leaf_module(m, module_qualified_name)


def folded(network: nn.Module, dtype: torch.dtype, images: Tensor) -> nn.Module:
    """Return a copy in eval mode with BN folded where possible, and weights converted to `dtype` once.

    `network` must be in eval mode. Run the copy under autocast to `dtype`. BN is folded into a convolution or linear
    layer before it whose output nothing else reads; other BN stays. The copy is tested on `images` (B, C, H, W). If the
    forward pass cannot be traced, gives different logits, or does not accept weights of this type, the network itself
    is returned and the reason is logged.
    """
    try:
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            made = copy.deepcopy(network).eval().requires_grad_(False)
            # A tracer leaves out the hooks of the network itself.
            made, hooks = fx.GraphModule(made, _Tracer().trace(made)), made._forward_hooks
            made._forward_hooks.update(hooks)
            _fold(made)
            _require_near(made(images), network(images), FOLDED)
        cast(made, dtype)
        made.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        with torch.no_grad(), torch.autocast(images.device.type, dtype, enabled=dtype in HALF_TYPES):
            _require_near(made(images), network(images), ROUNDED)
    except Exception as error:  # tracing or casting a user's network may raise anything
        log.info(f"the teacher's batch normalisation is not folded, so its logits take longer: {error}")
        return network
    return made


def _require_near(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    if found.dtype != wanted.dtype:
        raise ValueError(f"the network's forward pass sets its own precision, {wanted.dtype}")
    apart = (found.float() - wanted.float()).norm() / wanted.float().norm()
    if not bool(apart <= tolerance):
        raise ValueError(f"the logits would differ by {float(apart):.1%}")


def _fold(traced: fx.GraphModule) -> None:
    layers = dict(traced.named_modules())
    calls = Counter(node.target for node in traced.graph.nodes if node.op == "call_module")
    for node in list(traced.graph.nodes):
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        weighted, bn = layers[str(before.target)], layers[str(node.target)]
        alone = calls[before.target] == 1 and calls[node.target] == 1
        if alone and isinstance(bn, BatchNorms) and _is_plain(weighted) and _is_of_outputs(bn, weighted):
            fuse = fuse_linear_bn_eval if isinstance(weighted, nn.Linear) else fuse_conv_bn_eval
            # A second BN may follow: it is folded into the layer that is already folded.
            layers[str(before.target)] = fuse(weighted, _affine(bn))  # type: ignore[type-var]
            traced.set_submodule(str(before.target), layers[str(before.target)])
            node.replace_all_uses_with(before)
            traced.graph.erase_node(node)
    traced.graph.lint()
    traced.recompile()
    traced.delete_all_unused_submodules()


def _is_of_outputs(bn: nn.Module, layer: nn.Module) -> bool:
    """Return whether BN, by running statistics, has one channel for each output of the layer.

    After a linear layer on (B, N, D), BN has N channels.
    """
    return bn.running_mean is not None and bn.num_features == len(layer.weight)  # type: ignore[arg-type]


def _affine(bn: nn.Module) -> nn.Module:
    """Give BN without scale and shift a scale of 1 and a shift of 0, in place, and return it.

    PyTorch's fusion needs both.
    """
    for name, value in (("weight", 1.0), ("bias", 0.0)):
        if getattr(bn, name) is None:
            setattr(bn, name, nn.Parameter(torch.full_like(bn.running_var, value), requires_grad=False))  # type: ignore[arg-type]
    return bn


def _is_plain(layer: nn.Module) -> bool:
    """Return whether the layer uses its weights as they are, without parametrisation or hooks."""
    hooks = len(layer._forward_hooks) + len(layer._forward_pre_hooks)
    return isinstance(layer, WeightLayers) and not is_parametrized(layer) and not hooks
