"""Results across the splits of a run: mean, spread and interval, pooled predictions, and the folds as an ensemble."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from medtrain.errors import DataError
from medtrain.protocols import Evaluation, Metric, Rows, Section, compute_all
from medtrain.rundir import Maps, predictions, strict, write_json
from medtrain.statistics import Spread, spread

from medtrain_plugins.results import report

if TYPE_CHECKING:
    import pandas as pd
    from medtrain import Trainer

log = logging.getLogger("medtrain")


@dataclass
class FoldResults:
    """One group's results over the splits of a run.

    by_fold: split number -> value by name. pooled: all predictions together, where no sample is in two folds.
    ensemble: predictions averaged over folds, where all folds scored the same samples. Each comes with `rows`; what
    does not exist has its reason in `notes`.
    """

    group: str
    by_fold: dict[int, dict[str, float]]
    spread: dict[str, Spread]
    pooled: Evaluation | None = None
    ensemble: Evaluation | None = None
    notes: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Everything as strict JSON; undefined values are null."""
        described: dict[str, Any] = {
            "group": self.group,
            "folds": {str(number): values for number, values in self.by_fold.items()},
            "spread": {name: vars(spread) for name, spread in self.spread.items()},
            "notes": self.notes,
        }
        for name in ("pooled", "ensemble"):
            evaluation: Evaluation | None = getattr(self, name)
            described[name] = None if evaluation is None else evaluation.metrics
        return strict(described)  # type: ignore[no-any-return]


def evaluate_folds(trainer: Trainer, group: str, **options: Any) -> FoldResults:
    """Evaluate and report a group on every split of a run, then on all of them together.

    options: those of `Trainer.evaluate`.
    """
    assert trainer.path is not None
    maps = Maps.open(trainer.path)
    evaluations = {}
    for folder in maps.splits():
        evaluations[folder.number] = trainer.evaluate(group, split_idx=folder.number, **options)
        trainer.report()
    run = trainer.run
    assert run is not None
    metrics = trainer.plugins.first_result("build_metrics", config=run.config, data=run.data)
    return across_folds(group, evaluations, metrics if isinstance(metrics, list) else [])


def average_predictions(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Several folds' predictions for the same input: the mean of real numbers, everything else as all agree on it.

    Other columns on which they differ (a class, a file each has written) are left out, and named. Raises DataError when
    the folds predict different rows.
    """
    first = tables[0]
    averaged = first.copy()
    for name in first.columns:
        if any(name not in table or len(table) != len(first) for table in tables):
            raise DataError("the splits predict tables of different shape: there is nothing to average")
        columns = [table[name] for table in tables]
        if all(column.equals(first[name]) for column in columns):
            continue
        if all(column.dtype.kind == "f" for column in columns):
            averaged[name] = np.mean([column.to_numpy() for column in columns], axis=0)
        else:
            log.info("left out: %s, on which the splits differ; each tells its own with --split", name)
            averaged = averaged.drop(columns=name)
    return averaged


def across_folds(group: str, evaluations: dict[int, Evaluation], metrics: Sequence[Metric]) -> FoldResults:
    """The results of several splits' evaluations of one group. metrics: for pooled and averaged predictions."""
    names = list(dict.fromkeys(name for evaluation in evaluations.values() for name in evaluation.metrics))
    by_fold = {number: dict(evaluation.metrics) for number, evaluation in evaluations.items()}
    spreads = {name: spread([values.get(name, math.nan) for values in by_fold.values()]) for name in names}
    results = FoldResults(group, by_fold, spreads)
    tables = [evaluation.rows for evaluation in evaluations.values()]
    for name, make in (("pooled", pool), ("ensemble", average)):
        try:
            rows = make(tables)
        except DataError as error:
            results.notes[name] = str(error)
            continue
        values, reasons = compute_all(list(metrics), rows)
        setattr(results, name, Evaluation(group, values, rows, reasons))
    return results


def pool(tables: Sequence[Rows]) -> Rows:
    """All rows under each other; DataError when a sample is in two of the tables."""
    _same_columns(tables)
    ids = np.concatenate([table["sample_id"] for table in tables])
    if len(set(map(str, ids))) < len(ids):
        raise DataError("the folds share samples: their predictions are averaged, not pooled")
    return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}


def average(tables: Sequence[Rows]) -> Rows:
    """The mean of every number over the folds, sample by sample; what all folds agree on (the truth) stays as it is.

    DataError when the folds scored different samples, or disagree on something that is no real number.
    """
    _same_columns(tables)
    order = [np.argsort(table["sample_id"].astype(str), kind="stable") for table in tables]
    ids = tables[0]["sample_id"][order[0]].astype(str)
    if any(not np.array_equal(table["sample_id"][o].astype(str), ids) for table, o in zip(tables, order, strict=True)):
        raise DataError("the folds scored different samples: there is nothing to average")
    averaged: Rows = {}
    for name in tables[0]:
        columns = [table[name][o] for table, o in zip(tables, order, strict=True)]
        if all(_equal(columns[0], column) for column in columns[1:]):
            averaged[name] = columns[0]
        elif all(np.issubdtype(column.dtype, np.floating) for column in columns):
            averaged[name] = np.mean(np.stack(columns), axis=0)
        else:
            raise DataError(f"the folds disagree on {name!r}, which is no real number and cannot be averaged")
    return averaged


def write_folds(maps: Maps, results: FoldResults, title: str) -> Path:
    """Write folds.json, the predictions and report.html to `folds-<group>`; returns the folder."""
    folder = maps.folds(results.group)
    report.make_folder(folder)
    write_json(folder / "folds.json", results.to_json())
    sections = [_overview(results)]
    for name in ("pooled", "ensemble"):
        evaluation: Evaluation | None = getattr(results, name)
        if evaluation is not None:
            table = predictions(evaluation.rows)
            table.to_parquet(folder / f"{name}.parquet", index=False)
            table.to_csv(folder / f"{name}.csv", index=False)
            facts = "all predictions together" if name == "pooled" else "predictions averaged over the folds"
            sections.append(Section(name.capitalize(), f"{len(table)} samples, {facts}.", {"": _values(evaluation)}))
    numbers = ", ".join(str(number) for number in results.by_fold)
    report.write_page(folder, title, f"Run {maps.path.name}, splits {numbers}.", sections)
    return folder


def _overview(results: FoldResults) -> Section:
    import pandas as pd

    rows = []
    for name, one in results.spread.items():
        row: dict[str, Any] = {"metric": name, "mean": one.mean, "SD": one.sd}
        row["95 % CI"] = "" if math.isnan(one.low) else f"{one.low:.3f} to {one.high:.3f}"
        row |= {f"split {number}": values.get(name, math.nan) for number, values in results.by_fold.items()}
        rows.append(row)
    text = "; ".join(f"{name}: {reason}" for name, reason in results.notes.items())
    return Section("Over the folds", text, {f"Group {results.group}": pd.DataFrame(rows)})


def _values(evaluation: Evaluation) -> Any:
    import pandas as pd

    reasons = evaluation.reasons
    rows = [{"metric": k, "value": v, "note": reasons.get(k, "")} for k, v in evaluation.metrics.items()]
    return pd.DataFrame(rows)


def _same_columns(tables: Sequence[Rows]) -> None:
    if any(table.keys() != tables[0].keys() for table in tables):
        raise DataError("the folds' predictions have different columns")


def _equal(one: Any, other: Any) -> bool:
    if one.dtype == object or other.dtype == object:
        return bool(np.array_equal(one, other))
    return bool(np.array_equal(one, other, equal_nan=np.issubdtype(one.dtype, np.floating)))
