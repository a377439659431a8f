"""The page of a search: the best trial, how certain the choice is, and the importance of the parameters."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import optuna
from matplotlib.figure import Figure
from optuna.trial import TrialState

from condkd_ray.core.method import InputError
from condkd_ray.core.records import MANIFEST, Record
from condkd_ray.report.figures.search import COLOURS, course_plot, front_plot, importance_plot, rounds_plot
from condkd_ray.report.page import sections
from condkd_ray.report.page.elements import Element, Page, Rows, Section, Text, tables
from condkd_ray.report.page.images import gallery, vector
from condkd_ray.report.page.summary import facts, forest, unguided, verdict
from condkd_ray.report.results import Results, read, value
from condkd_ray.report.statistics import Difference, comparisons, with_p_values
from condkd_ray.report.tables import arms, search, teachers
from condkd_ray.report.tables.table import Table, comparison_cells, interval_text, p_text, signed
from condkd_ray.study.importance import LEAST, RESAMPLES, importances
from condkd_ray.study.objective import Direction
from condkd_ray.study.storage import quiet

IMPORTANCE = "Importance of parameters"
BEST, LISTED = 6, 8
"""Numbers of best trials whose images are shown, and whose rounds are in a table."""
CONFIRMED = "confirmed"
"""Name of the folder, in the search's folder, of the experiment that runs the best trials again with new seeds."""
_ONE_SEED = "All trials share one seed; only trials with new seeds can show whether one is better than another."
_OTHER = (
    "The trials with new seeds are not shown, because they have version {} of the numbers, and the search another one."
)
_OBJECTIVE = (
    "The same differences in the objective of the search, in its own unit; intervals and p as above. A gain here that "
    "the test score does not show is a gain of the proxy only."
)
_FORGETTING = (
    "Forgetting: how much better the objective was in the best round than in the last. A search does not measure the "
    "test {} in the rounds, so that no choice can depend on it."
)


def page(results: Results) -> Page:
    """Return the page: the tables of `report.tables.search`, the study, and the results with new seeds.

    Raises `InputError` if the folder with the results with new seeds cannot be read.
    """
    manifest, objective = results.manifest, results.objectives[0]
    again, sentences = confirmed(results)
    course = course_plot(_course(results), manifest.search["directions"][0], objective)
    lead = [*(again.elements[:1] if again else []), *vector(course, f"{objective} of each trial")]
    importance = _importance(results)
    return Page(
        name=manifest.experiment,
        interim=results.interim,
        question=manifest.question,
        verdict=[*best(results), *sentences],
        facts=[
            *facts(results),
            *((f"rho with test {results.score.name}", f"{one.rho:+.2f} (n = {one.n})") for one in results.rankings[:1]),
        ],
        lead=lead if again else [*lead, *importance],
        sections=[
            *([replace(again, elements=again.elements[1:]), Section(IMPORTANCE, importance)] if again else []),
            _front(results),
            Section("Trials", tables(search.search_table(results), most=12)),
            _over_rounds(results),
            sections.proxy(results, None),
            Section("Images of the best trials", gallery(results, results.ranked[:BEST])),
            sections.cost({"finished": results.finished, "pruned": results.of("pruned")}),
            sections.failed_trials(results),
            Section("Notes", [Text(line) for line in search.notes(results)]),
            sections.repeat(results),
        ],
    )


def front(points: np.ndarray, directions: Sequence[Direction]) -> list[int]:
    """Return the rows of `points` (trials, objectives), all finite, on the Pareto front, as Optuna computes it.

    These are the rows for which no other row is at least as good in all objectives and better in one. Of equal rows,
    all are on the front or none is.
    """
    with quiet():
        study = optuna.create_study(directions=list(directions))
        study.add_trials([optuna.create_trial(values=row) for row in points.tolist()])
    return [trial.number for trial in study.best_trials]


