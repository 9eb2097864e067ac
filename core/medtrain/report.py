"""Reports: sections that plugins fill in, written as PNG files and one self-contained HTML page."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medtrain.errors import UsageError
from medtrain.maps import strict, write_json, write_text

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from medtrain.metrics import Evaluation, Rows
    from medtrain.run import Run

METRICS, PREDICTIONS, REPORT, PLOTS = "metrics.json", "predictions", "report.html", "plots"

# Metadata of predictions.parquet, which make the table rows again.
SHAPES, PARTICIPANTS = "shapes", "participants"


@dataclass
class Section:
    """One part of a report.

    title: heading. text: a paragraph in plain text. tables: caption -> table. figures: file stem (letters, digits,
    `-`, `_`) -> matplotlib figure; each is also written as `plots/<stem>.png`.
    """

    title: str
    text: str = ""
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    figures: dict[str, Figure] = field(default_factory=dict)


def write_evaluation(folder: Path, run: Run, sections: Sequence[Section]) -> None:
    """Write `run.evaluation` to a folder: metrics.json, predictions.parquet and .csv, plots/*.png, report.html."""
    evaluation = run.evaluation
    assert evaluation is not None
    make_folder(folder)
    write_json(folder / METRICS, describe(run, evaluation))
    table = predictions(evaluation.rows)
    table.attrs[PARTICIPANTS] = _participants(run, evaluation)
    table.to_parquet(folder / f"{PREDICTIONS}.parquet", index=False)
    table.to_csv(folder / f"{PREDICTIONS}.csv", index=False)
    where = run.maps.path.parent.name if run.maps else ""
    checkpoint = run.checkpoint.name if run.checkpoint else "no checkpoint"
    write_page(
        folder,
        f"{', '.join(run.config.run.plugins)}: group {evaluation.group}",
        f"Run {where}, {checkpoint} (step {run.step}), {len(evaluation.rows['sample_id'])} samples.",
        [overview(run, evaluation), *sections],
    )


def make_folder(folder: Path) -> None:
    """Make the folder of a report; UsageError when it cannot be written."""
    try:
        (folder / PLOTS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written ({error.strerror}); give another --out") from None


def write_page(folder: Path, title: str, facts: str, sections: Sequence[Section]) -> None:
    """Write sections to a folder (`make_folder`) as plots/*.png and one self-contained report.html.

    facts: the line under the title.
    """
    images: dict[str, bytes] = {}
    for section in sections:
        for stem, figure in section.figures.items():
            images[stem] = _png(figure)
            (folder / PLOTS / f"{stem}.png").write_bytes(images[stem])
    write_text(folder / REPORT, _html(title, facts, sections, images))


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


def read_predictions(path: Path) -> tuple[Rows, list[str] | None] | None:
    """The rows of a predictions.parquet as they were, and the participant of each where they are known.

    None when the file does not tell the shapes of its columns.
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
    """The participant of each row, when the group is one of the run's data that tells them."""
    from medtrain.data import participants_of, sample_ids_of

    dataset = getattr(run.data, evaluation.group, None)
    if dataset is None or (participants := participants_of(dataset)) is None:
        return None
    participant_of = dict(zip(map(str, sample_ids_of(dataset)), map(str, participants), strict=True))
    found = [participant_of.get(str(sample)) for sample in evaluation.rows["sample_id"]]
    known = [participant for participant in found if participant is not None]
    return known if len(known) == len(found) else None


def overview(run: Run, evaluation: Evaluation) -> Section:
    """The core's own section: the metrics, and how training went."""
    import pandas as pd

    intervals = evaluation.details.get("intervals", {})
    rows = []
    for name, value in evaluation.metrics.items():
        low, high = intervals.get(name) or (None, None)
        rows.append({"metric": name, "value": value, "95 % CI": "" if low is None else f"{low:.3f} to {high:.3f}"})
        rows[-1]["note"] = evaluation.reasons.get(name, "")
    section = Section("Metrics", tables={f"Group {evaluation.group}": pd.DataFrame(rows)})
    history = run.maps.history() if run.maps else []
    if history:
        section.figures["training"] = _training_figure(history, next(iter(_monitored(history)), None))
    return section


def _monitored(history: list[dict[str, Any]]) -> list[str]:
    names = {key: None for record in history for key in record if key.startswith("validation/")}
    return [name for name in names if not name.startswith("validation/loss")]


def _training_figure(history: list[dict[str, Any]], metric: str | None) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    losses, right = figure.subplots(1, 2)
    for key, label in (("train/loss", "training"), ("validation/loss", "validation")):
        points = [(r["epoch"] + 1, r[key]) for r in history if r.get(key) is not None]
        if points:
            losses.plot(*zip(*points, strict=True), marker=".", label=label)
    losses.set(xlabel="epoch", ylabel="loss", title="Loss")
    losses.legend(frameon=False)
    key = metric or "learning_rate"
    points = [(r["epoch"] + 1, r[key]) for r in history if r.get(key) is not None]
    if points:
        right.plot(*zip(*points, strict=True), marker=".", color="tab:green")
    right.set(xlabel="epoch", title=key.replace("/", " "))
    for axes in (losses, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # No date or version inside: the same evaluation gives the same bytes.
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def _html(title: str, facts: str, sections: Sequence[Section], images: dict[str, bytes]) -> str:
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("medtrain"), autoescape=True, trim_blocks=True)
    shown = [
        {
            "title": section.title,
            "text": section.text,
            "tables": [(caption, _table(table)) for caption, table in section.tables.items()],
            "figures": [(stem, base64.b64encode(images[stem]).decode()) for stem in section.figures],
        }
        for section in sections
    ]
    return environment.get_template("report.html").render(title=title, facts=facts, sections=shown)


def _table(table: pd.DataFrame) -> dict[str, Any]:
    import pandas as pd

    columns = [{"name": str(n), "numeric": pd.api.types.is_numeric_dtype(table[n])} for n in table.columns]
    return {"columns": columns, "rows": [[_cell(value) for value in row] for row in table.itertuples(index=False)]}


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
