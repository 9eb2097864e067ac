"""Callbacks for Python users: early stopping, checkpoints, learning-rate schedules. All are plugins like any other.

A callback either has lifecycle hooks, or answers a building hook, or carries configuration: `configure(config)` gives
the configuration it asks for, and the Trainer applies it, so that the run directory records it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from medtrain import hookimpl
from medtrain.config import CheckpointSection, RunConfig
from medtrain.errors import ConfigError, nearest
from medtrain.protocols import Plan, Schedule
from pydantic import ValidationError
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from medtrain_plugins.standard.early_stopping import _direction

if TYPE_CHECKING:
    from medtrain import Run

T = TypeVar("T")


# torch's schedulers that are made to be stepped after every update.
PER_STEP = ("CyclicLR", "OneCycleLR")


class ModelCheckpointCallback:
    """Which models are kept besides that of the monitored value.

    metric: a value, or several, whose best models are kept as `best-<value>`. epochs: keep `epoch-NNNN` after these
    epochs (the first is 1). save_last: False drops `last` when the run is complete and another checkpoint is there.
    top_k: of each value the best k are kept (of several callbacks, the largest number counts).
    """

    def __init__(
        self,
        metric: str | Sequence[str] | None = None,
        epochs: Sequence[int] | None = None,
        save_last: bool = True,
        top_k: int = 1,
    ) -> None:
        self.metric, self.epochs, self.save_last, self.top_k = metric, epochs, save_last, top_k
        if top_k < 1:
            raise ConfigError(f"ModelCheckpointCallback: top_k is 1 or more, not {top_k}")

    def configure(self, config: RunConfig) -> RunConfig:
        names = [] if self.metric is None else [self.metric] if isinstance(self.metric, str) else list(self.metric)
        names = [name.removeprefix("validation/") for name in names]
        settings = config.checkpoint
        return _with_checkpoint(
            config,
            "ModelCheckpointCallback",
            metrics=list(dict.fromkeys([*settings.metrics, *names])),
            epochs=sorted({*settings.epochs, *(self.epochs or ())}),
            save_last=settings.save_last and self.save_last,
            top_k=max(settings.top_k, self.top_k),
        )


class TrainingCheckpointCallback:
    """How often the state to resume from (`last`) is written; a signal and the end of the run always write it.

    every_n_epochs, every_n_steps: 0 for never. enabled: False writes it at the end only.
    """

    def __init__(self, every_n_epochs: int = 1, every_n_steps: int = 0, enabled: bool = True) -> None:
        self.every_n_epochs, self.every_n_steps, self.enabled = every_n_epochs, every_n_steps, enabled

    def configure(self, config: RunConfig) -> RunConfig:
        return _with_checkpoint(
            config,
            "TrainingCheckpointCallback",
            last_every_n_epochs=self.every_n_epochs if self.enabled else 0,
            last_every_n_steps=self.every_n_steps if self.enabled else 0,
        )


class LRSchedulerCallback:
    """A scheduler of torch for the run.

    scheduler: the name of a class of `torch.optim.lr_scheduler`, such a class, or a function that makes a scheduler
    from an optimizer. optimizer_name: whose rate, when the plugin builds several optimizers. interval: "step" or
    "epoch"; by default what the class is made for. metric: the value that ReduceLROnPlateau follows; by default
    the monitored one. options: for the class. `total_steps` of OneCycleLR, `T_max` of CosineAnnealingLR and `mode` of
    ReduceLROnPlateau are filled in when they are not given.
    """

    def __init__(
        self,
        scheduler: str | type[Any] | Callable[[torch.optim.Optimizer], Any],
        optimizer_name: str = "optimizer",
        interval: Literal["step", "epoch"] | None = None,
        metric: str | None = None,
        **options: Any,
    ) -> None:
        self.scheduler, self.optimizer_name, self.interval, self.metric = scheduler, optimizer_name, interval, metric
        self.options = options
        self._was_asked = False
        if interval not in (None, "step", "epoch"):
            raise ConfigError(f"LRSchedulerCallback: interval is 'step' or 'epoch', not {interval!r}")
        self._made_by = _scheduler_class(scheduler) if isinstance(scheduler, str) else scheduler
        if options and not isinstance(self._made_by, type):
            raise ConfigError("LRSchedulerCallback: a function takes no options; set them inside it")

    @hookimpl
    def build_scheduler(self, optimizer: torch.optim.Optimizer, plan: Plan) -> Schedule:
        self._was_asked = True
        chosen = self._choose(optimizer)
        name = getattr(self._made_by, "__name__", "")
        interval = self.interval or ("step" if name in PER_STEP else "epoch")
        made = self._make(chosen, plan, interval, plan.mode)
        if not isinstance(made, LRScheduler):
            raise ConfigError(
                f"LRSchedulerCallback: {name or 'the function'} gave no scheduler but {type(made).__name__}"
            )
        plateau = isinstance(made, ReduceLROnPlateau)
        if self.metric is not None and not plateau:
            raise ConfigError(f"LRSchedulerCallback: {type(made).__name__} follows no metric; leave `metric` out")
        if plateau and interval == "step":
            raise ConfigError("LRSchedulerCallback: ReduceLROnPlateau follows evaluations; its interval is 'epoch'")
        self._schedule = MetricSchedule(made, interval, (self.metric or "").removeprefix("validation/"))
        self._optimizer, self._plan = chosen, plan
        return self._schedule

    @hookimpl
    def on_run_start(self, run: Run) -> None:
        was_asked, self._was_asked = self._was_asked, False
        if not was_asked:
            raise ConfigError(
                "there are two LRSchedulerCallbacks; give one, or a function that chains schedulers "
                "(several optimizers: a plugin whose build_scheduler gives one schedule for each)"
            )
        schedule = self._schedule
        if not schedule.metric:
            return
        mode = _direction(run, schedule.metric, "auto", "LRSchedulerCallback")
        if run.step == 0 and "mode" not in self.options and isinstance(self._made_by, type):
            # Only now is it known whether larger values of this metric are better. Later its state tells.
            schedule.scheduler = self._make(self._optimizer, self._plan, "epoch", mode)

    def _make(self, optimizer: torch.optim.Optimizer, plan: Plan, interval: str, mode: str) -> Any:
        if not isinstance(self._made_by, type):
            return self._made_by(optimizer)
        options = dict(self.options)
        if self._made_by is lr_scheduler.OneCycleLR and not {"total_steps", "epochs"} & options.keys():
            options["total_steps"] = plan.total_steps if interval == "step" else plan.num_epochs
        if self._made_by is lr_scheduler.CosineAnnealingLR:
            options.setdefault("T_max", plan.total_steps if interval == "step" else plan.num_epochs)
        if self._made_by is ReduceLROnPlateau:
            options.setdefault("mode", mode)
        known = list(inspect.signature(self._made_by).parameters)[1:]
        for name in options:
            if name not in known:
                where = f"{self._made_by.__name__} has no option {name!r}{nearest(name, known)}"
                raise ConfigError(f"LRSchedulerCallback: {where}; known: {', '.join(known)}")
        try:
            return self._made_by(optimizer, **options)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"LRSchedulerCallback: {self._made_by.__name__}: {error}") from None

    def _choose(self, optimizer: Any) -> Any:
        named: Mapping[str, Any] = getattr(optimizer, "optimizers", {"optimizer": optimizer})
        if self.optimizer_name not in named:
            raise ConfigError(
                f"LRSchedulerCallback: there is no optimizer {self.optimizer_name!r}"
                f"{nearest(self.optimizer_name, list(named))}; there are: {', '.join(named)}"
            )
        return named[self.optimizer_name]


class MetricSchedule(Schedule):
    """A schedule that follows a value of its own; `metric` empty: the monitored one."""

    def __init__(self, scheduler: Any, interval: Literal["step", "epoch"], metric: str = "") -> None:
        super().__init__(scheduler, interval)
        self.metric = metric


def _scheduler_class(name: str) -> type[Any]:
    found = {
        key: value
        for key, value in vars(lr_scheduler).items()
        if isinstance(value, type) and issubclass(value, LRScheduler) and key not in ("LRScheduler", "_LRScheduler")
    }
    if name not in found:
        raise ConfigError(
            f"LRSchedulerCallback: torch.optim.lr_scheduler has no {name!r}{nearest(name, list(found))}; "
            f"known: {', '.join(sorted(found))}"
        )
    return found[name]


def _with_checkpoint(config: RunConfig, who: str, **changes: Any) -> RunConfig:
    try:
        section = CheckpointSection.model_validate({**config.checkpoint.model_dump(), **changes})
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{who}: {first['loc'][0]}: {first['msg'].lower()}") from None
    return config.model_copy(update={"checkpoint": section})
