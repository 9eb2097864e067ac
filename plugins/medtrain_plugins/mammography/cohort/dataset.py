"""The dataset of the risk models: the images of a sample, the time between exams, and the labels of the risk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from medtrain.errors import DataError, first_lines
from torch import Tensor

from medtrain_plugins.mammography.cohort.cohort import Cohort, list_images
from medtrain_plugins.mammography.cohort.images import Orientation, Pixels, read_header, read_pixels, to_tensor
from medtrain_plugins.mammography.cohort.labels import SurvivalTargets, clean_followup, clean_ttc, survival_targets
from medtrain_plugins.mammography.cohort.layouts import EMBED_NAME, EMBED_PATTERN, LATERALITIES, UNKNOWN, VIEWS
from medtrain_plugins.mammography.cohort.samples import Samples

CACHE_BYTES = 512 * 2**20
TEXTS = ("sample_id", "patient_id", "exam_id", "laterality", "view", "current_image_id", "previous_image_id")
CODES = ("density", "cancer_type", "race")


class ExamDataset:
    """Samples of one model (see `samples`) with their images, as dicts:

    the images, (*S, 1, H, W) float32 in [0, 1], under the keys and in the order of `samples.images`, zeros for a
    missing image; if a model takes whole visits (S = (T, 4)), `exam_mask` (T,) and `view_mask` (T, 4) bool, True for
    existing exams and images; the constants and extras of `samples`; `time_gap` () float32, years 0..5; `density`,
    `cancer_type` and (EMBED) `race` () int64, -1 = unknown; the texts among `TEXTS` that the table has; and, with
    labels, `target`, `y_mask` (5,) float32, `event_times` (0-based year), `event_observed`, `years_to_cancer` (0-based,
    5 or more: none) and `years_to_last_followup` (from 1) () int64; the same of the prior exam, for samples with a
    prior image, as `target_prior`, `y_mask_prior`, `previous_event_times`, `years_to_cancer_prior` and
    `years_to_last_followup_prior`.

    table: one row per sample, as `samples.make` gives them. image_size: (H, W) to resize to; None keeps the files'
    size. orientation: see `images.read_pixels`. layout: of the cohort. cache_bytes: if all images of these samples fit,
    each is decoded once per process and kept as read (16 bits a pixel). `strata` is 1 for every sample of a woman with
    cancer within five years of one of her exams, so that a split is balanced by woman; `classes` is 1 for samples with
    cancer within five years, for class-balanced sampling.
    """

    deterministic = True

    def __init__(
        self,
        table: pd.DataFrame,
        samples: Samples,
        image_size: tuple[int, int] | None = None,
        orientation: Orientation = "as_is",
        layout: str = "embed",
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        if table.empty:
            raise DataError("no samples: the table of samples is empty")
        self.image_size, self.orientation = image_size, orientation
        self.sample_ids: list[str] = table["sample_id"].tolist()
        self.participants: list[str] = table["patient_id"].tolist()
        self._texts = {name: table[name].tolist() for name in TEXTS if name in table}
        self._tensors = _values(table) | {
            name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in samples.extras(table).items()
        }
        self._constants = samples.constants(layout)
        self.strata = self.classes = [0] * len(table)
        if "event_observed" in self._tensors:
            observed = self._tensors["event_observed"]
            self.classes = observed.tolist()
            self.strata = pd.Series(self.classes).groupby(self.participants).transform("max").tolist()

        paths = {key: table[list(columns.ravel())].to_numpy() for key, columns in samples.images.items()}
        flat = np.concatenate([found.ravel() for found in paths.values()])
        missing = pd.isna(flat)
        self.paths, indices = np.unique(flat[~missing].astype(str), return_inverse=True)
        places = np.full(len(flat), -1)
        places[~missing] = indices
        ends = np.cumsum([found.size for found in paths.values()])[:-1]
        self._images = {
            key: part.reshape(len(table), *columns.shape)
            for (key, columns), part in zip(samples.images.items(), np.split(places, ends), strict=True)
        }
        height, width = image_size or read_header(str(self.paths[0]))[:2]
        self._blank = torch.zeros(1, height, width)
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
        sample: dict[str, Any] = {}
        for key, places in self._images.items():
            place = places[index]
            images = [self._image(int(image)) for image in place.flat]
            sample[key] = torch.stack(images).view(*place.shape, *images[0].shape) if place.ndim else images[0]
            if place.ndim == 2:
                sample["view_mask"] = torch.from_numpy(place >= 0)
                sample["exam_mask"] = sample["view_mask"].any(dim=1)
        sample |= {name: values[index] for name, values in self._tensors.items()}
        sample |= self._constants
        return sample | {name: values[index] for name, values in self._texts.items()}

    def _image(self, image: int) -> Tensor:
        return self._blank if image < 0 else to_tensor(self._pixels(image))

    def _pixels(self, image: int) -> Pixels:
        if self._cache is not None and image in self._cache:
            return self._cache[image]
        pixels = read_pixels(str(self.paths[image]), self.image_size, self.orientation)
        if self._cache is not None:
            self._cache[image] = pixels
        return pixels


def _values(table: pd.DataFrame) -> dict[str, Tensor]:
    """The table's values of each sample, without its images; first dimension N."""
    values: dict[str, Any] = {}
    if "time_gap" in table:
        values["time_gap"] = table["time_gap"].to_numpy(np.float32)
    values |= {name: table[name].to_numpy(np.int64) for name in CODES if name in table}
    if "years_to_cancer" in table:
        labels, years = _labels(table)
        values |= years
        values |= {"target": labels.target, "y_mask": labels.mask}
        values |= {"event_times": labels.event_time, "event_observed": labels.event_observed}
    if "years_to_cancer_prior" in table:
        labels, years = _labels(table, "_prior")
        values |= years
        values |= {
            "target_prior": labels.target,
            "y_mask_prior": labels.mask,
            "previous_event_times": labels.event_time,
        }
    return {name: torch.from_numpy(value) for name, value in values.items()}


def _labels(table: pd.DataFrame, suffix: str = "") -> tuple[SurvivalTargets, dict[str, Any]]:
    """Labels of the exams whose columns end in `suffix`, and the years behind them."""
    ttc, followup = table[f"years_to_cancer{suffix}"].to_numpy(), table[f"years_to_followup{suffix}"].to_numpy()
    years = {
        f"years_to_cancer{suffix}": clean_ttc(ttc) - 1,
        f"years_to_last_followup{suffix}": clean_followup(followup),
    }
    return survival_targets(ttc, followup), years


def read_folder(folder: str | Path) -> Cohort:
    """A cohort without labels from a folder of images named as in EMBED, for prediction; no table is needed.

    The folder has the images, or folders `train`, `val`, `test` with them. `density` and `cancer_type` are unknown
    (-1). Raises DataError naming files with another name, side, view or date, and files that are not 16-bit gray PNG.
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
    return Cohort(table=table, layout="embed")
