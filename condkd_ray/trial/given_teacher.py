"""A teacher that was handed over as an object: what names it, and the configs that have it.

Its name is the digest of its structure, code and tensors, never a name of the user's. So a record says which teacher it
was, the same call with an equal teacher goes on where the last one ended, and another teacher makes other trials.
All of it is our choice.
"""

from dataclasses import dataclass, replace
from functools import cached_property

from condkd_ray.core.config import content_hash
from condkd_ray.core.method import require
from condkd_ray.data.datasets import DataConfig, Dataset
from condkd_ray.methods.supervised import TeacherConfig
from condkd_ray.models.code_digest import all_tensors, structure_digest
from condkd_ray.models.own_module import GIVEN, OwnModule, copied, with_safe_convolutions
from condkd_ray.models.teacher import Teacher
from condkd_ray.trial.config import TrialConfig, tensor_digest

ELSEWHERE = ("weights", "module", "card", "class_order")
"""Fields of a `TeacherConfig` that name another teacher, or tell of one."""


@dataclass(frozen=True, eq=False)
class GivenTeacher:
    """A user's teacher, which is neither trained nor loaded here. Raises `InputError` unless it is a `Teacher`."""

    teacher: Teacher

    def __post_init__(self) -> None:
        accepted = "Teacher.from_module(module, num_classes=, image_shape=, mean=, std=)"
        require(isinstance(self.teacher, Teacher), "teacher", type(self.teacher).__name__, accepted)

    @cached_property
    def module(self) -> OwnModule:
        """A copy of its network on the CPU, and the digest of its structure and code."""
        network = with_safe_convolutions(copied(self.teacher.network))
        return OwnModule(network, structure_digest(network))

    @cached_property
    def name(self) -> str:
        """What configs and records call it: a digest of structure, code and all tensors."""
        return f"{GIVEN}{content_hash([self.module.code, tensor_digest(all_tensors(self.module.network))])}"

    def in_config(self, config: TrialConfig) -> TrialConfig:
        """Return the config with this teacher, and with the normalisation and mirror images of its data set.

        Of the config's own teacher `force` alone counts. Raises `InputError` where the config names another teacher's
        file or function, or where `data` has another normalisation.
        """
        own = config.teacher
        for field in ELSEWHERE:
            value, accepted = getattr(own, field), "none beside a teacher that is handed over"
            require(value is None, f"teacher.{field}", value, accepted)
        recipe = TeacherConfig(module=self.name, force=own.force)
        return replace(config, teacher=recipe, data=self._data(config.data))

    def _data(self, data: DataConfig) -> DataConfig:
        teacher = self.teacher
        theirs = {"mean": teacher.mean, "std": teacher.std, "flip_ok": teacher.flip_ok}
        for field, value in theirs.items():
            given = getattr(data, field)
            require(given in (None, value), f"data.{field}", given, f"none, or {value}, which is that of the teacher")
        return replace(data, **theirs)

    def check_images(self, dataset: Dataset) -> None:
        """Raise `InputError` unless the images and the number of classes of `dataset` are those of the teacher."""
        teacher, where = self.teacher, f"that of the data set {dataset.name}"
        shape, classes = dataset.image_shape, dataset.num_classes
        require(teacher.image_shape == shape, "image_shape of the teacher", teacher.image_shape, f"{shape}, {where}")
        require(
            teacher.num_classes == classes, "num_classes of the teacher", teacher.num_classes, f"{classes}, {where}"
        )
