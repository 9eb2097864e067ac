"""How accurate detections are: centres (mm), diameters (of matched pairs) and masks (Dice and IoU, case by case)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from medtrain.errors import DataError

Array = npt.NDArray[Any]
SMOOTH = 1e-6  # of Dice and IoU


def distance_metrics(matched: Array) -> dict[str, float]:
    """Mean, median, 95th percentile and maximum of distances (N,) in mm; NaN without any."""
    if not len(matched):
        return dict.fromkeys(("mean_distance", "median_distance", "p95_distance", "max_distance"), math.nan)
    return {
        "mean_distance": float(matched.mean()),
        "median_distance": float(np.median(matched)),
        "p95_distance": float(np.percentile(matched, 95)),
        "max_distance": float(matched.max()),
    }


def relative_errors(predicted: npt.ArrayLike, truth: npt.ArrayLike) -> Array:
    """(predicted - truth) / truth, infinite where the truth is 0."""
    predicted, truth = (np.asarray(values, dtype=np.float64) for values in (predicted, truth))
    if predicted.shape != truth.shape:
        raise DataError(f"{predicted.shape} predicted sizes for {truth.shape} true ones: give matched pairs")
    with np.errstate(divide="ignore", invalid="ignore"):
        errors: Array = np.where(truth == 0, np.inf, (predicted - truth) / truth)
    return errors


def size_metrics(predicted: npt.ArrayLike, truth: npt.ArrayLike) -> dict[str, float]:
    """Errors of diameters (N,) in mm against true ones: `mae`, `rmse`, `mean`, `median`, `std` (population),
    `mean_relative` and `median_relative` (of absolute values; infinite where a truth is 0), and their `count`. NaN
    without any.
    """
    relative = np.abs(relative_errors(predicted, truth))
    errors = np.asarray(predicted, dtype=np.float64) - np.asarray(truth, dtype=np.float64)
    names = ("mae", "rmse", "mean", "median", "std", "mean_relative", "median_relative")
    if not len(errors):
        return {"count": 0, **dict.fromkeys(names, math.nan)}
    values = (
        np.abs(errors).mean(),
        np.sqrt(np.square(errors).mean()),
        errors.mean(),
        np.median(errors),
        errors.std(),
        relative.mean(),
        np.median(relative),
    )
    return {"count": len(errors), **{name: float(value) for name, value in zip(names, values, strict=True)}}


class MaskScore(NamedTuple):
    """Overlap of a predicted mask with the true one, 0..1."""

    dice: float
    iou: float


def mask_score(prediction: Array, truth: Array, smooth: float = SMOOTH) -> MaskScore:
    """Dice = (2 |A and B| + s) / (|A| + |B| + s) and IoU = (|A and B| + s) / (|A or B| + s) of masks of one shape.

    Voxels above 0.5 belong to a mask. Two empty masks agree: both are 1.
    """
    a, b = np.asarray(prediction) > 0.5, np.asarray(truth) > 0.5
    if a.shape != b.shape:
        raise DataError(f"a predicted mask of shape {a.shape} for a true one of shape {b.shape}")
    both, sizes = int((a & b).sum()), int(a.sum()) + int(b.sum())
    return MaskScore((2 * both + smooth) / (sizes + smooth), (both + smooth) / (sizes - both + smooth))


def mask_metrics(scores: Mapping[str, MaskScore]) -> dict[str, Any]:
    """Mean and population standard deviation over cases, and the value of each case."""
    values = np.array([tuple(score) for score in scores.values()], dtype=np.float64).reshape(-1, 2)
    summary: dict[str, Any] = {"cases": len(values)}
    for column, name in enumerate(MaskScore._fields):
        summary[f"mean_{name}"] = float(values[:, column].mean()) if len(values) else float("nan")
        summary[f"std_{name}"] = float(values[:, column].std()) if len(values) else float("nan")
    summary["by_case"] = {case: score._asdict() for case, score in scores.items()}
    return summary
