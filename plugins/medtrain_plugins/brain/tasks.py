"""What each task makes of the options: network, loss and metrics; and what the data settle of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from medtrain.errors import ConfigError, DataError
from torch import nn

from .inference import Inference
from .losses import ClassLoss, ReconstructionLoss, RegressionLoss, SegmentationLoss
from .metrics import ClassificationMetrics, ReconstructionMetrics, RegressionMetrics, SegmentationMetrics
from .model import DENSE, VolumeModel
from .networks import build_network
from .options import BrainOptions

if TYPE_CHECKING:
    from medtrain import Data
    from medtrain.metrics import Metric


def settle(options: BrainOptions, data: Data) -> None:
    """Complete the options from the data, before anything is built from them or recorded.

    `input_shape`, `classes`, `class_weights` that are "balanced" and `label_scale` follow from the training group,
    or from all samples where the core has yet to split them. Raises DataError for labels that the task cannot use.
    """
    dataset: Any = data.whole or data.train or next(iter(data.groups().values()))
    shape = list(dataset[0]["image"].shape)
    if not options.input_shape:
        options.input_shape = shape
    elif options.input_shape != shape and not options.inference.window:
        raise ConfigError(f"plugins.brain.input_shape: {options.input_shape}, but the images are {shape}")
    if options.task == "classification":
        _settle_classes(options, dataset)
    elif options.task == "regression":
        _settle_scale(options, dataset)
    elif options.task == "segmentation" and not options.classes:
        labels = 1 + max(int(dataset[number]["mask"].max()) for number in range(len(dataset)))
        names = ["background", *(f"label_{number}" for number in range(1, max(labels, 2)))]
        options.classes = names


def _settle_classes(options: BrainOptions, dataset: Any) -> None:
    classes = getattr(dataset, "classes", None)
    if classes is None:
        raise DataError(f"plugins.brain.label: the data have no classes of {options.label!r} to tell apart")
    labels = np.asarray(classes, dtype=np.int64)
    if not options.classes:
        named = getattr(dataset, "class_names", None) or [str(number) for number in range(labels.max() + 1)]
        options.classes = [str(name) for name in named]
    count = len(options.classes)
    if count < 2:
        raise DataError(f"plugins.brain.label: {options.label!r} has one value only, {options.classes}")
    if labels.min() < 0 or labels.max() >= count:
        raise DataError(f"labels from {labels.min()} to {labels.max()} are not numbers of {count} classes")
    if options.class_weights == "balanced":
        frequency = np.bincount(labels, minlength=count)
        if not frequency.all():
            raise DataError(f"class_weights: no image of class {options.classes[int(frequency.argmin())]}")
        options.class_weights = (len(labels) / (count * frequency)).tolist()
    if options.class_weights and len(options.class_weights) != count:
        raise ConfigError(
            f"plugins.brain.class_weights: {len(options.class_weights)} weights for {count} classes "
            f"({', '.join(options.classes)})"
        )


def _settle_scale(options: BrainOptions, dataset: Any) -> None:
    if options.label_scale:
        return
    stored = getattr(dataset, "labels", None)
    values = stored if stored is not None else [float(dataset[number]["label"]) for number in range(len(dataset))]
    labels = np.asarray(values, dtype=np.float64)
    if not np.isfinite(labels).all():
        raise DataError(f"plugins.brain.label: {options.label!r} is not a number everywhere; leave those sessions out")
    options.label_scale = [float(labels.mean()), float(labels.std()) or 1.0]


def network_shape(options: BrainOptions) -> list[int]:
    """What the network sees at a time: the image, a window of it, or a slice."""
    channels, *size = options.input_shape
    inference = options.inference
    if inference.window:
        size = list(inference.window) * (len(size) if len(inference.window) == 1 else 1)
    elif inference.slice_axis is not None and len(size) == 3:
        del size[inference.slice_axis]
    return [channels, *size]


def build_model(options: BrainOptions) -> VolumeModel:
    """The model, freshly initialised. Raises ConfigError when neither data nor options say how large images are."""
    if not options.input_shape:
        raise ConfigError(
            "plugins.brain.input_shape: without data the shape of images is needed, such as [1, 96, 96, 96]"
        )
    outputs = {"regression": 1, "reconstruction": options.input_shape[0]}.get(options.task, len(options.classes))
    if outputs < 1 or (outputs < 2 and options.task in ("classification", "segmentation")):
        raise ConfigError("plugins.brain.classes: without data the names of at least two classes are needed")
    network = build_network(options.network, options.task, network_shape(options), outputs, options.network_options)
    return as_model(network, options)


def as_model(network: nn.Module, options: BrainOptions) -> VolumeModel:
    """A trained network as the model of a run."""
    inference = Inference(
        options.inference, dense=options.task in DENSE, logits=options.task in ("classification", "segmentation")
    )
    return VolumeModel(network, options.task, inference, options.label_scale or (0.0, 1.0), options.standardize)


def build_loss(options: BrainOptions) -> nn.Module:
    """The loss of the task."""
    name, weights = options.loss_name, options.class_weights
    if weights == "balanced":
        raise ConfigError("plugins.brain.class_weights: 'balanced' weights follow from the plugin's data; give numbers")
    if options.task == "classification":
        return ClassLoss(weights, options.label_smoothing, focal=name == "focal")
    if options.task == "regression":
        return RegressionLoss(name, (options.label_scale or [0.0, 1.0])[1])
    if options.task == "segmentation":
        return SegmentationLoss(name, weights)
    return ReconstructionLoss(name)


def build_metrics(options: BrainOptions) -> list[Metric]:
    """The metrics of the task; the first value of the first one picks the best model."""
    if options.task == "classification":
        return [ClassificationMetrics(options.classes, options.threshold)]
    if options.task == "regression":
        return [RegressionMetrics("error"), RegressionMetrics("agreement")]
    if options.task == "segmentation":
        overlap = SegmentationMetrics(options.classes, "overlap")
        surface = SegmentationMetrics(options.classes, "surface")
        return [overlap, surface] if options.surface_metrics else [overlap]
    return [ReconstructionMetrics("similarity"), ReconstructionMetrics("error")]
