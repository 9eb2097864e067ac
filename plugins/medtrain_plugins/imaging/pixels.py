"""The pixels of DICOM files: damaged files, padding, encodings."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from medtrain.errors import DataError

if TYPE_CHECKING:
    from pydicom import Dataset

Array = npt.NDArray[Any]

NO_MARK = "not a DICOM file: it lacks the mark DICM"


class Unfit(Exception):
    """Why a file or a frame cannot be a slice."""


def is_dicom(path: Path) -> bool:
    """Whether the file has the mark of DICOM after its preamble."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


@contextmanager
def reading() -> Iterator[None]:
    """Whatever goes wrong with a damaged file as Unfit; what pydicom finds odd but reads is none of ours."""
    from pydicom.errors import InvalidDicomError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # pydicom goes on without the pixels of a file that is cut short.
            warnings.filterwarnings("error", message="End of file reached")
            yield
    except Unfit:
        raise
    except InvalidDicomError:
        raise Unfit(NO_MARK) from None
    except OSError as error:
        raise Unfit(f"cannot be read ({error.strerror or error})") from None
    except (UserWarning, EOFError):
        raise Unfit("it is cut short; copy it again") from None
    except Exception as error:  # a damaged file may raise anything
        raise Unfit(f"cannot be read ({type(error).__name__}: {' '.join(str(error).split())})") from None


def decode(path: Path, where: str) -> tuple[Array, Array | None]:
    """The stored values of a file, and which of them are padding."""
    from pydicom import dcmread

    try:
        with reading():
            dataset = dcmread(path, force=True)
            _restore_transfer_syntax(dataset)
            stored = np.asarray(dataset.pixel_array)
            return stored, padding_of(dataset, stored)
    except Unfit as problem:
        raise DataError(f"{where}: {path.name} {problem}") from None


def padding_of(dataset: Dataset, stored: Array) -> Array | None:
    """Which of the stored values are no part of the image; None where none is. Padding may be brighter than tissue."""
    padding = dataset.get("PixelPaddingValue")
    if not isinstance(padding, int):
        return None
    limit = dataset.get("PixelPaddingRangeLimit")
    # Some files write the value as if pixels had the other sign.
    first, last = sorted(_as_stored(value, dataset) for value in (padding, padding if limit is None else limit))
    outside = (stored >= first) & (stored <= last)
    return outside if outside.any() else None


def _as_stored(value: int, dataset: Dataset) -> int:
    full = 1 << int(dataset.BitsAllocated)
    if dataset.PixelRepresentation:
        return (value + full // 2) % full - full // 2
    return value % full


def _restore_transfer_syntax(dataset: Any) -> None:
    """A file without preamble, read by force, says in no header how its pixels are stored: by its own encoding."""
    from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit = dataset.original_encoding[0]
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
