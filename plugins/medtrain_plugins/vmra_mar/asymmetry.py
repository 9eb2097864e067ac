"""Asymmetry of the two breasts: where and how much their features differ, and whether it persists over visits.

Source: "VMRA-MaR: an asymmetry-aware temporal framework for longitudinal breast cancer risk prediction", 2025.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

import torch
from torch import Tensor, distributed, nn

from medtrain_plugins.mammography.model.layers import Compat

log = logging.getLogger("medtrain")

# The published initial scale. Scores of real exams are tens, for which it gives 0.001 for every exam: a detector that
# still has exactly these values is not calibrated yet.
PUBLISHED_MEAN, PUBLISHED_STD = 2000.0, 300.0
SMALLEST_SPREAD = (
    0.05  # smallest share of the mean: a first batch of almost equal exams must not give an extremely small deviation
)


class Asymmetry(NamedTuple):
    """Per visit: score (B, T) in (0, 1), row and column of the largest difference (B, T, 2), whether there is one (B,
    T).

    Scores and positions without one are 0.
    """

    scores: Tensor
    places: Tensor
    valid: Tensor


class AsymmetryDetector(nn.Module):
    """The largest difference between left and right in the CC and in the MLO view of a visit.

    latent_size: rows and columns of the grid of differences; fewer on smaller maps. mean, std: of the raw scores, the
    initial values of trained parameters. compat: "fixed" divides maps of any size into windows that cover it and are
    their own mirror image; "reference" uses windows of equal size from the top left, and leaves out the rest on the
    right and below.

    The first training batch sets the scale (if `compat="fixed"`, and mean and std are still the published 2000 and
    300): to its mean and standard deviation over all pairs and all processes, so every process sets the same values.
    They are parameters: checkpoints have them, and a resumed run does not set them again. Evaluation never sets them.
    """

    def __init__(
        self,
        channels: int,
        latent_size: tuple[int, int] = (5, 5),
        mean: float = PUBLISHED_MEAN,
        std: float = PUBLISHED_STD,
        compat: Compat = "fixed",
    ) -> None:
        super().__init__()
        self.latent_size, self.compat = latent_size, compat
        self.cc_stretch_params = nn.Parameter(torch.ones(channels))
        self.mlo_stretch_params = nn.Parameter(torch.ones(channels))
        self.learned_asym_mean = nn.Parameter(torch.tensor(float(mean)))
        self.learned_asym_std = nn.Parameter(torch.tensor(float(std)))
        self.has_scale = False  # True once the values are not the published ones; until then the device is asked

    def forward(self, left: Tensor, right: Tensor, present: Tensor) -> Asymmetry:
        """left, right: (B, T, 2, C, h, w) features of CC and MLO, right ones mirrored onto the left; present: (B, T, 2)
        bool, whether both images of the pair were taken.
        """
        heat = self.heat_maps(left, right)
        width = heat.shape[-1]
        raw, index = heat.flatten(3).max(dim=-1)  # (B, T, 2); the first of equal ones
        if self.training and torch.is_grad_enabled():
            self.calibrate(raw.detach(), present)
        standard = torch.sigmoid((raw - self.learned_asym_mean) / self.learned_asym_std.abs().clamp(min=1e-6))
        count = present.sum(dim=-1)
        scores = (standard * present).sum(dim=-1) / count.clamp(min=1)
        stronger = raw.detach().masked_fill(~present, -torch.inf).argmax(dim=-1, keepdim=True)
        index = index.gather(-1, stronger)
        valid = count > 0
        places = torch.cat([index // width, index % width], dim=-1).to(raw.dtype) * valid.unsqueeze(-1)
        return Asymmetry(scores, places, valid)

    def heat_maps(self, left: Tensor, right: Tensor) -> Tensor:
        """(B, T, 2, rows, columns): the length of the difference vector over channels, the maximum of each window."""
        stretch = torch.stack([self.cc_stretch_params, self.mlo_stretch_params])[..., None, None]
        difference = (left * stretch - right * stretch).abs()
        # A rectangle's maximum is that of its rows' maxima; unlike adaptive pooling it has a deterministic gradient.
        for dim, cells in ((-2, self.latent_size[0]), (-1, self.latent_size[1])):
            spans = windows(difference.shape[dim], cells, self.compat)
            parts = [difference.narrow(dim, start, end - start).amax(dim) for start, end in spans]
            difference = torch.stack(parts, dim=dim)
        heat: Tensor = torch.linalg.vector_norm(difference, dim=3)
        return heat

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the heat maps of feature maps (height, width)."""
        rows, columns = self.latent_size
        return len(windows(height, rows, self.compat)), len(windows(width, columns, self.compat))

    @torch.no_grad()
    def calibrate(self, raw: Tensor, present: Tensor) -> None:
        """Sets mean and standard deviation to those of the raw scores (B, T, 2) where `present`, once."""
        if self.compat == "reference" or self.has_scale:
            return
        self.has_scale = (self.learned_asym_mean.item(), self.learned_asym_std.item()) != (
            PUBLISHED_MEAN,
            PUBLISHED_STD,
        )
        if self.has_scale:
            return
        count, total = _over_processes(present.sum(), (raw * present).sum())
        mean = total / count.clamp(min=1)
        (squares,) = _over_processes(((raw - mean).square() * present).sum())
        if not mean > 0:  # no pair of images in any process, or no difference: wait for the next batch
            return
        std = (squares / count).sqrt().clamp(min=SMALLEST_SPREAD * float(mean))
        self.learned_asym_mean.copy_(mean)
        self.learned_asym_std.copy_(std)
        self.has_scale = True
        log.info("asymmetry scores start from the first batch's: mean %.3g, standard deviation %.3g", mean, std)


def _over_processes(*sums: Tensor) -> Tensor:
    """Scalars added up over all processes."""
    total = torch.stack([value.float() for value in sums])
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(total)
    return total


def windows(size: int, cells: int, compat: Compat) -> list[tuple[int, int]]:
    """Start and end of the pieces that `size` positions are divided into."""
    if compat == "reference":
        width = max(size // cells, 1)
        return [(start, start + width) for start in range(0, size - width + 1, width)]
    cells = min(cells, size)
    return [(i * size // cells, -(-(i + 1) * size // cells)) for i in range(cells)]


def track(asymmetry: Asymmetry, threshold: float, persistent_weight: float) -> Tensor:
    """The asymmetry of a woman over her visits (B, 1): a mean of the scores, with more weight on persistent ones.

    Every valid visit has weight 1; two consecutive visits whose positions differ by at most `threshold` (grid cells)
    each get `persistent_weight` more. 0 without a valid visit.
    """
    scores, places, valid = asymmetry
    rank = valid.long().cumsum(dim=1)
    follows = (rank.unsqueeze(1) - rank.unsqueeze(2) == 1) & valid.unsqueeze(1) & valid.unsqueeze(2)
    near = torch.linalg.vector_norm(places.unsqueeze(1) - places.unsqueeze(2), dim=-1) <= threshold
    stays = (follows & near).to(scores.dtype)
    weights = valid + persistent_weight * (stays.sum(dim=1) + stays.sum(dim=2))
    mean: Tensor = (weights * scores).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
    return mean.unsqueeze(1)
