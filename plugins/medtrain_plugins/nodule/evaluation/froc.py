"""FROC curves: sensitivity against false positives per scan, and its mean at seven rates.

Two conventions. `luna16` is that of the challenge's own evaluator, with exactly its arithmetic: the curve starts at (0,
0), sensitivities between its points are interpolated linearly, a vertical step has the upper value, and beyond the last
point the last value holds. `fixed_radius` takes the lower value at a vertical step.

Confidence intervals come from a bootstrap of scans.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from medtrain_plugins.nodule.annotations.tables import Findings
from medtrain_plugins.nodule.evaluation.matching import Matching, Outcome

Array = npt.NDArray[Any]
Convention = Literal["luna16", "fixed_radius"]

RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True)
class Marks:
    """The M true and false positives of S scans, most suspicious first.

    score, scan, true: (M,). ends: (K,) the last mark of each distinct score. nodules: (S,) nodules of each scan.
    """

    score: Array
    scan: Array
    true: Array
    ends: Array
    nodules: Array

    @classmethod
    def of(cls, matching: Matching, candidates: Findings, which: Array | None = None) -> Marks:
        """The marks of a matching; which: (G,) bool, the nodules that count (others are ignored)."""
        assert candidates.score is not None
        wanted = np.ones(len(matching.nodules), dtype=np.bool_) if which is None else which
        found = matching.found & wanted
        wrong = np.flatnonzero(matching.outcome == Outcome.FALSE_POSITIVE)
        score = np.concatenate([candidates.score[matching.hit[found]], candidates.score[wrong]])
        scan = np.concatenate([matching.nodule_scan[found], matching.candidate_scan[wrong]])
        true = np.arange(len(score)) < found.sum()
        order = np.argsort(-score, kind="stable")
        score = score[order]
        ends = np.flatnonzero(np.append(np.diff(score) != 0, True)) if len(score) else np.zeros(0, dtype=np.int64)
        nodules = np.bincount(matching.nodule_scan[wanted], minlength=len(matching.scans))
        return cls(score, scan[order], true[order], ends, nodules)

    @cached_property
    def by_scan(self) -> tuple[Array, Array]:
        """(S,) true and (S,) false positives of each scan."""
        count = len(self.nodules)
        return np.bincount(self.scan[self.true], minlength=count), np.bincount(self.scan[~self.true], minlength=count)


@dataclass(frozen=True)
class Curve:
    """A FROC curve, K + 1 points with falling threshold, from (0, 0) at the threshold infinity.

    thresholds, false_per_scan, sensitivity (NaN without nodules), true_positives, false_positives: (K + 1,).
    """

    thresholds: Array
    false_per_scan: Array
    sensitivity: Array
    true_positives: Array
    false_positives: Array
    convention: Convention = "luna16"

    def sensitivity_at(self, rates: Sequence[float] = RATES) -> Array:
        """Sensitivities at false positives per scan."""
        return interpolate(self.false_per_scan, self.sensitivity, rates, self.convention)

    def corners(self) -> Array:
        """Indices of the points at which the curve turns, which are enough to draw it."""
        if len(self.thresholds) < 3:
            return np.arange(len(self.thresholds))
        turns = np.diff(self.true_positives, 2).astype(bool) | np.diff(self.false_positives, 2).astype(bool)
        return np.flatnonzero(np.concatenate([[True], turns, [True]]))

    def operating_point(self, rate: float) -> int:
        """Index of the last point with at most `rate` false positives per scan."""
        return int(np.flatnonzero(self.false_per_scan <= rate + 1e-9)[-1])


def froc(marks: Marks, convention: Convention = "luna16") -> Curve:
    """The curve of marks, one point for each distinct score."""
    true = np.concatenate([[0.0], np.cumsum(marks.true, dtype=np.float64)[marks.ends]])
    false = np.concatenate([[0.0], np.cumsum(~marks.true, dtype=np.float64)[marks.ends]])
    totals = float(marks.true.sum()), float((~marks.true).sum())
    x, y = _rates(true, false, totals, len(marks.nodules), float(marks.nodules.sum()), convention)
    thresholds = np.concatenate([[np.inf], marks.score[marks.ends]])
    return Curve(thresholds, x, y, true.astype(np.int64), false.astype(np.int64), convention)


def resampled_sensitivities(
    marks: Marks, weights: Array, rates: Sequence[float] = RATES, convention: Convention = "luna16"
) -> Array:
    """Sensitivities (R,) at `rates` if scan s occurs `weights[s]` times; the number of scans stays.

    Uses only as many marks as the largest rate needs.
    """
    scans, nodules = len(marks.nodules), float(weights @ marks.nodules)
    if not len(marks.ends):
        return np.full(len(rates), 0.0 if nodules else np.nan)
    weights = weights.astype(np.float64)
    totals = float(weights @ marks.by_scan[0]), float(weights @ marks.by_scan[1])
    needed = max(rates) * scans
    points = min(len(marks.ends), int(1.5 * needed + nodules) + 1)
    while True:
        ends = marks.ends[:points]
        weight = weights[marks.scan[: ends[-1] + 1]]
        true = marks.true[: ends[-1] + 1]
        false_positives = np.cumsum(np.where(true, 0.0, weight))[ends]
        if points == len(marks.ends) or false_positives[-1] > needed + 1:
            break
        points = min(len(marks.ends), 2 * points)
    true_positives = np.cumsum(np.where(true, weight, 0.0))[ends]
    true_positives, false_positives = np.insert(true_positives, 0, 0.0), np.insert(false_positives, 0, 0.0)
    x, y = _rates(true_positives, false_positives, totals, scans, nodules, convention)
    return interpolate(x, y, rates, convention)


def interpolate(x: Array, y: Array, rates: Sequence[float], convention: Convention = "luna16") -> Array:
    """Sensitivities at `rates` of a curve with rising x; the curve starts at (0, 0)."""
    if not len(x) or x[0] > 0:
        x, y = np.insert(np.asarray(x, dtype=np.float64), 0, 0.0), np.insert(np.asarray(y, dtype=np.float64), 0, 0.0)
    values = np.interp(rates, x, y)
    if convention == "fixed_radius":
        first = np.searchsorted(x, rates, side="left")
        inside = first < len(x)
        at_point = np.zeros(len(values), dtype=np.bool_)
        at_point[inside] = x[first[inside]] == np.asarray(rates)[inside]
        values[at_point] = y[first[at_point]]
    found: Array = values
    return found


def mean_sensitivity(values: Array, rates: Sequence[float] = RATES, within: tuple[float, float] | None = None) -> float:
    """The mean of sensitivities at rates (the CPM at the seven of LUNA16), over the rates that lie `within`."""
    low, high = within or (-np.inf, np.inf)
    return float(np.mean([value for value, rate in zip(values, rates, strict=True) if low <= rate <= high]))


def bootstrap_sensitivities(
    marks: Marks,
    replicates: int = 1000,
    seed: int = 0,
    rates: Sequence[float] = RATES,
    convention: Convention = "luna16",
) -> Array:
    """Sensitivities at `rates` of resamples of the scans, (replicates, R). Candidates are not matched again.

    The draws are those of `numpy.random.RandomState(seed).randint(S, size=S)`, one after the other: the challenge's
    evaluator draws the same after `numpy.random.seed(seed)`, so that the intervals of both can be compared.
    """
    random = np.random.RandomState(seed)
    scans = len(marks.nodules)
    values = np.empty((replicates, len(rates)))
    for replicate in range(replicates):
        weights = np.bincount(random.randint(scans, size=scans), minlength=scans)
        values[replicate] = resampled_sensitivities(marks, weights, rates, convention)
    return values


def interval(values: Array, confidence: float = 0.95) -> tuple[float, float]:
    """The limits of the values (B,) at a level of confidence, by the order statistics of the challenge.

    Undefined values (resamples without a nodule) are left out; NaN if none is left.
    """
    ordered = np.sort(values[~np.isnan(values)])
    if not len(ordered):
        return math.nan, math.nan
    tail = (1.0 - confidence) / 2.0
    low, high = (min(math.floor(share * len(ordered)), len(ordered) - 1) for share in (tail, 1.0 - tail))
    return float(ordered[low]), float(ordered[high])


def _rates(
    true: Array, false: Array, totals: tuple[float, float], scans: int, nodules: float, convention: Convention
) -> tuple[Array, Array]:
    """False positives per scan and sensitivities of cumulative counts.

    The challenge's evaluator computes the curve from a ROC curve: counts over their total, times the total, over scans.
    Its rounding is kept, since it decides on which side of a vertical step a rate lies, such as 111 false positives in
    888 scans (0.125).
    """
    if convention == "luna16":
        x = false / totals[1] * totals[1] / scans if totals[1] else false / scans
        share = true / totals[0] * totals[0] if totals[0] else true
    else:
        x, share = false / scans, true
    return x, share / nodules if nodules else np.full(len(share), np.nan)
