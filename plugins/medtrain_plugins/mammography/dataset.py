"""The dataset of breasts with their previous exam: four images, the time between, and the labels of the risk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from medtrain.errors import DataError, first_lines

from .cohort import Cohort, list_images
from .exams import lmv_pairs
from .images import Orientation, Pixels, read_header, read_pixels, to_tensor
from .labels import survival_targets
from .layouts import EMBED_NAME, EMBED_PATTERN, LATERALITIES, UNKNOWN, VIEWS

IMAGES = ("current_cc", "current_mlo", "previous_cc", "previous_mlo")
CACHE_BYTES = 512 * 2**20


class PairDataset:
    """Samples of `exams.lmv_pairs`, or of `read_folder`.

    Each is a dict: `current_image_cc`, `current_image_mlo`, `previous_image_cc`, `previous_image_mlo` (1, H, W)
    float32 in [0, 1]; `time_gap` () float32, years 0..5; `density`, `cancer_type` and (EMBED) `race` () int64,
    -1 = unknown; `sample_id`, `patient_id`, `exam_id`, `laterality` (text); and, where the pairs have labels,
    `target`, `y_mask` (5,) float32 and `event_times` (0-based year), `event_observed` () int64.

    pairs: the table of samples. image_size: (H, W) to resize to; None keeps the files' size. orientation: see
    `images.read_pixels`. cache_bytes: when all images of these samples fit, each is decoded once per process and kept
    as it was read (16 bits a pixel).
    `strata` is 1 for every sample of a woman with cancer within five years of one of her exams, so that a split is
    balanced by woman.
    """

    deterministic = True

    def __init__(
        self,
        pairs: pd.DataFrame,
        image_size: tuple[int, int] | None = None,
        orientation: Orientation = "as_is",
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        if pairs.empty:
            raise DataError("no samples: the table of pairs is empty")
        self.image_size, self.orientation = image_size, orientation
        self.sample_ids: list[str] = pairs["sample_id"].tolist()
        self.participants: list[str] = pairs["patient_id"].tolist()
        self._texts = {name: pairs[name].tolist() for name in ("sample_id", "patient_id", "exam_id", "laterality")}
        self._tensors = {"time_gap": torch.tensor(pairs["time_gap"].to_numpy(), dtype=torch.float32)}
        for name in ("density", "cancer_type", "race"):
            if name in pairs:
                self._tensors[name] = torch.tensor(pairs[name].to_numpy(), dtype=torch.int64)
        self.strata: list[int] = [0] * len(pairs)
        if "years_to_cancer" in pairs:
            labels = survival_targets(pairs["years_to_cancer"].to_numpy(), pairs["years_to_followup"].to_numpy())
            self._tensors |= {
                "target": torch.from_numpy(labels.target),
                "y_mask": torch.from_numpy(labels.mask),
                "event_times": torch.from_numpy(labels.event_time),
                "event_observed": torch.from_numpy(labels.event_observed),
            }
            observed = pd.Series(labels.event_observed).groupby(self.participants).transform("max")
            self.strata = observed.tolist()

        paths = pairs[list(IMAGES)].to_numpy()
        self.paths, indices = np.unique(paths.astype(str), return_inverse=True)
        self._images = indices.reshape(paths.shape)
        height, width = image_size or read_header(str(self.paths[0]))[:2]
        self._cache: dict[int, Pixels] | None = None
        if len(self.paths) * height * width * np.dtype(np.uint16).itemsize <= cache_bytes:
            self._cache = {}

    @property
    def outcomes(self) -> dict[str, list[int]]:
        """`event_times` and `event_observed`, one per sample."""
        return {name: self._tensors[name].tolist() for name in ("event_times", "event_observed")}

    def __len__(self) -> int:
        return len(self.sample_ids)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        sample: dict[str, Any] = {
            f"{time}_image_{view}": to_tensor(self._pixels(int(image)))
            for (time, view), image in zip((name.split("_") for name in IMAGES), self._images[index], strict=True)
        }
        sample |= {name: values[index] for name, values in self._tensors.items()}
        sample |= {name: values[index] for name, values in self._texts.items()}
        return sample

    def _pixels(self, image: int) -> Pixels:
        if self._cache is not None and image in self._cache:
            return self._cache[image]
        pixels = read_pixels(str(self.paths[image]), self.image_size, self.orientation)
        if self._cache is not None:
            self._cache[image] = pixels
        return pixels


def read_folder(folder: str | Path) -> pd.DataFrame:
    """Pairs without labels from a folder of images named as in EMBED, for prediction; no table is needed.

    The folder holds the images, or folders `train`, `val`, `test` with them. Returns a table as `lmv_pairs` does,
    without the columns of the labels and with `density` and `cancer_type` unknown (-1).
    Raises DataError naming files with another name, side, view or date, files that are no 16-bit gray PNG, and
    folders without a pair.
    """
    table = list_images(Path(folder))
    table = table.join(table["file_name"].str.extract(f"^{EMBED_NAME.pattern}$"))
    table["laterality"], table["view"] = table["laterality"].map(LATERALITIES), table["view"].map(VIEWS)
    table["exam_date"] = pd.to_datetime(table["date"], format="%Y-%m-%d", errors="coerce")
    unnamed = table[["patient_id", "laterality", "view", "exam_date"]].isna().any(axis=1)
    if unnamed.any():
        raise DataError(
            f"{folder}: {int(unnamed.sum())} of {len(table)} images are not named {EMBED_PATTERN}; rename or remove "
            "them\n" + first_lines(table["file_name"][unnamed].tolist())
        )
    headers = ((path, read_header(path).problem()) for path in table["image_path"])
    wrong = [f"{path}: {problem}" for path, problem in headers if problem]
    if wrong:
        raise DataError(f"{folder}: {len(wrong)} images cannot be used\n" + first_lines(wrong))
    table["exam_id"] = table["patient_id"] + "_" + table.pop("date")
    table["exam_year"] = table["exam_date"].dt.year
    table["density"] = table["cancer_type"] = UNKNOWN
    return lmv_pairs(Cohort(table=table, layout="embed"))
