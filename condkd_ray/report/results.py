"""What is stored of an experiment, read once, and the statistics that its tables and pages share."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from condkd_ray.core.locks import busy
from condkd_ray.core.records import Manifest, Record, Status, newest, read_all_records, read_manifest
from condkd_ray.report import statistics
from condkd_ray.report.statistics import Difference, Ranking
from condkd_ray.study.objective import at_end, parse_constraints


@dataclass(frozen=True)
class Results:
    """The trials of an experiment or a search that may be compared. What follows from them is computed when needed."""

    out: Path
    manifest: Manifest
    """Its notes include which stored trials are left out."""
    records: Sequence[Record]
    """Planned trials of the newest `numbers` among these, by arm, IPC and seed."""
    stored: Sequence[Record] = ()
    """All that is stored, of whatever plan and `numbers`."""
    running: bool = False
    """Whether another process runs there."""

    @property
    def searching(self) -> bool:
        """Whether it is a search."""
        return bool(self.manifest.search)

    @property
    def objectives(self) -> Sequence[str]:
        """What a search looked at; of an experiment, the proxy that its notes rank the trials by."""
        return self.manifest.search.get("objective", ["proxy/agreement"])

    @property
    def planned(self) -> int:
        """How many trials there are to be."""
        return len(self.manifest.planned) or len(self.records)

    @property
    def interim(self) -> str:
        """That these are no final results, in words; empty where they are."""
        ended = sum(self.counts.values())
        if self.running and self.searching:
            # Its process may still hold the folder when all has been written.
            if self.manifest.cpu_seconds is not None:
                return ""
            return f"interim: {ended} {'trial has' if ended == 1 else 'trials have'} ended; the search is running"
        if self.running and ended < self.planned:
            return f"interim: {ended} of {self.planned} trials have ended; the experiment is running"
        return ""

    @property
    def cpu_seconds(self) -> float:
        """Of all trials, as far as known."""
        return math.fsum(spent for one in self.records if math.isfinite(spent := one.outcome.cpu_seconds))

    def of(self, status: Status) -> list[Record]:
        """The trials of this status."""
        return [one for one in self.records if one.status == status]

    @property
    def counts(self) -> dict[Status, int]:
        """How many trials have finished, were pruned and failed."""
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
    def judged(self) -> list[Difference]:
        """The comparisons of arms in test accuracy, each with its corrected p."""
        labels, baseline = self.manifest.test_labels, self.manifest.baseline
        return statistics.judged(statistics.comparisons(self.records, labels, baseline=baseline))

    @cached_property
    def rankings(self) -> list[Ranking]:
        """How well the first objective ranked the trials by test accuracy."""
        return statistics.rankings(self.records, self.objectives[0])

    @cached_property
    def by_teacher(self) -> dict[str, list[Record]]:
        """Tested trials by their teacher's name, where the seeds of some arm have several teachers; else empty."""
        return statistics.by_teacher(self.records)

    @cached_property
    def ranked(self) -> list[Record]:
        """Of a search, the finished trials that keep to all limits, the best by the first objective first."""
        return [one for one in self.ended if one.status == "finished" and self.keeps(one)]

    @cached_property
    def ended(self) -> list[Record]:
        """Of a search, all trials but those that run: the `ranked` first, then other finished ones, then the rest."""
        sign = 1 if self.manifest.search["directions"][0] == "minimize" else -1

        def place(record: Record) -> tuple[bool, bool, float, str]:
            first = value(record, self.objectives[0])
            order = math.inf if math.isnan(first) else sign * first
            return record.status != "finished", not self.keeps(record), order, record.arm

        return sorted((one for one in self.records if one.status != "running"), key=place)

    @property
    def limits(self) -> Sequence[str]:
        """The constraints of a search, as its user has written them."""
        return self.manifest.search.get("constraints", [])

    def keeps(self, record: Record) -> bool:
        """Whether a trial has kept to all limits of its search, as far as it came."""
        return all(not one.excess(value(record, one.name)) > 0 for one in parse_constraints(self.limits))


def read(out: Path) -> Results:
    """The results under `out`. Raises `InputError` where it is not the folder of an experiment."""
    # Asked first: what it writes after this is in what is read, where it has ended by now.
    running = busy(out)
    manifest, stored = read_manifest(out), read_all_records(out)
    wanted = {trial["config_hash"] for trial in manifest.planned}
    counted, _ = newest([record for record in stored if not wanted or record.config_hash in wanted])
    kept = {record.config_hash for record in counted}
    left_out = [record for record in stored if record.config_hash not in kept]
    notes = [*manifest.notes, *_left_out(left_out, counted)]
    return Results(out, replace(manifest, notes=notes), counted, stored, running=running)


def value(record: Record, name: str) -> float:
    """An objective at the trial's end, or where it was stopped."""
    return record.metrics.get(name, at_end(name, record.history))


def _left_out(records: Sequence[Record], counted: Sequence[Record]) -> list[str]:
    """How many stored trials are in no table and figure, and why."""
    shown = counted[0].numbers if counted else 0
    older = sum(record.numbers < shown for record in records)
    others = len(records) - older
    told = [
        f"{_trials(older)} left out of tables and figures: made by an earlier version whose numbers differ; shown are "
        f"those of version {shown} of the numbers."
    ] * bool(older)
    return told + [f"{_trials(others)} of other settings and left out of tables and figures."] * bool(others)


def _trials(count: int) -> str:
    return "1 stored trial is" if count == 1 else f"{count} stored trials are"
