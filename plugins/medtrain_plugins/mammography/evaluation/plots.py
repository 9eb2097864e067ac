"""The report of a risk model: tables and figures from the rows and the details of one evaluation.

Figures are plain matplotlib `Figure` objects, drawn without pyplot, so without global state or a display.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from medtrain.protocols import Rows, Section

from medtrain_plugins.mammography.evaluation.survival import (
    Array,
    KaplanMeier,
    check_times,
    concordance_value,
    risk_comparisons,
    year_classes,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from medtrain.protocols import Evaluation

# From light to dark with the year, or with the risk; blue and red also differ in brightness.
YEAR_COLOURS = ("#9ecae1", "#6baed6", "#3f8fc5", "#1f6aad", "#08306b")
CONTROL, CASE, GREY = "#4c78a8", "#d1495b", "#6b7280"
GROUP_NAMES = {1: ("all",), 2: ("lower half", "upper half"), 3: ("low", "middle", "high")}
GROUP_NAMES |= {4: ("lowest quarter", "second", "third", "highest quarter")}
GROUP_COLOURS = {1: (GREY,), 2: (CONTROL, CASE), 3: (CONTROL, "#e0a030", CASE)}
GROUP_COLOURS |= {4: (CONTROL, "#59a89c", "#e0a030", CASE)}
METRIC_TITLES: dict[str, str] = {"c_index": "C-index", "c_index_uno": "Uno's C"}
STRATUM_TITLES = {"density": "Breast density", "race": "Race", "cancer_type": "Cancer type (against all controls)"}

LABEL: dict[str, Any] = {"va": "center", "fontsize": 8.5, "color": "#374151"}

# Smallest number of samples of a point of a calibration plot, or a curve of a survival plot.
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
            "were seen; bars and bands are 95% limits that take samples as independent. Groups are quantiles of the "
            "predicted risk.",
            figures={"risk_calibration": calibration_figure(rows), "risk_groups": incidence_figure(rows)},
        ),
    ]
    if strata := {name: groups for name, groups in details.get("strata", {}).items() if groups}:
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
    """ROC curves by year, with AUCs and, if `metrics` (of a `group_report`) has them, their limits."""
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
    from sklearn import metrics

    case = np.repeat([1, 0], [len(case_scores), len(free_scores)])
    scores = np.concatenate([case_scores, free_scores])
    false_rate, true_rate, _ = metrics.roc_curve(case, scores, drop_intermediate=False)
    return false_rate, true_rate


def calibration_figure(rows: Rows) -> Figure:
    """Predicted against observed incidence of every year, in quantiles of that year's risk."""
    risk = rows["risk"]
    times, observed = check_times(rows["event_time"], rows["event_observed"], risk.shape[1])
    figure = Figure(figsize=(2.6 * risk.shape[1] + 0.4, 3.2), layout="constrained")
    panels = figure.subplots(1, risk.shape[1], squeeze=False)[0]
    for year, axes in enumerate(panels):
        points = []
        for group in _quantiles(risk[:, year], most=5):
            curve = KaplanMeier.fit(times[group], observed[group], risk.shape[1])
            low, high = curve.interval()
            points.append((risk[group, year].mean(), 1 - curve.survival[year], 1 - high[year], 1 - low[year]))
        predicted, seen, lower, upper = np.array(points, dtype=float).T
        bars = np.nan_to_num(np.stack([seen - lower, upper - seen]), nan=0.0)
        top = 1.08 * max(0.02, predicted.max(), np.nanmax(np.append(upper, seen)))
        axes.plot([0, top], [0, top], color=GREY, linewidth=1, linestyle=(0, (4, 3)))
        style = {"fmt": "o-", "color": YEAR_COLOURS[-2], "ecolor": "#9db8d3", "markersize": 5, "linewidth": 1.3}
        axes.errorbar(predicted, seen, yerr=bars, capsize=2, elinewidth=1.3, **style)
        axes.set(xlim=(0, top), ylim=(0, top), aspect="equal", title=f"Year {year + 1}", xlabel="Predicted")
        axes.locator_params(nbins=4)
        _tidy(axes)
    panels[0].set_ylabel("Observed (Kaplan-Meier)")
    return figure


