"""Confidence intervals by a bootstrap of patients: seeded, stratified by case and control, percentile limits.

Samples of one patient are not independent, so patients are drawn, not samples: those with a cancer inside the window in
any of their samples, and the others, each group with replacement to its own size. A replicate is the number of times
each sample occurs in it, so `survival.concordance` can score hundreds of replicates at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from medtrain_plugins.mammography.evaluation.survival import FloatArray, RankedPairs, concordance

Array = npt.NDArray[Any]

# Entries of one block of counts (samples x replicates): 16 MB as float64.
BLOCK = 2_000_000


def bootstrap(
    comparisons: Mapping[str, Sequence[RankedPairs]],
    patient_id: Array,
    event_observed: Array,
    replicates: int = 2000,
    seed: int = 0,
) -> dict[str, FloatArray]:
    """Scores of each metric in every replicate, (replicates,); NaN where a replicate has no comparable pairs.

    comparisons: metric -> its pairs (`survival.risk_comparisons`). patient_id, event_observed: (N,).
    """
    scores: dict[str, list[FloatArray]] = {name: [] for name in comparisons}
    for counts in replicate_counts(patient_id, event_observed, replicates, seed):
        for name, pairs in comparisons.items():
            scores[name].append(concordance(pairs, counts))
    return {name: np.concatenate(blocks) if blocks else np.empty(0) for name, blocks in scores.items()}


def replicate_counts(patient_id: Array, event_observed: Array, replicates: int, seed: int) -> Iterator[FloatArray]:
    """How often each sample occurs in each replicate: blocks of shape (N, some replicates), float64."""
    generator = np.random.default_rng(seed)
    patients, patient_of = np.unique(np.asarray(patient_id).astype(str), return_inverse=True)
    is_case = np.zeros(len(patients), dtype=bool)
    np.logical_or.at(is_case, patient_of, np.asarray(event_observed).astype(bool))
    strata = [np.flatnonzero(is_case), np.flatnonzero(~is_case)]
    for first in range(0, replicates, width := max(1, BLOCK // max(1, len(patient_of)))):
        size = min(width, replicates - first)
        counts = np.zeros((len(patients), size))
        for members in strata:
            if len(members):
                drawn = generator.integers(len(members), size=(len(members), size))
                cells = drawn * size + np.arange(size)
                occurrences = np.bincount(cells.ravel(), minlength=len(members) * size)
                counts[members] = occurrences.reshape(len(members), size)
        yield counts[patient_of]


def percentile_summary(scores: FloatArray, alpha: float = 0.05) -> dict[str, float | int | None]:
    """Mean, percentile limits and number of the replicates with a value; None if none has one.

    Keys: `mean`, `low`, `high`, `valid`.
    """
    defined = scores[~np.isnan(scores)]
    if not len(defined):
        return {"mean": None, "low": None, "high": None, "valid": 0}
    low, high = np.percentile(defined, [100 * alpha / 2, 100 * (1 - alpha / 2)])
    return {"mean": float(defined.mean()), "low": float(low), "high": float(high), "valid": len(defined)}
