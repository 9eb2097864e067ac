"""Hard negatives: of each sample's background, only the entries with the largest loss are used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class MiningCounts(NamedTuple):
    """Per sample, each (B,) int64."""

    positives: Tensor
    negatives: Tensor
    hard_negatives: Tensor

    @property
    def selected(self) -> Tensor:
        """Positives and hard negatives together."""
        return self.positives + self.hard_negatives


@dataclass(frozen=True)
class HardNegatives:
    """Which entries are used: all positives, and the negatives with the largest loss (Shrivastava et al., CVPR 2016).

    ratio: largest number of negatives per positive; None: no limit. hardest_fraction: largest share of the sample's
    negatives, so 0.5 never uses the easier half. min_negatives: number kept for a sample with few or no positives,
    within `hardest_fraction`. threshold: targets above it are positives.

    The number selected depends on the targets alone, so the sum over the selected entries and their number are the same
    on one process and on many.
    """

    ratio: float | None = 3.0
    hardest_fraction: float = 1.0
    min_negatives: int = 100
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if self.ratio is not None and self.ratio <= 0:
            raise ValueError(f"hard negatives: ratio {self.ratio} must be positive")
        if not 0 < self.hardest_fraction <= 1 or self.min_negatives < 0:
            raise ValueError("hard negatives: hardest_fraction must lie in (0, 1], min_negatives must not be negative")

    def counts(self, target: Tensor) -> MiningCounts:
        """target (B, ...), NaN where unknown -> the number of used entries of every sample."""
        rows = target.flatten(1)
        positives, negatives = (rows > self.threshold).sum(dim=1), (rows <= self.threshold).sum(dim=1)
        # Slightly larger, so that 0.1 * 30 gives 3.
        hardest = torch.ceil(negatives * self.hardest_fraction - 1e-9).long()
        if self.ratio is None:
            return MiningCounts(positives, negatives, hardest)
        wanted = torch.floor(positives.double() * self.ratio + 1e-9).long().clamp(min=self.min_negatives)
        return MiningCounts(positives, negatives, torch.minimum(wanted, hardest))

    def select(self, losses: Tensor, target: Tensor) -> Tensor:
        """The used entries, as bools: losses and target (B, ...) -> (B, ...)."""
        rows, targets = losses.detach().flatten(1), target.flatten(1)
        negative = targets <= self.threshold
        order = torch.where(negative, rows, -torch.inf).argsort(dim=1, descending=True, stable=True)
        rank = torch.arange(rows.shape[1], device=rows.device)
        among_hardest = rank < self.counts(target).hard_negatives[:, None]
        hard = torch.zeros_like(negative).scatter(1, order, among_hardest)
        return ((targets > self.threshold) | hard).view(losses.shape)

    def __call__(self, losses: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The sum of the used losses (with a graph also if none is used), and their number."""
        selected = self.select(losses, target)
        return torch.where(selected, losses, 0.0).sum(), self.counts(target).selected.sum()
