"""`condkd condense`: make a condensed set as a trial would, and write it, with a control set, for other programs."""

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import tyro

from condkd_ray.commands.console.exit_codes import show
from condkd_ray.commands.console.live import TERMINAL
from condkd_ray.commands.train import configured
from condkd_ray.core.config import to_tree
from condkd_ray.core.environment import default_device, set_up_process
from condkd_ray.core.method import require
from condkd_ray.core.samples import Codec, Samples, pixel_counts, to_unit
from condkd_ray.core.task import is_dense
from condkd_ray.data.datasets import Dataset
from condkd_ray.data.writers import VOID, write_dc, write_images, write_masks
from condkd_ray.methods.condensation import AllReal, AnyCondensation, Imported, RandomReal
from condkd_ray.trial.artifacts import Workshop
from condkd_ray.trial.config import TrialConfig

log = logging.getLogger(__name__)

HEAD = f"{'set':<24}{'seed':>5}{'ipc':>5}{'images':>8}{'mean':>9}{'std':>8}{'clipped':>9}  files"
TORCH = (".pt", ".pth")


@dataclass(frozen=True, kw_only=True)
class Condense:
    """Make the condensed set that a trial config names, and write it as image Parquet.

    It is the set that `condkd train` and experiments use for the same config. Only the fields condensation, data and
    seed affect it. A teacher is trained only if the method itself needs one. An imported set is checked by its
    pixels, and by the teacher only if the weights are your own. Every field is a flag too and overrides the file:
    `condkd condense trial.yaml --out set.parquet --condensation.ipc 5`. The printed mean and std are those of the
    normalised images.
    """

    config: tyro.conf.Positional[Path]
    """A YAML file of config fields."""
    out: Path
    """Parquet file to write: PNG images and labels, in segmentation masks, in the layout of Hugging Face datasets.
    Pixels are 8 bit, so values outside [0, 1] are clipped. The file's metadata describes the set."""
    dc: Path | None = None
    """A further `.pt` file, in the layout of DC, DSA and DM, with the exact normalised float32 values. It holds one
    label per image, so it is not written in segmentation."""
    control: tyro.conf.FlagCreatePairsOff[bool] = False
    """Also write a control set of random real images, with equal ipc, seed and data, as <name>_random_real."""
    force: tyro.conf.FlagCreatePairsOff[bool] = False
    """Overwrite files that exist."""
    cache: Path | None = None
    """Cache of condensed sets; default: $CONDKD_CACHE, else a folder in the user's cache home."""
    threads: int = 1
    """CPU threads. More than one was slower whenever other work used the same cores."""


def condense(arguments: list[str]) -> int:
    """Run `condkd condense FILE`, with flags for the config's fields; return the exit code.

    Raises `InputError` before any set is made.
    """
    command, config = configured(Condense, arguments, "condkd condense")
    planned = _plan(command, config)
    for path in chain.from_iterable(planned.values()):
        require(command.force or not path.exists(), "file", str(path), "a new one; or --force, which overwrites")
        require(not path.is_dir(), "file", str(path), "a file, not a folder")
        there = next(folder for folder in path.resolve().parents if folder.exists())
        writable = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
        require(writable, "file", str(path), f"a file in a writable folder; {there} is not writable")
    set_up_process(command.threads)
    workshop = Workshop(command.cache, device=default_device(), view=TERMINAL, train_to_check=False)
    if any(method.needs_teacher for method in planned):
        workshop.check(config)
    if isinstance(config.condensation, Imported):
        # Only the set is checked with the teacher, so the teacher need not fit the config's inversion.
        workshop.check_teacher(config)
    # The control set is made first: it takes no time, and an ipc too large for the data is refused before the other set
    # is made.
    clipped = [
        _make(workshop, method, config, paths, first=not number)
        for number, (method, paths) in enumerate(reversed(planned.items()))
    ]
    if any(clipped) and command.dc is None:
        remedy = "" if is_dense(config.data.task) else "; --dc FILE.pt keeps them"
        log.info(f"8 bit: values outside [0, 1] were clipped{remedy}")
    return 0


