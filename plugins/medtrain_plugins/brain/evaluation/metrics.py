"""Metrics of predictions: classes, numbers, segmentations and reconstructions.

Scores of classes are computed on decisions made at a threshold (or the most probable class), never on raw outputs.
Patches and slices of one image are combined first: an image's probability is the mean over its parts.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from medtrain.protocols import Array, Rows, Undefined
from medtrain.statistics import percentile_interval, resampled_clusters
from torch import Tensor

from medtrain_plugins.brain.model.losses import mask_labels, ssim_window

REPLICATES = 1000  # replicates of the bootstrap over participants
IDS = ("participant_id", "session_id")
ENOUGH_DRAWS = 0.9  # smallest share of draws with a defined value, for an interval


class ClassificationMetrics:
    """Scores of `logits` (B, C) against `label` (B,), by image.

    classes: their names. threshold: with two classes, the smallest probability at which the second (positive) class is
    predicted; with more classes, the most probable one is. Sensitivity, specificity, F1, AUC and average precision of
    more than two classes are means over the classes, each against the rest.
    """

    mode: Literal["max", "min"] = "max"
    target = "label"  # compared runs must agree on these
    names: Sequence[str] = (
        "balanced_accuracy",
        "accuracy",
        "sensitivity",
        "specificity",
        "f1",
        "mcc",
        "auc",
        "average_precision",
    )

    def __init__(self, classes: Sequence[str], threshold: float = 0.5) -> None:
        self.classes, self.threshold = list(classes), threshold

    def rows(self, outputs: dict[str, Any], batch: dict[str, Any]) -> dict[str, Any]:
        """`label` (B,), `probability` (B, C) float32, `participant_id`, `session_id`."""
        probability = outputs["logits"].float().softmax(dim=1)
        return {"label": batch["label"].long(), "probability": probability, **ids_of(batch)}

    def compute(self, rows: Rows) -> dict[str, float]:
        """Every value of `names`; undefined if a class has no image, or the model diverged."""
        if (reason := unusable(rows, "probability")) is not None:
            return {name: Undefined(reason) for name in self.names}
        images = image_rows(rows, ("probability",))
        label, probability = images["label"], images["probability"]
        matrix = confusion_matrix(label, self.decide(probability), len(self.classes))
        return class_scores(matrix, self.classes) | ranking_scores(label, probability, self.classes)

    def decide(self, probability: Array) -> Array:
        """The predicted classes (N,) of probabilities (N, C)."""
        if len(self.classes) == 2:
            return (probability[:, 1] >= self.threshold).astype(np.int64)
        said: Array = probability.argmax(axis=1)
        return said

    def details(self, rows: Rows, seed: int) -> dict[str, Any]:
        """95 % intervals from a bootstrap of participants, the confusion matrix and its classes."""
        if (reason := unusable(rows, "probability")) is not None:
            return {"reason": reason}
        images = image_rows(rows, ("probability",))
        matrix = confusion_matrix(images["label"], self.decide(images["probability"]), len(self.classes))
        return {
            "images": len(images["label"]),
            "classes": self.classes,
            "confusion": matrix.tolist(),
            "intervals": bootstrap(self, images, seed),
        }


class RegressionMetrics:
    """Errors or agreement of `prediction` (B,) with `label` (B,), by image.

    kind: "error" for mean absolute and root mean squared error (smaller is better), "agreement" for R2 and Pearson's r.
    """

    target = "label"

    def __init__(self, kind: Literal["error", "agreement"]) -> None:
        self.kind = kind
        self.names: Sequence[str] = ("mae", "rmse") if kind == "error" else ("r2", "pearson")
        self.mode: Literal["max", "min"] = "min" if kind == "error" else "max"

    def rows(self, outputs: dict[str, Any], batch: dict[str, Any]) -> dict[str, Any]:
        """`label` and `prediction` (B,) float32, `participant_id`, `session_id`."""
        return {"label": batch["label"].float(), "prediction": outputs["prediction"].float(), **ids_of(batch)}

    def compute(self, rows: Rows) -> dict[str, float]:
        """The two values of `names`; agreement needs labels that differ."""
        if (reason := unusable(rows, "prediction")) is not None:
            return {name: Undefined(reason) for name in self.names}
        images = image_rows(rows, ("prediction",))
        label, prediction = images["label"].astype(np.float64), images["prediction"].astype(np.float64)
        error = prediction - label
        if self.kind == "error":
            return {"mae": float(np.abs(error).mean()), "rmse": float(np.sqrt((error**2).mean()))}
        spread = label - label.mean()
        if not spread.any():
            return {name: Undefined("all labels are equal") for name in self.names}
        said = prediction - prediction.mean()
        pearson: float = Undefined("all predictions are equal")
        if said.any():
            pearson = float((spread * said).sum() / np.sqrt((spread**2).sum() * (said**2).sum()))
        return {"r2": float(1 - (error**2).sum() / (spread**2).sum()), "pearson": pearson}

    def details(self, rows: Rows, seed: int) -> dict[str, Any]:
        """Number of images and 95 % intervals from a bootstrap of participants, given once for both kinds."""
        if self.kind != "error" or unusable(rows, "prediction") is not None:
            return {}
        images = image_rows(rows, ("prediction",))
        other = RegressionMetrics("agreement")
        intervals = bootstrap(self, images, seed) | bootstrap(other, images, seed)
        return {"images": len(images["label"]), "intervals": intervals}


class SegmentationMetrics:
    """Overlap or surface distances of segmentations, of each sample and foreground label, then averaged.

    classes: names of the labels, the background first. kind: "overlap" for Dice and intersection over union (larger is
    better), "surface" for the 95th percentile of the Hausdorff distance and the mean surface distance, both symmetric,
    in the unit of `spacing` (B, 3) of the batch (mm), in voxels without it. A label that neither truth nor prediction
    has is undefined in that image and left out. A distance is undefined if one of them lacks the label, so check the
    numbers (`details`) before comparing distances.
    """

    def __init__(self, classes: Sequence[str], kind: Literal["overlap", "surface"] = "overlap") -> None:
        self.classes, self.kind = list(classes), kind
        self.columns = ("dice", "iou") if kind == "overlap" else ("hausdorff95", "surface_distance")
        self.mode: Literal["max", "min"] = "max" if kind == "overlap" else "min"
        several = self.classes[1:] if len(self.classes) > 2 else []
        self.names: Sequence[str] = (
            *self.columns,
            *(f"{column}_{name}" for column in self.columns for name in several),
        )

    def rows(self, outputs: dict[str, Any], batch: dict[str, Any]) -> dict[str, Any]:
        """The two columns, (B, C - 1) float32, NaN where undefined; `participant_id`, `session_id`."""
        count = len(self.classes)
        truth = one_hot(mask_labels(batch, count), count)
        said = one_hot(outputs["logits"].float().argmax(dim=1, keepdim=True), count)
        if self.kind == "overlap":
            first, second = overlaps(truth, said)
        else:
            first, second = surface_distances(truth, said, spacing_of(batch))
        return {self.columns[0]: first, self.columns[1]: second, **ids_of(batch)}

    def compute(self, rows: Rows) -> dict[str, float]:
        """The mean of the defined values over images and labels; with several labels also the mean of each."""
        if not len(rows.get("sample_id", rows.get(self.columns[0], ()))):
            return {name: Undefined("no samples") for name in self.names}
        values: dict[str, float] = {}
        for column in self.columns:
            table = rows[column].astype(np.float64)
            by_label = [self._mean(table[:, i], name) for i, name in enumerate(self.classes[1:])]
            defined = [value for value in by_label if not np.isnan(value)]
            values[column] = float(np.mean(defined)) if defined else by_label[0]
            if len(by_label) > 1:
                values |= {f"{column}_{name}": v for name, v in zip(self.classes[1:], by_label, strict=True)}
        return {name: values[name] for name in self.names}

    def _mean(self, column: Array, label: str) -> float:
        known = column[np.isfinite(column)]
        if len(known):
            return float(known.mean())
        missing = "has the label" if self.kind == "overlap" else "has the label both drawn and predicted"
        return Undefined(f"{label}: no image {missing}")

    def details(self, rows: Rows, seed: int) -> dict[str, Any]:
        """95 % intervals from a bootstrap of participants, and the number of images without a value, by label."""
        if not len(rows.get("sample_id", ())):
            return {"reason": "no samples"}
        missing = {
            column: dict(zip(self.classes[1:], np.isnan(rows[column]).sum(axis=0).tolist(), strict=True))
            for column in self.columns
        }
        found: dict[str, Any] = {f"{self.kind}_undefined": missing}
        # Two metrics share the key "intervals"; the first gives both.
        if self.kind == "overlap":
            intervals = bootstrap(self, rows, seed)
            if "hausdorff95" in rows:
                intervals |= bootstrap(SegmentationMetrics(self.classes, "surface"), rows, seed)
            found["intervals"] = intervals
        return found


class ReconstructionMetrics:
    """Similarity or error of `reconstruction` and `image`, (B, C, *size), of each sample, then averaged.

    kind: "similarity" for the peak signal-to-noise ratio (dB; the signal is the range of the image) and the structural
    similarity (Gaussian window), "error" for the mean squared error.
    """

    def __init__(self, kind: Literal["similarity", "error"] = "similarity") -> None:
        self.kind = kind
        self.names: Sequence[str] = ("psnr", "ssim") if kind == "similarity" else ("mse",)
        self.mode: Literal["max", "min"] = "max" if kind == "similarity" else "min"

    def rows(self, outputs: dict[str, Any], batch: dict[str, Any]) -> dict[str, Any]:
        """A column (B,) for each name, NaN where undefined; `participant_id`, `session_id`."""
        image, made = batch["image"].float(), outputs["reconstruction"].float()
        mse = (made - image).square().flatten(1).mean(dim=1)
        if self.kind == "error":
            return {"mse": mse, **ids_of(batch)}
        spread = image.flatten(1).amax(dim=1) - image.flatten(1).amin(dim=1)
        psnr = torch.where(spread > 0, 10 * torch.log10(spread.square() / mse), torch.nan)
        return {"psnr": psnr, "ssim": structural_similarity(made, image, spread), **ids_of(batch)}

    def compute(self, rows: Rows) -> dict[str, float]:
        """Means over samples; a perfect image has an infinite signal-to-noise ratio and is left out of that mean."""
        values: dict[str, float] = {}
        for name in self.names:
            column = np.asarray(rows.get(name, ()), dtype=np.float64)
            known = column[np.isfinite(column)]
            nothing = "no samples" if not len(column) else "no image has a finite value"
            values[name] = float(known.mean()) if len(known) else Undefined(nothing)
        return values

    def details(self, rows: Rows, seed: int) -> dict[str, Any]:
        """95 % intervals from a bootstrap of participants."""
        if self.kind != "similarity" or not len(rows.get("psnr", ())):
            return {}
        intervals = bootstrap(self, rows, seed)
        if "mse" in rows:
            intervals |= bootstrap(ReconstructionMetrics("error"), rows, seed)
        return {"intervals": intervals}


def ids_of(batch: dict[str, Any]) -> dict[str, Any]:
    """The ids in the batch."""
    return {name: batch[name] for name in IDS if name in batch}


def unusable(rows: Rows, column: str) -> str | None:
    """The reason why nothing can be computed from these rows, or None."""
    values = rows.get(column, np.empty(0))
    if not len(values):
        return "no samples"
    bad = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
    if not len(bad):
        return None
    first = f" (first: {rows['sample_id'][bad[0]]})" if "sample_id" in rows else ""
    return f"the outputs of {len(bad)} samples are not finite{first}"


def image_rows(rows: Rows, means: Sequence[str]) -> Rows:
    """One row per image: the columns `means` are averaged over its parts (patches, slices), others come from the first.

    An image is a participant's session; without these ids every sample is an image. A sample that occurs twice (in a
    bootstrap) belongs to two images.
    """
    if any(name not in rows for name in IDS) or not len(rows[IDS[0]]):
        return rows
    times = occurrences(rows["sample_id"]) if "sample_id" in rows else np.zeros(len(rows[IDS[0]]), dtype=np.int64)
    keys = np.array([f"{p}\t{s}\t{t}" for p, s, t in zip(rows[IDS[0]], rows[IDS[1]], times, strict=True)])
    _, first, image = np.unique(keys, return_index=True, return_inverse=True)
    if len(first) == len(keys):
        return rows
    order = np.argsort(first, kind="stable")
    merged: Rows = {name: column[first[order]] for name, column in rows.items()}
    counts = np.bincount(image)
    for name in means:
        sums = np.zeros((len(first), *rows[name].shape[1:]))
        np.add.at(sums, image, rows[name].astype(np.float64))
        merged[name] = (sums / counts.reshape(-1, *[1] * (sums.ndim - 1)))[order]
    return merged


def occurrences(names: Array) -> Array:
    """How often each name occurred before, (N,) int64."""
    _, name_of, counts = np.unique(names, return_inverse=True, return_counts=True)
    order = np.argsort(name_of, kind="stable")
    before = np.empty(len(names), dtype=np.int64)
    before[order] = np.arange(len(names)) - np.repeat(np.cumsum(counts) - counts, counts)
    return before


# These scores are counted here and not by scikit-learn, which needs 6 to 27 times as long for the 1,000 draws of a
# bootstrap (10,000 to 100 images); the tests hold them against it.


def confusion_matrix(label: Array, said: Array, classes: int) -> Array:
    """Images by true (row) and predicted (column) class: (classes, classes) int64."""
    cells = label.astype(np.int64) * classes + said
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def class_scores(matrix: Array, classes: Sequence[str]) -> dict[str, float]:
    """Balanced accuracy, accuracy, sensitivity, specificity, F1 and MCC of a confusion matrix."""
    counts = matrix.astype(np.float64)
    total, hits = counts.sum(), counts.diagonal()
    true, said = counts.sum(axis=1), counts.sum(axis=0)
    absent = [name for name, number in zip(classes, true, strict=True) if not number]
    two = len(classes) == 2
    judged = slice(1, 2) if two else slice(None)
    rest = total - true
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = hits / true
        specificity = (rest - (said - hits)) / rest
        f1 = 2 * hits / (true + said)
    without = f"no image of class {', '.join(absent)}"
    alone = f"no image that is not of class {classes[-1]}" if two else "all images are of one class"
    values: dict[str, float] = {
        "balanced_accuracy": Undefined(without) if absent else float(recall.mean()),
        "accuracy": float(hits.sum() / total),
        "sensitivity": _mean(recall[judged], without),
        "specificity": _mean(specificity[judged], alone),
        "f1": _mean(f1[judged], f"no image is of class {', '.join(absent)} or taken for it"),
    }
    scale = (total**2 - (true**2).sum()) * (total**2 - (said**2).sum())
    constant = "all images are taken for one class" if (true > 0).sum() > 1 else "all images are of one class"
    values["mcc"] = float((hits.sum() * total - (true * said).sum()) / np.sqrt(scale)) if scale else Undefined(constant)
    return values


def _mean(values: Array, reason: str) -> float:
    return Undefined(reason) if np.isnan(values).any() else float(values.mean())


def ranking_scores(label: Array, probability: Array, classes: Sequence[str]) -> dict[str, float]:
    """AUC and average precision; of more than two classes the mean over each against the rest."""
    judged = [1] if len(classes) == 2 else range(len(classes))
    present = [int((label == number).sum()) for number in range(len(classes))]
    values: dict[str, float] = {}
    for name, score in (("auc", auc), ("average_precision", average_precision)):
        found = [score(label == number, probability[:, number]) for number in judged]
        absent = [classes[number] for number, count in enumerate(present) if not count]
        values[name] = _mean(np.array(found), f"no image of class {', '.join(absent)}")
    return values


def auc(positive: Array, score: Array) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties counting half; NaN if none."""
    from scipy.stats import rankdata

    positives = int(positive.sum())
    negatives = len(positive) - positives
    if not positives or not negatives:
        return float("nan")
    ranks = rankdata(score)[positive].sum()
    return float((ranks - positives * (positives + 1) / 2) / (positives * negatives))


