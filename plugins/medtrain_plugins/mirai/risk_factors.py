"""The 34 risk factors of Mirai: their names, their width in the vector, and their columns in a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
from medtrain.errors import DataError, first_lines

if TYPE_CHECKING:
    import pandas as pd


class RiskFactor(NamedTuple):
    """One factor. width: 1 for yes or no, else the number of its categories."""

    name: str
    width: int


_RELATIVES = ("mom", "m_aunt", "p_aunt", "m_grandmother", "p_grantmother", "sister")

# In the order of the vector; names as in the published weights, with their spelling.
RISK_FACTORS: tuple[RiskFactor, ...] = (
    RiskFactor("density", 4),
    RiskFactor("binary_family_history", 1),
    RiskFactor("binary_biopsy_benign", 1),
    RiskFactor("binary_biopsy_LCIS", 1),
    RiskFactor("binary_biopsy_atypical_hyperplasia", 1),
    RiskFactor("age", 6),
    RiskFactor("menarche_age", 5),
    RiskFactor("menopause_age", 5),
    RiskFactor("first_pregnancy_age", 6),
    RiskFactor("prior_hist", 1),
    RiskFactor("race", 13),
    RiskFactor("parous", 1),
    RiskFactor("menopausal_status", 4),
    RiskFactor("weight", 7),
    RiskFactor("height", 7),
    RiskFactor("ovarian_cancer", 1),
    RiskFactor("ovarian_cancer_age", 6),
    RiskFactor("ashkenazi", 1),
    RiskFactor("brca", 4),
    *(RiskFactor(f"{relative}_bc_cancer_history", 1) for relative in _RELATIVES),
    *(RiskFactor(f"{relative}_oc_cancer_history", 1) for relative in _RELATIVES),
    RiskFactor("hrt_type", 3),
    RiskFactor("hrt_duration", 5),
    RiskFactor("hrt_years_ago_stopped", 5),
)
WIDTH = sum(factor.width for factor in RISK_FACTORS)
OFFSETS = tuple(int(end) for end in np.cumsum([0, *(factor.width for factor in RISK_FACTORS)])[:-1])

# Columns of factors have a prefix: a cohort's `race` has other categories than the factor, and `age` may be in years.
PREFIX = "factor_"
COLUMNS = {f"{PREFIX}{factor.name}": factor for factor in RISK_FACTORS}

_NO, _YES = ("0", "no", "false"), ("1", "yes", "true")
_EMPTY = ("", "nan", "none", "<na>", "unknown", "-1")


def encode_risk_factors(table: pd.DataFrame) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Values (N, 100) and which factors are known (N, 34), both float32, of the rows of a table.

    The columns `factor_<name>` are read; other columns are ignored. A factor of width 1 is 0 or 1 (or no, yes, false,
    true). A wider one is the number of its category, from 1. The categories (bins of ages, weight, height and
    durations, codes of race) are those of the published weights, so a table must have binned values. Empty cells,
    `unknown` and -1 are unknown factors: zeros, and 0 in the second array. Without a column `factor_density` the
    cohort's `density` (1..4, -1 = unknown) is the density.

    Raises DataError naming the first cells with other values.
    """
    values = np.zeros((len(table), WIDTH), dtype=np.float32)
    known = np.zeros((len(table), len(RISK_FACTORS)), dtype=np.float32)
    problems: list[str] = []
    for number, (factor, offset) in enumerate(zip(RISK_FACTORS, OFFSETS, strict=True)):
        column = f"{PREFIX}{factor.name}"
        if column not in table and factor.name == "density":
            column = "density"
        if column not in table:
            continue
        for row, cell in enumerate(table[column]):
            category = _category(cell, factor)
            if category is None:
                continue
            if category < 0:
                problems.append(f"row {row}, {column}: {cell!r} is not {_expected(factor)}")
                continue
            known[row, number] = 1.0
            if factor.width == 1:
                values[row, offset] = float(category)
            else:
                values[row, offset + category] = 1.0
    if problems:
        raise DataError(
            f"{len(problems)} risk factors of the table are not understood; correct or empty them:\n"
            + first_lines(problems)
        )
    return values, known


def _category(cell: object, factor: RiskFactor) -> int | None:
    """The 0-based category (of a binary factor: its value), None if unknown, -1 for an invalid value."""
    text = str(cell).strip().lower().removesuffix(".0")
    if text in _EMPTY:
        return None
    if factor.width == 1:
        return 1 if text in _YES else 0 if text in _NO else -1
    return int(text) - 1 if text.isdecimal() and 1 <= int(text) <= factor.width else -1


def _expected(factor: RiskFactor) -> str:
    return "0 or 1" if factor.width == 1 else f"a category 1..{factor.width}"
