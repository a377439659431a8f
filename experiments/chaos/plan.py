"""Kinds of faults, their frequencies, and the seeded schedule on which they strike."""

import random
from collections.abc import Sequence
from typing import Literal

Kind = Literal["trial", "pool", "loader", "driver", "node", "memory", "report", "disk", "journal"]
SHARES: dict[Kind, int] = {
    "trial": 5,
    "pool": 3,
    "loader": 1,
    "driver": 3,
    "node": 2,
    "memory": 2,
    "report": 2,
    "disk": 1,
    "journal": 1,
}
"""Number of faults of each kind in twenty. `trial`, `pool`, `loader` (of chunks, on a node): that process is killed.
`driver`: it is killed, and its command runs again. `node`: all its processes are killed, and it is replaced.
`memory`: another program takes memory until Ray's monitor kills a process. `report`: `condkd report` runs at the same
time. `disk`: the disk of the TensorBoard files is full. `journal`: the driver is killed, the last line of the study's
journal is cut, and the command runs again."""
PAUSE = (2.0, 10.0)
"""Smallest and largest number of seconds between two faults."""


def schedule(faults: int, seed: int, kinds: Sequence[Kind] = tuple(SHARES)) -> list[tuple[Kind, float]]:
    """Return the kind of each fault, and the seconds since the fault before. Every kind occurs if `faults` suffice."""
    rng, each = random.Random(seed), list(kinds)
    drawn = each + rng.choices(each, [SHARES[kind] for kind in each], k=max(faults - len(each), 0))
    del drawn[faults:]
    rng.shuffle(drawn)
    return [(kind, rng.uniform(*PAUSE)) for kind in drawn]
