"""What trials compute on, and what is chosen for it where a config leaves that open."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from condkd_ray.core import compilation
from condkd_ray.core.method import require
from condkd_ray.methods.memory.device_rows import quarter
from condkd_ray.methods.supervised import Precision, bf16_pays
from condkd_ray.trial.allowance import Allowance
from condkd_ray.trial.config import TrialConfig


@dataclass(frozen=True)
class Hardware:
    """A GPU by its name, or, where that is empty, the CPU."""

    gpu: str = ""
    bf16: bool = False
    """Whether it is a GPU that multiplies bfloat16 in hardware."""
    memory: int = 0
    """Bytes that it has; of a CPU nobody asks."""

    @property
    def precision(self) -> Precision:
        """Of trials that leave it open: bfloat16 where a GPU has it. On a CPU it must be asked for."""
        return "bfloat16" if self.bf16 else "float32"


CPU = Hardware()


def hardware_of(device: torch.device | str) -> Hardware:
    """What `device` is, one of this machine's."""
    if torch.device(device).type != "cuda":
        return CPU
    memory = torch.cuda.get_device_properties(device).total_memory
    return Hardware(torch.cuda.get_device_name(device), bf16_pays(device), memory)


def settled(config: TrialConfig, hardware: Hardware) -> TrialConfig:
    """`config` with all that it leaves to the hardware chosen.

    To be done once, before anything is named by the config's hash: a name and a record then say what is computed.
    Raises `InputError` for what the hardware cannot do: graphs on a CPU, and there, `compile` without a compiler. What
    stands on the machine of a GPU its trial finds out.
    """
    require(bool(hardware.gpu) or not config.graphs, "graphs on a CPU", config.graphs, "false, or trials on a GPU")
    if not hardware.gpu:
        compilation.check(config.compile, graphs=False, device="cpu")
    return config if config.precision is not None else replace(config, precision=hardware.precision)


def compute_line(
    configs: Iterable[TrialConfig], hardware: Hardware, each: Allowance, device_limit: int | None = None
) -> str:
    """One line on what trials of these settled configs compute on, of which `each` has so much, for the terminal.

    `device_limit`: bytes of samples of a trial on its GPU, where somebody has said.
    """
    precisions = " or ".join(sorted({str(config.precision) for config in configs}))
    threads, gpus = each.threads, each.gpus
    if not hardware.gpu:
        return f"trials compute on the CPU, {threads} {'thread' if threads == 1 else 'threads'} each, in {precisions}"
    share = "one each" if gpus == 1 else f"{gpus:g} of it each" if gpus < 1 else f"{gpus:g} each"
    limit = quarter(hardware.memory, gpus) if device_limit is None else device_limit
    samples = f"samples on the GPU up to {limit / 1e9:.1f} GB a trial"
    numbers = f"in {precisions}, TF32 for convolutions that stay float32"
    return f"trials compute on {hardware.gpu}, {share}, {numbers}; {samples}"
