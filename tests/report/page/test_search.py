"""The Pareto front that a search's page shows."""

import numpy as np
import pytest

from condkd_ray.report.page.search import front


@pytest.mark.parametrize(
    ("directions", "rows"),
    [
        (["maximize", "minimize"], [0, 1, 3]),
        (["minimize", "minimize"], [0, 3, 4]),
        (["maximize", "maximize"], [1]),
        (["minimize", "maximize"], [1, 4, 5]),
    ],
)
def test_front_lists_rows_that_no_other_row_dominates(directions, rows):
    points = np.array([[0.5, 1.0], [0.9, 5.0], [0.5, 2.0], [0.5, 1.0], [0.1, 3.0], [0.2, 4.0]])
    assert front(points, directions) == rows


@pytest.mark.parametrize("seed", range(5))
def test_front_equals_the_definition(seed):
    rng = np.random.default_rng(seed)
    points = rng.integers(0, 4, size=(30, 3)).astype(float)
    costs = points * [1, -1, 1]
    dominated = [(np.all(costs <= row, 1) & np.any(costs < row, 1)).any() for row in costs]
    found = front(points, ["minimize", "maximize", "minimize"])
    assert found == np.flatnonzero(np.logical_not(dominated)).tolist()
