"""Loads a user's own weights: reads a file and translates its contents to a network's own parameter names."""

import logging
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from condkd_ray.core.config import file_digest
from condkd_ray.core.method import InputError, require
from condkd_ray.models.naming import SCHEMES, Recognised, recognise, recognitions
from condkd_ray.models.network import label
from condkd_ray.models.state_dicts import COUNTER, Weights, parts, state_dicts, unwrapped
from condkd_ray.models.weight_files import ACCEPTED, read_file

log = logging.getLogger(__name__)

BATCHES = "num_batches_tracked"
"""A counter of batches. No forward pass in eval mode reads it, and older files lack it."""
AUXILIARY = "aux_classifier"
"""Name of the head of torchvision's segmentation networks that is used only in training."""


def located(path: Path) -> tuple[Path, str]:
    """Split `path` into the file and the place of a state dict in it; the place is "" if `path` names none.

    `file.pt#ema` is the state dict under the key `ema`. `file.pt#state_dict/model` is the part of the state dict under
    `state_dict` whose names have the prefix `model.`.
    """
    parts = str(path).split("#")
    for count in range(len(parts) - 1, 0, -1):
        if not os.path.isfile(path) and os.path.isfile(file := Path("#".join(parts[:count]))):
            return file, "#".join(parts[count:])
    return path, ""


def weights_digest(path: Path) -> str:
    """Return a digest of the file's content, plus the place in it. Raises `InputError` if the file cannot be read."""
    file, key = located(path)
    return file_digest(file) + (f"#{key}" if key else "")


def read_weights(path: Path) -> Weights:
    """Return the one state dict in a file, without prefixes of wrappers; floats are float32.

    A prefix is removed if all names have it: `module.` (DataParallel), `model.` (Lightning), `_orig_mod.`
    (torch.compile) and others. Raises `InputError` if the file has no state dict, or several.
    """
    found = _read(path)
    if len(found) > 1:
        raise _several(path, found)
    [weights] = found.values()
    return unwrapped(_plain_all(weights, path))


def _read(path: Path) -> dict[str, Weights]:
    """Return the state dicts that `path` may refer to, by key. Raises `InputError` if there is none."""
    file, key = located(path)
    try:
        found = state_dicts(read_file(file))
    except InputError as error:
        message = str(error)
        raise InputError(message if str(file) in message else f"weights file {file}: {message}") from None
    if not found:
        raise InputError(f"weights file {file} holds no state dict; accepted: {ACCEPTED}")
    if not key:
        return found
    chosen = found.get(key) or _under_prefix(found, key)
    if not chosen:
        keys = ", ".join(f"{file}#{other}" for other in _places(found)) or f"{file}, a bare one"
        raise InputError(f"state dict in weights file {file} is {key!r}; accepted: {keys}")
    return {key: chosen}


def _places(found: Mapping[str, Weights]) -> Iterator[str]:
    """Yield the keys of the state dicts, and the places of parts in them: first words of names with two dots or more.

    A state dict of a known network yields no parts: they are its layers, which a user would not select.
    """
    for key, weights in found.items():
        yield from [key] if key else []
        if recognise(unwrapped(weights)) is None:
            firsts = dict.fromkeys(name.partition(".")[0] for name in weights if name.count(".") > 1)
            yield from (_place(key, first) for first in firsts)


def _under_prefix(found: Mapping[str, Weights], place: str) -> Weights:
    """Return the weights under a place that ends in a name prefix, without that prefix; {} if there are none."""
    for key, weights in found.items():
        start = (place.removeprefix(f"{key}/") if key else place).replace("/", ".") + "."
        if below := {name.removeprefix(start): value for name, value in weights.items() if name.startswith(start)}:
            return below
    return {}


def _several(path: Path, found: Iterable[str]) -> InputError:
    keys = ", ".join(f"{path}#{key}" for key in found)
    return InputError(f"weights file {path} holds several state dicts that fit; accepted: one of them, {keys}")


def _plain_all(weights: Weights, path: Path) -> Weights:
    return {name: _plain(tensor, f"weights in {path}: {name}") for name, tensor in weights.items()}


def _plain(tensor: Tensor, what: str) -> Tensor:
    """Return a dense tensor, float32 if it is floating point. Raises `InputError` if it has no real values."""
    kinds = {"on the meta device": tensor.is_meta, "quantised": tensor.is_quantized, "complex": tensor.is_complex()}
    kind = next((kind for kind, is_it in kinds.items() if is_it), "")
    if kind:
        raise InputError(f"{what} is {kind}; accepted: tensors of finite floats")
    dense = tensor.detach() if tensor.layout == torch.strided else tensor.detach().to_dense()
    return dense.float() if dense.is_floating_point() else dense


