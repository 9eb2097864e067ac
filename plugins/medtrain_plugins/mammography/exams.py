"""Exams and samples: which images of a cohort belong together, and which exams follow each other.

One exam is what a woman had on one date (CSAW-CC: in one year). Breasts are the rows of `breasts`, one per woman,
exam and side; samples of the longitudinal models are made by setting a breast beside its own previous one.
"""

from __future__ import annotations

import pandas as pd
from medtrain.errors import DataError

from .cohort import Cohort

BREAST = ["patient_id", "exam_id", "laterality"]
VIEWS = ["cc", "mlo"]
MAX_GAP = 5.0  # years; the time encoding of the models ends there
DAYS_PER_YEAR = 365.25


def without_repeats(table: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """The table with one image per woman, exam, side and view, and how many repeats were left out.

    Of the images of one view taken on one day the first by file name is kept: they show one moment, so that they
    must neither be paired with each other nor stand for it in an order that the file system decides.
    """
    repeated = table.sort_values("file_name", kind="stable").duplicated([*BREAST, "view"]).reindex(table.index)
    return table[~repeated].reset_index(drop=True), int(repeated.sum())


def breasts(table: pd.DataFrame) -> pd.DataFrame:
    """One row per woman, exam and side: image paths in `cc` and `mlo` (NaN where not taken), the other columns of its
    CC image (of the MLO image where there is no CC), sorted by woman, side and exam.
    """
    table, _ = without_repeats(table)
    paths = table.pivot(index=BREAST, columns="view", values="image_path")
    paths = paths.rename(columns=str.lower).reindex(columns=VIEWS)
    facts = table.sort_values("view", kind="stable").drop_duplicates(BREAST).set_index(BREAST)
    facts = facts.drop(columns=["image_path", "file_name", "view"])
    return facts.join(paths).reset_index().sort_values(["patient_id", "laterality", "exam_id"], ignore_index=True)


def years_between(earlier: pd.DataFrame, later: pd.DataFrame) -> pd.Series:
    """Years between the exams of two tables of equal rows: days / 365.25, or the difference of years where the cohort
    has no dates; within [0, 5].
    """
    if "exam_date" in later:
        gap = (later["exam_date"] - earlier["exam_date"]).dt.days / DAYS_PER_YEAR
    else:
        gap = (later["exam_year"] - earlier["exam_year"]).astype("float64")
    return gap.clip(0.0, MAX_GAP)


def lmv_pairs(cohort: Cohort) -> pd.DataFrame:
    """The samples of LMV-Net: a breast and its previous exam, both with CC and MLO.

    Consecutive are the exams of one side; one that lacks a view is not skipped, so that the change a sample shows is
    always the latest. Labels and facts are those of the current exam (its CC image).

    Returns one row per sample, sorted by woman, exam and side: `sample_id`, `patient_id`, `exam_id`, `laterality`,
    the paths `current_cc`, `current_mlo`, `previous_cc`, `previous_mlo`, `time_gap` (years) and the columns of
    `Cohort.table`. Raises DataError when there is none.
    """
    current = breasts(cohort.table)
    previous = current.groupby(["patient_id", "laterality"]).shift(1)
    complete = current[VIEWS].notna().all(axis=1) & previous[VIEWS].notna().all(axis=1)
    current, previous = current[complete], previous[complete]
    if current.empty:
        group = " and ".join(cohort.groups)
        raise DataError(
            f"no samples{' in ' + group if group else ''}: no breast has CC and MLO images in two consecutive exams"
        )
    pairs = current.rename(columns={view: f"current_{view}" for view in VIEWS}).assign(
        previous_cc=previous["cc"],
        previous_mlo=previous["mlo"],
        time_gap=years_between(previous, current),
        sample_id=current["exam_id"] + "_" + current["laterality"],
    )
    return pairs.sort_values(BREAST, ignore_index=True)
