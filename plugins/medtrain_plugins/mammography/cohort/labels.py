"""Labels of the risk models: from the two numbers of a table row to yearly targets, masks, survival times.

A row has the number of years until cancer was found (`years_to_cancer`; empty, or a large number such as 100, without
cancer) and the number of years of follow-up. The model predicts, for each year y = 0..4, cancer within y + 1 years. A
year is supervised while the outcome is known: up to the event for a case, up to the last contact for the others. Years
0 and 1 after the exam count as one year, and a cancer after the last predicted year makes a control.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from medtrain.errors import DataError, first_lines

N_YEARS = 5

IntArray = npt.NDArray[np.int64]
Values = Sequence[Any] | npt.NDArray[Any]


class SurvivalTargets(NamedTuple):
    """Labels of N samples over n years.

    target: (N, n) float32, 1 from the year of the event on. mask: (N, n) float32, 1 while the year's outcome is known.
    event_time: (N,) int64, 0-based year of the event or of the last contact. event_observed: (N,) int64, 1 = cancer
    within n years.
    """

    target: npt.NDArray[np.float32]
    mask: npt.NDArray[np.float32]
    event_time: IntArray
    event_observed: IntArray


def clean_ttc(years_to_cancer: Values, n_years: int = N_YEARS) -> IntArray:
    """Whole years to cancer, (N,) int64 from 1: fractions are cut, 0 counts as 1, empty as `n_years` + 1 (no
    cancer).

    Raises DataError for values that are not a number of years (see `label_problems`).
    """
    return _clean(years_to_cancer, missing=n_years + 1, column="years to cancer")


def clean_followup(years_to_followup: Values) -> IntArray:
    """Whole years of follow-up, (N,) int64 from 1: fractions are cut, 0 and empty count as 1.

    Raises DataError for values that are not a number of years (see `label_problems`).
    """
    return _clean(years_to_followup, missing=1, column="years of follow-up")


def survival_targets(years_to_cancer: Values, years_to_followup: Values, n_years: int = N_YEARS) -> SurvivalTargets:
    """Targets, masks and survival times of N table rows, raw (with empty cells) or cleaned.

    Raises DataError naming the first impossible rows (0-based) instead of making a plausible label of them.
    Source: the masked cumulative labels of Mirai (Yala et al. 2021).
    """
    problems = label_problems(years_to_cancer, years_to_followup, n_years)
    found = [f"row {row}: {problem}" for row, problem in enumerate(problems) if problem]
    if found:
        raise DataError(
            f"{len(found)} of {len(problems)} rows have impossible labels; correct or drop them:\n" + first_lines(found)
        )
    event_year = clean_ttc(years_to_cancer, n_years) - 1
    observed = event_year < n_years
    time = np.where(observed, event_year, np.minimum(clean_followup(years_to_followup), n_years) - 1)
    years = np.arange(n_years)
    return SurvivalTargets(
        target=((years >= time[:, None]) & observed[:, None]).astype(np.float32),
        mask=(years <= time[:, None]).astype(np.float32),
        event_time=time.astype(np.int64),
        event_observed=observed.astype(np.int64),
    )


def label_problems(years_to_cancer: Values, years_to_followup: Values, n_years: int = N_YEARS) -> list[str | None]:
    """For each row, the reason why it has no label, or None.

    Negative, infinite and non-numeric values are impossible. So is a cancer within `n_years` that lies more than one
    year after the last contact; one year of difference is possible if a cohort counts the years to cancer by calendar
    and the follow-up in whole elapsed years (December 2015 to January 2017: 2 and 1).
    """
    if len(years_to_cancer) != len(years_to_followup):
        raise DataError(
            f"{len(years_to_cancer)} values for the years to cancer, but {len(years_to_followup)} "
            "for the years of follow-up"
        )
    problems: list[str | None] = []
    pairs = zip(
        _numbers(years_to_cancer),
        _numbers(years_to_followup),
        years_to_cancer,
        years_to_followup,
        strict=True,
    )
    for ttc, followup, raw_ttc, raw_followup in pairs:
        problem = _value_problem("years to cancer", ttc, raw_ttc)
        problem = problem or _value_problem("years of follow-up", followup, raw_followup)
        if problem is None and ttc is not None and followup is not None:
            event, last = int(ttc), int(followup)
            if last + 1 < event <= n_years:
                problem = f"cancer after {raw_ttc} years, but the follow-up ends after {raw_followup}"
        problems.append(problem)
    return problems


def _numbers(values: Values) -> list[float | None]:
    """Each value as a number: None for an empty cell, NaN for other texts."""
    numbers: list[float | None] = []
    for value in values:
        if value is None or value != value or (isinstance(value, str) and not value.strip()):
            numbers.append(None)
            continue
        try:
            numbers.append(float(value))
        except (TypeError, ValueError):
            numbers.append(float("nan"))
    return numbers


def _value_problem(column: str, number: float | None, raw: Any) -> str | None:
    if number is None:
        return None
    if not np.isfinite(number):
        return f"{column}: {raw!r} is not a number of years"
    return f"{column}: {raw} is negative" if number < 0 else None


def _clean(values: Values, missing: int, column: str) -> IntArray:
    numbers = _numbers(values)
    for row, (number, raw) in enumerate(zip(numbers, values, strict=True)):
        if problem := _value_problem(column, number, raw):
            raise DataError(f"row {row}: {problem}; correct or drop the row")
    years = [missing if number is None else int(number) for number in numbers]
    return np.maximum(np.array(years, dtype=np.int64), 1)
