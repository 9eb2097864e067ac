"""Statistics of results: means over folds, bootstrap limits and p-values, whole clusters drawn, paired AUCs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = [
    "AUCTest", "DeLong", "Interval", "Spread", "bootstrap_p_value", "delong", "percentile_interval",
    "resampled_clusters", "spread",
]  # fmt: skip

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

# A variance below this is rounding: one pair that two models order differently gives more.
NO_VARIANCE = 1e-24


@dataclass(frozen=True)
class Spread:
    """One value over the folds that have it. low, high: Student's t interval of the mean, NaN for a single fold."""

    mean: float
    sd: float
    low: float
    high: float
    folds: int


def spread(values: Sequence[float], confidence: float = 0.95) -> Spread:
    """Mean, sample standard deviation and t interval of the values that exist."""
    from scipy.stats import t

    defined = np.array([value for value in values if not math.isnan(value)], dtype=np.float64)
    count = len(defined)
    if count == 0:
        return Spread(math.nan, math.nan, math.nan, math.nan, 0)
    mean = float(defined.mean())
    if count == 1:
        return Spread(mean, math.nan, math.nan, math.nan, 1)
    sd = float(defined.std(ddof=1))
    half = float(t.ppf(0.5 + confidence / 2, count - 1)) * sd / math.sqrt(count)
    return Spread(mean, sd, mean - half, mean + half, count)


class Interval(NamedTuple):
    """Percentile limits, NaN where no draw is defined, and how many draws are."""

    low: float
    high: float
    valid: int


def percentile_interval(draws: FloatArray, alpha: float = 0.05) -> Interval:
    """The limits that leave `alpha` outside; draws (R,) without a value (NaN) are left out."""
    defined = draws[~np.isnan(draws)]
    if not len(defined):
        return Interval(math.nan, math.nan, 0)
    low, high = np.percentile(defined, [100 * alpha / 2, 100 * (1 - alpha / 2)])
    return Interval(float(low), float(high), len(defined))


def bootstrap_p_value(differences: FloatArray) -> float:
    """The two-sided p-value of "no difference" from bootstrap differences (R,); NaN when none is defined.

    Twice the smaller share of differences on one side of zero, zero itself counted on both. One is added to both
    counts (Davison and Hinkley 1997), so that R draws never say less than 2 / (R + 1).
    """
    defined = differences[~np.isnan(differences)]
    if not len(defined):
        return math.nan
    tail = min(int((defined <= 0).sum()), int((defined >= 0).sum()))
    return min(1.0, 2 * (tail + 1) / (len(defined) + 1))


def resampled_clusters(clusters: Array, replicates: int, seed: int) -> Iterator[IntArray]:
    """Indices of the samples of each replicate: as many clusters as there are, drawn with replacement, each whole.

    clusters: (N,) what the samples of one cluster have in common.
    """
    _, cluster_of, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
    members = np.argsort(cluster_of, kind="stable")
    starts = np.cumsum(sizes) - sizes
    generator = np.random.default_rng(seed)
    for _ in range(replicates):
        drawn = generator.integers(len(sizes), size=len(sizes))
        length = sizes[drawn]
        first = np.cumsum(length) - length
        yield members[np.repeat(starts[drawn] - first, length) + np.arange(length.sum())]


@dataclass(frozen=True)
class AUCTest:
    """The test of "both AUCs are equal". p and z are NaN, with the reason in `reason`, where there is no test."""

    difference: float
    standard_error: float
    z: float
    p: float
    reason: str = ""


