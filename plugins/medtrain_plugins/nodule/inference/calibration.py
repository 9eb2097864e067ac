"""Calibration of detection scores: temperature, Platt or isotonic, fitted on scans outside training, stored as JSON.

All work on logits. Temperature: sigmoid(x / T) (Guo et al., ICML 2017). Platt: sigmoid(a x + b), which is a temperature
with a bias (Platt 1999, with its targets drawn in from 0 and 1). Isotonic: the best rising step function (pool adjacent
violators), linear between its steps. None of them changes the order of two scores, but for ties that isotonic makes.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from medtrain.errors import DataError
from pydantic import Field, model_validator

from medtrain_plugins.common.calibration import (
    CalibrationFile,
    fit_isotonic,
    fit_line,
    fit_temperature,
    logit,
    sigmoid,
)

Array = npt.NDArray[Any]
Method = Literal["temperature", "platt", "isotonic"]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


class Calibration(CalibrationFile):
    """A fitted calibration. slope, intercept: of the logit (temperature, Platt). knots: logits and their probabilities
    (isotonic). samples, positives: what it was fitted on."""

    of: ClassVar[str] = "scores"

    format: Literal["medtrain-score-calibration"] = "medtrain-score-calibration"
    version: Literal[1] = 1
    method: Method
    slope: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    intercept: Finite = 0.0
    logits: tuple[Finite, ...] = ()
    probabilities: tuple[Share, ...] = ()
    samples: Annotated[int, Field(ge=0)] = 0
    positives: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _knots_rise(self) -> Calibration:
        if len(self.logits) != len(self.probabilities) or (self.method == "isotonic") != bool(self.logits):
            raise ValueError("isotonic calibrations, and only they, have as many logits as probabilities")
        if np.any(np.diff(self.logits) <= 0) or np.any(np.diff(self.probabilities) < 0):
            raise ValueError("logits and probabilities must rise")
        return self

    @property
    def temperature(self) -> float:
        """What the logits are divided by."""
        return 1.0 / self.slope

    def apply(self, logits: npt.ArrayLike) -> Array:
        """Calibrated probabilities of logits, any shape, float64."""
        logits = np.asarray(logits, dtype=np.float64)
        if self.method == "isotonic":
            found: Array = np.interp(logits, self.logits, self.probabilities)
            return found
        return sigmoid(self.slope * logits + self.intercept)

    def apply_to_probabilities(self, probabilities: npt.ArrayLike) -> Array:
        """Calibrated probabilities of uncalibrated ones."""
        return self.apply(logit(probabilities))


def fit(logits: npt.ArrayLike, labels: npt.ArrayLike, method: Method = "platt") -> Calibration:
    """The calibration of greatest likelihood (isotonic: least squares) of logits (N,) whose outcomes (N,) are 0 or 1.

    Raises DataError when a logit is not finite, all outcomes are the same, or larger logits do not go with more
    positives.
    """
    x, y = np.asarray(logits, dtype=np.float64).reshape(-1), np.asarray(labels, dtype=np.float64).reshape(-1)
    if len(x) != len(y):
        raise DataError(f"{len(x)} scores for {len(y)} outcomes")
    if not np.isfinite(x).all() or not np.isin(y, (0.0, 1.0)).all():
        raise DataError("a calibration needs finite scores and outcomes of 0 or 1")
    positives = int(y.sum())
    if positives in (0, len(y)):
        raise DataError(f"{positives} of {len(y)} detections are nodules; a calibration needs both kinds")
    facts: dict[str, Any] = {"method": method, "samples": len(y), "positives": positives}
    if method == "isotonic":
        knots, probabilities = fit_isotonic(x, y > 0)
        return Calibration(**facts, logits=tuple(knots.tolist()), probabilities=tuple(probabilities.tolist()))
    slope, intercept = (fit_temperature(x, y > 0), 0.0) if method == "temperature" else fit_line(x, y > 0)
    if slope <= 0:
        raise DataError(
            f"on these {len(y)} detections ({positives} nodules) a higher score does not go with more nodules; use "
            "more scans, or a better model"
        )
    return Calibration(**facts, slope=slope, intercept=intercept)
