"""All figures of `benchmark_cluster.py`, in the order in which they are measured."""

from collections.abc import Callable, Iterator

from benchmark import figures, wide
from benchmark.bookkeeping import bookkeeping
from benchmark.rows import Measured

FIGURES: dict[str, Callable[[], Iterator[Measured]]] = {
    **figures.FIGURES,
    "bookkeeping": bookkeeping,
    **wide.FIGURES,
}
