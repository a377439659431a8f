"""Named random streams, one per use. Switching one part of a trial off leaves all other draws unchanged."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def derive_seed(seed: int, name: str) -> int:
    """Return a 63-bit seed for `(seed, name)`, equal on every machine and Python version."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


class Streams:
    """Generators by name: `streams["latents"]` is created at its first use, seeded by hash(seed, name).

    Names in use within a trial: init/student, init/generator, init/generator/<round>, init/embeddings, init/head,
    init/guide, init/replay, targets, latents, negatives, start, augment/inversion, augment/guide, draw, reservoir,
    replay, condensed, augment/student, augment/condensed. No draw changes the state of PyTorch's global generator.
    """

    def __init__(self, seed: int, device: torch.device | str = "cpu") -> None:
        self.seed = seed
        self.device = torch.device(device)
        self._opened: dict[str, dict[str, torch.Generator]] = {"device": {}, "host": {}}

    def __getitem__(self, name: str) -> torch.Generator:
        """Return the stream `name` on the device, for images."""
        return self._open("device", name, self.device)

    def host(self, name: str) -> torch.Generator:
        """Return the stream `name` on the CPU, for draws that code reads there or that must be equal on all devices."""
        return self._open("host", name, torch.device("cpu"))

    def _open(self, where: str, name: str, device: torch.device) -> torch.Generator:
        opened = self._opened[where]
        if name not in opened:
            opened[name] = torch.Generator(device=device).manual_seed(derive_seed(self.seed, name))
        return opened[name]

    @contextmanager
    def forked(self, name: str) -> Iterator[None]:
        """Make PyTorch's default initialisers in the block draw from `(seed, name)` instead of the global generator.

        The state of the global generator is restored afterwards. Only for building networks on the CPU.
        """
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(self.seed, name))
            yield

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Return the state of each stream that has been used."""
        places = self._opened.items()
        return {place: {name: one.get_state() for name, one in opened.items()} for place, opened in places}

    def load_state_dict(self, states: dict[str, dict[str, Tensor]]) -> None:
        """Restore the saved streams; other streams start from their seeds."""
        self._opened = {"device": {}, "host": {}}
        for name, state in states["device"].items():
            self[name].set_state(state.cpu())
        for name, state in states["host"].items():
            self.host(name).set_state(state.cpu())
