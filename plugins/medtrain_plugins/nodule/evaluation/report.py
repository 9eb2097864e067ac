"""The files of an evaluation: evaluation.json, cases.csv, report.html with its figures."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from medtrain.protocols import Section

from medtrain_plugins.nodule.evaluation.evaluate import NoduleEvaluation
from medtrain_plugins.nodule.evaluation.froc import RATES
from medtrain_plugins.nodule.evaluation.matching import Outcome
from medtrain_plugins.nodule.evaluation.rows import evaluate_rows
from medtrain_plugins.nodule.options import PivotOptions

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from medtrain import Run

DOCUMENT, CASES = "evaluation.json", "cases.csv"
BLUE, RED, GREY = "#1f6aad", "#d1495b", "#6b7280"
COLOURS = (BLUE, RED, "#59a89c", "#e0a030", "#7a5195", GREY)

LIMITS = (
    "These numbers tell how an algorithm did on these scans against these annotations. They are no medical finding, "
    "give no advice on any patient, and say nothing of scans that differ from these."
)
PROTOCOLS = {
    "luna16": "A candidate hits a nodule when it lies nearer to its centre than its radius. The most suspicious hit "
    "finds the nodule, further hits and candidates on irrelevant findings count neither way, all others are false "
    "positives (LUNA16).",
    "fixed_radius": "The most suspicious candidate first takes the nearest free nodule within {distance:g} mm; all "
    "others, second hits too, are false positives.",
}
COLUMNS = (
    "outcome",
    "seriesuid",
    "probability",
    "coordX",
    "coordY",
    "coordZ",
    "diameter_mm",
    "candidate",
    "nodule_coordX",
    "nodule_coordY",
    "nodule_coordZ",
    "nodule_diameter_mm",
    "nodule",
    "distance_mm",
)


def write_evaluation(folder: Path, evaluation: NoduleEvaluation, title: str) -> dict[str, str]:
    """Writes evaluation.json, cases.csv, plots/*.png and report.html; returns their paths by kind.

    Raises UsageError when the folder cannot be written.
    """
    from medtrain import make_folder, write_page
    from medtrain.rundir import REPORT, write_json

    make_folder(folder)
    write_json(folder / DOCUMENT, evaluation.document())
    write_cases(folder / CASES, evaluation)
    counts = evaluation.counts
    facts = (
        f"Protocol {evaluation.settings.protocol}, {counts['scans']} scans, {counts['nodules']} nodules, "
        f"{counts['candidates']} candidates."
    )
    write_page(folder, title, facts, evaluation_sections(evaluation))
    return {"json": str(folder / DOCUMENT), "cases": str(folder / CASES), "report": str(folder / REPORT)}


def write_cases(path: Path, evaluation: NoduleEvaluation) -> None:
    """One row per nodule (TP, FN) and per other candidate (FP, duplicate, ignored, capped, unknown_series)."""
    from medtrain.rundir import replace_file

    with replace_file(path) as aside, aside.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(_cases(evaluation))


def _cases(evaluation: NoduleEvaluation) -> Iterator[list[Any]]:
    matching, nodules, marks = evaluation.matching, evaluation.annotations, evaluation.candidates
    assert marks.score is not None

    def candidate(i: int) -> list[Any]:
        diameter = marks.diameter[i]
        known = "" if np.isnan(diameter) else repr(float(diameter))
        return [repr(float(marks.score[i])), *map(repr, marks.xyz[i].tolist()), known, marks.place(i)]  # type: ignore[index]

    def nodule(i: int) -> list[Any]:
        return [*map(repr, nodules.xyz[i].tolist()), repr(float(nodules.diameter[i])), nodules.place(i)]

    for index, hit in zip(matching.nodules.tolist(), matching.hit.tolist(), strict=True):
        if hit < 0:
            yield ["FN", nodules.series[index], *[""] * 6, *nodule(index), ""]
        else:
            distance = float(np.linalg.norm(nodules.xyz[index] - marks.xyz[hit]))
            yield ["TP", nodules.series[index], *candidate(hit), *nodule(index), f"{distance:.6g}"]
    names = {outcome: "FP" if outcome is Outcome.FALSE_POSITIVE else outcome.name.lower() for outcome in Outcome}
    for index in np.flatnonzero(matching.outcome != Outcome.TRUE_POSITIVE).tolist():
        name = names[Outcome(matching.outcome[index])]
        yield [name, marks.series[index], *candidate(index), *[""] * 6]


def evaluation_sections(evaluation: NoduleEvaluation) -> list[Section]:
    """The report's sections: plain text, tables and figures (the page escapes all text)."""
    import pandas as pd

    settings, counts = evaluation.settings, evaluation.counts
    rule = PROTOCOLS[settings.protocol].format(distance=settings.max_distance)
    shown = [("CPM (mean of the seven)", evaluation.cpm, evaluation.intervals.get("cpm"))]
    shown += [
        (f"Sensitivity at {rate} FP per scan", value, evaluation.intervals.get(rate))
        for rate, value in evaluation.sensitivity.items()
    ]
    level = f"{100 * settings.confidence:g} % CI"
    values = pd.DataFrame([{"": name, "value": value, level: _limits(limits)} for name, value, limits in shown])
    drawn = f"{settings.replicates} resamples of the scans, seed {settings.seed}" if settings.replicates else "none"
    sections = [
        Section(
            "Detection",
            text=f"{rule} Intervals: {drawn}.",
            tables={
                "FROC": values,
                "Counts": pd.DataFrame([{"": name.replace("_", " "), "count": n} for name, n in counts.items()]),
                "Operating points": pd.DataFrame(evaluation.operating_points).rename(columns=_words),
            },
            figures={"froc": froc_figure(evaluation)},
        )
    ]
    strata = {f"By {kind}": _stratum_table(rows) for kind, rows in evaluation.strata.items() if rows}
    if strata:
        text = (
            "By diameter and texture, the nodules of a stratum stand against the false positives of all scans; a "
            "subset stands alone."
        )
        figures = {"froc_strata": strata_figure(evaluation)} if evaluation.strata.get("diameter") else {}
        sections.append(Section("Strata", text=text, tables=strata, figures=figures))
    accuracy = {"Distance of centres (mm)": _column(evaluation.centre)}
    if evaluation.size["count"]:
        accuracy["Diameters: predicted minus true (mm; relative: of the true one)"] = _column(evaluation.size)
    boxes = evaluation.average_precision["iou"] or {}
    precisions = {"hits of the protocol": evaluation.average_precision["protocol"]}
    precisions |= {f"boxes, IoU {overlap}": value for overlap, value in boxes.items()}
    accuracy["Average precision"] = _column(precisions)
    figures = {"diameters": size_figure(evaluation)} if evaluation.size["count"] else {}
    text = "Of found nodules and the candidates that found them."
    sections.append(Section("Centres and sizes", text=text, tables=accuracy, figures=figures))
    if evaluation.triage is not None:
        told = {name: value for name, value in evaluation.triage.items() if not isinstance(value, dict)}
        if "calibration" in evaluation.triage:
            told["expected calibration error"] = evaluation.triage["calibration"]["ece"]
        sections.append(Section("Malignancy", text="Of found nodules.", tables={"Agreement": _column(told)}))
    if evaluation.segmentation is not None:
        told = {name: value for name, value in evaluation.segmentation.items() if name != "by_case"}
        sections.append(Section("Segmentation", tables={"Overlap": _column(told)}))
    notes = " ".join(f"{note[0].upper()}{note[1:]}." for note in evaluation.notes)
    return [*sections, Section("Notes and limits", text=f"{notes} {LIMITS}".strip())]


def froc_figure(evaluation: NoduleEvaluation) -> Figure:
    """The FROC curve over the rates of the challenge, with the intervals at the seven."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.2, 4.4), layout="constrained")
    axes = figure.subplots()
    x, y = _drawn(evaluation)
    axes.plot(x, y, color=BLUE, linewidth=2, label=f"CPM {evaluation.cpm:.3f}")
    axes.plot(RATES, evaluation.sensitivities, "o", color=BLUE, markersize=5)
    for rate, (low, high) in ((name, limits) for name, limits in evaluation.intervals.items() if name != "cpm"):
        axes.plot([float(rate)] * 2, [low, high], color=BLUE, alpha=0.45, linewidth=3, solid_capstyle="butt")
    _froc_axes(axes)
    axes.set_title(f"FROC ({evaluation.settings.protocol})")
    axes.legend(loc="lower right", frameon=False)
    return figure


def strata_figure(evaluation: NoduleEvaluation) -> Figure:
    """Sensitivities at the seven rates by diameter."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.2, 4.4), layout="constrained")
    axes = figure.subplots()
    for row, colour in zip(evaluation.strata["diameter"], COLOURS, strict=False):
        label = f"{row['stratum']} (n = {row['nodules']})"
        axes.plot(
            RATES, list(row["sensitivity"].values()), "o-", color=colour, linewidth=1.6, markersize=4, label=label
        )
    _froc_axes(axes)
    axes.legend(loc="upper left", fontsize=8.5, frameon=False)
    return figure


def size_figure(evaluation: NoduleEvaluation) -> Figure:
    """Predicted against true diameters of found nodules."""
    from matplotlib.figure import Figure

    matching = evaluation.matching
    true = evaluation.annotations.diameter[matching.nodules[matching.found]]
    predicted = evaluation.candidates.diameter[matching.hit[matching.found]]
    known = np.isfinite(predicted) & (true >= 0)
    figure = Figure(figsize=(4.6, 4.4), layout="constrained")
    axes = figure.subplots()
    top = 1.08 * float(max(true[known].max(), predicted[known].max()))
    axes.plot([0, top], [0, top], color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    axes.plot(true[known], predicted[known], "o", color=BLUE, markersize=4, alpha=0.6, markeredgewidth=0)
    axes.set(xlim=(0, top), ylim=(0, top), aspect="equal", xlabel="True diameter (mm)", ylabel="Predicted (mm)")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _drawn(evaluation: NoduleEvaluation) -> tuple[list[float], list[float]]:
    """The corners of the curve within the axes, cut at the limits."""
    curve, corners = evaluation.curve, evaluation.curve.corners()
    inside = corners[(curve.false_per_scan[corners] > RATES[0]) & (curve.false_per_scan[corners] < RATES[-1])]
    first, last = evaluation.sensitivities[0], evaluation.sensitivities[-1]
    x, y = curve.false_per_scan[inside].tolist(), curve.sensitivity[inside].tolist()
    return [RATES[0], *x, RATES[-1]], [first, *y, last]


def _froc_axes(axes: Any) -> None:
    from matplotlib.ticker import NullLocator

    axes.set_xscale("log", base=2)
    axes.set_xticks(RATES, [f"{rate:g}" for rate in RATES])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(xlim=(RATES[0] * 0.94, RATES[-1] * 1.06), ylim=(0, 1.01))
    axes.set(xlabel="False positives per scan", ylabel="Sensitivity")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _stratum_table(rows: list[dict[str, Any]]) -> Any:
    import pandas as pd

    flat = []
    for row in rows:
        kept = {key: value for key, value in row.items() if key != "sensitivity"}
        flat.append(kept | {f"at {rate}": value for rate, value in row["sensitivity"].items()})
    return pd.DataFrame(flat)


def _column(values: dict[str, Any]) -> Any:
    import pandas as pd

    return pd.DataFrame([{"": _words(name), "value": value} for name, value in values.items()])


def _words(name: str) -> str:
    return name.replace("_", " ")


def _limits(limits: tuple[float, float] | None) -> str:
    return "" if limits is None or np.isnan(limits[0]) else f"{limits[0]:.3f} to {limits[1]:.3f}"


def detection_sections(run: Run, options: PivotOptions) -> list[Section]:
    """The report: protocol, strata, accuracy, and the comparison with the untrained network."""
    evaluation = run.evaluation
    if evaluation is None or "kind" not in evaluation.rows or not len(evaluation.rows["kind"]):
        return []
    settings = options.evaluation
    sections = evaluation_sections(evaluate_rows(evaluation.rows, settings, settings.replicates, run.config.run.seed))
    if before := evaluation.details.get("untrained"):
        import pandas as pd

        shown = ("cpm", "sensitivity_at_1", "sensitivity_at_8", "centre_error_median", "diameter_error_median")
        table = pd.DataFrame(
            [
                {"": name.replace("_", " "), "trained": evaluation.metrics[name], "untrained": before[name]}
                for name in shown
            ]
        )
        text = "The same network with the weights it had before training, on the same scans: what chance alone gives."
        sections.insert(1, Section("Before training", text=text, tables={"Trained and untrained": table}))
    return sections