def best(results: Results) -> list[str]:
    """Return the best trial with its parameter values and its objective, and its test score, in sentences."""
    ranked, objective, table = results.ranked, results.objectives[0], search.search_table(results)
    if not ranked:
        return ["No finished trial satisfies all limits." if results.finished else "No trial has finished yet."]
    first, row = ranked[0], dict(zip(table.header, table.rows[0], strict=True))
    leaves = ", ".join(f"{path} {row[path]}" for path in results.manifest.search["parameters"] if row[path])
    equal = sum(value(one, objective) == value(first, objective) for one in ranked[1:])
    tied = f", with {equal} equally good ones," if equal else ""
    text = f"{first.arm.capitalize()}{tied} is the best of {len(ranked)} by {objective}, {row[objective]}: {leaves}."
    test = first.metrics.get(results.score.test)
    name = results.score.name
    return [text, *([f"Its test {name}, which no choice has used: {100 * test:.2f} %."] if test is not None else [])]


def confirmed(results: Results) -> tuple[Section | None, list[str]]:
    """Return the section on the best trials and the default with new seeds, and its results in sentences.

    A search makes no other claim. The section's first element belongs to the head of the page. The sentences include
    the comparison of a trial with itself without guidance. If no trial was run again, or if the trials have another
    version of the numbers, the section is None and the sentences state this. Raises `InputError` if the folder
    `CONFIRMED` cannot be read.
    """
    place, objective = results.out / CONFIRMED, results.objectives[0]
    again = read(place) if (place / MANIFEST).is_file() else None
    numbers = {one.numbers for one in results.records}
    if numbers and again and again.records and again.records[0].numbers not in numbers:
        return None, [_ONE_SEED, _OTHER.format(again.records[0].numbers)]
    if again is None or not again.differences:
        return None, [_ONE_SEED]
    found = [arms.accuracy_table(again), arms.difference_table(again.differences, again.score)]
    if objective != again.score.test:
        compared_by = comparisons(again.finished, baseline=again.manifest.baseline, metric=objective)
        found.append(_objective_table(with_p_values(compared_by), objective))
    shown = forest(again.differences, again.score, teachers.sentence(again))
    claim, *controls = [verdict(again.differences, again.score)[0], *unguided(again.differences)]
    section = Section("The best again, with new seeds", [shown, *tables(*found, arms.rounds_table(again))])
    return section, [f"With new seeds: {claim[0].lower()}{claim[1:]}", *controls]


def _objective_table(found: Sequence[Difference], objective: str) -> Table:
    rows = [
        [
            *comparison_cells(one),
            str(one.n),
            signed(one, factor=1, digits=4),
            interval_text(one.over_seeds, factor=1, digits=4),
            p_text(one.p),
            one.method,
        ]
        for one in found
    ]
    header = ["difference", "IPC", "n", objective, "95 % over seeds", "p (Holm)", "method"]
    return Table(f"Paired differences in {objective}", header, rows, _OBJECTIVE)


def _course(results: Results) -> list[float]:
    """Return the first objective of each trial in the order of proposal; NaN for trials without a result."""
    done = {one.config_hash: value(one, results.objectives[0]) for one in results.ranked}
    return [done.get(trial["config_hash"], math.nan) for trial in results.manifest.planned]


def _over_rounds(results: Results) -> Section:
    """Return the section of the objective over the rounds: lines of all trials, the best in colour, and a table."""
    objective, title, curves = results.objectives[0], "Over the rounds", _curves(results)
    if not curves:
        return Section(title, [])
    drawn = vector(_rounds_plot(results, curves), f"{objective} over the rounds")
    direction = results.manifest.search["directions"][0]
    rows = [_row(one.arm, *curves[one.arm], direction) for one in results.ranked[:LISTED] if one.arm in curves]
    table = Table(
        "Rounds",
        ["trial", "last", "best", "in round", "forgetting"],
        rows,
        _FORGETTING.format(results.score.name),
        keys=1,
    )
    return Section(title, [*drawn, *tables(table)])


