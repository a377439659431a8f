"""The flags of a user's own teacher, the same in all commands that have flags instead of a config."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from condkd_ray.core.config import Tree
from condkd_ray.core.method import InputError, require


@dataclass(frozen=True, kw_only=True)
class TeacherFlags:
    """What is known of a user's own teacher."""

    teacher_weights: Path | None = None
    """Your own teacher: safetensors, or a `.pt` with a state dict; `file.pt#ema` takes the one under the key `ema`."""
    teacher_module: str | None = None
    """`package.module:function`, found in the working directory too: the module it returns is the teacher, as it is or
    with `--teacher-weights` loaded into it. `--teacher` is then not read."""
    card: Path | None = None
    """What is known of the weights, as `condkd export` writes it; a .json of their name beside them if not given."""
    mean: tuple[float, ...] | None = None
    """Normalisation of the teacher, a value a channel, of [0, 1] pixels; the card's, or that of the data."""
    std: tuple[float, ...] | None = None
    class_order: tuple[str, ...] | None = None
    """Names of the data's classes in the order of the teacher's outputs, where that is another than the data's."""
    force_teacher: tyro.conf.FlagCreatePairsOff[bool] = False
    """Go on with a teacher that does not name the images as it should."""

    def about_teacher(self) -> Tree:
        """The fields of a config that are given, as plain values. Raises `InputError` where weights are no file."""
        from condkd_ray.models.weights import located  # which imports PyTorch

        weights = self.teacher_weights
        if weights is not None and not os.path.isfile(located(weights)[0]):
            # The path of no characters is ".".
            why = "a folder" if os.path.isdir(weights) else "no such file"
            what = f"--teacher-weights is {str(weights)!r}, which cannot be read ({why})"
            raise InputError(f"{what}; accepted: a safetensors file, or a .pt")
        return self.given_of_teacher()

    def given_of_teacher(self) -> Tree:
        """Likewise, without a look at the weights."""
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
