"""What the cluster costs, measured: a figure a function, rows of results, and the table made of them."""

from collections.abc import Callable, Iterator
from typing import Literal

from benchmark.drawing import blocked, draw, reader
from benchmark.rows import Measured
from benchmark.sweeping import driver, raylets, sharing, startup, sweep, waiting

Figure = Literal["draw", "blocked", "reader", "startup", "waiting", "sharing", "raylets", "driver", "sweep"]

_ORDER = (draw, blocked, reader, startup, waiting, sharing, raylets, driver, sweep)
FIGURES: dict[str, Callable[[], Iterator[Measured]]] = {figure.__name__: figure for figure in _ORDER}
"""What is measured, in this order."""