def figures(results: Results) -> dict[str, Figure | None]:
    """Return the figures of the page by name; None for those without data."""
    curves, known = _curves(results), _known(results)
    try:
        trials = results.study_trials
    except InputError:  # the study lies elsewhere or no longer exists
        trials = []
    complete = sum(trial.state == TrialState.COMPLETE for trial in trials)
    directions = results.manifest.search["directions"]
    return {
        "course": course_plot(_course(results), directions[0], results.objectives[0]),
        "rounds": _rounds_plot(results, curves) if curves else None,
        "front": _front_plot(results, known) if known else None,
        "importance": importance_plot(importances(trials, directions), complete),
    }


def _curves(results: Results) -> dict[str, tuple[list[int], list[float]]]:
    """Return rounds and values of the first objective of each trial with two or more values, the best trials first."""
    objective, others = results.objectives[0], [one for one in results.records if one.status in ("pruned", "running")]
    return {one.arm: curve for one in [*results.ranked, *others] if len((curve := _curve(one, objective))[0]) > 1}


def _rounds_plot(results: Results, curves: dict[str, tuple[list[int], list[float]]]) -> Figure:
    named = sum(one.arm in curves for one in results.ranked[: len(COLOURS)])
    return rounds_plot(curves, results.objectives[0], named)


def _curve(record: Record, objective: str) -> tuple[list[int], list[float]]:
    """Return the rounds and the objective in each of them; empty for times, because only their sum counts."""
    rows = [] if objective.startswith("time/") else record.history
    known = [(int(row["round"]), row[objective]) for row in rows if math.isfinite(row.get(objective, math.nan))]
    return [number for number, _ in known], [value for _, value in known]


def _row(trial: str, rounds: list[int], values: list[float], direction: str) -> list[str]:
    last, best = values[-1], (min if direction == "minimize" else max)(values)
    when = str(rounds[values.index(best)])
    return [trial.removeprefix("trial "), f"{last:.4f}", f"{best:.4f}", when, f"{abs(best - last):.4f}"]


def _importance(results: Results) -> list[Element]:
    try:
        trials = results.study_trials
    except InputError as error:
        return [Text(f"Importance of parameters is not shown: {error}.")]
    complete = sum(trial.state == TrialState.COMPLETE for trial in trials)
    found = importances(trials, results.manifest.search["directions"])
    if not found:
        return [Text(f"Importance of parameters is shown from {LEAST} complete trials on; there are {complete}.")]
    caption = (
        "Importance by PED-ANOVA: how much the values of a parameter in the best trials differ from those in all "
        f"trials. Lines: {RESAMPLES} bootstrap resamples of the trials; where they overlap, the order is uncertain. "
        "The Optuna dashboard counts fewer trials as the best and may show another order."
    )
    return vector(importance_plot(found, complete), "importance of each parameter", caption)


def _known(results: Results) -> list[Record]:
    """Return the ranked trials with a finite value for each objective; empty if there is only one objective."""
    objectives = results.objectives
    found = [one for one in results.ranked if np.isfinite([value(one, key) for key in objectives]).all()]
    return found if len(objectives) > 1 else []


def _on_front(results: Results, known: Sequence[Record]) -> tuple[np.ndarray, list[int]]:
    """Return the values (trials, objectives) and the Pareto-optimal rows."""
    points = np.array([[value(one, key) for key in results.objectives] for one in known])
    return points, front(points, results.manifest.search["directions"])


def _front_plot(results: Results, known: Sequence[Record]) -> Figure:
    names = [one.arm.removeprefix("trial ") for one in known]
    return front_plot(*_on_front(results, known), names, results.objectives)


def _front(results: Results) -> Section:
    """Return the section of the Pareto front; empty with a single objective."""
    title, known = "Pareto front", _known(results)
    if not known:
        return Section(title, [])
    _, best = _on_front(results, known)
    table = search.search_table(replace(results, records=[known[place] for place in best]))
    text = "Trials that no other trial beats in one objective without losing in another."
    return Section(title, [*vector(_front_plot(results, known), title), Text(text), Rows(table)])
