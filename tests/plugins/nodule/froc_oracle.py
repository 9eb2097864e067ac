"""The rules of the LUNA16 challenge once more, told slowly: loops, dictionaries and scikit-learn's ROC curve."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import roc_curve

Finding = tuple[str, float, float, float, float]  # series, x, y, z, diameter or score
RATES = (0.125, 0.25, 0.5, 1, 2, 4, 8)


def score(
    annotations: Sequence[Finding],
    candidates: Sequence[Finding],
    excluded: Sequence[Finding],
    scans: Sequence[str],
    max_marks: int = -1,
) -> dict[str, Any]:
    """CPM, sensitivities and counts."""
    truth, scores, left_out, of_scan = [], [], [], []
    counts = dict.fromkeys(("true_positives", "false_positives", "false_negatives", "ignored", "duplicates"), 0)
    counts |= {"scans": len(scans), "candidates": 0, "nodules": 0}
    for scan in scans:
        marks = dict(enumerate(mark for mark in candidates if mark[0] == scan))
        if 0 < max_marks < len(marks):
            border = sorted((mark[4] for mark in marks.values()), reverse=True)[max_marks]
            marks = {key: mark for key, mark in marks.items() if mark[4] > border}
        counts["candidates"] += len(marks)
        unexplained = dict(marks)
        findings = [(finding, True) for finding in annotations if finding[0] == scan]
        findings += [(finding, False) for finding in excluded if finding[0] == scan]
        for (_, x, y, z, diameter), is_nodule in findings:
            radius = 5.0 if diameter < 0 else diameter / 2
            inside = {
                key: mark
                for key, mark in marks.items()
                if math.pow(x - mark[1], 2) + math.pow(y - mark[2], 2) + math.pow(z - mark[3], 2) < math.pow(radius, 2)
            }
            known = [key for key in inside if unexplained.pop(key, None) is not None]
            if not is_nodule:
                counts["ignored"] += len(known)
                continue
            counts["nodules"] += 1
            counts["duplicates"] += max(0, len(inside) - 1)
            counts["true_positives" if inside else "false_negatives"] += 1
            truth.append(1.0)
            scores.append(max(mark[4] for mark in inside.values()) if inside else -1e9)
            left_out.append(not inside)
            of_scan.append(scan)
        counts["false_positives"] += len(unexplained)
        for mark in unexplained.values():
            truth.append(0.0)
            scores.append(mark[4])
            left_out.append(False)
            of_scan.append(scan)
    x, y = curve(truth, scores, left_out, len(scans))
    sensitivities = np.interp(RATES, x, y)
    return {
        "counts": counts,
        "sensitivities": sensitivities.tolist(),
        "cpm": float(sensitivities.mean()),
        "vectors": (np.array(truth), np.array(scores), np.array(left_out), np.array(of_scan, dtype=object)),
    }


def curve(truth: Any, scores: Any, left_out: Any, scans: int) -> tuple[Any, Any]:
    """False positives per scan and sensitivity, by way of a ROC curve without the nodules that were not found."""
    kept_truth = [t for t, out in zip(truth, left_out, strict=True) if not out]
    kept_scores = [s for s, out in zip(scores, left_out, strict=True) if not out]
    found, lesions = sum(kept_truth), sum(truth)
    false_rate, true_rate, _ = roc_curve(kept_truth, kept_scores)
    if sum(truth) == len(truth):
        x = np.zeros(len(false_rate))
    else:
        x = false_rate * (len(kept_scores) - found) / scans
    return x, (true_rate * found) / lesions


def bootstrap(vectors: tuple[Any, ...], scans: Sequence[str], replicates: int, seed: int) -> Any:
    """Sensitivities (replicates, 7) of resamples of the scans, drawn as the challenge's evaluator draws them."""
    truth, scores, left_out, of_scan = vectors
    state = np.random.RandomState(seed)
    values = []
    for _ in range(replicates):
        drawn = np.array(scans, dtype=object)[state.randint(len(scans), size=len(scans))]
        rows = np.concatenate([np.flatnonzero(of_scan == scan) for scan in drawn])
        x, y = curve(truth[rows], scores[rows], left_out[rows], len(scans))
        values.append(np.interp(RATES, x, y))
    return np.array(values)
