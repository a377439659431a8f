"""Names of the figures, and of rows that others read. Without heavy imports, so that flags are parsed at once."""

from typing import Literal

ClusterFigure = Literal[
    "draw",
    "blocked",
    "reader",
    "startup",
    "waiting",
    "sharing",
    "raylets",
    "driver",
    "sweep",
    "bookkeeping",
    "clients",
    "contribute",
    "sleepers",
    "broadcast",
]
PeerFigure = Literal["fast_resnet", "fast_wrn", "cmi", "nayer"]

POOL_CPU = "CPU time of the pool's process a round, 64 clients that pause"
UNPACED_POOL_CPU = "CPU time of the pool's process a round, 16 clients without pauses"
UNPACED_REST_CPU = "CPU time of all other processes a round (client, raylet, GCS, loader), 16 clients without pauses"
UNPACED = "append of 256 images 3x32x32 and commit, 16 clients without pauses on 2 cores"
DRIVER_CPU = "CPU time of the driver a reported round, sleeping trials"
"""What rows measure whose values the simulation reads, or is compared with."""
