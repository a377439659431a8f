"""What the records of a search tell a study that has lost trials, as one whose journal was cut, or moved away.

A record has the whole config of its trial, from which the values of the open leaves follow, and all that the objectives
and limits are computed from, round by round: the study gets the trial as it had it. Not in the records, and lost, are
trials that had not ended, and what trials have held of GPUs. Nor is the life of a member of a population: its earlier
parameters, and whose states it took. Such a search lives them again, by its seed and the files that its members have
left, but for their last generations.
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
    """The records of the trials of a study, by their numbers there, from the first on.

    Earlier programs have written records that do not say whose they are. These are its own where it is `alone` in its
    storage, and no record names another. Of two with one number, as where a study without the one has given it to the
    other, the second has a place of its own below 0.
    """
    own = {name, ""} if alone and {record.study for record in records} <= {name, ""} else {name}
    found: dict[int, Record] = {}
    for record in records:
        number = number_of(record.arm)
        if record.study in own and record.numbers == NUMBERS and number is not None:
            found[number if number not in found else -1 - len(found)] = record
    return dict(sorted(found.items()))


def number_of(arm: str) -> int | None:
    """The number in the study of the trial that a search has called so."""
    told = re.fullmatch(r"trial (\d+)", arm)
    return int(told[1]) if told else None


def give_back(
    study: Study,
    tree: dict[str, Any],
    writer: StudyWriter,
    records: Sequence[Record],
    spec: SearchSpec,
    hardware: Hardware,
) -> None:
    """Add to the study all trials that have a record of it and that it lacks, with their ends, and tell the user.

    Under their own numbers, where these are free; else under new ones, which their records then have, too. Those that
    the space has not, as it was widened or changed, are left out. Trials of the study that were lost in part, or not
    at all, are left as they are; done again it does nothing.
    """
    known = {trial.user_attrs.get(KEY) for trial in study.own}
    own = of_study(records, spec.study, alone=study.alone)
    lost = {number: one for number, one in own.items() if one.config_hash not in known}
    _tell_of_nameless(records, known | {one.config_hash for one in own.values()})
    params = _params(tree, lost, hardware)
    begun = _begun(records, spec) if params else ()
    # Whoever gets a new number shall take none that another had.
    moves = [number for number in params if number < 0 or not study.may_become(number, params[number])]
    for number in [*(number for number in params if number not in moves), *moves]:
        record = lost[number]
        now = study.take_back(number if number >= 0 else len(study.trials), params[number], begun)
        if study.over(now) or study.trial(now).user_attrs.get(KEY, record.config_hash) != record.config_hash:
            # The study has a trial of that config, of other data or another sharing.
            continue
        named = dataclasses.replace(record, arm=f"trial {now}", study=spec.study)
        if named != record:
            write_record(spec.out, named)
        writer.retold(now, record)
    if params:
        log.info(f"{len(params)} trials that the study had lost are taken from their records")


def _tell_of_nameless(records: Sequence[Record], known: Collection[str | None]) -> None:
    """Tell of records that may be this study's, or another's."""
    nameless = [one for one in records if not one.study and one.numbers == NUMBERS and one.config_hash not in known]
    if nameless:
        log.info(
            f"{len(nameless)} records do not say of which study they are, as earlier programs have written them, and "
            "this is not the only one here: they are left out, and a trial of theirs that is proposed is not run again"
        )


def _params(tree: dict[str, Any], records: Mapping[int, Record], hardware: Hardware) -> dict[int, Point]:
    """The values of the open leaves in each record; those that are not of the space are told of and left out."""
    found, unfit = dict[int, Point](), dict[int, str]()
    for number, record in records.items():
        try:
            config = of_record(record)
            require(plugins_in(config) == record.plugins, "plug-ins", record.plugins, f"{plugins_in(config)}, as here")
            told = params_of(tree, config, lambda one: settled(one, hardware))
            found[number] = check_point(tree, told, "parameters")
        except InputError as error:
            unfit[number] = str(error)
    if unfit:
        number, why = next(iter(unfit.items()))
        what = f"{len(unfit)} trials of the records are not of this space and left out"
        log.info(f"{what}: of {records[number].arm}, {why}")
    return found


def _begun(records: Sequence[Record], spec: SearchSpec) -> Collection[int]:
    """Numbers of the trials of the study that were to be run, as the manifest of the folder has them.

    An earlier version's does not say of which study: a trial with the record of another is not taken for its own.
    """
    planned = read_manifest(spec.out).planned if (spec.out / MANIFEST).is_file() else []
    others = {record.config_hash for record in records if record.study not in ("", spec.study)}
    own = [
        one["arm"]
        for one in planned
        if (one["study"] == spec.study if "study" in one else one["config_hash"] not in others)
    ]
    return {number for arm in own if (number := number_of(arm)) is not None}
