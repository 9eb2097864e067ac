"""Cross-entropy of the classes."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.functional import cross_entropy


class ClassLoss:
    """Cross-entropy of `logits` (B, C) and `label` (B,), the mean over clips, in float32."""

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing

    def __call__(self, outputs: dict[str, Any], batch: dict[str, Any]) -> Tensor:
        return cross_entropy(outputs["logits"].float(), batch["label"], label_smoothing=self.label_smoothing)
