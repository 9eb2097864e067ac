"""Calibration of scores: Platt's line, temperature, isotonic steps, and the JSON file a fitted one is kept in."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from medtrain.errors import ConfigError
from medtrain.rundir import write_json
from pydantic import BaseModel, ConfigDict, ValidationError

Array = npt.NDArray[Any]

# Logits that part the classes without error have no best temperature: the search stays within these.
TEMPERATURES = (1e-2, 1e2)
CLOSEST = 1e-7  # a probability is taken to be at least so far from 0 and 1


class CalibrationFile(BaseModel):
    """A calibration that is kept as JSON. of: what it calibrates, for messages."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    of: ClassVar[str]

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """From a JSON file. Raises ConfigError when it cannot be read or is no calibration."""
        try:
            return cls.model_validate(json.loads(Path(path).read_text(encoding="utf-8")))
        except OSError as error:
            raise ConfigError(f"{path}: the calibration cannot be read ({error.strerror})") from None
        except ValidationError as error:
            item = error.errors()[0]
            key = ".".join(str(part) for part in item["loc"])
            said = f"{key}: {item['msg']}" if key else item["msg"]
            raise ConfigError(f"{path}: not a calibration of {cls.of}: {said}") from None
        except ValueError:
            raise ConfigError(f"{path}: not a calibration of {cls.of}: not valid JSON") from None

    def write(self, path: str | Path) -> None:
        """Into a JSON file."""
        write_json(Path(path), self.model_dump())


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), without overflow."""
    found: Array = 0.5 * (1 + np.tanh(0.5 * x))
    return found


def fit_line(scores: Array, positive: Array) -> tuple[float, float]:
    """Slope and intercept of greatest likelihood for scores (N,) whose outcomes (N,) are true or false, both kinds.

    The outcomes are drawn in from 0 and 1 by one sample's worth, as Platt has it ("Probabilistic outputs for support
    vector machines", 1999): the best line is finite even where scores part the positives from the others perfectly.
    """
    from scipy.optimize import minimize

    positives = int(np.count_nonzero(positive))
    others = len(positive) - positives
    y = np.where(positive, (positives + 1) / (positives + 2), 1 / (others + 2))
    mean, spread = scores.mean(), scores.std() or 1.0
    design = np.stack([(scores - mean) / spread, np.ones_like(scores)], axis=1)

    def loss(line: Array) -> float:
        logits = design @ line
        return float(np.mean(np.logaddexp(0, logits) - y * logits))

    def gradient(line: Array) -> Array:
        slope: Array = design.T @ (sigmoid(design @ line) - y) / len(y)
        return slope

    def curvature(line: Array) -> Array:
        q = sigmoid(design @ line)
        bend: Array = (design * (q * (1 - q))[:, None]).T @ design / len(y)
        return bend

    start = np.array([0.0, np.log(y.mean() / (1 - y.mean()))])
    found = minimize(loss, start, jac=gradient, hess=curvature, method="trust-exact", options={"gtol": 1e-10})
    slope = float(found.x[0] / spread)
    return slope, float(found.x[1] - slope * mean)


def fit_temperature(logits: Array, positive: Array) -> float:
    """What to multiply logits (N,) with, 1 / T, so that their sigmoid is likeliest for outcomes (N,), true or false."""
    from scipy.optimize import minimize

    def loss(log_slope: Array) -> tuple[float, Array]:
        slope = math.exp(log_slope[0])
        gradient = np.mean((sigmoid(slope * logits) - positive) * slope * logits)
        return log_loss(slope * logits, positive), np.array([gradient])

    limits = sorted(-math.log(limit) for limit in TEMPERATURES)
    tight = {"ftol": 1e-15, "gtol": 1e-10}
    found = minimize(loss, np.zeros(1), jac=True, method="L-BFGS-B", bounds=[limits], options=tight)
    return math.exp(float(found.x[0]))


def fit_isotonic(scores: Array, positive: Array) -> tuple[Array, Array]:
    """Scores and probabilities, both rising, between which the best rising function of scores (N,) is linear."""
    from sklearn.isotonic import IsotonicRegression

    fitted = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(scores, positive.astype(np.float64))
    return fitted.X_thresholds_, fitted.y_thresholds_


def log_loss(logits: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """The mean negative log-likelihood of outcomes 0 or 1 (N,) at logits (N,)."""
    x, y = np.asarray(logits, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    return float(np.mean(np.logaddexp(0, x) - y * x))


def logit(probabilities: npt.ArrayLike) -> Array:
    """Logits of probabilities; 0 and 1 become the logits of 1e-7 and 1 - 1e-7."""
    p = np.clip(np.asarray(probabilities, dtype=np.float64), CLOSEST, 1 - CLOSEST)
    found: Array = np.log(p) - np.log1p(-p)
    return found
