"""How a metric compares runs: scores, differences and their bootstrap limits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any

from medtrain.protocols.metric import Undefined
from medtrain.protocols.report import Section
from medtrain.statistics import AUCTest, FloatArray, bootstrap_p_value, percentile_interval

if TYPE_CHECKING:
    pass

# metric value -> run -> what there is of it
Values = Mapping[str, Mapping[str, float]]


Draws = Mapping[str, Mapping[str, FloatArray]]


@dataclass(frozen=True)
class Score:
    """One run's value with its bootstrap limits; NaN, with the reason, where there is none."""

    value: float
    low: float
    high: float
    valid: int
    reason: str = ""


@dataclass(frozen=True)
class Difference:
    """`first` minus `second`: value, bootstrap limits, two-sided bootstrap p-value; further tests by name."""

    first: str
    second: str
    value: float
    low: float
    high: float
    p: float
    valid: int
    reason: str = ""
    tests: dict[str, AUCTest] = field(default_factory=dict)


@dataclass
class Unit:
    """All values of all runs over one set of things that every run scored.

    name: what is scored ("sample", "exam"). counts: how many of what. scores: value -> run -> Score. differences:
    value -> one for each pair of runs, in the order of the runs.
    """

    name: str
    counts: dict[str, int]
    scores: dict[str, dict[str, Score]]
    differences: dict[str, list[Difference]]

    @classmethod
    def of(cls, name: str, counts: dict[str, int], values: Values, draws: Draws) -> Unit:
        """From values and their bootstrap draws (R,), draw r of every run made of the same samples."""
        scores = {value: {run: _score(of[run], draws[value][run]) for run in of} for value, of in values.items()}
        differences = {
            value: [_difference(a, b, of, draws[value]) for a, b in combinations(of, 2)] for value, of in values.items()
        }
        return cls(name, counts, scores, differences)


@dataclass
class Comparison:
    """What one metric (or several) makes of several runs. facts: more for the JSON. sections: more for the report."""

    units: list[Unit]
    facts: dict[str, Any] = field(default_factory=dict)
    sections: list[Section] = field(default_factory=list)


def _score(value: float, draws: FloatArray) -> Score:
    if math.isnan(value):
        reason = value.reason if isinstance(value, Undefined) else "not a number"
        return Score(math.nan, math.nan, math.nan, 0, reason)
    return Score(float(value), *percentile_interval(draws))


def _difference(first: str, second: str, values: Mapping[str, float], draws: Mapping[str, FloatArray]) -> Difference:
    for run in (first, second):
        if math.isnan(values[run]):
            reason = f"{run}: {_score(values[run], draws[run]).reason}"
            return Difference(first, second, math.nan, math.nan, math.nan, math.nan, 0, reason)
    differences = draws[first] - draws[second]
    low, high, valid = percentile_interval(differences)
    value = float(values[first]) - float(values[second])
    return Difference(first, second, value, low, high, bootstrap_p_value(differences), valid)
