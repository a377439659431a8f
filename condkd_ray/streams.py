"""Named random streams, one per use, so that switching one part off leaves every other draw unchanged."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def derive_seed(seed: int, name: str) -> int:
    """A 63-bit seed from `(seed, name)`, the same on every machine and Python version."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


class Streams:
    """Generators by name: `streams["latents"]` is made at first use, seeded by hash(seed, name).

    Names in use: init/student, init/generator, init/guide, targets, latents, augment/inversion, augment/guide,
    draw, condensed, augment/student. There is no global generator anywhere in the package.
    """

    def __init__(self, seed: int, device: torch.device | str = "cpu") -> None:
        self.seed = seed
        self.device = torch.device(device)
        self._generators: dict[str, torch.Generator] = {}

    def __getitem__(self, name: str) -> torch.Generator:
        if name not in self._generators:
            generator = torch.Generator(device=self.device)
            generator.manual_seed(derive_seed(self.seed, name))
            self._generators[name] = generator
        return self._generators[name]

    @contextmanager
    def forked(self, name: str) -> Iterator[None]:
        """Run a block whose *global* draws (PyTorch's default initialisers) come from `(seed, name)`.

        The global generator is put back afterwards. For building networks on the CPU only.
        """
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(derive_seed(self.seed, name))
            yield

    def state_dict(self) -> dict[str, Tensor]:
        """Each opened stream's state."""
        return {name: generator.get_state() for name, generator in self._generators.items()}

    def load_state_dict(self, states: dict[str, Tensor]) -> None:
        """Set exactly the saved streams; those not yet opened then start fresh, as they would have."""
        self._generators.clear()
        for name, state in states.items():
            self[name].set_state(state.cpu())
