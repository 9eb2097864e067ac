"""Measurements of a segmented nodule, and boxes around nodules. All boxes are half-open."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError
from scipy.spatial.distance import pdist

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
Triple = tuple[float, float, float]
SOLID, GROUND_GLASS = -300.0, -750.0  # HU: solid from the first, ground glass from the second


@dataclass(frozen=True)
class NoduleProperties:
    """One nodule's component.

    centre: centroid, zyx voxels. bbox: per axis [first, last + 1) voxels. diameters_mm: extents along z, y, x.
    equivalent_diameter_mm: of the sphere of that volume. longest_axial_diameter_mm: the longest line between the outer
    edges of two voxels of one axial slice. sphericity: surface of that sphere divided by the component's, at most 1.
    confidence: mean of the mask's probabilities. mean_hu, std_hu and texture, the mean rating on LIDC's scale from 1
    (ground glass) to 5 (solid) by the share of solid voxels; these are NaN without the image.
    """

    centre: Triple
    bbox: Box
    volume_voxels: int
    volume_mm3: float
    diameters_mm: Triple
    equivalent_diameter_mm: float
    longest_axial_diameter_mm: float
    sphericity: float
    confidence: float
    mean_hu: float
    std_hu: float
    texture: float


def measure_nodule(
    mask: ArrayLike,
    centre: ArrayLike,
    spacing: ArrayLike,
    *,
    image_hu: ArrayLike | None = None,
    threshold: float = 0.5,
    max_distance_mm: float = 10.0,
) -> NoduleProperties | None:
    """The component nearest to a point, measured; None when none is within the distance.

    mask: (D, H, W) probabilities or bools; values above `threshold` are nodule, neighbours share a face. centre: zyx
    voxels, may be fractional or outside. spacing: zyx mm. image_hu: (D, H, W).
    """
    probabilities = np.asarray(mask)
    millimetres = np.broadcast_to(np.asarray(spacing, dtype=np.float64), 3)
    inside = probabilities > threshold
    voxels = np.argwhere(inside)
    if len(voxels) == 0:
        return None
    distances = (((voxels - np.asarray(centre, dtype=np.float64)) * millimetres) ** 2).sum(axis=1)
    nearest = int(distances.argmin())
    if math.sqrt(distances[nearest]) > max_distance_mm:
        return None
    labels, _ = ndimage.label(inside)
    own = np.argwhere(labels == labels[tuple(voxels[nearest])])
    low, high = own.min(axis=0), own.max(axis=0) + 1
    where = tuple(own.T)
    hu = None if image_hu is None else np.asarray(image_hu)[where].astype(np.float64)
    volume = len(own) * float(millimetres.prod())
    extents = (high - low) * millimetres
    return NoduleProperties(
        centre=_triple(own.mean(axis=0)),
        bbox=_box(low, high),
        volume_voxels=len(own),
        volume_mm3=volume,
        diameters_mm=_triple(extents),
        equivalent_diameter_mm=diameter_of(volume),
        longest_axial_diameter_mm=longest_axial_diameter(own, millimetres),
        sphericity=_sphericity(own - low, millimetres),
        confidence=float(probabilities[where].astype(np.float64).mean()),
        mean_hu=math.nan if hu is None else float(hu.mean()),
        std_hu=math.nan if hu is None else float(hu.std()),
        texture=math.nan if hu is None else _texture(hu),
    )


def longest_axial_diameter(voxels: NDArray[np.int64], spacing: ArrayLike) -> float:
    """The longest distance in mm between corners of two voxels (N, 3 zyx) of one slice."""
    millimetres = np.asarray(spacing, dtype=np.float64)
    corners = np.array([[-0.5, -0.5], [-0.5, 0.5], [0.5, -0.5], [0.5, 0.5]])
    longest = 0.0
    for z in np.unique(voxels[:, 0]):
        slice_voxels = voxels[voxels[:, 0] == z, 1:]
        points = ((slice_voxels[:, None] + corners).reshape(-1, 2)) * millimetres[1:]
        try:
            points = points[ConvexHull(points).vertices]
        except QhullError:
            points = np.unique(points, axis=0)
        longest = max(longest, float(pdist(points).max()))
    return longest


def diameter_of(volume_mm3: float) -> float:
    """Of the sphere with this volume, in mm."""
    return float((6 * volume_mm3 / math.pi) ** (1 / 3))


def sphere_volume(diameter_mm: float) -> float:
    """In mm3."""
    return math.pi * diameter_mm**3 / 6


def sphere_box(centre: ArrayLike, diameter_mm: float, spacing: ArrayLike, shape: Sequence[int]) -> Box:
    """The voxels that a sphere touches, within an image of `shape`. centre: zyx voxels, spacing: zyx mm."""
    point = np.asarray(centre, dtype=np.float64)
    reach = diameter_mm / 2 / np.broadcast_to(np.asarray(spacing, dtype=np.float64), 3)
    low = np.clip(np.floor(point - reach), 0, shape).astype(int)
    high = np.clip(np.floor(point + reach) + 1, low, shape).astype(int)
    return _box(low, high)


def _sphericity(voxels: NDArray[np.int64], millimetres: NDArray[np.float64]) -> float:
    """The surface is estimated from intersections with lines in 13 directions."""
    import SimpleITK as sitk

    block = np.zeros(voxels.max(axis=0) + 3, dtype=np.uint8)
    block[tuple((voxels + 1).T)] = 1
    image = sitk.GetImageFromArray(block)
    image.SetSpacing(millimetres[::-1].tolist())
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.Execute(image)
    return min(float(shape.GetRoundness(1)), 1.0)


def _texture(hu: NDArray[np.float64]) -> float:
    tissue = hu[hu >= GROUND_GLASS]
    return 1 + 4 * float((tissue >= SOLID).mean()) if len(tissue) else 1.0


def _triple(values: NDArray[np.float64]) -> Triple:
    z, y, x = values.tolist()
    return z, y, x


def _box(low: NDArray[np.int64], high: NDArray[np.int64]) -> Box:
    bounds = [(int(a), int(b)) for a, b in zip(low, high, strict=True)]
    return bounds[0], bounds[1], bounds[2]
