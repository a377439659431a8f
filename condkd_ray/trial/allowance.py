"""The CPUs and GPUs that Ray reserves for a process that computes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Allowance:
    """CPUs and GPUs of one process: a trial, or one of its producers."""

    cpus: float = 1
    gpus: float = 0

    @property
    def threads(self) -> int:
        """Number of PyTorch threads: one per CPU."""
        return max(1, int(self.cpus))

    @property
    def bundle(self) -> dict[str, float]:
        """The resources in the form of a Ray placement bundle."""
        return {"CPU": self.cpus, "GPU": self.gpus} if self.gpus else {"CPU": self.cpus}
