"""A parser of pages, and an example search with its study."""

from html.parser import HTMLParser
from pathlib import Path

import optuna

from condkd_ray.study.storage import open_storage
from report.report_factory import make_record

SEARCH = {"objective": ["proxy/agreement"], "directions": ["maximize"], "parameters": ["guidance/weight"]}


class Seen(HTMLParser):
    """The tags, attributes, cells of each table row, and text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self._cell = False
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self._cell = tag in ("td", "th") or (self._cell and tag in ("b", "small"))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data):
        self.text += data
        if self._cell:
            self.rows[-1][-1] += data


def searched(out: Path, *, several: bool = False) -> tuple[list, dict]:
    """Store the study of a search of twelve trials, the best with weight 3; return its records and description."""
    directions = ["maximize", "minimize"][: 1 + several]
    study = optuna.create_study(study_name="search", storage=open_storage(None, out), directions=directions)
    weights = [1.0, 9.0, 3.0, 0.3, 5.0, 7.0, 2.0, 8.0, 4.0, 0.1, 6.0, 0.2]
    records = []
    for number, weight in enumerate(weights):
        values = [1 - (weight - 3) ** 2 / 100, 10 + weight]
        space = {"guidance/weight": optuna.distributions.FloatDistribution(0.1, 10, log=True)}
        params = {"guidance/weight": weight}
        trial = optuna.trial.create_trial(params=params, distributions=space, values=values[: 1 + several])
        study.add_trial(trial)
        metrics = {"proxy/agreement": values[0], "student/test_accuracy": values[0] - 0.1 + 0.001 * number,
                   "time/wall_seconds": values[1], "time/inversion_seconds": weight}  # fmt: skip
        tree = {"guidance": {"weight": weight}}
        history = [{"round": 1.0, "proxy/agreement": 0.5}, {"round": 2.0, "proxy/agreement": values[0] + 0.002},
                   {"round": 3.0, "proxy/agreement": values[0]}]  # fmt: skip
        records.append(make_record(f"trial {number}", 5, 0, config_hash=f"{number:016x}", proxy_hash="p", config=tree,
                                   metrics=metrics, history=history, predictions=[]))  # fmt: skip
    about = SEARCH | {"objective": ["proxy/agreement", "time/wall_seconds"][: 1 + several], "directions": directions}
    return records, about
