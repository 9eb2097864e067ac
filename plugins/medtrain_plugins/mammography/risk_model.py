"""What every breast-cancer risk model of the family has in common: its heads, its score, its frozen parts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

Head = tuple[Tensor, Tensor, Tensor]


class BaseRiskModel(nn.Module, ABC):
    """`model(batch) -> dict` of outputs, heads for the loss, and one score per follow-up year.

    head_weights: name of a head -> its weight in the total loss.
    """

    head_weights: ClassVar[dict[str, float]]

    def __init__(self) -> None:
        super().__init__()
        self._frozen: set[str] = set()

    @abstractmethod
    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Outputs by name, from a whole batch."""

    @staticmethod
    @abstractmethod
    def risk_heads(outputs: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Head]:
        """Heads by name: (logits (B, 5), target (B, 5), mask (B, 5), 1 where the year is known)."""

    @staticmethod
    @abstractmethod
    def primary_risk(outputs: dict[str, Tensor]) -> Tensor:
        """Cumulative risk within 1 to 5 years, (B, 5) float probabilities: what metrics are computed from."""

    def freeze(self, name: str) -> None:
        """Keeps a sub-network as it is from now on: no gradients, and in eval mode whatever `train` says.

        In train mode its batch norms would go on collecting statistics, and change it without any gradient.
        """
        self.get_submodule(name).requires_grad_(False).eval()
        self._frozen.add(name)

    def run(self, name: str, *inputs: Tensor) -> Any:
        """The answer of a sub-network; a frozen one runs without autograd."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and name not in self._frozen):
            return self.get_submodule(name)(*inputs)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for name in self._frozen:
            self.get_submodule(name).eval()
        return self
