"""Reports: sections that plugins fill in, written as PNG files and one self-contained HTML page."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medtrain.errors import UsageError
from medtrain.protocols import Section
from medtrain.rundir import METRICS, PLOTS, PREDICTIONS, REPORT, describe, predictions_of, write_json, write_text

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from medtrain import Run
    from medtrain.protocols import Evaluation


def write_evaluation(folder: Path, run: Run, sections: Sequence[Section]) -> None:
    """Write `run.evaluation` to a folder: metrics.json, predictions.parquet and .csv, plots/*.png, report.html."""
    evaluation = run.evaluation
    assert evaluation is not None
    make_folder(folder)
    write_json(folder / METRICS, describe(run, evaluation))
    table = predictions_of(run, evaluation)
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

    environment = Environment(loader=PackageLoader("medtrain_plugins.results"), autoescape=True, trim_blocks=True)
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
