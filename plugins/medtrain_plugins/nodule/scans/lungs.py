"""Lung segmentation by thresholds and connected components. Good enough to place patches."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Box = tuple[tuple[int, int, int], tuple[int, int, int]]

# HU: between aerated lung and soft tissue.
AIR_BELOW = -400.0
# Share of the scan's voxels: smaller air pockets (bowel, oesophagus, tubes) are not lung.
_SMALLEST = 0.002
_WORKING_MM = 2.0
_CLOSING_MM = 6.0


def lung_mask(hu: npt.ArrayLike, spacing: npt.ArrayLike) -> Array:
    """(Z, Y, X) HU and spacing z, y, x in mm -> bool mask of the lungs, vessels and nodules in them included.

    Air that reaches the sides of a slice is outside the body; the large components of the rest are lungs. Holes are
    closed by 6 mm, so that nodules at the pleura are included. All False where no lung is found. Computed on voxels of
    about 2 mm, then enlarged again.
    """
    from scipy import ndimage

    array = np.asarray(hu)
    step = np.maximum(np.round(_WORKING_MM / np.asarray(spacing, dtype=np.float64)).astype(int), 1)
    small = array[:: step[0], :: step[1], :: step[2]] < AIR_BELOW
    labels, count = ndimage.label(small)
    if count == 0:
        return np.zeros(array.shape, dtype=bool)
    # The lungs can reach the top and bottom slices; only the four sides touch the air of the room.
    sides = np.concatenate(
        [labels[:, 0].ravel(), labels[:, -1].ravel(), labels[:, :, 0].ravel(), labels[:, :, -1].ravel()]
    )
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    lung = sizes >= max(_SMALLEST * small.size, 8)
    lung[0] = False
    lung[np.unique(sides)] = False
    mask = lung[labels]
    if mask.any():
        radius = _CLOSING_MM / (step * np.asarray(spacing, dtype=np.float64))
        margin = [int(np.ceil(value)) + 1 for value in radius]
        # Closing by distances: dilation by the radius, then erosion.
        padded = np.pad(mask, [(value, value) for value in margin])
        mm = step * np.asarray(spacing, dtype=np.float64)
        grown = ndimage.distance_transform_edt(~padded, sampling=mm) <= _CLOSING_MM
        closed = ndimage.distance_transform_edt(grown, sampling=mm) > _CLOSING_MM
        inner = tuple(slice(value, value + size) for value, size in zip(margin, mask.shape, strict=True))
        mask = ndimage.binary_fill_holes(closed[inner] | mask)
    enlarged = mask.repeat(step[0], axis=0).repeat(step[1], axis=1).repeat(step[2], axis=2)
    z, y, x = array.shape
    return np.asarray(enlarged[:z, :y, :x])


def lung_box(mask: Array, margin_mm: float, spacing: npt.ArrayLike) -> Box | None:
    """First and last+1 index (z, y, x) of the mask, `margin_mm` larger on every side; None for an empty mask."""
    if not mask.any():
        return None
    margin = np.ceil(margin_mm / np.asarray(spacing, dtype=np.float64)).astype(int)
    low, high = [], []
    for axis in range(3):
        there = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        low.append(max(int(there[0]) - int(margin[axis]), 0))
        high.append(min(int(there[-1]) + 1 + int(margin[axis]), mask.shape[axis]))
    return (low[0], low[1], low[2]), (high[0], high[1], high[2])
