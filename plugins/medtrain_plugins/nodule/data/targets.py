"""Training targets of a patch, made after cropping, from the centres and diameters in it.

Targets live on the network's output grid. With output stride s, output voxel i stands for the input voxels s * i to s *
i + s - 1, and its centre is at s * i + (s - 1) / 2 (`to_output`, `to_input`). NaN means unknown: losses leave those
entries out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

TRUNCATE = 3.0  # standard deviations; beyond, a Gaussian is zero
BELOW_ONE = np.nextafter(np.float32(1), np.float32(0))
SIGMA_OF_DIAMETER = 1 / 6
SIGMA_LIMITS = (1.0, 4.0)  # mm

Floats = NDArray[np.float64]


def to_output(zyx: ArrayLike, stride: int) -> Floats:
    """Input voxel coordinates -> output grid."""
    return (np.asarray(zyx, dtype=np.float64) - (stride - 1) / 2) / stride


def to_input(zyx: ArrayLike, stride: int) -> Floats:
    """Output voxel coordinates -> input grid."""
    return np.asarray(zyx, dtype=np.float64) * stride + (stride - 1) / 2


def output_shape(shape: Sequence[int], stride: int) -> tuple[int, int, int]:
    """Voxels of the output grid for an input of `shape`; the last ones may reach beyond it."""
    z, y, x = (math.ceil(size / stride) for size in shape)
    return z, y, x


def sigma_of(diameter_mm: float) -> float:
    """Width of a nodule's peak in mm: a sixth of its diameter, between 1 and 4."""
    return min(max(diameter_mm * SIGMA_OF_DIAMETER, SIGMA_LIMITS[0]), SIGMA_LIMITS[1])


def make_heatmap(
    shape: Sequence[int],
    centres: ArrayLike,
    spacing: ArrayLike,
    sigma_mm: float | Sequence[float] = 3.0,
    mode: Literal["max", "sum"] = "max",
    peak_at_one: bool = True,
) -> NDArray[np.float32]:
    """A Gaussian around every centre, zero beyond three standard deviations: float32 of `shape`.

    centres: (N, 3) zyx voxels, fractional, possibly outside. spacing: zyx mm. sigma_mm: one for all or one each. mode:
    where Gaussians overlap, the larger value or the sum. peak_at_one: each Gaussian is divided by its value at the
    voxel nearest to its centre, which becomes exactly 1; if the centre is outside, it keeps its height. The whole map
    is never rescaled.
    """
    points = np.asarray(centres, dtype=np.float64).reshape(-1, 3)
    millimetres = np.broadcast_to(np.asarray(spacing, dtype=np.float64), 3)
    sigmas = np.broadcast_to(np.asarray(sigma_mm, dtype=np.float64), len(points))
    if len(points) and (sigmas <= 0).any():
        raise ValueError("heatmap: sigma_mm must be positive")
    heatmap = np.zeros(tuple(shape), dtype=np.float32)
    for centre, sigma in zip(points, sigmas, strict=True):
        width = sigma / millimetres
        reach = np.ceil(TRUNCATE * width)
        low = np.maximum(np.floor(centre - reach), 0).astype(int)
        high = np.minimum(np.ceil(centre + reach) + 1, heatmap.shape).astype(int)
        if (low >= high).any():
            continue
        lines = []
        for axis in range(3):
            distance = np.arange(low[axis], high[axis]) - centre[axis]
            if peak_at_one and _is_inside(centre, heatmap.shape):
                height = (nearest_voxel(centre)[axis] - centre[axis]) ** 2
            else:
                height = 0.0
            line = np.exp(-0.5 * (distance**2 - height) / width[axis] ** 2)
            line[np.abs(distance) > reach[axis]] = 0
            lines.append(line)
        peak = (lines[0][:, None, None] * lines[1][:, None] * lines[2]).astype(np.float32)
        if peak_at_one and _is_inside(centre, heatmap.shape):
            # A centre half-way between voxels has several nearest voxels, but only one peak.
            np.minimum(peak, BELOW_ONE, out=peak)
            peak[tuple(nearest_voxel(centre) - low)] = 1
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        heatmap[box] = heatmap[box] + peak if mode == "sum" else np.maximum(heatmap[box], peak)
    return heatmap


