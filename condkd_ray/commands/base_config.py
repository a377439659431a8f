"""Builds a trial's config from the flags of an experiment."""

from typing import Any

from condkd_ray import models
from condkd_ray.commands.experiment import Flags
from condkd_ray.core.config import build, merge, read_tree, to_tree
from condkd_ray.core.method import require
from condkd_ray.core.task import Task, is_dense
from condkd_ray.data.datasets import task_of
from condkd_ray.methods.distiller import Distiller
from condkd_ray.methods.inversion import INVERSIONS, Inversion
from condkd_ray.methods.supervised import TeacherConfig
from condkd_ray.runs.presets import PARTS, check_parts, published, scaled, with_rounds
from condkd_ray.trial.card import with_card
from condkd_ray.trial.config import TrialConfig, from_tree

TEACHER_EPOCHS = {"digits": 40, "fashion_mnist": 5, "mnist": 5, "cifar10": 8, "scenes": 40, "camvid": 60}
"""Epochs that train a good teacher within minutes on one core, by data set; 10 for others. See `experiments/LOG.md`."""
STUDENTS: dict[Task, str] = {"classification": "resnet-8-8", "segmentation": "deeplab_resnet-8-8"}
DENSE_TEACHER = "deeplab_resnet-14-16"
"""Default teacher in segmentation."""
CONDENSATIONS: dict[Task, str] = {"classification": "distribution_matching", "segmentation": "random_real"}
"""Default condensation: nobody has published one for segmentation."""
DENSE_BATCH, DENSE_STEPS = 16, 4
"""In segmentation, images of each student step, and generator steps of a round with fresh images for each of 20 student
steps (DFAD: one for five). The batches of all steps are our choice: 16 images, and 32 for an inversion that adds one
batch to the memory in each round."""


def base_config(flags: Flags) -> TrialConfig:
    """Return the config from which all arms start, at the largest IPC. Raises `InputError` for a bad flag."""
    accepted = "one or more integers >= 1 (the arm none runs without condensed images)"
    require(bool(flags.ipcs) and min(flags.ipcs) >= 1, "--ipcs", flags.ipcs, accepted)
    require(bool(flags.seeds) and min(flags.seeds) >= 0, "--seeds", flags.seeds, "one or more integers >= 0")
    flags.prior  # noqa: B018  raises for a bad prior, even if no arm has it
    # Flags that are not set are left out: a model card may set the size, and only a user's data sets have files.
    stated = {name: getattr(flags, name) for name in ("size", "val_fraction", "train_file", "test_file")}
    own = {name: value for name, value in stated.items() if value is not None}
    epochs = TEACHER_EPOCHS.get(flags.dataset, 10) if flags.teacher_epochs is None else flags.teacher_epochs
    training = {"epochs": epochs} | ({"batch": DENSE_BATCH} if is_dense(task_of(flags.dataset)) else {})
    tree: dict[str, Any] = {
        "data": {"name": flags.dataset, "root": flags.data_root, **own},
        "teacher": {**_network(flags), "training": training},
        "student": to_tree(models.parse(student_label(flags))),
        "condensation": _condensation(flags),
        "guidance": {"name": flags.guidance},
        "test_rounds": flags.test_rounds,
    }
    tree = merge(tree, flags.about_teacher())
    tree |= _own_parts(flags) if flags.host is None else _host_parts(flags, flags.host)
    tree["distiller"] |= {"condensed_share": flags.condensed_share}
    if flags.dataset == "digits" and "width" in tree["inversion"]:
        tree["inversion"]["width"] = 64
    if flags.guidance_weight is not None:
        tree["guidance"]["weight"] = flags.guidance_weight
    if flags.producers or flags.staleness is not None:
        staleness = 1 if flags.staleness is None else flags.staleness
        tree["pipeline"] = {"producers": flags.producers, "staleness": staleness}
    if flags.config is not None:
        given = read_tree(flags.config)
        if flags.host is not None:
            check_parts(flags.host, given, str(flags.config))
        tree = merge(tree, given)
    return from_tree(with_card(tree), "flags")


