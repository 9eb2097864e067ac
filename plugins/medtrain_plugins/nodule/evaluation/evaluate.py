"""`evaluate_detections`: the whole evaluation of detections against annotations, from tables in memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from medtrain.errors import ConfigError, DataError

from medtrain_plugins.nodule.annotations.tables import Findings, unknown_series_notes
from medtrain_plugins.nodule.evaluation.accuracy import MaskScore, distance_metrics, mask_metrics, size_metrics
from medtrain_plugins.nodule.evaluation.froc import (
    RATES,
    Curve,
    Marks,
    bootstrap_sensitivities,
    froc,
    interval,
    mean_sensitivity,
)
from medtrain_plugins.nodule.evaluation.malignancy import auc, calibration_curve, correlations
from medtrain_plugins.nodule.evaluation.matching import Matching, Outcome, match_fixed_radius, match_luna16
from medtrain_plugins.nodule.evaluation.precision import box_precision, protocol_precision

Array = npt.NDArray[Any]
Protocol = Literal["luna16", "fixed_radius"]

SCHEMA, VERSION = "medtrain-nodule-evaluation", 1
DIAMETER_STRATA = ("below 3 mm", "3 to 5 mm", "5 to 10 mm", "10 to 20 mm", "above 20 mm", "not measured")


@dataclass(frozen=True)
class EvaluationSettings:
    """How detections are evaluated.

    protocol: see `matching`. max_distance: mm, of the fixed radius. max_marks: largest number of candidates per scan.
    replicates, seed, confidence: of the bootstrap of scans (0 replicates: no intervals). malignant_from: annotated
    malignancy from which a nodule is malignant; not needed when annotations are 0 or 1. Raises ConfigError.
    """

    protocol: Protocol = "luna16"
    max_distance: float = 10.0
    max_marks: int | None = None
    replicates: int = 1000
    seed: int = 0
    confidence: float = 0.95
    malignant_from: float | None = None

    def __post_init__(self) -> None:
        if self.protocol not in ("luna16", "fixed_radius"):
            raise ConfigError(f"protocol: {self.protocol!r} is neither 'luna16' nor 'fixed_radius'")
        if not self.max_distance > 0 or not 0 < self.confidence < 1 or self.replicates < 0:
            raise ConfigError("max_distance must be above 0, confidence between 0 and 1, replicates not negative")
        if self.max_marks is not None and self.max_marks < 1:
            raise ConfigError(f"max_marks: {self.max_marks} leaves no candidate; give 1 or more, or none")


@dataclass(frozen=True)
class NoduleEvaluation:
    """The result: values as plain numbers (NaN where undefined), and the tables they come from.

    sensitivities: at `RATES`. intervals: `cpm` and the rates as text -> limits. centre, size: of found nodules and the
    candidates that found them. strata: kind -> rows. operating_points: one row per rate.
    """

    settings: EvaluationSettings
    annotations: Findings
    candidates: Findings
    matching: Matching
    curve: Curve
    counts: dict[str, int]
    cpm: float
    sensitivities: list[float]
    intervals: dict[str, tuple[float, float]]
    centre: dict[str, float]
    size: dict[str, float]
    average_precision: dict[str, Any]
    operating_points: list[dict[str, float]]
    strata: dict[str, list[dict[str, Any]]]
    triage: dict[str, Any] | None = None
    segmentation: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def sensitivity(self) -> dict[str, float]:
        """Sensitivity by rate as text: "0.125" ... "8"."""
        return by_rate(self.sensitivities)

    def metrics(self) -> dict[str, float]:
        """The metrics of a run: `cpm` first."""
        return {
            "cpm": self.cpm,
            **{f"sensitivity_at_{rate}": value for rate, value in self.sensitivity.items()},
            "average_precision": self.average_precision["protocol"],
            "centre_error_median": self.centre["median_distance"],
            "centre_error_mean": self.centre["mean_distance"],
            "diameter_error_median": self.size["median_relative"],
            "diameter_error_mean": self.size["mean_relative"],
        }

    def document(self) -> dict[str, Any]:
        """The evaluation as plain values, for JSON (NaN becomes null when it is written)."""
        corners = self.curve.corners()
        return {
            "schema": SCHEMA,
            "version": VERSION,
            "protocol": self.settings.protocol,
            "settings": asdict(self.settings),
            **self.summary(),
            "curve": {
                "threshold": self.curve.thresholds[corners].tolist(),
                "false_positives_per_scan": self.curve.false_per_scan[corners].tolist(),
                "sensitivity": self.curve.sensitivity[corners].tolist(),
            },
            "operating_points": self.operating_points,
            "average_precision": self.average_precision,
            "centre": self.centre,
            "size": self.size,
            "strata": self.strata,
            "triage": self.triage,
            "segmentation": self.segmentation,
        }

    def summary(self) -> dict[str, Any]:
        """CPM, sensitivities, counts, intervals, notes."""
        intervals = {name: list(limits) for name, limits in self.intervals.items()}
        return {
            "cpm": self.cpm,
            "fp_rates": list(RATES),
            "sensitivity": self.sensitivity,
            "sensitivities": self.sensitivities,
            "counts": self.counts,
            "confidence": {
                "level": self.settings.confidence,
                "replicates": self.settings.replicates,
                "seed": self.settings.seed,
                "cpm": intervals.pop("cpm", None),
                "sensitivity": intervals or None,
            },
            "notes": self.notes,
        }


def evaluate_detections(
    annotations: Findings,
    candidates: Findings,
    excluded: Findings | None = None,
    series: Sequence[str] | None = None,
    settings: EvaluationSettings | None = None,
    *,
    subsets: Mapping[str, str] | None = None,
    masks: Mapping[str, MaskScore] | None = None,
) -> NoduleEvaluation:
    """Evaluates candidates against annotated nodules.

    excluded: irrelevant findings (LUNA16 protocol only). series: the scans, also those without nodules or candidates;
    default: all scans in the tables. subsets: scan -> its subset or fold, for strata. masks: scan (or nodule) ->
    overlap of its segmentation. Raises DataError if there is no scan, or if candidates have no scores.
    """
    settings = settings or EvaluationSettings()
    if candidates.score is None:
        raise DataError(f"{candidates.name}: candidates need scores")
    given = {"annotated nodules": annotations, "candidates": candidates}
    if excluded is not None:
        given["irrelevant findings"] = excluded
    notes = [note for findings in given.values() for note in findings.notes]
    if series is None:
        scans = list(dict.fromkeys(str(uid) for findings in given.values() for uid in findings.series))
        notes.append(f"no list of scans was given: the {len(scans)} scans that the tables name were evaluated")
    else:
        scans = list(dict.fromkeys(series))
        notes += unknown_series_notes(given, scans)
    if not scans:
        raise DataError("there is no scan to evaluate: all tables are empty")

    if settings.protocol == "luna16":
        matching = match_luna16(annotations, candidates, excluded, scans, settings.max_marks)
    else:
        matching = match_fixed_radius(annotations, candidates, scans, settings.max_distance, settings.max_marks)
        if excluded is not None:
            notes.append("the fixed_radius protocol has no irrelevant findings; those given were not used")
    marks = Marks.of(matching, candidates)
    curve = froc(marks, settings.protocol)
    counts = _counts(matching, excluded, scans)
    notes += _warnings(counts)
    sensitivities = curve.sensitivity_at(RATES)
    pairs = matching.nodules[matching.found], matching.hit[matching.found]
    centre_distances = np.sqrt(np.square(annotations.xyz[pairs[0]] - candidates.xyz[pairs[1]]).sum(axis=1))
    sized = np.isfinite(candidates.diameter[pairs[1]]) & (annotations.diameter[pairs[0]] >= 0)
    return NoduleEvaluation(
        settings=settings,
        annotations=annotations,
        candidates=candidates,
        matching=matching,
        curve=curve,
        counts=counts,
        cpm=mean_sensitivity(sensitivities),
        sensitivities=sensitivities.tolist(),
        intervals=_intervals(marks, settings),
        centre={"count": len(centre_distances), **distance_metrics(centre_distances)},
        size=size_metrics(candidates.diameter[pairs[1][sized]], annotations.diameter[pairs[0][sized]]),
        average_precision=_average_precision(annotations, candidates, matching, marks),
        operating_points=_operating_points(curve, counts),
        strata=_strata(annotations, candidates, matching, settings, subsets),
        triage=_triage(annotations, candidates, pairs, settings, notes),
        segmentation=mask_metrics(masks) if masks is not None else None,
        notes=notes,
    )


def by_rate(values: Sequence[float]) -> dict[str, float]:
    """Values at `RATES` by the rate as text."""
    return {f"{rate:g}": float(value) for rate, value in zip(RATES, values, strict=True)}


def _counts(matching: Matching, excluded: Findings | None, scans: Sequence[str]) -> dict[str, int]:
    capped, unknown = matching.count(Outcome.CAPPED), matching.count(Outcome.UNKNOWN_SERIES)
    known = set(scans)
    irrelevant = 0 if excluded is None else sum(uid in known for uid in excluded.series)
    return {
        "scans": len(scans),
        "scans_with_nodules": len(np.unique(matching.nodule_scan)),
        "nodules": len(matching.nodules),
        "irrelevant_findings": irrelevant,
        "candidates": len(matching.outcome) - capped - unknown,
        "true_positives": int(matching.found.sum()),
        "false_positives": matching.count(Outcome.FALSE_POSITIVE),
        "false_negatives": int((~matching.found).sum()),
        "ignored": matching.count(Outcome.IGNORED),
        "duplicates": matching.duplicates,
        "capped": capped,
        "unknown_series": unknown,
    }


def _warnings(counts: Mapping[str, int]) -> list[str]:
    if not counts["nodules"]:
        return ["no nodule is annotated in these scans: sensitivities do not exist"]
    if counts["candidates"] and not counts["true_positives"]:
        return [
            "no candidate hits a nodule; check that coordinates are world coordinates in mm, in the order x, y, z"
            + (" and that the series names are those of the annotations" if counts["unknown_series"] else "")
        ]
    return []


def _intervals(marks: Marks, settings: EvaluationSettings) -> dict[str, tuple[float, float]]:
    if not settings.replicates:
        return {}
    values = bootstrap_sensitivities(marks, settings.replicates, settings.seed, RATES, settings.protocol)
    found = {"cpm": interval(values.mean(axis=1), settings.confidence)}
    return found | {f"{rate:g}": interval(values[:, i], settings.confidence) for i, rate in enumerate(RATES)}


def _average_precision(annotations: Findings, candidates: Findings, matching: Matching, marks: Marks) -> dict[str, Any]:
    """For the protocol's hits, and for boxes by overlap and on average if candidates have diameters."""
    values: dict[str, Any] = {"protocol": protocol_precision(marks), "iou": None, "iou_mean": math.nan}
    if len(candidates) and np.isfinite(candidates.diameter).any():
        boxes = box_precision(annotations, candidates, matching)
        values["iou"] = {f"{overlap:g}": value for overlap, value in boxes.items()}
        values["iou_mean"] = float(np.mean(list(boxes.values())))
    return values


