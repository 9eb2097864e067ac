"""Calibration of detection scores: temperature, Platt or isotonic, fitted on scans outside training, stored as JSON.

All work on logits. Temperature: sigmoid(x / T) (Guo et al., ICML 2017). Platt: sigmoid(a x + b), which is a temperature
with a bias (Platt 1999, with its targets drawn in from 0 and 1). Isotonic: the best rising step function (pool adjacent
violators), linear between its steps. None of them changes the order of two scores, but for ties that isotonic makes.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from medtrain.errors import ConfigError, DataError
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from medtrain_plugins.common.platt import fit_line, sigmoid

Array = npt.NDArray[Any]
Method = Literal["temperature", "platt", "isotonic"]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]

# Logits that part the classes without error have no best temperature: the search stays within these.
TEMPERATURES = (1e-2, 1e2)
CLOSEST = 1e-7  # a probability is taken to be at least so far from 0 and 1


class Calibration(BaseModel):
    """A fitted calibration. slope, intercept: of the logit (temperature, Platt). knots: logits and their probabilities
    (isotonic). samples, positives: what it was fitted on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

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

    @classmethod
    def read(cls, path: str | Path) -> Calibration:
        """From a JSON file. Raises ConfigError when it cannot be read or is no calibration."""
        try:
            return cls.model_validate(json.loads(Path(path).read_text(encoding="utf-8")))
        except OSError as error:
            raise ConfigError(f"{path}: the calibration cannot be read ({error.strerror})") from None
        except ValidationError as error:
            item = error.errors()[0]
            key = ".".join(str(part) for part in item["loc"])
            raise ConfigError(
                f"{path}: not a calibration of scores: {key + ': ' if key else ''}{item['msg']}"
            ) from None
        except ValueError:
            raise ConfigError(f"{path}: not a calibration of scores: not valid JSON") from None

    def write(self, path: str | Path) -> None:
        """Into a JSON file."""
        Path(path).write_text(json.dumps(self.model_dump(), indent=1, allow_nan=False) + "\n", encoding="utf-8")


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
        return Calibration(**facts | _isotonic(x, y))
    slope, intercept = _temperature(x, y) if method == "temperature" else fit_line(x, y > 0)
    if slope <= 0:
        raise DataError(
            f"on these {len(y)} detections ({positives} nodules) a higher score does not go with more nodules; use "
            "more scans, or a better model"
        )
    return Calibration(**facts, slope=slope, intercept=intercept)


def log_loss(logits: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """The mean negative log-likelihood of outcomes 0 or 1 (N,) at logits (N,)."""
    x, y = np.asarray(logits, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    return float(np.mean(np.logaddexp(0, x) - y * x))


def logit(probabilities: npt.ArrayLike) -> Array:
    """Logits of probabilities; 0 and 1 become the logits of 1e-7 and 1 - 1e-7."""
    p = np.clip(np.asarray(probabilities, dtype=np.float64), CLOSEST, 1 - CLOSEST)
    found: Array = np.log(p) - np.log1p(-p)
    return found


def _temperature(x: Array, y: Array) -> tuple[float, float]:
    from scipy.optimize import minimize

    def loss(log_slope: Array) -> tuple[float, Array]:
        slope = math.exp(log_slope[0])
        gradient = np.mean((sigmoid(slope * x) - y) * slope * x)
        return log_loss(slope * x, y), np.array([gradient])

    limits = sorted(-math.log(limit) for limit in TEMPERATURES)
    tight = {"ftol": 1e-15, "gtol": 1e-10}
    found = minimize(loss, np.zeros(1), jac=True, method="L-BFGS-B", bounds=[limits], options=tight)
    return math.exp(float(found.x[0])), 0.0


def _isotonic(x: Array, y: Array) -> dict[str, tuple[float, ...]]:
    from scipy.optimize import isotonic_regression

    values, which = np.unique(x, return_inverse=True)
    count = np.bincount(which)
    rising = np.clip(isotonic_regression(np.bincount(which, weights=y) / count, weights=count).x, 0.0, 1.0)
    # Between equal neighbours a knot says nothing.
    inner = (rising[1:-1] != rising[:-2]) | (rising[1:-1] != rising[2:])
    kept = np.concatenate([[True], inner, [True]]) if len(values) > 1 else np.array([True])
    return {"logits": tuple(values[kept].tolist()), "probabilities": tuple(rising[kept].tolist())}
