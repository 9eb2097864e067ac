"""What the core does when no plugin answers, by the names that plugins use; and the idea of an improvement."""

from __future__ import annotations

import math
from typing import Any, Literal

from medtrain.optimizers import build_optimizer, parameter_groups
from medtrain.schedules import Plan, Schedule, WarmupSchedule, build_schedule

__all__ = ["Improvement", "Plan", "Schedule", "WarmupSchedule", "build_optimizer", "build_schedule", "parameter_groups"]


class Improvement:
    """The best value so far and how many values ago it was; NaN never improves."""

    def __init__(self, mode: Literal["max", "min"], min_delta: float = 0.0) -> None:
        self.mode, self.min_delta = mode, min_delta
        self.best: float | None = None
        self.epoch: int | None = None
        self.since = 0

    def update(self, value: float, epoch: int) -> bool:
        """Take a value; True when it is the new best."""
        gain = value - (0.0 if self.best is None else self.best)
        gain = gain if self.mode == "max" else -gain
        if not math.isnan(value) and (self.best is None or gain > self.min_delta):
            self.best, self.epoch, self.since = value, epoch, 0
            return True
        self.since += 1
        return False

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "epoch": self.epoch, "since": self.since}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.epoch, self.since = state["best"], state["epoch"], state["since"]
