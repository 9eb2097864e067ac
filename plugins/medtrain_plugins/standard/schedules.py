"""Courses of the learning rate: linear warm-up, then one of ours in closed form, or any scheduler of torch."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from medtrain.config import COURSES, SchedulerSection
from medtrain.errors import ConfigError, nearest
from medtrain.protocols import Plan, Schedule
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import ReduceLROnPlateau

BY_STEP = ("cosine", "linear", "polynomial", "onecycle", "OneCycleLR", "CyclicLR")


# They are made of functions or of other schedulers, which a configuration cannot name.
UNUSABLE = ("LambdaLR", "MultiplicativeLR", "SequentialLR", "ChainedScheduler", "LRScheduler", "SWALR")


def build_schedule(settings: SchedulerSection, optimizer: Any, plan: Plan) -> Any:
    """The course of `[scheduler]`, after its warm-up."""
    if settings.name in COURSES and settings.name != "onecycle":
        return WarmupSchedule(settings, optimizer, plan)
    return TorchSchedule(settings, optimizer, plan)


def warmup_length(settings: SchedulerSection, plan: Plan) -> int:
    """Optimizer steps of the warm-up, given as such or in epochs."""
    return settings.warmup_steps or round(settings.warmup_epochs * plan.steps_per_epoch)


def moves_by_step(settings: SchedulerSection) -> bool:
    """Whether the course moves with every optimizer step rather than with every epoch."""
    if settings.interval == "auto":
        return settings.name in BY_STEP
    return settings.interval == "step"


class WarmupSchedule:
    """Linear warm-up over optimizer steps, then a course in closed form (or torch's rule of a plateau).

    The rate of a group is its own initial rate times one multiplier, so groups keep their proportions; `min_lr`
    is the floor of the fastest group. During warm-up the update number s (from 0) has multiplier s / warmup_steps.
    Cosine, linear and polynomial begin after the warm-up and reach the floor at the end of the run; step, multistep
    and exponential count from the start of the run.
    """

    def __init__(self, settings: SchedulerSection, optimizer: Any, plan: Plan) -> None:
        self.settings, self.optimizer, self.plan = settings, optimizer, plan
        self.base = [float(group["lr"]) for group in optimizer.param_groups]
        highest = max(self.base)
        self.floor = min(1.0, settings.min_lr / highest) if highest else 1.0
        self.warmup = warmup_length(settings, plan)
        self.by_step = moves_by_step(settings)
        self.step = self.epoch = 0
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
        if self.step <= self.warmup or (self.by_step and self.settings.name != "none"):
            self._apply()

    def after_epoch(self, value: float | None) -> None:
        self.epoch += 1
        if self.settings.name == "plateau" and value is not None and self.step >= self.warmup:
            self.plateau.step(value)
            self.factor = float(self.plateau.optimizer.param_groups[0]["lr"])
        self._apply()

    def multiplier(self) -> float:
        """What every initial rate is multiplied with for the next update."""
        if self.step < self.warmup:
            return self.step / self.warmup
        settings = self.settings
        count = self.step if self.by_step else self.epoch
        match settings.name:
            case "plateau":
                return self.factor
            case "step":
                return max(self.floor, settings.factor ** (count // settings.step_size))
            case "multistep":
                return max(self.floor, settings.factor ** sum(count >= mark for mark in settings.milestones))
            case "exponential":
                return max(self.floor, settings.factor**count)
            case "cosine":
                return self._down_to_floor(0.5 * (1.0 + math.cos(math.pi * self._done())))
            case "linear":
                return self._down_to_floor(1.0 - self._done())
            case "polynomial":
                return self._down_to_floor((1.0 - self._done()) ** settings.power)
        return 1.0

    def _done(self) -> float:
        """The part of the run after the warm-up that is done, 0 to 1."""
        step = self.step if self.by_step else self.epoch * self.plan.steps_per_epoch
        return min(1.0, max(0, step - self.warmup) / max(1, self.plan.total_steps - self.warmup))

    def _down_to_floor(self, height: float) -> float:
        return self.floor + (1.0 - self.floor) * height

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


class _Shadow(torch.optim.Optimizer):
    """Groups of the same settings and no work: what a torch scheduler may write rates (and momenta) into."""

    def __init__(self, optimizer: Any) -> None:
        groups = [
            {**{k: v for k, v in group.items() if k not in ("params", "initial_lr")}, "params": [torch.zeros(1)]}
            for group in optimizer.param_groups
        ]
        defaults = {k: v for k, v in groups[0].items() if k not in ("params", "name")}
        super().__init__(groups, defaults)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        return None


class TorchSchedule:
    """Any scheduler of torch after (by step) or under (by epoch) a linear warm-up.

    It writes into a shadow of the optimizer; the rate that counts is its rate times the warm-up's multiplier, so that
    schedulers that derive a rate from the one before are not misled. Momenta and betas that it moves are copied.
    """

    MOVED = ("momentum", "betas")

    def __init__(self, settings: SchedulerSection, optimizer: Any, plan: Plan) -> None:
        self.optimizer = optimizer
        self.warmup, self.by_step = warmup_length(settings, plan), moves_by_step(settings)
        self.step = 0
        self.shadow = _Shadow(optimizer)
        scheduler = _torch_scheduler(settings, self.shadow, max(1, plan.total_steps - self.warmup), plan.mode)
        self.shadow.step()  # torch warns of schedulers that move before any optimizer step
        self.inner = Schedule(scheduler, "step" if self.by_step else "epoch")
        if self.by_step and self.inner.wants_value:
            raise ConfigError("scheduler.interval: ReduceLROnPlateau waits for the evaluation of an epoch; use 'epoch'")
        self._apply()

    def after_step(self) -> None:
        self.step += 1
        if self.step > self.warmup:
            self.inner.after_step()
        if self.by_step or self.step <= self.warmup:
            self._apply()

    def after_epoch(self, value: float | None) -> None:
        if not self.inner.wants_value or self.step >= self.warmup:
            self.inner.after_epoch(value)
        self._apply()

    def _apply(self) -> None:
        warm = self.step / self.warmup if self.step < self.warmup else 1.0
        for group, shadow in zip(self.optimizer.param_groups, self.shadow.param_groups, strict=True):
            group["lr"] = shadow["lr"] * warm
            for name in self.MOVED:
                if name in shadow:
                    group[name] = shadow[name]

    def state_dict(self) -> dict[str, Any]:
        groups = [{k: g[k] for k in ("lr", *self.MOVED) if k in g} for g in self.shadow.param_groups]
        state = {k: v for k, v in self.inner.state_dict().items() if not callable(v)}
        return {"step": self.step, "scheduler": state, "groups": groups}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        self.inner.load_state_dict(state["scheduler"])
        for group, saved in zip(self.shadow.param_groups, state["groups"], strict=True):
            group.update(saved)
        self._apply()


def _torch_scheduler(settings: SchedulerSection, optimizer: _Shadow, steps: int, mode: str) -> Any:
    """The scheduler of torch; what follows from the run is filled in, `scheduler.options` win."""
    name = "OneCycleLR" if settings.name == "onecycle" else settings.name
    usable = [n for n in lr_scheduler.__all__ if n not in UNUSABLE]
    if name not in usable:
        raise ConfigError(
            f"scheduler.name: no scheduler is called {settings.name!r}{nearest(name, [*COURSES, *usable])}; "
            f"known: {', '.join([*COURSES, *usable])}"
        )
    cls = getattr(lr_scheduler, name)
    filled: dict[str, Any] = {}
    if name == "OneCycleLR":
        filled = {"max_lr": [group["lr"] for group in optimizer.param_groups], "total_steps": steps}
    elif name == "ReduceLROnPlateau":
        filled = {"mode": mode}
    known = [
        parameter for parameter in inspect.signature(cls).parameters if parameter not in ("optimizer", "last_epoch")
    ]
    for option in settings.options:
        if option not in known:
            raise ConfigError(
                f"scheduler.options.{option}: {name} has no such option{nearest(option, known)}; known: "
                f"{', '.join(known)}"
            )
    try:
        return cls(optimizer, **(filled | settings.options))
    except (TypeError, ValueError, KeyError) as error:
        raise ConfigError(f"scheduler: {name} cannot be made with these options: {error}") from None
