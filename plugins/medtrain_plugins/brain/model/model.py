"""The model of a run: a network, the unit of its results, and its inference on whole images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from medtrain import TensorModel
from torch import Tensor, nn

from medtrain_plugins.brain.model.inference import Inference
from medtrain_plugins.brain.options import BrainOptions

# Task -> key of its result in the outputs.
OUTPUTS = {
    "classification": "logits",
    "regression": "prediction",
    "segmentation": "logits",
    "reconstruction": "reconstruction",
}
DENSE = ("segmentation", "reconstruction")
TINY = 1e-6  # smallest spread, for blank images


class VolumeModel(TensorModel):
    """`image` (B, C, *size) float32 -> `logits` (B, classes), `prediction` (B,), `logits` (B, labels, *size) or
    `reconstruction` (B, C, *size), by task.

    In training the network gets the batch as it is; in evaluation `inference` is used. Checkpoints contain the plain
    network's weights. scale: mean and spread by which a regression's target is standardised for the network.
    standardize: every channel of the network's input (image, window, slice) gets mean 0 and spread 1.
    """

    def __init__(
        self,
        network: nn.Module,
        task: str,
        inference: Inference,
        scale: Sequence[float] = (0.0, 1.0),
        standardize: bool = False,
    ) -> None:
        super().__init__(network, "image", OUTPUTS[task])
        self.task, self.inference, self.scale, self.standardize = task, inference, list(scale), standardize

    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        image = batch["image"]
        if not self.training:
            result = self.inference(self.network, image)
        elif self.inference.options.slice_axis is not None and image.dim() == 5:
            result = self.inference.by_slices(self.network, image)
        else:
            result = self.network(image)
        if self.task == "regression":
            mean, spread = self.scale
            result = result[:, 0] * spread + mean
        return {self.output: result}

    def network(self, image: Tensor) -> Tensor:
        """The network's result for images at once; a reconstruction is in the image's own unit."""
        seen, mean, spread = self.standardized(image)
        result: Tensor = self.module(seen)
        return result * spread + mean if self.task == "reconstruction" else result

    def standardized(self, image: Tensor) -> tuple[Tensor, Tensor | float, Tensor | float]:
        """The network's input, and the mean and spread that were removed (0 and 1 without standardisation)."""
        if not self.standardize:
            return image, 0.0, 1.0
        spread, mean = torch.std_mean(image, dim=tuple(range(2, image.dim())), keepdim=True, correction=0)
        spread = spread.clamp(min=TINY)
        return (image - mean) / spread, mean, spread


def as_model(network: nn.Module, options: BrainOptions) -> VolumeModel:
    """A trained network as the model of a run."""
    inference = Inference(
        options.inference, dense=options.task in DENSE, logits=options.task in ("classification", "segmentation")
    )
    return VolumeModel(network, options.task, inference, options.label_scale or (0.0, 1.0), options.standardize)
