"""Randomness without state: every seed is a pure function of where in the run it is used.

The global order of samples depends on (seed, epoch); what a sample's transforms draw on (seed, epoch, position in
that order); dropout on (seed, step, rank). Nothing has to be saved to resume, and nothing depends on workers.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

_MASK = (1 << 64) - 1
GLOBAL_SEED = "MEDTRAIN_SEED"


def derive(seed: int, *parts: int) -> int:
    """A 63-bit seed from a seed and the coordinates of its use (splitmix64 finaliser, chained)."""
    state = 0
    # The seed is mixed like every part: xor alone would let seed 0, part 1 and seed 1, part 0 share a stream.
    for part in (seed, *parts):
        state = _mix(state, part)
    return state >> 1


def deriver(seed: int) -> Callable[[int], int]:
    """`derive(seed, part)` as a function of the part, for many of them."""
    state = _mix(0, seed)
    return lambda part: _mix(state, part) >> 1


def _mix(state: int, part: int) -> int:
    state = (state ^ (part & _MASK)) + 0x9E3779B97F4A7C15 & _MASK
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB & _MASK
    return state ^ (state >> 31)


# First coordinate of every use, so that two uses never share a stream.
MODEL, ORDER, SAMPLE, STEP, SPLIT, BOOTSTRAP = range(6)


def seed_model(seed: int) -> None:
    """Seed every generator before a model is built, so that its fresh weights depend on the seed only."""
    value = derive(seed, MODEL)
    torch.manual_seed(value)
    np.random.seed(value % 2**32)  # noqa: NPY002 - libraries that draw from the global generator
    random.seed(value)


def seed_sample(value: int) -> None:
    """Seed the generators a dataset may draw from, in whichever process it runs."""
    torch.default_generator.manual_seed(value)
    np.random.seed(value % 2**32)  # noqa: NPY002 - as above
    random.seed(value)


class StepSeeder:
    """Reseeds the device's generator before each step: 1 us through the generator itself."""

    def __init__(self, seed: int, rank: int, device: torch.device) -> None:
        self.derive = deriver(derive(seed, STEP, rank))
        generators: list[Any] = [torch.default_generator]
        if device.type == "cuda":
            generators.append(torch.cuda.default_generators[device.index or 0])
        elif device.type == "mps":
            generators.append(torch.mps._get_default_mps_generator())
        self.generators = generators

    def __call__(self, step: int) -> None:
        value = self.derive(step)
        for generator in self.generators:
            generator.manual_seed(value)


def use_deterministic_algorithms(enabled: bool) -> None:
    """Ask torch for deterministic operations; those without one warn rather than fail."""
    if enabled or torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(enabled, warn_only=True)  # which imports torch's compiler: two seconds
    torch.backends.cudnn.deterministic = enabled
    if enabled:
        torch.backends.cudnn.benchmark = False


# What torch does when nobody says otherwise.
_TF32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


def use_backends(benchmark: bool, allow_tf32: bool | None) -> None:
    """cuDNN's search for the fastest algorithm, and TF32 in float32 arithmetic (None: as torch has it)."""
    torch.backends.cudnn.benchmark = benchmark
    products, convolutions = _TF32 if allow_tf32 is None else (allow_tf32, allow_tf32)
    torch.backends.cuda.matmul.allow_tf32 = products
    torch.backends.cudnn.allow_tf32 = convolutions


def global_seed() -> int | None:
    """The seed of `seed_everything`, in this process or the one that started it."""
    seed = os.environ.get(GLOBAL_SEED)
    return None if seed is None else int(seed)
