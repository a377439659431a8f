"""A plug-in of pytest: test files that need a package which a GPU machine may lack are skipped there.

These are packages of the cluster and of the command line. What remains tests what one process computes.
"""

import re
from collections.abc import Generator

import pytest

MISSING = re.compile(r"No module named '(ray|optuna|tyro)[.']")


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Of a file that could not be imported for want of such a package: skipped, and why."""
    report = yield
    missing = MISSING.search(str(report.longrepr)) if report.failed else None
    if missing:
        report.outcome, report.longrepr = "skipped", (str(collector.path), 0, f"needs {missing[1]}")
    return report
