"""Compute of the published systems: numbers of images and multiply-adds, counted from their networks; and a table."""

from dataclasses import dataclass
from typing import Any

from condkd_ray.methods.inversion import Cmi, NoInversion
from condkd_ray.methods.inversion.pixelwise import Pixelwise
from condkd_ray.methods.inversion.unconditional import Unconditional
from condkd_ray.methods.memory import Generative
from condkd_ray.models.cost import cost_of, meta_cost, short
from condkd_ray.models.generator import Generator, vae
from condkd_ray.runs.presets import NAMES, published
from condkd_ray.trial.config import TrialConfig

LEGEND = (
    "Rounds: of the student, plus warm-up rounds, in which only images are made. Student images: counted each time the "
    "student is trained on them. Multiply-adds: of all networks, forwards and backwards, ResNet-34 -> ResNet-18 on "
    "3x32x32 images."
)
HEADER = (
    "| system | published in | rounds | images made | student images | multiply-adds | recipe |\n"
    "|---|---|--:|--:|--:|--:|---|"
)


@dataclass(frozen=True)
class Compute:
    """Compute of a recipe on given networks."""

    images: int
    """Synthetic images made, including the warm-up's."""
    student_images: int
    """Images that the student is trained on, each counted as often as it is used."""
    multiply_adds: float
    """Multiply-adds of all networks, forwards and backwards; convolutions and linear layers only."""


def compute(recipe: TrialConfig, image_shape: tuple[int, int, int] = (3, 32, 32), num_classes: int = 10) -> Compute:
    """Return the compute of `recipe`, counted from its networks.

    The gradient with respect to a network's input costs as much as its forward pass, and the gradient with respect to
    its weights costs as much again; frozen networks need only the first.
    """
    teacher, student = (
        cost_of(network, image_shape, num_classes).multiply_adds for network in (recipe.teacher.network, recipe.student)
    )
    inversion, distiller = recipe.inversion, recipe.distiller
    made = recipe.total_rounds * inversion.images_per_round
    used = recipe.rounds * distiller.steps * distiller.batch
    each = (teacher if distiller.runs_teacher else 0) + 3 * student
    total = used * each + _synthesis(recipe, image_shape, num_classes, teacher, student)
    if isinstance(recipe.memory, Generative):
        total += _replay(recipe, recipe.memory, image_shape, teacher)
    return Compute(made, used, total)


def _synthesis(recipe: TrialConfig, shape: tuple[int, int, int], num_classes: int, teacher: int, student: int) -> float:
    """Return the multiply-adds of all inversion steps, and of the final pass that computes the images' logits."""
    inversion = recipe.inversion
    if isinstance(inversion, NoInversion):
        return 0.0
    generator = 0
    if not isinstance(inversion, Pixelwise):
        sizes: Any = inversion
        latent = sizes.latent + (num_classes if getattr(inversion, "conditional", False) else 0)
        generator = meta_cost(lambda: Generator(latent, sizes.width, shape), (latent,))
    looks = 4 if isinstance(inversion, Cmi) else 2
    seen = inversion.steps * getattr(inversion, "loops", 1) * inversion.batch  # type: ignore[attr-defined]
    step = 3 * generator + looks * teacher
    total = recipe.total_rounds * seen * step + recipe.rounds * seen * (2 * student if inversion.uses_student else 0)
    if isinstance(inversion, Unconditional):
        total += recipe.rounds * inversion.images_per_round * (generator + teacher)
    elif not recipe.distiller.runs_teacher:
        total += recipe.total_rounds * inversion.images_per_round * teacher
    return total


def _replay(recipe: TrialConfig, memory: Generative, shape: tuple[int, int, int], teacher: int) -> float:
    """Return the multiply-adds of PRE-DFKD's memory: its own training steps and the decoding of recalled images."""
    encoder, decoder = (
        meta_cost(lambda part=part: vae(memory.latent, memory.width, shape)[part], size)
        for part, size in ((0, shape), (1, (memory.latent,)))
    )
    recalled = round(memory.replay * memory.batch)
    learnt = memory.steps * (memory.batch + recalled) * 3 * (encoder + decoder + teacher)
    moved = memory.steps * recalled * (3 * decoder + 2 * teacher)
    drawn = recipe.distiller.steps * round(memory.share * recipe.distiller.batch) * 3 * (decoder + teacher)
    return recipe.rounds * (learnt + moved + drawn)


def table() -> str:
    """Return a Markdown table of the published recipes with their compute.

    The source of each line of a recipe is in its file.
    """
    rows = []
    for name in NAMES:
        recipe = published(name)
        taken, before = compute(recipe), recipe.inversion.warm_up
        rounds = f"{recipe.rounds}" + (f" + {before}" if before else "")
        # A system whose name is that of its memory shares its inversion with another system.
        paper = recipe.memory.paper or recipe.inversion.paper
        counts = map(short, (taken.images, taken.student_images, taken.multiply_adds))
        rows.append(f"| {' | '.join([f'`{name}`', paper, rounds, *counts, f'`published/{name}.yaml`'])} |")
    return "\n".join([HEADER, *rows, "", LEGEND]) + "\n"
