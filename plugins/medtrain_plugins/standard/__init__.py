"""What medtrain does when no plugin answers: default plugins with the lowest priority, registered like a stranger's.

Their work is in the modules beside this page, imported when it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from medtrain import hookimpl

if TYPE_CHECKING:
    import torch
    from medtrain import Data, Plan, Run, RunConfig, Split

    from medtrain_plugins.standard.early_stopping import EarlyStoppingCallback


class Splits:
    """Splits a dataset by the section `data`: by tables, into folds, or by fractions."""

    @hookimpl
    def split_data(self, config: RunConfig, data: Data | None) -> Split:
        """by tables (data.splits), into folds (data.num_folds), or by fractions; whole participants only"""
        from medtrain_plugins.standard.splits import splitting

        return splitting.split_data(config, data)


class Optimizers:
    """Builds optimizers of torch by name."""

    @hookimpl
    def build_optimizer(self, config: RunConfig, model: torch.nn.Module) -> torch.optim.Optimizer:
        """AdamW (optimization.optimizer) with the groups of optimization.groups"""
        from medtrain_plugins.standard.optimizers import build_optimizer

        return build_optimizer(config, model)


class Schedules:
    """Builds learning-rate schedules by name."""

    @hookimpl
    def build_scheduler(self, config: RunConfig, optimizer: torch.optim.Optimizer, plan: Plan) -> Any:
        """linear warm-up, then [scheduler]"""
        from medtrain_plugins.standard.schedules import build_schedule

        return build_schedule(config.scheduler, optimizer, plan)


class EarlyStopping:
    """Stops a run by the section `early_stopping`."""

    def __init__(self) -> None:
        self.callback: EarlyStoppingCallback | None = None
        self.saved: dict[str, Any] | None = None  # of a checkpoint, until the run starts

    @hookimpl
    def on_run_start(self, run: Run) -> None:
        """early stopping by [early_stopping]"""
        from medtrain_plugins.standard.early_stopping import from_section

        self.callback = from_section(run.config.early_stopping, run.monitor)
        if self.callback is None:
            return
        if self.saved is not None:
            self.callback.load_state_dict(self.saved)
            self.saved = None
        self.callback.on_run_start(run)

    @hookimpl
    def on_evaluate_end(self, run: Run) -> None:
        """early stopping by [early_stopping]"""
        if self.callback is not None:
            self.callback.on_evaluate_end(run)

    def state_dict(self) -> dict[str, Any] | None:
        """None: nothing is watched."""
        return None if self.callback is None else self.callback.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.saved = state
