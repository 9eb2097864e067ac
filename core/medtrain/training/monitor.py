"""The monitored value: its name and whether larger or smaller is better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from medtrain.config.sections import RunConfig
from medtrain.errors import ConfigError, nearest
from medtrain.protocols.metric import Evaluation, Metric


@dataclass
class Monitor:
    """The value that decides: best checkpoint, plateau, early stopping."""

    name: str
    mode: Literal["max", "min"]


def choose_monitor(config: RunConfig, metrics: list[Metric], name: str = "") -> Monitor:
    """The monitored value and its direction; ConfigError names what there is to choose from."""
    modes = modes_of(metrics)
    known = [value for value in modes if value != "loss"]
    if not name:
        stopping = config.early_stopping.monitor
        _check_names("early_stopping.monitor", [stopping] if isinstance(stopping, str) else stopping, modes)
        _check_names("checkpoint.metrics", config.checkpoint.metrics, modes)
    name = name or config.validation.monitor or next(iter(known), "loss")
    name = name.removeprefix("validation/")
    _check_names("validation.monitor", [name], modes)
    return Monitor(name, modes[name])


def modes_of(metrics: list[Metric]) -> dict[str, Literal["max", "min"]]:
    """Value name -> direction, of the loss and of every metric."""
    return {"loss": "min", **{value: metric.mode for metric in metrics for value in metric.names}}


def _check_names(key: str, names: Sequence[str], modes: dict[str, Any]) -> None:
    for name in names:
        if name and name.removeprefix("validation/") not in modes:
            raise ConfigError(f"{key}: there is no value {name!r}{nearest(name, modes)}; known: {', '.join(modes)}")


def value_of(evaluation: Evaluation, name: str) -> float:
    """A value of the validation group; ConfigError names what there is."""
    if name not in evaluation.metrics:
        raise ConfigError(f"the validation group has no value {name!r}; known: {', '.join(evaluation.metrics)}")
    return evaluation.metrics[name]
