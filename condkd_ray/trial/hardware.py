"""The hardware trials run on, and the config values that depend on it."""

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
    """A GPU, or the CPU if `gpu` is empty."""

    gpu: str = ""
    """Name of the GPU."""
    bf16: bool = False
    """True if the GPU multiplies bfloat16 in hardware."""
    memory: int = 0
    """Memory of the GPU in bytes; 0 for a CPU."""

    @property
    def precision(self) -> Precision:
        """The precision of trials that do not set it: bfloat16 on a GPU with hardware support, otherwise float32."""
        return "bfloat16" if self.bf16 else "float32"


CPU = Hardware()


def hardware_of(device: torch.device | str) -> Hardware:
    """Return the hardware of a `device` of this machine."""
    if torch.device(device).type != "cuda":
        return CPU
    memory = torch.cuda.get_device_properties(device).total_memory
    return Hardware(torch.cuda.get_device_name(device), bf16_pays(device), memory)


def settled(config: TrialConfig, hardware: Hardware) -> TrialConfig:
    """Return `config` with the hardware-dependent fields set.

    Call it once, before the config's hash names anything, so that names and records contain the values in use. Raises
    `InputError` for a CPU if `graphs` is set, or if `compile` is set and this machine has no working compiler. For a
    GPU, the trial itself checks the compiler on its own machine.
    """
    require(bool(hardware.gpu) or not config.graphs, "graphs on a CPU", config.graphs, "false, or trials on a GPU")
    if not hardware.gpu:
        compilation.check(config.compile, graphs=False, device="cpu")
    return config if config.precision is not None else replace(config, precision=hardware.precision)


def compute_line(
    configs: Iterable[TrialConfig], hardware: Hardware, each: Allowance, device_limit: int | None = None
) -> str:
    """Return one line for the terminal about the hardware of trials with these configs, which `settled` has completed.

    `each`: share of the hardware for one trial. `device_limit`: most bytes of samples that a trial keeps on its GPU;
    None for the default.
    """
    precisions = " or ".join(sorted({str(config.precision) for config in configs}))
    threads, gpus = each.threads, each.gpus
    if not hardware.gpu:
        return f"trials compute on the CPU, {threads} {'thread' if threads == 1 else 'threads'} each, in {precisions}"
    share = "one each" if gpus == 1 else f"{gpus:g} of it each" if gpus < 1 else f"{gpus:g} each"
    limit = quarter(hardware.memory, gpus) if device_limit is None else device_limit
    samples = f"samples on the GPU up to {limit / 1e9:.1f} GB per trial"
    numbers = f"in {precisions}, TF32 for convolutions that stay float32"
    return f"trials compute on {hardware.gpu}, {share}, {numbers}; {samples}"
