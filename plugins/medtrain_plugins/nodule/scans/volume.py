"""A scan in memory and its position in the patient: one axis order, one orientation, one world, for every file format.

Arrays are indexed z, y, x. These axes run to the head, to the back and to the left, as nearly as the voxel axes allow.
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
# For each canonical axis: the source axis it comes from, and whether it is reversed.
Order = tuple[tuple[int, bool], tuple[int, bool], tuple[int, bool]]

SOURCE_ORDER: Order = ((0, False), (1, False), (2, False))
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_PREPARED, _NIFTI, _ITK = (".npy",), (".nii", ".nii.gz"), (".mhd", ".mha", ".nrrd", ".nhdr")
FORMATS = "a folder of DICOM files, .dcm, .nii, .nii.gz, .mhd, .mha, .nrrd, .nhdr, or a prepared .npy"


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
        """Which points (N, 3) lie inside the volume, with a tolerance of `margin` mm: (N,) bool."""
        voxel = self.to_voxel(np.asarray(world, dtype=np.float64).reshape(-1, 3))
        slack = 0.5 + 1e-6 + margin / self.spacing
        inside = (voxel >= -slack) & (voxel <= np.array(self.shape) - 1 + slack)
        return np.asarray(inside.all(axis=1))


@dataclass(frozen=True, eq=False)
class Volume:
    """A scan: `array` (Z, Y, X), int16 if that holds every value exactly, else float32; in HU for CT.

    affine: as in Geometry. series, patient: UIDs, "" where the file has none. provenance: where it comes from, as JSON.
    notes: unusual properties of a file that is still usable. order: how the file's axes were reordered.
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
        """Turns a file's voxels into the canonical orientation, without interpolation.

        array: three axes in any order. affine: (4, 4), its indices -> LPS mm. Raises DataError for a singular affine,
        and for arrays that do not have three axes or have no voxels.
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
        """An array on this volume's voxels, with the file's order of axes."""
        sources = [source for source, _ in self.order]
        flipped = array[tuple(slice(None, None, -1 if flip else 1) for _, flip in self.order)]
        return np.ascontiguousarray(np.transpose(flipped, np.argsort(sources)))

    def from_source_order(self, array: Array) -> Array:
        """The inverse of `to_source_order`."""
        return _turn(array, self.order)

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


def read_volume(path: str | Path, *, series: str | None = None, force: bool = False) -> Volume:
    """Reads a scan: a folder of DICOM files (with subfolders), or one file of a known format.

    series: which one, if a folder holds several DICOM series. force: also read files without the DICOM prefix. Raises
    DataError for files that cannot be read, or whose geometry would be wrong.
    """
    path = Path(path)
    name = path.name.lower()
    if path.is_dir():
        from medtrain_plugins.imaging.dicom import read_folder

        return read_folder(path, series=series, force=force)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; give {FORMATS}")
    if name.endswith(_PREPARED):
        from medtrain_plugins.nodule.scans.manifest import read_prepared

        return read_prepared(path)
    if name.endswith(_NIFTI):
        from medtrain_plugins.imaging.nifti import read_nifti

        return read_nifti(path)
    if name.endswith(_ITK):
        from medtrain_plugins.imaging.itk import read_itk

        return read_itk(path)
    from medtrain_plugins.imaging.dicom import is_dicom, read_series

    if is_dicom(path) or force:
        return read_series([path], force=force)
    raise DataError(f"{path}: a kind of file that cannot be read; give {FORMATS}")


def read_geometry(path: str | Path, *, series: str | None = None, force: bool = False) -> Volume:
    """As `read_volume`, from headers alone if the format has them: the array has the right shape and is all zero."""
    path = Path(path)
    name = path.name.lower()
    if path.is_dir():
        from medtrain_plugins.imaging.dicom import read_folder

        return read_folder(path, series=series, force=force, pixels=False)
    if path.exists() and name.endswith(_NIFTI):
        from medtrain_plugins.imaging.nifti import read_nifti

        return read_nifti(path, pixels=False)
    if path.exists() and name.endswith(_ITK):
        from medtrain_plugins.imaging.itk import read_itk

        return read_itk(path, pixels=False)
    return read_volume(path, series=series, force=force)


def no_pixels(shape: tuple[int, ...]) -> Array:
    """Read-only zeros of a shape that take no memory, for reading headers only."""
    return np.broadcast_to(np.zeros((), dtype=np.int16), shape)


def series_of_name(path: Path) -> str:
    """The series that a file is named after: its name without the suffix, as in LUNA16."""
    name = path.name
    for ending in sorted((*_NIFTI, *_ITK, *_PREPARED, ".dcm"), key=len, reverse=True):
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
    is nearest to the patient's long axis wins, then y, then x, then the directions of the axes. So the choice depends
    on how the voxels lie, not on the order and direction of the axes in the file.
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
    """As int16 if every value is a whole number in its range, else as float32; bool stays bool."""
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
