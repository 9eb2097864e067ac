"""Volumes on a grid of another spacing, with the same field of view.

The outer faces of the first voxels keep their positions, so the origin moves by half the change of spacing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from medtrain.errors import DataError, UsageError

from medtrain_plugins.imaging.volume import Geometry, Volume

Array = npt.NDArray[Any]
Interpolation = Literal["nearest", "linear", "bspline"]

ORDERS: dict[str, int] = {"nearest": 0, "linear": 1, "bspline": 3}
AIR = -1000.0
# 1024 x 1024 x 1024: a larger result means a spacing in the wrong unit, not a chest.
_MOST_VOXELS = 2**30
# Spacings that differ by less move the last of 10,000 voxels by less than a thousandth of a voxel.
_SAME = 1e-7


def resampled_shape(
    shape: Sequence[int], spacing: Sequence[float] | Array, target: Sequence[float] | Array, *, cover: bool = True
) -> tuple[int, int, int]:
    """Voxels along each axis at the spacing `target`; `spacing` and `target` in the order of `shape`, in mm.

    cover: enough voxels for the whole field of view, the last ones may reach beyond it; otherwise the nearest number,
    and halves round to even.
    """
    exact = [size * float(old) / float(new) for size, old, new in zip(shape, spacing, target, strict=True)]
    z, y, x = (max(math.ceil(value - 1e-6) if cover else round(value), 1) for value in exact)
    return z, y, x


def resampled_geometry(geometry: Geometry, target: Sequence[float], *, cover: bool = True) -> Geometry:
    """The grid of spacing `target` (z, y, x, mm) over the same field of view."""
    new = _check_target(target)
    direction = geometry.direction
    affine = np.eye(4)
    affine[:3, :3] = direction * new
    affine[:3, 3] = geometry.origin + direction @ ((new - geometry.spacing) / 2)
    return Geometry(resampled_shape(geometry.shape, geometry.spacing, new, cover=cover), affine)


def resample(
    volume: Volume,
    target: Sequence[float] = (1.0, 1.0, 1.0),
    interpolation: Interpolation = "linear",
    *,
    outside: float | None = AIR,
    cover: bool = True,
) -> Volume:
    """The volume at the spacing `target` (z, y, x, mm).

    outside: the value of voxels whose centre lies beyond the field of view; None: that of the nearest voxel. Values
    stay within the range of the input, also with B-splines; integers are rounded. bool arrays (masks) always get the
    nearest voxel's value, whatever `interpolation` is, and are False outside. Raises UsageError for invalid spacings
    and names, DataError for a result of more than 2^30 voxels.
    """
    if interpolation not in ORDERS:
        raise UsageError(f"interpolation {interpolation!r}: there is {', '.join(ORDERS)}")
    grid = resampled_geometry(volume.geometry, target, cover=cover)
    if math.prod(grid.shape) > _MOST_VOXELS:
        raise DataError(
            f"{volume.provenance.get('path', 'volume')}: {volume.shape} voxels of {_mm(volume.spacing)} would become "
            f"{grid.shape}; is the spacing in millimetres?"
        )
    if np.allclose(volume.spacing, target, rtol=_SAME, atol=0):
        return volume
    mask = volume.array.dtype == np.bool_
    array = resample_array(
        volume.array,
        volume.spacing / np.asarray(target, dtype=np.float64),
        grid.shape,
        "nearest" if mask else interpolation,
        outside=0.0 if mask else outside,
    )
    return replace(volume, array=array, affine=grid.affine)


def resample_array(
    array: Array,
    factor: Sequence[float] | Array,
    shape: Sequence[int],
    interpolation: Interpolation,
    *,
    outside: float | None,
) -> Array:
    """`array` (Z, Y, X) on `shape` voxels, `factor` times as many per mm along each axis; dtype and range are kept."""
    from scipy.ndimage import affine_transform

    step = 1.0 / np.asarray(factor, dtype=np.float64)
    order = ORDERS[interpolation]
    dtype = array.dtype
    source = array.astype(np.uint8) if dtype == np.bool_ else array
    if order > 0:
        source = source.astype(np.float32, copy=False)
    # Between the face and the centre of an outermost voxel, its value is constant.
    result = affine_transform(
        source, step, offset=(step - 1) / 2, output_shape=tuple(shape), order=order, mode="nearest"
    )
    if order > 1:
        np.clip(result, source.min(), source.max(), out=result)
    if dtype.kind == "i" and order > 0:
        np.rint(result, out=result)
    result = result.astype(dtype, copy=False)
    if outside is not None:
        for axis, size in enumerate(array.shape):
            centres = np.arange(shape[axis]) * step[axis] + (step[axis] - 1) / 2
            beyond = [slice(None)] * 3
            beyond[axis] = slice(int(np.searchsorted(centres, size - 0.5 + 1e-6)), None)
            result[tuple(beyond)] = outside
    return np.asarray(result)


def _check_target(target: Sequence[float]) -> Array:
    values = np.asarray(target, dtype=np.float64)
    if values.shape != (3,) or not np.isfinite(values).all() or values.min() <= 0:
        raise UsageError(f"spacing {target}: give three positive numbers in mm, for z, y and x")
    return values


def _mm(spacing: Array) -> str:
    return " x ".join(f"{value:g}" for value in spacing) + " mm"