def incidence_figure(rows: Rows) -> Figure:
    """Cumulative incidence (one minus Kaplan-Meier) in groups of the last year's risk, with the numbers at risk."""
    risk = rows["risk"][:, -1]
    n_years = rows["risk"].shape[1]
    times, observed = check_times(rows["event_time"], rows["event_observed"], n_years)
    groups = _quantiles(risk, most=4)
    names, colours = GROUP_NAMES[len(groups)], GROUP_COLOURS[len(groups)]
    figure = Figure(figsize=(6.4, 4 + 0.25 * len(groups)), layout="constrained")
    axes, numbers = figure.subplots(2, 1, sharex=True, height_ratios=[3.4, 0.25 * (len(groups) + 1)])
    years = np.arange(n_years + 1)
    for line, (group, name, colour) in enumerate(zip(groups, names, colours, strict=True)):
        curve = KaplanMeier.fit(times[group], observed[group], n_years)
        incidence = np.insert(1 - curve.survival, 0, 0.0)
        low, high = (np.insert(np.nan_to_num(1 - limit, nan=0.0), 0, 0.0) for limit in curve.interval())
        axes.plot(years, incidence, "o-", color=colour, linewidth=2, markersize=4, label=f"{name} (n = {len(group)})")
        axes.fill_between(years, high, low, color=colour, alpha=0.12, linewidth=0)
        numbers.text(
            -0.03, line, name, transform=numbers.get_yaxis_transform(), **LABEL | {"ha": "right", "color": colour}
        )
        for year, number in enumerate(curve.at_risk):
            numbers.text(year, line, f"{number:.0f}", **LABEL | {"ha": "center"})
    axes.set(title=f"Cancer by group of {n_years}-year risk", ylabel="Cumulative incidence")
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper left", title="Predicted risk", fontsize=9, title_fontsize=9)
    axes.tick_params(axis="x", labelbottom=True)
    axes.set(xlim=(-0.12, n_years + 0.12), xticks=years, xlabel="Years since the exam")
    numbers.set(ylim=(len(groups) - 0.5, -1.5))
    numbers.text(0, -1, "At risk", **LABEL | {"ha": "center", "color": GREY})
    numbers.set_axis_off()
    _tidy(axes)
    return figure


def distribution_figure(rows: Rows) -> Figure:
    """Predicted risk of the last year, for cases and for the others."""
    risk = rows["risk"][:, -1]
    observed = rows["event_observed"].astype(bool)
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    bins = np.linspace(risk.min(), max(risk.max(), risk.min() + 1e-3), 31).tolist()
    for mask, colour, name in ((~observed, CONTROL, "no cancer seen"), (observed, CASE, "cancer")):
        if mask.any():
            share = np.full(mask.sum(), 1 / mask.sum())
            label = f"{name} (n = {mask.sum()}, median {np.median(risk[mask]):.3f})"
            axes.hist(risk[mask], bins, weights=share, color=colour, alpha=0.45, label=label)
            axes.hist(risk[mask], bins, weights=share, color=colour, histtype="step", linewidth=1.4)
            axes.axvline(np.median(risk[mask]), color=colour, linewidth=1.2, linestyle=(0, (4, 3)))
    n_years = rows["risk"].shape[1]
    axes.set(title=f"Predicted {n_years}-year risk", xlabel="Risk", ylabel="Share of samples")
    axes.margins(y=0.22)
    axes.legend(loc="upper right", fontsize=9)
    _tidy(axes)
    return figure


