"""The table of an evaluation (predictions.parquet), and the values that are computed from it.

It has a row for each scan, nodule, irrelevant finding and candidate, so that every value can be computed from it again:
of one process or several, of one fold or all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from medtrain.protocols import Rows, Undefined

from medtrain_plugins.nodule.annotations.tables import Findings
from medtrain_plugins.nodule.evaluation.evaluate import EvaluationSettings, NoduleEvaluation, evaluate_detections
from medtrain_plugins.nodule.evaluation.froc import RATES
from medtrain_plugins.nodule.options import EvaluationOptions

NUMBERS = ("x", "y", "z", "diameter_mm", "score", "triage", "texture")
SUMS = ("heatmap_overlap", "heatmap_total", "mask_overlap", "mask_total")
COLUMNS = ("sample_id", "kind", "series", *NUMBERS, *SUMS)
LARGER = (
    "cpm",
    *(f"sensitivity_at_{rate:g}" for rate in RATES),
    "average_precision",
    "detection_dice",
    "segmentation_dice",
    "centre_accuracy",
    "size_accuracy",
    "triage_auc",
    "triage_correlation",
)
SMALLER = (
    "centre_error_median",
    "centre_error_mean",
    "diameter_error_median",
    "diameter_error_mean",
    "triage_error",
)
_TEXTURES = ((2.0, "ground glass"), (4.0, "part solid"), (math.inf, "solid"))


class ScanTable:
    """Columns of the table, filled row by row."""

    def __init__(self, series: str) -> None:
        self.series = series
        self.columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
        self.counts: dict[str, int] = {}

    def add(self, kind: str, **values: float) -> None:
        number = self.counts[kind] = self.counts.get(kind, 0) + 1
        name = self.series if kind == "scan" else f"{self.series}/{kind}-{number}"
        row = {"sample_id": name, "kind": kind, "series": self.series, **values}
        for column, cells in self.columns.items():
            cells.append(row.get(column, math.nan))


def join_tables(tables: Sequence[dict[str, Any]], order: Mapping[str, int]) -> Rows:
    """The tables of all scans as one, each scan once, in the order of the dataset."""
    by_scan = {table["series"][0]: table for table in tables}
    chosen = sorted(by_scan, key=lambda series: (order.get(series, len(order)), series))
    rows: Rows = {}
    for name in COLUMNS:
        cells = [cell for series in chosen for cell in by_scan[series][name]]
        rows[name] = np.array(cells, dtype=object if name in COLUMNS[:3] else np.float64)
    return rows


def values_of(rows: Rows, names: Iterable[str], options: EvaluationOptions) -> dict[str, float]:
    """The values of these names; `Undefined` if they cannot be computed."""
    found = evaluate_rows(rows, options)
    values = found.metrics() | sums_of(rows) | accuracies(found, options)
    return {name: _defined(name, values[name], found) for name in names}


def evaluate_rows(rows: Rows, options: EvaluationOptions, replicates: int = 0, seed: int = 0) -> NoduleEvaluation:
    """Evaluates the table of scans, findings and candidates."""
    kind = rows["kind"] if "kind" in rows else np.array([], dtype=object)

    def findings(name: str, scores: bool = False) -> Findings:
        chosen = kind == name
        world = np.stack([rows[axis][chosen] for axis in "xyz"], axis=1)
        return Findings.of(
            rows["series"][chosen],
            world,
            diameter=rows["diameter_mm"][chosen],
            score=rows["score"][chosen] if scores else None,
            malignancy=rows["triage"][chosen],
            texture=None if scores else [_texture(value) for value in rows["texture"][chosen]],
            name=f"{name}s",
        )

    settings = EvaluationSettings(
        options.protocol,
        options.max_distance,
        options.max_marks,
        replicates,
        seed,
        malignant_from=options.high_risk,
    )
    excluded = findings("irrelevant") if options.protocol == "luna16" and (kind == "irrelevant").any() else None
    scans = rows["series"][kind == "scan"].tolist()
    return evaluate_detections(findings("nodule"), findings("candidate", True), excluded, scans, settings)


def accuracies(found: NoduleEvaluation, options: EvaluationOptions) -> dict[str, float]:
    """Shares of found nodules within the tolerances, and agreement of triage."""
    matched = found.matching.found
    nodules, hits = found.matching.nodules[matched], found.matching.hit[matched]
    away = np.linalg.norm(found.annotations.xyz[nodules] - found.candidates.xyz[hits], axis=1)
    true, said = found.annotations.diameter[nodules], found.candidates.diameter[hits]
    sized = np.isfinite(said) & (true > 0)
    off = np.abs(said[sized] - true[sized]) / true[sized]
    values = {
        "centre_accuracy": _mean(away <= options.centre_tolerance),
        "size_accuracy": _mean(off <= options.size_tolerance),
    }
    triage = found.triage or {}
    values["triage_auc"] = float(triage.get("auc", math.nan))
    correlation = triage.get("spearman", math.nan)
    values["triage_correlation"] = float(correlation if correlation is not None else math.nan)
    assert found.annotations.malignancy is not None and found.candidates.malignancy is not None
    difference = np.abs(found.annotations.malignancy[nodules] - found.candidates.malignancy[hits])
    values["triage_error"] = _mean(difference[np.isfinite(difference)])
    return values


def sums_of(rows: Rows) -> dict[str, float]:
    """Dice of heatmaps and of masks, over all scans together."""
    values = {}
    for name, part in (("detection_dice", "heatmap"), ("segmentation_dice", "mask")):
        known = np.isfinite(rows[f"{part}_total"])
        overlap, total = rows[f"{part}_overlap"][known].sum(), rows[f"{part}_total"][known].sum()
        values[name] = float(overlap / total) if known.any() and total else math.nan
    return values


def _defined(name: str, value: float, found: NoduleEvaluation) -> float:
    if not math.isnan(value):
        return float(value)
    if not found.counts["nodules"]:
        return Undefined("no nodule is annotated in these scans")
    if name in ("detection_dice", "segmentation_dice"):
        return Undefined("no scan has such maps")
    if name == "average_precision" or not found.counts["true_positives"]:
        return Undefined("no candidate hits a nodule")
    return Undefined("not known of the nodules that were found, or of their candidates")


def _mean(values: Any) -> float:
    return float(np.mean(values)) if len(values) else math.nan


def _texture(value: float) -> str:
    return "unknown" if math.isnan(value) else next(name for limit, name in _TEXTURES if value <= limit)
