"""Images made ahead of the student that learns from them: which round is whose, and how old a student it is shown.

No method of a paper: how the work of a trial is laid out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from condkd_ray.core.method import Method, require


@dataclass(frozen=True, kw_only=True)
class Pipeline(Method):
    """Inversion goes on while the student learns. Staleness is exact, so that timing decides nothing: a run repeats.

    Rounds are counted from 0. Producers take turns, each with an inversion, a guidance and random streams of its own;
    one alone has those of a trial without a pipeline. A round is made with the student (and, for a weighing that reads
    the memory, the class counts) as `staleness` rounds before, or as at the very start. So staleness 0 and one producer
    are the numbers of a trial without a pipeline, and so are one producer and any staleness where nobody asks the
    student or the memory.
    """

    ours: ClassVar[tuple[str, ...]] = ("producers", "staleness")
    producers: int = 1
    """How many make images. Under Ray each is a process beside the trial's own, on its share of a GPU."""
    staleness: int = 1
    """Rounds by which the student that an inversion asks may be behind; as many are made ahead. 0: none is."""

    def __post_init__(self) -> None:
        require(self.producers >= 1, "pipeline producers", self.producers, "an integer >= 1")
        require(self.staleness >= 0, "pipeline staleness", self.staleness, "an integer >= 0")
        # Beyond that some would only ever wait: no more rounds are in the making at a time.
        most = self.staleness + 1
        require(self.producers <= most, "pipeline producers", self.producers, f"at most {most}, the staleness + 1")

    def producer(self, round: int) -> int:
        """Who makes `round`."""
        return round % self.producers

    def shown(self, round: int) -> int:
        """After how many rounds the student was what the producer of `round` is shown."""
        return max(0, round - self.staleness)


@dataclass(frozen=True)
class Allowance:
    """What a producer gets of the cluster."""

    cpus: float = 1
    gpus: float = 0

    @property
    def bundle(self) -> dict[str, float]:
        """As Ray writes it."""
        return {"CPU": self.cpus, "GPU": self.gpus} if self.gpus else {"CPU": self.cpus}
