"""DICOM mammograms on disk, right as they are, for tests to spoil."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

FOR_PRESENTATION = "1.2.840.10008.5.1.4.1.1.1.2"


def breast(seed: int = 0, rows: int = 96, columns: int = 64) -> npt.NDArray[np.uint16]:
    """(rows, columns): half an ellipse of tissue at the left edge, 12 bits, no two rows alike; black ground."""
    y, x = np.mgrid[:rows, :columns]
    inside = ((y - rows / 2) / (0.45 * rows)) ** 2 + (x / (0.8 * columns)) ** 2 < 1
    tissue = 400 + 30 * y + np.random.default_rng(seed).integers(0, 500, (rows, columns))
    return np.where(inside, tissue, 0).astype(np.uint16)


def mammogram(pixels: npt.NDArray[np.uint16] | None = None, **tags: Any) -> Dataset:
    """A left CC view of patient 101; `tags` are set on top, those that are None removed."""
    pixels = breast() if pixels is None else pixels
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    values = {
        "SOPClassUID": FOR_PRESENTATION,
        "SOPInstanceUID": generate_uid(),
        "StudyInstanceUID": "1.2.3.4",
        "Modality": "MG",
        "ImageType": ["DERIVED", "PRIMARY"],
        "PresentationIntentType": "FOR PRESENTATION",
        "PatientID": "101",
        "StudyDate": "20150803",
        "ImageLaterality": "L",
        "ViewPosition": "CC",
        "PhotometricInterpretation": "MONOCHROME2",
        "SamplesPerPixel": 1,
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "BitsAllocated": 16,
        "BitsStored": 12,
        "HighBit": 11,
        "PixelRepresentation": 0,
        "PixelData": pixels.tobytes(),
        **tags,
    }
    for keyword, value in values.items():
        if value is not None:
            setattr(dataset, keyword, value)
    if "PixelData" in dataset:
        dataset["PixelData"].VR = "OW"
    return dataset


def coded(value: str, meaning: str = "a code", **tags: Any) -> Dataset:
    """An item of a code sequence."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SCT", meaning
    for keyword, further in tags.items():
        setattr(item, keyword, further)
    return item


def save(dataset: Dataset, path: Path, compression: UID | None = None) -> Path:
    """Writes a DICOM file and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if compression is not None:
        dataset.compress(compression, generate_instance_uid=False)
    dataset.save_as(path, enforce_file_format=True)
    return path
