"""medtrain: train medical-imaging models from plugins.

Importing this package imports neither torch nor pydantic: every public name is fetched when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from medtrain.hookspecs import NONE, hookimpl

if TYPE_CHECKING:
    from medtrain.build import build_model
    from medtrain.config import RunConfig
    from medtrain.data import Augmentation, Data, Split
    from medtrain.defaults import Plan, Schedule
    from medtrain.metrics import BatchMetric, Evaluation, Metric, Undefined
    from medtrain.model import TensorModel
    from medtrain.report import Section
    from medtrain.run import Run
    from medtrain.trainer import Trainer, TrainResult

__version__ = "0.1.0"

_HOMES = {
    "Augmentation": "data",
    "BatchMetric": "metrics",
    "Data": "data",
    "Evaluation": "metrics",
    "Metric": "metrics",
    "Plan": "defaults",
    "Run": "run",
    "RunConfig": "config",
    "Schedule": "defaults",
    "Section": "report",
    "Split": "data",
    "TensorModel": "model",
    "TrainResult": "trainer",
    "Trainer": "trainer",
    "Undefined": "metrics",
    "build_model": "build",
}

__all__ = [
    "NONE",
    "Augmentation",
    "BatchMetric",
    "Data",
    "Evaluation",
    "Metric",
    "Plan",
    "Run",
    "RunConfig",
    "Schedule",
    "Section",
    "Split",
    "TensorModel",
    "TrainResult",
    "Trainer",
    "Undefined",
    "__version__",
    "build_model",
    "hookimpl",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'medtrain' has no attribute {name!r}")
    value = getattr(import_module(f"medtrain.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
