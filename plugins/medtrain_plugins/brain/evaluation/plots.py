"""The report of a brain model: curves and confusion matrix, scatter plots, best and worst images.

Figures are plain matplotlib `Figure` objects, without pyplot, so without global state or a display.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from medtrain import Run
from medtrain.protocols import Array, Rows, Section, move_batch

from medtrain_plugins.brain.evaluation.metrics import (
    ClassificationMetrics,
    auc,
    average_precision,
    confusion_matrix,
    image_rows,
    unusable,
)
from medtrain_plugins.brain.model.model import OUTPUTS, as_model
from medtrain_plugins.brain.options import BrainOptions

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

BLUE, RED, GREY, PALE = "#1f6aad", "#d1495b", "#6b7280", "#9ecae1"
BINS = 10  # bins of the calibration
SHOWN = 3  # number of best and of worst images


def brain_sections(run: Run, options: BrainOptions) -> list[Section]:
    """The sections of the run's evaluation, by task; none without samples or for outputs that are not finite."""
    rows: Rows = run.evaluation.rows if run.evaluation else {}
    if not len(rows.get("sample_id", ())):
        return []
    if options.task == "classification":
        return [] if unusable(rows, "probability") else classification_sections(rows, options)
    if options.task == "regression":
        return [] if unusable(rows, "prediction") else [regression_section(rows, options)]
    score = "dice" if options.task == "segmentation" else "psnr"
    return [image_section(run, rows, options, score)]


def classification_sections(rows: Rows, options: BrainOptions) -> list[Section]:
    """ROC and precision-recall curves, the confusion matrix, and the calibration of probabilities."""
    images = image_rows(rows, ("probability",))
    label, probability = images["label"], images["probability"]
    metric = ClassificationMetrics(options.classes, options.threshold)
    matrix = confusion_matrix(label, metric.decide(probability), len(options.classes))
    parts = f", put together from {len(rows['label'])} parts" if len(rows["label"]) != len(label) else ""
    decision = (
        f"at a probability of {options.threshold:g}" if len(options.classes) == 2 else "for the most probable one"
    )
    positive = f" Positive is {options.classes[1]}." if len(options.classes) == 2 else ""
    return [
        Section(
            "Classes",
            f"{len(label)} images{parts}; a class is said {decision}.{positive}",
            {"By class": class_table(matrix, label, probability, options.classes)},
            {"brain_roc": curves_figure(label, probability, options.classes)},
        ),
        Section(
            "Confusions", "Rows are true classes.", {}, {"brain_confusion": confusion_figure(matrix, options.classes)}
        ),
        Section(
            "Calibration",
            "Observed frequency of a class at each predicted probability; on the diagonal both are equal. "
            f"Expected calibration error of the most probable class: {calibration_error(label, probability):.3f}.",
            {},
            {"brain_calibration": calibration_figure(label, probability, options.classes)},
        ),
    ]


def class_table(matrix: Array, label: Array, probability: Array, classes: list[str]) -> pd.DataFrame:
    """One row per class: images, precision, recall, AUC and average precision against the rest."""
    import pandas as pd

    with np.errstate(invalid="ignore", divide="ignore"):
        recall, precision = matrix.diagonal() / matrix.sum(axis=1), matrix.diagonal() / matrix.sum(axis=0)
    return pd.DataFrame(
        {
            "class": classes,
            "images": matrix.sum(axis=1),
            "precision": precision,
            "recall": recall,
            "AUC": [auc(label == k, probability[:, k]) for k in range(len(classes))],
            "average precision": [average_precision(label == k, probability[:, k]) for k in range(len(classes))],
        }
    )


