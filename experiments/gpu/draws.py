"""(e) Time of a draw from the memory, for different numbers of chunks."""

from functools import partial

import torch

from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import Codec, Samples
from condkd_ray.methods.memory import Growing, LocalStore
from condkd_ray.models import ResNet
from gpu import world
from gpu.parts import Box, Setup, Verdict
from gpu.timing import launched, milliseconds

GROWTH = 1.5
"""Largest accepted ratio of operators per draw, between the most and the fewest chunks (our choice)."""


def draws(setup: Setup, box: Box) -> Verdict:
    """Note milliseconds, operators and launches of a draw from the local store on the device, by number of chunks."""
    sizes, operators = setup.sizes, []
    found = world.teacher(ResNet(depth=8, width=4), sizes.shape, sizes.classes, setup.device)
    for chunks in sizes.chunks:
        rng, memory = Streams(0, setup.device), Growing()
        store = LocalStore(Codec("unit", found.mean, found.std, logits=False), sizes.classes, None, setup.device)
        state = memory.init(found, rng)
        labels = torch.arange(sizes.draw, device=setup.device) % sizes.classes
        for _ in range(chunks):
            images = torch.randn(sizes.draw, *sizes.shape, device=setup.device, generator=rng["latents"])
            memory.add(state, store, Samples(images, labels, images.new_zeros(len(labels), 0)), teacher=found, rng=rng)
        draw = partial(memory.draw, state, store, sizes.draw, teacher=found, rng=rng)
        taken = {"ms": milliseconds(draw, setup.device, repeats=sizes.repeats)} | launched(draw, setup.device)
        box.note(f"{chunks} chunks", taken)
        operators.append(taken["operators"])
    text = f"{operators[0]} operators at {sizes.chunks[0]} chunks, {operators[-1]} at {sizes.chunks[-1]}"
    return setup.verdict(operators[-1] <= GROWTH * operators[0], text, f"at most {GROWTH} times as many")
