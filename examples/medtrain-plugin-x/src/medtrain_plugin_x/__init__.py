"""Warm restarts of the learning rate, and an end to runs that have overfitted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medtrain import hookimpl
from medtrain.config import SectionModel
from medtrain.errors import ConfigError
from pydantic import Field

if TYPE_CHECKING:
    import torch
    from medtrain import Plan, Run, RunConfig, Schedule


class Options(SectionModel):
    """`[plugins.x]`, or `--set x.KEY=VALUE`."""

    restart_every: int = Field(10, ge=1, description="epochs of the first cosine period")
    stretch: int = Field(2, ge=1, description="each period is this many times as long as the one before")
    min_lr: float = Field(0.0, ge=0, description="learning rate at the end of a period")
    max_gap: float | None = Field(
        None, gt=0, description="stop when validation loss exceeds training loss by more; none: only record the gap"
    )
    patience: int = Field(3, ge=1, description="evaluations in a row above max_gap before the run ends")


class X:
    """Warm restarts of the learning rate, and an end to runs that have overfitted."""

    def __init__(self) -> None:
        self.above = 0  # evaluations in a row whose gap was larger than max_gap

    @hookimpl
    def plugin_options(self) -> type[Options]:
        return Options

    @hookimpl
    def build_scheduler(self, config: RunConfig, optimizer: torch.optim.Optimizer, plan: Plan) -> Schedule:
        """Cosine annealing with warm restarts (SGDR, Loshchilov and Hutter, 2017), stepped per update.

        Raises ConfigError when min_lr is not below every group's learning rate.
        """
        from medtrain import Schedule
        from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts

        options = config.options("x")
        slowest = min(group["lr"] for group in optimizer.param_groups)
        if options.min_lr >= slowest:
            raise ConfigError(
                f"plugins.x.min_lr: {options.min_lr} is not below the learning rate {slowest} it is the floor of"
            )
        # The period is fixed when the run starts, so a run that is resumed with more epochs goes on restarting.
        period = options.restart_every * plan.steps_per_epoch
        restarts = CosineAnnealingWarmRestarts(optimizer, period, options.stretch, eta_min=options.min_lr)
        return Schedule(restarts, interval="step")

    @hookimpl
    def on_epoch_end(self, run: Run) -> None:
        """Record `generalisation_gap` (loss units); ask for the end after `patience` evaluations above `max_gap`."""
        if "validation/loss" not in run.metrics:
            return
        options = run.config.options("x")
        gap = run.metrics["validation/loss"] - run.metrics["train/loss"]
        run.metrics["generalisation_gap"] = gap
        if options.max_gap is None:
            return
        self.above = self.above + 1 if gap > options.max_gap else 0
        if self.above >= options.patience:
            run.request_stop(f"generalisation gap above {options.max_gap:g} for {self.above} evaluations")

    def state_dict(self) -> dict[str, int]:
        """Goes into every checkpoint; medtrain gives it back on resume."""
        return {"above": self.above}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.above = state["above"]
