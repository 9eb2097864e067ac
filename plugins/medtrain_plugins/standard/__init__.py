"""What medtrain does when no plugin answers: default plugins with the lowest priority, registered like a stranger's.

Their work is in the modules beside this page, imported when it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from medtrain import hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import torch
    from medtrain import Data, Plan, Run, RunConfig, Split
    from medtrain.protocols import Weights

    from medtrain_plugins.standard.early_stopping import EarlyStoppingCallback
    from medtrain_plugins.standard.transfer import Report


class Splits:
    """Splits a dataset by the section `data`: by tables, into folds, or by fractions."""

    @hookimpl
    def split_data(self, config: RunConfig, data: Data | None) -> Split:
        """by tables (data.splits), into folds (data.num_folds), or by fractions; whole participants only"""
        from medtrain_plugins.standard.splits import splitting

        return splitting.split_data(config, data)


class Transfer:
    """Starts from other weights, and freezes parts of the model, for some epochs or for good."""

    def __init__(self) -> None:
        self.report: Report | None = None
        self.resting: list[torch.nn.Parameter] = []

    @hookimpl
    def prepare_model(self, config: RunConfig, model: torch.nn.Module, read_weights: Callable[[Path], Weights]) -> None:
        """weights of transfer.checkpoint; optimization.freeze and transfer.freeze"""
        from medtrain_plugins.standard import transfer

        self.report = transfer.load_checkpoint(config, model, read_weights)
        self.resting = transfer.freeze_parts(config, model)

    @hookimpl
    def on_run_start(self, run: Run) -> None:
        """the report of the transfer, into the log"""
        if self.report is not None and run.is_main_process and run.maps is not None:
            run.maps.log(f"transfer from {run.config.transfer.checkpoint}: {self.report}")

    @hookimpl
    def on_epoch_start(self, run: Run) -> None:
        """the end of transfer.freeze_epochs"""
        if 0 < run.config.transfer.freeze_epochs <= run.epoch:
            for parameter in self.resting:
                parameter.requires_grad_(True)
            self.resting = []


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
