"""What the core does when no plugin answers, by the names that plugins use; and the idea of an improvement."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from medtrain.config import EarlyStoppingSection
from medtrain.errors import ConfigError, nearest
from medtrain.hookspecs import hookimpl
from medtrain.protocols.metric import NOT_A_NUMBER
from medtrain.protocols.ranking import RankedValue, Ranking

if TYPE_CHECKING:
    from medtrain.run import Run

Mode = Literal["auto", "min", "max"]


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


def from_section(settings: EarlyStoppingSection, monitor: str) -> EarlyStoppingCallback | None:
    """What `[early_stopping]` asks for; None when nothing could ever stop the run."""
    if settings.patience is None and settings.upper_bound is None and settings.lower_bound is None:
        return None
    return EarlyStoppingCallback(settings.monitor or monitor, **settings.model_dump(exclude={"monitor"}))


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


class Improvement(Ranking):
    """The best value so far and how many values ago it was."""

    def __init__(self, mode: Literal["max", "min"], min_delta: float = 0.0) -> None:
        super().__init__(mode, min_delta=min_delta)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "epoch": self.epoch, "since": self.since}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.entries = [] if state["best"] is None else [RankedValue(state["best"], state["epoch"], None)]
        self.since = state["since"]
