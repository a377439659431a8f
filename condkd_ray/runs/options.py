"""Where and how an experiment's trials run. No number in a table depends on these flags."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from condkd_ray.core.method import require
from condkd_ray.core.storage import Location, locate
from condkd_ray.trial.config import Allowance
from condkd_ray.trial.identity import Scope

UNIT_SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
UNIT_BYTES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9}
DURATION = "hours, minutes and seconds such as 2h, 90m or 1h30m"


@dataclass(frozen=True, kw_only=True)
class RunFlags:
    """Flags of every experiment on where its files lie, what a trial takes of a cluster, and how much is run."""

    out: Path = Path("runs/experiment")
    """The same folder again continues: what is finished stays."""
    storage: str | None = None
    """Where trials keep checkpoints and chunks until they end, this experiment's alone: a folder that all nodes see, or
    `s3://bucket/prefix`; `--out` if not given."""
    cache: Path | None = None
    """Teachers and condensed sets; $CONDKD_CACHE or a folder in the user's cache home if not given."""
    address: str | None = None
    """Of a Ray cluster; RAY_ADDRESS if not given, else a private one on this machine."""
    cpus_per_trial: float = 1.0
    gpus_per_trial: float = 0.0
    cpus_per_producer: float = 1.0
    gpus_per_producer: float = 0.0
    resource: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """NAME=AMOUNT of a custom resource that a trial needs, so that it runs only on nodes that offer it; repeatable."""
    max_concurrent: int | None = None
    """Trials at once, at most; as many as fit if not given."""
    time_budget: str | None = None
    """Such as 30m, 2h or 1h30m from the start of the command. When it is spent no trial starts, and each one that runs
    stops after its round, with a checkpoint: the same command goes on from there."""
    share: Scope = "trial"
    """Which trials share synthetic images: `trial`, none; `inversion`, those whose images are equal, which are then
    made once, with equal numbers; `sweep`, all of one teacher draw from all, which makes arms of their own."""
    pool_limit: str | None = None
    """Such as 500MB or 4GB of shared memory a node for synthetic images; what is beyond it is read from disk, and told
    of. 60 % of the smallest node's object store if not given."""
    verbose: tyro.conf.FlagCreatePairsOff[bool] = False
    """Also tell each round with its losses, where each trial runs, and what Ray and its processes print."""
    fresh: bool = False
    """Move what `--out` holds aside, delete what trials have left in a `--storage` apart, and begin anew."""

    @property
    def place(self) -> Location:
        """Where trials keep their files. Raises `InputError`."""
        return locate(str(self.out) if self.storage is None else self.storage)

    @property
    def budget_seconds(self) -> float:
        """`--time-budget` in seconds; infinite where there is none. Raises `InputError`."""
        return math.inf if self.time_budget is None else parse_duration(self.time_budget)

    @property
    def per_producer(self) -> Allowance:
        """What each producer of a trial gets."""
        return Allowance(self.cpus_per_producer, self.gpus_per_producer)

    @property
    def resources(self) -> dict[str, float]:
        """`--resource` by name. Raises `InputError`."""
        pairs = [_resource(text) for text in self.resource]
        require(len(dict(pairs)) == len(pairs), "--resource", " ".join(self.resource), "each NAME once")
        return dict(pairs)

    @property
    def pool_bytes(self) -> int | None:
        """`--pool-limit` in bytes; None where there is none. Raises `InputError`."""
        return None if self.pool_limit is None else parse_size(self.pool_limit)

    def check(self) -> None:
        """Raise `InputError` for flags that cannot be read."""
        most = self.max_concurrent
        require(most is None or most >= 1, "--max-concurrent", most, "an integer >= 1")
        assert self.place
        assert self.budget_seconds > 0
        assert all(self.resources.values())
        assert self.pool_bytes != 0


def parse_duration(text: str) -> float:
    """Seconds of a text such as `30m`, `2h`, `1h30m` or `90s`. Raises `InputError`."""
    parts = re.findall(r"(\d+(?:\.\d+)?)([dhms])", text)
    seconds = sum(float(number) * UNIT_SECONDS[unit] for number, unit in parts)
    spelled = "".join(number + unit for number, unit in parts)
    require(spelled == text and seconds > 0, "--time-budget", text, DURATION)
    return seconds


def parse_size(text: str) -> int:
    """Bytes of a text such as `500MB` or `4GB`. Raises `InputError`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(B|kB|MB|GB)", text)
    accepted = "a size such as 500MB or 4GB"
    require(found is not None and float(found[1]) > 0, "--pool-limit", text, accepted)
    assert found is not None
    return int(float(found[1]) * UNIT_BYTES[found[2]])


def _resource(text: str) -> tuple[str, float]:
    name, _, amount = text.partition("=")
    accepted = "NAME=AMOUNT with an amount up to 1 or whole, such as big_memory=1"
    require(name not in ("CPU", "GPU"), "--resource", text, "--cpus-per-trial and --gpus-per-trial for these")
    require(bool(name) and re.fullmatch(r"\d+(\.\d+)?", amount) is not None, "--resource", text, accepted)
    value = float(amount)
    require(0 < value <= 1 or value == int(value) > 1, "--resource", text, accepted)
    return name, value


def chosen(labels: Mapping[str, str], beginnings: Sequence[str]) -> set[str]:
    """The hashes that begin so, each just one; all where none is asked for. Raises `InputError`."""
    there = ", ".join(f"{key[:8]} ({label})" for key, label in list(labels.items())[:20])
    for beginning in beginnings:
        found = sum(key.startswith(beginning) for key in labels)
        require(found == 1, "--only", beginning, f"the beginnings of hashes of planned trials, here {there or 'none'}")
    return {key for key in labels if not beginnings or key.startswith(tuple(beginnings))}
