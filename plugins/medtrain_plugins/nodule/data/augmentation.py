"""Augmentation of training patches: image, mask and centres together, resampled once, directly from the scan.

Rotation, scaling, shift and elastic deformation are one map from voxels of the patch to voxels of the scan. So the
corners of a rotated patch come from the scan, and nothing is interpolated twice. Flips and quarter turns alone only
move voxels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from medtrain_plugins.nodule.data.patches import cut
from medtrain_plugins.nodule.options import AugmentationOptions, ElasticOptions
from medtrain_plugins.nodule.scans.resampling import AIR

Array = NDArray[Any]
Floats = NDArray[np.float64]
STEEPEST = 0.6  # largest slope of an elastic field, voxels per voxel: it does not fold, and can be inverted
INVERSIONS = 40  # steps of the inversion; each leaves at most this share of the error: STEEPEST


@dataclass(frozen=True, eq=False)
class SampledTransform:
    """A transform of one patch, sampled by `sample_transform`; without arguments the identity.

    size: of the patch. turn: (3, 3), a signed permutation; linear: (3, 3); shift: (3,); bend: (3, ...) or None, on a
    coarse grid over the patch. Voxel o of the result comes from middle + linear turn (o - middle) + shift + bend(o) of
    the original patch. scale: of diameters. values: changes of intensity, in order.
    """

    size: tuple[int, int, int]
    turn: Floats = field(default_factory=lambda: np.eye(3))
    linear: Floats = field(default_factory=lambda: np.eye(3))
    shift: Floats = field(default_factory=lambda: np.zeros(3))
    bend: NDArray[np.float32] | None = None
    scale: float = 1.0
    values: tuple[tuple[str, tuple[float, ...]], ...] = ()

    @property
    def interpolates(self) -> bool:
        """Whether the transform needs interpolation."""
        return self.bend is not None or bool((self.linear != np.eye(3)).any() or self.shift.any())

    @property
    def middle(self) -> Floats:
        return (np.array(self.size) - 1) / 2

    def sources(self, points: Floats) -> Floats:
        """Points (N, 3) of the transformed patch -> their positions in the original patch."""
        return (points - self.middle) @ (self.linear @ self.turn).T + self.middle + self.shift + self._bent(points)

    def moved(self, points: Floats) -> Floats:
        """Points (N, 3) of the original patch -> their positions in the transformed one; the inverse of `sources`."""
        back = np.linalg.inv(self.linear @ self.turn).T
        found = (points - self.middle - self.shift) @ back + self.middle
        if self.bend is not None:
            for _ in range(INVERSIONS):
                found = (points - self.middle - self.shift - self._bent(found)) @ back + self.middle
        return found

    def cut(self, volume: Array, start: Array, outside: float = AIR, nearest: bool = False) -> Array:
        """Cuts the transformed patch out of a scan: as `patches.cut`, float32 if interpolated.

        nearest: the nearest voxel's value instead of an interpolated one, for masks.
        """
        if not self.interpolates:
            return _turned(cut(volume, start, self.size, outside), self.turn)
        low, high = self._source_box()
        region = torch.from_numpy(np.array(cut(volume, start + low, (high - low + 1).tolist(), outside), np.float32))
        mode = "nearest" if nearest else "bilinear"
        grid = self._grid(low, high)
        patch = functional.grid_sample(region[None, None], grid, mode, "border", align_corners=True)[0, 0].numpy()
        return patch.astype(volume.dtype) if nearest else patch

    def revalue(self, image: NDArray[np.float32], spacing: Floats, bottom: float, top: float) -> NDArray[np.float32]:
        """Changes the values of an image (D, H, W) with the range `bottom` to `top`; spacing: z, y, x in mm."""
        for name, numbers in self.values:
            image = _REVALUE[name](image, numbers, float(spacing[0]), bottom, top)
        return image

    def _source_box(self) -> tuple[Array, Array]:
        """The first and last voxel of the original patch's grid that the transformed patch needs."""
        reach = np.abs(self.linear @ self.turn) @ self.middle
        if self.bend is not None:
            reach = reach + np.abs(self.bend).reshape(3, -1).max(axis=1)
        middle = self.middle + self.shift
        low = np.floor(middle - reach).astype(np.int64)
        return low, np.maximum(np.ceil(middle + reach).astype(np.int64), low + 1)

    def _grid(self, low: Array, high: Array) -> torch.Tensor:
        """The source of each voxel, as `grid_sample` expects it: (1, D, H, W, 3), x first, -1 to 1 over the region."""
        extent = (high - low).astype(np.float64)
        matrix = self.linear @ self.turn
        # Output voxels also run from -1 to 1, from the centre of the first to the centre of the last.
        theta = np.concatenate(
            [
                matrix * self.middle * 2 / extent[:, None],
                ((self.middle + self.shift - low) * 2 / extent - 1)[:, None],
            ],
            axis=1,
        )
        flipped = np.concatenate([theta[::-1, 2::-1], theta[::-1, 3:]], axis=1)
        grid = functional.affine_grid(
            torch.from_numpy(flipped.astype(np.float32))[None], [1, 1, *self.size], align_corners=True
        )
        if self.bend is not None:
            scaled = torch.from_numpy(self.bend * (2 / extent[:, None, None, None]).astype(np.float32)).flip(0)
            fine = functional.interpolate(scaled[None], self.size, mode="trilinear", align_corners=True)
            grid = grid + fine.permute(0, 2, 3, 4, 1)
        return grid

    def _bent(self, points: Floats) -> Floats:
        if self.bend is None:
            return np.zeros_like(points)
        from scipy import ndimage

        nodes = np.array(self.bend.shape[1:])
        at = (points * ((nodes - 1) / np.maximum(np.array(self.size) - 1, 1))).T
        return np.stack([ndimage.map_coordinates(axis, at, order=1, mode="nearest") for axis in self.bend], axis=1)