def make_targets(
    shape: Sequence[int],
    centres: ArrayLike,
    diameters: ArrayLike,
    triage: ArrayLike | None = None,
    *,
    spacing: ArrayLike = (1.0, 1.0, 1.0),
    stride: int = 1,
    diameter_channels: int = 3,
    sigma_mm: float | None = None,
    ignore: ArrayLike | None = None,
    ignore_diameters: ArrayLike | None = None,
) -> dict[str, Tensor]:
    """The dense targets of one patch, float32 on the output grid (d, h, w).

    shape: of the input patch. centres: (N, 3) zyx voxels of it, fractional; those outside contribute the tail of their
    peak. diameters: (N,) or (N, 3) zyx mm, NaN or not positive where unknown. triage: (N,) or (N, K) in [0, 1], NaN
    where unknown. spacing: zyx mm of the input. stride: of the output. sigma_mm: of all peaks; None: by diameter.
    ignore, ignore_diameters: (M, 3), (M,) findings that are neither nodule nor background: the loss ignores them.

    heatmap (1, d, h, w): 1 exactly at the voxel nearest to each centre; NaN inside ignored findings. offset (3, ...):
    from that voxel to the centre in output voxels, log_diameter (diameter_channels, ...): ln mm, triage (K, ...): these
    three hold at the voxels within 1 of it (3 x 3 x 3) and are NaN elsewhere. Where these voxels of two nodules
    overlap, each voxel belongs to the nearer nodule.
    """
    grid = output_shape(shape, stride)
    millimetres = np.broadcast_to(np.asarray(spacing, dtype=np.float64), 3) * stride
    points = to_output(np.asarray(centres, dtype=np.float64).reshape(-1, 3), stride)
    count = len(points)
    extents = _columns(diameters, count, 3)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(np.where(extents > 0, extents, np.nan))
    mean_log = logs.mean(axis=1, keepdims=True) if count else logs[:, :1]
    logs = logs if diameter_channels == 3 else np.broadcast_to(mean_log, (count, diameter_channels))
    scores = _columns(np.full(count, np.nan) if triage is None else triage, count, None)
    sigmas = [sigma_mm or sigma_of(_or(float(np.exp(log[0])), SIGMA_LIMITS[0])) for log in mean_log]
    heatmap = make_heatmap(grid, points, millimetres, sigmas)
    maps = {
        "offset": np.full((3, *grid), np.nan, dtype=np.float32),
        "log_diameter": np.full((diameter_channels, *grid), np.nan, dtype=np.float32),
        "triage": np.full((max(scores.shape[1], 1), *grid), np.nan, dtype=np.float32),
    }
    _ignore(heatmap, ignore, ignore_diameters, millimetres, stride)
    distances = np.full(grid, np.inf)
    for number, centre in enumerate(points):
        if not _is_inside(centre, grid):
            continue
        peak = nearest_voxel(centre)
        # A labelled centre is never ignored, and never hidden by a neighbour's peak.
        heatmap[tuple(peak)] = 1
        box = tuple(slice(max(at - 1, 0), min(at + 2, size)) for at, size in zip(peak, grid, strict=True))
        near = np.array(np.mgrid[box]) - centre[:, None, None, None]
        distance = np.sqrt((near**2).sum(axis=0))
        nearer = distance < distances[box]
        distances[box][nearer] = distance[nearer]
        for values, name in ((centre - peak, "offset"), (logs[number], "log_diameter"), (scores[number], "triage")):
            part = maps[name][:, box[0], box[1], box[2]]
            part[:, nearer] = np.asarray(values, dtype=np.float32)[:, None]
    return {"heatmap": torch.from_numpy(heatmap[None]), **{name: torch.from_numpy(v) for name, v in maps.items()}}


def nearest_voxel(point: Floats) -> NDArray[np.int64]:
    """The voxel that contains a point; half-way points belong to the higher voxel."""
    return np.floor(point + 0.5).astype(np.int64)


def _is_inside(point: Floats, shape: Sequence[int]) -> bool:
    voxel = nearest_voxel(point)
    return bool((voxel >= 0).all() and (voxel < np.asarray(shape)).all())


def _ignore(
    heatmap: NDArray[np.float32],
    centres: ArrayLike | None,
    diameters: ArrayLike | None,
    millimetres: Floats,
    stride: int,
) -> None:
    """Sets NaN at the voxels whose centres lie inside the spheres, and at the voxel of each centre."""
    points = to_output(np.asarray([] if centres is None else centres, dtype=np.float64).reshape(-1, 3), stride)
    sizes = _columns([] if diameters is None else diameters, len(points), 1)[:, 0]
    for centre, diameter in zip(points, sizes, strict=True):
        reach = _or(diameter, 0.0) / 2 / millimetres
        low = np.maximum(np.floor(centre - reach), 0).astype(int)
        high = np.minimum(np.ceil(centre + reach) + 1, heatmap.shape).astype(int)
        if (low >= high).any():
            continue
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        away = (np.array(np.mgrid[box]) - centre[:, None, None, None]) * millimetres[:, None, None, None]
        heatmap[box][np.sqrt((away**2).sum(axis=0)) <= _or(diameter, 0.0) / 2] = np.nan
        if _is_inside(centre, heatmap.shape):
            heatmap[tuple(nearest_voxel(centre))] = np.nan


def _columns(values: ArrayLike, count: int, columns: int | None) -> Floats:
    """(N,) or (N, c) as (N, columns); a single column is repeated."""
    table = np.asarray(values, dtype=np.float64)
    table = table.reshape(count, -1) if count else np.zeros((0, columns or 1))
    return np.repeat(table, columns, axis=1) if columns and table.shape[1] == 1 else table


def _or(value: float, otherwise: float) -> float:
    """The value, unless it is unknown."""
    return float(value) if math.isfinite(value) and value > 0 else otherwise
