"""The flags for a user's own teacher, shared by all commands that have flags instead of a config file."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from condkd_ray.core.config import Tree
from condkd_ray.core.method import InputError, require


@dataclass(frozen=True, kw_only=True)
class TeacherFlags:
    """Flags for a user's own teacher."""

    teacher_weights: Path | None = None
    """Your own teacher: a safetensors file, or a `.pt` file with a state dict. `file.pt#ema` reads the key `ema` of the
    file."""
    teacher_module: str | None = None
    """`package.module:function`, also looked up in the working directory. The module that it returns is the teacher, as
    returned or with `--teacher-weights` loaded into it. `--teacher` is then ignored."""
    card: Path | None = None
    """JSON file that describes the weights, as `condkd export` writes it; default: the .json file of the same name
    beside the weights, if there is one."""
    mean: tuple[float, ...] | None = None
    """Mean with which the teacher's input is normalised, one value per channel, for pixels in [0, 1]; default: the
    card's value, else that of the data set."""
    std: tuple[float, ...] | None = None
    """Standard deviation of that normalisation; default: like that of `--mean`."""
    class_order: tuple[str, ...] | None = None
    """Names of the data set's classes in the order of the teacher's outputs; default: the data set's order."""
    force_teacher: tyro.conf.FlagCreatePairsOff[bool] = False
    """Continue although the teacher's accuracy on the images is too low for a teacher of these classes."""

    def about_teacher(self) -> Tree:
        """Return the config fields set by these flags, as plain values.

        Raises `InputError` if the weights are not a file, or if only one of `--mean` and `--std` is given.
        """
        from condkd_ray.models.weights import located  # which imports PyTorch

        weights = self.teacher_weights
        if weights is not None and not os.path.isfile(located(weights)[0]):
            # str(Path("")) is ".", so an empty path is reported as a folder.
            why = "a folder" if os.path.isdir(weights) else "no such file"
            what = f"--teacher-weights is {str(weights)!r}, which cannot be read ({why})"
            raise InputError(f"{what}; accepted: a safetensors file, or a .pt")
        return self.given_of_teacher()

    def given_of_teacher(self) -> Tree:
        """Return the config fields as `about_teacher` does, without checking that the weights exist.

        Raises `InputError` if only one of `--mean` and `--std` is given.
        """
        require((self.mean is None) == (self.std is None), "--mean, --std", (self.mean, self.std), "both or none")
        own = {"weights": self.teacher_weights, "module": self.teacher_module}
        teacher: dict[str, Any] = {**own, "card": self.card, "class_order": self.class_order}
        parts = {"data": {"mean": self.mean, "std": self.std}, "teacher": teacher}
        if self.force_teacher:
            teacher["force"] = True
        given = {
            part: {name: _plain(value) for name, value in values.items() if value is not None}
            for part, values in parts.items()
        }
        return {part: values for part, values in given.items() if values}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value