def student_label(flags: Flags) -> str:
    """Return the label of the student's architecture, from the flag or the default of the task."""
    return STUDENTS[task_of(flags.dataset)] if flags.student is None else flags.student


def teacher_label(flags: Flags) -> str:
    """Return the label of the teacher's architecture, from the flag, the model card or the default.

    Raises `InputError` if the flag or the card cannot be used.
    """
    tree = with_card(merge({"teacher": _network(flags)}, flags.given_of_teacher()))
    return models.label(build(TeacherConfig, tree["teacher"], "flags: teacher").network)


def _network(flags: Flags) -> dict[str, Any]:
    own = flags.teacher_weights is not None or flags.teacher_module is not None
    default = DENSE_TEACHER if is_dense(task_of(flags.dataset)) and not own else None
    text = default if flags.teacher is None else flags.teacher
    return {} if text is None else {"network": to_tree(models.parse(text))}


def _own_parts(flags: Flags) -> dict[str, Any]:
    """Return the config of inversion, memory, distiller and rounds if no published system is given."""
    require(flags.scale is None, "--scale without --host", flags.scale, "a published system to scale, --host NAME")
    name = flags.inversion or "fast"
    # An unknown name is refused later, in a message that lists all accepted names.
    inversion = INVERSIONS.members().get(name, Inversion)
    rounds = 12 if flags.rounds is None else flags.rounds
    parts: dict[str, Any] = {"inversion": {"name": name}, "distiller": {}, "rounds": rounds}
    if hasattr(inversion, "width"):
        parts["inversion"]["width"] = inversion.width
    if is_dense(task_of(flags.dataset)):
        parts = merge(parts, _dense_parts(inversion))
    return parts | ({"memory": {"name": "latest"}} if inversion.fresh_each_round else {})


def _dense_parts(inversion: type[Inversion]) -> dict[str, Any]:
    """Return smaller batches, and DFAD's loss for segmentation, the L1 distance of logits, in every arm."""
    parts: dict[str, Any] = {"distiller": {"batch": DENSE_BATCH, "loss": "l1"}, "inversion": {}}
    if inversion.fresh_each_round:
        made = DENSE_BATCH * Distiller.steps
        parts["inversion"] |= {"batch": DENSE_BATCH, "images_per_round": made, "steps": DENSE_STEPS}
    elif hasattr(inversion, "batch"):
        parts["inversion"]["batch"] = 2 * DENSE_BATCH
    return parts


def _host_parts(flags: Flags, host: str) -> dict[str, Any]:
    """Return the parts of the config that the published system `host` sets, scaled."""
    accepted = f"one of them: --host {host} uses the inversion {published(host).inversion.name}"
    require(flags.inversion is None, "--inversion with --host", flags.inversion, accepted)
    both = flags.scale is not None and flags.rounds is not None
    accepted = f"one of them: the scale ({flags.scale}) sets the rounds; --scale None removes a default scale"
    require(not both, "--rounds with --scale", flags.rounds, accepted)
    recipe = scaled(published(host), 1.0 if flags.scale is None else flags.scale)
    if flags.rounds is not None:
        recipe = with_rounds(recipe, flags.rounds)
    return {part: to_tree(getattr(recipe, part)) for part in PARTS}


def _condensation(flags: Flags) -> dict[str, Any]:
    max_ipc = max(flags.ipcs)
    name = CONDENSATIONS[task_of(flags.dataset)] if flags.condensation is None else flags.condensation
    if flags.condensed_path is not None or name == "imported":
        require(flags.condensed_path is not None, "--condensed-path", None, "the condensed set to import")
        own = {name: getattr(flags, f"condensed_{name}") for name in ("path", "space", "mean", "std", "order")}
        return {"name": "imported", "ipc": max_ipc, "force": flags.force_condensed} | own
    tree = {"name": name, "ipc": max_ipc}
    if name in ("distribution_matching", "trajectory_matching"):
        tree["condensed_together"] = max(max_ipc, 10)
    if name == "squeeze_recover" and flags.dataset == "digits":
        # One pixel, the smallest shift, is an eighth of these images: shifts cost a third of the accuracy (LOG.md).
        tree["shift"] = 0.0
    return tree
