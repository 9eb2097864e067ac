"""Stages of a training: parts with data, batch size and learning rate of their own.

Who is in which group is a matter of the run, not of a stage: a stage may leave training samples out, show them
otherwise (larger patches), or show more samples of the same participants; validation and test stay what they are.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from medtrain.config.sections import RunConfig, check_stages
from medtrain.data.split import Split
from medtrain.errors import ConfigError, DataError, first_lines
from medtrain.protocols.dataset import participants_of, sample_ids_of
from medtrain.protocols.schedule import Plan


class Stages:
    """The stages of a configuration and their data. rebuild: gives the split for a stage's configuration."""

    def __init__(self, config: RunConfig, split: Split, rebuild: Callable[[RunConfig], Split]) -> None:
        self.config, self.whole, self.rebuild = config, split, rebuild
        try:
            check_stages(config.stages, config.optimization.num_epochs)
        except ValueError as error:
            raise ConfigError(f"stages: {error}") from None
        lengths = [stage.epochs for stage in config.stages]
        self.starts = [sum(lengths[:number]) for number in range(len(lengths))]
        self._sizes: list[int] | None = None

    def __bool__(self) -> bool:
        return bool(self.starts)

    def index(self, epoch: int) -> int:
        """The stage of an epoch; the last one lasts to the end."""
        return bisect_right(self.starts, epoch) - 1

    def epochs(self, index: int) -> int:
        """How many epochs a stage has."""
        ends = [*self.starts[1:], self.config.optimization.num_epochs]
        return ends[index] - self.starts[index]

    def config_of(self, index: int) -> RunConfig:
        return self.config.for_stage(self.config.stages[index])

    def split_of(self, index: int) -> Split:
        """The data of a stage; DataError when it moves participants between groups or changes an evaluated group."""
        split = self.rebuild(self.config_of(index))
        where = f"stages.{index}{' (' + name + ')' if (name := self.config.stages[index].name) else ''}"
        for group in sorted((self.whole.groups.keys() | split.groups.keys()) - {"train"}):
            if _samples(self.whole, group) != _samples(split, group):
                raise DataError(
                    f"{where}: the {group} group has other samples; a stage may change the training group only"
                )
        known = _owners(self.whole)
        if strangers := [owner for owner in _owners(split) if owner not in known]:
            raise DataError(
                f"{where}: its training group has members that are not in the run's training group:\n"
                f"{first_lines(strangers)}"
            )
        return split

    def sizes(self) -> list[int]:
        """Training samples of each stage. Every stage's data are built: what is wrong with one shows at the start."""
        if self._sizes is None:
            self._sizes = [len(self.split_of(index).groups["train"]) for index in range(len(self.starts))]
        return self._sizes


def _samples(split: Split, group: str) -> list[str]:
    return list(map(str, sample_ids_of(split.groups[group]))) if group in split.groups else []


def _owners(split: Split) -> dict[str, None]:
    """Participants of the training group, or its samples where nobody says whose they are."""
    train = split.groups["train"]
    return dict.fromkeys(map(str, participants_of(train) or sample_ids_of(train)))


@dataclass(frozen=True)
class StagedPlan(Plan):
    """A plan whose stages have epochs of different lengths; `steps_per_epoch` is that of the first."""

    steps: int = 0

    @property
    def total_steps(self) -> int:
        return self.steps if self.max_steps is None else min(self.steps, self.max_steps)


class ScaledSchedule:
    """A schedule whose rates are multiplied by `scale` for the optimizer and stay as they are for the schedule."""

    def __init__(self, schedule: Any, optimizer: Any) -> None:
        self.schedule, self.optimizer = schedule, optimizer
        self.metric = getattr(schedule, "metric", "")
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.scale = 1.0

    def set_scale(self, scale: float) -> None:
        self.scale = scale
        self._show()

    def after_step(self) -> None:
        self._around(self.schedule.after_step)

    def after_epoch(self, value: float | None) -> None:
        self._around(lambda: self.schedule.after_epoch(value))

    def _around(self, change: Callable[[], None]) -> None:
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate
        change()
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self._show()

    def _show(self) -> None:
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * self.scale

    def state_dict(self) -> dict[str, Any]:
        return {"schedule": self.schedule.state_dict(), "rates": list(self.rates)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.schedule.load_state_dict(state["schedule"])
        self.rates = list(state["rates"])
        self._show()
