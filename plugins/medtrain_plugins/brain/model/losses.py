"""The losses of the tasks, with equal values on one process and on many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from medtrain.errors import DataError
from torch import Tensor, nn
from torch.nn import functional

Pair = tuple[Tensor, Tensor]
FOCUS = 2.0  # exponent of the focal loss


class ClassLoss(nn.Module):
    """Cross-entropy of `logits` (B, C) against integer classes `label` (B,), or the focal loss (Lin et al., 2017).

    class_weights: (C,), or none; the sum of weighted losses is divided by the sum of the weights, over all processes
    and the batches of an accumulation window together. label_smoothing: share spread evenly over all classes. focal:
    weights a sample by (1 - p)^2, p the probability of its class.
    """

    class_weights: Tensor

    def __init__(self, class_weights: Sequence[float] = (), label_smoothing: float = 0.0, focal: bool = False) -> None:
        super().__init__()
        self.register_buffer("class_weights", torch.tensor(list(class_weights), dtype=torch.float32), persistent=False)
        self.label_smoothing, self.focal = label_smoothing, focal

    def forward(self, outputs: dict[str, Any], batch: dict[str, Any]) -> Tensor | Pair:
        logits, label = outputs["logits"].float(), batch["label"].long()
        weights = self.class_weights if len(self.class_weights) else None
        losses = functional.cross_entropy(
            logits, label, weight=weights, label_smoothing=self.label_smoothing, reduction="none"
        )
        if self.focal:
            probability = logits.softmax(dim=1).gather(1, label[:, None])[:, 0]
            losses = losses * (1 - probability) ** FOCUS
        return losses.mean() if weights is None else (losses.sum(), weights[label].sum())

    def weights(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The divisor of this batch's loss."""
        label = batch["label"].long()
        if not len(self.class_weights):
            return {"loss": torch.tensor(float(len(label)), device=label.device)}
        return {"loss": self.class_weights[label].sum()}


class RegressionLoss(nn.Module):
    """Of `prediction` (B,) against `label` (B,): mean squared or absolute error, or Huber's.

    spread: divisor of both, so that the size of gradients does not depend on the unit.
    """

    def __init__(self, name: str, spread: float = 1.0) -> None:
        super().__init__()
        self.name, self.spread = name, spread
        functions: dict[str, Any] = {
            "mse": functional.mse_loss,
            "l1": functional.l1_loss,
            "huber": functional.huber_loss,
        }
        self.function = functions[name]

    def forward(self, outputs: dict[str, Any], batch: dict[str, Any]) -> Tensor:
        prediction, label = outputs["prediction"].float(), batch["label"].float()
        value: Tensor = self.function(prediction / self.spread, label / self.spread)
        return value


class SegmentationLoss(nn.Module):
    """Of `logits` (B, C, *size) against the labels `mask` (B, 1, *size): Dice (MONAI) and cross-entropy.

    Dice is computed for each image, without background, and averaged over the batch; several processes weight their
    batches by the number of images. class_weights: (C,) of the cross-entropy, or none.
    """

    class_weights: Tensor

    def __init__(self, name: str, class_weights: Sequence[float] = ()) -> None:
        super().__init__()
        self.name = name
        self.register_buffer("class_weights", torch.tensor(list(class_weights), dtype=torch.float32), persistent=False)
        self.dice: Any = None
        if name != "cross_entropy":
            from monai.losses import DiceLoss

            self.dice = DiceLoss(include_background=False, to_onehot_y=True, softmax=True)

    def forward(self, outputs: dict[str, Any], batch: dict[str, Any]) -> Tensor:
        logits, mask = outputs["logits"].float(), mask_labels(batch, outputs["logits"].shape[1])
        if self.name == "dice":
            value: Tensor = self.dice(logits, mask)
            return value
        weights = self.class_weights if len(self.class_weights) else None
        entropy = functional.cross_entropy(logits, mask[:, 0], weight=weights)
        return entropy if self.dice is None else entropy + self.dice(logits, mask)


class ReconstructionLoss(nn.Module):
    """Of `reconstruction` against `image`, (B, C, *size): mean squared or absolute error, or 1 - SSIM (MONAI)."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, outputs: dict[str, Any], batch: dict[str, Any]) -> Tensor:
        made, image = outputs["reconstruction"].float(), batch["image"].float()
        if self.name == "ssim":
            from monai.losses import SSIMLoss

            spread = (image.amax() - image.amin()).item()
            window = ssim_window(image.shape[2:])
            loss: Tensor = SSIMLoss(image.dim() - 2, data_range=max(spread, 1e-6), win_size=window)(made, image)
            return loss
        return functional.mse_loss(made, image) if self.name == "mse" else functional.l1_loss(made, image)


def ssim_window(size: Sequence[int]) -> int:
    """The window of SSIM: 11 voxels, or the largest odd number that the image has along every axis."""
    return min(11, min(size) - 1 + min(size) % 2)


def mask_labels(batch: dict[str, Any], classes: int) -> Tensor:
    """`mask` (B, 1, *size) int64; raises DataError for invalid labels."""
    if "mask" not in batch:
        raise DataError("segmentation needs masks, and the samples have none; see plugins.brain.label")
    mask: Tensor = batch["mask"].long()
    if len(bad := ((mask < 0) | (mask >= classes)).flatten(1).any(dim=1).nonzero()):
        number = int(bad[0, 0])
        raise DataError(f"{batch['sample_id'][number]}: its mask has labels beyond 0 to {classes - 1}")
    return mask