@dataclass(frozen=True)
class DeLong:
    """AUCs of K scores of the same N samples, and what their covariance is made of.

    auc: (K,). positives, negatives: numbers of samples. above, below: (K, I) for each of I clusters, by how much the
    placements of its positive and of its negative samples add up to more than the mean. has_positive, has_negative:
    (I,) whether it has such samples.
    """

    auc: FloatArray
    positives: int
    negatives: int
    above: FloatArray
    below: FloatArray
    has_positive: npt.NDArray[np.bool_]
    has_negative: npt.NDArray[np.bool_]

    @property
    def covariance(self) -> FloatArray:
        """(K, K), NaN with fewer than two positive or negative clusters."""
        return self._covariance(self.above, self.below)

    def test(self, first: int, second: int) -> AUCTest:
        """Score `first` against score `second`, two-sided, by the normal approximation."""
        difference = float(self.auc[first] - self.auc[second])
        if self.reason:
            return AUCTest(difference, math.nan, math.nan, math.nan, self.reason)
        # The variance of the difference, not a sum of covariances: equal rankings give exactly zero.
        above, below = (part[[first]] - part[[second]] for part in (self.above, self.below))
        variance = float(self._covariance(above, below)[0, 0])
        if variance <= NO_VARIANCE:
            alike = difference == 0 and not above.any() and not below.any()
            reason = "both tell the classes apart alike" if alike else "the difference has no variance here"
            return AUCTest(difference, math.nan, math.nan, math.nan, reason)
        error = math.sqrt(variance)
        z = difference / error
        return AUCTest(difference, error, z, math.erfc(abs(z) / math.sqrt(2)))

    @property
    def reason(self) -> str:
        """Why there is no covariance; empty when there is one."""
        for clusters, what in ((self.has_positive, "positive"), (self.has_negative, "negative")):
            if clusters.sum() < 2:
                return f"fewer than two {what} samples"
        return ""

    def _covariance(self, above: FloatArray, below: FloatArray) -> FloatArray:
        if self.reason:
            return np.full((len(above), len(above)), math.nan)
        m, n = self.positives, self.negatives
        i10, i01, i = self.has_positive.sum(), self.has_negative.sum(), len(self.has_positive)
        s10 = i10 / (i10 - 1) * (above @ above.T)
        s01 = i01 / (i01 - 1) * (below @ below.T)
        s11 = i / (i - 1) * (above @ below.T)
        covariance: FloatArray = s10 / m**2 + s01 / n**2 + (s11 + s11.T) / (m * n)
        return covariance


def delong(scores: Array, positive: Array, clusters: Array | None = None) -> DeLong:
    """AUCs of several scores of the same samples, with their covariance (DeLong et al. 1988).

    scores: (K, N), finite. positive: (N,) mask. clusters: (N,) what samples that are not independent have in common
    (a patient); the covariance is then that of Obuchowski (1997), which is DeLong's where every cluster is one sample.
    AUCs are NaN without positive or without negative samples.

    Placements come from mid-ranks (Sun and Xu 2014), in O(K N log N); ties count one half.
    """
    from scipy.stats import rankdata  # half a second, and every run imports this module

    scores, positive = np.asarray(scores, dtype=np.float64), np.asarray(positive).astype(bool)
    m, n = int(positive.sum()), int((~positive).sum())
    groups = np.arange(len(positive)) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    size = int(groups.max()) + 1 if len(groups) else 0
    has_positive, has_negative = (np.bincount(groups[mask], minlength=size) > 0 for mask in (positive, ~positive))
    if not m or not n:
        nothing = np.zeros((len(scores), size))
        return DeLong(np.full(len(scores), math.nan), m, n, nothing, nothing, has_positive, has_negative)
    ranks = rankdata(scores, axis=1)
    # The share of negatives below each positive, and of positives above each negative.
    of_positives = (ranks[:, positive] - rankdata(scores[:, positive], axis=1)) / n
    of_negatives = 1 - (ranks[:, ~positive] - rankdata(scores[:, ~positive], axis=1)) / m
    auc = of_positives.mean(axis=1)
    above, below = np.zeros((len(scores), size)), np.zeros((len(scores), size))
    for row in range(len(scores)):
        above[row] = np.bincount(groups[positive], of_positives[row] - auc[row], minlength=size)
        below[row] = np.bincount(groups[~positive], of_negatives[row] - auc[row], minlength=size)
    return DeLong(auc, m, n, above, below, has_positive, has_negative)
