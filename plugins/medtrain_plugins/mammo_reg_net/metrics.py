"""Metrics of a registration, pair by pair."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from medtrain.protocols import Rows, Undefined
from torch import Tensor

from medtrain_plugins.mammo_reg_net.model import FIXED, MOVING
from medtrain_plugins.mammography.model.registration_losses import correlation, folded_share

Measure = Callable[[dict[str, Tensor], dict[str, Any]], Tensor]


def ncc(outputs: dict[str, Tensor], batch: dict[str, Any]) -> Tensor:
    """Correlation of the current image with the registered previous one, (B,)."""
    return correlation(batch[FIXED], outputs["warped"])


def ncc_before(outputs: dict[str, Tensor], batch: dict[str, Any]) -> Tensor:
    """Correlation of the current image with the previous one as it is, (B,)."""
    return correlation(batch[FIXED], batch[MOVING])


def negative_jacobian(outputs: dict[str, Tensor], batch: dict[str, Any]) -> Tensor:
    """Percentage of positions where the flow folds the image, (B,)."""
    return 100 * folded_share(outputs["flow"])


def displacement(outputs: dict[str, Tensor], batch: dict[str, Any]) -> Tensor:
    """Mean length of the flow in pixels over the breast, where the current image is not black, (B,)."""
    breast = batch[FIXED][:, 0] > 0
    length = torch.linalg.vector_norm(outputs["flow"], dim=1)
    mean: Tensor = (length * breast).sum(dim=(1, 2)) / breast.sum(dim=(1, 2)).clamp(min=1)
    return mean


class PairMean:
    """The mean of `measure` over pairs; a `medtrain.Metric`."""

    def __init__(self, measure: Measure, mode: Literal["max", "min"]) -> None:
        self.names, self.measure, self.mode = [measure.__name__], measure, mode

    def rows(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        return {self.names[0]: self.measure(outputs, batch)}

    def compute(self, rows: Rows) -> dict[str, float]:
        name = self.names[0]
        values = rows.get(name)
        return {name: Undefined("no samples") if values is None or not len(values) else float(values.mean())}


def registration_metrics() -> list[PairMean]:
    """`ncc`, `ncc_before` (larger is better) and `negative_jacobian` (smaller is better)."""
    return [PairMean(ncc, "max"), PairMean(ncc_before, "max"), PairMean(negative_jacobian, "min")]
