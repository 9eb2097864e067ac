"""Metrics: rows from any number of processes become one table in dataset order, and NaN has a reason."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from medtrain.protocols.metric import BatchMetric, RowCollector, Undefined, compute_all, merge_rows


def accuracy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return ((logits > 0) == (labels > 0.5)).float().mean()


def collected(metric: Any, batches: list[tuple[list[str], list[float], list[float], list[int]]]) -> list[Any]:
    collector = RowCollector([metric])
    for ids, logits, labels, positions in batches:
        batch = {"sample_id": ids, "label": torch.tensor(labels), "view": ids}
        collector.update({"logits": torch.tensor(logits)}, batch, positions)
    return collector.finish()


def test_rows_of_several_processes_in_dataset_order_each_sample_once() -> None:
    metric = BatchMetric("accuracy", accuracy, "logits", "label")
    one = collected(metric, [(["a", "b"], [1.0, -1.0], [1.0, 1.0], [0, 1]), (["e"], [9.0], [0.0], [4])])
    two = collected(metric, [(["c", "d"], [2.0, -2.0], [1.0, 0.0], [2, 3]), (["e"], [9.0], [0.0], [4])])
    rows = merge_rows(two + one)
    assert rows["sample_id"].tolist() == ["a", "b", "c", "d", "e"]
    assert rows["logits"].tolist() == [1.0, -1.0, 2.0, -2.0, 9.0]
    assert list(rows) == ["sample_id", "logits", "label"]
    values, reasons = compute_all([metric], rows)
    assert values == {"accuracy": pytest.approx(0.6)}
    assert reasons == {}


def test_the_first_of_repeated_samples_is_kept() -> None:
    metric = BatchMetric("accuracy", accuracy, "logits", "label")
    rows = merge_rows(collected(metric, [(["a", "a", "b"], [1.0, 5.0, 2.0], [0.0, 0.0, 0.0], [1, 2, 0])]))
    assert rows["sample_id"].tolist() == ["b", "a"]
    assert rows["logits"].tolist() == [2.0, 1.0]


def test_half_precision_and_text_columns() -> None:
    class Views:
        names, mode = ("views",), "max"

        def rows(self, outputs: dict[str, Any], batch: dict[str, Any]) -> dict[str, Any]:
            return {"logits": outputs["logits"].bfloat16(), "view": batch["view"], "year": [1, 2]}

        def compute(self, rows: dict[str, Any]) -> dict[str, float]:
            return {"views": len(set(rows["view"]))}

    rows = merge_rows(collected(Views(), [(["a", "b"], [0.5, 1.5], [0.0, 0.0], [0, 1])]))
    assert rows["logits"].dtype == np.float32
    assert rows["view"].dtype == object
    assert rows["year"].tolist() == [1, 2]
    assert compute_all([Views()], rows)[0] == {"views": 2.0}


def test_no_rows() -> None:
    assert merge_rows([])["sample_id"].tolist() == []


def test_undefined_values_are_nan_with_a_reason() -> None:
    class Odd:
        names, mode = ("a", "b", "c"), "max"

        def compute(self, rows: dict[str, Any]) -> dict[str, float]:
            return {"a": Undefined("no event"), "b": float("nan"), "c": 1.0}

    values, reasons = compute_all([Odd()], {})  # type: ignore[list-item]
    assert math.isnan(values["a"]) and math.isnan(values["b"]) and values["c"] == 1.0
    assert reasons == {"a": "no event", "b": "not a number"}
    assert type(values["a"]) is float
