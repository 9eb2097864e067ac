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
    from medtrain.trainer import Trainer, TrainResult

_HOMES = {
    "Augmentation": "medtrain.protocols.dataset",
    "BatchMetric": "medtrain.protocols.metric",
    "COLOURS": "medtrain_plugins.results.compare",
    "ComparedRuns": "medtrain_plugins.results.compare",
    "ComputationalConfig": "medtrain.config.computational",
    "Data": "medtrain.protocols.dataset",
    "EarlyStoppingCallback": "medtrain_plugins.standard.early_stopping",
    "Evaluation": "medtrain.protocols.metric",
    "ImportedCheckpoint": "medtrain_plugins.results.foreign_runs",
    "ImportedSplit": "medtrain_plugins.results.foreign_runs",
    "KFold": "medtrain_plugins.standard.splits.splitters",
    "LRSchedulerCallback": "medtrain_plugins.standard.callbacks",
    "Metric": "medtrain.protocols.metric",
    "ModelCheckpointCallback": "medtrain_plugins.standard.callbacks",
    "OptimizationConfig": "medtrain.config.sections",
    "Plan": "medtrain.protocols.schedule",
    "Run": "medtrain.run",
    "RunConfig": "medtrain.config.sections",
    "Schedule": "medtrain.protocols.schedule",
    "Section": "medtrain.protocols.report",
    "SingleSplit": "medtrain_plugins.standard.splits.splitters",
    "Split": "medtrain.data.split",
    "SupervisedModel": "medtrain.protocols.model",
    "TensorModel": "medtrain.protocols.model",
    "TrainResult": "medtrain.trainer",
    "Trainer": "medtrain.trainer",
    "TrainingCheckpointCallback": "medtrain_plugins.standard.callbacks",
    "Undefined": "medtrain.protocols.metric",
    "build_model": "medtrain_plugins.results.build_model",
    "compare_runs": "medtrain_plugins.results.compare",
    "counts_text": "medtrain_plugins.results.compare",
    "differences_table": "medtrain_plugins.results.compare",
    "make_folder": "medtrain_plugins.results.report",
    "make_kfold": "medtrain_plugins.standard.splits.split_tables",
    "make_split": "medtrain_plugins.standard.splits.split_tables",
    "parameter_groups": "medtrain_plugins.standard.optimizers",
    "scores_table": "medtrain_plugins.results.compare",
    "seed_everything": "medtrain_plugins.standard.seeding",
    "seed_everything_context": "medtrain_plugins.standard.seeding",
    "seed_model": "medtrain.runtime.determinism",
    "write_comparison": "medtrain_plugins.results.compare",
    "write_page": "medtrain_plugins.results.report",
    "write_run": "medtrain_plugins.results.foreign_runs",
}

__all__ = [
    "COLOURS",
    "NONE",
    "Augmentation",
    "BatchMetric",
    "ComparedRuns",
    "ComputationalConfig",
    "Data",
    "EarlyStoppingCallback",
    "Evaluation",
    "ImportedCheckpoint",
    "ImportedSplit",
    "KFold",
    "LRSchedulerCallback",
    "Metric",
    "ModelCheckpointCallback",
    "OptimizationConfig",
    "Plan",
    "Run",
    "RunConfig",
    "Schedule",
    "Section",
    "SingleSplit",
    "Split",
    "SupervisedModel",
    "TensorModel",
    "TrainResult",
    "Trainer",
    "TrainingCheckpointCallback",
    "Undefined",
    "__version__",
    "build_model",
    "compare_runs",
    "counts_text",
    "differences_table",
    "hookimpl",
    "make_folder",
    "make_kfold",
    "make_split",
    "parameter_groups",
    "scores_table",
    "seed_everything",
    "seed_everything_context",
    "seed_model",
    "write_comparison",
    "write_page",
    "write_run",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'medtrain' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
