"""The compute of the published systems, counted from their networks, and the table of it."""

from dataclasses import replace

import pytest
from places import DOCS

from condkd_ray.methods.condensation import RandomReal
from condkd_ray.methods.inversion import NoInversion
from condkd_ray.models.cost import cost_of
from condkd_ray.runs.compute import compute, table
from condkd_ray.runs.presets import NAMES, published


def test_the_work_of_a_recipe_is_counted():
    fast, shape = published("fast"), (3, 32, 32)
    teacher, student = (cost_of(net, shape, 10).multiply_adds for net in (fast.teacher.network, fast.student))
    # Linear 256 -> 128 x 8 x 8, and convolutions 128 -> 128 at 16 x 16, 128 -> 64 and 64 -> 3 at 32 x 32. A convolution
    # after an upsampling has four different taps instead of nine.
    generator = 256 * 128 * 64 + 4 * (128 * 128 * 256 + 128 * 64 * 1024) + 9 * 64 * 3 * 1024
    synthesis = 220 * 10 * 256 * (3 * generator + 2 * teacher) + 200 * 10 * 256 * 2 * student
    found = compute(fast)
    assert (found.images, found.student_images) == (220 * 256, 200 * 400 * 256)
    assert found.multiply_adds == synthesis + 200 * 400 * 256 * (teacher + 3 * student)
    plain = replace(fast, distiller=replace(fast.distiller, augment=False))
    assert compute(plain).multiply_adds == found.multiply_adds - (200 * 400 - 220) * 256 * teacher


@pytest.fixture(scope="module")
def text() -> str:
    """The table, which takes seconds to compute."""
    return table()


def test_the_documentation_has_the_current_table(text):
    page = (DOCS / "methods.md").read_text(encoding="utf-8")
    stored = page.split("<!-- condkd methods --published -->\n")[1].split("<!-- end published -->")[0]
    assert stored == text, "the table in docs/methods.md is old: put in what `condkd methods --published` prints"


def test_the_table_has_one_row_per_system(text):
    rows = text.splitlines()
    assert [row.split("`")[1] for row in rows[2 : 2 + len(NAMES)]] == list(NAMES)
    assert rows[2 + NAMES.index("fast")].startswith("| `fast` | Fang et al., AAAI 2022 | 200 + 20 | 56.3 k | 20.5 M |")


def test_without_synthetic_images_only_the_student_and_its_teacher_compute():
    fast = published("fast")
    condensed = {"condensation": RandomReal(ipc=10), "inversion": NoInversion()}
    real = replace(fast, **condensed, distiller=replace(fast.distiller, condensed_share=1.0))
    teacher, student = (cost_of(net, (3, 32, 32), 10).multiply_adds for net in (fast.teacher.network, fast.student))
    found = compute(real)
    assert (found.images, found.student_images) == (0, 200 * 400 * 256)
    assert found.multiply_adds == pytest.approx(200 * 400 * 256 * (teacher + 3 * student), rel=1e-12)


@pytest.mark.parametrize("name", ["fast", "dafl", "pre_dfkd"])
def test_twice_the_rounds_are_twice_the_student_images_and_at_most_twice_the_compute(name):
    recipe = published(name)
    whole, twice = compute(recipe), compute(replace(recipe, rounds=2 * recipe.rounds))
    assert twice.student_images == 2 * whole.student_images
    # Warm-up rounds stay as they are.
    assert whole.multiply_adds < twice.multiply_adds <= 2 * whole.multiply_adds
    if not recipe.inversion.warm_up:
        assert twice.multiply_adds == 2 * whole.multiply_adds


def test_a_generative_memory_adds_its_own_training_and_decoding():
    recipe = published("pre_dfkd")
    without = compute(replace(recipe, memory=published("dafl").memory))
    less = compute(replace(recipe, memory=replace(recipe.memory, steps=1)))
    assert without.multiply_adds < less.multiply_adds
    assert without.images == less.images == compute(recipe).images
