"""The line through scores whose sigmoid fits outcomes best, shared by the calibrations of several plugins."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


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
