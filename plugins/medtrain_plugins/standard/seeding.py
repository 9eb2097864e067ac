"""Seeds for what a script does besides its trainings."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from medtrain.runtime.determinism import GLOBAL_SEED, use_deterministic_algorithms


def seed_everything(seed: int = 0, deterministic: bool = False) -> int:
    """Seed Python, NumPy and torch now, and every Trainer made from now on that is given no seed; returns the seed.

    A training needs none of this: its randomness follows from its own seed. It is for what a script does besides.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries that draw from the global generator
    torch.manual_seed(seed)
    use_deterministic_algorithms(deterministic)
    os.environ[GLOBAL_SEED] = str(seed)
    return seed


@contextmanager
def seed_everything_context(seed: int = 0, deterministic: bool = False) -> Iterator[int]:
    """`seed_everything` within a block; afterwards every generator, flag and default is what it was."""
    python, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    cudnn = torch.backends.cudnn
    flags = torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    before = os.environ.get(GLOBAL_SEED)
    try:
        yield seed_everything(seed, deterministic)
    finally:
        random.setstate(python)
        np.random.set_state(numpy_state)  # noqa: NPY002
        torch.set_rng_state(torch_state)
        if gpus:
            torch.cuda.set_rng_state_all(gpus)
        if flags[0] or torch.are_deterministic_algorithms_enabled():
            torch.use_deterministic_algorithms(flags[0], warn_only=warn_only)
        cudnn.deterministic, cudnn.benchmark = flags[1:]
        os.environ.pop(GLOBAL_SEED, None)
        if before is not None:
            os.environ[GLOBAL_SEED] = before