def _check_values(weights: Mapping[str, Tensor], what: str) -> None:
    """Raise `InputError`, naming the first tensor that cannot belong to a trained network."""
    for name, tensor in weights.items():
        if not tensor.is_floating_point():
            continue
        if not bool(tensor.isfinite().all()):
            count = int((~tensor.isfinite()).sum())
            raise InputError(f"{what}: {name} has {count} NaN or infinite value(s); accepted: finite float32")
        if name.endswith("running_var") and bool((tensor < 0).any()):
            least = tensor.min().item()
            raise InputError(f"{what}: {name} has a variance of {least:.3g}; accepted: variances, 0 or more")


@dataclass(frozen=True)
class Fitted:
    """Weights that fit a network in names and shapes, and notes for the user on how they were chosen or translated."""

    weights: Weights
    notes: tuple[str, ...] = ()


def fitted(network: nn.Module, path: Path, image_size: tuple[int, int] | None = None) -> Fitted:
    """Return the weights in a file that fit `network`; the network is not changed.

    `image_size`: height and width of the images, in pixels.

    The state dict may be under any key, have prefixes of wrappers, and use the names of a known scheme. If a program
    saved more than its network, as Lightning does, the part with one prefix that fits as a whole is used. Raises
    `InputError` if nothing fits, if several parts fit and `path` does not select one, if a value is not finite, or if
    the weights belong to a project whose network computes another function for images of `image_size`.
    """
    own, file = network.state_dict(), located(path)[0]
    read, auxiliary = _without_auxiliary(own, _read(path))
    fits = _fitting(own, read, path)
    if not fits:
        place, closest = _closest(own, read)
        where = f", read from {place!r}{closest.left_out}," if place not in read else ""
        raise InputError(f"weights in {path}{where} do not fit the network: {closest.refusal()}")
    [place, *others] = fits
    if any(not _equal(fits[place].weights, fits[other].weights) for other in others):
        raise _several(file, fits)
    chosen = fits[place]
    _check_values(chosen.weights, f"weights in {path}")
    scheme = None if chosen.known is None else chosen.known.scheme
    if scheme is not None and image_size is not None:
        what = f"size of the images for weights in {path} with names used by {scheme.projects}"
        require(scheme.same_at(*image_size), what, "{} x {}".format(*image_size), scheme.sides)
    notes = [f"weights in {file} are read from {place!r}{chosen.left_out}"] if [place] != [*read] else []
    notes += [f"weights in {file}: the auxiliary head {AUXILIARY} is left out"] if auxiliary else []
    return Fitted(chosen.weights, (*notes, *chosen.notes(file)))


def nearest(network: nn.Module, path: Path) -> Weights:
    """Return the weights in a file under the names that fit `network` best, whatever their shapes.

    Raises `InputError` if the file cannot be read.
    """
    own = network.state_dict()
    read, _ = _without_auxiliary(own, _read(path))
    fits = [found.weights for found in _fitting(own, read, path).values()]
    return fits[0] if fits else _closest(own, read)[1].weights


def _without_auxiliary(own: Weights, read: Mapping[str, Weights]) -> tuple[dict[str, Weights], bool]:
    """Return the state dicts without an auxiliary head, and whether there was one, unless `own` has such a head."""
    if any(AUXILIARY in name.split(".") for name in own):
        return dict(read), False
    kept = {key: {name: w[name] for name in w if AUXILIARY not in name.split(".")} for key, w in read.items()}
    return kept, any(len(kept[key]) < len(read[key]) for key in read)


def _place(key: str, prefix: str) -> str:
    """Return the place, as `located` reads it, of the names under `key` that have `prefix`."""
    return "/".join(filter(None, (key, prefix.replace(".", "/"))))


def _fitting(own: Weights, read: Mapping[str, Weights], path: Path) -> dict[str, "_Attempt"]:
    """Return the outermost parts of the state dicts that fit a network with state dict `own`, by place."""
    found: dict[str, _Attempt] = {}
    for key, weights in read.items():
        fits: dict[str, _Attempt] = {}
        for prefix, part in parts(weights):
            if _size(part) == _size(own) and not _within(prefix, fits):
                attempt = _Attempt.of(own, _plain_all(part, path))
                fits |= {} if attempt.problems else {prefix: attempt}
        left_out = _outside(weights, fits)
        found |= {_place(key, prefix): replace(fit, others=left_out) for prefix, fit in fits.items()}
    return found