def sample_transform(
    options: AugmentationOptions, size: Sequence[int], spacing: Sequence[float] | Floats, generator: np.random.Generator
) -> SampledTransform:
    """Samples the transform of a patch of `size` voxels with `spacing` (z, y, x mm)."""
    z, y, x = (int(length) for length in size)
    if not options.enabled:
        return SampledTransform((z, y, x))
    millimetres = np.asarray(spacing, dtype=np.float64)

    def happens(section: Any) -> bool:
        return bool(generator.random() < section.probability)

    turn, linear, shift, bend, scale = np.eye(3), np.eye(3), np.zeros(3), None, 1.0
    for axis in options.random_flip.axes:
        if happens(options.random_flip):
            turn[axis] *= -1
    if happens(options.random_rotate90):
        turn = _quarter_turn((z, y, x), millimetres, generator) @ turn
    if happens(rotation := options.random_rotation):
        angles = np.deg2rad(generator.uniform(-rotation.max_angle, rotation.max_angle, 3))
        linear = _rotation(angles) * millimetres / millimetres[:, None]
    if happens(options.random_scale):
        scale = float(generator.uniform(*options.random_scale.scale_range))
        linear = linear / scale
    if happens(options.random_translation):
        farthest = options.random_translation.max_shift
        shift = generator.uniform(-farthest, farthest, 3)
    if happens(options.elastic_deformation):
        bend = _bend((z, y, x), options.elastic_deformation, generator)
    values: list[tuple[str, tuple[float, ...]]] = []
    if happens(options.slice_thickness):
        values.append(("slice_thickness", (generator.uniform(*options.slice_thickness.thickness_range),)))
    if happens(options.random_blur):
        values.append(("blur", (generator.uniform(*options.random_blur.sigma_range),)))
    if happens(options.random_gamma):
        values.append(("gamma", (generator.uniform(*options.random_gamma.gamma_range),)))
    if happens(intensity := options.random_intensity):
        offset = generator.uniform(-intensity.max_offset, intensity.max_offset)
        values.append(("intensity", (generator.uniform(*intensity.factor_range), offset)))
    if happens(options.random_noise):
        values.append(("noise", (options.random_noise.noise_std, int(generator.integers(2**32)))))
    return SampledTransform((z, y, x), turn, linear, shift, bend, scale, tuple(values))


def _turned(patch: Array, turn: Floats) -> Array:
    """The patch whose voxel o is voxel `turn o` of the given one, counted from the middles."""
    order = [int(np.flatnonzero(turn[:, axis])[0]) for axis in range(3)]  # old axis of each new axis
    steps = tuple(slice(None, None, -1 if turn[old, axis] < 0 else 1) for axis, old in enumerate(order))
    return np.transpose(patch, order)[steps]


