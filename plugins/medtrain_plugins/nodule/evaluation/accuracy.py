"""How accurate detections are: centres (mm), diameters (of matched pairs) and masks (Dice and IoU, case by case)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from medtrain.errors import DataError

Array = npt.NDArray[Any]
SMOOTH = 1e-6  # of Dice and IoU


class Pair(NamedTuple):
    """A prediction and a truth by index, and their distance in mm; -1 and infinity where one is alone."""

    prediction: int
    truth: int
    distance: float


def distances(a: npt.ArrayLike, b: npt.ArrayLike) -> Array:
    """Euclidean distances (N, M) of points (N, 3) and (M, 3), in their unit."""
    a, b = (np.asarray(points, dtype=np.float64).reshape(-1, 3) for points in (a, b))
    found: Array = np.sqrt(np.square(a[:, None] - b[None]).sum(axis=-1))
    return found


def match_centres(predictions: npt.ArrayLike, truth: npt.ArrayLike, max_distance: float = 10.0) -> list[Pair]:
    """Pairs of points (P, 3) and (T, 3) of one scan, in mm, the closest pair first, each point once.

    Points further apart than `max_distance` are not paired. Unpaired predictions and then unpaired truths follow.
    """
    apart = distances(predictions, truth)
    rows, columns = np.nonzero(apart <= max_distance)
    order = np.lexsort([columns, rows, apart[rows, columns]])
    pairs: list[Pair] = []
    free_rows, free_columns = dict.fromkeys(range(apart.shape[0])), dict.fromkeys(range(apart.shape[1]))
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if row in free_rows and column in free_columns:
            pairs.append(Pair(row, column, float(apart[row, column])))
            del free_rows[row], free_columns[column]
    pairs += [Pair(row, -1, math.inf) for row in free_rows]
    return pairs + [Pair(-1, column, math.inf) for column in free_columns]


def centre_metrics(pairs: Sequence[Pair]) -> dict[str, float]:
    """`mean_distance`, `median_distance`, `p95_distance`, `max_distance` (mm, NaN without a pair), `num_matched`,
    `num_unmatched_predictions`, `num_unmatched_truths`, `precision` and `recall` (NaN without a denominator)."""
    matched = np.array([pair.distance for pair in pairs if pair.prediction >= 0 and pair.truth >= 0])
    predictions = sum(pair.prediction >= 0 for pair in pairs)
    truths = sum(pair.truth >= 0 for pair in pairs)
    return {
        **distance_metrics(matched),
        "num_matched": len(matched),
        "num_unmatched_predictions": predictions - len(matched),
        "num_unmatched_truths": truths - len(matched),
        "precision": len(matched) / predictions if predictions else math.nan,
        "recall": len(matched) / truths if truths else math.nan,
    }


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


def mask_volume(mask: Array, spacing: npt.ArrayLike) -> float:
    """Volume in mm3 of the voxels above 0 of a mask; spacing: mm along each of its axes."""
    return float(np.count_nonzero(np.asarray(mask) > 0) * np.prod(np.asarray(spacing, dtype=np.float64)))


def equivalent_diameter(volume: float) -> float:
    """Diameter in mm of the ball of a volume in mm3."""
    return float((6.0 * volume / math.pi) ** (1.0 / 3.0))


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


def dice_to_iou(dice: float) -> float:
    return dice / (2 - dice)


def iou_to_dice(iou: float) -> float:
    return 2 * iou / (1 + iou)


def mask_metrics(scores: Mapping[str, MaskScore]) -> dict[str, Any]:
    """Mean and population standard deviation over cases, and the value of each case."""
    values = np.array([tuple(score) for score in scores.values()], dtype=np.float64).reshape(-1, 2)
    summary: dict[str, Any] = {"cases": len(values)}
    for column, name in enumerate(MaskScore._fields):
        summary[f"mean_{name}"] = float(values[:, column].mean()) if len(values) else float("nan")
        summary[f"std_{name}"] = float(values[:, column].std()) if len(values) else float("nan")
    summary["by_case"] = {case: score._asdict() for case, score in scores.items()}
    return summary
