"""Memory-mapped frames: a clip is a slice, and a batch is copied once, where it is used.

A loader process does not send the frames of its batch to the training process, which would cost more than all its other
work. It reads them, which brings them into memory, and sends their positions; the training process copies the batch
from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from medtrain_plugins.sign.data.landmarks import FEATURES, Frames


class MappedArray(NamedTuple):
    """An array of frames in a file: shape (N, 184, 4), from byte `offset` on. changed: the file's time, in ns."""

    path: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    changed: int


class FrameRange(NamedTuple):
    """Frames `start` to `stop` of an array."""

    array: MappedArray
    start: int
    stop: int


def describe(path: Path, dtype: Any, shape: tuple[int, ...], offset: int = 0) -> MappedArray:
    """The array in a file, with the file's present time."""
    return MappedArray(str(path), np.dtype(dtype).str, shape, offset, path.stat().st_mtime_ns)


@lru_cache(16)
def mapped(array: MappedArray) -> Frames:
    """The array, memory-mapped once in each process."""
    return np.asarray(np.memmap(array.path, array.dtype, "r", array.offset, array.shape))


def frames_at(place: FrameRange) -> Frames:
    """A view of frames in the file."""
    return mapped(place.array)[place.start : place.stop]


def pack(clips: Sequence[Frames]) -> torch.Tensor:
    """Concatenated clips, (sum of lengths, 736) float32."""
    packed = torch.empty(sum(map(len, clips)), FEATURES)
    if len(packed):
        np.concatenate(clips, out=packed.numpy().reshape(-1, *clips[0].shape[1:]), casting="same_kind")
    return packed


class Elsewhere:
    """Clips in memory-mapped files; in another process, this object arrives as `pack` of them."""

    def __init__(self, places: list[FrameRange]) -> None:
        self.places = places

    def __reduce__(self) -> Any:
        return _pack_places, (self.places,)


def _pack_places(places: list[FrameRange]) -> torch.Tensor:
    return pack([frames_at(place) for place in places])
