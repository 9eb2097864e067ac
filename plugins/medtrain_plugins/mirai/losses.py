"""The loss of Mirai with risk factors: the loss of the risks, and the cross-entropy of the known factors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from medtrain_plugins.mammography.model.losses import MultiHeadBCE
from medtrain_plugins.mirai.risk_factors import RISK_FACTORS


class RiskAndFactorsLoss:
    """The terms of `risk`, and `risk_factors`: weight times the mean cross-entropy of the known factors."""

    def __init__(self, risk: MultiHeadBCE, weight: float) -> None:
        self.risk, self.weight = risk, weight

    def __call__(self, outputs: dict[str, Any], batch: dict[str, Any]) -> dict[str, tuple[Tensor, Tensor]]:
        logits = outputs["risk_factor_logits"].float()
        if "risk_factors" in batch:
            total = known_factor_entropy(logits, batch["risk_factors"].float(), batch["risk_factors_known"].float())
        else:
            total = logits.sum() * 0
        return self.risk(outputs, batch) | {"risk_factors": (self.weight * total, self._known(batch))}

    def weights(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The weights of the terms, from the batch alone."""
        return self.risk.weights(batch) | {"risk_factors": self._known(batch)}

    @staticmethod
    def _known(batch: dict[str, Any]) -> Tensor:
        if "risk_factors_known" in batch:
            known: Tensor = batch["risk_factors_known"].sum(dtype=torch.float32)
            return known
        return torch.zeros((), device=batch["y_mask"].device)


def known_factor_entropy(logits: Tensor, values: Tensor, known: Tensor) -> Tensor:
    """The cross-entropy of risk factors, summed over the known ones: a scalar, 0 with a graph if none is known.

    logits, values (B, 100): as in `risk_factors`; known (B, 34). Binary cross-entropy for a factor with one number.
    """
    widths = [factor.width for factor in RISK_FACTORS]
    entropies = []
    for logit, value in zip(torch.split(logits, widths, dim=1), torch.split(values, widths, dim=1), strict=True):
        if logit.shape[1] == 1:
            entropies.append(F.binary_cross_entropy_with_logits(logit, value, reduction="none").squeeze(1))
        else:
            entropies.append(F.cross_entropy(logit, value, reduction="none"))
    return (torch.stack(entropies, dim=1) * known).sum()
