"""How well masks overlap: Dice and IoU, case by case, so that shapes and spacings may differ between cases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from medtrain.errors import DataError

Array = npt.NDArray[Any]
SMOOTH = 1e-6


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
    """Mean and population standard deviation over cases, and the cases."""
    values = np.array([tuple(score) for score in scores.values()], dtype=np.float64).reshape(-1, 2)
    summary: dict[str, Any] = {"cases": len(values)}
    for column, name in enumerate(MaskScore._fields):
        summary[f"mean_{name}"] = float(values[:, column].mean()) if len(values) else float("nan")
        summary[f"std_{name}"] = float(values[:, column].std()) if len(values) else float("nan")
    summary["by_case"] = {case: score._asdict() for case, score in scores.items()}
    return summary
