"""What the cluster costs, measured: a figure a function, rows of results, and the table made of them."""

from collections.abc import Callable, Iterator
from typing import Literal

from benchmark.drawing import blocked, draw, reader
from benchmark.rows import Measured
from benchmark.scheduling import driver, raylets
from benchmark.sharing import sharing
from benchmark.sweeping import startup, sweep, waiting

Figure = Literal["draw", "blocked", "reader", "startup", "waiting", "sharing", "raylets", "driver", "sweep"]

FIGURES: dict[Figure, Callable[[], Iterator[Measured]]] = {
    "draw": draw,
    "blocked": blocked,
    "reader": reader,
    "startup": startup,
    "waiting": waiting,
    "sharing": sharing,
    "raylets": raylets,
    "driver": driver,
    "sweep": sweep,
}
"""What is measured, in this order."""
