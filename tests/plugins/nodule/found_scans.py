"""A toy detector that finds soft balls in lungs, and scans of one phantom in every format, for tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from medtrain_plugins.nodule.inference.predict import DetectedScan, find_nodules, open_scan
from medtrain_plugins.nodule.model.heads import DetectorOutput
from medtrain_plugins.nodule.options import PivotOptions
from scan_files import chest, write_dicom, write_itk, write_nifti
from torch import Tensor, nn

SPACING, ORIGIN = (0.8, 0.8, 1.2), (-30.0, 10.0, -100.0)
NODULES = ((20, 24, 18, 5.0), (10, 20, 38, 3.5))  # z, y, x, radius: voxels


class Toy(nn.Module):
    """Soft tissue is a nodule; the larger and brighter, the more. Segments what is above half the window."""

    output_stride = 1

    def __init__(self, segments: bool = True) -> None:
        super().__init__()
        self.segments = segments

    def forward(self, image: Tensor) -> DetectorOutput:
        near = nn.functional.avg_pool3d(image, 5, 1, 2, count_include_pad=False)
        one = torch.ones_like(image)
        mask = 20 * (image - 0.5) if self.segments else None
        return DetectorOutput(20 * near - 8, None, float(np.log(8.0)) * one, 2 * near, mask)


def lungs_only_chest() -> np.ndarray:
    """The phantom without its body, whose soft tissue would be found too."""
    array = chest((40, 48, 56), NODULES)
    array[array == 40] = -850
    return array


def scan_in(kind: str, folder: Path) -> Path:
    """The phantom as a file of some kind, turned in various ways."""
    array = lungs_only_chest()
    if kind == "mhd":
        return write_itk(folder / "scan.mhd", array, SPACING, ORIGIN)
    if kind == "flipped":
        # The same voxels in the same places, told from another corner.
        far = [ORIGIN[0] + 55 * 0.8, ORIGIN[1] + 47 * 0.8, ORIGIN[2]]
        return write_itk(folder / "scan.mhd", array[:, ::-1, ::-1], SPACING, far, np.diag([-1.0, -1.0, 1.0]))
    if kind == "nifti":
        return write_nifti(folder / "scan.nii.gz", array, SPACING, ORIGIN, np.eye(3))
    dicom = write_dicom(folder / "series", array, SPACING, ORIGIN)
    if kind == "dicom":
        return dicom
    return Path(shutil.make_archive(str(folder / "scan"), "zip", dicom))


def pivot_options(**inference: object) -> PivotOptions:
    return PivotOptions.model_validate({"sampling": {"patch_size": [32, 32, 32]}, "inference": inference})


def found_in(path: Path, model: nn.Module | None = None, **inference: object) -> DetectedScan:
    with open_scan(path) as volume:
        return find_nodules(model or Toy(), volume, pivot_options(**inference), device=torch.device("cpu"))