def _plan(command: Condense, config: TrialConfig) -> dict[AnyCondensation, list[Path]]:
    """Return the methods of the sets to make, each with its files: first Parquet, then the others.

    Raises `InputError` for a bad flag or condensation.
    """
    method = config.condensation
    require(command.threads >= 1, "--threads", command.threads, "an integer >= 1")
    require(command.out.suffix == ".parquet", "--out", str(command.out), "a file name that ends in .parquet")
    require(command.dc is None or command.dc.suffix in TORCH, "--dc", str(command.dc), "a file name that ends in .pt")
    one_each = "none in segmentation: a .pt file holds one label per image; --out FILE.parquet holds masks"
    require(command.dc is None or not is_dense(config.data.task), "--dc", str(command.dc), one_each)
    require(method is not None, f"condensation in {command.config}", None, "the name of one, or a mapping with it")
    assert method is not None
    paths = [path for path in (command.out, command.dc) if path is not None]
    if not command.control:
        return {method: paths}
    itself = isinstance(method, (RandomReal, AllReal))
    accepted = "a method other than random_real and all_real, of which the control would be a copy"
    require(not itself, "--control of condensation", method.name, accepted)
    beside = [path.with_name(f"{path.stem}_random_real{path.suffix}") for path in paths]
    return {method: paths, RandomReal(ipc=method.ipc): beside}


def _make(workshop: Workshop, method: AnyCondensation, config: TrialConfig, paths: list[Path], *, first: bool) -> bool:
    """Make and write one set and print its line; return True if its 8-bit encoding clips any value.

    The line of the `first` set has the table's head above it.
    """
    config = replace(config, condensation=method)
    dataset, samples = workshop.data(config), workshop.condensed(config)
    assert samples is not None
    parquet, *exact = paths
    encoded = Codec("unit", dataset.mean, dataset.std).encode(samples)
    about = _about(dataset, method, config.seed)
    pixels = {"pixels": "8 bit, of [0, 1], clipped; (pixel / 255 - mean) / std is what networks read"}
    if samples.dense:
        pixels["masks"] = f"number of each pixel's class in class_names; {VOID}, in 16-bit PNG 65535, for none"
    write = write_masks if samples.dense else write_images
    write(parquet, encoded.images, encoded.labels, names=dataset.class_names, about=about | pixels)
    for path in exact:
        write_dc(path, samples.images, samples.labels, about=about | {"pixels": "float32, (pixel - mean) / std"})
    # Rounding to 8 bit clips only values more than half a grey level outside [0, 1].
    grey = 255 * to_unit(samples.images, dataset.mean, dataset.std)
    share = ((grey < -0.5) | (grey > 255.5)).float().mean().item()
    numbers = f"{config.seed:>5}{method.ipc or 'all':>5}{len(samples):>8}"
    spread = f"{samples.images.mean():>9.3f}{samples.images.std():>8.3f}{share:>9.1%}"
    if first:
        show(HEAD)
    show(f"{method.label:<24}{numbers}{spread}  {', '.join(map(str, paths))}")
    if samples.dense:
        show(_pixels_by_class(samples, dataset.class_names))
    return share > 0


def _pixels_by_class(samples: Samples, names: Sequence[str]) -> str:
    """Return the number of pixels of each class, and of void, as one line."""
    counts = pixel_counts(samples.labels, len(names)).sum(0).tolist()
    void = samples.labels.numel() - sum(counts)
    return "  pixels: " + ", ".join(
        f"{name} {count}" for name, count in zip([*names, "void"], [*counts, void], strict=True)
    )


def _about(dataset: Dataset, method: AnyCondensation, seed: int) -> dict[str, str]:
    """Return the metadata of a set: the data that a program needs to use it, and its method and seed.

    Values are names or JSON.
    """
    return {
        "dataset": dataset.name,
        "data_digest": dataset.digest,
        "mean": json.dumps(dataset.mean),
        "std": json.dumps(dataset.std),
        "method": method.label,
        "paper": method.paper,
        "seed": str(seed),
        "config": json.dumps(to_tree(method)),
    }
