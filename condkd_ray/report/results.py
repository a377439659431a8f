"""Results of an experiment or a search: records, statistics, data frames, figures and kept trials."""

from __future__ import annotations

import argparse
import html
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from condkd_ray.core.locks import busy
from condkd_ray.core.method import require
from condkd_ray.core.records import Manifest, Record, Status, newest, planned, read_all_records, read_manifest
from condkd_ray.core.task import Score
from condkd_ray.report import statistics
from condkd_ray.report.statistics import Difference, Ranking
from condkd_ray.study.objective import at_end, parse_constraints

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from matplotlib.figure import Figure
    from optuna.trial import FrozenTrial

    from condkd_ray.report.kept import Trained

CALL = "condkd_ray."
"""Prefix of the command in a manifest if the run was a call in Python, which cannot be repeated in a shell."""
STUDY = "search"
"""Default name of a study."""
Frame = Literal["trials", "rounds", "predictions", "comparisons"]


@dataclass(frozen=True, repr=False)
class Results:
    """The comparable trials of an experiment or a search, with the statistics of the tables and the page.

    All values except the records are computed on first use. While trials are still running, the results contain the
    trials that have ended, and `interim` is not empty. Accuracies are fractions, times are in seconds.
    """

    out: Path
    manifest: Manifest
    """Plan, teacher, data set and notes. The notes give the number of stored trials that are not in `records`."""
    records: Sequence[Record]
    """The planned trials of the newest version of the numbers that occurs, sorted by arm, IPC and seed."""
    stored: Sequence[Record] = ()
    """All stored trials, including those of other plans and versions of the numbers."""
    running: bool = False
    """True while another process runs in the folder."""

    def __repr__(self) -> str:
        ended = f"{len(self.finished)} of {self.planned} trials finished"
        return f"<Results of {self.out}: {self.manifest.experiment}, {self.interim or ended}>"

    def __str__(self) -> str:
        """Return the tables as plain text, as the commands print them."""
        from condkd_ray.report.tables import arms, search

        return (search if self.searching else arms).terminal_table(self)

    def _repr_html_(self) -> str:
        """Return the tables as HTML for a notebook."""
        import pandas as pd

        from condkd_ray.report.tables import arms, search

        tables = (
            [search.search_table(self)]
            if self.searching
            else [arms.accuracy_table(self), arms.difference_table(self.differences, self.score)]
        )
        parts = [f"<p>{html.escape(repr(self)[1:-1])}</p>"]
        for table in tables:
            if table.rows:
                frame = pd.DataFrame(table.rows, columns=list(table.header))
                parts.append(f"<b>{html.escape(table.title)}</b>{frame.to_html(index=False, border=0)}")
        return "\n".join(parts)

    @cached_property
    def trials(self) -> pd.DataFrame:
        """One row per trial: its arm, config, hashes, costs, and all metrics at its end."""
        return self.to_arrow("trials").to_pandas()

    @cached_property
    def rounds(self) -> pd.DataFrame:
        """One row per trial and round, with the metrics of the round."""
        return self.to_arrow("rounds").to_pandas()

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """One row per trial and test image: the class that the student predicts, and the label.

        No rows in segmentation, for which predictions are not stored.
        Raises `InputError` if a trial does not have one prediction per test image.
        """
        return self.to_arrow("predictions").to_pandas()

    @cached_property
    def comparisons(self) -> pd.DataFrame:
        """One row per comparison of two arms at one IPC, in the test score, paired by seed.

        `mean`, `std`: mean and standard deviation of `left` minus `right` over `n` seeds. `low`, `high`: the 95 %
        interval over seeds, computed by `method`. `images_low`, `images_high`: the 95 % interval over test images, for
        accuracies only. `p`: p value of the paired t test, with Holm's correction over all arms that are compared with
        the same arm at the same IPC. Values that do not exist, such as those of a single seed, are NaN.
        """
        return self.to_arrow("comparisons").to_pandas()

    def to_arrow(self, frame: Frame) -> pa.Table:
        """Return the frame `trials`, `rounds`, `predictions` or `comparisons` as an Arrow table.

        The frame contains the trials in `records`; the Parquet files in the folder contain all `stored` trials. Raises
        `InputError` for another name, and if a trial does not have one prediction per test image.
        """
        from condkd_ray.report import parquet

        require(frame in get_args(Frame), "frame", frame, ", ".join(get_args(Frame)))
        if frame == "comparisons":
            return parquet.comparisons_table(self.differences)
        if frame == "predictions":
            return parquet.predictions_table(self.out, self.records, self.manifest)
        return (parquet.records_table if frame == "trials" else parquet.rounds_table)(self.records)

    @cached_property
    def study(self) -> pd.DataFrame:
        """One row per trial of a search's study, in the order of proposals.

        Columns: `number`, `state`, one for each objective, one for each open leaf, and `config_hash`. States are
        `complete`, `pruned`, `fail` and `running`. Proposals that did not run have the states `repeated` (equal to an
        earlier proposal) and `impossible`. Raises `InputError` if these are not results of a search, or if the study is
        not at the place where the search stored it.
        """
        import pandas as pd

        from condkd_ray.study.study import IMPOSSIBLE, REPEAT

        def state(trial: FrozenTrial) -> str:
            passed = {REPEAT: "repeated", IMPOSSIBLE: "impossible"}
            return next((passed[key] for key in passed if key in trial.user_attrs), trial.state.name.lower())

        def values(trial: FrozenTrial) -> dict[str, float]:
            return dict(zip(self.objectives, trial.values or [], strict=False))

        rows = [
            {"number": one.number, "state": state(one), **values(one), **one.params}
            | {"config_hash": one.user_attrs.get("config_hash", "")}
            for one in self.study_trials
        ]
        return pd.DataFrame(rows)

    @cached_property
    def study_trials(self) -> list[FrozenTrial]:
        """The Optuna trials of a search's study. Raises `InputError` like `study`."""
        from condkd_ray.study.importance import stored_trials

        require(self.searching, f"study of {self.out}", None, "the folder of a search")
        flags = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        # `nargs="?"`: a flag without a value, in a manifest that was edited by hand, counts as not given.
        flags.add_argument("--study", nargs="?")
        flags.add_argument("--study-storage", nargs="?")
        given, _ = flags.parse_known_args(shlex.split(self.manifest.command))
        # If the search was called in Python, the study's name is not in the flags but in the planned trials.
        named = {trial["study"]: None for trial in self.manifest.planned if trial.get("study")}
        name = STUDY if STUDY in named or not named else list(named)[-1]
        return stored_trials(self.out, given.study or name, given.study_storage)

    @cached_property
    def figures(self) -> dict[str, Figure]:
        """The figures of the page by name, except those without data. Notebooks display them; pyplot is not used.

        For an experiment: `figure` (test score of each arm), `curves`, `diagnosis` and `histograms`. For a search:
        `course`, `rounds`, `front` and `importance`.
        """
        from condkd_ray.report.figures import accuracy
        from condkd_ray.report.page import search

        drawn = search.figures(self) if self.searching else accuracy.draw(self.records, self.manifest)
        return {name: figure for name, figure in drawn.items() if figure is not None}

    def best(self) -> Trained:
        """Return the best kept trial in `records` with its student and synthetic images.

        The criterion is the score on validation images, or agreement on the proxy set if there are none. The test
        score is never used. A reference trial, whose student was trained on all real images, is returned only if no
        other trial is kept. Raises `InputError` if no trial is kept, or if the product is damaged.
        """
        return self._trained(None)

    def trained(self, beginning: str) -> Trained:
        """Return the kept trial in `stored` whose `config_hash` starts with `beginning`.

        Raises `InputError` unless there is exactly one.
        """
        return self._trained(beginning)

    def _trained(self, beginning: str | None) -> Trained:
        from condkd_ray.report.kept import Trained, chosen, kept_product

        record = chosen(self.records, self.out, beginning, stored=self.stored)
        return Trained(record, kept_product(self.out, record.config_hash))

    @property
    def searching(self) -> bool:
        """True for a search."""
        return bool(self.manifest.search)

    @cached_property
    def score(self) -> Score:
        """The score of the data's task: accuracy or mean IoU."""
        return statistics.score_of(self.records, self.manifest)

    @property
    def test_size(self) -> int:
        """Number of test images; 0 if unknown."""
        return len(self.manifest.test_labels) or self.manifest.dataset.get("test_size", 0)

    @property
    def objectives(self) -> Sequence[str]:
        """Objectives of a search; for an experiment, the proxy metric by which its notes rank the trials."""
        return self.manifest.search.get("objective", ["proxy/agreement"])

    @property
    def planned(self) -> int:
        """Number of planned trials."""
        return len(self.manifest.planned) or len(self.records)

    @property
    def interim(self) -> str:
        """A sentence with the number of ended trials while the run continues; empty if the results are final."""
        ended = sum(self.counts.values())
        if self.running and self.searching:
            # The process of the search may still hold the lock after it has written everything.
            if self.manifest.cpu_seconds is not None:
                return ""
            return f"interim: {ended} {'trial has' if ended == 1 else 'trials have'} ended; the search is running"
        if self.running and ended < self.planned:
            return f"interim: {ended} of {self.planned} trials have ended; the experiment is running"
        return ""

    @property
    def cpu_seconds(self) -> float:
        """Total CPU time, in seconds, of the trials whose CPU time is known."""
        return math.fsum(spent for one in self.records if math.isfinite(spent := one.outcome.cpu_seconds))

    def of(self, status: Status) -> list[Record]:
        """Return the trials with this status."""
        return [one for one in self.records if one.status == status]

    @property
    def counts(self) -> dict[Status, int]:
        """Numbers of finished, pruned and failed trials."""
        return {status: len(self.of(status)) for status in ("finished", "pruned", "failed")}

    @cached_property
    def finished(self) -> list[Record]:
        """The finished trials."""
        return self.of("finished")

    @cached_property
    def groups(self) -> dict[tuple[str, int], list[Record]]:
        """Finished trials by (arm, ipc)."""
        return statistics.groups(self.finished)

    @cached_property
    def differences(self) -> list[Difference]:
        """Comparisons of arms in the test score, with corrected p values."""
        labels, baseline = self.manifest.test_labels, self.manifest.baseline
        return statistics.with_p_values(statistics.comparisons(self.records, labels, baseline=baseline))

    @cached_property
    def rankings(self) -> list[Ranking]:
        """Rank correlations of the first objective with the test score."""
        return statistics.rankings(self.records, self.objectives[0])

    @cached_property
    def by_teacher(self) -> dict[str, list[Record]]:
        """Tested trials by the name of their teacher, if the seeds of an arm have different teachers; else empty."""
        return statistics.by_teacher(self.records)

    @cached_property
    def ranked(self) -> list[Record]:
        """Finished trials of a search that satisfy all constraints, the best by the first objective first."""
        return [one for one in self.ended if one.status == "finished" and self.keeps(one)]

    @cached_property
    def ended(self) -> list[Record]:
        """Ended trials of a search: first those in `ranked`, then other finished trials, then the rest."""
        sign = 1 if self.manifest.search["directions"][0] == "minimize" else -1

        def place(record: Record) -> tuple[bool, bool, float, str]:
            first = value(record, self.objectives[0])
            order = math.inf if math.isnan(first) else sign * first
            return record.status != "finished", not self.keeps(record), order, record.arm

        return sorted((one for one in self.records if one.status != "running"), key=place)

    @property
    def limits(self) -> Sequence[str]:
        """Constraints of a search, as the user wrote them."""
        return self.manifest.search.get("constraints", [])

    def keeps(self, record: Record) -> bool:
        """Return whether a trial satisfies all constraints of its search, with the values at its end."""
        return all(one.allows(value(record, one.name)) for one in parse_constraints(self.limits))


