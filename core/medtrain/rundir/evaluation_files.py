"""The files of an evaluation: metrics.json and the table of predictions, written and read again."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medtrain.rundir.files import strict

if TYPE_CHECKING:
    import pandas as pd

    from medtrain.protocols.metric import Evaluation, Rows
    from medtrain.run import Run

METRICS, PREDICTIONS, REPORT, PLOTS = "metrics.json", "predictions", "report.html", "plots"


# Metadata of predictions.parquet, which make the table rows again.
SHAPES, PARTICIPANTS = "shapes", "participants"


def describe(run: Run, evaluation: Evaluation) -> dict[str, Any]:
    """The evaluation as strict JSON: undefined values are null and say why."""
    described: dict[str, Any] = strict(
        {
            "group": evaluation.group,
            "samples": len(evaluation.rows["sample_id"]),
            "checkpoint": run.checkpoint.name if run.checkpoint else None,
            "epoch": run.epoch,
            "step": run.step,
            "seed": run.config.run.seed,
            "metrics": evaluation.metrics,
            "undefined": evaluation.reasons,
            "details": evaluation.details,
        }
    )
    return described


def predictions(rows: Rows) -> pd.DataFrame:
    """Rows as a table, one line per sample; a column of vectors becomes one column per component, from 1."""
    import pandas as pd

    columns: dict[str, Any] = {}
    for name, values in rows.items():
        if values.ndim == 1:
            columns[name] = values
        else:
            flat = values.reshape(len(values), math.prod(values.shape[1:]))
            columns |= {f"{name}_{i + 1}": flat[:, i] for i in range(flat.shape[1])}
    table = pd.DataFrame(columns)
    table.attrs[SHAPES] = {name: list(values.shape[1:]) for name, values in rows.items()}
    return table


def predictions_of(run: Run, evaluation: Evaluation) -> pd.DataFrame:
    """`predictions` of an evaluation, with the participant of each row where the run's data have them."""
    table = predictions(evaluation.rows)
    table.attrs[PARTICIPANTS] = _participants(run, evaluation)
    return table


def read_predictions(path: Path) -> tuple[Rows, list[str] | None] | None:
    """The rows of a predictions.parquet as they were, and the participant of each where they are known.

    None when the file does not record the shapes of its columns.
    """
    import pandas as pd

    table = pd.read_parquet(path)
    if SHAPES not in table.attrs:
        return None
    rows: Rows = {}
    for name, shape in table.attrs[SHAPES].items():
        if shape:
            parts = [table[f"{name}_{i + 1}"].to_numpy() for i in range(math.prod(shape))]
            rows[name] = np.stack(parts, axis=1).reshape(len(table), *shape)
        else:
            rows[name] = table[name].to_numpy()
    return rows, table.attrs.get(PARTICIPANTS)


def _participants(run: Run, evaluation: Evaluation) -> list[str] | None:
    """The participant of each row, when the group is one of the run's data that has them."""
    from medtrain.protocols.dataset import participants_of, sample_ids_of

    dataset = getattr(run.data, evaluation.group, None)
    if dataset is None or (participants := participants_of(dataset)) is None:
        return None
    participant_of = dict(zip(map(str, sample_ids_of(dataset)), map(str, participants), strict=True))
    found = [participant_of.get(str(sample)) for sample in evaluation.rows["sample_id"]]
    known = [participant for participant in found if participant is not None]
    return known if len(known) == len(found) else None
