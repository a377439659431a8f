"""What can be measured: apart from what measures, so that flags are known at once."""

from typing import Literal

ClusterFigure = Literal["draw", "blocked", "reader", "startup", "waiting", "sharing", "raylets", "driver", "sweep"]
PeerFigure = Literal["fast_resnet", "fast_wrn", "cmi", "nayer"]
