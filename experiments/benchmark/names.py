"""Names of the figures, in a module without heavy imports, so that flags are parsed at once."""

from typing import Literal

ClusterFigure = Literal[
    "draw", "blocked", "reader", "startup", "waiting", "sharing", "raylets", "driver", "bookkeeping", "sweep"
]
PeerFigure = Literal["fast_resnet", "fast_wrn", "cmi", "nayer"]
