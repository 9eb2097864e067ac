"""Mirai's samples: exams with four views, optionally with fewer, and risk factors."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from medtrain.errors import DataError
from torch import Tensor

from medtrain_plugins.mammography.cohort.cohort import Cohort
from medtrain_plugins.mammography.cohort.exams import EXAM_VIEWS, all_exams
from medtrain_plugins.mammography.cohort.samples import EXAMS, Samples, view_constants
from medtrain_plugins.mammography.model.layers import Compat
from medtrain_plugins.mirai.risk_factors import encode_risk_factors


def exam_samples(compat: Compat, min_views: int, risk_factors: bool) -> Samples:
    """The samples of a configuration.

    compat: "reference" exchanges the side numbers of CSAW-CC, as in published results. min_views: smallest number of
    the four views; with fewer than four, `view_mask` marks the existing ones. risk_factors: add `risk_factors` and
    `risk_factors_known`.
    """
    samples = replace(EXAMS, constants=partial(_constants, compat), extras=partial(_extras, min_views, risk_factors))
    return replace(samples, make=partial(exams_with_views, count=min_views)) if min_views < len(EXAM_VIEWS) else samples


def exams_with_views(cohort: Cohort, count: int) -> pd.DataFrame:
    """The exams with at least `count` of the four views, as rows of `all_exams`. Raises DataError without one."""
    exams = all_exams(cohort.table)
    exams = exams[exams[EXAM_VIEWS].notna().sum(axis=1) >= count].reset_index(drop=True)
    if exams.empty:
        raise DataError(f"no samples: no exam has {count} of the views {', '.join(EXAM_VIEWS)}")
    return exams


def _constants(compat: Compat, layout: str) -> dict[str, Tensor]:
    return view_constants((0, 0, 1, 1) if compat == "reference" and layout == "csaw" else (1, 1, 0, 0))


def _extras(min_views: int, risk_factors: bool, table: pd.DataFrame) -> dict[str, npt.NDArray[Any]]:
    extras: dict[str, npt.NDArray[Any]] = {}
    if min_views < len(EXAM_VIEWS):
        extras["view_mask"] = np.asarray(table[EXAM_VIEWS].notna())
    if risk_factors:
        extras["risk_factors"], extras["risk_factors_known"] = encode_risk_factors(table)
    return extras
