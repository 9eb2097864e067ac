"""NIfTI files as volumes: x, y, z order and RAS coordinates become z, y, x and LPS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from medtrain.errors import DataError

from medtrain_plugins.imaging.volume import RAS_TO_LPS, Volume, no_pixels, series_of_name

Array = npt.NDArray[Any]


def read_nifti(path: Path, *, pixels: bool = True) -> Volume:
    """Reads `.nii` or `.nii.gz`; slope and intercept are applied. pixels: read them, not only the header.

    The affine is the sform where the file has one, else the qform. Raises DataError for what is no readable volume of
    three axes, and for a file that says nothing of its geometry.
    """
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    try:
        image: Any = nibabel.load(path)
        header = image.header
        shape = tuple(int(size) for size in image.shape)
        codes = int(header["sform_code"]), int(header["qform_code"])
        affine = _written(header["srow_x"].dtype, np.asarray(image.affine, dtype=np.float64), codes)
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
        if len(shape) != 3:
            raise DataError(f"{path}: the image has {len(shape)} axes {shape}; a scan has three")
        array = _values(image).reshape(shape) if pixels else no_pixels(shape)
    except (
        OSError,
        EOFError,
        ValueError,
        KeyError,
        IndexError,
        HeaderDataError,
        ImageFileError,
    ) as error:
        raise DataError(f"{path}: cannot be read as NIfTI ({' '.join(str(error).split())})") from None
    if not any(codes):
        raise DataError(f"{path}: neither qform nor sform is set, so its voxels have no place in the patient")
    if (unit := header.get_xyzt_units()[0]) in ("meter", "micron"):
        raise DataError(f"{path}: its lengths are in {unit}s; convert it to millimetres")
    if array.dtype.kind not in "biuf":
        raise DataError(f"{path}: its values are {array.dtype}, not numbers of a scan")
    provenance = {"path": str(path), "format": "NIfTI"}
    # Indices come as x, y, z; Volume.of_source turns the axes.
    return Volume.of_source(array, RAS_TO_LPS @ affine, series=series_of_name(path), provenance=provenance)


def _values(image: Any) -> Array:
    slope, intercept = image.dataobj.slope, image.dataobj.inter
    if (slope, intercept) == (1.0, 0.0):
        return np.asarray(image.dataobj)
    # In double precision, so that whole numbers stay whole.
    return np.asarray(np.asarray(image.dataobj.get_unscaled(), dtype=np.float64) * slope + intercept)


def _written(dtype: np.dtype[Any], affine: Array, codes: tuple[int, int]) -> Array:
    """The affine as it was meant: NIfTI-1 keeps it in single precision, in which 0.7 mm are 0.69999999.

    Of all numbers that single precision cannot tell apart, the one with the fewest decimals is taken; NIfTI-2 is
    in double precision and stays.
    """
    if dtype.itemsize > 4 or not codes[0]:
        return affine
    return np.array([[float(str(value)) for value in row] for row in affine.astype(np.float32)])
