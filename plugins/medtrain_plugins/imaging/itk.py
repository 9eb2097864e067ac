"""MetaImage (.mhd, .mha) and NRRD files as volumes, through SimpleITK."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from medtrain.errors import DataError

from medtrain_plugins.imaging.volume import Volume, no_pixels, series_of_name


def read_itk(path: Path, *, pixels: bool = True) -> Volume:
    """Reads a file that ITK reads. pixels: read them, not only the header.

    The series is the name of the file, as in LUNA16. Raises DataError for what is no readable volume of three axes.
    """
    import SimpleITK as sitk

    # ITK writes to standard error what its exceptions say again.
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        axes, size = reader.GetDimension(), reader.GetSize()
        if axes < 3 or any(extent != 1 for extent in size[3:]):
            raise DataError(f"{path}: the image has {axes} axes {tuple(size)}; a scan has three")
        if reader.GetNumberOfComponents() != 1:
            raise DataError(f"{path}: {reader.GetNumberOfComponents()} values a voxel; a scan has one")
        spacing, origin = reader.GetSpacing()[:3], reader.GetOrigin()[:3]
        direction = np.reshape(reader.GetDirection(), (axes, axes))[:3, :3]
        z_y_x = tuple(size[2::-1])
        array = sitk.GetArrayFromImage(reader.Execute()).reshape(z_y_x) if pixels else no_pixels(z_y_x)
    except RuntimeError as error:
        said = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise DataError(f"{path}: cannot be read ({said[-1] if said else 'no reason given'})") from None
    affine = np.eye(4)
    affine[:3, :3] = (direction * np.array(spacing))[:, ::-1]
    affine[:3, 3] = origin
    return Volume.of_source(
        array, affine, series=series_of_name(path), provenance={"path": str(path), "format": path.suffix[1:].upper()}
    )
