"""Exams and samples: which images of a cohort belong together, and which exams follow each other.

One exam has all images of a woman on one date (CSAW-CC: in one year). The tables of samples have one row per sample:
`sample_id`, `patient_id`, `exam_id`, columns of image paths, and the columns of `Cohort.table`; labels and facts are
those of the current exam. Samples of the longitudinal models combine an image, a breast or an exam with its own
previous one.
"""

from __future__ import annotations

import pandas as pd
from medtrain.errors import DataError

from medtrain_plugins.mammography.cohort.cohort import Cohort

EXAM = ["patient_id", "exam_id"]
BREAST = [*EXAM, "laterality"]
VIEWS = ["cc", "mlo"]
EXAM_VIEWS = ["L_CC", "L_MLO", "R_CC", "R_MLO"]
LABELS = ["years_to_cancer", "years_to_followup"]
IMAGE_FACTS = ["image_path", "file_name", "view"]  # columns about one image only
MAX_GAP = 5.0  # years; the time encoding of the models ends there
DAYS_PER_YEAR = 365.25


def without_repeats(table: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """The table with one image per woman, exam, side and view, and how many repeats were left out.

    Of the images of one view on one day, the first by file name is kept. They show the same moment, so they must not be
    paired with each other, and the choice must not depend on the file system.
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
    """Years between the exams of two tables, row by row: days / 365.25, or the difference of years without dates;
    within [0, 5].
    """
    if "exam_date" in later:
        gap = (later["exam_date"] - earlier["exam_date"]).dt.days / DAYS_PER_YEAR
    else:
        gap = (later["exam_year"] - earlier["exam_year"]).astype("float64")
    return gap.clip(0.0, MAX_GAP)


def lmv_pairs(cohort: Cohort) -> pd.DataFrame:
    """The samples of LMV-Net: a breast and its previous exam, both with CC and MLO.

    Exams are consecutive by side. An exam that lacks a view is not skipped, so a sample always shows the latest change.
    Facts are those of the current CC image.

    Adds the paths `current_cc`, `current_mlo`, `previous_cc`, `previous_mlo` and `time_gap` (years); sorted by woman,
    exam and side. Raises DataError if there is none.
    """
    current = breasts(cohort.table)
    previous = current.groupby(["patient_id", "laterality"]).shift(1)
    complete = current[VIEWS].notna().all(axis=1) & previous[VIEWS].notna().all(axis=1)
    current, previous = current[complete], previous[complete]
    _refuse_none(current, cohort, "no breast has CC and MLO images in two consecutive exams")
    pairs = current.rename(columns={view: f"current_{view}" for view in VIEWS}).assign(
        previous_cc=previous["cc"],
        previous_mlo=previous["mlo"],
        time_gap=years_between(previous, current),
        sample_id=current["exam_id"] + "_" + current["laterality"],
    )
    return pairs.sort_values(BREAST, ignore_index=True)


def view_pairs(cohort: Cohort) -> pd.DataFrame:
    """The samples of ImgFeatAlign, OA-BreaCR and MammoRegNet: an image and the same view of the breast's previous exam.

    Adds the paths `current` and `previous`, the names `current_image_id` and `previous_image_id`, `time_gap` (years)
    and, where there are labels, `years_to_cancer_prior` and `years_to_followup_prior`; sorted by woman, exam, side and
    view. Raises DataError when there is none.
    """
    table, _ = without_repeats(cohort.table)
    current = table.sort_values(["patient_id", "laterality", "view", "exam_id"], ignore_index=True)
    previous = current.groupby(["patient_id", "laterality", "view"]).shift(1)
    paired = previous["image_path"].notna()
    current, previous = current[paired], previous[paired]
    _refuse_none(current, cohort, "no view of a breast was taken in two exams")
    pairs = current.rename(columns={"image_path": "current", "file_name": "current_image_id"}).assign(
        previous=previous["image_path"],
        previous_image_id=previous["file_name"],
        time_gap=years_between(previous, current),
        sample_id=current["exam_id"] + "_" + current["laterality"] + "_" + current["view"],
        **{f"{name}_prior": previous[name] for name in LABELS if name in current},
    )
    return pairs.sort_values([*BREAST, "view"], ignore_index=True)


def all_exams(table: pd.DataFrame) -> pd.DataFrame:
    """One row per woman and exam, sorted so: image paths in `L_CC`, `L_MLO`, `R_CC`, `R_MLO` (NaN where not taken), the
    other columns of its image with the earliest cancer (of its first image where there is none).
    """
    table, _ = without_repeats(table)
    names = table["laterality"] + "_" + table["view"]
    paths = table.assign(name=names).pivot(index=EXAM, columns="name", values="image_path")
    by = ["years_to_cancer"] if "years_to_cancer" in table else []
    facts = table.sort_values([*by, *BREAST, "view"], kind="stable").drop_duplicates(EXAM).set_index(EXAM)
    facts = facts.drop(columns=[*IMAGE_FACTS, "laterality"])
    exams = facts.join(paths.reindex(columns=EXAM_VIEWS)).reset_index().sort_values(EXAM, ignore_index=True)
    return exams.assign(sample_id=exams["exam_id"])


def complete_exams(cohort: Cohort) -> pd.DataFrame:
    """The samples of Mirai: every exam with all four views, as a row of `all_exams`. Raises DataError without one."""
    exams = all_exams(cohort.table)
    exams = exams[exams[EXAM_VIEWS].notna().all(axis=1)].reset_index(drop=True)
    _refuse_none(exams, cohort, "no exam has all four views")
    return exams


def visit_column(visit: int, view: str) -> str:
    """The column of `visits` with the paths of a view, 0 = the oldest visit."""
    return f"visit_{visit}_{view}"


def visits(cohort: Cohort, count: int) -> pd.DataFrame:
    """The samples of VMRA-MaR: an exam with all four views and up to `count` - 1 such exams before it, at least one.

    In CSAW-CC incomplete exams are skipped; with dates (EMBED) an incomplete exam ends the sequence, so a sample always
    shows the latest change. Adds the paths `visit_<k>_<view>`, k = 0 the oldest and `count` - 1 the current exam, NaN
    before a woman's first visit, and `time_gap` (years) to the exam before. Raises DataError without one.
    """
    exams = all_exams(cohort.table)
    complete = exams[EXAM_VIEWS].notna().all(axis=1)
    if cohort.layout == "csaw":
        exams, complete = exams[complete].reset_index(drop=True), complete[complete].reset_index(drop=True)
    samples = exams
    unbroken = complete
    for back in range(count):
        earlier = exams.groupby("patient_id").shift(back)
        unbroken = unbroken & earlier[EXAM_VIEWS].notna().all(axis=1)
        names = {view: visit_column(count - 1 - back, view) for view in EXAM_VIEWS}
        samples = samples.join(earlier[EXAM_VIEWS].where(unbroken).rename(columns=names))
        if back == 1:
            samples = samples.assign(time_gap=years_between(earlier, exams))
    paired = samples[visit_column(count - 2, EXAM_VIEWS[0])].notna()
    samples = samples[paired].drop(columns=EXAM_VIEWS).reset_index(drop=True)
    _refuse_none(samples, cohort, "no woman has two consecutive exams with all four views")
    return samples


def _refuse_none(samples: pd.DataFrame, cohort: Cohort, reason: str) -> None:
    if samples.empty:
        group = " and ".join(cohort.groups)
        raise DataError(f"no samples{' in ' + group if group else ''}: {reason}")
