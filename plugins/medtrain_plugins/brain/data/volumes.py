"""Volumes on disk: NIfTI files, checked by their header and decoded as they are stored, and DICOM slices.

A `.nii` or `.nii.gz` is read whole and decoded at once: the checksum of a compressed file is thus verified at every
reading, and a cut file cannot pass. Other formats that nibabel knows go through nibabel.
"""

from __future__ import annotations

import gzip
import io
import math
import struct
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from medtrain.errors import DataError

from medtrain_plugins.imaging import dicom
from medtrain_plugins.imaging.pixels import is_dicom
from medtrain_plugins.imaging.volume import RAS_TO_LPS

Array = npt.NDArray[Any]
Triple = tuple[int, int, int]

NIFTI = (".nii", ".nii.gz")
_GZIP = b"\x1f\x8b"
_LENGTHS = {1: 348, 2: 540}  # bytes of a header, by version of NIfTI
_UNITS = {1: "metres", 3: "micrometres"}  # of lengths, by their code
_KINDS = "iuf"  # of numbers that can be an intensity


class Volume(NamedTuple):
    """Voxels (I, J, K) or (I, J, K, T) and the affine (4, 4) from their indices to millimetres, RAS+."""

    array: Array
    affine: Array


class Header(NamedTuple):
    """A NIfTI header. raw: its bytes. offset: of the voxels in the file. codes: of sform and qform."""

    raw: bytes
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int
    slope: float
    intercept: float
    affine: Array
    codes: tuple[int, int]

    @property
    def nbytes(self) -> int:
        """Bytes of the voxels."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def scaled(self) -> bool:
        """Whether values are the stored numbers times slope plus intercept."""
        return (self.slope, self.intercept) != (1.0, 0.0)

    def spatial(self, dimensions: int) -> tuple[int, ...]:
        """The shape without trailing axes of length 1, as (I, J, K) or (I, J, K, T); raises ValueError for others."""
        shape = self.shape
        while len(shape) > dimensions and shape[-1] == 1:
            shape = shape[:-1]
        shape += (1,) * (3 - len(shape))
        if len(shape) == 3 and dimensions == 4:
            shape += (1,)
        if len(shape) != dimensions:
            raise ValueError(f"the image has {len(shape)} dimensions {shape}, {dimensions} are wanted")
        return shape

    def problem(self, dimensions: int = 3) -> str | None:
        """The reason why it cannot be used as a volume (or a series of volumes), or None."""
        try:
            shape = self.spatial(dimensions)
        except ValueError as error:
            return str(error)
        if min(shape, default=0) < 1:
            return f"the image has an axis without voxels: {shape}"
        return self.affine_problem()

    def affine_problem(self) -> str | None:
        """The reason why its voxels have no position in space, or None."""
        turn = self.affine[:3, :3]
        if not np.isfinite(self.affine).all():
            return "the affine has values that are not finite"
        sides = np.linalg.norm(turn, axis=0)
        if sides.min() == 0 or abs(np.linalg.det(turn / sides)) < 1e-3:
            return "the affine is degenerate: it maps the volume to a plane, a line or a point"
        return None


def is_nifti(path: str | Path) -> bool:
    """Whether the name is that of a single-file NIfTI."""
    return str(path).endswith(NIFTI)


def read_header(path: str | Path) -> Header:
    """The header of a `.nii` or `.nii.gz`: the first bytes are decoded, and the size the file should have is compared.

    Raises DataError when the file cannot be opened, is no NIfTI, is cut short, or holds no real numbers.
    """
    try:
        with Path(path).open("rb") as file:
            start = file.read(2048)
            compressed = start.startswith(_GZIP)
            file.seek(0, io.SEEK_END)
            size = file.tell()
            end = b""
            if compressed and size >= 4:
                file.seek(-4, io.SEEK_END)
                end = file.read(4)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if not start:
        raise DataError(f"{path}: the file is empty; copy it again")
    if not compressed:
        header = parse_header(start, path)
        if size < header.offset + header.nbytes:
            raise _cut(path, size - header.offset, header)
        return header
    try:
        first = zlib.decompressobj(wbits=31).decompress(start, _LENGTHS[2])
    except zlib.error as error:
        raise DataError(f"{path}: the compressed file is damaged ({error}); copy it again") from None
    header = parse_header(first, path)
    # A gzip file ends with its decoded size. If that differs, the file is truncated, or has several parts.
    if struct.unpack("<I", end)[0] != (header.offset + header.nbytes) % 2**32:
        read_stored(path)
    return header


def parse_header(start: bytes, path: str | Path) -> Header:
    """The header in the first (at least 348, for NIfTI-2 540) bytes of a file; `path` is for errors."""
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header
    from nibabel.spatialimages import HeaderDataError

    sizes = {struct.unpack(order, start[:4])[0] for order in ("<i", ">i")} if len(start) >= 4 else set()
    version = next((version for version, length in _LENGTHS.items() if length in sizes), None)
    if version is None:
        raise DataError(f"{path}: not a NIfTI file; convert it to NIfTI")
    length = _LENGTHS[version]
    magic = start[344:348] if version == 1 else start[4:8]
    if len(start) < length:
        raise DataError(f"{path}: the NIfTI file is cut short in its header; copy it again")
    if magic[:3] not in (b"n+1", b"n+2"):
        raise DataError(f"{path}: not a single-file NIfTI; convert it to .nii.gz")
    raw = start[:length]
    try:
        header = {1: Nifti1Header, 2: Nifti2Header}[version](raw, check=False)
        shape, dtype = tuple(map(int, header.get_data_shape())), header.get_data_dtype()
        slope, intercept = header.get_slope_inter()
        codes = int(header["sform_code"]), int(header["qform_code"])
        offset = int(header["vox_offset"]) or length + 4
        affine = _affine(header)
    except (HeaderDataError, ValueError, KeyError, OverflowError) as error:
        raise DataError(f"{path}: the NIfTI header cannot be used: {error}") from None
    if dtype.kind not in _KINDS or dtype.names is not None:
        raise DataError(f"{path}: voxels are of type {dtype}, numbers are needed (one a voxel); convert it")
    if (unit := _UNITS.get(int(header["xyzt_units"]) & 7)) is not None:
        raise DataError(f"{path}: its lengths are in {unit}; convert it to millimetres")
    if min(shape, default=0) < 0:
        raise DataError(f"{path}: the NIfTI header names a negative length: {shape}")
    return Header(
        raw, shape, dtype, offset, 1.0 if slope is None else slope, 0.0 if slope is None else intercept, affine, codes
    )


def _affine(header: Any) -> Array:
    """The header's affine; not finite if it has no valid one."""
    try:
        return np.asarray(header.get_best_affine(), dtype=np.float64)
    except (ValueError, np.linalg.LinAlgError):
        return np.full((4, 4), np.nan)


