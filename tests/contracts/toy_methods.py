"""Any method of a family in toy settings, so that a new one is under test the moment it joins its union."""

import re
from dataclasses import fields, is_dataclass, replace
from typing import get_args

import torch
from torch import nn
from toy import make_teacher

from condkd_ray.core.rng import Streams
from condkd_ray.methods.guidance.guidance import Unguided
from condkd_ray.methods.inversion import AnyInversion, NoInversion
from condkd_ray.methods.targets import Balanced
from condkd_ray.methods.weighing import equal_weights

SMALL = {"steps": 3, "batch": 16, "images_per_round": 32, "latent": 16, "width": 8}
SMALL |= {"negatives": 8, "bank": 24, "head": 8}
SMALL |= {"capacity": 20, "entries": 3, "entry_size": 4, "period": 2, "share": 0.25, "scale": 0.02}
INVERTERS = [kind for kind in get_args(AnyInversion) if kind is not NoInversion]


def sized(kind, **sizes):
    """The method `kind` with those of `sizes` that it has."""
    names = {field.name for field in fields(kind)}
    return kind(**{name: value for name, value in sizes.items() if name in names})


def small(kind, **changes):
    """The method `kind` with every size it has made small."""
    return replace(sized(kind, **SMALL), **changes)


def weights_of(kind):
    """Names of its loss terms, as in `<term>_weight`."""
    return [field.name.removesuffix("_weight") for field in fields(kind) if field.name.endswith("_weight")]


def snake(name):
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def make_student():
    """A student that names what the teacher names, less certainly: adversarial terms have something to push on."""
    student = make_teacher().network.requires_grad_(True)
    with torch.no_grad():
        [layer for layer in student.modules() if isinstance(layer, nn.Linear)][-1].weight.mul_(0.5)
    return student.eval()


def synthesize(inversion, state=None, *, seed=0, rng=None, teacher=None, student=None, guide=None, weigh=equal_weights):
    """One round from a fresh state, unless one is given with its streams."""
    teacher, rng = teacher or make_teacher(), rng or Streams(seed)
    state = inversion.init(teacher, rng) if state is None else state
    return inversion.synthesize(
        state,
        Balanced().sample(inversion.images_per_round, teacher, rng=rng),
        teacher=teacher,
        student=student or make_student(),
        guide=guide or Unguided(),
        weigh=weigh,
        rng=rng,
    )


def last_gradients(state):
    """By name, the gradients with which the state's optimiser will have moved its generator last; empty as yet."""
    found, step = {}, state.optimizer.step

    def watched(*args):
        found.update({name: weight.grad.clone() for name, weight in state.generator.named_parameters()})
        return step(*args)

    state.optimizer.step = watched
    return found


def frozen(module):
    """All of a module that a stranger could change: parameters, buffers, gradients, mode."""
    tensors = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    grads = {name: None if p.grad is None else p.grad.clone() for name, p in module.named_parameters()}
    return tensors, grads, [part.training for part in module.modules()]


def same(left, right):
    """Equal trees of containers, bit for bit in tensors."""
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


class Breaking(nn.Module):
    """A network whose `step`-th answer from `arm` on is NaN."""

    def __init__(self, network):
        super().__init__()
        self.network, self.left = network, -1

    def arm(self, step):
        self.left = step

    def forward(self, images):
        self.left -= 1
        logits = self.network(images)
        return logits * float("nan") if self.left == 0 else logits


class Puller:
    """A guide that wants images dark where the teacher's features are large, and writes down what it is shown."""

    layers = ()

    def __init__(self, breaks_at=None):
        self.calls, self.shown, self.learnt, self.breaks_at = [], [], [], breaks_at

    def penalty(self, images, seen, labels):
        self.calls.append("penalty")
        self.shown.append((images, seen, labels))
        value = images.square().mean() + seen.features.square().mean()
        return value * float("nan") if len(self.shown) == self.breaks_at else value

    def update(self, images, seen, labels):
        self.calls.append("update")
        self.learnt.append((images, seen, labels))


class Verdict(Puller):
    """A guide whose penalties are constants: it decides which step has the lowest loss, and moves nothing."""

    def __init__(self, *penalties):
        super().__init__()
        self.penalties = penalties

    def penalty(self, images, seen, labels):
        self.shown.append(images.detach().clone())
        return seen.logits.new_tensor(self.penalties[len(self.shown) - 1])


def tensors(value):
    """Every tensor in a state that is saved, with those of its modules and optimisers."""
    if isinstance(value, torch.Tensor):
        yield value
    else:
        for part in parts(value):
            yield from tensors(part)


def parts(value):
    """What a part of a state is made of."""
    if isinstance(value, (list, tuple)):
        return value
    if isinstance(value, dict):
        return value.values()
    if hasattr(value, "state_dict"):
        return value.state_dict().values()
    if is_dataclass(value):
        return [getattr(value, one.name) for one in fields(value) if not one.metadata.get("transient")]
    return vars(value).values() if hasattr(value, "__dict__") else []


def pointers(value):
    return {tensor.data_ptr() for tensor in tensors(value)}
