"""Describes the machine that trials run on. Rows of different machines are never paired: their teachers differ.

Each kind of machine has its own folder of records, so that no trial resumes from another machine's checkpoint or counts
as finished because another machine ran it.
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
"""Name of the file in a folder of records that describes their machine."""


@dataclass(frozen=True)
class Machine:
    """Processor, GPU if trials use one, PyTorch's version, and threads per trial."""

    kind: str
    torch: str
    threads: int

    def folder(self, claim: Path) -> Path:
        """Return the folder of this machine's records, inside the folder of a claim."""
        return claim / hashlib.sha256(repr(self).encode()).hexdigest()[:8]

    def write(self, claim: Path) -> None:
        """Write the machine's description into its folder, before any records."""
        tree = {"kind": self.kind, "torch": self.torch, "threads": self.threads}
        atomic_write(self.folder(claim) / FILE, yaml.safe_dump(tree).encode())


def here(gpus: float, threads: int) -> Machine:
    """Return the description of this machine."""
    gpu = torch.cuda.get_device_name() if gpus and torch.cuda.is_available() else ""
    kind = "; ".join(filter(None, (f"{platform.machine()}, {processor()}", gpu)))
    return Machine(kind, versions()["torch"], threads)


def folders(claim: Path) -> dict[Path, str]:
    """Return the folders of records in a claim's folder, each with its machine's kind."""
    return {path.parent: str(read_tree(path).get("kind")) for path in sorted(claim.glob(f"*/{FILE}"))}