def read_stored(path: str | Path, known: Header | None = None) -> tuple[Array, Header]:
    """Voxels as they are stored, in the header's shape and order of axes, unscaled, and the header.

    known: the header read before, which is used if the file's header is bit-identical. Raises DataError when the file
    is damaged or cut short.
    """
    try:
        content = Path(path).read_bytes()
        if content.startswith(_GZIP):
            content = gzip.decompress(content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: the compressed file is cut short or damaged ({error}); copy it again") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    header = known if known is not None and content.startswith(known.raw) else parse_header(content, path)
    if len(content) < header.offset + header.nbytes:
        raise _cut(path, len(content) - header.offset, header)
    flat = np.frombuffer(content, header.dtype, math.prod(header.shape), header.offset)
    return flat.reshape(header.shape, order="F"), header


def scale(stored: Array, header: Header) -> Array:
    """The values of stored voxels, float32."""
    if not header.scaled:
        return stored.astype(np.float32, copy=False)
    # In float64, to round once instead of twice: stored numbers may have more digits than float32.
    return (stored.astype(np.float64) * header.slope + header.intercept).astype(np.float32)


def read_volume(path: str | Path) -> Volume:
    """Any volume as float32: NIfTI, what else nibabel reads (MGZ, Analyze, MINC, ...), DICOM (a file or a folder).

    Raises DataError when it cannot be read.
    """
    path = Path(path)
    if path.is_dir() or path.suffix.lower() in (".dcm", ".ima") or (not path.suffix and is_dicom(path)):
        return read_dicom(path)
    if is_nifti(path):
        stored, header = read_stored(path)
        return Volume(scale(stored, header), header.affine)
    import nibabel

    try:
        image: Any = nibabel.load(path)
        array = image.get_fdata(dtype=np.float32, caching="unchanged")
        return Volume(array, np.asarray(image.affine, dtype=np.float64))
    except Exception as error:  # every format has its own
        raise DataError(f"{path}: cannot be read as a volume: {error}") from None


def read_dicom(path: str | Path) -> Volume:
    """One slice from a DICOM file, or a volume from a folder with the slices of one series, in units of the modality.

    Slices are ordered by where they lie. The affine is turned from DICOM's axes (left, back) to NIfTI's (right, front).
    Raises DataError naming files that are no DICOM or do not say where their voxels are, and for series whose slices
    differ in size or direction, repeat, or are not evenly spaced.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: there is no such file")
    if path.is_dir():
        read = dicom.read_folder(path, interpolate=False)
    else:
        read = dicom.read_series([path])
    # The file's slices, rows and columns become columns, rows and slices.
    array = read.to_source_order(read.array).transpose(2, 1, 0).astype(np.float32)
    return Volume(array, RAS_TO_LPS @ read.source_affine()[:, [2, 1, 0, 3]])


def orient(array: Array, affine: Array) -> Volume:
    """The same volume with axes reordered to be nearest to right, front and up (RAS+). Views, no resampling."""
    from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

    turns = io_orientation(affine)
    return Volume(apply_orientation(array, turns), affine @ inv_ornt_aff(turns, array.shape[:3]))


def voxel_size(affine: Array) -> Array:
    """Millimetres (3,) along each axis of the array that an affine (4, 4) places."""
    size: Array = np.linalg.norm(affine[:3, :3], axis=0)
    return size


def same_place(first: Array, second: Array, tolerance: float = 0.05) -> bool:
    """Whether two affines give the same voxel positions, up to a part of a voxel over a hundred voxels."""
    corners = np.array([[0, 0, 0, 1], [100, 0, 0, 1], [0, 100, 0, 1], [0, 0, 100, 1]], dtype=np.float64)
    voxel = np.linalg.norm(first[:3, :3], axis=0).min()
    return bool(np.abs((first - second) @ corners.T).max() <= tolerance * voxel)


def _cut(path: str | Path, found: int, header: Header) -> DataError:
    return DataError(
        f"{path}: the file is cut short: {max(found, 0)} of {header.nbytes} bytes of voxels are there; copy it again"
    )
