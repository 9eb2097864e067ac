"""How well sizes are told: diameters with diameters, in mm, of matched pairs only."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from medtrain.errors import DataError

Array = npt.NDArray[Any]


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
    `mean_relative` and `median_relative` (of absolute values; infinite where a truth is 0), and their `count`. NaN of
    none.
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