def read(out: Path) -> Results:
    """Return the results under `out`. Raises `InputError` if it is not the folder of an experiment or a search."""
    # The lock is read before the records: if no process runs at this point, all records are complete.
    running = busy(out)
    manifest, stored = read_manifest(out), read_all_records(out)
    counted, _ = newest(planned(stored, manifest))
    kept = {record.config_hash for record in counted}
    left_out = [record for record in stored if record.config_hash not in kept]
    notes = [*manifest.notes, *_left_out(left_out, counted)]
    return Results(out, replace(manifest, notes=notes), counted, stored, running=running)


def value(record: Record, name: str) -> float:
    """Return the value of an objective at the end of the trial, or at its last round if the trial was stopped.

    NaN if it was not measured.
    """
    return record.metrics.get(name, at_end(name, record.history))


def _left_out(records: Sequence[Record], counted: Sequence[Record]) -> list[str]:
    """Return sentences that give the number of stored trials left out of tables and figures, and the reason."""
    shown = counted[0].numbers if counted else 0
    older = sum(record.numbers < shown for record in records)
    others = len(records) - older
    older_line = [
        f"{_trials(older)} left out of tables and figures: made by an earlier version whose numbers differ; shown are "
        f"those of version {shown} of the numbers."
    ] * bool(older)
    return older_line + [f"{_trials(others)} of other settings and left out of tables and figures."] * bool(others)


def _trials(count: int) -> str:
    return "1 stored trial is" if count == 1 else f"{count} stored trials are"
