"""Writers of one phantom in every format, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

Array = npt.NDArray[Any]


def rotation(x: float, y: float, z: float) -> Array:
    """Degrees about the axes of the world, one after the other."""
    turned = np.eye(3)
    for axis, degrees in enumerate((x, y, z)):
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        one, other = [i for i in range(3) if i != axis]
        matrix = np.eye(3)
        matrix[one, one] = matrix[other, other] = c
        matrix[one, other], matrix[other, one] = -s, s
        turned = matrix @ turned
    return turned


def phantom(shape: tuple[int, int, int] = (6, 7, 8), seed: int = 0) -> Array:
    """int16 HU, every voxel different from its neighbours."""
    return np.random.default_rng(seed).integers(-1000, 1500, shape).astype(np.int16)


def chest(
    shape: tuple[int, int, int] = (40, 48, 56), nodules: tuple[tuple[float, float, float, float], ...] = ()
) -> Array:
    """int16 HU: air, a body, two lungs, and balls (z, y, x, radius in voxels) in them."""
    z, y, x = np.mgrid[: shape[0], : shape[1], : shape[2]]
    cy, cx = (shape[1] - 1) / 2, (shape[2] - 1) / 2
    array = np.full(shape, -1000, dtype=np.int16)
    array[((y - cy) / (0.45 * shape[1])) ** 2 + ((x - cx) / (0.45 * shape[2])) ** 2 < 1] = 40
    for side in (-1, 1):
        centre = cx + side * 0.2 * shape[2]
        array[((y - cy) / (0.28 * shape[1])) ** 2 + ((x - centre) / (0.15 * shape[2])) ** 2 < 1] = -850
    for at_z, at_y, at_x, radius in nodules:
        array[(z - at_z) ** 2 + (y - at_y) ** 2 + (x - at_x) ** 2 <= radius**2] = 20
    return array


def write_itk(
    path: Path, array: Array, spacing: Any = (1, 1, 1), origin: Any = (0, 0, 0), direction: Any = None
) -> Path:
    """array z, y, x; spacing, origin and the columns of direction x, y, z, LPS."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(array)
    image.SetSpacing([float(value) for value in spacing])
    image.SetOrigin([float(value) for value in origin])
    image.SetDirection((np.eye(3) if direction is None else np.asarray(direction)).ravel().tolist())
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
    return path


def write_nifti(path: Path, array: Array, spacing: Any, origin: Any, direction: Any, version: int = 2) -> Path:
    """The same arguments; NIfTI-2 keeps the affine in double precision."""
    import nibabel

    affine = np.eye(4)
    affine[:3, :3] = np.asarray(direction) * np.asarray(spacing, dtype=float)
    affine[:3, 3] = origin
    kind = {1: nibabel.Nifti1Image, 2: nibabel.Nifti2Image}[version]
    nibabel.save(kind(array.transpose(2, 1, 0), np.diag([-1, -1, 1, 1]) @ affine), path)
    return path


def write_dicom(
    folder: Path,
    array: Array,
    spacing: Any = (1, 1, 1),
    origin: Any = (0, 0, 0),
    direction: Any = None,
    *,
    series: str = "1.2.3",
    step: Any = None,
    change: Any = None,
    preamble: bool = True,
    names: str = "slice{:03d}.dcm",
) -> Path:
    """One file a slice (the first axis of array). step: (3,) mm from slice to slice. change: called with (index,
    dataset) before writing; False leaves the slice out."""
    direction = np.eye(3) if direction is None else np.asarray(direction)
    step = direction[:, 2] * spacing[2] if step is None else np.asarray(step, dtype=float)
    folder.mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(3).permutation(len(array))  # of names: not that of the slices
    for index, plane in enumerate(array):
        dataset = _dataset(series, plane.shape)
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"{series}.7.{index}"
        dataset.ImagePositionPatient = texts(np.asarray(origin) + index * step)
        dataset.ImageOrientationPatient = texts([*direction[:, 0], *direction[:, 1]])
        dataset.PixelSpacing = texts([spacing[1], spacing[0]])
        dataset.SliceThickness = "9"  # a lie that nothing must believe
        dataset.RescaleSlope, dataset.RescaleIntercept = "1", "-1024"
        dataset.PixelData = (plane.astype(np.int32) + 1024).astype(np.uint16).tobytes()
        if change is not None and change(index, dataset) is False:
            continue
        path = folder / names.format(order[index])
        dataset.save_as(path, enforce_file_format=True)
        if not preamble:
            strip_preamble(path, dataset)
    return folder


def write_multiframe(
    path: Path, array: Array, spacing: Any, origin: Any, direction: Any, series: str = "1.2.3"
) -> Path:
    """Enhanced CT: one file, its frames in no order."""
    dataset = _dataset(series, array.shape[1:])
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"{series}.8"
    dataset.NumberOfFrames = len(array)
    shared, frames = Dataset(), []
    measures, orientation, values = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = texts([spacing[1], spacing[0]]), "9"
    orientation.ImageOrientationPatient = texts([*direction[:, 0], *direction[:, 1]])
    values.RescaleSlope, values.RescaleIntercept, values.RescaleType = "1", "-1024", "HU"
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    shared.PixelValueTransformationSequence = [values]
    order = np.random.default_rng(4).permutation(len(array))
    for index in order:
        place, frame = Dataset(), Dataset()
        place.ImagePositionPatient = texts(np.asarray(origin) + index * direction[:, 2] * spacing[2])
        frame.PlanePositionSequence = [place]
        frames.append(frame)
    dataset.SharedFunctionalGroupsSequence, dataset.PerFrameFunctionalGroupsSequence = [shared], frames
    dataset.PixelData = (array[order].astype(np.int32) + 1024).astype(np.uint16).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def texts(values: Any) -> list[str]:
    """Decimal strings of at most 16 characters, as precise as they can be."""
    return [
        next(text for digits in range(17, 0, -1) if len(text := f"{value + 0.0:.{digits}g}") <= 16) for value in values
    ]


def strip_preamble(path: Path, dataset: Any) -> None:
    """Leaves the bare data set, as old archives have it."""
    import io

    bare = io.BytesIO()
    from pydicom.filebase import DicomFileLike
    from pydicom.filewriter import write_dataset

    file = DicomFileLike(bare)
    file.is_little_endian, file.is_implicit_VR = True, False
    body = Dataset(dataset)
    write_dataset(file, body)
    path.write_bytes(bare.getvalue())


def _dataset(series: str, shape: Any) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = CTImageStorage
    dataset.SeriesInstanceUID, dataset.StudyInstanceUID = series, generate_uid(entropy_srcs=[series])
    dataset.PatientID, dataset.Modality = "P7", "CT"
    dataset.Rows, dataset.Columns = (int(size) for size in shape)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    return dataset
