"""Methods with toy settings. Tests use all members of a family, so that a new member is tested at once."""

import re
from dataclasses import fields, replace
from typing import get_args

from torch import nn

from condkd_ray.methods.inversion import AnyInversion, NoInversion
from condkd_ray.testing.inversions import RecordingGuide
from condkd_ray.testing.inversions import synthesize as synthesize
from condkd_ray.testing.states import parts as parts
from condkd_ray.testing.states import pointers as pointers
from condkd_ray.testing.states import same as same
from condkd_ray.testing.states import snapshot as snapshot
from condkd_ray.testing.states import tensors as tensors
from condkd_ray.testing.world import make_student as make_student

SMALL = {"steps": 3, "batch": 16, "images_per_round": 32, "latent": 16, "width": 8}
SMALL |= {"negatives": 8, "bank": 24, "head": 8}
SMALL |= {"capacity": 20, "entries": 3, "entry_size": 4, "period": 2, "share": 0.25, "scale": 0.02}
INVERTERS = [kind for kind in get_args(AnyInversion) if kind is not NoInversion]


def sized(kind, **sizes):
    """Return the method `kind` with those `sizes` that are fields of it."""
    names = {field.name for field in fields(kind)}
    return kind(**{name: value for name, value in sizes.items() if name in names})


def small(kind, **changes):
    """Return the method `kind` with small values for all its sizes."""
    return replace(sized(kind, **SMALL), **changes)


def weights_of(kind):
    """Return the names of a method's loss terms, those with a field `<term>_weight`."""
    return [field.name.removesuffix("_weight") for field in fields(kind) if field.name.endswith("_weight")]


def snake(name):
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def last_gradients(state):
    """Return a dictionary that the state's optimiser fills with its generator's gradients, by name, at each step."""
    found, step = {}, state.optimizer.step

    def watched(*args):
        found.update({name: weight.grad.clone() for name, weight in state.generator.named_parameters()})
        return step(*args)

    state.optimizer.step = watched
    return found


class NanNetwork(nn.Module):
    """A network whose logits are NaN in the `step`-th forward pass after `nan_in(step)`."""

    def __init__(self, network):
        super().__init__()
        self.network, self.left = network, -1

    def nan_in(self, step):
        self.left = step

    def forward(self, images):
        self.left -= 1
        logits = self.network(images)
        return logits * float("nan") if self.left == 0 else logits


class ConstantPenalties(RecordingGuide):
    """A guide with constant penalties, which determine the step with the lowest loss and have no gradient."""

    def __init__(self, *penalties):
        super().__init__()
        self.penalties = penalties

    def penalty(self, images, seen, labels):
        self.penalty_calls.append(images.detach().clone())
        return seen.logits.new_tensor(self.penalties[len(self.penalty_calls) - 1])
