"""medtrain: train medical-imaging models from plugins.

Importing this package imports neither torch nor pydantic: every public name is fetched when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from medtrain.hookspecs import NONE, hookimpl

if TYPE_CHECKING:
    from medtrain.build import build_model
    from medtrain.callbacks import (
        EarlyStoppingCallback,
        LRSchedulerCallback,
        ModelCheckpointCallback,
        TrainingCheckpointCallback,
    )
    from medtrain.computational import ComputationalConfig
    from medtrain.config import OptimizationConfig, RunConfig
    from medtrain.data import Augmentation, Data, KFold, SingleSplit, Split, make_kfold, make_split
    from medtrain.defaults import Plan, Schedule
    from medtrain.determinism import seed_everything, seed_everything_context
    from medtrain.metrics import BatchMetric, Evaluation, Metric, Undefined
    from medtrain.model import SupervisedModel, TensorModel
    from medtrain.report import Section
    from medtrain.run import Run
    from medtrain.trainer import Trainer, TrainResult

__version__ = "0.1.0"

_HOMES = {
    "Augmentation": "data",
    "BatchMetric": "metrics",
    "ComputationalConfig": "computational",
    "Data": "data",
    "EarlyStoppingCallback": "callbacks",
    "Evaluation": "metrics",
    "KFold": "data",
    "LRSchedulerCallback": "callbacks",
    "Metric": "metrics",
    "ModelCheckpointCallback": "callbacks",
    "OptimizationConfig": "config",
    "Plan": "defaults",
    "Run": "run",
    "RunConfig": "config",
    "Schedule": "defaults",
    "Section": "report",
    "SingleSplit": "data",
    "Split": "data",
    "SupervisedModel": "model",
    "TensorModel": "model",
    "TrainResult": "trainer",
    "Trainer": "trainer",
    "TrainingCheckpointCallback": "callbacks",
    "Undefined": "metrics",
    "build_model": "build",
    "make_kfold": "data",
    "make_split": "data",
    "seed_everything": "determinism",
    "seed_everything_context": "determinism",
}

__all__ = [
    "NONE",
    "Augmentation",
    "BatchMetric",
    "ComputationalConfig",
    "Data",
    "EarlyStoppingCallback",
    "Evaluation",
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
    "hookimpl",
    "make_kfold",
    "make_split",
    "seed_everything",
    "seed_everything_context",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'medtrain' has no attribute {name!r}")
    value = getattr(import_module(f"medtrain.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
