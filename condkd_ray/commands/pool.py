"""`condkd pool`: print the status file of a sweep's sample pool, during the sweep or after it."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tyro

from condkd_ray.cluster.files import STATUS
from condkd_ray.commands.console.exit_codes import show
from condkd_ray.commands.console.live import aligned
from condkd_ray.core.method import InputError
from condkd_ray.core.storage import Location, get_text, locate, reason
from condkd_ray.core.units import duration

COLUMNS = ("key", "trials", "rounds", "chunks", "samples", "MB", "MB on disk alone", "rounds spared", "made by")


@dataclass(frozen=True)
class Pool:
    """Print the contents of the pool of a sweep: keys, chunks, bytes, readers, and the rounds that sharing saved."""

    out: tyro.conf.Positional[str]
    """The `--out` of an experiment, running or interrupted; or its `--storage`, if that is another folder."""


def show_pool(command: Pool) -> int:
    """Run `condkd pool`; return 0. Raises `InputError` if no pool has written a status there."""
    show(pool_table(locate(command.out, "storage")))
    return 0


def pool_table(storage: Location) -> str:
    """Return the pool's status as a table. Raises `InputError` if no pool has written a status there."""
    try:
        status = json.loads(get_text(storage / "chunks" / STATUS))
        rows = [_row(key) for key in status["keys"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        accepted = "the --out (or --storage) of an experiment that has started"
        raise InputError(f"{storage} holds no chunks/{STATUS} ({reason(error)}); accepted: {accepted}") from None
    held, disk = (sum(key[name] for key in status["keys"]) / 1e6 for name in ("bytes", "spilled_bytes"))
    seconds = max(0.0, time.time() - status["time"])
    parts = [
        "\n".join(aligned([COLUMNS, *rows])) if rows else "no samples are held",
        f"{held:.1f} MB, of which {disk:.1f} MB on disk alone; limit {status['limit'] / 1e6:.1f} MB of shared memory",
        f"as of {duration(seconds)} ago",
    ]
    return "\n".join(parts)


def _row(key: Mapping[str, Any]) -> tuple[str, ...]:
    sizes = (key["readers"], key["rounds"] or "-", key["chunks"], key["samples"])
    megabytes = (f"{key['bytes'] / 1e6:.1f}", f"{key['spilled_bytes'] / 1e6:.1f}")
    return (key["key"], *map(str, sizes), *megabytes, str(key["hits"]), key["maker"][:12] or "-")
