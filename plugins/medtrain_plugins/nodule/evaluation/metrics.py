"""`DetectionMetric`: the values of detection in whole scans, and their comparison between runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from medtrain.protocols import Comparison, Rows

from medtrain_plugins.nodule.evaluation.compare import compare_detections
from medtrain_plugins.nodule.evaluation.rows import LARGER, SMALLER, evaluate_rows, values_of
from medtrain_plugins.nodule.options import EvaluationOptions, PivotOptions


class DetectionMetric:
    """The values of detection in whole scans: those to maximise, or those to minimise.

    cpm, sensitivity_at_<rate>, average_precision: of the protocol (`evaluation`). detection_dice: of predicted and true
    heatmaps. segmentation_dice: of masks. Of found nodules: centre_accuracy, the share whose centre is within the
    tolerance; size_accuracy likewise; triage_auc (high risk or not), triage_correlation (Spearman); the errors of
    centres (mm), diameters (relative) and triage (mean, of 0 to 1).
    """

    def __init__(self, options: EvaluationOptions, mode: Literal["max", "min"] = "max") -> None:
        self.options, self.mode = options, mode
        self.names = list(LARGER if mode == "max" else SMALLER)

    def rows(self, outputs: dict[str, Any], batch: dict[str, Any]) -> Mapping[str, Any]:
        """No rows: they come from whole scans (`evaluate_scans`)."""
        return {}

    def compute(self, rows: Rows) -> dict[str, float]:
        """The values computed from the table of an evaluation."""
        return values_of(rows, self.names, self.options)

    def details(self, rows: Rows, seed: int) -> dict[str, Any]:
        """Intervals of the protocol's values, and the whole evaluation."""
        if self.mode == "min":
            return {}
        found = evaluate_rows(rows, self.options, self.options.replicates, seed)
        named = {name if name == "cpm" else f"sensitivity_at_{name}": list(v) for name, v in found.intervals.items()}
        return {"intervals": named, "detection": found.document()}

    def compare(
        self, tables: Mapping[str, Rows], metrics: Mapping[str, DetectionMetric], seed: int, replicates: int
    ) -> Comparison:
        """Compares several runs on the scans they share; their candidates are not matched with each other."""
        options = {run: metric.options for run, metric in metrics.items()}
        return compare_detections(tables, options, self.names, seed, replicates)


def metrics_of(options: PivotOptions) -> list[DetectionMetric]:
    """The metrics of a run; the CPM is the first."""
    return [DetectionMetric(options.evaluation, "max"), DetectionMetric(options.evaluation, "min")]
