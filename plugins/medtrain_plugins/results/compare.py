"""Evaluated runs on equal terms: the same samples, the same resamples, and what of their difference is chance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from medtrain import __version__
from medtrain.errors import DataError, UsageError
from medtrain.protocols import Array, Comparison, Metric, Rows, Score, Section, Unit
from medtrain.rundir import strict, write_json
from medtrain.statistics import resampled_clusters

from medtrain_plugins.results import report
from medtrain_plugins.results.evaluations import EvaluatedRun, evaluated_run

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COMPARISON = "comparison.json"
INTERVAL = "95 % CI"
COLOURS = ("#3f6fa8", "#d1495b", "#2f8f6f", "#c98a1b", "#7b5ea7", "#4aa3b8", "#8a6d5a", "#6b7280")


@dataclass
class ComparedRuns:
    """Several runs and how they compare. skipped: values that not every run has."""

    group: str
    seed: int
    replicates: int
    runs: list[EvaluatedRun]
    comparisons: list[Comparison]
    skipped: list[str]

    def to_json(self) -> dict[str, Any]:
        """Everything as strict JSON: values that do not exist are null and say why."""
        described: dict[str, Any] = strict(
            {
                "medtrain": __version__,
                "group": self.group,
                "seed": self.seed,
                "replicates": self.replicates,
                "runs": [{"name": run.name, "maps": str(run.maps), **run.facts} for run in self.runs],
                "not_compared": self.skipped,
                "comparisons": [
                    {"units": {unit.name: asdict(unit) for unit in made.units}, **made.facts}
                    for made in self.comparisons
                ],
            }
        )
        return described

    @property
    def units(self) -> list[Unit]:
        """The units of all comparisons."""
        return [unit for made in self.comparisons for unit in made.units]


def compare_runs(
    paths: Sequence[str | Path], group: str = "test", *, split: int | None = None, seed: int = 0, replicates: int = 2000
) -> ComparedRuns:
    """Compare finished runs by their evaluations of a group; runs without one are evaluated first.

    paths: run directories. split: one of each run's splits; None: all of them together. replicates: of the bootstrap.
    Raises DataError when the runs have no sample or no metric in common, PluginError when a plugin cannot build its
    metrics without its data.
    """
    names = _names([Path(path) for path in paths])
    runs = [evaluated_run(Path(path), name, group, split) for path, name in zip(paths, names, strict=True)]
    matched, skipped = _matched(runs)
    if not matched:
        lists = "; ".join(f"{run.name} has {', '.join(_value_names(run)) or 'none'}" for run in runs)
        raise DataError(f"these runs have no metric in common: {lists}")
    tables = {run.name: run.rows for run in runs}
    comparisons = [
        metric[names[0]].compare(tables, metric, seed, replicates)  # type: ignore[attr-defined]
        for metric in matched
        if hasattr(metric[names[0]], "compare")
    ]
    if plain := [metric for metric in matched if not hasattr(metric[names[0]], "compare")]:
        comparisons.append(compare_samples(tables, plain, _participant_of(runs), seed, replicates))
    return ComparedRuns(group, seed, replicates, runs, comparisons, skipped)


def compare_samples(
    tables: Mapping[str, Rows],
    metrics: Sequence[Mapping[str, Metric]],
    participant_of: Mapping[str, str] | None,
    seed: int,
    replicates: int,
) -> Comparison:
    """Compare what `compute` gives on the samples all runs share, in a bootstrap of their participants.

    tables: the rows of each run. metrics: one dict run -> metric for each metric. participant_of: of each sample; None
    takes samples as independent. A replicate in which `compute` raises ValueError or ZeroDivisionError, or gives NaN,
    has no value.
    """
    tables = _shared(tables)
    first = next(iter(tables))
    ids = tables[first]["sample_id"].astype(str)
    for metric in metrics:
        _check_truth(tables, getattr(metric[first], "target", None))
    names = {
        name: metric
        for metric in metrics
        for name in metric[first].names
        if all(name in m.names for m in metric.values())
    }

    def values_of(which: Any, strict_: bool) -> dict[str, dict[str, float]]:
        found: dict[str, dict[str, float]] = {name: {} for name in names}
        for run, rows in tables.items():
            part = rows if which is None else {key: column[which] for key, column in rows.items()}
            for metric in metrics:
                for name, value in _compute(metric[run], part, strict_).items():
                    if name in found:
                        found[name][run] = value
        return found

    values = values_of(None, True)
    participants = ids if participant_of is None else np.array([participant_of[sample] for sample in ids])
    draws = {name: {run: np.full(replicates, math.nan) for run in tables} for name in names}
    for number, drawn in enumerate(resampled_clusters(participants, replicates, seed)):
        for name, of in values_of(drawn, False).items():
            for run, value in of.items():
                draws[name][run][number] = value
    counts = {"samples": len(ids)}
    if participant_of is not None:
        counts["participants"] = len(np.unique(participants))
    drawn_by = "sample" if participant_of is None else "participant"
    return Comparison([Unit.of("sample", counts, values, draws)], {"drawn_by": drawn_by})


def write_comparison(folder: Path, compared: ComparedRuns, note: str = "") -> None:
    """Write comparison.json, plots/*.png and report.html to a folder. note: one more sentence under the title."""
    report.make_folder(folder)
    write_json(folder / COMPARISON, compared.to_json())
    names = ", ".join(run.name for run in compared.runs)
    facts = f"{names}. Bootstrap of {compared.replicates} replicates, seed {compared.seed}. {note}"
    report.write_page(
        folder, f"Comparison of {len(compared.runs)} runs: group {compared.group}", facts, _page(compared)
    )


def scores_table(unit: Unit) -> pd.DataFrame:
    """One line for each value: every run's, with its limits."""
    import pandas as pd

    lines = []
    for name, scores in unit.scores.items():
        reasons = {score.reason: None for score in scores.values() if score.reason}
        shown = {run: _with_limits(score) for run, score in scores.items()}
        lines.append({"metric": name, **shown, "note": "; ".join(reasons)})
    return _without_empty_note(pd.DataFrame(lines))


def differences_table(unit: Unit) -> pd.DataFrame:
    """One line for each value and pair of runs: difference, limits, p-values."""
    import pandas as pd

    lines = []
    tests = sorted({test for many in unit.differences.values() for one in many for test in one.tests})
    for name, differences in unit.differences.items():
        for one in differences:
            limits = "" if math.isnan(one.low) else f"{one.low:+.3f} to {one.high:+.3f}"
            line = {"metric": name, "first": one.first, "second": one.second, "difference": one.value}
            line |= {INTERVAL: limits, "p (bootstrap)": one.p}
            line |= {f"p ({test})": one.tests[test].p if test in one.tests else math.nan for test in tests}
            reasons = [one.reason, *(f"{test}: {found.reason}" for test, found in one.tests.items() if found.reason)]
            lines.append({**line, "note": "; ".join(filter(None, reasons))})
    return _without_empty_note(pd.DataFrame(lines))


def runs_table(compared: ComparedRuns) -> pd.DataFrame:
    """One line for each run: what of it was scored."""
    import pandas as pd

    lines = []
    for run in compared.runs:
        facts = {key: run.facts[key] for key in ("status", "checkpoint", "step", "samples")}
        lines.append({"run": run.name, "plugins": ", ".join(run.facts["plugins"]), **facts})
    return pd.DataFrame(lines)


def _names(paths: Sequence[Path]) -> list[str]:
    """Short names: the folders' own, or the paths as given where those are not unique."""
    resolved = [path.resolve() for path in paths]
    for path, place in zip(paths, resolved, strict=True):
        if resolved.count(place) > 1:
            raise UsageError(f"{path} is named twice; name every run once")
    names = [place.name for place in resolved]
    return [str(path) if names.count(name) > 1 else name for path, name in zip(paths, names, strict=True)]


def _matched(runs: Sequence[EvaluatedRun]) -> tuple[list[dict[str, Metric]], list[str]]:
    """Metrics that every run has (of one class, with a value in common), by run; and values not every run has."""
    matched = []
    for metric in runs[0].metrics:
        same = {run.name: _partner(metric, run) for run in runs}
        if all(partner is not None for partner in same.values()):
            matched.append({name: partner for name, partner in same.items() if partner is not None})
    shared = {
        name
        for metric in matched
        for name in next(iter(metric.values())).names
        if all(name in m.names for m in metric.values())
    }
    everything = dict.fromkeys(name for run in runs for name in _value_names(run))
    return matched, [name for name in everything if name not in shared]


def _partner(metric: Metric, run: EvaluatedRun) -> Metric | None:
    for other in run.metrics:
        if type(other) is type(metric) and set(other.names) & set(metric.names):
            return other
    return None


def _value_names(run: EvaluatedRun) -> list[str]:
    return [name for metric in run.metrics for name in metric.names]


def _participant_of(runs: Sequence[EvaluatedRun]) -> dict[str, str] | None:
    """The participant of every sample; None when a run does not record them, DataError when runs disagree."""
    known: dict[str, str] = {}
    for run in runs:
        if run.participants is None:
            return None
        for sample, participant in zip(run.rows["sample_id"].astype(str), run.participants, strict=True):
            if known.setdefault(sample, participant) != participant:
                raise DataError(
                    f"sample {sample!r} is of participant {known[sample]!r} in one run and of {participant!r} in "
                    f"{run.name}: these runs are not of the same data"
                )
    return known


def _shared(tables: Mapping[str, Rows]) -> dict[str, Rows]:
    """The rows of the samples all runs have, in the first one's order."""
    places = {
        run: {sample: place for place, sample in enumerate(rows["sample_id"].astype(str))}
        for run, rows in tables.items()
    }
    first = next(iter(places))
    shared = [sample for sample in places[first] if all(sample in known for known in places.values())]
    if not shared:
        counts = ", ".join(f"{run} {len(known)}" for run, known in places.items())
        raise DataError(
            f"the runs have no sample of this group in common ({counts} samples); runs are comparable when they were "
            "made with the same data and the same split (run.seed), or evaluated on the same new data"
        )
    return {
        run: {key: column[[places[run][sample] for sample in shared]] for key, column in rows.items()}
        for run, rows in tables.items()
    }


def _check_truth(tables: Mapping[str, Rows], column: Any) -> None:
    """Refuse runs whose samples have other labels."""
    if not isinstance(column, str) or any(column not in rows for rows in tables.values()):
        return
    first = next(iter(tables))
    truth = tables[first][column]
    for run, rows in tables.items():
        if rows[column].shape != truth.shape:
            raise DataError(f"{column!r} has another shape in {run} than in {first}: these runs are not of one task")
        differ = (rows[column] != truth) & ~(_is_nan(rows[column]) & _is_nan(truth))
        wrong = np.flatnonzero(differ.reshape(len(truth), -1).any(axis=1))
        if len(wrong):
            raise DataError(
                f"{len(wrong)} samples have another {column!r} in {run} than in {first} "
                f"(first: {rows['sample_id'][wrong[0]]}): these runs were made with different labels"
            )


def _is_nan(values: Array) -> Array:
    return np.isnan(values) if values.dtype.kind == "f" else np.zeros(values.shape, dtype=bool)


def _compute(metric: Metric, rows: Rows, strict_: bool) -> dict[str, float]:
    try:
        return metric.compute(rows)
    except (ValueError, ZeroDivisionError):
        if strict_:
            raise
        return {}


def _with_limits(score: Score) -> str:
    if math.isnan(score.value):
        return "–"
    return f"{score.value:.3f}" + ("" if math.isnan(score.low) else f" ({score.low:.3f} to {score.high:.3f})")


def _without_empty_note(table: pd.DataFrame) -> pd.DataFrame:
    return table if "note" not in table or table["note"].any() else table.drop(columns="note")


def _page(compared: ComparedRuns) -> list[Section]:
    skipped = f" Not compared, because not every run has it: {', '.join(compared.skipped)}." if compared.skipped else ""
    sections = [
        Section(
            "Runs",
            text="All runs are scored on what every one of them scored. Limits are 95% percentiles of a bootstrap that "
            "draws the same participants for every run; p-values are two-sided and not adjusted for the number of "
            f"comparisons.{skipped}",
            tables={"What was scored": runs_table(compared)},
        )
    ]
    stems: set[str] = set()
    for made in compared.comparisons:
        for unit in made.units:
            stem = unit.name if unit.name not in stems else f"{unit.name}_{len(stems) + 1}"
            stems.add(stem)
            section = Section(f"By {unit.name}", text=counts_text(unit))
            section.tables["Values"] = scores_table(unit)
            section.figures[f"values_{stem}"] = values_figure(unit)
            if len(compared.runs) > 1:
                section.tables["Differences"] = differences_table(unit)
                section.figures[f"differences_{stem}"] = differences_figure(unit)
            sections.append(section)
        sections.extend(made.sections)
    return sections


def counts_text(unit: Unit) -> str:
    """What was counted, in words."""
    return ", ".join(f"{number} {what.replace('_', ' ')}" for what, number in unit.counts.items()) + "."


def values_figure(unit: Unit) -> Figure:
    """A panel for each value: every run's, with its limits."""
    points = {
        name: [(run, score.value, score.low, score.high) for run, score in scores.items()]
        for name, scores in unit.scores.items()
    }
    return _forest(points, None)


def differences_figure(unit: Unit) -> Figure:
    """A panel for each value: every pair's difference with its limits, beside the line of no difference."""
    points = {
        name: [(f"{one.first} − {one.second}", one.value, one.low, one.high) for one in differences]
        for name, differences in unit.differences.items()
    }
    return _forest(points, 0.0)


def _forest(points: Mapping[str, Sequence[tuple[str, float, float, float]]], line: float | None) -> Figure:
    from matplotlib.figure import Figure

    columns = min(4, max(1, len(points)))
    rows = -(-len(points) // columns)
    lines = max((len(many) for many in points.values()), default=0)
    widest = max((len(label) for many in points.values() for label, *_ in many), default=0)
    width = min(16.0, 0.075 * widest + 2.6 * columns)
    figure = Figure(figsize=(width, rows * (0.9 + 0.3 * lines)), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for axes, (name, many) in zip(panels, points.items(), strict=False):
        _draw_forest(axes, name, many, line)
    for axes in panels[len(points) :]:
        axes.set_axis_off()
    return figure


def _draw_forest(axes: Axes, name: str, many: Sequence[tuple[str, float, float, float]], line: float | None) -> None:
    for place, (_, value, low, high) in enumerate(many):
        colour = COLOURS[place % len(COLOURS)] if line is None else "#374151"
        if math.isnan(value):
            axes.text(
                0.5, place, "undefined", transform=axes.get_yaxis_transform(), ha="center", va="center", fontsize=8
            )
            continue
        if not math.isnan(low):
            axes.plot([low, high], [place, place], color=colour, linewidth=1.8, solid_capstyle="butt")
        axes.plot(value, place, "o", color=colour, markersize=6)
    if line is not None:
        axes.axvline(line, color="#6b7280", linewidth=1, linestyle=(0, (4, 3)))
    axes.set_yticks(range(len(many)), [label for label, *_ in many], fontsize=9)
    axes.set(title=name, ylim=(len(many) - 0.5, -0.5))
    axes.tick_params(axis="y", length=0)
    axes.locator_params(axis="x", nbins=5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
