"""What Ray gives a process that computes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Allowance:
    """What a process that computes gets: a trial, or one of its producers."""

    cpus: float = 1
    gpus: float = 0

    @property
    def threads(self) -> int:
        """Of PyTorch: one a CPU."""
        return max(1, int(self.cpus))

    @property
    def bundle(self) -> dict[str, float]:
        """As Ray writes it."""
        return {"CPU": self.cpus, "GPU": self.gpus} if self.gpus else {"CPU": self.cpus}
