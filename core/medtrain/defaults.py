"""What the core does when no plugin answers: AdamW with groups, warm-up and four courses, improvement."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from medtrain.config import OptimizationSection, RunConfig, SchedulerSection
from medtrain.errors import ConfigError


@dataclass(frozen=True)
class Plan:
    """How long the run is, for whoever builds a scheduler. mode: whether a larger monitored value is better."""

    num_epochs: int
    steps_per_epoch: int
    monitor: str
    mode: Literal["max", "min"]

    @property
    def total_steps(self) -> int:
        return self.num_epochs * self.steps_per_epoch


def build_optimizer(config: RunConfig, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters; each belongs to the first of `optimization.groups` that matches."""
    settings = config.optimization
    return torch.optim.AdamW(parameter_groups(settings, model), lr=settings.learning_rate)


def parameter_groups(settings: OptimizationSection, model: nn.Module) -> list[dict[str, Any]]:
    """Optimizer groups of the trainable parameters, the unmatched ones last. Raises on a pattern without a match."""
    members: list[list[nn.Parameter]] = [[] for _ in settings.groups]
    rest: list[nn.Parameter] = []
    matched = [False] * len(settings.groups)
    for name, parameter in model.named_parameters():
        hits = [i for i, group in enumerate(settings.groups) if fnmatchcase(name, group.pattern)]
        for hit in hits:
            matched[hit] = True
        if parameter.requires_grad:
            (members[hits[0]] if hits else rest).append(parameter)
    for group, hit in zip(settings.groups, matched, strict=True):
        if not hit:
            raise ConfigError(f"optimization.groups: no parameter of the model is called {group.pattern!r}")
    groups = [
        {
            "params": parameters,
            "name": group.pattern,
            "lr": settings.learning_rate * group.lr_scale,
            "weight_decay": settings.weight_decay if group.weight_decay is None else group.weight_decay,
        }
        for group, parameters in zip(settings.groups, members, strict=True)
    ]
    groups.append({"params": rest, "name": "rest", "lr": settings.learning_rate, "weight_decay": settings.weight_decay})
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise ConfigError("the model has no trainable parameter")
    return groups


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
            self.scheduler.step()

    def after_epoch(self, value: float | None) -> None:
        if self.interval == "step":
            return
        if not self.wants_value:
            self.scheduler.step()
        elif value is not None:
            self.scheduler.step(value)

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = self.scheduler.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scheduler.load_state_dict(state)


class WarmupSchedule:
    """Linear warm-up over optimizer steps, then constant, plateau, cosine or step.

    The rate of a group is its own initial rate times one multiplier, so groups keep their proportions; `min_lr`
    is the floor of the fastest group. During warm-up the update number s (from 0) has multiplier s / warmup_steps.
    """

    def __init__(self, settings: SchedulerSection, optimizer: torch.optim.Optimizer, plan: Plan) -> None:
        self.settings, self.optimizer, self.plan = settings, optimizer, plan
        self.base = [float(group["lr"]) for group in optimizer.param_groups]
        self.floor = min(1.0, settings.min_lr / max(self.base))
        self.step = self.epoch = 0
        self.changes = settings.name == "cosine" or settings.warmup_steps > 0
        self.factor = 1.0
        # torch's own rule of a plateau, run on a single rate that starts at 1 and is our factor.
        self.plateau = ReduceLROnPlateau(
            torch.optim.SGD([torch.zeros(1)], lr=1.0),
            mode=plan.mode,
            factor=settings.factor,
            patience=settings.patience,
            min_lr=self.floor,
            eps=0.0,
        )
        self._apply()

    def after_step(self) -> None:
        self.step += 1
        if self.changes:
            self._apply()

    def after_epoch(self, value: float | None) -> None:
        self.epoch += 1
        if self.settings.name == "step":
            self.factor = max(self.floor, self.settings.factor ** (self.epoch // self.settings.step_size))
        elif self.settings.name == "plateau" and value is not None and self.step >= self.settings.warmup_steps:
            self.plateau.step(value)
            self.factor = float(self.plateau.optimizer.param_groups[0]["lr"])
        self._apply()

    def multiplier(self) -> float:
        """What every initial rate is multiplied with for the next update."""
        warmup = self.settings.warmup_steps
        if self.step < warmup:
            return self.step / warmup
        if self.settings.name == "cosine":
            done = min(1.0, (self.step - warmup) / max(1, self.plan.total_steps - warmup))
            return self.floor + (1.0 - self.floor) * 0.5 * (1.0 + math.cos(math.pi * done))
        return self.factor

    def _apply(self) -> None:
        multiplier = self.multiplier()
        for group, base in zip(self.optimizer.param_groups, self.base, strict=True):
            group["lr"] = base * multiplier

    def state_dict(self) -> dict[str, Any]:
        plateau = self.plateau
        return {
            "step": self.step,
            "epoch": self.epoch,
            "factor": self.factor,
            "best": plateau.best,
            "num_bad_epochs": plateau.num_bad_epochs,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.epoch, self.factor = state["step"], state["epoch"], state["factor"]
        self.plateau.best, self.plateau.num_bad_epochs = state["best"], state["num_bad_epochs"]
        self.plateau.optimizer.param_groups[0]["lr"] = self.factor
        self._apply()


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
