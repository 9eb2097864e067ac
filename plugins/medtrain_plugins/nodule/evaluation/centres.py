"""How near predicted centres are to true ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


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

    Pairs further apart than `max_distance` are none. After the pairs come the predictions left, then the truths left.
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
    """Mean, median, 95th percentile and largest of distances (N,) in mm; NaN of none."""
    if not len(matched):
        return dict.fromkeys(("mean_distance", "median_distance", "p95_distance", "max_distance"), math.nan)
    return {
        "mean_distance": float(matched.mean()),
        "median_distance": float(np.median(matched)),
        "p95_distance": float(np.percentile(matched, 95)),
        "max_distance": float(matched.max()),
    }
