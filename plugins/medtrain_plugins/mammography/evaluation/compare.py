"""Comparison of risk models by exam and by patient, over the exams that all of them scored.

Models score different things (a pair of views, a breast, an exam) of different exams (some need a previous one). So a
comparison does not use samples: every run has one risk per exam (the mean of its samples), only exams that every run
scored are kept, and each patient has her latest one of these. Weights, labels and resamples are the same for all runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Protocol

import numpy as np
from matplotlib.figure import Figure
from medtrain import COLOURS
from medtrain.errors import DataError, first_lines
from medtrain.protocols import Comparison, Rows, Section, Unit
from medtrain.statistics import delong

from medtrain_plugins.mammography.evaluation.bootstrap import replicate_counts
from medtrain_plugins.mammography.evaluation.plots import GREY, roc_curve
from medtrain_plugins.mammography.evaluation.strata import exam_rows, patient_rows, select, unusable
from medtrain_plugins.mammography.evaluation.survival import (
    Array,
    BoolArray,
    FloatArray,
    IntArray,
    check_times,
    concordance,
    concordance_value,
    risk_comparisons,
    year_classes,
)

ALL_SIDES = -1  # all bits: the sample is a whole exam


class Censored(Protocol):
    """A metric with the censoring curve of the training group, and the size of that group."""

    censoring: FloatArray
    training_samples: int


@dataclass(frozen=True)
class Exams:
    """The scores of one run by exam. keys: (N,) of patient and exam, sorted. sides: (N,) bits of the breasts scored."""

    keys: Array
    sides: IntArray
    rows: Rows


def compare_risks(
    tables: Mapping[str, Rows], metrics: Mapping[str, Censored], seed: int, replicates: int
) -> Comparison:
    """C-indices and yearly AUCs of all runs with their differences, by exam and by patient.

    tables: the rows of each run (of `RiskMetrics`, with `exam_id`). The censoring curve is that of the run with the
    largest training group. Limits and p-values come from a bootstrap of patients, by case and control, whose draws all
    runs share; AUCs are also tested after DeLong, by exam in Obuchowski's version for patients with several exams.

    An exam that one run scored in part (one breast, for example), and that therefore has other labels there, is left
    out. Raises DataError if runs that scored the same breasts have different labels, and if no exam is common.
    """
    exams = {run: _exams(run, rows, _sides_of(tables)) for run, rows in tables.items()}
    common, in_part = _common_exams(exams)
    weights_of = max(metrics, key=lambda run: metrics[run].training_samples)
    censoring = metrics[weights_of].censoring
    by_exam = {run: select(scored.rows, np.searchsorted(scored.keys, common)) for run, scored in exams.items()}
    units = {"exam": by_exam, "patient": {run: patient_rows(rows) for run, rows in by_exam.items()}}
    facts: dict[str, Any] = {
        "drawn_by": "patient",
        "censoring": {"run": weights_of, "training_samples": metrics[weights_of].training_samples},
        "exams_scored": {run: len(scored.keys) for run, scored in exams.items()},
        "exams_common": len(common),
        "exams_left_out_for_labels_of_one_breast": in_part,
    }
    facts["censoring"]["by_year"] = censoring.tolist()
    compared = [_unit(name, rows, censoring, seed, replicates) for name, rows in units.items()]
    return Comparison(compared, facts, [_section(units["patient"], facts, compared[-1])])


def _sides_of(tables: Mapping[str, Rows]) -> dict[str, int]:
    """A bit for each name of a side."""
    found = {str(side) for rows in tables.values() if "laterality" in rows for side in np.unique(rows["laterality"])}
    return {side: 1 << bit for bit, side in enumerate(sorted(found))}


def _exams(run: str, rows: Rows, sides: Mapping[str, int]) -> Exams:
    if (reason := unusable(rows)) is not None:
        raise DataError(f"{run}: {reason}")
    if "exam_id" not in rows:
        raise DataError(f"{run}: its predictions have no exam_id, so that they cannot be matched with those of others")
    check_times(rows["event_time"], rows["event_observed"], rows["risk"].shape[1])
    exams = exam_rows(rows)
    keys, sample_exam = np.unique(_keys(rows), return_inverse=True)
    scored = np.zeros(len(keys), dtype=np.int64)
    bits = [sides[str(side)] for side in rows["laterality"]] if "laterality" in rows else [ALL_SIDES] * len(sample_exam)
    np.bitwise_or.at(scored, sample_exam, np.array(bits, dtype=np.int64))
    scored[scored == sum(sides.values())] = ALL_SIDES
    order = np.argsort(_keys(exams), kind="stable")
    return Exams(keys, scored, select(exams, order))


def _keys(rows: Rows) -> Array:
    return np.array([f"{patient}\0{exam}" for patient, exam in zip(rows["patient_id"], rows["exam_id"], strict=True)])


def _common_exams(exams: Mapping[str, Exams]) -> tuple[Array, int]:
    """Keys of the exams that every run scored with the same labels, sorted, and the number scored in part."""
    common = None
    for scored in exams.values():
        common = scored.keys if common is None else np.intersect1d(common, scored.keys)
    assert common is not None
    if not len(common):
        counts = ", ".join(f"{run} {len(scored.keys)}" for run, scored in exams.items())
        raise DataError(f"there is no exam that all runs scored ({counts} exams): were they made with the same cohort?")
    places = {run: np.searchsorted(scored.keys, common) for run, scored in exams.items()}
    in_part = np.zeros(len(common), dtype=bool)
    for a, b in combinations(exams, 2):
        differ = np.zeros(len(common), dtype=bool)
        for column in ("event_time", "event_observed"):
            differ |= exams[a].rows[column][places[a]] != exams[b].rows[column][places[b]]
        same_sides = exams[a].sides[places[a]] == exams[b].sides[places[b]]
        if (wrong := np.flatnonzero(differ & same_sides)).size:
            raise DataError(
                f"{len(wrong)} exams have other labels in {a} than in {b}; make both runs with the same table:\n"
                + first_lines([_disagreement(exams, places, a, b, place) for place in wrong[:9]])
            )
        in_part |= differ
    if in_part.all():
        raise DataError("every exam that all runs scored was scored in part by one of them, with other labels")
    return common[~in_part], int(in_part.sum())


def _disagreement(exams: Mapping[str, Exams], places: Mapping[str, Array], a: str, b: str, place: int) -> str:
    told = []
    for run in (a, b):
        rows, at = exams[run].rows, places[run][place]
        what = "cancer" if rows["event_observed"][at] else "no cancer"
        told.append(f"{what} up to year {int(rows['event_time'][at]) + 1} in {run}")
    rows, at = exams[a].rows, places[a][place]
    return f"patient {rows['patient_id'][at]}, exam {rows['exam_id'][at]}: {', '.join(told)}"


def _unit(name: str, tables: Mapping[str, Rows], censoring: FloatArray, seed: int, replicates: int) -> Unit:
    """All values of one unit. The tables have the same patients, times and events, row by row."""
    rows = next(iter(tables.values()))
    times, observed = check_times(rows["event_time"], rows["event_observed"], rows["risk"].shape[1])
    patients = rows["patient_id"].astype(str)
    pairs = {run: risk_comparisons(times, observed, table["risk"], censoring) for run, table in tables.items()}
    metrics = list(next(iter(pairs.values())))
    values = {
        metric: {run: concordance_value(of[metric], len(times)) for run, of in pairs.items()} for metric in metrics
    }
    blocks: dict[str, dict[str, list[FloatArray]]] = {metric: {run: [] for run in tables} for metric in metrics}
    for counts in replicate_counts(patients, observed, replicates, seed):
        for metric, run in ((metric, run) for metric in metrics for run in tables):
            blocks[metric][run].append(concordance(pairs[run][metric], counts))
    draws = {
        metric: {run: np.concatenate([np.empty(0), *parts]) for run, parts in of.items()}
        for metric, of in blocks.items()
    }
    counted = {"exams": len(times), "patients": len(np.unique(patients)), "exams_with_cancer": int(observed.sum())}
    if name == "patient":
        counted = {"patients": len(times), "patients_with_cancer": int(observed.sum())}
    unit = Unit.of(name, counted, values, draws)
    for year in range(rows["risk"].shape[1]):
        _add_delong(unit, tables, patients, year_classes(times, observed, year), year)
    return unit


def _add_delong(
    unit: Unit, tables: Mapping[str, Rows], patients: Array, classes: tuple[BoolArray, BoolArray], year: int
) -> None:
    cases, free = classes
    known = cases | free
    scores = np.array([table["risk"][known, year] for table in tables.values()])
    tested = delong(scores, cases[known], patients[known])
    place = {run: number for number, run in enumerate(tables)}
    for difference in unit.differences[f"auc_year_{year + 1}"]:
        difference.tests["DeLong"] = tested.test(place[difference.first], place[difference.second])


def _section(tables: Mapping[str, Rows], facts: Mapping[str, Any], unit: Unit) -> Section:
    left_out = facts["exams_left_out_for_labels_of_one_breast"]
    text = (
        "A run's risk of an exam is the mean over what it scored of it; a patient is her latest exam that all runs "
        f"scored. {facts['exams_common']} exams were scored by all runs ("
        + ", ".join(f"{run} scored {number}" for run, number in facts["exams_scored"].items())
        + "). "
        + (f"{left_out} more were left out: a run scored one breast only, with other labels. " if left_out else "")
        + f"Pairs are weighted by the censoring of the training group of {facts['censoring']['run']}. "
        "DeLong: tests of paired AUCs; by exam they allow for patients with several exams (Obuchowski)."
    )
    return Section("ROC curves by patient", text=text, figures={"compared_roc": roc_figure(tables, unit)})


def roc_figure(tables: Mapping[str, Rows], unit: Unit) -> Figure:
    """A panel for each year with the ROC curve of every run; the AUCs are those of `unit`."""
    rows = next(iter(tables.values()))
    n_years = rows["risk"].shape[1]
    times, observed = check_times(rows["event_time"], rows["event_observed"], n_years)
    figure = Figure(figsize=(10.5, 3.6 * -(-n_years // 3)), layout="constrained")
    panels = figure.subplots(-(-n_years // 3), 3, squeeze=False).ravel()
    for year, axes in enumerate(panels[:n_years]):
        cases, free = year_classes(times, observed, year)
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (4, 3)))
        for number, (run, table) in enumerate(tables.items()):
            if not cases.any() or not free.any():
                break
            x, y = roc_curve(table["risk"][cases, year], table["risk"][free, year])
            value = unit.scores[f"auc_year_{year + 1}"][run].value
            axes.plot(x, y, color=COLOURS[number % len(COLOURS)], linewidth=1.6, label=f"{run} {value:.2f}")
        title = f"Year {year + 1}: {cases.sum()} with cancer, {free.sum()} without"
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
        axes.set_title(title, fontsize=10)
        axes.set(xlabel="False-positive rate", ylabel="True-positive rate")
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="lower right", fontsize=7.5, title="AUC", title_fontsize=7.5, frameon=False)
    for axes in panels[n_years:]:
        axes.set_axis_off()
    return figure
