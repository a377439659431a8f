"""The page of an experiment, in which arms are compared with a baseline."""

from collections.abc import Mapping

from matplotlib.figure import Figure

from condkd_ray.report.figures import accuracy
from condkd_ray.report.figures.style import name
from condkd_ray.report.page import sections
from condkd_ray.report.page.elements import Element, Page, Section, Text, tables
from condkd_ray.report.page.images import grids, vector
from condkd_ray.report.page.summary import alone, at_largest, facts, forest, verdict
from condkd_ray.report.results import Results
from condkd_ray.report.tables import arms, classes, teachers


def page(results: Results, drawn: Mapping[str, Figure | None]) -> Page:
    """Return the page: the tables of `report.tables`, and `drawn`, the figures of `report.figures.accuracy`."""
    shown, score = at_largest(results.differences), results.score.name
    styles = accuracy.arm_styles(results.records, results.manifest)
    by_arm = {f"{name(arm)}{f', IPC {ipc}' if ipc else ''}": one for (arm, ipc), one in results.groups.items()}
    lead: list[Element] = [forest(shown, results.score, teachers.sentence(results))] if shown else []
    return Page(
        name=results.manifest.experiment,
        interim=results.interim,
        question=results.manifest.question,
        verdict=verdict(shown, results.score) if shown else alone(results),
        facts=facts(results),
        lead=[*lead, *vector(drawn["figure"], f"test {score} of each arm")],
        sections=[
            Section(results.score.title, tables(arms.accuracy_table(results))),
            Section("Paired differences", tables(arms.difference_table(results.differences, results.score))),
            Section("IoU of each class", tables(classes.iou_table(results))),
            Section(
                "Each teacher's students",
                tables(teachers.accuracy_table(results), teachers.difference_table(results)),
            ),
            Section(
                "Over the rounds",
                [*vector(drawn["curves"], f"test {score} over the rounds"), *tables(arms.rounds_table(results))],
            ),
            Section("Images", grids(results, styles)),
            Section(
                "Where the synthetic images lie",
                [
                    *vector(drawn["diagnosis"], "diagnosis over the rounds"),
                    *vector(drawn["histograms"], "classes and confidences of the memory"),
                    *tables(arms.places_table(results)),
                ],
            ),
            sections.proxy(results, styles),
            sections.cost(by_arm),
            sections.failed_trials(results),
            Section("Notes", [Text(line) for line in arms.notes(results)]),
            sections.repeat(results),
        ],
    )
