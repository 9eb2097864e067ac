"""Metrics: the protocol every family fills in, and the ones that need nothing but arrays.

A metric works in two moves. `rows(outputs, batch)` keeps, for each sample, the few numbers it needs;
`compute(rows)` turns all of them into named values. Between the two the core gathers the rows of every
process, drops samples it has already seen (by `sample_id`) and puts them into the dataset's order, so that a
metric is the same number on one process and on eight, and the rows are also the table of predictions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[Any]
Rows = dict[str, Array]
NOT_A_NUMBER = "not a number"  # the reason of a NaN for which its metric states none


class Undefined(float):
    """A metric value that does not exist: NaN, with the reason in `reason`."""

    reason: str

    def __new__(cls, reason: str) -> Undefined:
        value = super().__new__(cls, math.nan)
        value.reason = reason
        return value


@runtime_checkable
class Metric(Protocol):
    """What the core asks of a metric.

    names: the values it returns, the main one first. mode: whether larger ("max") or smaller ("min") is better, for
    all of them. Optional: `details(rows, seed) -> dict` of JSON values (confidence intervals, strata), asked for when
    a finished model is evaluated.

    Optional: `compare(tables, metrics, seed, replicates) -> medtrain.compare.Comparison`, for metrics that compare
    runs in a way of their own (other units than samples, further tests). tables: the rows of each run by its name,
    complete as evaluated; metrics: each run's metric; asked of the first run's. Without it runs are compared on the
    samples they share, by `compute` in a bootstrap of participants; columns that hold the truth may be named in an
    attribute `target` (a string) to have them checked for equality.
    """

    names: Sequence[str]
    mode: Literal["max", "min"]

    def rows(self, outputs: dict[str, Any], batch: dict[str, Any]) -> Mapping[str, Any]:
        """Per-sample values by column: tensors or lists of first dimension B. Called without gradients."""
        ...

    def compute(self, rows: Rows) -> dict[str, float]:
        """Named values from all rows (NumPy arrays of first dimension N); `Undefined(reason)` where none exists."""
        ...


@dataclass
class Evaluation:
    """The result of one evaluation of one group.

    metrics: name -> value (NaN where undefined, the reason in `reasons`).
    rows: per-sample columns, `sample_id` first, in dataset order. details: what metrics add when asked for more.
    """

    group: str
    metrics: dict[str, float] = field(default_factory=dict)
    rows: Rows = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)


class BatchMetric:
    """Any function of (predictions, targets) over the whole group, torchmetrics functions included.

    name: what the value is called. fn: takes two tensors, returns a scalar. prediction, target: keys of the
    outputs and of the batch.
    """

    def __init__(self, name: str, fn: Any, prediction: str, target: str, mode: Literal["max", "min"] = "max") -> None:
        self.names, self.fn, self.prediction, self.target, self.mode = [name], fn, prediction, target, mode

    def rows(self, outputs: dict[str, Any], batch: dict[str, Any]) -> dict[str, Any]:
        return {self.prediction: outputs[self.prediction], self.target: batch[self.target]}

    def compute(self, rows: Rows) -> dict[str, float]:
        value = self.fn(torch.from_numpy(rows[self.prediction]), torch.from_numpy(rows[self.target]))
        return {self.names[0]: float(value)}


class RowCollector:
    """Gathers the rows of several metrics, batch by batch, on the device until `finish`."""

    def __init__(self, metrics: list[Metric]) -> None:
        self.metrics = metrics
        self.batches: list[dict[str, Any]] = []

    def update(self, outputs: dict[str, Any], batch: dict[str, Any], positions: list[int]) -> None:
        columns: dict[str, Any] = {"sample_id": list(batch["sample_id"]), "position": positions}
        for metric in self.metrics:
            for key, value in metric.rows(outputs, batch).items():
                columns[key] = value.detach() if isinstance(value, torch.Tensor) else value
        self.batches.append(columns)

    def finish(self) -> list[dict[str, Any]]:
        """Batches as plain NumPy columns, ready to travel between processes."""
        return [{key: _to_numpy(value) for key, value in batch.items()} for batch in self.batches]


def merge_rows(batches: list[dict[str, Any]]) -> Rows:
    """One table from many batches: in dataset order, each `sample_id` once."""
    if not batches:
        return {"sample_id": np.array([], dtype=object)}
    table = {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
    order = np.argsort(table.pop("position"), kind="stable")
    ids = table["sample_id"][order]
    _, first = np.unique(ids, return_index=True)
    keep = order[np.sort(first)]
    return {key: column[keep] for key, column in table.items()}


def compute_all(metrics: list[Metric], rows: Rows) -> tuple[dict[str, float], dict[str, str]]:
    """All values and, for those that do not exist, the reasons."""
    values: dict[str, float] = {}
    reasons: dict[str, str] = {}
    for metric in metrics:
        for name, value in metric.compute(rows).items():
            values[name] = float(value)
            if isinstance(value, Undefined):
                reasons[name] = value.reason
            elif math.isnan(value):
                reasons[name] = NOT_A_NUMBER
    return values, reasons


def _to_numpy(value: Any) -> Array:
    if isinstance(value, torch.Tensor):
        value = value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
        return np.asarray(value.cpu().numpy())
    if value and isinstance(value[0], str):
        return np.array(value, dtype=object)
    return np.asarray(value)
