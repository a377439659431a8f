"""What kind of machine trials run on: rows of unlike kinds are never paired, as unlike machines train unlike teachers.

Each kind has a folder of records of its own, so that no trial goes on from the checkpoint of another kind, nor is taken
for finished because another has run it.
"""

import hashlib
import platform
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from benchmark.rows import processor

from condkd_ray.core.config import read_tree
from condkd_ray.core.environment import versions
from condkd_ray.core.storage import atomic_write

FILE = "machine.yaml"
"""In a folder of records: the kind that they are of."""


@dataclass(frozen=True)
class Machine:
    """The processor, the GPU where trials have some of it, PyTorch's version, and the threads of a trial."""

    kind: str
    torch: str
    threads: int

    def folder(self, claim: Path) -> Path:
        """Of its records, in the folder of a claim."""
        return claim / hashlib.sha256(repr(self).encode()).hexdigest()[:8]

    def remember(self, claim: Path) -> None:
        """Write down whose folder it is, before records come into it."""
        told = {"kind": self.kind, "torch": self.torch, "threads": self.threads}
        atomic_write(self.folder(claim) / FILE, yaml.safe_dump(told).encode())


def here(gpus: float, threads: int) -> Machine:
    """This machine."""
    gpu = torch.cuda.get_device_name() if gpus and torch.cuda.is_available() else ""
    kind = "; ".join(filter(None, (f"{platform.machine()}, {processor()}", gpu)))
    return Machine(kind, versions()["torch"], threads)


def folders(claim: Path) -> dict[Path, str]:
    """The folders of records in that of a claim, each with the kind of its machine."""
    return {path.parent: str(read_tree(path).get("kind")) for path in sorted(claim.glob(f"*/{FILE}"))}