def average_precision(positive: Array, score: Array) -> float:
    """Precision at each threshold weighted by the recall it adds; equal scores are one threshold. NaN if none."""
    positives = int(positive.sum())
    if not positives or positives == len(positive):
        return float("nan")
    order = np.argsort(-score, kind="stable")
    hits = np.cumsum(positive[order])
    last = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
    precision, recall = hits[last] / (last + 1), hits[last] / positives
    return float((precision * np.diff(recall, prepend=0.0)).sum())


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """(B, 1, *size) integers -> (B, classes, *size) bool."""
    numbers = torch.arange(classes, device=labels.device).view(1, classes, *[1] * (labels.dim() - 2))
    return labels == numbers


def overlaps(truth: Tensor, said: Tensor) -> tuple[Tensor, Tensor]:
    """Dice and intersection over union, (B, C - 1), of (B, C, *size) bool; NaN where both are empty."""
    truth, said = truth[:, 1:].flatten(2), said[:, 1:].flatten(2)
    both = (truth & said).sum(dim=2).double()
    sizes = (truth.sum(dim=2) + said.sum(dim=2)).double()
    # 0 / 0 is NaN: undefined.
    return (2 * both / sizes).float(), (both / (sizes - both)).float()


def surface_distances(truth: Tensor, said: Tensor, spacing: list[Any] | None) -> tuple[Tensor, Tensor]:
    """The 95th percentile of the Hausdorff distance and the mean surface distance, (B, C - 1); NaN where undefined."""
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance

    truth, said = truth.float(), said.float()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about empty labels, which are removed below, and about MONAI's own arguments
        farthest = compute_hausdorff_distance(said, truth, percentile=95, spacing=spacing)
        mean = compute_average_surface_distance(said, truth, symmetric=True, spacing=spacing)
    empty = ~(truth[:, 1:].flatten(2).any(dim=2) & said[:, 1:].flatten(2).any(dim=2))
    values = [torch.as_tensor(found).float().to(truth.device) for found in (farthest, mean)]
    return values[0].masked_fill(empty, torch.nan), values[1].masked_fill(empty, torch.nan)


