"""The report of a risk model: tables and figures from the rows and the details of one evaluation.

Figures are plain matplotlib `Figure` objects, drawn without pyplot and so without global state or a display.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from medtrain.metrics import Rows
from medtrain.report import Section

from .survival import Array, KaplanMeier, check_times, concordance_value, risk_comparisons, year_classes

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from medtrain.metrics import Evaluation

# From light to dark with the year, or with the risk; blue and red also differ in brightness.
YEAR_COLOURS = ("#9ecae1", "#6baed6", "#3f8fc5", "#1f6aad", "#08306b")
CONTROL, CASE, GREY = "#4c78a8", "#d1495b", "#6b7280"
GROUP_NAMES = {1: ("all",), 2: ("lower half", "upper half"), 3: ("low", "middle", "high")}
GROUP_NAMES |= {4: ("lowest quarter", "second", "third", "highest quarter")}
GROUP_COLOURS = {1: (GREY,), 2: (CONTROL, CASE), 3: (CONTROL, "#e0a030", CASE)}
GROUP_COLOURS |= {4: (CONTROL, "#59a89c", "#e0a030", CASE)}
METRIC_TITLES = {"c_index": "C-index", "c_index_uno": "Uno's C"}
STRATUM_TITLES = {"density": "Breast density", "race": "Race", "cancer_type": "Cancer type (against all controls)"}

# A point of a calibration plot or a curve of a survival plot stands for at least so many samples.
MIN_GROUP = 10


def risk_sections(evaluation: Evaluation) -> list[Section]:
    """The sections of a risk model's report; none without samples.

    evaluation: its `rows` and `details` are those of `RiskMetrics`. Without details (an evaluation during training)
    there are no intervals and no strata.
    """
    rows, details = evaluation.rows, evaluation.details
    if not len(rows.get("risk", ())) or not np.isfinite(rows["risk"]).all():
        return []
    samples = details.get("units", {}).get("sample", {}).get("metrics", {})
    sections = [
        Section(
            "Discrimination",
            text="C-index: the share of comparable pairs in which the woman whose cancer comes first has the higher "
            "risk, pairs weighted by the inverse probability of follow-up (time-dependent, as for Mirai). Uno's C: "
            "the same for the risk of the last year. AUC of a year: cancers until then against women known to be free "
            "of cancer until then. Intervals: 95% percentile limits of a bootstrap of patients.",
            tables=_unit_tables(evaluation),
            figures={"risk_roc": roc_figure(rows, samples), "risk_distribution": distribution_figure(rows)},
        ),
        Section(
            "Calibration and follow-up",
            text="Observed incidences are Kaplan-Meier estimates, so women lost to follow-up count as long as they "
            "were seen; bars and bands are 95% limits. Groups are quantiles of the predicted risk.",
            figures={"risk_calibration": calibration_figure(rows), "risk_groups": incidence_figure(rows)},
        ),
    ]
    if strata := details.get("strata"):
        sections.append(
            Section(
                "Strata",
                text="Strata that are too small are counted, not scored.",
                tables={STRATUM_TITLES[name]: _report_table(groups) for name, groups in strata.items()},
                figures={"risk_strata": strata_figure(strata, samples)},
            )
        )
    return sections


def roc_figure(rows: Rows, metrics: dict[str, Any]) -> Figure:
    """ROC curves by year, with AUCs and, where `metrics` (of a `group_report`) has them, their limits."""
    risk = rows["risk"]
    times, observed = check_times(rows["event_time"], rows["event_observed"], risk.shape[1])
    comparisons = risk_comparisons(times, observed, risk, np.ones(risk.shape[1]))
    figure, axes = _square()
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    for year in range(risk.shape[1]):
        cases, free = year_classes(times, observed, year)
        name = f"auc_year_{year + 1}"
        if not cases.any() or not free.any():
            axes.plot([], [], color=YEAR_COLOURS[year], label=f"Year {year + 1}: one class only")
            continue
        auc = concordance_value(comparisons[name], len(risk))
        label = f"Year {year + 1}: {auc:.2f}{_limits(metrics.get(name))}"
        x, y = roc_curve(risk[cases, year], risk[free, year])
        axes.plot(x, y, color=YEAR_COLOURS[year], linewidth=1.8, label=label)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal", title="ROC by year")
    axes.set(xlabel="False-positive rate", ylabel="True-positive rate")
    axes.legend(loc="lower right", fontsize=8.5, title="AUC (95% limits)" if metrics else "AUC", title_fontsize=8.5)
    return figure


def roc_curve(case_scores: Array, free_scores: Array) -> tuple[Array, Array]:
    """False- and true-positive rates at every threshold, from (0, 0) to (1, 1)."""
    thresholds = np.unique(np.concatenate([case_scores, free_scores]))
    rates = [
        1 - np.searchsorted(np.sort(scores), thresholds, side="left") / len(scores)
        for scores in (free_scores, case_scores)
    ]
    return np.append(rates[0][::-1], 1.0)[_from_zero(len(thresholds))], _prepend(rates[1][::-1])
