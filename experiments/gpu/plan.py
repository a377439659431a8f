"""The parts of the check, and how they share nine minutes. Part (g) also gets the time that others do not use."""

from gpu.ceilings import ceilings
from gpu.draws import draws
from gpu.parts import Part
from gpu.recipes import arms, published
from gpu.segmentation import segmentation
from gpu.steps import steps
from gpu.suite import suite
from gpu.teacher import teacher
from gpu.waits import waits

PARTS = (
    Part("a", "ceilings", 15, ceilings),
    Part("b", "tests that need a GPU", 60, suite),
    Part("c", "nothing waits inside a step", 35, waits),
    Part("d", "steps", 110, steps),
    Part("e", "draws", 5, draws),
    Part("f", "teacher", 120, teacher),
    Part("g", "the full recipe", 125, published, takes_rest=True),
    Part("h", "arms at a hundredth", 45, arms),
    Part("i", "segmentation", 25, segmentation),
)
"""Parts in the order in which they run; the seconds are planned, not measured."""
LETTERS = "".join(part.letter for part in PARTS)
NEED_DATA = "fgh"
MINUTES = 9.0