def spacing_of(batch: dict[str, Any]) -> list[Any] | None:
    """The size of voxels, by sample; None if the batch does not have it."""
    found = batch.get("spacing")
    return None if found is None else [[float(length) for length in sample] for sample in found]


def structural_similarity(made: Tensor, image: Tensor, spread: Tensor) -> Tensor:
    """SSIM (Wang et al., 2004) of each sample, (B,), its constants from the sample's range; NaN without one."""
    from monai.metrics.regression import compute_ssim_and_cs

    axes, window = image.dim() - 2, ssim_window(image.shape[2:])
    values = []
    for number, width in enumerate(spread.tolist()):
        if width <= 0:
            values.append(torch.tensor(torch.nan, device=image.device))
            continue
        found, _ = compute_ssim_and_cs(
            made[number : number + 1],
            image[number : number + 1],
            axes,
            kernel_size=[window] * axes,
            kernel_sigma=[1.5] * axes,
            data_range=width,
        )
        values.append(found.mean())
    return torch.stack(values)


def bootstrap(metric: Any, rows: Rows, seed: int) -> dict[str, list[float]]:
    """The 95 % interval of every value, over participants drawn with replacement; None if it is often undefined.

    rows: one per image.
    """
    count = len(rows[metric.target] if hasattr(metric, "target") else next(iter(rows.values())))
    clusters = rows.get("participant_id", np.arange(count))
    draws: dict[str, list[float]] = {name: [] for name in metric.names}
    for chosen in resampled_clusters(clusters, REPLICATES, seed):
        values = metric.compute({name: column[chosen] for name, column in rows.items() if name not in IDS})
        for name, value in values.items():
            draws[name].append(value)
    intervals = {}
    for name, found in draws.items():
        known = np.asarray(found)
        if np.isfinite(known).mean() >= ENOUGH_DRAWS:
            interval = percentile_interval(known)
            intervals[name] = [interval.low, interval.high]
    return intervals
