"""A teacher that the user passes as an object: its name in configs and records, and its checks.

The name is a digest of the teacher's structure, code and tensors. Thus records identify the teacher, the same call with
an equal teacher continues the same trials, and a different teacher gives different trials. All of this is our choice.
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

EXCLUDED_FIELDS = ("weights", "module", "card", "class_order")
"""Fields of `TeacherConfig` that must be None, because they select or describe a different teacher."""


@dataclass(frozen=True, eq=False)
class GivenTeacher:
    """A teacher object from the user, which is neither trained nor loaded by this package.

    Raises `InputError` if `teacher` is not a `Teacher`.
    """

    teacher: Teacher

    def __post_init__(self) -> None:
        accepted = "Teacher.from_module(module, num_classes=, image_shape=, mean=, std=)"
        require(isinstance(self.teacher, Teacher), "teacher", type(self.teacher).__name__, accepted)

    @cached_property
    def module(self) -> OwnModule:
        """A copy of the teacher's network on the CPU, with the digest of its structure and code."""
        network = with_safe_convolutions(copied(self.teacher.network))
        return OwnModule(network, structure_digest(network))

    @cached_property
    def name(self) -> str:
        """The teacher's name in configs and records, which contains a digest of its structure, code and tensors."""
        return f"{GIVEN}{content_hash([self.module.code, tensor_digest(all_tensors(self.module.network))])}"

    def in_config(self, config: TrialConfig) -> TrialConfig:
        """Return the config with this teacher, its normalisation, and its setting for mirrored images (`flip_ok`).

        From the config's own teacher only `force` is kept. Raises `InputError` if the task of the config's data is not
        the teacher's, if the config names the file or function of another teacher, or if the normalisation or `flip_ok`
        in `data` differs.
        """
        task, accepted = config.data.task, f"{config.data.task}, the task of {config.data.name}"
        require(self.teacher.task == task, "task of the teacher", self.teacher.task, accepted)
        own = config.teacher
        for field in EXCLUDED_FIELDS:
            value, accepted = getattr(own, field), "none if a teacher object is given"
            require(value is None, f"teacher.{field}", value, accepted)
        recipe = TeacherConfig(module=self.name, force=own.force)
        return replace(config, teacher=recipe, data=self._data(config.data))

    def _data(self, data: DataConfig) -> DataConfig:
        teacher = self.teacher
        normalisation = {"mean": teacher.mean, "std": teacher.std, "flip_ok": teacher.flip_ok}
        for field, value in normalisation.items():
            given = getattr(data, field)
            given = tuple(given) if isinstance(given, list) else given
            require(given in (None, value), f"data.{field}", given, f"none, or {value}, the value of the teacher")
        return replace(data, **normalisation)

    def check_shape(self, shape: tuple[int, int, int], name: str) -> None:
        """Raise `InputError` unless the images of data set `name` have the `shape` (C, H, W) of the teacher's."""
        accepted = f"{shape}, that of the data set {name}"
        require(self.teacher.image_shape == shape, "image_shape of the teacher", self.teacher.image_shape, accepted)

    def check_images(self, dataset: Dataset) -> None:
        """Raise `InputError` unless `dataset` has the image shape, number of classes and task of the teacher."""
        teacher, where = self.teacher, f"that of the data set {dataset.name}"
        classes = dataset.num_classes
        self.check_shape(dataset.image_shape, dataset.name)
        require(
            teacher.num_classes == classes, "num_classes of the teacher", teacher.num_classes, f"{classes}, {where}"
        )
        require(teacher.task == dataset.task, "task of the teacher", teacher.task, f"{dataset.task}, {where}")
