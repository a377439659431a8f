"""Failed trials on one screen: which, why, the command that repeats one, and the one that runs only these again.

A search runs none again.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path

from condkd_ray.core.records import Manifest, Record
from condkd_ray.report.results import CALL, Results
from condkd_ray.report.tables.table import WIDTH

SHORTEST = 6
"""Digits of a hash, at least, in commands and lists."""
REASONS = 6
"""As many different reasons are told, those of most trials; the others are in the records."""
NAMED = 5
"""As many trials that failed for one reason are named; the rest are counted."""
HERE = ("--only", "--fresh", "--explain")
"""Flags of a command that shall not stand in the one that runs its failed trials again."""


def screen(results: Results) -> str:
    """What went wrong, as plain text; empty where nothing did."""
    failed, manifest, out = results.of("failed"), results.manifest, results.out
    if not failed:
        return ""
    planned = [trial["config_hash"] for trial in manifest.planned]
    names = _short(planned + [record.config_hash for record in results.records])
    reasons: dict[str, list[Record]] = {}
    for record in failed:
        reasons.setdefault(" ".join(record.outcome.reason.split()) or "no reason stored", []).append(record)
    lines = [f"{len(failed)} of {results.planned} trials failed", ""]
    told = sorted(reasons.items(), key=lambda pair: -len(pair[1]))
    for reason, members in told[:REASONS]:
        lines += _group(reason, members, names, out)
    lines += [f"and {len(told) - REASONS} more reasons, in {out / 'records'}"] if len(told) > REASONS else []
    return "\n".join([*lines, "", *_commands(failed, names, manifest, out), ""])


def _commands(failed: Sequence[Record], names: dict[str, str], manifest: Manifest, out: Path) -> list[str]:
    """The smallest to repeat one, and but for a search, to which they are over, one to run all that failed.

    Of a single trial's folder, the command of before.
    """
    if manifest.command.startswith(CALL):
        return ["Again: the same call."]
    if manifest.experiment == "train":
        return ["Again:", f"  {shlex.join(_without(HERE, manifest.command))}"]
    first = min(failed, key=lambda record: (record.outcome.rounds, record.ipc, record.config_hash))
    one = [
        "One of them again, in one process, with its whole trace where it raises an exception:",
        f"  {_repeat(first, names[first.config_hash], manifest, out)}",
    ]
    if manifest.search:
        return one
    only = [names[record.config_hash] for record in failed]
    return [
        *one,
        "Only these again:",
        f"  {shlex.join([*_without(HERE, manifest.command), '--only', *only])}",
    ]


def _short(hashes: Sequence[str]) -> dict[str, str]:
    """The shortest beginning of each hash that is no other's."""
    known = set(hashes)
    return {
        whole: next(
            whole[:length]
            for length in range(SHORTEST, max(len(whole), SHORTEST) + 1)
            if length >= len(whole) or sum(other.startswith(whole[:length]) for other in known) == 1
        )
        for whole in known
    }


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
    """The words of a command, less these flags and their values."""
    words = shlex.split(command)
    for flag in flags:
        for place in reversed(_places(words, flag)):
            del words[place]
    return words


def _places(words: Sequence[str], flag: str) -> list[slice]:
    """Where `flag` stands with its values, in the order of the words."""
    found = []
    for start, word in enumerate(words):
        if word.partition("=")[0] == flag:
            later = (place for place in range(start + 1, len(words)) if words[place].startswith("--"))
            found.append(slice(start, next(later, len(words)) if word == flag else start + 1))
    return found
