"""Parts of a volume: patches on a grid, slices, regions. Each part becomes a sample with its position."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from medtrain.errors import ConfigError, DataError
from torch import Tensor
from torch.nn import functional

from medtrain_plugins.brain.data.volumes import read_volume
from medtrain_plugins.brain.options import ExtractionOptions, Triple

Array = npt.NDArray[Any]


class VolumePart(NamedTuple):
    """A part of a volume: voxels `start` to `stop` (exclusive) of its axes; with padding, beyond its border."""

    name: str
    start: Triple
    stop: Triple


def find_parts(options: ExtractionOptions, shape: Triple) -> list[VolumePart]:
    """The parts of a volume of this shape, in the order of their numbers; none for whole images.

    Raises ConfigError for options that leave no part, DataError for an image that is too small.
    """
    if options.kind == "patch":
        return _patches(options, shape)
    if options.kind == "slice":
        return _slices(options, shape)
    if options.kind == "roi":
        return _regions(options, shape)
    return []


def _patches(options: ExtractionOptions, shape: Triple) -> list[VolumePart]:
    assert options.size is not None
    starts = []
    for length, size, shared in zip(shape, options.size, options.overlap, strict=True):
        step = size - shared
        count = max(1, math.ceil((length - shared) / step))
        first = [step * number for number in range(count)]
        if options.padding == "none":
            if size > length:
                raise DataError(f"an image of {shape} voxels is smaller than a patch of {options.size}; allow padding")
            first[-1] = length - size
        starts.append(first)
    places = []
    for number, start in enumerate(itertools.product(*starts)):
        stop = [first + size for first, size in zip(start, options.size, strict=True)]
        places.append(VolumePart(f"patch-{number:04d}", _triple(start), _triple(stop)))
    return places


def _slices(options: ExtractionOptions, shape: Triple) -> list[VolumePart]:
    length = shape[options.direction]
    before, after = options.borders
    wanted = options.slices or range(before, length - after)
    if beyond := [number for number in wanted if not 0 <= number < length]:
        raise DataError(f"there is no slice {beyond[0]} along axis {options.direction} of {length} voxels")
    kept = [number for number in wanted if number not in set(options.discarded)]
    if not kept:
        raise ConfigError(f"extraction: no slice is left of {length} along axis {options.direction}")
    places = []
    for number in kept:
        start, stop = [0, 0, 0], list(shape)
        start[options.direction], stop[options.direction] = number, number + 1
        places.append(VolumePart(f"slice-{number:04d}", _triple(start), _triple(stop)))
    return places


def _regions(options: ExtractionOptions, shape: Triple) -> list[VolumePart]:
    boxes = {name: (box[::2], box[1::2]) for name, box in options.boxes.items()}
    if options.mask:
        boxes = _boxes_of_mask(options.mask, options.margin, shape)
    places = []
    for name, (start, stop) in sorted(boxes.items()):
        if any(not 0 <= a < b <= length for a, b, length in zip(start, stop, shape, strict=True)):
            raise DataError(f"the region {name!r} from {start} to {stop} does not lie in an image of {shape} voxels")
        places.append(VolumePart(f"roi-{name}", _triple(start), _triple(stop)))
    return places


def _boxes_of_mask(path: str, margin: int, shape: Triple) -> dict[str, Any]:
    labels = read_volume(path).array
    if labels.shape != shape:
        raise DataError(f"{path}: the mask has {labels.shape} voxels, the images have {shape}")
    boxes = {}
    for label in np.unique(labels[labels != 0]):
        inside = np.nonzero(labels == label)
        start = tuple(max(0, int(axis.min()) - margin) for axis in inside)
        stop = tuple(min(length, int(axis.max()) + 1 + margin) for axis, length in zip(inside, shape, strict=True))
        boxes[f"{label:g}"] = (start, stop)
    if not boxes:
        raise DataError(f"{path}: the mask is empty, it names no region")
    return boxes


def _triple(values: Any) -> Triple:
    i, j, k = map(int, values)
    return i, j, k


def cut(volume: Array, place: VolumePart, options: ExtractionOptions, *, labels: bool = False) -> Array:
    """The part (C, d, h, w) of a volume (C, D, H, W); slices lose their axis of length 1 if the options say so.

    A view if nothing is padded. labels: a mask, padded with 0 where an image is padded with `padding_value`.
    """
    inner, beyond = [slice(None)], [(0, 0)]
    for start, stop, length in zip(place.start, place.stop, volume.shape[1:], strict=True):
        inner.append(slice(max(start, 0), min(stop, length)))
        beyond.append((max(-start, 0), max(stop - length, 0)))
    part = volume[tuple(inner)]
    if any(map(any, beyond)):
        if options.padding == "constant":
            part = np.pad(part, beyond, constant_values=0 if labels else np.asarray(options.padding_value, part.dtype))
        else:
            mode: Any = options.padding
            part = np.pad(part, beyond, mode=mode)
    if options.kind == "slice" and options.squeeze:
        part = part.squeeze(1 + options.direction)
    return part


def padded(image: Tensor, window: Sequence[int]) -> Tensor:
    """The image, padded with zeros at its end to at least the size of the window."""
    missing = [max(0, limit - size) for size, limit in zip(image.shape[2:], window, strict=True)]
    return functional.pad(image, [n for limit in reversed(missing) for n in (0, limit)]) if any(missing) else image


def windows_of(size: Sequence[int], window: Sequence[int], overlap: float) -> Iterator[tuple[slice, ...]]:
    """The positions of windows that cover an image; the last one along each axis ends with the image."""
    starts = []
    for length, limit in zip(size, window, strict=True):
        step = max(1, int(limit * (1 - overlap)))
        starts.append([*range(0, length - limit, step), length - limit])
    for place in itertools.product(*starts):
        yield tuple(slice(start, start + limit) for start, limit in zip(place, window, strict=True))
