"""Mammograms on disk: 16-bit grayscale PNG files, checked by their header and decoded to pixels in [0, 1]."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from medtrain.errors import DataError
from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor

Pixels = npt.NDArray[np.uint16]
Orientation = Literal["as_is", "mirai"]

WHITE = 65535  # pixel value of 1.0
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"  # the chunk every PNG file ends with
_COLOURS = {0: "gray", 2: "colour", 3: "palette", 4: "gray with transparency", 6: "colour with transparency"}


class Header(NamedTuple):
    """A PNG header. height, width: pixels. bits: per channel. colour: "gray" for a mammogram."""

    height: int
    width: int
    bits: int
    colour: str

    def problem(self) -> str | None:
        """The reason why this is not a mammogram, or None."""
        if self.bits != 16 and self.colour == "gray":
            return f"the image has {self.bits} bits per pixel, 16 are needed"
        if self.colour != "gray":
            return f"the image is {self.colour}, 16-bit grayscale is needed"
        return None


def read_header(path: str | Path) -> Header:
    """The header of a PNG file: its first and last bytes are read, nothing is decoded.

    Raises DataError if the file cannot be opened, is not PNG, or is truncated.
    """
    try:
        with Path(path).open("rb") as file:
            start = file.read(26)
            file.seek(-len(_END), os.SEEK_END)
            end = file.read()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if len(start) < 26 or not start.startswith(_SIGNATURE) or start[12:16] != b"IHDR":
        raise DataError(f"{path}: not a PNG file; mammograms are 16-bit grayscale PNG")
    if end != _END:
        raise DataError(f"{path}: the PNG file is cut short; copy it again")
    width, height, bits, colour = struct.unpack(">IIBB", start[16:26])
    return Header(height, width, bits, _COLOURS.get(colour, "of an unknown kind"))


def read_pixels(path: str | Path, size: tuple[int, int] | None = None, orientation: Orientation = "as_is") -> Pixels:
    """A mammogram as (H, W) uint16.

    size: (rows, columns) to resize to (bilinear, antialiased when shrinking); None keeps the file's. orientation:
    "mirai" mirrors the image when its outer left quarter is brighter than its outer right quarter, so that the chest
    wall lies on the right, as the published Mirai weights expect; "as_is" leaves it. Raises DataError naming the file
    when it is unreadable, not 16-bit gray, or blank (all pixels equal).
    """
    if problem := read_header(path).problem():
        raise DataError(f"{path}: {problem}; convert it from the original DICOM again")
    try:
        with Image.open(path) as file:
            image: Any = file
            if size is not None and (file.height, file.width) != tuple(size):
                image = file.resize((size[1], size[0]), Image.Resampling.BILINEAR)
            pixels = np.array(image, dtype=np.uint16)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: the image cannot be decoded ({error}); copy or convert it again") from error
    if pixels.min() == pixels.max():
        raise DataError(f"{path}: the image is blank, every pixel is {pixels.flat[0]}; remove or convert it again")
    return chest_wall_right(pixels) if orientation == "mirai" else pixels


def chest_wall_right(pixels: Pixels) -> Pixels:
    """`pixels` (H, W), mirrored when the outer left quarter is brighter than the outer right quarter.

    Source: the "align to left" transform of Mirai (Yala et al. 2021), which makes the breast face left.
    """
    quarter = pixels.shape[1] // 4
    left, right = pixels[:, :quarter], pixels[:, pixels.shape[1] - quarter :]
    brighter = left.sum(dtype=np.int64) > right.sum(dtype=np.int64)
    return np.ascontiguousarray(pixels[:, ::-1]) if brighter else pixels


def to_tensor(pixels: Pixels) -> Tensor:
    """(H, W) uint16 as a (1, H, W) float32 tensor in [0, 1]: value / 65535, nothing else."""
    import torch

    return torch.from_numpy(pixels.astype(np.float32)).div_(WHITE).unsqueeze(0)


def read_image(path: str | Path, size: tuple[int, int] | None = None, orientation: Orientation = "as_is") -> Tensor:
    """A mammogram as a (1, H, W) float32 tensor in [0, 1]; arguments and errors of `read_pixels`."""
    return to_tensor(read_pixels(path, size, orientation))
