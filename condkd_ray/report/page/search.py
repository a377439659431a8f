"""The page of a search: what was found, how sure the choice is, and which parameters mattered."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from condkd_ray.core.method import InputError
from condkd_ray.core.records import Manifest, Record
from condkd_ray.report.figures.search import course_plot, front_plot, importance_plot
from condkd_ray.report.page import confirmed, held_rounds, sections
from condkd_ray.report.page.elements import Element, Page, Rows, Section, Text
from condkd_ray.report.page.images import gallery, vector
from condkd_ray.report.page.summary import facts, tested
from condkd_ray.report.statistics import ACCURACY, rankings
from condkd_ray.report.tables import search
from condkd_ray.study.importance import LEAST, RESAMPLES, importances, stored_trials

IMPORTANCE = "Importance of parameters"
STUDY = "search"
"""The name a study has where the command gives it none."""
BEST = 6
"""So many of the best trials show their images."""


def page(out: Path, records: Sequence[Record], manifest: Manifest) -> Page:
    """What `report.searches` has, the study, and what came of the best with new seeds."""
    objective, directions = manifest.search["objective"], manifest.search["directions"]
    table = search.search_table(records, manifest)
    ranked = search.ranked(records, manifest)
    again, sentences = confirmed.section(out, objective[0], {one.numbers for one in records})
    course = course_plot(_course(records, manifest), directions[0], objective[0])
    by_status = {status: [one for one in records if one.status == status] for status in ("finished", "pruned")}
    lead = [*(again.elements[:1] if again else []), *vector(course, f"{objective[0]} of each trial")]
    importance = _importance(out, manifest)
    return Page(
        name=manifest.experiment,
        question=manifest.question,
        verdict=[*best(records, manifest), *sentences],
        facts=[*facts(records, manifest), *_rho(records, objective[0])],
        lead=lead if again else [*lead, *importance],
        sections=[
            *([replace(again, elements=again.elements[1:]), Section(IMPORTANCE, importance)] if again else []),
            _front(ranked, manifest),
            Section("Trials", [Rows(table, most=12)] if table.rows else []),
            held_rounds.section(ranked, records, objective[0], directions[0]),
            sections.proxy(records, objective[0], None),
            Section("Images of the best trials", gallery(out, ranked[:BEST])),
            sections.cost(by_status),
            sections.trouble(records, manifest, out),
            sections.remarks(search.notes(records, manifest)),
            sections.repeat(records, manifest),
        ],
    )


def front(points: np.ndarray, directions: Sequence[str]) -> list[int]:
    """Rows of (trials, objectives) that no other is at least as good as in all, and better than in one."""
    costs = points * np.array([1 if direction == "minimize" else -1 for direction in directions])
    beaten = [(np.all(costs <= one, 1) & np.any(costs < one, 1)).any() for one in costs]
    return [place for place, worse in enumerate(beaten) if not worse]


def best(records: Sequence[Record], manifest: Manifest) -> list[str]:
    """Which trial, with which values, and what it is worth."""
    ranked, table = search.ranked(records, manifest), search.search_table(records, manifest)
    if not ranked:
        limited = any(one.status == "finished" for one in records)
        return ["No trial that has finished keeps to all limits." if limited else "No trial has finished yet."]
    first, objective = ranked[0], manifest.search["objective"][0]
    row = dict(zip(table.header, table.rows[0], strict=True))
    leaves = ", ".join(f"{path} {row[path]}" for path in manifest.search["parameters"] if row[path])
    equal = sum(search.value(one, objective) == search.value(first, objective) for one in ranked[1:])
    tied = f", with {equal} as good," if equal else ""
    told = f"{first.arm.capitalize()}{tied} is the best of {len(ranked)} by {objective}, {row[objective]}: {leaves}."
    test = first.metrics.get(ACCURACY)
    return [told, *([f"Its test accuracy, which decided nothing: {100 * test:.2f} %."] if test is not None else [])]


def _course(records: Sequence[Record], manifest: Manifest) -> list[float]:
    """The first objective of each trial as proposed; NaN for those that have not come to their end."""
    done = {one.config_hash: one for one in search.ranked(records, manifest)}
    proposed = [trial["config_hash"] for trial in manifest.planned]
    first = manifest.search["objective"][0]
    return [search.value(done[key], first) if key in done else math.nan for key in proposed]


def _rho(records: Sequence[Record], objective: str) -> list[tuple[str, str]]:
    found = rankings(tested(records), objective)
    return [("rho with test accuracy", f"{one.rho:+.2f} (n = {one.n})") for one in found[:1]]


def _importance(out: Path, manifest: Manifest) -> list[Element]:
    try:
        trials = _trials(out, manifest)
    except InputError as error:
        return [Text(f"Importance of parameters is not shown: {error}.")]
    complete = sum(trial.state == TrialState.COMPLETE for trial in trials)
    found = importances(trials, manifest.search["directions"])
    if not found:
        return [Text(f"Importance of parameters is told from {LEAST} complete trials on; there are {complete}.")]
    caption = (
        f"Importance by PED-ANOVA: how much the best trials' values of a parameter differ from all. Lines: {RESAMPLES} "
        "bootstrap resamples of the trials; where they overlap, the order is not known. The Optuna dashboard counts "
        "fewer trials as the best and may tell another order."
    )
    return vector(importance_plot(found, complete), "importance of each parameter", caption)


def _trials(out: Path, manifest: Manifest) -> list[FrozenTrial]:
    """Of the study, wherever the command has put it."""
    words = shlex.split(manifest.command)
    return stored_trials(out, _flag(words, "--study") or STUDY, _flag(words, "--study-storage"))


def _flag(words: Sequence[str], flag: str) -> str | None:
    for place, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name == flag:
            return value if equals else next(iter(words[place + 1 : place + 2]), None)
    return None


def _front(ranked: Sequence[Record], manifest: Manifest) -> Section:
    """With several objectives, the trials among which none is better in all."""
    objective, directions = manifest.search["objective"], manifest.search["directions"]
    known = [one for one in ranked if np.isfinite([search.value(one, key) for key in objective]).all()]
    if len(objective) < 2 or not known:
        return Section("Pareto front", [])
    points = np.array([[search.value(one, key) for key in objective] for one in known])
    best = front(points, directions)
    names = [one.arm.removeprefix("trial ") for one in known]
    table = search.search_table([known[place] for place in best], manifest)
    drawn = front_plot(points, best, names, objective)
    told = "Trials that no other beats in one objective without losing in another."
    return Section("Pareto front", [*vector(drawn, "Pareto front"), Text(told), Rows(table)])
