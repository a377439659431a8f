"""Which faults there are, how often each of them strikes, and when: the seed decides."""

import random
from collections.abc import Sequence
from typing import Literal

Kind = Literal["trial", "pool", "driver", "node", "memory", "report", "disk", "journal"]
SHARES: dict[Kind, int] = {
    "trial": 6,
    "pool": 3,
    "driver": 3,
    "node": 2,
    "memory": 2,
    "report": 2,
    "disk": 1,
    "journal": 1,
}
"""Of twenty faults. `trial`, `pool`: that process is killed. `driver`: it is killed, and its command given again.
`node`: all its processes are killed, and it is replaced. `memory`: another program takes it until Ray's monitor ends a
process. `report`: `condkd report` runs beside. `disk`: that of the TensorBoard files has no room. `journal`: the
driver is killed, and the last line of the study's journal is torn, before its command is given again."""
PAUSE = (2.0, 10.0)
"""Least and most seconds between two faults."""


def schedule(faults: int, seed: int, kinds: Sequence[Kind] = tuple(SHARES)) -> list[tuple[Kind, float]]:
    """The kind of each fault, and its seconds after the one before. Each of `kinds` occurs, where there are enough."""
    rng, each = random.Random(seed), list(kinds)
    drawn = each + rng.choices(each, [SHARES[kind] for kind in each], k=max(faults - len(each), 0))
    del drawn[faults:]
    rng.shuffle(drawn)
    return [(kind, rng.uniform(*PAUSE)) for kind in drawn]
