"""`condkd dashboard` on a search in a browser: what both pages say is what the study and the records hold.

First while the search runs, its driver stopped for as long as is looked; then on the same search, ended.
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

# Parts of a page come after one another: `expect` looks again until what is wanted is there.
expect = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (pip install '.[test]')").expect

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.ray]
TRIALS = 5


@dataclass
class Shown:
    """A search, and where its two pages are."""

    out: Path
    driver: subprocess.Popen[str]
    optuna: str
    tensorboard: str

    def runs(self, of: bytes = b"proxy/agreement") -> set[str]:
        """Names of the trials of which TensorBoard has been told something."""
        found = self.out.glob("tensorboard/ipc2/*/seed*/events*")
        return {str(one.parent.relative_to(self.out / "tensorboard")) for one in found if of in one.read_bytes()}

    def half_way(self) -> bool:
        """Whether some trials have ended, in TensorBoard too, and one that runs has written of its rounds."""
        records = {run_name(record) for record in read_records(self.out)}
        return len(records) >= 2 and self.runs(SESSION_END_INFO_TAG.encode()) == records < self.runs()

    def go_on(self) -> None:
        """To its end, if it is not there."""
        if self.driver.poll() is None:
            self.driver.send_signal(signal.SIGCONT)
            assert self.driver.wait(240) == 0


@pytest.fixture(scope="module")
def running(chromium, tmp_path_factory) -> Iterator[Shown]:
    """A search whose driver is stopped half-way."""
    home = tmp_path_factory.mktemp("search")
    # Longer trials than elsewhere: events are written every two seconds.
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
    """The same search, when it has ended."""
    running.go_on()
    return running


def stop_half_way(shown: Shown) -> None:
    while True:
        while not ((shown.out / "records").is_dir() and shown.half_way()):
            assert shown.driver.poll() is None, "it has ended too soon"
            time.sleep(0.1)
        shown.driver.send_signal(signal.SIGSTOP)
        # The trial may have come to its end in between.
        if shown.half_way():
            return
        shown.driver.send_signal(signal.SIGCONT)


@contextmanager
def served(out: Path) -> Iterator[list[str]]:
    """The addresses of both pages, while the servers run."""
    arguments = [sys.executable, "-m", "condkd_ray", "dashboard", str(out)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as servers:
        try:
            yield [servers.stdout.readline().split()[1] for _ in range(2)]
        finally:
            servers.terminate()


def test_the_optuna_dashboard_tells_the_study_while_it_runs(tab, running):
    study = stored(running.out)
    states = [trial.state for trial in study.trials]
    assert TrialState.RUNNING in states
    check_study(tab, running.optuna, study)
    tab.goto(f"{running.optuna}dashboard/studies/0/trials")
    tab.get_by_text(f"{len(states)} Trials").wait_for()
    for state in set(states):
        # The first trial's page, shown beside the list, tells its state once more.
        extra = state == states[0]
        expect(tab.get_by_text(state.name.capitalize(), exact=True)).to_have_count(states.count(state) + extra)
    assert only_asked_for(tab, running.optuna)


def test_tensorboard_tells_the_records_while_it_runs(tab, running):
    records = {run_name(record): record for record in read_records(running.out)}
    rows = hparams(tab, running.tensorboard, running.runs(), set(records))
    assert set(rows) == running.runs() > set(records)
    check_rows(rows, records)
    for name in set(rows) - set(records):
        assert rows[name]["student/test_accuracy"] == ""
        assert 0 <= float(rows[name]["proxy/agreement"]) <= 1
    assert only_asked_for(tab, running.tensorboard)


def test_the_optuna_dashboard_tells_the_study_at_its_end(tab, ended):
    study = stored(ended.out)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * TRIALS
    check_study(tab, ended.optuna, study)
    for row in study.best_params:
        expect(tab.locator("#graph-hyperparameter-importances")).to_contain_text(row)
    tab.locator("#graph-hyperparameter-importances .bars .point").first.wait_for(state="attached")
    # Of a line with many points Plotly draws some.
    expect(tab.locator("#graph-intermediate-values .scatterlayer .trace")).to_have_count(TRIALS)
    tab.goto(f"{ended.optuna}dashboard/studies/0/analytics")
    expect(tab.locator("#plot-slice .point")).to_have_count(TRIALS)
    tab.goto(f"{ended.optuna}dashboard/studies/0/smartSelection")
    for axis in ("proxy/agreement", "inversion/bn_weight", "guidance/name"):
        expect(tab.locator(".parcoords .axis-title").get_by_text(axis, exact=True)).to_have_count(1)
    assert tab.complaints == []


def test_a_trial_shows_its_images_and_its_config(tab, ended):
    tab.goto(f"{ended.optuna}dashboard/studies/0/trials?numbers={stored(ended.out).best_trial.number}")
    image = tab.locator("img[src*=artifacts]")
    image.wait_for()
    tab.wait_for_function("document.querySelector('img[src*=artifacts]').naturalWidth > 0")
    expect(tab.get_by_text(re.compile(r"\.yaml$"))).to_have_count(1)


def test_of_two_objectives_it_shows_the_front(tab, ended):
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


def test_tensorboard_tells_the_records_at_the_end(tab, ended):
    records = {run_name(record): record for record in read_records(ended.out)}
    assert len(records) == TRIALS
    rows = hparams(tab, ended.tensorboard, set(records), set(records))
    assert set(rows) == set(records)
    check_rows(rows, records)
    # What differs stands before what all trials have in common.
    shown = list(next(iter(rows.values())))
    assert shown.index("inversion.bn_weight") < shown.index("condensation")


def test_tensorboard_has_our_charts_and_pictures(tab, ended):
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


def test_the_projector_colours_the_points_by_one_click(tab, ended):
    (points,) = (ended.out / "tensorboard").glob("ipc2/*/*/tensors.tsv")
    # TensorBoard reads embeddings once, and no trial had ended well when the other one started.
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
    """The first page: the number and value of the best trial, and a point for each that is complete."""
    tab.goto(f"{address}dashboard/studies/0")
    tab.get_by_text(re.compile("Best Trial")).first.wait_for()
    expect(tab.get_by_text(f"Best Trial (number={study.best_trial.number})")).to_have_count(1)
    expect(tab.get_by_text(str(study.best_value), exact=True)).to_have_count(1)
    complete_ones = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    expect(tab.locator("#plot-history .point")).to_have_count(len(complete_ones))


OF_ANY = ("proxy/agreement",)
OF_AN_ENDED_ONE = (
    *OF_ANY,
    "arm",
    "student/test_accuracy",
    "student/val_accuracy",
    "inversion.bn_weight",
)
"""Columns of a row that the tests read."""


def hparams(tab: Any, address: str, names: set[str], ended: set[str]) -> dict[str, dict[str, str]]:
    """The rows of the HParams tab by run, once there is one for each of `names`, with all that is read of it.

    Those of `ended` have ended.
    TensorBoard looks for news every five seconds, and draws a row cell by cell.
    """

    def there(rows: dict[str, dict[str, str]]) -> bool:
        return set(rows) == names and all(
            rows[name].get(column) for name in names for column in (OF_AN_ENDED_ONE if name in ended else OF_ANY)
        )

    return until(lambda: drawn(tab, address), there)


def drawn(tab: Any, address: str) -> dict[str, dict[str, str]]:
    """What the HParams tab shows now: the cells of each row by the name of their column."""
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


def until(look: Any, fine: Any, seconds: float = 90.0) -> Any:
    """What is seen once it is fine, or at last."""
    begin = time.monotonic()
    while not fine(found := look()) and time.monotonic() - begin < seconds:
        time.sleep(1)
    return found


def only_asked_for(tab: Any, address: str) -> bool:
    """Whether nothing but the server on this machine was asked."""
    return all(asked.startswith((address, "data:", "blob:")) for asked in tab.asked)
