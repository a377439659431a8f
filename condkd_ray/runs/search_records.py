"""Restores a study from records after it has lost trials, for example because its journal was cut or moved away.

A record has the whole config of its trial, which determines the values of the open leaves, and, round by round, all
metrics from which the objectives and limits are computed. So the study gets the trial back as it was. The records do
not have trials that had not ended, nor the used GPU time; these are lost. The history of a population's member is lost
too: its earlier parameters, and the members whose states it copied. The search of a population therefore repeats these
generations, from its seed and the files that its members have left; it does not repeat their last generations.
"""

import dataclasses
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from condkd_ray.core.families import plugins_in
from condkd_ray.core.method import InputError, require
from condkd_ray.core.records import MANIFEST, Record, read_manifest, write_record
from condkd_ray.runs.recorder import KEY, StudyWriter
from condkd_ray.runs.search_spec import SearchSpec
from condkd_ray.study.points import Point, check_point
from condkd_ray.study.space import params_of
from condkd_ray.study.study import Study
from condkd_ray.trial.config import of_record
from condkd_ray.trial.hardware import Hardware, settled
from condkd_ray.trial.plan import NUMBERS

log = logging.getLogger(__name__)


def of_study(records: Sequence[Record], name: str, *, alone: bool) -> dict[int, Record]:
    """Return the records of a study's trials by their numbers in it, in ascending order.

    Earlier versions wrote records without the name of their study. Such records count as records of this study if the
    study is `alone` in its storage and no record names another. If two records have the same number, for example
    because one study has passed a record on to another, the second gets a unique number below 0.
    """
    own = {name, ""} if alone and {record.study for record in records} <= {name, ""} else {name}
    found: dict[int, Record] = {}
    for record in records:
        number = number_of(record.arm)
        if record.study in own and record.numbers == NUMBERS and number is not None:
            found[number if number not in found else -1 - len(found)] = record
    return dict(sorted(found.items()))


def number_of(arm: str) -> int | None:
    """Return the number of a trial in its study, parsed from its arm, such as `trial 7`; None for other arms."""
    match = re.fullmatch(r"trial (\d+)", arm)
    return int(match[1]) if match else None


def restore_trials(
    study: Study,
    tree: dict[str, Any],
    writer: StudyWriter,
    records: Sequence[Record],
    spec: SearchSpec,
    hardware: Hardware,
) -> None:
    """Add to the study all trials that it lacks and that have a record, with their final states; log how many.

    They keep their numbers if these are free, and otherwise get new ones, which are written into their records.
    Trials that no longer fit the space, because it was widened or changed, are left out. Trials that the study has lost
    only in part are left as they are. A second call has no effect.
    """
    known = {trial.user_attrs.get(KEY) for trial in study.own}
    own = of_study(records, spec.study, alone=study.alone)
    lost = {number: one for number, one in own.items() if one.config_hash not in known}
    _log_nameless(records, known | {one.config_hash for one in own.values()})
    params = _params(tree, lost, hardware)
    begun = begun_numbers(records, spec) if params else ()
    # Moved trials come last, so that no new number is one that another trial had.
    moves = [number for number in params if number < 0 or not study.may_become(number, params[number])]
    for number in [*(number for number in params if number not in moves), *moves]:
        record = lost[number]
        now = study.restore(number if number >= 0 else len(study.trials), params[number], begun)
        if study.over(now) or study.trial(now).user_attrs.get(KEY, record.config_hash) != record.config_hash:
            # The study has a trial of that config, with other data or another sharing scope.
            continue
        named = dataclasses.replace(record, arm=f"trial {now}", study=spec.study)
        if named != record:
            write_record(spec.out, named)
        writer.restore(now, record)
    if params:
        log.info(f"{len(params)} trials missing from the study were restored from their records")


def _log_nameless(records: Sequence[Record], known: Collection[str | None]) -> None:
    """Log the number of records that do not name their study and may belong to another."""
    nameless = [one for one in records if not one.study and one.numbers == NUMBERS and one.config_hash not in known]
    if nameless:
        log.info(
            f"{len(nameless)} records of earlier versions do not name their study, and this is not the only one here: "
            "they are left out of the study; if one of these trials is proposed, it does not run again"
        )


def _params(tree: dict[str, Any], records: Mapping[int, Record], hardware: Hardware) -> dict[int, Point]:
    """Return the values of the open leaves by number of the record. Logs and leaves out records outside the space."""
    found, unfit = dict[int, Point](), dict[int, str]()
    for number, record in records.items():
        try:
            config = of_record(record)
            require(
                plugins_in(config) == record.plugins,
                "plug-ins",
                record.plugins,
                f"{plugins_in(config)}, those installed here",
            )
            point = params_of(tree, config, lambda one: settled(one, hardware))
            found[number] = check_point(tree, point, "parameters")
        except InputError as error:
            unfit[number] = str(error)
    if unfit:
        number, why = next(iter(unfit.items()))
        what = f"{len(unfit)} trials with records do not fit this space and are left out"
        log.info(f"{what}: of {records[number].arm}, {why}")
    return found


def begun_numbers(records: Sequence[Record], spec: SearchSpec) -> Collection[int]:
    """Return the numbers of the study's planned trials, from the folder's manifest.

    A manifest of an earlier version does not name the study: trials with a record of another study are left out.
    """
    planned = read_manifest(spec.out).planned if (spec.out / MANIFEST).is_file() else []
    others = {record.config_hash for record in records if record.study not in ("", spec.study)}
    own = [
        one["arm"]
        for one in planned
        if (one["study"] == spec.study if "study" in one else one["config_hash"] not in others)
    ]
    return {number for arm in own if (number := number_of(arm)) is not None}
