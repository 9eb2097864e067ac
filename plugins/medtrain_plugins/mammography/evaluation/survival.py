"""Survival metrics of yearly risks: concordance indices, yearly AUCs, and the Kaplan-Meier curves they need.

Every metric here is the weighted share of pairs (a woman who should rank higher, one who should rank lower) in the
right order, and ties count one half. So a metric is a list of `RankedPairs`, and one function counts them, for the
sample and for its bootstrap replicates. Counting sorts the scores, so 20,000 samples need no matrix of pairs.

Times are 0-based years: an event at time t lies within t + 1 years of the exam; at equal times an event
comes before a censoring. `risks` is (N, n_years), column y the risk of cancer within y + 1 years.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from medtrain.errors import DataError
from medtrain.protocols import Undefined

from medtrain_plugins.mammography.cohort.labels import N_YEARS

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class KaplanMeier:
    """The yearly product-limit estimate (Kaplan and Meier 1958); entry t of each (n_years,) array is year t.

    at_risk: number without the event at the start of the year. happened: number with the event in that year. survival:
    the probability of no event until the end of the year.
    """

    at_risk: FloatArray
    happened: FloatArray
    survival: FloatArray

    @classmethod
    def fit(cls, times: Array, happened: Array, n_years: int = N_YEARS) -> KaplanMeier:
        """The curve of the event that `happened` (N,) marks at `times` (N,); the others leave after their year."""
        last = np.bincount(times, minlength=n_years).astype(np.float64)
        at_risk = np.cumsum(last[::-1])[::-1]
        return cls._product(at_risk, np.bincount(times[happened.astype(bool)], minlength=n_years))

    @classmethod
    def of_censoring(cls, event_times: Array, event_observed: Array, n_years: int = N_YEARS) -> KaplanMeier:
        """G, the curve of being lost to follow-up: its `survival` weights the pairs of both C-indices.

        Women with an event in a year are not at risk of being lost in it. Reaching the last year means complete
        follow-up, not a loss: counting it as a loss would make G there zero (or the share of events in the last year),
        and 1/G^2 arbitrarily large.
        """
        times, observed = check_times(event_times, event_observed, n_years)
        whole = cls.fit(times, observed, n_years)
        lost = np.bincount(times[~observed & (times < n_years - 1)], minlength=n_years)
        return cls._product(whole.at_risk - whole.happened, lost)

    @classmethod
    def _product(cls, at_risk: FloatArray, happened: Array) -> KaplanMeier:
        share = np.divide(happened, at_risk, out=np.zeros(len(at_risk)), where=at_risk > 0)
        return cls(at_risk, happened.astype(np.float64), np.cumprod(1 - share))

    def interval(self) -> tuple[FloatArray, FloatArray]:
        """95% limits of `survival` (Greenwood, on the log-log scale); NaN where survival is 0 or 1."""
        with np.errstate(divide="ignore", invalid="ignore"):
            greenwood = np.cumsum(self.happened / (self.at_risk * (self.at_risk - self.happened)))
            spread = np.exp(1.959964 * np.sqrt(greenwood) / np.log(self.survival))
            inside = (self.survival > 0) & (self.survival < 1)
            low, high = self.survival ** (1 / spread), self.survival**spread
        return np.where(inside, low, np.nan), np.where(inside, high, np.nan)


@dataclass(frozen=True)
class RankedPairs:
    """Pairs of every sample of `higher` with every sample of `lower`.

    higher (P,), lower (Q,): int64 sample indices. higher_scores, lower_scores: their scores. weight: of each
    pair.
    """

    higher: IntArray
    lower: IntArray
    higher_scores: Array
    lower_scores: Array
    weight: float = 1.0

    def __bool__(self) -> bool:
        """Whether there is any pair."""
        return len(self.higher) > 0 and len(self.lower) > 0

    @classmethod
    def of(
        cls,
        higher: BoolArray,
        lower: BoolArray,
        scores: Array,
        lower_scores: Array | None = None,
        weight: float = 1.0,
    ) -> RankedPairs:
        """From (N,) masks and scores."""
        above, below = np.flatnonzero(higher), np.flatnonzero(lower)
        return cls(above, below, scores[above], (scores if lower_scores is None else lower_scores)[below], weight)


def concordance(comparisons: Sequence[RankedPairs], counts: FloatArray) -> FloatArray:
    """The weighted share of pairs in the right order, (R,); NaN if there is no pair or a weight is infinite.

    counts: (N, R), how often each sample occurs in each of R replicates; a column of ones is the sample
    itself.
    """
    right = np.zeros(counts.shape[1])
    pairs = np.zeros(counts.shape[1])
    with np.errstate(invalid="ignore"):  # 0 pairs of infinite weight
        for comparison in comparisons:
            order = np.argsort(comparison.lower_scores, kind="stable")
            scores = comparison.lower_scores[order]
            below = np.zeros((len(order) + 1, counts.shape[1]))
            np.cumsum(counts[comparison.lower[order]], axis=0, out=below[1:])
            higher = counts[comparison.higher]
            smaller = below[np.searchsorted(scores, comparison.higher_scores, side="left")]
            smaller_or_equal = below[np.searchsorted(scores, comparison.higher_scores, side="right")]
            right += comparison.weight * 0.5 * np.einsum("pr,pr->r", higher, smaller + smaller_or_equal)
            pairs += comparison.weight * higher.sum(axis=0) * below[-1]
        return np.where(pairs != 0, right / pairs, np.nan)


def concordance_value(comparisons: Sequence[RankedPairs], n_samples: int) -> float:
    """The share of pairs in the right order among the samples; `Undefined` if there is no pair."""
    value = float(concordance(comparisons, np.ones((n_samples, 1)))[0])
    if any(math.isinf(comparison.weight) for comparison in comparisons):
        return Undefined("the training group was not followed as long as this one: a censoring weight is infinite")
    return Undefined("no comparable pairs") if math.isnan(value) else value


def risk_comparisons(
    event_times: Array, event_observed: Array, risks: Array, censoring: FloatArray
) -> dict[str, list[RankedPairs]]:
    """The pairs of every metric, by its name: `c_index`, `c_index_uno`, `auc_year_1` ...
    `auc_year_<n_years>`.

    event_times, event_observed: (N,). risks: (N, n_years). censoring: (n_years,) G of the training group
    (`KaplanMeier.of_censoring(...).survival`).
    """
    times, observed = check_times(event_times, event_observed, risks.shape[1])
    aucs = {f"auc_year_{year + 1}": [_auc_pairs(times, observed, risks, year)] for year in range(risks.shape[1])}
    return {
        "c_index": _pairs_by_later_time(times, observed, risks, risks, censoring),
        "c_index_uno": _uno_pairs(times, observed, risks, censoring),
        **aucs,
    }


def c_index_td(event_times: Array, event_observed: Array, risks: Array, censoring: FloatArray) -> float:
    """The time-dependent concordance index of Mirai (Yala et al. 2021), weighted by inverse censoring.

    A case i is comparable with every j with a later time, or with the same time and no event. Both are scored by the
    risk at j's time, ties count one half, and the pair weighs 1 / G(t_j)^2.

    Arguments: as for `risk_comparisons`. Returns `Undefined` if no pair is comparable or a weight is infinite.
    """
    times, observed = check_times(event_times, event_observed, risks.shape[1])
    return concordance_value(_pairs_by_later_time(times, observed, risks, risks, censoring), len(risks))


def c_index_reference(event_times: Array, event_observed: Array, risks: Array, survival: FloatArray) -> float:
    """The C-index of the published benchmark, with its errors: only to reproduce its numbers.

    j is scored by the year before her time (the last year for time 0), which makes an uninformative model
    look nearly perfect, and the weights come from the event curve of the scored group, not from the censoring
    curve.

    survival: (n_years,) that event curve, `KaplanMeier.fit(event_times, event_observed).survival`.
    """
    times, observed = check_times(event_times, event_observed, risks.shape[1])
    floored = np.maximum(survival, 1e-6)
    pairs = _pairs_by_later_time(times, observed, risks, np.roll(risks, 1, axis=1), floored)
    return concordance_value(pairs, len(risks))


def check_times(event_times: Array, event_observed: Array, n_years: int = N_YEARS) -> tuple[IntArray, BoolArray]:
    """Times as int64 and observed as bool; DataError when a time is outside 0..n_years - 1."""
    times = np.asarray(event_times).astype(np.int64)
    outside = np.flatnonzero((times < 0) | (times >= n_years))
    if len(outside):
        raise DataError(
            f"{len(outside)} event times are outside 0..{n_years - 1} (first: sample {outside[0]} has "
            f"{times[outside[0]]}); make them with `survival_targets`"
        )
    return times, np.asarray(event_observed).astype(bool)


def year_classes(times: IntArray, observed: BoolArray, year: int) -> tuple[BoolArray, BoolArray]:
    """(N,) masks of the cases until `year` and of those known to be free of cancer until then."""
    cases = observed & (times <= year)
    return cases, ~cases & (times >= year)


def _auc_pairs(times: IntArray, observed: BoolArray, risks: Array, year: int) -> RankedPairs:
    cases, free = year_classes(times, observed, year)
    return RankedPairs.of(cases, free, risks[:, year])


def _uno_pairs(times: IntArray, observed: BoolArray, risks: Array, censoring: FloatArray) -> list[RankedPairs]:
    pairs = []
    for year in range(risks.shape[1] - 1):  # events of the last year are not before tau
        cases = observed & (times == year)
        later = (times > year) | ((times == year) & ~observed)
        pairs.append(RankedPairs.of(cases, later, risks[:, -1], weight=_inverse_square(censoring[year])))
    return [comparison for comparison in pairs if comparison]


def _pairs_by_later_time(
    times: IntArray, observed: BoolArray, case_risks: Array, later_risks: Array, censoring: FloatArray
) -> list[RankedPairs]:
    pairs = []
    for year in range(case_risks.shape[1]):
        at, weight = times == year, _inverse_square(censoring[year])
        for cases, later in ((observed & (times < year), at), (observed & at, at & ~observed)):
            pairs.append(RankedPairs.of(cases, later, case_risks[:, year], later_risks[:, year], weight))
    return [comparison for comparison in pairs if comparison]


def _inverse_square(probability: float) -> float:
    return float(probability) ** -2 if probability > 0 else math.inf