def _operating_points(curve: Curve, counts: Mapping[str, int]) -> list[dict[str, float]]:
    """For each rate, the lowest threshold with at most that many false positives per scan."""
    rows = []
    for rate in RATES:
        point = curve.operating_point(rate)
        found, wrong = int(curve.true_positives[point]), int(curve.false_positives[point])
        rows.append(
            {
                "rate": rate,
                "threshold": float(curve.thresholds[point]),
                "false_positives_per_scan": float(curve.false_per_scan[point]),
                "sensitivity": float(curve.sensitivity[point]),
                "precision": found / (found + wrong) if found + wrong else math.nan,
                "true_positives": found,
                "false_positives": wrong,
                "false_negatives": counts["nodules"] - found,
            }
        )
    return rows


def _strata(
    annotations: Findings,
    candidates: Findings,
    matching: Matching,
    settings: EvaluationSettings,
    subsets: Mapping[str, str] | None,
) -> dict[str, list[dict[str, Any]]]:
    """Rows by diameter, texture and subset.

    By diameter and texture, the nodules of a stratum are evaluated with the false positives of all scans, and other
    nodules are ignored. A subset is evaluated on its own.
    """
    strata: dict[str, list[dict[str, Any]]] = {}
    kinds = {"diameter": diameter_strata(annotations.diameter[matching.nodules])}
    if annotations.texture is not None:
        kinds["texture"] = annotations.texture[matching.nodules]
    for kind, names in kinds.items():
        known = list(DIAMETER_STRATA) if kind == "diameter" else sorted(set(names))
        strata[kind] = [
            _stratum(name, Marks.of(matching, candidates, names == name), settings) for name in known if name in names
        ]
    if subsets is not None:
        of_scan = np.array([subsets.get(uid, "") for uid in matching.scans], dtype=object)
        strata["subset"] = [
            _stratum(name or "none", Marks.of(matching.restricted(of_scan == name), candidates), settings)
            for name in sorted(set(of_scan))
        ]
    return strata


