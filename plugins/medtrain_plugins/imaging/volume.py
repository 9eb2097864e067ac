"""A scan in memory and its place in the patient: one axis order, one orientation, one world, whatever file it was in.

Arrays are indexed z, y, x, and these axes run to the head, to the back and to the left as nearly as the voxels lie.
World coordinates are x, y, z in millimetres in the patient system of DICOM and ITK: +x left, +y back, +z head (LPS).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from medtrain.errors import DataError

Array = npt.NDArray[Any]
# Of each canonical axis: the source axis it comes from, and whether it runs the other way.
Order = tuple[tuple[int, bool], tuple[int, bool], tuple[int, bool]]

SOURCE_ORDER: Order = ((0, False), (1, False), (2, False))
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
NIFTI, ITK = (".nii", ".nii.gz"), (".mhd", ".mha", ".nrrd", ".nhdr")
_ENDINGS = (".nii.gz", ".nii", *ITK, ".npy", ".dcm")


@dataclass(frozen=True, eq=False)
class Geometry:
    """Where voxels are. shape: (Z, Y, X). affine: (4, 4) float64, voxel index (z, y, x, 1) -> world (x, y, z, 1) mm."""

    shape: tuple[int, int, int]
    affine: Array

    @cached_property
    def spacing(self) -> Array:
        """Distance of neighbouring voxels along z, y and x in mm, (3,)."""
        return np.asarray(np.linalg.norm(self.affine[:3, :3], axis=0))

    @property
    def origin(self) -> Array:
        """World position of the centre of voxel 0, 0, 0, (3,) x, y, z in mm."""
        return self.affine[:3, 3]

    @property
    def direction(self) -> Array:
        """(3, 3): the columns are the unit vectors, in the world, of the axes z, y and x."""
        return self.affine[:3, :3] / self.spacing

    @cached_property
    def _inverse(self) -> Array:
        return np.linalg.inv(self.affine[:3, :3])

    def to_voxel(self, world: npt.ArrayLike) -> Array:
        """World points (N, 3), x, y, z in mm -> continuous indices (N, 3), z, y, x; a voxel's centre is an integer."""
        points = np.asarray(world, dtype=np.float64)
        return (points - self.origin) @ self._inverse.T

    def to_world(self, voxel: npt.ArrayLike) -> Array:
        """Continuous indices (N, 3), z, y, x -> world points (N, 3), x, y, z in mm."""
        return np.asarray(voxel, dtype=np.float64) @ self.affine[:3, :3].T + self.origin

    def contains(self, world: npt.ArrayLike, margin: float = 0.0) -> Array:
        """Which points (N, 3) lie in a voxel, with up to `margin` mm to spare: (N,) bool."""
        voxel = self.to_voxel(np.asarray(world, dtype=np.float64).reshape(-1, 3))
        slack = 0.5 + 1e-6 + margin / self.spacing
        inside = (voxel >= -slack) & (voxel <= np.array(self.shape) - 1 + slack)
        return np.asarray(inside.all(axis=1))


