"""What the golden cases ask for and no command computes: scores of centres and masks, boxes, grids of patches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from medtrain_plugins.nodule.annotations.properties import Box
from medtrain_plugins.nodule.data.dataset import Sample, _Scans
from medtrain_plugins.nodule.data.patches import grid_starts
from medtrain_plugins.nodule.data.sampling import Sampling
from medtrain_plugins.nodule.evaluation.accuracy import distance_metrics
from medtrain_plugins.nodule.inference.tta import View
from medtrain_plugins.nodule.model.losses import Reduction, _single, reduce
from medtrain_plugins.nodule.scans.intensity import Intensity
from medtrain_plugins.nodule.scans.manifest import ManifestRow
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn import functional

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


def mask_volume(mask: Array, spacing: npt.ArrayLike) -> float:
    """Volume in mm3 of the voxels above 0 of a mask; spacing: mm along each of its axes."""
    return float(np.count_nonzero(np.asarray(mask) > 0) * np.prod(np.asarray(spacing, dtype=np.float64)))


def equivalent_diameter(volume: float) -> float:
    """Diameter in mm of the ball of a volume in mm3."""
    return float((6.0 * volume / math.pi) ** (1.0 / 3.0))


def dice_to_iou(dice: float) -> float:
    return dice / (2 - dice)


def iou_to_dice(iou: float) -> float:
    return 2 * iou / (1 + iou)


def multiclass_focal(
    logits: Tensor,
    labels: Tensor,
    alpha: float | Sequence[float] = 0.25,
    gamma: float = 2.0,
    reduction: Reduction = "none",
) -> Tensor:
    """The focal loss of several classes: -alpha (1 - p_c)^gamma ln p_c, c the true class.

    logits (B, C, *size), labels (B, *size) integers -> (B, *size). alpha: one factor, or one per class.
    """
    log_probability = functional.log_softmax(_single(logits), dim=1).gather(1, labels.long()[:, None])[:, 0]
    balance = alpha if isinstance(alpha, int | float) else log_probability.new_tensor(alpha)[labels.long()]
    return reduce(-balance * (1 - log_probability.exp()) ** gamma * log_probability, reduction)


def half_open(box: ArrayLike) -> Box:
    """A box that is written with its last voxels included."""
    bounds = np.asarray(box)
    return tuple((int(low), int(high) + 1) for low, high in bounds)  # type: ignore[return-value]


def box_iou(a: ArrayLike, b: ArrayLike) -> float:
    """Intersection over union of two half-open boxes, [low, high) per axis; 0 for empty ones."""
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    shared = np.minimum(first[:, 1], second[:, 1]) - np.maximum(first[:, 0], second[:, 0])
    both = float(np.clip(shared, 0, None).prod())
    sizes = [float(np.clip(box[:, 1] - box[:, 0], 0, None).prod()) for box in (first, second)]
    union = sum(sizes) - both
    return both / union if union > 0 else 0.0


class GridPatches(_Scans):
    """All patches of a grid over every scan, the same ones each time; samples as of `NodulePatches`."""

    deterministic = True

    def __init__(
        self,
        rows: Sequence[ManifestRow],
        intensity: Intensity,
        sampling: Sampling,
        stride: Sequence[int],
        *,
        with_mask: bool = False,
    ) -> None:
        super().__init__(rows, intensity, sampling, with_mask)
        self.patches = [
            (number, start)
            for number, row in enumerate(self.rows)
            for start in grid_starts(row.shape, sampling.patch_size, stride)
        ]
        self.sample_ids = [
            f"{self.rows[number].series}#{'-'.join(map(str, start.tolist()))}" for number, start in self.patches
        ]
        self.participants = [self.rows[number].patient for number, _ in self.patches]

    def __len__(self) -> int:
        return len(self.patches)

    def __getitem__(self, index: int, /) -> Sample:
        number, start = self.patches[index]
        return {"sample_id": self.sample_ids[index]} | self.patch(number, start, self.sampling.patch_size)


def clipped_fraction(transform: Intensity, hu: npt.ArrayLike) -> float:
    """The share of voxels outside the window."""
    values = np.asarray(hu)
    low, high = transform.window
    return float(np.mean((values < low) | (values > high))) if values.size else 0.0


def of_centre(centre: float, width: float, target: tuple[float, float] = (0.0, 1.0)) -> Intensity:
    """From a window as radiologists name it, such as -600 / 1500 for lungs."""
    return Intensity((centre - width / 2, centre + width / 2), target)


def triple(view: View, values: Sequence[float]) -> tuple[float, float, float]:
    """What is measured along z, y and x (a shape, a spacing) along the axes of the view."""
    z, y, x = (values[axis] for axis in view.order)
    return z, y, x
