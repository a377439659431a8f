"""pytest plug-in that skips test files if a package is missing that GPU machines may lack.

These are packages for the cluster and the command line. The remaining tests cover computations in one process.
"""

import re
from collections.abc import Generator

import pytest

MISSING = re.compile(r"No module named '(ray|optuna|tyro)[.']")


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Mark a file that cannot be imported without such a package as skipped, with the package as reason."""
    report = yield
    missing = MISSING.search(str(report.longrepr)) if report.failed else None
    if missing:
        report.outcome, report.longrepr = "skipped", (str(collector.path), 0, f"needs {missing[1]}")
    return report
