"""Everything a step needs, assembled once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from medtrain.protocols.dataset import Augmentation
from medtrain.protocols.metric import Metric
from medtrain.protocols.model import move_batch
from medtrain.runtime.determinism import StepSeeder
from medtrain.runtime.distributed import World
from medtrain.runtime.precision import autocast


@dataclass
class Engine:
    """Everything a step needs, assembled once. `model` may be under DDP; `plain` is the same without.

    skip_after: leave out steps that are not finite, up to so many in a row (`skipped`); None: none is looked at.
    """

    model: nn.Module
    plain: nn.Module
    loss: Callable[..., Any]
    optimizer: Any
    schedule: Any
    world: World
    seeder: StepSeeder
    augmentation: Augmentation | None = None
    metrics: list[Metric] = field(default_factory=list)
    amp: torch.dtype | None = None
    scaler: torch.amp.GradScaler | None = None
    ema: torch.optim.swa_utils.AveragedModel | None = None
    memory_format: torch.memory_format | None = None
    accumulation_steps: int = 1
    clip_grad_value: float | None = None
    clip_grad_norm: float | None = None
    clip_norm_type: float = 2.0
    skip_after: int | None = None
    skipped: int = 0
    stages: Any = None
    trainable: Any = None
    build_schedule: Callable[[], Any] | None = None

    def autocast(self) -> AbstractContextManager[Any]:
        return autocast(self.world.device, self.amp)

    def move(self, batch: dict[str, Any]) -> dict[str, Any]:
        if self.world.device.type == "cpu" and self.memory_format is None:
            return batch
        moved: dict[str, Any] = move_batch(batch, self.world.device, self.memory_format)
        return moved

    def for_evaluation(self) -> nn.Module:
        """The weights that count: their moving average when there is one."""
        return self.plain if self.ema is None else self.ema.module
