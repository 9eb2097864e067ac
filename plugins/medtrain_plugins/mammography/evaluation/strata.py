"""Risk metrics with confidence intervals by unit (sample, exam, patient) and stratum (density, race, type).

Models score different things (a pair of views, a breast, an exam). To be comparable, they are also scored by exam (the
mean risk of its samples) and by patient (her latest exam).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from medtrain.protocols import Array, Rows, Undefined

from medtrain_plugins.mammography.cohort.layouts import EMBED_CANCER_TYPES, RACES
from medtrain_plugins.mammography.evaluation.bootstrap import bootstrap, percentile_summary
from medtrain_plugins.mammography.evaluation.survival import FloatArray, concordance_value, risk_comparisons

DENSITIES: dict[int, str] = {1: "A", 2: "B", 3: "C", 4: "D"}


UNKNOWN = "unknown"

# A stratum with fewer cases or controls is counted, not scored: its AUCs would be 0 or 1 by chance.
MIN_PATIENTS = 5


def group_report(
    rows: Rows, censoring: FloatArray, replicates: int, seed: int, min_patients: int = 0
) -> dict[str, Any]:
    """Counts, and every metric with its interval, of one set of rows.

    Returns `n`, `patients`, `events`, `reason` (why it is too small for scores, or None) and `metrics`: name -> {value,
    mean, low, high, valid, reason}, None if undefined.
    """
    observed = rows["event_observed"].astype(bool)
    patients = rows["patient_id"].astype(str)
    cases = np.unique(patients[observed])
    n_patients = len(np.unique(patients))
    report: dict[str, Any] = {
        "n": len(patients),
        "patients": n_patients,
        "events": int(observed.sum()),
        "reason": _too_small(len(cases), n_patients - len(cases), min_patients),
        "metrics": {},
    }
    if report["reason"]:
        return report
    comparisons = risk_comparisons(rows["event_time"], observed, rows["risk"], censoring)
    scores = bootstrap(comparisons, patients, observed, replicates, seed)
    for name, pairs in comparisons.items():
        value = concordance_value(pairs, len(patients))
        report["metrics"][name] = {
            "value": None if math.isnan(value) else value,
            **percentile_summary(scores[name]),
            "reason": value.reason if isinstance(value, Undefined) else None,
        }
    return report


def strata_report(
    rows: Rows,
    censoring: FloatArray,
    replicates: int,
    seed: int,
    cancer_types: Mapping[int, str] = EMBED_CANCER_TYPES,
) -> dict[str, dict[str, Any]]:
    """`group_report`s by `density`, `race` and `cancer_type`, if the rows have these columns.

    Only categories that occur are listed; codes outside the tables are "unknown". Controls have no cancer
    type, so the cases of each type are compared with all controls.
    """
    tables: dict[str, Mapping[int, str]] = {"density": DENSITIES, "race": dict(enumerate(RACES))}
    report: dict[str, dict[str, Any]] = {}
    for column, table in tables.items():
        if column in rows:
            names = _names(rows[column], table)
            report[column] = {
                name: group_report(select(rows, names == name), censoring, replicates, seed, MIN_PATIENTS)
                for name in [*table.values(), UNKNOWN]
                if (names == name).any()
            }
    if "cancer_type" in rows:
        names = _names(rows["cancer_type"], cancer_types)
        cases = rows["event_observed"].astype(bool)
        report["cancer_type"] = {
            name: group_report(select(rows, ~cases | (names == name)), censoring, replicates, seed, MIN_PATIENTS)
            for name in [*cancer_types.values(), UNKNOWN]
            if (cases & (names == name)).any()
        }
    return report


def exam_rows(rows: Rows) -> Rows:
    """One row per exam (`patient_id` and `exam_id` together): the mean risk of its samples.

    The other columns are those of its sample with the earliest event or, without an event, the shortest follow-up.
    """
    keys = np.array([f"{patient}\0{exam}" for patient, exam in zip(rows["patient_id"], rows["exam_id"], strict=True)])
    _, exam_of, sizes = np.unique(keys, return_inverse=True, return_counts=True)
    order = np.lexsort((rows["event_time"], -rows["event_observed"].astype(np.int64), exam_of))
    exams = select(rows, order[np.unique(exam_of[order], return_index=True)[1]])
    total = np.zeros((len(sizes), rows["risk"].shape[1]))
    np.add.at(total, exam_of, rows["risk"])
    exams["risk"] = total / sizes[:, None]
    return exams


def patient_rows(rows: Rows) -> Rows:
    """One row per patient: her latest exam, from rows by exam.

    That is the exam with the shortest time to the event or to the last contact. Among equal times (they end at the last
    year), it is one followed by an event, then the last in the order of `exam_id`.
    """
    _, exam_rank = np.unique(rows["exam_id"].astype(str), return_inverse=True)
    _, patient_of = np.unique(rows["patient_id"].astype(str), return_inverse=True)
    order = np.lexsort((-exam_rank, -rows["event_observed"].astype(np.int64), rows["event_time"], patient_of))
    return select(rows, order[np.unique(patient_of[order], return_index=True)[1]])


def select(rows: Rows, which: npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> Rows:
    """The rows of a mask, or of a list of indices."""
    return {name: column[which] for name, column in rows.items()}


def _names(codes: Array, table: Mapping[int, str]) -> Array:
    return np.array([table.get(int(code), UNKNOWN) for code in codes], dtype=object)


def _too_small(cases: int, controls: int, min_patients: int) -> str | None:
    for number, what in ((cases, "with"), (controls, "without")):
        if number < min_patients:
            return f"patients {what} cancer: {number}, fewer than {min_patients}"
    return None


def unusable(rows: Rows) -> str | None:
    """The reason why nothing can be computed from these rows, or None."""
    if not len(rows.get("risk", ())):
        return "no samples"
    bad = np.flatnonzero(~np.isfinite(rows["risk"]).all(axis=1))
    if not len(bad):
        return None
    first = f" (first: {rows['sample_id'][bad[0]]})" if "sample_id" in rows else ""
    return f"the risks of {len(bad)} samples are not finite{first}"
