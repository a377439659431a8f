"""Functions that read the inputs and outputs of a network's layers through hooks, for teachers and students.

Letters: B batch, C channels, H W height and width, K classes, D features.
"""

import copy
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from condkd_ray.core.method import InputError, require
from condkd_ray.core.task import Task, is_dense

T = TypeVar("T")
BatchNorms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
"""The classes of BN layers."""
HALF_TYPES = (torch.bfloat16, torch.float16)
"""The half-precision types."""
WeightLayers = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
"""The classes of convolutions and linear layers."""
ENTRY = "out"
"""Key of the logits in the dictionary that torchvision's segmentation networks return."""
ENLARGE = "torch.nn.functional.interpolate(logits, size=images.shape[2:], mode='bilinear')"
"""The operation that segmentation networks of lower resolution end with."""


def over_space(x: Tensor) -> Tensor:
    """Return the means over all dimensions after the second: (B, C, ...) to (B, C)."""
    return x.flatten(2).mean(2) if x.ndim > 2 else x


def logits_in(output: object) -> object:
    """Return the logits in a network's output: its entry `ENTRY` if it is a dictionary with one, else the output."""
    return output[ENTRY] if isinstance(output, Mapping) and ENTRY in output else output


def _only_logits(_: nn.Module, __: object, output: object) -> object:
    """Forward hook by which a network returns `logits_in` its output; a function of a module, so that it pickles."""
    return logits_in(output)


def accepted_shapes(num_classes: int, shape: tuple[int, int, int], task: Task | None = None) -> str:
    """Return the shapes of logits for 2 images of `shape` (C, H, W), for messages; of both tasks without `task`."""
    maps = (2, num_classes, *shape[1:])
    texts: dict[Task, str] = {
        "classification": f"(2, {num_classes}), logits per image",
        "segmentation": f"{maps}, logits per pixel; smaller maps are enlarged by {ENLARGE}",
    }
    return ", or ".join(texts.values()) if task is None else texts[task]


def accepted_outputs(num_classes: int, shape: tuple[int, int, int], task: Task | None = None) -> str:
    """Return what a network may return in place of an output that is no tensor; arguments as of `accepted_shapes`."""
    tensor = f"a tensor of shape {accepted_shapes(num_classes, shape, task)}"
    text = f"{tensor}; wrap the model in a torch.nn.Module whose forward returns the logits"
    return (
        text if task == "classification" else f"{text}; or in segmentation a dictionary with this tensor as {ENTRY!r}"
    )