@dataclass(frozen=True, eq=False)
class Volume:
    """A scan: `array` (Z, Y, X), int16 where that holds every value exactly and float32 otherwise, in HU for CT.

    affine: as in Geometry. series, patient: UIDs, "" where the file does not say. provenance: where it comes from, as
    JSON. notes: what the reader found odd and yet usable. order: how the axes were turned from the file's.
    """

    array: Array
    affine: Array
    series: str = ""
    patient: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    order: Order = SOURCE_ORDER

    @classmethod
    def of_source(
        cls,
        array: Array,
        affine: npt.ArrayLike,
        *,
        series: str = "",
        patient: str = "",
        provenance: Mapping[str, Any] | None = None,
        notes: tuple[str, ...] = (),
    ) -> Volume:
        """Turns voxels as a file has them into the canonical orientation; none is interpolated.

        array: three axes in any order. affine: (4, 4), its indices -> LPS mm. Raises DataError for an affine that
        gives the voxels no place, and for arrays of other than three axes or without voxels.
        """
        affine = np.asarray(affine, dtype=np.float64)
        where = str((provenance or {}).get("path", "volume"))
        if array.ndim != 3 or min(array.shape) < 1:
            raise DataError(f"{where}: a volume has three axes with voxels, this has the shape {array.shape}")
        problem = _affine_problem(affine)
        if problem:
            raise DataError(f"{where}: {problem}; its voxels have no place in the patient")
        order = _canonical_order(affine)
        matrix, origin = affine[:3, :3], affine[:3, 3].copy()
        turned = np.eye(4)
        for axis, (source, flipped) in enumerate(order):
            turned[:3, axis] = -matrix[:, source] if flipped else matrix[:, source]
            if flipped:
                origin += matrix[:, source] * (array.shape[source] - 1)
        turned[:3, 3] = origin
        return cls(
            _turn(_lean(array), order), turned + 0.0, series, patient, dict(provenance or {}), tuple(notes), order
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.geometry.shape

    @cached_property
    def geometry(self) -> Geometry:
        """Shape and affine without the voxels."""
        z, y, x = self.array.shape
        return Geometry((z, y, x), self.affine)

    @property
    def spacing(self) -> Array:
        """As `Geometry.spacing`: z, y, x in mm."""
        return self.geometry.spacing

    @property
    def origin(self) -> Array:
        """As `Geometry.origin`: x, y, z in mm."""
        return self.geometry.origin

    @property
    def direction(self) -> Array:
        """As `Geometry.direction`: columns for z, y, x."""
        return self.geometry.direction

    def to_voxel(self, world: npt.ArrayLike) -> Array:
        """World (N, 3), x, y, z in mm -> continuous indices (N, 3), z, y, x."""
        return self.geometry.to_voxel(world)

    def to_world(self, voxel: npt.ArrayLike) -> Array:
        """Continuous indices (N, 3), z, y, x -> world (N, 3), x, y, z in mm."""
        return self.geometry.to_world(voxel)

    def contains(self, world: npt.ArrayLike, margin: float = 0.0) -> Array:
        """As `Geometry.contains`: (N,) bool."""
        return self.geometry.contains(world, margin)

    def to_source_order(self, array: Array) -> Array:
        """An array on this volume's voxels, with the axes as the file had them; `of_source` turned them."""
        sources = [source for source, _ in self.order]
        flipped = array[tuple(slice(None, None, -1 if flip else 1) for _, flip in self.order)]
        return np.ascontiguousarray(np.transpose(flipped, np.argsort(sources)))

    def source_affine(self) -> Array:
        """(4, 4): the file's own indices -> LPS mm."""
        matrix, origin = np.eye(4), self.origin.copy()
        for axis, (source, flipped) in enumerate(self.order):
            step = self.affine[:3, axis]
            matrix[:3, source] = -step if flipped else step
            if flipped:
                origin += step * (self.array.shape[axis] - 1)
        matrix[:3, 3] = origin
        return matrix


def no_pixels(shape: tuple[int, ...]) -> Array:
    """Zeros of a shape that take no memory, for reading headers only; read-only."""
    return np.broadcast_to(np.zeros((), dtype=np.int16), shape)


def series_of_name(path: Path) -> str:
    """The series a file is named for: its name without the format, as in LUNA16."""
    name = path.name
    for ending in _ENDINGS:
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return name


def _affine_problem(affine: Array) -> str | None:
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        return "the affine is no 4 x 4 matrix of finite numbers"
    sides = np.linalg.norm(affine[:3, :3], axis=0)
    if sides.min() < 1e-9 or abs(np.linalg.det(affine[:3, :3] / sides)) < 1e-3:
        return "the affine maps the volume to a plane, a line or a point"
    return None


def _canonical_order(affine: Array) -> Order:
    """The assignment of axes to head, back and left with the largest sum of cosines.

    Numbers are compared in ten-thousandths. Voxels at 45 degrees have two assignments with equal sums: the one whose z
    runs most nearly along the patient wins, then y, then x, then where the axes point to besides. The choice thus
    depends on how the voxels lie, not on the order and the sense of the axes in the file.
    """
    cosines = (affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0))[::-1]  # rows: world z, y, x

    def rank(choice: tuple[int, ...]) -> list[float]:
        pointed = [cosines[:, source] * np.sign(cosines[axis, source]) for axis, source in enumerate(choice)]
        along = [pointed[axis][axis] for axis in range(3)]
        return [round(float(value), 4) + 0.0 for value in (sum(along), *along, *np.concatenate(pointed))]

    z, y, x = max(permutations(range(3)), key=rank)
    return (z, bool(cosines[0, z] < 0)), (y, bool(cosines[1, y] < 0)), (x, bool(cosines[2, x] < 0))


def _turn(array: Array, order: Order) -> Array:
    turned = np.transpose(array, [source for source, _ in order])
    turned = turned[tuple(slice(None, None, -1 if flipped else 1) for _, flipped in order)]
    return turned if 0 in array.strides and array.size > 1 else np.ascontiguousarray(turned)


def _lean(array: Array) -> Array:
    """int16 where every value is a whole number that fits, float32 otherwise; bool stays."""
    if array.dtype in (np.int16, np.bool_):
        return array
    if array.dtype.kind in "iu":
        limits = np.iinfo(np.int16)
        if array.min() >= limits.min and array.max() <= limits.max:
            return array.astype(np.int16)
        return array.astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        whole = array.astype(np.int16)
        return whole if np.array_equal(whole, array) else array.astype(np.float32)
