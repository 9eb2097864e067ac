"""What the core asks of a learning-rate schedule, and how torch's schedulers answer it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch.optim.lr_scheduler import ReduceLROnPlateau


@dataclass(frozen=True)
class Plan:
    """How long the run is, for whoever builds a scheduler. mode: whether a larger monitored value is better."""

    num_epochs: int
    steps_per_epoch: int
    monitor: str
    mode: Literal["max", "min"]
    max_steps: int | None = field(default=None, kw_only=True)

    @property
    def total_steps(self) -> int:
        steps = self.num_epochs * self.steps_per_epoch
        return steps if self.max_steps is None else min(steps, self.max_steps)


class Schedule:
    """A torch scheduler with its cadence.

    interval: "step" steps it after each optimizer step, "epoch" after each epoch (ReduceLROnPlateau: with the
    monitored value, in epochs that have one).
    """

    def __init__(self, scheduler: Any, interval: Literal["step", "epoch"] = "epoch") -> None:
        self.scheduler, self.interval = scheduler, interval
        self.wants_value = isinstance(scheduler, ReduceLROnPlateau)

    def after_step(self) -> None:
        if self.interval == "step":
            self._advance()

    def after_epoch(self, value: float | None) -> None:
        if self.interval == "step":
            return
        if not self.wants_value:
            self._advance()
        elif value is not None:
            self.scheduler.step(value)

    def _advance(self) -> None:
        # One cycle has an end, and a run that is continued beyond it keeps its last rate.
        end = getattr(self.scheduler, "total_steps", None)
        if end is None or self.scheduler.last_epoch + 1 < end:
            self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = self.scheduler.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scheduler.load_state_dict(state)


class Schedules:
    """The schedules of several optimizers, by name."""

    def __init__(self, schedules: Mapping[str, Any]) -> None:
        self.schedules = {name: as_schedule(schedule) for name, schedule in schedules.items()}

    def after_step(self) -> None:
        for schedule in self.schedules.values():
            schedule.after_step()

    def after_epoch(self, value: float | None) -> None:
        for schedule in self.schedules.values():
            schedule.after_epoch(value)

    def state_dict(self) -> dict[str, Any]:
        return {name: schedule.state_dict() for name, schedule in self.schedules.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, schedule in self.schedules.items():
            schedule.load_state_dict(state[name])


def as_schedule(answer: Any) -> Any:
    """What a plugin built: a schedule as it is, a torch scheduler stepped per epoch, a dict of either."""
    if isinstance(answer, Mapping):
        return Schedules(answer)
    return answer if hasattr(answer, "after_step") else Schedule(answer)
