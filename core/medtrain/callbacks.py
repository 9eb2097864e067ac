"""Callbacks for Python users: early stopping, checkpoints, learning-rate schedules. All are plugins like any other.

A callback either has lifecycle hooks, or answers a building hook, or carries configuration: `configure(config)` gives
the configuration it asks for, and the Trainer applies it, so that the run directory records it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from pydantic import ValidationError
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from medtrain.config import CheckpointSection, EarlyStoppingSection, RunConfig
from medtrain.defaults import Improvement, Plan, Schedule
from medtrain.errors import ConfigError, nearest
from medtrain.hookspecs import hookimpl
from medtrain.metrics import NOT_A_NUMBER

if TYPE_CHECKING:
    from medtrain.run import Run

T = TypeVar("T")
Mode = Literal["auto", "min", "max"]

# torch's schedulers that are made to be stepped after every update.
PER_STEP = ("CyclicLR", "OneCycleLR")


@dataclass
class _Watched:
    """One value under watch, with its own patience and bounds."""

    name: str
    patience: int | None
    min_delta: float
    check_finite: bool
    upper_bound: float | None
    lower_bound: float | None
    mode: Mode
    improvement: Improvement

    def judge(self, value: float, defined: bool) -> str:
        """Why this value wants the run to stop; empty when it does not."""
        if self.check_finite and defined and not math.isfinite(value):
            return f"{self.name} is {value}"
        if self.upper_bound is not None and value >= self.upper_bound:
            return f"{self.name} reached its upper bound {self.upper_bound:g}"
        if self.lower_bound is not None and value <= self.lower_bound:
            return f"{self.name} reached its lower bound {self.lower_bound:g}"
        if self.patience is not None and self.improvement.since >= self.patience:
            return f"{self.name} has not improved for {self.patience} evaluations"
        return ""


class EarlyStoppingCallback:
    """Ends the run after the epoch in which the validation group's values ask for it.

    metric: a value's name, or several; then every other argument may be a list with one entry for each. patience: so
    many evaluations without an improvement of more than `min_delta`; None: for ever. check_finite: NaN or an infinity
    asks at once (values that are undefined for a stated reason do not: they count as no improvement). upper_bound,
    lower_bound: reaching one asks. mode: "max" when larger is better, "min", or "auto": as the metric says. when:
    with several metrics, whether "all" have to ask, or "any". Of several callbacks, any ends the run.
    """

    def __init__(
        self,
        metric: str | Sequence[str],
        patience: int | Sequence[int | None] | None = 3,
        min_delta: float | Sequence[float] = 0.0,
        check_finite: bool | Sequence[bool] = True,
        upper_bound: float | Sequence[float | None] | None = None,
        lower_bound: float | Sequence[float | None] | None = None,
        mode: Mode | Sequence[Mode] = "auto",
        when: Literal["all", "any"] = "all",
    ) -> None:
        self.metric, self.patience, self.min_delta, self.check_finite = metric, patience, min_delta, check_finite
        self.upper_bound, self.lower_bound, self.mode, self.when = upper_bound, lower_bound, mode, when
        if when not in ("all", "any"):
            raise ConfigError(f"EarlyStoppingCallback: when is 'all' or 'any', not {when!r}")
        names = [metric] if isinstance(metric, str) else list(metric)
        if not names:
            raise ConfigError("EarlyStoppingCallback: name a metric to watch")
        settings = {
            "patience": patience,
            "min_delta": min_delta,
            "check_finite": check_finite,
            "upper_bound": upper_bound,
            "lower_bound": lower_bound,
            "mode": mode,
        }
        per_metric = {name: _per_metric(name, value, len(names)) for name, value in settings.items()}
        self._watched = []
        for number, name in enumerate(names):
            own = {key: values[number] for key, values in per_metric.items()}
            improvement = Improvement("max", own["min_delta"])
            self._watched.append(_Watched(name.removeprefix("validation/"), improvement=improvement, **own))
        for watched in self._watched:
            if watched.mode not in ("auto", "min", "max"):
                raise ConfigError(f"EarlyStoppingCallback: mode is 'auto', 'min' or 'max', not {watched.mode!r}")
            if watched.patience is not None and watched.patience < 1:
                raise ConfigError("EarlyStoppingCallback: patience is 1 or more")
        self._judged_at: tuple[int, int] | None = None

    @hookimpl
    def on_run_start(self, run: Run) -> None:
        if run.step == 0:  # a new run, perhaps the next fold with the same callback
            self._judged_at = None
            for watched in self._watched:
                watched.improvement = Improvement("max", watched.min_delta)
        for watched in self._watched:
            watched.improvement.mode = _direction(run, watched.name, watched.mode, "EarlyStoppingCallback")

    @hookimpl
    def on_evaluate_end(self, run: Run) -> None:
        evaluation = run.evaluation
        if evaluation is None or evaluation.group != "validation" or run.optimizer is None:
            return  # somebody evaluates a finished model
        # An evaluation that a failing plugin cut off is repeated on resume and must not count twice.
        again = self._judged_at == (run.epoch, run.step)
        self._judged_at = (run.epoch, run.step)
        reasons = []
        for watched in self._watched:
            if watched.name not in evaluation.metrics:
                known = ", ".join(evaluation.metrics)
                raise ConfigError(f"the validation group has no value {watched.name!r}; known: {known}")
            value = evaluation.metrics[watched.name]
            if not again:
                watched.improvement.update(value, run.epoch)
            reasons.append(watched.judge(value, evaluation.reasons.get(watched.name, NOT_A_NUMBER) == NOT_A_NUMBER))
        if any(reasons) if self.when == "any" else all(reasons):
            run.request_stop("; ".join(reason for reason in reasons if reason))

    def state_dict(self) -> dict[str, Any]:
        return {
            "judged_at": None if self._judged_at is None else list(self._judged_at),
            "watched": [watched.improvement.state_dict() for watched in self._watched],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._judged_at = None if state["judged_at"] is None else (state["judged_at"][0], state["judged_at"][1])
        for watched, saved in zip(self._watched, state["watched"], strict=True):
            watched.improvement.load_state_dict(saved)


def early_stopping(settings: EarlyStoppingSection, monitor: str) -> EarlyStoppingCallback | None:
    """What `[early_stopping]` asks for; None when nothing could ever stop the run."""
    if settings.patience is None and settings.upper_bound is None and settings.lower_bound is None:
        return None
    return EarlyStoppingCallback(settings.monitor or monitor, **settings.model_dump(exclude={"monitor"}))


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
        if interval not in (None, "step", "epoch"):
            raise ConfigError(f"LRSchedulerCallback: interval is 'step' or 'epoch', not {interval!r}")
        self._made_by = _scheduler_class(scheduler) if isinstance(scheduler, str) else scheduler
        if options and not isinstance(self._made_by, type):
            raise ConfigError("LRSchedulerCallback: a function takes no options; set them inside it")

    @hookimpl
    def build_scheduler(self, optimizer: torch.optim.Optimizer, plan: Plan) -> Schedule:
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
        schedule = getattr(self, "_schedule", None)
        if schedule is None or not schedule.metric:
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


def refuse_several_schedulers(plugins: Sequence[Any]) -> None:
    """ConfigError when several LRSchedulerCallbacks are given: one alone would be asked, without a word."""
    if sum(isinstance(plugin, LRSchedulerCallback) for plugin in plugins) > 1:
        raise ConfigError(
            "there are two LRSchedulerCallbacks; give one, or a function that chains schedulers "
            "(several optimizers: a plugin whose build_scheduler gives one schedule for each)"
        )


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


def _per_metric(name: str, value: Any, count: int) -> list[Any]:
    """The value for each metric: one for all, or a list with one for each."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        return [value] * count
    if len(value) != count:
        raise ConfigError(f"EarlyStoppingCallback: {name} has {len(value)} entries for {count} metrics")
    return list(value)


def _direction(run: Run, name: str, mode: Mode, who: str) -> Literal["min", "max"]:
    if name not in run.modes:
        known = ", ".join(run.modes)
        raise ConfigError(f"{who}: there is no value {name!r}{nearest(name, list(run.modes))}; known: {known}")
    return run.modes[name] if mode == "auto" else mode


def _with_checkpoint(config: RunConfig, who: str, **changes: Any) -> RunConfig:
    try:
        section = CheckpointSection.model_validate({**config.checkpoint.model_dump(), **changes})
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{who}: {first['loc'][0]}: {first['msg'].lower()}") from None
    return config.model_copy(update={"checkpoint": section})