def curves_figure(label: Array, probability: Array, classes: list[str]) -> Figure:
    """ROC and precision-recall curves of every class against the rest; of two, of the second one."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number in [1] if len(classes) == 2 else range(len(classes)):
        positive, score = label == number, probability[:, number]
        if positive.all() or not positive.any():
            continue
        order = np.argsort(-score, kind="stable")
        hits = np.cumsum(positive[order])
        last = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
        true, false = hits[last], last + 1 - hits[last]
        recall = true / positive.sum()
        name = f"{classes[number]} (AUC {auc(positive, score):.3f})"
        left.plot(np.append(0, false / (~positive).sum()), np.append(0, recall), label=name)
        right.step(np.append(0, recall), np.append(1, true / (true + false)), where="pre", label=classes[number])
    left.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle="--")
    left.set(xlabel="1 - specificity", ylabel="sensitivity", title="ROC", aspect="equal")
    right.set(xlabel="sensitivity (recall)", ylabel="precision", title="Precision and recall", ylim=(-0.02, 1.02))
    for axes in (left, right):
        _tidy(axes)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, loc="lower right" if axes is left else "lower left", fontsize=8)
    return figure


def confusion_figure(matrix: Array, classes: list[str]) -> Figure:
    """The confusion matrix, with rows coloured by shares."""
    size = max(3.2, 0.5 * len(classes) + 2)
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (true, said), count in np.ndenumerate(matrix):
        colour = "white" if shares[true, said] > 0.6 else "black"
        axes.text(said, true, str(count), ha="center", va="center", color=colour)
    ticks = range(len(classes))
    axes.set_xticks(ticks, classes, rotation=45 if len(classes) > 4 else 0)
    axes.set_yticks(ticks, classes)
    axes.set(xlabel="predicted", ylabel="true")
    return figure


def calibration_figure(label: Array, probability: Array, classes: list[str]) -> Figure:
    """Observed share by predicted probability, in bins, for the second of two classes or for each class."""
    figure = Figure(figsize=(4.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for number in [1] if len(classes) == 2 else range(len(classes)):
        bins = np.minimum((probability[:, number] * BINS).astype(int), BINS - 1)
        used = np.unique(bins)
        said = [probability[bins == b, number].mean() for b in used]
        seen = [(label[bins == b] == number).mean() for b in used]
        axes.plot(said, seen, marker="o", label=classes[number])
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle="--")
    axes.set(xlabel="predicted probability", ylabel="observed share", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.legend(frameon=False, fontsize=8)
    _tidy(axes)
    return figure


def calibration_error(label: Array, probability: Array) -> float:
    """The mean distance of confidence and accuracy over bins of confidence, weighted by images."""
    confidence, hit = probability.max(axis=1), probability.argmax(axis=1) == label
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    distances = [
        abs(confidence[bins == b].mean() - hit[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins)
    ]
    return float(np.sum(distances))


def regression_section(rows: Rows, options: BrainOptions) -> Section:
    """Prediction against truth, and the error against the truth (a slope there is regression to the mean)."""
    images = image_rows(rows, ("prediction",))
    label, prediction = images["label"], images["prediction"]
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    ends = [min(label.min(), prediction.min()), max(label.max(), prediction.max())]
    left.plot(ends, ends, color=GREY, linewidth=0.8, linestyle="--")
    left.scatter(label, prediction, s=14, color=BLUE, alpha=0.7)
    left.set(xlabel=f"{options.label}, true", ylabel="predicted", title="Prediction")
    right.axhline(0, color=GREY, linewidth=0.8, linestyle="--")
    right.scatter(label, prediction - label, s=14, color=RED, alpha=0.7)
    right.set(xlabel=f"{options.label}, true", ylabel="predicted - true", title="Error")
    for axes in (left, right):
        _tidy(axes)
    return Section("Predictions", f"{len(label)} images.", {}, {"brain_scatter": figure})


def image_section(run: Run, rows: Rows, options: BrainOptions, score: str) -> Section:
    """The samples with the highest and lowest score and, if the run's data are available, their images."""
    import pandas as pd

    values = rows[score].astype(np.float64).reshape(len(rows[score]), -1)
    known = np.flatnonzero(np.isfinite(values).any(axis=1))
    if not len(known):
        return Section("Images", f"No image has a finite {score}.")
    means = np.array([np.mean(values[i][np.isfinite(values[i])]) for i in known])
    order = known[np.argsort(-means, kind="stable")]
    chosen = list(dict.fromkeys([*order[:SHOWN], *order[-SHOWN:]]))
    mean_of = dict(zip(known.tolist(), means.tolist(), strict=True))
    table = pd.DataFrame({"sample": [str(rows["sample_id"][i]) for i in chosen], score: [mean_of[i] for i in chosen]})
    section = Section("Images", f"The best and the worst by {score}.", {"Best and worst": table})
    group = run.evaluation.group if run.evaluation else ""
    dataset = getattr(run.data, group, None) if run.data else None
    if dataset is not None and len(dataset) == len(rows["sample_id"]):
        section.figures["brain_images"] = images_figure(run, dataset, [int(i) for i in chosen], mean_of, options)
    return section


def images_figure(
    run: Run, dataset: Any, chosen: list[int], score_of: dict[int, float], options: BrainOptions
) -> Figure:
    """One column per sample: a plane with true and predicted mask, or image and reconstruction."""
    import torch

    model = as_model(run.model, options).eval()
    figure = Figure(figsize=(2.3 * len(chosen), 4.8), layout="constrained")
    grid = figure.subplots(2, len(chosen), squeeze=False)
    for column, number in enumerate(chosen):
        sample = dataset[number]
        image = sample["image"]
        with torch.no_grad():
            outputs = model(move_batch({"image": image[None]}, run.device))
        result = outputs[OUTPUTS[options.task]][0].float().cpu()
        if options.task == "segmentation":
            overlays = [sample["mask"][0].numpy(), result.argmax(dim=0).numpy()]
        else:
            overlays = [image[0].numpy(), result[0].numpy()]
        plane = _plane(overlays[0] if options.task == "segmentation" else image[0].numpy())
        background = image[0].numpy()[plane].T
        for row, overlay in enumerate(overlays):
            axes = grid[row, column]
            if options.task == "segmentation":
                axes.imshow(background, cmap="gray", origin="lower")
                shown = overlay[plane].T
                axes.imshow(np.ma.masked_equal(shown, 0), cmap="tab10", origin="lower", alpha=0.6, vmin=0, vmax=10)
            else:
                limits = {"vmin": float(background.min()), "vmax": float(background.max())}
                axes.imshow(overlay[plane].T, cmap="gray", origin="lower", **limits)
            axes.set_axis_off()
        grid[0, column].set_title(f"{sample['sample_id']}\n{score_of[number]:.3f}", fontsize=7)
    return figure


def _plane(volume: Array) -> Any:
    """The plane along the last axis with most labels, else the middle one; of a slice, all of it."""
    if volume.ndim == 2:
        return (slice(None), slice(None))
    counts = (volume > 0).sum(axis=(0, 1)) if volume.dtype.kind in "iu" else np.zeros(volume.shape[2])
    best = int(counts.argmax()) if counts.any() else volume.shape[2] // 2
    return (slice(None), slice(None), best)


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
