"""`condkd dashboard` on a search, in a browser: both pages show the contents of the study and of the records.

First during the search, whose driver is stopped while the pages are read; then after its end.
"""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from runs.small_search import SPACE, command, environment, stored
from tensorboard.plugins.hparams.metadata import SESSION_END_INFO_TAG

from condkd_ray.core.records import read_records
from condkd_ray.report.tensorboard.writer import run_name
from condkd_ray.study.objective import Objective
from condkd_ray.study.space import parse
from condkd_ray.study.storage import open_storage
from condkd_ray.study.study import Study

# Parts of a page are drawn one after the other: `expect` repeats a check until it holds.
expect = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (pip install '.[test]')").expect

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.ray]
TRIALS = 5


@dataclass
class Shown:
    """A search and the addresses of its two pages."""

    out: Path
    driver: subprocess.Popen[str]
    optuna: str
    tensorboard: str

    def runs(self, of: bytes = b"proxy/agreement") -> set[str]:
        """Return the names of the trials whose event files contain `of`."""
        paths = self.out.glob("tensorboard/ipc2/*/seed*/events*")
        return {str(path.parent.relative_to(self.out / "tensorboard")) for path in paths if of in path.read_bytes()}

    def half_way(self) -> bool:
        """Return whether some trials have ended, in TensorBoard too, and a running one has written rounds."""
        records = {run_name(record) for record in read_records(self.out)}
        return len(records) >= 2 and self.runs(SESSION_END_INFO_TAG.encode()) == records < self.runs()

    def run_to_end(self) -> None:
        """Let the driver continue to its end, if it has not ended."""
        if self.driver.poll() is None:
            self.driver.send_signal(signal.SIGCONT)
            assert self.driver.wait(240) == 0


@pytest.fixture(scope="module")
def running(chromium, tmp_path_factory) -> Iterator[Shown]:
    """A search whose driver is stopped after some trials."""
    home = tmp_path_factory.mktemp("search")
    # The trials are longer than in other tests, because events are written every two seconds.
    (home / "small.yaml").write_text(SPACE.replace("rounds: 4", "rounds: 12"))
    flags = ("--trials", str(TRIALS))
    driver = subprocess.Popen(command(home, "out", *flags), env=environment(), stdout=subprocess.DEVNULL)
    shown = Shown(home / "out", driver, "", "")
    try:
        stop_half_way(shown)
        with served(shown.out) as addresses:
            shown.optuna, shown.tensorboard = addresses
            yield shown
    finally:
        driver.send_signal(signal.SIGCONT)
        driver.terminate()
        driver.wait(60)


@pytest.fixture(scope="module")
def ended(running) -> Shown:
    """The same search after its end."""
    running.run_to_end()
    return running


def stop_half_way(shown: Shown) -> None:
    while True:
        while not ((shown.out / "records").is_dir() and shown.half_way()):
            assert shown.driver.poll() is None, "it has ended too soon"
            time.sleep(0.1)
        shown.driver.send_signal(signal.SIGSTOP)
        # The running trial may have ended in the meantime.
        if shown.half_way():
            return
        shown.driver.send_signal(signal.SIGCONT)


