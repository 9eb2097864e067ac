"""The report of a sign model: recognition by sign, confusions, signers, training curves.

Tables have the Arabic names, which a browser renders; figures name signs by number and English name. Figures are plain
matplotlib `Figure` objects, without pyplot, so without global state or a display.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from medtrain import Run
from medtrain.protocols import Array, Rows, Section

from medtrain_plugins.sign.data.signs import Sign, signs_of
from medtrain_plugins.sign.evaluation.metrics import CONFUSIONS, TOP, confusion_matrix, per_class
from medtrain_plugins.sign.options import KArSLOptions

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

MOST = 30  # largest number of signs in one figure or table
LOW = 0.5  # of F1
NAME_LENGTH = 24
BLUE, RED, GREY, PALE = "#1f6aad", "#d1495b", "#6b7280", "#9ecae1"


def sign_sections(run: Run, options: KArSLOptions) -> list[Section]:
    """The sections of a sign model's report; none without clips, or if a probability is not finite."""
    rows: Rows = run.evaluation.rows if run.evaluation else {}
    if not len(rows.get("rank", ())) or not np.isfinite(rows["probability"]).all():
        return []
    signs = signs_of(run, options)
    sections = [sign_section(rows, signs), confusion_section(rows, signs), signer_section(rows, len(signs))]
    if (figure := training_figure(run.maps.history() if run.maps else [])) is not None:
        sections.append(Section("Training", figures={"sign_training": figure}))
    return sections


def sign_section(rows: Rows, signs: list[Sign]) -> Section:
    """Precision, recall, F1 and support: averages, and the signs with the lowest F1."""
    import pandas as pd

    scores = per_class(rows, len(signs))
    occurring = np.flatnonzero(scores["support"] + scores["predicted"])
    order = occurring[np.lexsort((occurring, scores["f1"][occurring]))]
    worst = order[:MOST]
    table = _names_table([signs[i] for i in worst])
    # There is no recall without a clip of the sign, and no precision without a prediction of it.
    defined = {"precision": scores["predicted"], "recall": scores["support"], "f1": scores["support"]}
    for name, needed in defined.items():
        table[name] = [float(scores[name][i]) if needed[i] else np.nan for i in worst]
    table["clips"] = scores["support"][worst]

    weights = scores["support"] / scores["support"].sum()
    averages = [
        {"average": title, **{name: float((scores[name] * share).sum()) for name in defined}}
        for title, share in (
            ("macro (signs alike)", _share_of(occurring, len(signs))),
            ("weighted (by clips)", weights),
        )
    ]
    absent = len(signs) - int((scores["support"] > 0).sum())
    text = f"{len(rows['rank'])} clips."
    if absent:
        text += f" {absent} of {len(signs)} signs have no clip in this group."
    caption = f"Signs, lowest F1 first ({len(worst)} of {len(order)}; all are in metrics.json)"
    return Section(
        "Signs",
        text,
        {"Averages": pd.DataFrame(averages), caption: table},
        {"sign_f1": f1_figure(scores, signs), "sign_worst": worst_figure(scores, signs, worst)},
    )


def confusion_section(rows: Rows, signs: list[Sign]) -> Section:
    """The confusion matrix, for many signs also that of the worst ones, and the most frequent confusions."""
    matrix = confusion_matrix(rows, len(signs))
    errors = matrix - np.diag(matrix.diagonal())
    section = Section("Confusions")
    if len(signs) <= MOST:
        section.figures["sign_confusion"] = named_matrix_figure(matrix, signs, np.arange(len(signs)))
    else:
        section.figures["sign_confusion"] = matrix_figure(matrix, signs)
    if not errors.any():
        section.text = "No clip was taken for another sign."
        return section
    involved = errors.sum(axis=1) + errors.sum(axis=0)
    if len(signs) > MOST:
        worst = np.argsort(-involved, kind="stable")[:MOST]
        worst = np.sort(worst[involved[worst] > 0])
        section.figures["sign_confusion_worst"] = named_matrix_figure(matrix, signs, worst)
    pairs = confused_pairs(errors)
    section.text = (
        f"{errors.sum()} of {matrix.sum()} clips were taken for another sign. Rows of the matrix are true signs, "
        "each row's colours add up to one; grey rows are signs without a clip."
    )
    section.tables[f"Most frequent confusions ({len(pairs)} of {np.count_nonzero(errors)} pairs)"] = _pairs_table(
        pairs, errors, matrix, signs
    )
    section.figures["sign_confusions"] = pairs_figure(pairs, errors, signs)
    return section


