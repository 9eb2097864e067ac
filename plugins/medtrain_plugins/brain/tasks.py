"""The network, loss and metrics of each task, and the options that are filled in from the data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from medtrain.errors import ConfigError, DataError
from torch import nn

from medtrain_plugins.brain.evaluation.metrics import (
    ClassificationMetrics,
    ReconstructionMetrics,
    RegressionMetrics,
    SegmentationMetrics,
)
from medtrain_plugins.brain.model.losses import ClassLoss, ReconstructionLoss, RegressionLoss, SegmentationLoss
from medtrain_plugins.brain.model.model import VolumeModel, as_model
from medtrain_plugins.brain.model.networks import build_network
from medtrain_plugins.brain.options import BrainOptions

if TYPE_CHECKING:
    from medtrain.protocols import Metric


def resolve_options(options: BrainOptions, dataset: Any) -> None:
    """Fills in the options that all groups share, the shape of images and the names of classes, from any group.

    Raises ConfigError for images of another shape than in the options, DataError for labels the task cannot use.
    """
    shape = list(dataset[0]["image"].shape)
    if not options.input_shape:
        options.input_shape = shape
    elif options.input_shape != shape and not options.inference.window:
        raise ConfigError(f"plugins.brain.input_shape: {options.input_shape}, but the images are {shape}")
    if options.task == "classification":
        labels = _classes(options, dataset)
        if not options.classes:
            named = _attribute_of_all(dataset, "class_names") or [str(number) for number in range(labels.max() + 1)]
            options.classes = [str(name) for name in named]
        count = len(options.classes)
        if count < 2:
            raise DataError(f"plugins.brain.label: {options.label!r} has one value only, {options.classes}")
        if labels.min() < 0 or labels.max() >= count:
            raise DataError(f"labels from {labels.min()} to {labels.max()} are not numbers of {count} classes")
    elif options.task == "segmentation" and not options.classes:
        highest = max(int(dataset[number]["mask"].max()) for number in range(len(dataset)))
        options.classes = ["background", *(f"label_{number}" for number in range(1, max(highest, 1) + 1))]


def infer_from_data(options: BrainOptions, train: Any) -> None:
    """Fills in the options that depend on labels, "balanced" `class_weights` and `label_scale`, from the training
    group.

    Options that are set stay. Raises DataError for classes without an image, and for labels that are not numbers.
    """
    if options.task == "classification" and options.class_weights == "balanced":
        labels, count = _classes(options, train), len(options.classes)
        frequency = np.bincount(labels, minlength=count)
        if not frequency.all():
            absent = options.classes[int(frequency.argmin())]
            raise DataError(f"plugins.brain.class_weights: no training image of class {absent}")
        options.class_weights = (len(labels) / (count * frequency)).tolist()
    elif options.task == "regression" and not options.label_scale:
        values = np.asarray(_labels(train), dtype=np.float64)
        if not np.isfinite(values).all():
            raise DataError(
                f"plugins.brain.label: {options.label!r} is not a number everywhere; leave those sessions out"
            )
        options.label_scale = [float(values.mean()), float(values.std()) or 1.0]


def _classes(options: BrainOptions, dataset: Any) -> npt.NDArray[np.int64]:
    classes = getattr(dataset, "classes", None)
    if classes is None:
        raise DataError(f"plugins.brain.label: the data have no classes of {options.label!r} to tell apart")
    return np.asarray(classes, dtype=np.int64)


def _labels(dataset: Any) -> Any:
    """The label of each sample, without reading images if the dataset (or the one it is a subset of) has the labels."""
    if (labels := getattr(dataset, "labels", None)) is not None:
        return labels
    if (labels := getattr(getattr(dataset, "dataset", None), "labels", None)) is not None:
        return [labels[index] for index in dataset.indices] if hasattr(dataset, "indices") else labels
    return [float(dataset[number]["label"]) for number in range(len(dataset))]


def _attribute_of_all(dataset: Any, name: str) -> Any:
    """An attribute about all samples, of a dataset or of the one it is a subset of."""
    while dataset is not None:
        if (found := getattr(dataset, name, None)) is not None:
            return found
        dataset = getattr(dataset, "dataset", None)
    return None


def network_shape(options: BrainOptions) -> list[int]:
    """The shape of the network's input: the image, a window of it, or a slice."""
    channels, *size = options.input_shape
    inference = options.inference
    if inference.window:
        size = list(inference.window) * (len(size) if len(inference.window) == 1 else 1)
    elif inference.slice_axis is not None and len(size) == 3:
        del size[inference.slice_axis]
    return [channels, *size]


def build_model(options: BrainOptions) -> VolumeModel:
    """The model, freshly initialised. Raises ConfigError if neither data nor options have the shape of images."""
    if not options.input_shape:
        raise ConfigError(
            "plugins.brain.input_shape: without data the shape of images is needed, such as [1, 96, 96, 96]"
        )
    outputs = {"regression": 1, "reconstruction": options.input_shape[0]}.get(options.task, len(options.classes))
    if outputs < 1 or (outputs < 2 and options.task in ("classification", "segmentation")):
        raise ConfigError("plugins.brain.classes: without data the names of at least two classes are needed")
    network = build_network(options.network, options.task, network_shape(options), outputs, options.network_options)
    return as_model(network, options)


def build_loss(options: BrainOptions) -> nn.Module:
    """The loss of the task."""
    name, weights = options.loss_name, options.class_weights
    if options.task == "regression":
        if not options.label_scale:
            raise ConfigError(
                "plugins.brain.label_scale: it follows from the training group along with the plugin's own metrics; "
                "with others give two numbers, the mean and the spread of the label"
            )
        return RegressionLoss(name, options.label_scale[1])
    if options.task == "reconstruction":
        return ReconstructionLoss(name)
    if weights == "balanced":
        raise ConfigError(
            "plugins.brain.class_weights: 'balanced' weights are those of a classification, and follow from the "
            "training group along with the plugin's own metrics; else give numbers"
        )
    if weights and len(weights) != len(options.classes):
        raise ConfigError(
            f"plugins.brain.class_weights: {len(weights)} weights for {len(options.classes)} classes "
            f"({', '.join(options.classes)})"
        )
    if options.task == "classification":
        return ClassLoss(weights, options.label_smoothing, focal=name == "focal")
    return SegmentationLoss(name, weights)


def build_metrics(options: BrainOptions) -> list[Metric]:
    """The metrics of the task; the first value of the first metric selects the best model."""
    if options.task == "classification":
        return [ClassificationMetrics(options.classes, options.threshold)]
    if options.task == "regression":
        return [RegressionMetrics("error"), RegressionMetrics("agreement")]
    if options.task == "segmentation":
        overlap = SegmentationMetrics(options.classes, "overlap")
        surface = SegmentationMetrics(options.classes, "surface")
        return [overlap, surface] if options.surface_metrics else [overlap]
    return [ReconstructionMetrics("similarity"), ReconstructionMetrics("error")]
