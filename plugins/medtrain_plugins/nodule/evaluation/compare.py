"""Comparison of finished runs of `pivot`: on the scans they share, with the same bootstrap resamples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from medtrain.errors import DataError
from medtrain.protocols import Comparison, Rows, Unit

from medtrain_plugins.nodule.evaluation.froc import RATES, Marks, bootstrap_sensitivities
from medtrain_plugins.nodule.evaluation.rows import evaluate_rows, values_of
from medtrain_plugins.nodule.options import EvaluationOptions


def compare_detections(
    tables: Mapping[str, Rows],
    options: Mapping[str, EvaluationOptions],
    names: Sequence[str],
    seed: int,
    replicates: int,
) -> Comparison:
    """The values `names` of several runs on the scans that all of them searched, and their differences.

    CPM and sensitivities have limits from a bootstrap of scans, with the same resamples for every run. Raises DataError
    if the runs share no scan, or if the scans' nodules differ.
    """
    shared = _shared(tables)
    values: dict[str, dict[str, float]] = {}
    draws: dict[str, dict[str, np.ndarray]] = {}
    nodules = 0
    for run, rows in shared.items():
        found = evaluate_rows(rows, options[run])
        nodules = found.counts["nodules"]
        marks = Marks.of(found.matching, found.candidates)
        drawn = bootstrap_sensitivities(marks, replicates, seed, RATES, options[run].protocol)
        known = {"cpm": drawn.mean(axis=1)} | {f"sensitivity_at_{rate:g}": drawn[:, i] for i, rate in enumerate(RATES)}
        for name, value in values_of(rows, names, options[run]).items():
            values.setdefault(name, {})[run] = value
            draws.setdefault(name, {})[run] = known.get(name, np.full(replicates, np.nan))
    scans = sum(next(iter(shared.values()))["kind"] == "scan")
    return Comparison([Unit.of("scan", {"scans": int(scans), "nodules": nodules}, values, draws)], {"drawn_by": "scan"})


def _shared(tables: Mapping[str, Rows]) -> dict[str, Rows]:
    """The rows of the scans that are in every table, in one order of scans."""
    scans = [set(rows["series"][rows["kind"] == "scan"].tolist()) for rows in tables.values()]
    series = sorted(set.intersection(*scans))
    if not series:
        raise DataError("these runs have no scan in common")
    place = {name: number for number, name in enumerate(series)}
    found = {}
    truths: dict[str, list[tuple[float, ...]]] = {}
    for run, rows in tables.items():
        at = np.array([place.get(name, -1) for name in rows["series"]])
        order = np.argsort(at, kind="stable")
        order = order[at[order] >= 0]
        found[run] = {name: column[order] for name, column in rows.items()}
        chosen = np.isin(found[run]["kind"], ["nodule", "irrelevant"])
        columns = [found[run][name][chosen].tolist() for name in ("series", "kind", "x", "y", "z", "diameter_mm")]
        truths[run] = sorted(zip(*columns, strict=True))
    first, *others = truths
    for other in others:
        if truths[other] != truths[first]:
            raise DataError(f"the annotations of the scans differ between the runs {first} and {other}")
    return found
