"""Average precision: of a protocol's hits, and of boxes at several overlaps as in COCO."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from medtrain_plugins.nodule.annotations.tables import Findings
from medtrain_plugins.nodule.evaluation.froc import Marks
from medtrain_plugins.nodule.evaluation.matching import UNMEASURED_RADIUS, Matching, Outcome

Array = npt.NDArray[Any]

OVERLAPS = tuple(round(0.1 + 0.05 * step, 2) for step in range(9))  # 0.1, 0.15, ... 0.5
RECALLS = np.linspace(0, 1, 101)


def average_precision(score: Array, true: Array, nodules: int) -> float:
    """The mean over 101 recalls 0, 0.01, ... 1 of the best precision at that recall or higher; 0 beyond the last.

    score (M,), true (M,) bool; detections of equal score enter together. NaN without nodules.
    """
    if not nodules:
        return math.nan
    order = np.argsort(-score, kind="stable")
    score, true = score[order], true[order]
    ends = np.flatnonzero(np.append(np.diff(score) != 0, True)) if len(score) else np.zeros(0, dtype=np.int64)
    found = np.cumsum(true)[ends]
    best = np.maximum.accumulate((found / (ends + 1))[::-1])[::-1]
    first = np.searchsorted(found / nodules, RECALLS, side="left")
    return float(np.append(best, 0.0)[first].mean())


def protocol_precision(marks: Marks) -> float:
    """Average precision of the true and false positives of a matching."""
    return average_precision(marks.score, marks.true, int(marks.nodules.sum()))


def box_precision(annotations: Findings, candidates: Findings, matching: Matching) -> dict[float, float]:
    """Average precision by overlap (IoU) of cubes as wide as the diameters.

    Each candidate, most suspicious first, takes the free nodule of its scan with the largest overlap, which must reach
    the limit. Candidates without a diameter overlap nothing. Candidates that the matching ignores (on irrelevant
    findings, duplicates) count only if they overlap a nodule; those over the cap and of other scans never count.
    """
    assert candidates.score is not None
    scored = (matching.outcome != Outcome.CAPPED) & (matching.outcome != Outcome.UNKNOWN_SERIES)
    pairs = _overlapping(annotations, candidates, matching, scored)
    pairs.sort(key=lambda pair: (-candidates.score[pair[0]], pair[0], -pair[2]))  # type: ignore[index]
    result = {}
    for least in OVERLAPS:
        taken: set[int] = set()
        true = np.zeros(len(candidates), dtype=np.bool_)
        for mark, nodule, overlap in pairs:
            if overlap >= least and nodule not in taken and not true[mark]:
                taken.add(nodule)
                true[mark] = True
        counted = scored & (true | (matching.outcome != Outcome.IGNORED))
        result[least] = average_precision(candidates.score[counted], true[counted], len(matching.nodules))
    return result


def _overlapping(
    annotations: Findings, candidates: Findings, matching: Matching, scored: Array
) -> list[tuple[int, int, float]]:
    """(candidate, annotation, IoU) of pairs that overlap at least by the smallest of `OVERLAPS`."""
    marks = np.flatnonzero(scored)
    marks = marks[np.argsort(matching.candidate_scan[marks], kind="stable")]
    starts = np.searchsorted(matching.candidate_scan[marks], np.arange(len(matching.scans) + 1))
    pairs = []
    for nodule, scan in zip(matching.nodules.tolist(), matching.nodule_scan.tolist(), strict=True):
        near = marks[starts[scan] : starts[scan + 1]]
        diameter = annotations.diameter[nodule]
        width = diameter if diameter >= 0 else 2 * UNMEASURED_RADIUS
        other = candidates.diameter[near][:, None]
        apart = np.abs(candidates.xyz[near] - annotations.xyz[nodule])
        sides = np.clip(np.minimum(np.minimum(width, other), (width + other) / 2 - apart), 0, None)
        shared = np.nan_to_num(sides.prod(axis=1))
        overlap = shared / np.maximum(width**3 + np.nan_to_num(other[:, 0]) ** 3 - shared, 1e-12)
        pairs += [(int(near[i]), nodule, float(overlap[i])) for i in np.flatnonzero(overlap >= OVERLAPS[0])]
    return pairs