def _quarter_turn(size: tuple[int, ...], spacing: Floats, generator: np.random.Generator) -> Floats:
    planes = [
        (a, b) for a, b in ((1, 2), (0, 1), (0, 2)) if size[a] == size[b] and abs(spacing[a] / spacing[b] - 1) < 1e-3
    ]
    turn = np.eye(3)
    if planes:
        a, b = planes[generator.integers(len(planes))]
        once = np.eye(3)
        once[[a, b]] = once[[b, a]]
        once[a] *= -1
        turn = np.linalg.matrix_power(once, int(generator.integers(1, 4)))
    return turn


def _rotation(angles: Floats) -> Floats:
    """Rotations about the axes 0, 1 and 2, in this order."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        a, b = (other for other in range(3) if other != axis)
        one = np.eye(3)
        one[a, a] = one[b, b] = math.cos(angle)
        one[a, b], one[b, a] = -math.sin(angle), math.sin(angle)
        matrix = one @ matrix
    return matrix


def _bend(size: tuple[int, ...], options: ElasticOptions, generator: np.random.Generator) -> NDArray[np.float32]:
    """Smoothed displacements (3, ...) in voxels on a grid of nodes one sigma apart.

    A field smoothed with sigma has no finer detail than these nodes, and smoothing on them takes a fraction of the
    time.
    """
    from scipy import ndimage

    nodes = [max(2, math.ceil((length - 1) / options.sigma) + 1) for length in size]
    field: Floats = ndimage.gaussian_filter(generator.uniform(-1, 1, (3, *nodes)), (0, 1, 1, 1), truncate=3)
    # Smoothing divides the standard deviation by (2 sqrt(pi) sigma)^(3/2): with sigma 1 here, with sigma on voxels.
    field *= options.alpha / options.sigma**1.5
    apart = [max(length - 1, 1) / (count - 1) for length, count in zip(size, nodes, strict=True)]
    z, y, x = (slice(count - 1) for count in nodes)
    slopes = np.stack([np.diff(field, axis=axis + 1)[:, z, y, x] / apart[axis] for axis in range(3)])
    steepest = float(np.sqrt((slopes**2).sum(axis=(0, 1)).max()))
    if steepest > STEEPEST:
        field *= STEEPEST / steepest
    return field.astype(np.float32)


def _thicken(
    image: NDArray[np.float32], numbers: tuple[float, ...], spacing: float, bottom: float, top: float
) -> NDArray[np.float32]:
    slices = max(1, round(image.shape[0] * spacing / max(numbers[0], spacing)))
    dense = torch.from_numpy(image)[None, None]
    thick = functional.interpolate(dense, (slices, *image.shape[1:]), mode="area")
    again: NDArray[np.float32] = functional.interpolate(thick, image.shape, mode="trilinear")[0, 0].numpy()
    return again


def _blur(
    image: NDArray[np.float32], numbers: tuple[float, ...], spacing: float, bottom: float, top: float
) -> NDArray[np.float32]:
    from scipy import ndimage

    blurred: NDArray[np.float32] = ndimage.gaussian_filter(image, numbers[0], truncate=3)
    return blurred


def _gamma(
    image: NDArray[np.float32], numbers: tuple[float, ...], spacing: float, bottom: float, top: float
) -> NDArray[np.float32]:
    share = np.clip((image - bottom) / (top - bottom), 0, 1)
    bent: NDArray[np.float32] = (share ** np.float32(numbers[0]) * (top - bottom) + bottom).astype(np.float32)
    return bent


def _rescale(
    image: NDArray[np.float32], numbers: tuple[float, ...], spacing: float, bottom: float, top: float
) -> NDArray[np.float32]:
    changed: NDArray[np.float32] = image * np.float32(numbers[0]) + np.float32(numbers[1])
    return changed


def _noise(
    image: NDArray[np.float32], numbers: tuple[float, ...], spacing: float, bottom: float, top: float
) -> NDArray[np.float32]:
    noise = np.random.default_rng(int(numbers[1])).standard_normal(image.shape, dtype=np.float32)
    noise *= np.float32(numbers[0])
    noise += image
    return noise


_REVALUE = {"slice_thickness": _thicken, "blur": _blur, "gamma": _gamma, "intensity": _rescale, "noise": _noise}