def _within(name: str, prefixes: Iterable[str]) -> bool:
    return any(not prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def _outside(names: Iterable[str], prefixes: Collection[str]) -> tuple[str, ...]:
    return tuple(name for name in names if not _within(name, prefixes))


def _closest(own: Weights, read: Mapping[str, Weights]) -> tuple[str, "_Attempt"]:
    """Return the place and content of the part that fits `own` best, although it does not fit.

    This part shares the largest fraction of names with `own`, after translation to our names if it is recognised.
    """
    there = {_place(key, prefix): (prefix, part, read[key]) for key in read for prefix, part in parts(read[key])}

    def near(place: str) -> tuple[float, bool, int]:
        bare = unwrapped(there[place][1])
        known = _known(own, bare)
        names = (bare if known is None else known.weights).keys()
        return len(own.keys() & names) / len(own.keys() | names), known is not None, len(names)

    place = max(there, key=near)
    prefix, part, around = there[place]
    return place, replace(_Attempt.of(own, part), others=_outside(around, [prefix]))


def _known(own: Weights, bare: Weights) -> Recognised | None:
    """Return the network that `bare` belongs to, under the names that fit `own` best; None if it is not recognised."""
    return min(recognitions(bare), key=lambda known: len(own.keys() ^ known.weights.keys()), default=None)


def _size(weights: Mapping[str, Tensor]) -> int:
    """Return the number of tensors, without the counters that may be missing or extra."""
    return sum(not name.endswith((BATCHES, COUNTER)) for name in weights)


@dataclass(frozen=True)
class _Attempt:
    """Weights under the names that fit a network best, and the problems that remain."""

    weights: Weights
    problems: tuple[str, ...]
    known: Recognised | None = None
    """The network that the weights belong to; None if it is not recognised."""
    others: tuple[str, ...] = ()
    """Names in the same state dict that no fitting part contains."""

    @property
    def left_out(self) -> str:
        """The names in `others`, in parentheses for a message; "" if there are none."""
        return f" (left out: {_first(self.others)})" if self.others else ""

    @staticmethod
    def of(own: Weights, weights: Weights) -> "_Attempt":
        bare = unwrapped(weights)
        for names in (weights, bare):
            if not (problems := misfits(own, names)):
                return _Attempt(names, ())
        known = _known(own, bare)
        ours = bare if known is None else known.weights
        return _Attempt(ours, tuple(misfits(own, ours) if known is not None else problems), known)

    def refusal(self) -> str:
        """Return the problems, and the network that the weights belong to, if it is recognised."""
        if self.known is not None:
            return f"{'; '.join(self.problems)}; they are weights of {label(self.known.network)}{self._named()}"
        projects = "; ".join(dict.fromkeys(scheme.projects for scheme in SCHEMES))
        return f"{'; '.join(self.problems)}; accepted: the network's own names, or names used by {projects}"

    def _named(self) -> str:
        scheme = None if self.known is None else self.known.scheme
        return "" if scheme is None else f", with names used by {scheme.projects}"

    def notes(self, path: Path) -> list[str]:
        """Return sentences for the user about weights that fit: a translation of names, and variances of 0."""
        found = []
        if self.known is not None and self.known.scheme is not None:
            caution = f"; {self.known.scheme.caution}" if self.known.scheme.caution else ""
            found.append(f"weights in {path} are read as {label(self.known.network)}{self._named()}{caution}")
        still = [name for name, t in self.weights.items() if name.endswith("running_var") and bool((t == 0).any())]
        if still:
            found.append(f"weights in {path}: variances of 0 in {_first(still)}")
        return found


def _equal(one: Weights, other: Weights) -> bool:
    """Return whether the weights are equal, apart from batch counters."""
    kept = [name for name in one if not name.endswith(BATCHES)]
    return all(torch.equal(one[name], other[name]) for name in kept)


def recognised(path: Path) -> Recognised | None:
    """Return the network that the weights in a file belong to; None if it is not recognised.

    Raises `InputError` if the file cannot be read, or if it holds several networks, such as teacher and student.
    """
    known: dict[str, Recognised] = {}
    for key, weights in _read(path).items():
        inside: list[str] = []
        for prefix, part in parts(weights):
            if not _within(prefix, inside) and (one := recognise(unwrapped(part))) is not None:
                inside.append(prefix)
                known[_place(key, prefix)] = one
    networks = {label(one.network): one for one in known.values()}
    if len(networks) > 1:
        each = ", ".join(f"{located(path)[0]}#{place} ({label(one.network)})" for place, one in known.items())
        raise InputError(f"weights file {path} holds several networks; accepted: one of them, {each}")
    return next(iter(networks.values()), None)


def misfits(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> list[str]:
    """Return lists of missing, unexpected and mismatched names of `weights`, for a network with state dict `own`.

    Each list shows its first three names.
    """
    optional = {name for name in own if name.endswith(BATCHES)}
    shared = [name for name in own if name in weights]
    found = {
        "missing": [name for name in own if name not in weights and name not in optional],
        "unexpected": [name for name in weights if name not in own],
        "of another shape": [
            f"{name} {tuple(weights[name].shape)} for {tuple(own[name].shape)}"
            for name in shared
            if weights[name].shape != own[name].shape
        ],
        "of another type": [
            f"{name} {weights[name].dtype} for {own[name].dtype}"
            for name in shared
            if weights[name].is_floating_point() != own[name].is_floating_point()
        ],
    }
    return [f"{kind}: {_first(names)}" for kind, names in found.items() if names]


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def load_into(network: nn.Module, weights: Mapping[str, Tensor], what: str) -> None:
    """Load `weights` into `network`. Raises `InputError` with the first missing, unexpected or mismatched names."""
    if problems := misfits(network.state_dict(), weights):
        raise InputError(f"{what} do not fit the network: {'; '.join(problems)}")
    network.load_state_dict(dict(weights), strict=False)
