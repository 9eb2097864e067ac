"""`RiskMetrics` through the core's own collection of rows: values, details, reasons."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import numpy as np
import pytest
import torch
from medtrain.errors import DataError
from medtrain.protocols.metric import Metric, RowCollector, Rows, compute_all, merge_rows
from medtrain_plugins.mammography.evaluation.metrics import RiskMetrics
from medtrain_plugins.mammography.evaluation.survival import KaplanMeier, c_index_td
from survival_values import yearly_auc

NAMES = ["c_index", "c_index_uno", *(f"auc_year_{year}" for year in range(1, 6))]


def cohort(n: int, seed: int = 0) -> dict[str, Any]:
    """Outputs and batch in one, as a loader would give them."""
    generator = torch.Generator().manual_seed(seed)
    observed = (torch.rand(n, generator=generator) < 0.3).long()
    return {
        "sample_id": [f"s{i}" for i in range(n)],
        "logit": torch.randn(n, 5, generator=generator).sort(dim=1).values + observed[:, None],
        "event_times": torch.randint(0, 5, (n,), generator=generator),
        "event_observed": observed,
        "patient_id": [f"p{i // 4}" for i in range(n)],
        "exam_id": [f"e{i // 2}" for i in range(n)],
        "density": torch.randint(1, 5, (n,), generator=generator),
        "time_gap": torch.rand(n, generator=generator),
    }


def metric_of(batch: dict[str, Any], replicates: int = 50) -> RiskMetrics:
    def risk(outputs: dict[str, Any]) -> torch.Tensor:
        return outputs["logit"].sigmoid()

    return RiskMetrics(risk, batch["event_times"].numpy(), batch["event_observed"].numpy(), replicates)


def collect(metric: RiskMetrics, batch: dict[str, Any], size: int) -> Rows:
    collector = RowCollector([metric])
    for first in range(0, len(batch["sample_id"]), size):
        part = {key: value[first : first + size] for key, value in batch.items()}
        collector.update(part, part, list(range(first, first + len(part["sample_id"]))))
    return merge_rows(collector.finish())


def test_values_are_those_of_the_functions() -> None:
    batch = cohort(120)
    metric = metric_of(batch)
    assert isinstance(metric, Metric)
    rows = collect(metric, batch, size=50)
    assert rows["risk"].dtype == np.float32 and rows["event_time"].dtype == np.int64
    assert set(rows) == {*batch} - {"logit", "event_times"} | {"risk", "event_time"}
    values, reasons = compute_all([metric], rows)
    assert list(values) == list(metric.names) == NAMES and not reasons
    times, observed = rows["event_time"], rows["event_observed"]
    g = KaplanMeier.of_censoring(times, observed).survival
    assert values["c_index"] == c_index_td(times, observed, rows["risk"], g)
    assert [values[name] for name in NAMES[2:]] == yearly_auc(times, observed, rows["risk"])
    assert values["c_index"] > 0.55


def test_the_training_group_gives_the_weights() -> None:
    batch, training = cohort(120), cohort(120)
    training["event_observed"] = torch.zeros(120, dtype=torch.long)  # everybody is lost, most of them early
    rows = collect(metric_of(batch), batch, size=120)
    assert metric_of(batch).compute(rows)["c_index"] != metric_of(training).compute(rows)["c_index"]


def test_details_are_strict_json_and_repeatable() -> None:
    batch = cohort(240)
    metric = metric_of(batch)
    rows = collect(metric, batch, size=64)
    details = metric.details(rows, seed=5)
    text = json.dumps(details, allow_nan=False)
    assert text == json.dumps(metric.details(rows, seed=5), allow_nan=False)
    assert text != json.dumps(metric.details(rows, seed=6), allow_nan=False)
    assert {unit: report["n"] for unit, report in details["units"].items()} == {
        "sample": 240,
        "exam": 120,
        "patient": 60,
    }
    assert {report["patients"] for report in details["units"].values()} == {60}
    sample = details["units"]["sample"]["metrics"]
    assert list(sample) == NAMES
    assert sample["c_index"]["value"] == metric.compute(rows)["c_index"]
    assert sample["c_index"]["low"] < sample["c_index"]["value"] < sample["c_index"]["high"]
    assert sample["c_index"]["valid"] == 50
    assert list(details["strata"]) == ["density"]


def test_without_events_values_are_missing_with_reasons_and_details_still_json() -> None:
    batch = cohort(40)
    batch["event_observed"] = torch.zeros(40, dtype=torch.long)
    metric = metric_of(batch)
    rows = collect(metric, batch, size=40)
    values, reasons = compute_all([metric], rows)
    assert all(math.isnan(value) for value in values.values())
    assert list(reasons) == NAMES
    score = json.loads(json.dumps(metric.details(rows, 0), allow_nan=False))["units"]["sample"]["metrics"]["c_index"]
    assert score["value"] is None and score["valid"] == 0 and score["reason"]


def test_risks_that_are_not_finite_and_empty_groups() -> None:
    batch = cohort(40)
    batch["logit"][7, 2] = math.nan
    metric = metric_of(batch)
    rows = collect(metric, batch, size=40)
    _, reasons = compute_all([metric], rows)
    assert reasons["c_index"] == "the risks of 1 samples are not finite (first: s7)"
    assert metric.details(rows, 0)["reason"] == reasons["c_index"]
    _, reasons = compute_all([metric], merge_rows([]))
    assert reasons["auc_year_5"] == "no samples"


def test_a_batch_without_labels_is_refused() -> None:
    batch = cohort(4)
    metric = metric_of(batch)
    del batch["patient_id"]
    with pytest.raises(DataError, match="patient_id"):
        metric.rows(batch, batch)


def test_values_are_quick_enough_for_every_epoch() -> None:
    batch = cohort(1000)
    metric = metric_of(batch)
    rows = collect(metric, batch, size=1000)
    seconds = []
    for _ in range(5):
        start = time.process_time()
        metric.compute(rows)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.03
