"""The page of an experiment: arms, compared with a baseline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from condkd_ray.core.records import Manifest, Record
from condkd_ray.report.figures import accuracy
from condkd_ray.report.figures.style import name
from condkd_ray.report.page import sections
from condkd_ray.report.page.elements import Element, Page, Rows, Section
from condkd_ray.report.page.images import grids, vector
from condkd_ray.report.page.summary import alone, at_largest, facts, forest, judged, verdict
from condkd_ray.report.statistics import comparisons, groups
from condkd_ray.report.tables import arms, teachers
from condkd_ray.report.tables.rounds import places_table, rounds_table

ACCURACY, PAIRED = "Accuracy", "Paired differences"


def page(out: Path, records: Sequence[Record], manifest: Manifest) -> Page:
    """What `report.tables` and `report.figures` have, on one page."""
    differences = comparisons(records, manifest.test_labels, baseline=manifest.baseline)
    shown = at_largest(judged(differences))
    drawn = accuracy.draw(records, manifest)
    looks = accuracy.arm_looks(records, manifest)
    finished = [record for record in records if record.status == "finished"]
    by_arm = {f"{name(arm)}{f', IPC {ipc}' if ipc else ''}": one for (arm, ipc), one in groups(finished).items()}
    lead: list[Element] = [forest(shown, teachers.sentence(records))] if shown else []
    return Page(
        name=manifest.experiment,
        question=manifest.question,
        verdict=verdict(shown) if shown else alone(finished),
        facts=facts(records, manifest),
        lead=[*lead, *vector(drawn["figure"], "test accuracy of each arm")],
        sections=[
            Section(ACCURACY, _rows(arms.accuracy_table(records))),
            Section(PAIRED, _rows(arms.difference_table(differences))),
            Section(
                "Each teacher's students",
                [
                    *_rows(teachers.accuracy_table(records)),
                    *_rows(teachers.difference_table(records, differences)),
                ],
            ),
            Section(
                "Over the rounds",
                [*vector(drawn["curves"], "test accuracy over the rounds"), *_rows(rounds_table(records))],
            ),
            Section("Images", grids(out, finished, looks)),
            Section(
                "Where the synthetic images lie",
                [
                    *vector(drawn["diagnosis"], "diagnosis over the rounds"),
                    *vector(drawn["histograms"], "classes and confidences of the memory"),
                    *_rows(places_table(records)),
                ],
            ),
            sections.proxy(records, "proxy/agreement", looks),
            sections.cost(by_arm),
            sections.trouble(records, manifest, out),
            sections.remarks(arms.notes(records, manifest)),
            sections.repeat(records, manifest),
        ],
    )


def _rows(table: arms.Table) -> list[Element]:
    return [Rows(table)] if table.rows else []
