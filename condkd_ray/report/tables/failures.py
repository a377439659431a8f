"""The failed trials of a run as plain text: names, reasons, and the commands that run them again.

A search has only the command that repeats one trial, because it does not run a failed trial again.
"""

import itertools
import shlex
from collections.abc import Sequence
from pathlib import Path

from condkd_ray.core.records import Manifest, Record
from condkd_ray.report.results import CALL, Results
from condkd_ray.report.tables.table import WIDTH

SHORTEST = 6
"""Smallest number of digits of a hash in commands and lists."""
REASONS = 6
"""Largest number of different reasons in the text, those of most trials first; the records hold all."""
NAMED = 5
"""Largest number of trials named per reason; the others are counted."""
HERE = ("--only", "--fresh", "--explain")
"""Flags of the run's command that are left out of the command for the failed trials."""


def screen(results: Results) -> str:
    """Return the failed trials, their reasons and the commands that run them again as text; "" if no trial failed."""
    failed, manifest, out = results.of("failed"), results.manifest, results.out
    if not failed:
        return ""
    planned = [trial["config_hash"] for trial in manifest.planned]
    names = _short(planned + [record.config_hash for record in results.records])
    reasons: dict[str, list[Record]] = {}
    for record in failed:
        reasons.setdefault(" ".join(record.outcome.reason.split()) or "no reason stored", []).append(record)
    lines = [f"{len(failed)} of {results.planned} trials failed", ""]
    by_count = sorted(reasons.items(), key=lambda pair: -len(pair[1]))
    for reason, members in by_count[:REASONS]:
        lines += _group(reason, members, names, out)
    lines += [f"and {len(by_count) - REASONS} more reasons, in {out / 'records'}"] if len(by_count) > REASONS else []
    return "\n".join([*lines, "", *_commands(failed, names, manifest, out), ""])


def _commands(failed: Sequence[Record], names: dict[str, str], manifest: Manifest, out: Path) -> list[str]:
    """Return lines with the command that repeats the failed trial with the fewest rounds.

    Except for a search, they also have the command that runs all failed trials again. For the folder of a single trial,
    they have only the command that made it.
    """
    if manifest.command.startswith(CALL):
        return ["Again: the same call."]
    if manifest.experiment == "train":
        return ["To run it again:", f"  {shlex.join(_without(HERE, manifest.command))}"]
    first = min(failed, key=lambda record: (record.outcome.rounds, record.ipc, record.config_hash))
    one = [
        "To repeat one of them in one process, with the whole traceback if it raises an exception:",
        f"  {_repeat(first, names[first.config_hash], manifest, out)}",
    ]
    if manifest.search:
        return one
    only = [names[record.config_hash] for record in failed]
    return [
        *one,
        "To run only these again:",
        f"  {shlex.join([*_without(HERE, manifest.command), '--only', *only])}",
    ]


def _short(hashes: Sequence[str]) -> dict[str, str]:
    """Return for each hash the shortest prefix, of `SHORTEST` digits or more, that no other hash has."""
    known = sorted(set(hashes))
    # In this order, the hash that has the most digits in common with another one is a neighbour of it.
    common = [0, *(_common_digits(*pair) for pair in itertools.pairwise(known)), 0]
    longest = map(max, itertools.pairwise(common))
    return {whole: whole[: max(SHORTEST, digits + 1)] for whole, digits in zip(known, longest, strict=False)}


def _common_digits(first: str, second: str) -> int:
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (one, other) in pairs if one != other), min(len(first), len(second)))


def _group(reason: str, members: Sequence[Record], names: dict[str, str], out: Path) -> list[str]:
    line = f"{len(members)} x  {reason}"
    trials = [f"{_label(record)} ({names[record.config_hash]})" for record in members[:NAMED]]
    more = [f"{len(members) - NAMED} more"] if len(members) > NAMED else []
    traces = [path for record in members if (path := out / "trials" / record.config_hash / "attempts.json").is_file()]
    return [
        line if len(line) <= WIDTH else f"{line[: WIDTH - 3]}...",
        f"     {', '.join(trials + more)}",
        *[f"     traces: {path}" for path in traces[:1]],
    ]


def _label(record: Record) -> str:
    return f"{record.arm}{f' ipc {record.ipc}' if record.ipc else ''} seed {record.seed}"


def _repeat(record: Record, name: str, manifest: Manifest, out: Path) -> str:
    words = shlex.split(manifest.command)
    cache = [word for place in _places(words, "--cache") for word in words[place]]
    threads = ["--threads", str(record.outcome.threads)] if record.outcome.threads > 1 else []
    return shlex.join(["condkd", "train", "--from-record", str(out), name, *cache, *threads])


def _without(flags: Sequence[str], command: str) -> list[str]:
    """Return the words of a command without these flags and their values."""
    words = shlex.split(command)
    for flag in flags:
        for place in reversed(_places(words, flag)):
            del words[place]
    return words


def _places(words: Sequence[str], flag: str) -> list[slice]:
    """Return the position of each occurrence of `flag`, with its values, in order."""
    found = []
    for start, word in enumerate(words):
        if word.partition("=")[0] == flag:
            later = (place for place in range(start + 1, len(words)) if words[place].startswith("--"))
            found.append(slice(start, next(later, len(words)) if word == flag else start + 1))
    return found
