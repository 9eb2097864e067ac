"""Distances between Gaussians with diagonal covariance, row by row.

Each takes means u1, u2 and variances v1, v2, all (B, D), and returns (B,); variances must be positive. If a distance is
a root, its gradient at zero is zero.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Distance = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def bhattacharyya(u1: Tensor, v1: Tensor, u2: Tensor, v2: Tensor) -> Tensor:
    middle = (v1 + v2) / 2
    spread = middle.log() - (v1.log() + v2.log()) / 2
    return ((u1 - u2).square() / middle / 8 + spread / 2).sum(dim=-1)


def hellinger(u1: Tensor, v1: Tensor, u2: Tensor, v2: Tensor) -> Tensor:
    return _root(-torch.expm1(-bhattacharyya(u1, v1, u2, v2)))


def wasserstein(u1: Tensor, v1: Tensor, u2: Tensor, v2: Tensor) -> Tensor:
    return _root((u1 - u2).square().sum(dim=-1) + (v1.sqrt() - v2.sqrt()).square().sum(dim=-1))


def geodesic(u1: Tensor, v1: Tensor, u2: Tensor, v2: Tensor) -> Tensor:
    """Fisher-Rao distance: `sqrt(sum 2 ln^2((1 + d) / (1 - d)))`."""
    s1, s2 = v1.sqrt(), v2.sqrt()
    shift = (u1 - u2).square()
    far = shift + 2 * (s1 + s2).square()
    d = _root((shift + 2 * (s1 - s2).square()) / far)
    # 1 - d is (1 - d^2) / (1 + d) with 1 - d^2 = 8 s1 s2 / far, which does not round to zero for distant Gaussians.
    log_ratio = 2 * d.log1p() + far.log() - (8 * s1 * s2).log()
    return _root(2 * log_ratio.square().sum(dim=-1))


def forward_kl(u1: Tensor, v1: Tensor, u2: Tensor, v2: Tensor) -> Tensor:
    return -(v1.log() - v2.log() - v1 / v2 - (u1 - u2).square() / v2 + 1).sum(dim=-1) / 2


def reverse_kl(u1: Tensor, v1: Tensor, u2: Tensor, v2: Tensor) -> Tensor:
    return forward_kl(u2, v2, u1, v1)


def jeffreys(u1: Tensor, v1: Tensor, u2: Tensor, v2: Tensor) -> Tensor:
    return forward_kl(u1, v1, u2, v2) + reverse_kl(u1, v1, u2, v2)


DISTANCES: dict[str, Distance] = {
    "BhattacharyyaDistance": bhattacharyya,
    "HellingerDistance": hellinger,
    "WassersteinDistance": wasserstein,
    "GeodesicDistance": geodesic,
    "ForwardKLDistance": forward_kl,
    "ReverseKLDistance": reverse_kl,
    "JDistance": jeffreys,
}


def _root(x: Tensor) -> Tensor:
    return x.clamp(min=torch.finfo(x.dtype).tiny).sqrt()