def signer_section(rows: Rows, classes: int) -> Section:
    """Top-1, top-5 and macro F1 of every signer's clips."""
    import pandas as pd

    lines = []
    for signer in np.unique(rows["signer"]).tolist():
        mine: Rows = {name: rows[name][rows["signer"] == signer] for name in ("label", "predicted", "rank")}
        scores = per_class(mine, classes)
        occurs = scores["support"] + scores["predicted"] > 0
        lines.append(
            {
                "signer": f"{signer:02d}",
                "clips": len(mine["rank"]),
                "signs": int((scores["support"] > 0).sum()),
                "top-1": float((mine["rank"] == 0).mean()),
                f"top-{TOP}": float((mine["rank"] < TOP).mean()),
                "macro F1": float(scores["f1"][occurs].mean()),
            }
        )
    table = pd.DataFrame(lines)
    return Section("Signers", tables={"By signer": table}, figures={"sign_signers": signers_figure(table)})


def confused_pairs(errors: Array, count: int = CONFUSIONS) -> list[tuple[int, int]]:
    """True and predicted class of the most frequent errors (classes, classes), the most frequent first."""
    flat = np.argsort(-errors, axis=None, kind="stable")[:count]
    pairs = np.stack(np.unravel_index(flat, errors.shape), axis=1)
    return [(true, said) for true, said in pairs.tolist() if errors[true, said]]


def matrix_figure(matrix: Array, signs: list[Sign]) -> Figure:
    """The confusion matrix of many signs; the axes are classes in order, some with their sign's number."""
    figure = Figure(figsize=(8.4, 7.4), layout="constrained")
    axes = figure.subplots()
    _draw_matrix(figure, axes, matrix)
    ticks = np.unique(np.linspace(0, len(signs) - 1, 11).round().astype(int))
    numbers = [str(signs[i].number) for i in ticks]
    axes.set_xticks(ticks, numbers)
    axes.set_yticks(ticks, numbers)
    axes.set(title=f"Confusion of {len(signs)} signs", xlabel="Predicted sign", ylabel="True sign")
    return figure


def named_matrix_figure(matrix: Array, signs: list[Sign], classes: Array) -> Figure:
    """The confusion matrix of a few classes with names and counts; all other predictions are in the last column."""
    names = [label(signs[i]) for i in classes]
    shown, columns = matrix[np.ix_(classes, classes)], list(names)
    if len(classes) < len(matrix):
        shown = np.column_stack([shown, matrix[classes].sum(axis=1) - shown.sum(axis=1)])
        columns.append("other signs")
    side = 0.3 * len(classes)
    figure = Figure(figsize=(3.8 + side, 2.8 + side), layout="constrained")
    axes = figure.subplots()
    shares = _draw_matrix(figure, axes, shown)
    axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=7.5)
    axes.set_yticks(range(len(names)), names, fontsize=7.5)
    for true, said in np.argwhere(shown).tolist():
        colour = "white" if shares[true, said] > 0.6 else "#1d2733"
        axes.text(said, true, str(shown[true, said]), ha="center", va="center", fontsize=6.5, color=colour)
    partial = f"the {len(classes)} most confused of " if len(classes) < len(matrix) else ""
    axes.set(title=f"Confusion of {partial}{len(matrix)} signs", xlabel="Predicted sign", ylabel="True sign")
    return figure


def _draw_matrix(figure: Figure, axes: Axes, matrix: Array) -> Array:
    """Draws counts as shares of their row, and returns the shares; rows without a clip stay grey."""
    clips = matrix.sum(axis=1, keepdims=True)
    shares: Array = np.where(clips > 0, matrix / np.maximum(clips, 1), np.nan)
    axes.set_facecolor("#d1d5db")
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest", aspect="equal")
    figure.colorbar(image, ax=axes, shrink=0.6, label="Share of the true sign's clips")
    return shares


