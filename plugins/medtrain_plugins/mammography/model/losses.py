"""Masked binary cross-entropy over risk heads: the loss of Mirai, ImgFeatAlign, LMV-Net and VMRA-MaR."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from medtrain.errors import ConfigError, nearest
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

Heads = Mapping[str, tuple[Tensor, Tensor, Tensor]]


def masked_bce(logits: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy summed over the known years, and their number; the loss is their quotient.

    logits, target, mask: (B, n), any real dtype; the sum is taken in float32 at least. Both results are
    scalars; with an empty mask the sum is a zero with graph.
    """
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    mask = mask.to(logits.dtype)
    entries = binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="none")
    return (entries * mask).sum(), mask.sum()


class MultiHeadBCE:
    """The weighted sum of masked cross-entropies, one for each risk head, as terms of `medtrain.protocols.loss`.

    risk_heads: (outputs, batch) -> head name -> (logits, target, mask), each (B, n). head_weights: the factor of every
    head, by name. mask_keys: the batch key of a head's mask, if it is not `y_mask` (ImgFeatAlign: {"pri":
    "y_mask_prior"}); it lets `weights` count before the forward pass.
    """

    def __init__(
        self,
        risk_heads: Callable[[Any, dict[str, Any]], Heads],
        head_weights: Mapping[str, float],
        mask_keys: Mapping[str, str] | None = None,
    ) -> None:
        self.risk_heads = risk_heads
        self.head_weights = dict(head_weights)
        self.mask_keys = {name: (mask_keys or {}).get(name, "y_mask") for name in head_weights}

    def __call__(self, outputs: Any, batch: dict[str, Any]) -> dict[str, tuple[Tensor, Tensor]]:
        """Head -> (weight times the summed cross-entropy, number of known years in the batch)."""
        terms = {}
        for name, (logits, target, mask) in self.risk_heads(outputs, batch).items():
            total, count = masked_bce(logits, target, mask)
            terms[name] = (self._weight_of(name) * total, count)
        return terms

    def weights(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The weights of the terms, from the batch alone."""
        return {name: batch[key].sum(dtype=torch.float32) for name, key in self.mask_keys.items()}

    def _weight_of(self, head: str) -> float:
        if head not in self.head_weights:
            known = ", ".join(self.head_weights)
            hint = nearest(head, self.head_weights)
            raise ConfigError(f"risk head {head!r} has no loss weight{hint}; give it one (there are: {known})")
        return self.head_weights[head]
