"""Confidence intervals of FROC curves: a bootstrap of scans."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from medtrain_plugins.nodule.evaluation.froc import RATES, Convention, Marks, resampled_sensitivities

Array = npt.NDArray[Any]


def bootstrap_sensitivities(
    marks: Marks,
    replicates: int = 1000,
    seed: int = 0,
    rates: Sequence[float] = RATES,
    convention: Convention = "luna16",
) -> Array:
    """Sensitivities at `rates` of resamples of the scans, (replicates, R). Candidates are not matched again.

    The draws are those of `numpy.random.RandomState(seed).randint(S, size=S)`, one after the other: the challenge's
    evaluator draws the same after `numpy.random.seed(seed)`, so that the intervals of both can be compared.
    """
    random = np.random.RandomState(seed)
    scans = len(marks.nodules)
    values = np.empty((replicates, len(rates)))
    for replicate in range(replicates):
        weights = np.bincount(random.randint(scans, size=scans), minlength=scans)
        values[replicate] = resampled_sensitivities(marks, weights, rates, convention)
    return values


def interval(values: Array, confidence: float = 0.95) -> tuple[float, float]:
    """The limits of the values (B,) at a level of confidence, by the order statistics the challenge takes.

    Undefined values (resamples without a nodule) are left out; NaN when there is none left.
    """
    ordered = np.sort(values[~np.isnan(values)])
    if not len(ordered):
        return math.nan, math.nan
    tail = (1.0 - confidence) / 2.0
    low, high = (min(math.floor(share * len(ordered)), len(ordered) - 1) for share in (tail, 1.0 - tail))
    return float(ordered[low]), float(ordered[high])
