"""The samples of each model: which rows of a cohort, and which images under which key of the batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from medtrain_plugins.mammography.cohort import exams
from medtrain_plugins.mammography.cohort.cohort import Cohort


def _nothing(_: Any) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Samples:
    """One model's samples.

    make: cohort -> table, one row per sample (see `exams`); raises DataError when there is none.
    images: batch key -> the table's columns with the paths, an array of any shape S: that key holds (*S, 1, H, W).
    constants: the cohort's layout -> batch key -> tensor that all samples share.
    extras: the table -> batch key -> array with one row per sample.
    """

    make: Callable[[Cohort], pd.DataFrame]
    images: Mapping[str, npt.NDArray[np.str_]]
    constants: Callable[[str], Mapping[str, Tensor]] = _nothing
    extras: Callable[[pd.DataFrame], Mapping[str, npt.NDArray[Any]]] = _nothing


def _single(**columns: str) -> dict[str, npt.NDArray[np.str_]]:
    return {key: np.array(column) for key, column in columns.items()}


def view_constants(side_of: tuple[int, int, int, int] = (1, 1, 0, 0)) -> dict[str, Tensor]:
    """`time_seq`, `view_seq`, `side_seq` of the four images of an exam, (4,) int64: CC 0, MLO 1; right 0, left 1."""
    return {
        "time_seq": torch.zeros(4, dtype=torch.int64),
        "view_seq": torch.tensor([0, 1, 0, 1]),
        "side_seq": torch.tensor(side_of),
    }


def _exam_constants(_: str) -> dict[str, Tensor]:
    return view_constants()


# A breast and its previous exam, CC and MLO: LMV-Net.
BREAST_PAIRS = Samples(
    exams.lmv_pairs,
    _single(
        current_image_cc="current_cc",
        current_image_mlo="current_mlo",
        previous_image_cc="previous_cc",
        previous_image_mlo="previous_mlo",
    ),
)

# One view of a breast and the same view of its previous exam: ImgFeatAlign, OA-BreaCR, MammoRegNet.
VIEW_PAIRS = Samples(exams.view_pairs, _single(current_image="current", previous_image="previous"))

# The four views of one exam: Mirai.
EXAMS = Samples(exams.complete_exams, {"images": np.array(exams.EXAM_VIEWS)}, _exam_constants)


def exam_visits(visits: int) -> Samples:
    """The latest `visits` complete exams of a woman up to each exam, oldest first, at least two: VMRA-MaR.

    With fewer exams the first positions are empty: zeros, and False in `exam_mask` (visits,) and `view_mask` (visits,
    4).
    """
    columns = [[exams.visit_column(visit, view) for view in exams.EXAM_VIEWS] for visit in range(visits)]
    return Samples(partial(exams.visits, count=visits), {"images": np.array(columns)}, _exam_constants)