@contextmanager
def tapped(network: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Yield a dictionary that each forward pass fills with the float32 outputs of `layers`, by layer name.

    Layers whose output is not a tensor are left out. The hooks are removed on exit.
    """
    taps: dict[str, Tensor] = {}

    def record(name: str, _: nn.Module, __: object, output: object) -> None:
        if isinstance(output, Tensor):
            # A copy: the next layer, such as an in-place ReLU, may overwrite this output.
            taps[name] = output.to(torch.float32, copy=True)

    with ExitStack() as hooks:
        for name in layers:
            hooks.enter_context(network.get_submodule(name).register_forward_hook(partial(record, name)))
        yield taps


def sharing(network: nn.Module) -> nn.Module:
    """Return a copy of the network's modules, in the same mode, that shares the network's parameters and buffers."""
    return copy.deepcopy(network, {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())})


def cast(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Convert weights and biases of convolutions and linear layers to `dtype` in place, and return the network.

    The new parameters need no gradients. Autocast to `dtype` would convert them again in every pass.
    """
    for layer in network.modules():
        if isinstance(layer, WeightLayers):
            for name, tensor in list(layer.named_parameters(recurse=False)):
                setattr(layer, name, nn.Parameter(tensor.detach().to(dtype), requires_grad=False))
    return network


@torch.no_grad()
def spatial_layers(network: nn.Module, image_shape: tuple[int, int, int]) -> list[str]:
    """Return the names of layers whose output is (B, C, H, W) with more than one position; `network` is not changed."""
    copied = copy.deepcopy(network).eval()
    names = [name for name, _ in copied.named_modules() if name]
    with tapped(copied, names) as taps:
        copied(torch.zeros(1, *image_shape, device=next(copied.parameters()).device))
    return [name for name in names if name in taps and taps[name].ndim == 4 and taps[name][0, 0].numel() > 1]


@dataclass(frozen=True)
class Trace:
    """The layer that computes the logits of a network, and names of layers that ran in a forward pass.

    `task`: classification, or segmentation if the logits are maps; `classifier`: the last linear layer, or in
    segmentation the last convolution with K outputs; `bn`: BN layers with running statistics, in the order of
    execution; `tappable`: layers whose output is a tensor; `weighted`: convolutions and linear layers except
    `classifier`, in the order of execution; `stages`: names and input channels of the stages (see `stage_inputs`), in
    the order of execution; `ends`: names of the layers whose outputs end the stages (see `stage_outputs`), without
    layers whose spatial means equal those of a later layer or of the input of `classifier`.
    """

    task: Task
    classifier: nn.Linear | nn.Conv2d
    bn: tuple[str, ...]
    tappable: tuple[str, ...]
    weighted: tuple[str, ...]
    stages: dict[str, int]
    ends: tuple[str, ...]


@torch.no_grad()
def trace(network: nn.Module, num_classes: int, shape: tuple[int, int, int]) -> Trace:
    """Run two blank images of `shape` (C, H, W) through `network`.

    A network that returns a dictionary with the logits under "out", as torchvision's segmentation networks do, gets a
    forward hook, so that it returns the logits. Raises `InputError` unless the logits are (2, K) or (2, K, H, W).
    """
    ran: dict[str, object] = {}
    inputs_of: dict[str, object] = {}
    computed: list[nn.Linear | nn.Conv2d] = []
    bn_names: list[str] = []
    weighted: dict[str, nn.Linear | nn.Conv2d] = {}
    finished: list[str] = []
    device = next(network.parameters()).device

    def record(name: str, module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        ran[name] = output
        finished.append(name)
        inputs_of[name] = inputs[0] if inputs else None
        if isinstance(module, nn.Linear | nn.Conv2d):
            weighted[name] = module
            computed.append(module)
        elif isinstance(module, BatchNorms) and module.running_mean is not None:
            bn_names.append(name)

    with ExitStack() as hooks:
        for name, module in network.named_modules():
            hooks.enter_context(module.register_forward_hook(partial(record, name)))
        try:
            output = network(images := torch.zeros(2, *shape, device=device))
        except Exception as error:  # the user's network may raise anything
            text = f"the teacher cannot read images of shape {shape}: {error}"
            raise InputError(f"{text}; accepted: a module that reads float32 images of this shape") from error
    task = _task_of(output, num_classes, shape)
    if logits_in(output) is not output:
        network.register_forward_hook(_only_logits)
    last = _classifier(network, computed, num_classes, task, shape)
    # In the order of definition, so that a list of layers names a stage before the layers inside it.
    tappable = tuple(name for name, _ in network.named_modules() if name and isinstance(ran.get(name), Tensor))
    others = tuple(name for name, module in weighted.items() if module is not last)
    bn = tuple(dict.fromkeys(bn_names))
    maps = {name: value for name, value in inputs_of.items() if isinstance(value, Tensor) and value is not images}
    once = [name for name in finished if name and finished.count(name) == 1]
    spatial = bn
    if is_dense(task):  # maps of logits are no stages, nor are the means over the image of a pyramid
        scores = [name for name, module in weighted.items() if len(module.weight) == num_classes]
        own = finished.index(next(name for name in scores if weighted[name] is last))
        once = [name for name in once if finished.index(name) < own and name not in scores]
        spatial = tuple(name for name in bn if name in maps and maps[name][0, 0].numel() > 1)
    outputs = {name: value for name in once if isinstance(value := ran[name], Tensor)}
    ends = _without_repeats(network, stage_outputs(network, outputs), last, shape)
    return Trace(task, last, bn, tappable, others, stage_inputs(network, maps, spatial), ends)


def _task_of(output: object, num_classes: int, shape: tuple[int, int, int]) -> Task:
    """Return the task of a network with this `output` for two images. Raises `InputError` for any other output."""
    logits = logits_in(output)
    if not isinstance(logits, Tensor):
        what = f"type of the teacher's output for 2 images of shape {shape}"
        accepted = accepted_outputs(num_classes, shape)
        raise InputError(f"{what} is {type(logits).__name__!r}; accepted: {accepted}")
    tasks: dict[tuple[int, ...], Task] = {(2, num_classes): "classification"}
    tasks[2, num_classes, *shape[1:]] = "segmentation"
    actual = tuple(logits.shape)
    require(actual in tasks, "shape of the teacher's output for 2 images", actual, accepted_shapes(num_classes, shape))
    return tasks[actual]


def _classifier(
    network: nn.Module,
    computed: Sequence[nn.Linear | nn.Conv2d],
    num_classes: int,
    task: Task,
    shape: tuple[int, int, int],
) -> nn.Linear | nn.Conv2d:
    """Return the layer that computes the logits, from the convolutions and linear layers in the order of execution.

    Convolutions of an auxiliary head, on which the logits do not depend, are left out. Raises `InputError` if there is
    no such layer.
    """
    kind = nn.Conv2d if is_dense(task) else nn.Linear
    found = [layer for layer in computed if isinstance(layer, kind)]
    if is_dense(task):
        found = [layer for layer in found if len(layer.weight) == num_classes]
        while len(found) > 1 and not _matters(network, found[-1], shape):
            found.pop()
    last = found[-1] if found else None
    if last is None or len(last.weight) != num_classes:
        what = f"convolution with {num_classes} outputs" if is_dense(task) else "linear layer"
        accepted = f"a torch.nn.{kind.__name__} with {num_classes} outputs that computes the logits"
        raise InputError(f"last {what} of the teacher is {last}; accepted: {accepted}")
    return last


def _matters(network: nn.Module, layer: nn.Module, shape: tuple[int, int, int]) -> bool:
    """Return whether the logits change if `layer` gives other values; True on the meta device, without values."""
    images = torch.zeros(2, *shape, device=next(network.parameters()).device)
    if images.is_meta:
        return True
    before: Any = logits_in(network(images))

    def moved(_: nn.Module, __: object, output: Tensor) -> Tensor:
        return output + 1

    with layer.register_forward_hook(moved):
        after: Any = logits_in(network(images))
    return not torch.equal(before, after)


def _without_repeats(
    network: nn.Module, ends: tuple[str, ...], classifier: nn.Linear | nn.Conv2d, shape: tuple[int, int, int]
) -> tuple[str, ...]:
    """Drop layers whose spatial means equal those of a later layer or of the input of the layer for the logits.

    A layer before average pooling is such a case, because pooling keeps the means. The means are compared on two random
    images; on the meta device, where tensors have no values, all of `ends` are returned.
    """
    device = classifier.weight.device
    if device.type == "meta":
        return ends
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).to(device)
    entered: list[Tensor] = []
    with tapped(network, ends) as taps, classifier.register_forward_pre_hook(lambda _, x: entered.append(x[0].float())):
        network(images)
    last = over_space(entered[-1]) if isinstance(classifier, nn.Conv2d) else entered[-1]
    means = [*(over_space(taps[name]) for name in ends), last]

    def repeated(index: int) -> bool:
        one, later = means[index], means[index + 1 :]
        return any(one.shape == other.shape and torch.allclose(one, other, rtol=1e-4, atol=1e-6) for other in later)

    return tuple(name for index, name in enumerate(ends) if not repeated(index))


def stage_inputs(network: nn.Module, inputs: Mapping[str, Tensor], bn: Sequence[str]) -> dict[str, int]:
    """Return the names of a network's stages, with the number of channels that enter each.

    `inputs`: the input of each module, by name, without modules that read the image itself; `bn`: the BN layers in the
    order of execution. The stages are the children of a module `stages`, as in the networks of this package, or
    `layer1`, `layer2`, ..., as in torchvision's ResNets, also inside a module `backbone` that gives its maps by name,
    as in torchvision's segmentation networks; only children in `inputs` that read a (B, C, H, W) map count.
    In other networks each BN layer whose input has fewer positions than the inputs of all earlier BN layers counts as
    a stage (our choice).
    """
    found = [name for name in _named_stages(network) if name in inputs and inputs[name].ndim == 4]
    if not found:
        known = [name for name in bn if name in inputs]
        sizes = [inputs[name][0, 0].numel() for name in known]
        found = [name for i, name in enumerate(known) if sizes[i] < min(sizes[:i], default=math.inf)]
    return {name: inputs[name].shape[1] for name in found}


def stage_outputs(network: nn.Module, outputs: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Return the names of the layers whose outputs end a network's stages, in the order of execution.

    `outputs`: the output of each layer that runs exactly once, by name, in the order in which the layers finish. The
    stages are the children that `stage_inputs` describes. In other networks the last layer to finish at each spatial
    size ends a stage; outputs with one position do not count (our choice).
    """
    maps = {name: output for name, output in outputs.items() if output.ndim == 4}
    found = [name for name in _named_stages(network) if name in maps]
    if not found:
        last = {output[0, 0].numel(): name for name, output in maps.items()}
        found = [name for name in maps if any(name == end for size, end in last.items() if size > 1)]
    return tuple(found)


def _named_stages(network: nn.Module) -> list[str]:
    """Return the children of a module `stages`, or `layer1`, `layer2`, ... (torchvision), as names in the network."""
    children = dict(network.named_children())
    if "stages" in children:
        return [f"stages.{name}" for name, _ in children["stages"].named_children()]
    if isinstance(backbone := children.get("backbone"), nn.ModuleDict):
        return [f"backbone.{name}" for name in _named_stages(backbone)]
    return [name for name in children if re.fullmatch(r"layer\d+", name)]
