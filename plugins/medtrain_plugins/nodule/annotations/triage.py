"""The triage score of a nodule: 1 (benign-looking, small) to 10, from the readers' ratings and its size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from medtrain.errors import DataError

GROWING = ("growing", "increase", "increasing", "progressive")
SIZE_STEPS = ((4.0, -1), (8.0, 0), (12.0, 1), (20.0, 2))  # (below this diameter in mm, points)
LARGEST = 3
SPICULATED = 3.5  # from this rating
SUBSOLID = 2.5  # up to this texture rating
LOWEST, HIGHEST = 1, 10


@dataclass(frozen=True)
class TriageScore:
    """The parts of a score. `value` is their sum, limited to [1, 10]; `score` the same as a whole number."""

    base: float
    size: int
    spiculation: int
    ground_glass: int
    growth: int
    score: int

    @property
    def value(self) -> float:
        """The real-valued score, within [1, 10]."""
        total = self.base + self.size + self.spiculation + self.ground_glass + self.growth
        return min(max(total, float(LOWEST)), float(HIGHEST))

    @property
    def target(self) -> float:
        """What the network learns: 0 for a score of 1, 1 for a score of 10."""
        return (self.value - LOWEST) / (HIGHEST - LOWEST)


def score_nodule(
    characteristics: Mapping[str, float],
    diameter_mm: float | None = None,
    growth: str | None = None,
    rounding: Literal["half_up", "half_even"] = "half_up",
) -> TriageScore:
    """The score of one nodule.

    characteristics: LIDC ratings by name, upper or lower case: `malignancy` 1 to 5 (limited to that range),
    `spiculation`, `texture`; others are ignored. diameter_mm: None or NaN where unknown. growth: from a comparison with
    an earlier scan, such as "increasing". rounding: of the whole number; "half_even" gives the scores of tables made
    with it. Raises DataError without a malignancy.
    """
    ratings = {name.lower(): float(value) for name, value in characteristics.items()}
    malignancy = ratings.get("malignancy", math.nan)
    if math.isnan(malignancy):
        raise DataError("triage: the nodule has no malignancy rating; leave its triage score unknown")
    base = 1 + (min(max(malignancy, 1.0), 5.0) - 1) * 9 / 4
    size = _size_points(diameter_mm)
    spiculation = 2 if ratings.get("spiculation", 0.0) >= SPICULATED else 0
    ground_glass = 1 if ratings.get("texture", math.inf) <= SUBSOLID else 0
    grown = 3 if growth is not None and growth.strip().lower() in GROWING else 0
    total = base + size + spiculation + ground_glass + grown
    # round() rounds halves to even.
    whole = math.floor(total + 0.5) if rounding == "half_up" else round(total)
    return TriageScore(base, size, spiculation, ground_glass, grown, min(max(whole, LOWEST), HIGHEST))


def score_of(target: float) -> float:
    """The score in [1, 10] of a network's probability in [0, 1]."""
    return LOWEST + (HIGHEST - LOWEST) * target


def risk_group(probability: float) -> Literal["high", "medium", "low"]:
    """Of the network's triage probability: high from 0.7, low below 0.3."""
    return "high" if probability >= 0.7 else "low" if probability < 0.3 else "medium"


def summarize_triage(probabilities: Iterable[float]) -> dict[str, float | int | None]:
    """The number of detections in each group, and the highest probability (None without detections)."""
    known = list(probabilities)
    groups = [risk_group(value) for value in known]
    return {
        "num_detections": len(known),
        "max_triage_score": max(known, default=None),
        "high_risk_count": groups.count("high"),
        "medium_risk_count": groups.count("medium"),
        "low_risk_count": groups.count("low"),
    }


def _size_points(diameter_mm: float | None) -> int:
    if diameter_mm is None or math.isnan(diameter_mm):
        return 0
    return next((points for limit, points in SIZE_STEPS if diameter_mm < limit), LARGEST)
