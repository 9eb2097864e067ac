"""Images without labels for prediction: finding them, preparing them as in training, and back to the file's voxels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from medtrain.errors import DataError, UsageError, first_lines
from torch import Tensor

from medtrain_plugins.brain.data.bids import DESCRIPTION, Tree
from medtrain_plugins.brain.data.caps import as_file_type
from medtrain_plugins.brain.data.extraction import VolumePart, cut, find_parts, padded, windows_of
from medtrain_plugins.brain.data.transforms import Pipeline
from medtrain_plugins.brain.data.volumes import orient, read_volume
from medtrain_plugins.brain.options import BrainOptions

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Named:
    """An image by name. participant_id, session_id: empty for a file outside a tree."""

    sample_id: str
    path: Path
    participant_id: str = ""
    session_id: str = ""


@dataclass(frozen=True)
class Opened:
    """An image as the network gets it, with the position of its voxels.

    image: (C, D, H, W) float32, transformed. affine: its affine, (4, 4). file_affine, file_shape: of the file's volume.
    """

    image: Tensor
    affine: Array
    file_affine: Array
    file_shape: tuple[int, ...]


def find_images(source: Path, options: BrainOptions) -> list[Named]:
    """The images of a BIDS or CAPS tree that the options select, or a single file (or folder of DICOM slices).

    Raises DataError if there are none, and for sessions with several matching files.
    """
    if source.is_dir() and ((source / DESCRIPTION).is_file() or any(source.glob("sub-*"))):
        paths, problems = Tree(source).find(as_file_type(options.file_type))
        if problems and options.exclude == "strict":
            raise DataError(
                f"{source}: {len(problems)} sessions cannot be used\n{first_lines(list(problems.values()))}"
            )
        if not paths:
            raise DataError(f"{source}: no session has an image ({as_file_type(options.file_type).describe()})")
        return [Named(str(visit), Path(path), visit.participant_id, visit.session_id) for visit, path in paths.items()]
    if not source.exists():
        raise DataError(f"{source}: there is no such file or folder")
    name = source.name
    for ending in (".gz", ".nii", ".mgz", ".dcm", ".img", ".hdr"):
        name = name.removesuffix(ending)
    return [Named(name, source)]


def open_image(path: Path, options: BrainOptions) -> Opened:
    """An image, read, oriented and transformed as the training images were. Raises DataError."""
    array, file_affine = read_volume(path)
    file_shape, affine = tuple(array.shape[:3]), file_affine
    if options.canonical:
        array, affine = orient(array, affine)
    if array.ndim not in (3, 4):
        raise DataError(f"{path}: {array.ndim} dimensions; a volume, or a series of volumes, is expected")
    if not np.isfinite(array).all():
        if options.non_finite == "error":
            raise DataError(f'{path}: some voxels are NaN or infinite; repair it, or set non_finite = "zero"')
        array = np.where(np.isfinite(array), array, 0)
    channels = array[None] if array.ndim == 3 else np.moveaxis(array, 3, 0)
    image = torch.from_numpy(np.ascontiguousarray(channels, dtype=np.float32))
    if options.transforms:
        try:
            pipeline = Pipeline(options.transforms)
            changed, affine = pipeline.with_affine({"image": image}, affine)
            image = changed["image"]
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
    if options.input_shape and len(image) != options.input_shape[0]:
        raise DataError(f"{path}: {len(image)} channels, the model was trained on {options.input_shape[0]}")
    return Opened(image, np.asarray(affine, dtype=np.float64), np.asarray(file_affine), file_shape)


def parts_of(image: Tensor, options: BrainOptions) -> Iterator[tuple[Tensor, VolumePart]]:
    """The parts (C, *size) of an image (C, D, H, W) that the network gets, with their positions.

    They come from `extraction`, else they are the slices or windows of `inference`, else the whole image.
    """
    shape: Any = tuple(image.shape[1:])
    inference = options.inference
    if options.extraction.kind != "image":
        array = image.numpy()
        for place in find_parts(options.extraction, shape):
            yield torch.from_numpy(np.ascontiguousarray(cut(array, place, options.extraction))), place
    elif inference.slice_axis is not None:
        for number in range(shape[inference.slice_axis]):
            start, stop = [0, 0, 0], list(shape)
            start[inference.slice_axis], stop[inference.slice_axis] = number, number + 1
            place = VolumePart(f"slice-{number:04d}", tuple(start), tuple(stop))  # type: ignore[arg-type]
            yield image.select(inference.slice_axis + 1, number), place
    elif inference.window:
        window = list(inference.window) * (3 if len(inference.window) == 1 else 1)
        large = padded(image[None], window)[0]
        for number, box in enumerate(windows_of(large.shape[1:], window, inference.overlap)):
            start, stop = [s.start for s in box], [s.stop for s in box]
            place = VolumePart(f"window-{number:04d}", tuple(start), tuple(stop))  # type: ignore[arg-type]
            yield large[(slice(None), *box)], place
    else:
        yield image, VolumePart("image", (0, 0, 0), shape)


def to_file_geometry(values: Array, opened: Opened) -> Array:
    """Values (C, D, H, W) on the network's voxels -> (C, *file_shape) on the file's, linear between voxels.

    Exact where voxels coincide (flips, crops, padding); 0 outside the network's image.
    """
    from scipy.ndimage import affine_transform

    to_network = np.linalg.inv(opened.affine) @ opened.file_affine
    if tuple(values.shape[1:]) == opened.file_shape and np.allclose(to_network, np.eye(4), atol=1e-4):
        return values
    rounded = np.rint(to_network)
    on_voxels = np.allclose(to_network, rounded, atol=1e-3)
    matrix = rounded if on_voxels else to_network
    filled = np.nan_to_num(values.astype(np.float32), nan=0.0)
    return np.stack(
        [
            affine_transform(channel, matrix, output_shape=opened.file_shape, order=0 if on_voxels else 1)
            for channel in filled
        ]
    )


def write_nifti(path: Path, array: Array, affine: Array) -> None:
    """Writes a volume (D, H, W), or (C, D, H, W) as a series, with an affine. Raises UsageError if that fails."""
    import nibabel

    array = array[0] if array.ndim == 4 and len(array) == 1 else array
    array = np.moveaxis(array, 0, -1) if array.ndim == 4 else array
    image = nibabel.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(image, path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror}); name another folder") from None