@contextmanager
def served(out: Path) -> Iterator[list[str]]:
    """Run the servers in the block; yield the addresses of both pages."""
    arguments = [sys.executable, "-m", "condkd_ray", "dashboard", str(out)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as servers:
        try:
            yield [servers.stdout.readline().split()[1] for _ in range(2)]
        finally:
            servers.terminate()


def test_the_optuna_dashboard_shows_the_study_during_the_search(tab, running):
    study = stored(running.out)
    states = [trial.state for trial in study.trials]
    assert TrialState.RUNNING in states
    check_study(tab, running.optuna, study)
    tab.goto(f"{running.optuna}dashboard/studies/0/trials")
    tab.get_by_text(f"{len(states)} Trials").wait_for()
    for state in set(states):
        # The details of the first trial, beside the list, show its state once more.
        extra = state == states[0]
        expect(tab.get_by_text(state.name.capitalize(), exact=True)).to_have_count(states.count(state) + extra)
    assert requests_only(tab, running.optuna)


def test_tensorboard_shows_the_records_during_the_search(tab, running):
    records = {run_name(record): record for record in read_records(running.out)}
    rows = hparams(tab, running.tensorboard, running.runs(), set(records))
    assert set(rows) == running.runs() > set(records)
    check_rows(rows, records)
    for name in set(rows) - set(records):
        assert rows[name]["student/test_accuracy"] == ""
        assert 0 <= float(rows[name]["proxy/agreement"]) <= 1
    assert requests_only(tab, running.tensorboard)


def test_the_optuna_dashboard_shows_the_study_after_its_end(tab, ended):
    study = stored(ended.out)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * TRIALS
    check_study(tab, ended.optuna, study)
    for row in study.best_params:
        expect(tab.locator("#graph-hyperparameter-importances")).to_contain_text(row)
    tab.locator("#graph-hyperparameter-importances .bars .point").first.wait_for(state="attached")
    # Plotly does not draw all points of a line with many.
    expect(tab.locator("#graph-intermediate-values .scatterlayer .trace")).to_have_count(TRIALS)
    tab.goto(f"{ended.optuna}dashboard/studies/0/analytics")
    expect(tab.locator("#plot-slice .point")).to_have_count(TRIALS)
    tab.goto(f"{ended.optuna}dashboard/studies/0/smartSelection")
    for axis in ("proxy/agreement", "inversion/bn_weight", "guidance/name"):
        expect(tab.locator(".parcoords .axis-title").get_by_text(axis, exact=True)).to_have_count(1)
    assert tab.errors == []


def test_a_trial_shows_its_images_and_its_config(tab, ended):
    tab.goto(f"{ended.optuna}dashboard/studies/0/trials?numbers={stored(ended.out).best_trial.number}")
    image = tab.locator("img[src*=artifacts]")
    image.wait_for()
    tab.wait_for_function("document.querySelector('img[src*=artifacts]').naturalWidth > 0")
    expect(tab.get_by_text(re.compile(r"\.yaml$"))).to_have_count(1)


def test_the_optuna_dashboard_shows_the_front_of_two_objectives(tab, ended):
    space = parse(SPACE)
    study = Study(open_storage(None, ended.out), "two", space, Objective(("proxy/agreement", "memory/bytes")))
    for values in ([0.9, 100.0], [0.8, 50.0], [0.7, 200.0]):
        study.complete(study.propose().number, values)
    tab.goto(f"{ended.optuna}dashboard/studies/1")
    tab.get_by_text("Pareto Front", exact=True).first.wait_for()
    expect(tab.locator("#graph-pareto-front .point")).to_have_count(3)
    tab.get_by_text("Best Trials", exact=True).wait_for()
    best = ["Objective Values = [0.9, 100]", "Objective Values = [0.8, 50]"]
    expect(tab.get_by_text("Objective Values =")).to_have_text(best)


def test_tensorboard_shows_the_records_after_the_search(tab, ended):
    records = {run_name(record): record for record in read_records(ended.out)}
    assert len(records) == TRIALS
    rows = hparams(tab, ended.tensorboard, set(records), set(records))
    assert set(rows) == set(records)
    check_rows(rows, records)
    # Columns that differ between trials come before those that are equal.
    shown = list(next(iter(rows.values())))
    assert shown.index("inversion.bn_weight") < shown.index("condensation")


def test_tensorboard_shows_the_custom_charts_and_the_image_grids(tab, ended):
    tab.goto(f"{ended.tensorboard}#custom_scalars")
    charts = tab.locator("tf-custom-scalar-multi-line-chart-card")
    for place, title in enumerate(["student/test_accuracy", "student/val_accuracy", "proxy/agreement", "proxy/kl"]):
        expect(charts.nth(place)).to_have_js_property("title", title)
    tab.goto(f"{ended.tensorboard}#images")
    tab.locator("tf-image-loader img").first.wait_for()
    widths = "found => found.map(image => image.naturalWidth)"
    pictures = tab.locator("tf-image-loader img")
    found = until(lambda: pictures.evaluate_all(widths), lambda all_: len(all_) == TRIALS and min(all_) > 0)
    assert min(found) > 100


def test_the_projector_shows_the_points_and_their_legend_after_one_click(tab, ended):
    (points,) = (ended.out / "tensorboard").glob("ipc2/*/*/tensors.tsv")
    # TensorBoard reads embeddings once, and no trial had points when the first server started.
    with served(ended.out) as (_, tensorboard):
        tab.goto(f"{tensorboard}#projector")
        frame = tab.frame_locator("iframe").frame_locator("iframe")
        frame.get_by_text(f"Points: {len(points.read_text().splitlines())}").wait_for()
        frame.locator("vz-projector-bookmark-panel .state-radio [role=button]").first.click()
        legend = frame.locator("vz-projector-data-panel")
        legend.get_by_text("condensed ipc 2").first.wait_for()
        expect(legend.get_by_text("real", exact=True)).to_have_count(1)
        tab.goto("about:blank")


def check_study(tab: Any, address: str, study: Any) -> None:
    """Check the number and value of the best trial on the first page, and that each complete trial has a point."""
    tab.goto(f"{address}dashboard/studies/0")
    tab.get_by_text(re.compile("Best Trial")).first.wait_for()
    expect(tab.get_by_text(f"Best Trial (number={study.best_trial.number})")).to_have_count(1)
    expect(tab.get_by_text(str(study.best_value), exact=True)).to_have_count(1)
    complete_ones = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    expect(tab.locator("#plot-history .point")).to_have_count(len(complete_ones))


RUNNING_COLUMNS = ("proxy/agreement",)
ENDED_COLUMNS = (
    *RUNNING_COLUMNS,
    "arm",
    "student/test_accuracy",
    "student/val_accuracy",
    "inversion.bn_weight",
)
"""Columns that the tests read in the row of an ended trial."""


def hparams(tab: Any, address: str, names: set[str], ended: set[str]) -> dict[str, dict[str, str]]:
    """Return the rows of the HParams tab by run, once each of `names` has a row with all columns that are read.

    `ended` are the names of trials that have ended.
    TensorBoard reads new events every five seconds and draws a row cell by cell.
    """

    def complete(rows: dict[str, dict[str, str]]) -> bool:
        return set(rows) == names and all(
            rows[name].get(column) for name in names for column in (ENDED_COLUMNS if name in ended else RUNNING_COLUMNS)
        )

    return until(lambda: drawn(tab, address), complete)


def drawn(tab: Any, address: str) -> dict[str, dict[str, str]]:
    """Return the rows that the HParams tab shows now: the cells of each row by the name of their column."""
    tab.goto(f"{address}#hparams")
    tab.reload()
    cells = tab.locator("tf-hparams-table-view vaadin-grid-cell-content")
    tab.locator("vaadin-grid-cell-content", has_text="ipc2/").first.wait_for()
    time.sleep(0.5)
    texts = [text.strip() for text in cells.all_inner_texts()]
    head = texts[: texts.index("")] if "" in texts else texts
    begins = [place for place, text in enumerate(texts) if text.startswith("ipc2/")]
    return {texts[begin]: dict(zip(head, texts[begin : begin + len(head)], strict=False)) for begin in begins}


def check_rows(rows: dict[str, dict[str, str]], records: dict[str, Any]) -> None:
    for name, record in records.items():
        assert rows[name]["arm"] == record.arm
        for metric in ("student/test_accuracy", "proxy/agreement", "student/val_accuracy"):
            assert float(rows[name][metric]) == pytest.approx(record.metrics[metric], rel=1e-4)
        weight = record.config["inversion"]["bn_weight"]
        assert float(rows[name]["inversion.bn_weight"]) == pytest.approx(weight, rel=1e-4)


def until(look: Any, holds: Any, seconds: float = 90.0) -> Any:
    """Call `look` until `holds` accepts its result or the time is over; return the last result."""
    begin = time.monotonic()
    while not holds(found := look()) and time.monotonic() - begin < seconds:
        time.sleep(1)
    return found


def requests_only(tab: Any, address: str) -> bool:
    """Return whether all requests went to the server at this address."""
    return all(url.startswith((address, "data:", "blob:")) for url in tab.requests)
