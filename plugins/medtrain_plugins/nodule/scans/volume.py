"""Scans of any known format, and scans that were prepared, as the same `Volume`."""

from __future__ import annotations

from pathlib import Path

from medtrain.errors import DataError

from medtrain_plugins.imaging.volume import ITK, NIFTI, Volume

FORMATS = "a folder of DICOM files, .dcm, .nii, .nii.gz, .mhd, .mha, .nrrd, .nhdr, or a prepared .npy"


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
    if name.endswith(".npy"):
        from medtrain_plugins.nodule.scans.manifest import read_prepared

        return read_prepared(path)
    if name.endswith(NIFTI):
        from medtrain_plugins.imaging.nifti import read_nifti

        return read_nifti(path)
    if name.endswith(ITK):
        from medtrain_plugins.imaging.itk import read_itk

        return read_itk(path)
    from medtrain_plugins.imaging.dicom import read_series
    from medtrain_plugins.imaging.pixels import is_dicom

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
    if path.exists() and name.endswith(NIFTI):
        from medtrain_plugins.imaging.nifti import read_nifti

        return read_nifti(path, pixels=False)
    if path.exists() and name.endswith(ITK):
        from medtrain_plugins.imaging.itk import read_itk

        return read_itk(path, pixels=False)
    return read_volume(path, series=series, force=force)