def f1_figure(scores: dict[str, Array], signs: list[Sign]) -> Figure:
    """F1 of every sign that has clips, in the order of their numbers; low ones in red."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.subplots()
    numbers, f1 = np.array([sign.number for sign in signs]), scores["f1"]
    there = scores["support"] > 0
    for chosen, colour, name in (
        (there & (f1 >= LOW), BLUE, f"{LOW} or more"),
        (there & (f1 < LOW), RED, f"below {LOW}"),
    ):
        size = 30 if len(signs) <= MOST else 12
        axes.scatter(numbers[chosen], f1[chosen], s=size, color=colour, label=f"{name}: {chosen.sum()} signs")
    axes.axhline(LOW, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    axes.set(ylim=(-0.05, 1.05), xlabel="Sign", ylabel="F1", title="F1 by sign")
    axes.set_xlim(numbers[0] - 1, numbers[-1] + 1)
    axes.locator_params(axis="x", integer=True)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=9, frameon=False)
    _tidy(axes)
    return figure


def worst_figure(scores: dict[str, Array], signs: list[Sign], worst: Array) -> Figure:
    """Precision, recall and F1 of the signs with the lowest F1."""
    figure = Figure(figsize=(7, 1.4 + 0.24 * len(worst)), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(worst))
    axes.barh(places, scores["f1"][worst], color=PALE, height=0.7, label="F1")
    for name, colour, marker in (("precision", BLUE, "o"), ("recall", RED, "D")):
        axes.plot(scores[name][worst], places, marker, color=colour, markersize=4, label=name.capitalize())
    axes.set_yticks(places, [f"{label(signs[i])}  (n = {scores['support'][i]})" for i in worst], fontsize=8)
    axes.set(xlim=(-0.02, 1.02), ylim=(len(worst) - 0.4, -0.6), title="Signs with the lowest F1")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=9, frameon=False)
    _tidy(axes)
    return figure


def pairs_figure(pairs: list[tuple[int, int]], errors: Array, signs: list[Sign]) -> Figure:
    """Clips of the most frequent confusions, true sign first."""
    figure = Figure(figsize=(8, 1.2 + 0.26 * len(pairs)), layout="constrained")
    axes = figure.subplots()
    counts = [int(errors[pair]) for pair in pairs]
    axes.barh(range(len(pairs)), counts, color=RED, height=0.7)
    names = [f"{label(signs[true])} \N{RIGHTWARDS ARROW} {label(signs[said])}" for true, said in pairs]
    axes.set_yticks(range(len(pairs)), names, fontsize=8)
    axes.set(ylim=(len(pairs) - 0.4, -0.6), xlabel="Clips", title="Most frequent confusions")
    axes.locator_params(axis="x", integer=True)
    _tidy(axes)
    return figure


def signers_figure(table: pd.DataFrame) -> Figure:
    """Top-1 and top-5 by signer."""
    figure = Figure(figsize=(2.6 + 1.1 * min(len(table), 12), 3.2), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(table))
    for shift, name, colour in ((-0.19, "top-1", BLUE), (0.19, f"top-{TOP}", PALE)):
        bars = axes.bar(places + shift, table[name], width=0.36, color=colour, label=name)
        if len(table) <= 12:
            axes.bar_label(bars, fmt="%.2f", fontsize=8)
    axes.set_xticks(places, [f"{s}\nn = {n}" for s, n in zip(table["signer"], table["clips"], strict=True)])
    axes.set(ylim=(0, 1.08), xlabel="Signer", ylabel="Share of clips", title="Recognised, by signer")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=9, frameon=False)
    _tidy(axes)
    return figure


def training_figure(history: list[dict[str, Any]]) -> Figure | None:
    """Validation metrics and the learning rate by epoch; None for a run without history."""
    names = {"validation/top1": "top-1", f"validation/top{TOP}": f"top-{TOP}", "validation/macro_f1": "macro F1"}
    curves = {title: _curve(history, key) for key, title in names.items()}
    rates = _curve(history, "learning_rate")
    if not rates and not any(curves.values()):
        return None
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (title, points), colour in zip(curves.items(), (BLUE, PALE, RED), strict=True):
        if points:
            left.plot(*zip(*points, strict=True), marker=".", color=colour, label=title)
    left.set(ylim=(-0.02, 1.02), xlabel="epoch", title="Validation")
    if left.lines:
        left.legend(frameon=False)
    if rates:
        right.plot(*zip(*rates, strict=True), marker=".", color=GREY)
    right.set(xlabel="epoch", title="Learning rate")
    if rates and min(rate for _, rate in rates) > 0:
        right.set_yscale("log")
    for axes in (left, right):
        _tidy(axes)
        axes.locator_params(axis="x", integer=True)
    return figure


def label(sign: Sign) -> str:
    """A sign's number and English name, as text for a figure."""
    name = " ".join(sign.english.split())
    if len(name) > NAME_LENGTH:
        name = f"{name[: NAME_LENGTH - 1].rstrip()}\N{HORIZONTAL ELLIPSIS}"
    return f"{sign.number} {name}".strip().replace("$", r"\$")


def _curve(history: list[dict[str, Any]], key: str) -> list[tuple[int, float]]:
    return [(record["epoch"] + 1, record[key]) for record in history if record.get(key) is not None]


def _share_of(chosen: Array, count: int) -> Array:
    return np.isin(np.arange(count), chosen) / len(chosen)


def _names_table(signs: list[Sign], prefix: str = "") -> pd.DataFrame:
    """Number and, if there are names, columns with the Arabic and English ones."""
    import pandas as pd

    columns: dict[str, list[Any]] = {f"{prefix}sign".strip(): [sign.number for sign in signs]}
    if any(sign.arabic or sign.english for sign in signs):
        columns[f"{prefix}Arabic"] = [sign.arabic for sign in signs]
        columns[f"{prefix}English"] = [sign.english for sign in signs]
    return pd.DataFrame(columns)


def _pairs_table(pairs: list[tuple[int, int]], errors: Array, matrix: Array, signs: list[Sign]) -> pd.DataFrame:
    import pandas as pd

    true = _names_table([signs[i] for i, _ in pairs], "true ")
    said = _names_table([signs[i] for _, i in pairs], "predicted ")
    clips = [int(errors[pair]) for pair in pairs]
    shares = [f"{errors[i, j] / matrix[i].sum():.0%}" for i, j in pairs]
    return pd.concat([true, said, pd.DataFrame({"clips": clips, "of the true sign's": shares})], axis=1)


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
