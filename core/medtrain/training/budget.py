"""How long a run may train: optimizer steps and seconds, those of its resumed parts included."""

from __future__ import annotations

import time

from medtrain.config.sections import OptimizationSection
from medtrain.runtime.distributed import World


class Budget:
    """spent: the reason the budget is exhausted; empty while it is not."""

    def __init__(self, settings: OptimizationSection, world: World) -> None:
        self.steps, self.limit, self.world = settings.max_steps, settings.max_seconds, world
        self.limited = self.steps is not None or self.limit is not None
        self.spent = ""
        self._before, self._started = 0.0, time.monotonic()

    def is_spent(self, step: int) -> bool:
        """Whether it is exhausted after so many steps of the run; all processes agree."""
        self.spent = ""
        if self.steps is not None and step >= self.steps:
            self.spent = f"optimization.max_steps = {self.steps} done"
        elif self.limit is not None and self.world.any(self.seconds >= self.limit):
            self.spent = f"optimization.max_seconds = {self.limit:g} spent"
        return bool(self.spent)

    @property
    def seconds(self) -> float:
        """Trained so far."""
        return self._before + time.monotonic() - self._started

    def resume_from(self, seconds: float) -> None:
        """Count from what was trained before."""
        self._before, self._started = seconds, time.monotonic()
