"""Weights as they are passed around, and what an exported file is compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from medtrain.protocols.dataset import Data


@dataclass(frozen=True)
class Check:
    """What an exported file is compared with before it is kept.

    data: the groups of the run's data, read when called; raises DataError or ConfigError where they cannot be used.
    max_drop: what a smaller format may lose of the main metric, in percentage points.
    """

    data: Callable[[], Data]
    max_drop: float = 1.0


State = dict[str, torch.Tensor]


@dataclass
class Weights:
    """Weights as they were read.

    state: tensors under the names of the model's state dict. options: the plugin's options that a model for them has
    to be built with. notes: what a person should know (what was left out, what was assumed), a sentence each.
    """

    state: State
    options: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