def diameter_strata(diameter: Array) -> Array:
    """The stratum of each diameter in mm: below 3, 5, 10, up to 20, above 20."""
    index = np.digitize(diameter, (3.0, 5.0, 10.0)) + (diameter > 20.0)
    names = np.array(DIAMETER_STRATA, dtype=object)[np.where(diameter < 0, len(DIAMETER_STRATA) - 1, index)]
    found: Array = names
    return found


def _stratum(name: str, marks: Marks, settings: EvaluationSettings) -> dict[str, Any]:
    sensitivities = froc(marks, settings.protocol).sensitivity_at(RATES)
    return {
        "stratum": name,
        "scans": len(marks.nodules),
        "nodules": int(marks.nodules.sum()),
        "found": int(marks.true.sum()),
        "cpm": mean_sensitivity(sensitivities),
        "sensitivity": by_rate(sensitivities.tolist()),
    }


def _triage(
    annotations: Findings,
    candidates: Findings,
    pairs: tuple[Array, Array],
    settings: EvaluationSettings,
    notes: list[str],
) -> dict[str, Any] | None:
    """Malignancy of found nodules, if both tables have it; else None."""
    if annotations.malignancy is None or candidates.malignancy is None:
        return None
    truth, predicted = annotations.malignancy[pairs[0]], candidates.malignancy[pairs[1]]
    known = np.isfinite(truth) & np.isfinite(predicted)
    truth, predicted = truth[known], predicted[known]
    values: dict[str, Any] = {"nodules": len(truth), **correlations(predicted, truth)}
    if settings.malignant_from is not None:
        labels = truth >= settings.malignant_from
    elif np.isin(truth, (0.0, 1.0)).all():
        labels = truth > 0
    else:
        notes.append("malignancy is annotated in grades and malignant_from is not set: no AUC, no calibration")
        return values
    values["malignant"] = int(labels.sum())
    values["auc"] = auc(predicted, labels)
    if ((predicted >= 0) & (predicted <= 1)).all():
        values["calibration"] = calibration_curve(predicted, labels)
    else:
        notes.append("predicted malignancy lies outside 0..1: it is no probability and has no calibration error")
    return values
