"""medtrain: train medical-imaging models from plugins.

Importing this package imports neither torch nor pydantic: every public name is fetched when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from medtrain._version import __version__
from medtrain.hookspecs import NONE, hookimpl

if TYPE_CHECKING:
    from medtrain_plugins.results.build_model import build_model
    from medtrain_plugins.results.compare import (
        COLOURS,
        ComparedRuns,
        compare_runs,
        counts_text,
        differences_table,
        scores_table,
        write_comparison,
    )
    from medtrain_plugins.results.foreign_runs import ImportedCheckpoint, ImportedSplit, write_run
    from medtrain_plugins.results.report import make_folder, write_page
    from medtrain_plugins.standard.callbacks import (
        LRSchedulerCallback,
        ModelCheckpointCallback,
        TrainingCheckpointCallback,
    )
    from medtrain_plugins.standard.early_stopping import EarlyStoppingCallback
    from medtrain_plugins.standard.optimizers import parameter_groups
    from medtrain_plugins.standard.seeding import seed_everything, seed_everything_context
    from medtrain_plugins.standard.splits.split_tables import make_kfold, make_split
    from medtrain_plugins.standard.splits.splitters import KFold, SingleSplit

    from medtrain.config.computational import ComputationalConfig
    from medtrain.config.sections import OptimizationConfig, RunConfig
    from medtrain.data.split import Split
    from medtrain.protocols.dataset import Augmentation, Data
    from medtrain.protocols.metric import BatchMetric, Evaluation, Metric, Undefined
    from medtrain.protocols.model import SupervisedModel, TensorModel
    from medtrain.protocols.report import Section
    from medtrain.protocols.schedule import Plan, Schedule
    from medtrain.run import Run
    from medtrain.runtime.determinism import seed_model
    from medtrain.trainer import Trainer
    from medtrain.training.fit import TrainResult

# Where each public name lives.
_HOMES = {
    "medtrain.config.computational": ("ComputationalConfig",),
    "medtrain.config.sections": ("OptimizationConfig", "RunConfig"),
    "medtrain.data.split": ("Split",),
    "medtrain.protocols.dataset": ("Augmentation", "Data"),
    "medtrain.protocols.metric": ("BatchMetric", "Evaluation", "Metric", "Undefined"),
    "medtrain.protocols.model": ("SupervisedModel", "TensorModel"),
    "medtrain.protocols.report": ("Section",),
    "medtrain.protocols.schedule": ("Plan", "Schedule"),
    "medtrain.run": ("Run",),
    "medtrain.runtime.determinism": ("seed_model",),
    "medtrain.trainer": ("Trainer",),
    "medtrain.training.fit": ("TrainResult",),
    "medtrain_plugins.results.build_model": ("build_model",),
    "medtrain_plugins.results.compare": (
        "COLOURS",
        "ComparedRuns",
        "compare_runs",
        "counts_text",
        "differences_table",
        "scores_table",
        "write_comparison",
    ),
    "medtrain_plugins.results.foreign_runs": ("ImportedCheckpoint", "ImportedSplit", "write_run"),
    "medtrain_plugins.results.report": ("make_folder", "write_page"),
    "medtrain_plugins.standard.callbacks": (
        "LRSchedulerCallback",
        "ModelCheckpointCallback",
        "TrainingCheckpointCallback",
    ),
    "medtrain_plugins.standard.early_stopping": ("EarlyStoppingCallback",),
    "medtrain_plugins.standard.optimizers": ("parameter_groups",),
    "medtrain_plugins.standard.seeding": ("seed_everything", "seed_everything_context"),
    "medtrain_plugins.standard.splits.split_tables": ("make_kfold", "make_split"),
    "medtrain_plugins.standard.splits.splitters": ("KFold", "SingleSplit"),
}

__all__ = [
    "COLOURS", "NONE", "Augmentation", "BatchMetric", "ComparedRuns", "ComputationalConfig", "Data",
    "EarlyStoppingCallback", "Evaluation", "ImportedCheckpoint", "ImportedSplit", "KFold", "LRSchedulerCallback",
    "Metric", "ModelCheckpointCallback", "OptimizationConfig", "Plan", "Run", "RunConfig", "Schedule", "Section",
    "SingleSplit", "Split", "SupervisedModel", "TensorModel", "TrainResult", "Trainer",
    "TrainingCheckpointCallback", "Undefined", "__version__", "build_model", "compare_runs", "counts_text",
    "differences_table", "hookimpl", "make_folder", "make_kfold", "make_split", "parameter_groups", "scores_table",
    "seed_everything", "seed_everything_context", "seed_model", "write_comparison", "write_page", "write_run",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(module), name)
            return value
    raise AttributeError(f"module 'medtrain' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
