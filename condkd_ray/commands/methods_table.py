"""Prints all methods, as in the README's table, and then the installed plug-ins: `condkd methods`.

Further tables: the architectures and their costs (`condkd methods --networks`), the published systems (`--published`),
and the optimum of each form of guidance (`--check guidance`).
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import tyro

from condkd_ray.commands.console.exit_codes import show
from condkd_ray.core.errors import first_line
from condkd_ray.core.families import Family, origin_of
from condkd_ray.core.method import InputError, Method, require
from condkd_ray.core.task import BOTH, Task
from condkd_ray.data.datasets import DATASETS, DataSource
from condkd_ray.methods.condensation import CONDENSATIONS
from condkd_ray.methods.distiller import Distiller
from condkd_ray.methods.guidance import GUIDANCES
from condkd_ray.methods.inversion import INVERSIONS
from condkd_ray.methods.losses.kd import KD_LOSSES
from condkd_ray.methods.memory import MEMORIES
from condkd_ray.methods.targets import TARGETS
from condkd_ray.methods.weighing import WEIGHINGS
from condkd_ray.models import NETWORKS as NETWORK_FAMILY
from condkd_ray.models import parse
from condkd_ray.models.cost import cost_of, short
from condkd_ray.models.network import Network, label
from condkd_ray.models.torchvision import SEGMENTATION, SMALLEST
from condkd_ray.runs import compute

FAMILIES = {
    "condensation": CONDENSATIONS,
    "targets": TARGETS,
    "weighing": WEIGHINGS,
    "inversion": INVERSIONS,
    "guidance": GUIDANCES,
    "memory": MEMORIES,
    "distiller": Distiller,
    "distiller.loss": KD_LOSSES,
}
"""Families of methods, by the field of a trial's config."""
OPEN = {
    **{field: family for field, family in FAMILIES.items() if isinstance(family, Family)},
    "student, teacher.network": NETWORK_FAMILY,
    "data": DATASETS,
}
"""Families that plug-ins can extend, by the field of a trial's config."""
HEADER = (
    "| family | name | tasks | published in | hyper-parameters with their defaults; *in italics what is our choice* |"
)
TASKS: dict[tuple[Task, ...], str] = {BOTH: "both", **{(task,): task for task in BOTH}}
"""Names of the tasks that a method works for."""
NETWORKS = (
    *("lenet5", "lenet5_half", "alexnet", "alexnet_half", "convnet-3-128", "resnet-8-16", "resnet-20-16"),
    *("resnet18-64", "resnet34-64", "wrn-16-1", "wrn-16-2", "wrn-40-1", "wrn-40-2", "vgg11-64", "mobilenet_v2-100"),
    *("squeezenet-16", "torchvision:resnet18", "torchvision:resnet50"),
    *("deeplab_resnet-14-16", "deeplab_mobilenet_v2-50", "torchvision:deeplabv3_resnet50"),
)
"""Usual sizes of every architecture; other numbers are accepted, too."""
SHAPE, CLASSES = (3, 32, 32), 10
"""Image shape and number of classes for which costs are counted."""
NETWORKS_HEADER = (
    f"| network | published in | parameters for {CLASSES} classes | "
    f"multiply-adds of an image of {'x'.join(map(str, SHAPE))} | features | "
    "batch norm | smallest side |\n|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Methods:
    """Print every method with its publication, its hyper-parameters, and which of them are our choice."""

    networks: tyro.conf.FlagCreatePairsOff[bool] = False
    """Instead, print the architectures, with their parameters and multiply-adds."""
    published: tyro.conf.FlagCreatePairsOff[bool] = False
    """Instead, print the published systems that `--host` accepts, with their numbers of images and multiply-adds."""
    check: Literal["guidance"] | None = None
    """Instead, measure where the penalty of each form of guidance alone moves teacher features of the digits; takes
    four minutes on one core."""


def list_methods(command: Methods) -> int:
    """Run `condkd methods`; return 0. Raises `InputError` if more than one flag is given."""
    flags = {"--networks": command.networks, "--published": command.published, "--check": command.check is not None}
    given = [flag for flag, is_set in flags.items() if is_set]
    require(len(given) <= 1, "flags", " ".join(given), "one of them")
    printers = {"--networks": networks_table, "--published": compute.table, "--check": checked_guidance}
    show(printers[given[0]]() if given else table() + plugins_table(), end="")
    return 0


def checked_guidance() -> str:
    """Return a Markdown table with a row for each form of guidance: where it moves the features of bundled digits."""
    from condkd_ray.runs.guidance_check import digits, report

    return report(*digits())


def methods(family: Any) -> tuple[type[Method], ...]:
    """Return the methods of a family that this package defines."""
    return family.own if isinstance(family, Family) else (family,)


def table() -> str:
    """Return a Markdown table with a row for each method."""
    rows = [_row(family, kind) for family, union in FAMILIES.items() for kind in methods(union)]
    return "\n".join([HEADER, "|---|---|---|---|---|", *rows]) + "\n"


def plugins_table() -> str:
    """Return a Markdown table with a row for each plug-in; empty if there are none."""
    members = [(field, kind) for field, family in OPEN.items() for kind in family.plugins().values()]
    rows = [f"{_row(field, kind)} {_origin(kind)} |" for field, kind in members]
    head = ["", f"{HEADER} plug-in |", "|---|---|---|---|---|---|"]
    return "\n".join([*head, *rows]) + "\n" if rows else ""


def _origin(kind: type[Method]) -> str:
    """Return the origin of a plug-in, or the reason why configs with it are refused, as a cell of a table."""
    try:
        return str(origin_of(kind))
    except InputError as error:
        return f"refused: {first_line(error)}".replace("|", "\\|")


def _row(family: str, kind: type[Method]) -> str:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    name = f"`{fields.pop('name').default}`" if "name" in fields else "-"
    texts = [_field_text(field, field.name in kind.ours) for field in fields.values()]
    return f"| {family} | {name} | {_tasks(kind)} | {kind.paper or '-'} | {', '.join(texts) or '-'} |"


def _tasks(kind: type[Method]) -> str:
    """Return the tasks of a method, a network or a data set."""
    if issubclass(kind, DataSource):
        return kind.task
    return TASKS[kind.tasks]


def _field_text(field: dataclasses.Field[Any], ours: bool) -> str:
    # The default of a nested method is left out: the method has its own row, or does nothing by default (a schedule).
    alone = field.default is dataclasses.MISSING or dataclasses.is_dataclass(field.default)
    text = field.name if alone else f"{field.name} {_plain(field.default)}"
    return f"*{text}*" if ours else text


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:.3g}"
    return "none" if value is None or value == () else str(value)


def networks_table() -> str:
    """Return a Markdown table of the architectures with their measured costs, then torchvision's model names."""
    rows = [_network_row(parse(text)) for text in NETWORKS]
    names, dense = (", ".join(f"`{model}`" for model in sorted(models)) for models in (SMALLEST, SEGMENTATION))
    accepted = f"`torchvision:` accepts these models: {names}; for segmentation {dense}."
    return "\n".join([NETWORKS_HEADER, *rows, "", accepted]) + "\n"


def _network_row(network: Network) -> str:
    cost = cost_of(network, SHAPE, CLASSES)
    cells = [f"`{label(network)}`", network.paper or "-", short(cost.parameters), short(cost.multiply_adds)]
    cells += [str(cost.features), "yes" if cost.normalised else "no", str(network.min_size)]
    return f"| {' | '.join(cells)} |"
