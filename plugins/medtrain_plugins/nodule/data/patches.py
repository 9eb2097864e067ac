"""Patches of a scan: where they start, the grid that covers a scan, and how to cut them.

Coordinates are z, y, x voxels of the prepared scan; voxel i is centred at i. A patch is identified by its first voxel.
It may reach beyond the scan, where its voxels are air.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from medtrain.errors import ConfigError
from numpy.typing import ArrayLike, NDArray

from medtrain_plugins.nodule.scans.resampling import AIR

Array = NDArray[Any]
Ints = NDArray[np.int64]


def patch_start(centre: ArrayLike, size: ArrayLike) -> Ints:
    """The first voxel of the patch around a centre; halves round to even. (3,), (3,) -> (3,)."""
    return np.rint(np.asarray(centre, dtype=np.float64)).astype(np.int64) - np.asarray(size, dtype=np.int64) // 2


def cut(volume: Array, start: ArrayLike, size: Sequence[int], outside: float = AIR) -> Array:
    """The patch of `size` voxels from `start`, in the volume's dtype; `outside` beyond the volume.

    A view of the volume if the whole patch is inside.
    """
    first = np.asarray(start, dtype=np.int64)
    low = np.maximum(first, 0)
    high = np.minimum(first + size, volume.shape)
    there = tuple(slice(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True))
    if (high - low == size).all():
        return volume[there]
    patch = np.full(tuple(size), outside, dtype=volume.dtype)
    if (high > low).all():
        patch[tuple(slice(a, b) for a, b in zip((low - first).tolist(), (high - first).tolist(), strict=True))] = (
            volume[there]
        )
    return patch


def grid_starts(shape: Sequence[int], size: Sequence[int], stride: Sequence[int]) -> Ints:
    """First voxels (N, 3) of patches that cover a scan, `stride` apart; the last along an axis ends with the scan.

    An axis shorter than the patch gets one patch, which starts with it. Raises ConfigError for a stride that is not
    positive, or that leaves gaps between the patches.
    """
    if any(step < 1 or step > length for step, length in zip(stride, size, strict=True)):
        raise ConfigError(
            f"stride {list(stride)}: give 1 up to the patch size ({list(size)}) on each axis; more leaves voxels out"
        )
    axes = []
    for length, extent, step in zip(shape, size, stride, strict=True):
        last = max(length - extent, 0)
        axes.append([*range(0, last, step), last])
    return np.array(list(product(*axes)), dtype=np.int64)
