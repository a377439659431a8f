"""What the cluster costs, measured: a figure a function, rows of results, and the table made of them."""

from collections.abc import Callable, Iterator
from typing import Literal

from condkd_ray.cluster.benchmark.drawing import blocked, draw, reader
from condkd_ray.cluster.benchmark.rows import Measured
from condkd_ray.cluster.benchmark.scheduling import driver, raylets
from condkd_ray.cluster.benchmark.sharing import sharing
from condkd_ray.cluster.benchmark.sweeping import startup, sweep, waiting

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
