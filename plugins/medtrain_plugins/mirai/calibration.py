"""Platt calibration of yearly risks: fitted on women outside the training group, stored as a JSON file.

For each year the calibrated risk is sigmoid(slope * p + intercept) of the model's risk p, as in the published Mirai.
Each year is calibrated separately: the order of women in a year never changes (nor do AUC and C-index), but the risk of
one woman may decrease from one year to the next.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from medtrain.errors import DataError
from pydantic import Field

from medtrain_plugins.common.calibration import CalibrationFile, fit_line, sigmoid

Array = npt.NDArray[np.float64]
YEARS = 5
Slope = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Intercept = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]


class Calibration(CalibrationFile):
    """The coefficients by year, and the numbers of samples and cases they were fitted on."""

    of: ClassVar[str] = "Mirai"

    format: Literal["medtrain-platt"] = "medtrain-platt"
    version: Literal[1] = 1
    plugin: Literal["mirai"] = "mirai"
    slope: Annotated[tuple[Slope, ...], Field(min_length=YEARS, max_length=YEARS)]
    intercept: Annotated[tuple[Intercept, ...], Field(min_length=YEARS, max_length=YEARS)]
    samples: Annotated[tuple[Count, ...], Field(min_length=YEARS, max_length=YEARS)]
    cases: Annotated[tuple[Count, ...], Field(min_length=YEARS, max_length=YEARS)]

    def apply(self, risks: npt.ArrayLike) -> Array:
        """Calibrated risks (N, 5) of risks (N, 5)."""
        logits = np.asarray(self.slope) * np.asarray(risks, dtype=np.float64) + np.asarray(self.intercept)
        return sigmoid(logits)


def fit(risks: npt.ArrayLike, target: npt.ArrayLike, known: npt.ArrayLike) -> Calibration:
    """Fits the calibration of risks (N, 5) to the outcomes.

    target (N, 5): 1 for cancer within that many years. known (N, 5): 1 where the outcome is known (for a case: in every
    year). Raises DataError naming a year in which all samples have one outcome or one risk, or in which higher risks do
    not have more cancers.
    """
    risks, target, known = (np.asarray(values, dtype=np.float64) for values in (risks, target, known))
    if not np.isfinite(risks).all():
        raise DataError("risks that are not finite cannot be calibrated")
    lines: list[tuple[float, float]] = []
    for year in range(YEARS):
        where = known[:, year] > 0
        p, cancer = risks[where, year], target[where, year] > 0
        if cancer.all() or not cancer.any():
            raise DataError(
                f"year {year + 1} cannot be calibrated: of {len(cancer)} samples whose outcome is known "
                f"{int(cancer.sum())} are cases; both kinds are needed"
            )
        if np.ptp(p) == 0:
            raise DataError(f"year {year + 1} cannot be calibrated: all {len(p)} samples have the risk {p[0]:.4g}")
        slope, intercept = fit_line(p, cancer)
        if slope <= 0:
            raise DataError(
                f"year {year + 1} cannot be calibrated: on these {len(p)} samples ({int(cancer.sum())} cases) a higher "
                "risk does not go with more cancers; use a larger group, or a better model"
            )
        lines.append((slope, intercept))
    return Calibration(
        slope=tuple(slope for slope, _ in lines),
        intercept=tuple(intercept for _, intercept in lines),
        samples=tuple(int(count) for count in (known > 0).sum(axis=0)),
        cases=tuple(int(count) for count in ((known > 0) & (target > 0)).sum(axis=0)),
    )


def log_loss(risks: npt.ArrayLike, target: npt.ArrayLike, known: npt.ArrayLike) -> Array:
    """The mean negative log-likelihood of each year, (5,), over the samples whose outcome is known."""
    risks, target, known = (np.asarray(values, dtype=np.float64) for values in (risks, target, known))
    risks = np.clip(risks, 1e-12, 1 - 1e-12)
    entries = -(target * np.log(risks) + (1 - target) * np.log(1 - risks))
    mean: Array = (entries * known).sum(axis=0) / known.sum(axis=0)
    return mean


def known_outcomes(event_times: npt.ArrayLike, event_observed: npt.ArrayLike) -> tuple[Array, Array]:
    """Target and known, each (N, 5), of survival times (N,) (0-based year) and whether cancer was observed (N,).

    Unlike in the training mask, a case stays known after her cancer: she had it within all later years.
    """
    from medtrain_plugins.mammography.evaluation.survival import check_times, year_classes

    times, observed = check_times(np.asarray(event_times), np.asarray(event_observed), YEARS)
    classes = [year_classes(times, observed, year) for year in range(YEARS)]
    target = np.stack([cases for cases, _ in classes], axis=1)
    known = np.stack([cases | free for cases, free in classes], axis=1)
    return target.astype(np.float64), known.astype(np.float64)
