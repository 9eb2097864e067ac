"""How well malignancy is predicted: correlation with the readers' ratings, AUC, and calibration."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from medtrain.errors import DataError

Array = npt.NDArray[Any]


def correlations(x: npt.ArrayLike, y: npt.ArrayLike) -> dict[str, float]:
    """`pearson`, `pearson_p`, `spearman`, `spearman_p` (two-sided) of values (N,); NaN for fewer than 3 pairs, or if
    one side is constant.
    """
    from scipy import stats

    x, y = (np.asarray(values, dtype=np.float64) for values in (x, y))
    names = ("pearson", "pearson_p", "spearman", "spearman_p")
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return dict.fromkeys(names, math.nan)
    pearson, spearman = stats.pearsonr(x, y), stats.spearmanr(x, y)
    values = (pearson.statistic, pearson.pvalue, spearman.statistic, spearman.pvalue)
    return {name: float(value) for name, value in zip(names, values, strict=True)}


def auc(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """The share of (positive, negative) pairs in which the positive scores higher, ties half; NaN of one class."""
    from sklearn.metrics import roc_auc_score

    positive = np.asarray(labels).astype(np.bool_)
    if positive.all() or not positive.any():
        return math.nan
    return float(roc_auc_score(positive, np.asarray(scores, dtype=np.float64)))


def calibration_curve(probabilities: npt.ArrayLike, labels: npt.ArrayLike, bins: int = 10) -> dict[str, Any]:
    """Bins of equal width, [low, high), the last one closed: `mean_predicted` and `frequency` (NaN where empty),
    `count`, and `ece`, the mean distance of the two weighted by the counts.

    Raises DataError for values outside 0..1: a score on another scale has no calibration error.
    """
    p, positive = np.asarray(probabilities, dtype=np.float64), np.asarray(labels).astype(np.bool_)
    if not ((p >= 0) & (p <= 1)).all():
        raise DataError("a calibration curve needs probabilities in 0..1; calibrate the scores first")
    which = np.minimum(np.searchsorted(np.linspace(0, 1, bins + 1), p, side="right") - 1, bins - 1)
    count = np.bincount(which, minlength=bins)
    with np.errstate(invalid="ignore"):
        predicted = np.bincount(which, weights=p, minlength=bins) / count
        frequency = np.bincount(which, weights=positive, minlength=bins) / count
    gaps = np.abs(predicted - frequency)[count > 0] * count[count > 0]
    return {
        "mean_predicted": predicted.tolist(),
        "frequency": frequency.tolist(),
        "count": count.tolist(),
        "ece": float(gaps.sum() / len(p)) if len(p) else math.nan,
    }