def strata_figure(strata: dict[str, dict[str, Any]], overall: dict[str, Any]) -> Figure:
    """The C-index of every scored stratum with its limits, beside that of all samples."""
    lines: list[tuple[str, dict[str, Any] | None, str]] = []
    for column, groups in strata.items():
        lines.append((STRATUM_TITLES[column], None, ""))
        for name, group in groups.items():
            score = group["metrics"].get("c_index", {"value": None})
            lines.append((" ".join(name.split()), score, f"{group['n']} / {group['events']}"))
    figure = Figure(figsize=(9, 1.3 + 0.27 * len(lines)), layout="constrained")
    axes, beside = figure.subplots(1, 2, sharey=True, width_ratios=[2.2, 1])
    whole = overall.get("c_index", {"value": None, "low": None})
    if whole["value"] is not None:
        label = f"all samples: {whole['value']:.2f}{_limits(whole)}"
        axes.axvline(whole["value"], color=CONTROL, linewidth=1.2, label=label)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0, fontsize=9)
    if whole["low"] is not None:
        axes.axvspan(whole["low"], whole["high"], color=CONTROL, alpha=0.1, linewidth=0)
    axes.axvline(0.5, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    beside.text(0, -1, "n / cancers", **LABEL | {"color": GREY})
    beside.text(0.42, -1, "C-index (95% limits)", **LABEL | {"color": GREY})
    for position, (_, score, counts) in enumerate(lines):
        if score is None:
            continue
        value = score["value"]
        beside.text(0, position, counts, **LABEL)
        beside.text(0.42, position, "not scored" if value is None else f"{value:.2f}{_limits(score)}", **LABEL)
        if value is not None:
            axes.plot(value, position, "o", color=YEAR_COLOURS[-2], markersize=6)
            if score["low"] is not None:
                axes.plot([score["low"], score["high"]], [position] * 2, color=YEAR_COLOURS[-2], linewidth=1.8)
    axes.set_yticks(range(len(lines)), [name for name, _, _ in lines], fontsize=9)
    for label_text, (_, score, _) in zip(axes.get_yticklabels(), lines, strict=True):
        label_text.set_fontweight("bold" if score is None else "normal")
    axes.set(ylim=(len(lines) - 0.4, -1.5), xlabel="C-index")
    axes.tick_params(axis="y", length=0)
    beside.set(xlim=(0, 1))
    beside.set_axis_off()
    _tidy(axes)
    return figure


def _unit_tables(evaluation: Evaluation) -> dict[str, pd.DataFrame]:
    """The values of every unit with their limits; without details, those of the evaluation."""
    if units := evaluation.details.get("units"):
        return {"By unit (value and 95% limits)": _report_table(units)}
    import pandas as pd

    names = [name for name in METRIC_TITLES if name in evaluation.metrics]
    names += [name for name in evaluation.metrics if name.startswith("auc_year_")]
    values = {_title(name): [f"{evaluation.metrics[name]:.3f}"] for name in names}
    return {"All samples": pd.DataFrame(values, index=["sample"])}


def _report_table(reports: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """One line for each `group_report`: counts, then every metric with its limits."""
    import pandas as pd

    names = list(dict.fromkeys(name for report in reports.values() for name in report["metrics"]))
    lines = []
    for report in reports.values():
        line: dict[str, Any] = {"n": report["n"], "patients": report["patients"], "cancers": report["events"]}
        for name in names:
            score = report["metrics"].get(name)
            line[_title(name)] = "" if score is None or score["value"] is None else _with_limits(score)
        reasons = [f"{_title(name)}: {score['reason']}" for name, score in report["metrics"].items() if score["reason"]]
        line["note"] = report["reason"] or "; ".join(reasons)
        lines.append(line)
    return pd.DataFrame(lines, index=[" ".join(name.split()) for name in reports])


def _title(metric: str) -> str:
    return METRIC_TITLES.get(metric) or metric.replace("auc_year_", "AUC year ")


def _with_limits(score: dict[str, Any]) -> str:
    return f"{score['value']:.3f}{_limits(score, digits=3)}"


def _limits(score: dict[str, Any] | None, digits: int = 2) -> str:
    if score is None or score["low"] is None:
        return ""
    return f" ({score['low']:.{digits}f} to {score['high']:.{digits}f})"


def _quantiles(risk: Array, most: int) -> list[Array]:
    """Indices of groups of equal size by ascending risk: at most `most` groups, with at least `MIN_GROUP` samples.

    Samples of equal risk stay together, so groups do not depend on the order of the rows.
    """
    wanted = max(1, min(most, len(risk) // MIN_GROUP))
    limits = np.quantile(risk, np.arange(1, wanted) / wanted)
    group_of = np.searchsorted(limits, risk, side="left")
    return [np.flatnonzero(group_of == group) for group in np.unique(group_of)]


def _square() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    _tidy(axes)
    return figure, axes


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    if (legend := axes.get_legend()) is not None:
        legend.get_frame().set(linewidth=0, alpha=0.85)
