"""Prepared scans as samples: patches drawn at random, patches on a grid, and whole scans."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from medtrain.errors import DataError
from numpy.typing import ArrayLike, NDArray

from medtrain_plugins.nodule.data.augmentation import SampledTransform, sample_transform
from medtrain_plugins.nodule.data.sampling import (
    Sampling,
    ScanPoints,
    draw_start,
    ignore_mask,
    overlaps,
    positive_chances,
)
from medtrain_plugins.nodule.options import AugmentationOptions
from medtrain_plugins.nodule.scans.intensity import Intensity
from medtrain_plugins.nodule.scans.manifest import ManifestRow, open_array

Array = NDArray[Any]
Sample = dict[str, Any]
OPEN_SCANS = 32  # memory-mapped at a time, in each process


class _Scans:
    """The scans of manifest rows, memory-mapped on use, and the samples' entries about their findings.

    with_mask: whether samples have a `mask`.
    """

    def __init__(
        self,
        rows: Sequence[ManifestRow],
        intensity: Intensity,
        sampling: Sampling,
        with_mask: bool = False,
        false_marks: Mapping[str, ArrayLike] | None = None,
    ) -> None:
        if not rows:
            raise DataError("there are no scans to train on or to evaluate; is the manifest's split as you want it?")
        self.rows, self.intensity, self.sampling, self.with_mask = list(rows), intensity, sampling, with_mask
        self.points = [ScanPoints.of(row, sampling, (false_marks or {}).get(row.series, ())) for row in rows]
        # All batches have one shape, for any number of nodules in a patch.
        self.places = max(1, *(len(points.centres) for points in self.points))
        self.ignored_places = max(1, *(len(points.ignored) for points in self.points))
        self._opened: OrderedDict[str, Array] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": OrderedDict()}

    def open(self, path: str, shape: tuple[int, int, int]) -> Array:
        """A memory-mapped array."""
        if path in self._opened:
            self._opened.move_to_end(path)
            return self._opened[path]
        self._opened[path] = open_array(Path(path), shape)
        if len(self._opened) > OPEN_SCANS:
            self._opened.popitem(last=False)
        return self._opened[path]

    def patch(
        self, number: int, start: NDArray[np.int64], size: Sequence[int], transform: SampledTransform | None = None
    ) -> Sample:
        """The sample of a patch of a scan, without its `sample_id`."""
        row, points = self.rows[number], self.points[number]
        transform = transform or SampledTransform((int(size[0]), int(size[1]), int(size[2])))
        image = self.intensity(transform.cut(self.open(row.image, row.shape), start))
        image = transform.revalue(image, points.spacing, *self.intensity.target)
        scale = transform.scale
        centres, chosen = _moved(points.centres, points.diameters, points.spacing, start, size, transform)
        ignored, passed = _moved(points.ignored, points.ignored_diameters, points.spacing, start, size, transform)
        ignored_diameters = points.ignored_diameters[passed] * scale
        inside = ((centres >= -0.5) & (centres < np.asarray(size) - 0.5)).all(axis=1)
        sample: Sample = {
            "series_uid": row.series,
            "image": torch.from_numpy(np.ascontiguousarray(image))[None],
            "centers": _filled(centres, self.places),
            "diameters": _filled(points.diameters[chosen] * scale, self.places),
            "triage": _filled(points.triage[chosen], self.places),
            "ignored_centers": _filled(ignored, self.ignored_places),
            "ignored_diameters": _filled(ignored_diameters, self.ignored_places),
            "ignore": torch.from_numpy(ignore_mask(size, ignored, ignored_diameters, points.spacing))[None],
            "spacing": torch.from_numpy(points.spacing.astype(np.float32)),
            "start": torch.from_numpy(start),
            "is_positive": torch.tensor(bool(inside.any())),
        }
        if self.with_mask:
            sample["mask"] = self._mask(row, points, start, transform)
        return sample

    def _mask(
        self, row: ManifestRow, points: ScanPoints, start: NDArray[np.int64], transform: SampledTransform
    ) -> torch.Tensor:
        """1 in nodules, NaN in ignored findings and in scans without a mask, float32 (1, D, H, W)."""
        if row.mask is None:
            return torch.full((1, *transform.size), torch.nan)
        labels = transform.cut(self.open(row.mask, row.shape), start, outside=0, nearest=True)
        value = np.zeros(256, dtype=np.float32)
        value[points.labels] = 1
        value[points.ignored_labels] = np.nan
        value[0] = 0
        return torch.from_numpy(np.ascontiguousarray(value[labels]))[None]


class NodulePatches(_Scans):
    """Patches drawn again on every access: `patches_per_volume` of every scan.

    A sample has, D, H, W being the patch size and K the most nodules of a scan:

    `image` (1, D, H, W) float32, after `intensity`; `centers` (K, 3) float32, z, y, x voxels of the patch, `diameters`
    (K,) mm, `triage` (K,) in [0, 1]: nodules that reach into the patch, then NaN; NaN also where unknown. Centres may
    lie outside. `ignored_centers`, `ignored_diameters`: the same for ignored findings, `ignore` (1, D, H, W) bool:
    their voxels. `mask` (1, D, H, W) float32 if requested: 1 in nodules, NaN where ignored. `is_positive`: bool,
    whether a nodule's centre is inside; `start` (3,) int64: the patch's first voxel in the scan; `spacing` (3,) z, y, x
    mm; `series_uid`, `sample_id`.

    Draws depend on torch's global generator, which the training loader seeds for every sample. With a seed they depend
    on the seed and the number of the sample: patches are then the same in every epoch and not augmented. Only the
    needed part of the scan is read. chance, expected_fraction: see `positive_chances`.
    """

    def __init__(
        self,
        rows: Sequence[ManifestRow],
        intensity: Intensity,
        sampling: Sampling,
        *,
        patches_per_volume: int = 16,
        augmentation: AugmentationOptions | None = None,
        with_mask: bool = False,
        false_marks: Mapping[str, ArrayLike] | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(rows, intensity, sampling, with_mask, false_marks)
        if patches_per_volume < 1:
            raise DataError(f"patches_per_volume {patches_per_volume}: at least one is needed")
        self.patches_per_volume, self.seed = patches_per_volume, seed
        self.augmentation = (
            None if seed is not None or augmentation is None or not augmentation.enabled else augmentation
        )
        self.deterministic = seed is not None
        self.chance, self.expected_fraction = positive_chances(self.points, sampling)
        self.sample_ids = [f"{row.series}#{k}" for row in self.rows for k in range(patches_per_volume)]
        self.participants = [row.patient for row in self.rows for _ in range(patches_per_volume)]

    def __len__(self) -> int:
        return len(self.rows) * self.patches_per_volume

    def __getitem__(self, index: int, /) -> Sample:
        number, size = index // self.patches_per_volume, self.sampling.patch_size
        points = self.points[number]
        drawn = [int(torch.randint(2**62, ()))] if self.seed is None else [self.seed, index]
        generator = np.random.default_rng(drawn)
        transform = (
            None if self.augmentation is None else sample_transform(self.augmentation, size, points.spacing, generator)
        )
        start = draw_start(points, self.sampling, self.chance, generator, transform)
        return {"sample_id": self.sample_ids[index]} | self.patch(number, start, size, transform)


class NoduleScans(_Scans):
    """Whole scans, in batches of one as shapes differ; samples as of `NodulePatches`, named by their series."""

    deterministic = True

    def __init__(self, rows: Sequence[ManifestRow], intensity: Intensity, *, with_mask: bool = False) -> None:
        super().__init__(rows, intensity, Sampling(), with_mask)
        self.sample_ids = [row.series for row in self.rows]
        self.participants = [row.patient for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int, /) -> Sample:
        return {"sample_id": self.sample_ids[index]} | self.patch(index, np.zeros(3, np.int64), self.rows[index].shape)


def _moved(
    points: Array, diameters: Array, spacing: Array, start: Array, size: Sequence[int], transform: SampledTransform
) -> tuple[Array, Array]:
    """The findings of a scan that reach into a transformed patch: their positions there, and their indices."""
    if not len(points):
        return points, np.zeros(0, dtype=np.int64)
    there = transform.moved(points - start)
    chosen = np.flatnonzero(overlaps(there, diameters * transform.scale, spacing, np.zeros(3, np.int64), size))
    return there[chosen], chosen


def _filled(values: Array, places: int) -> torch.Tensor:
    """float32 values, filled up with NaN to `places`."""
    filled = np.full((places, *values.shape[1:]), np.nan, dtype=np.float32)
    filled[: len(values)] = values
    return torch.from_numpy(filled)
