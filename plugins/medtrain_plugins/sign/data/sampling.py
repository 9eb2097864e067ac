"""Clips of any length as T frames: one position in each of T equal parts of the clip, interpolated between frames."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from medtrain_plugins.sign.data.landmarks import CHANNELS, GROUPS, LANDMARKS

Interpolation = Literal["reference", "present"]


def positions(lengths: Tensor, count: int, where: Tensor | None = None) -> Tensor:
    """Positions to sample at, in frames, (B, count): at `where` (B, count) in [0, 1) of each part, default: its middle.

    lengths: (B,), frames of each clip, at least 1. In float64, at least 1e-6 before the last frame, as published models
    were trained.
    """
    frames = lengths[:, None].double()
    parts = torch.arange(count, device=lengths.device, dtype=torch.float64)
    places = (parts + (0.5 if where is None else where.double())) * (frames / count)
    return torch.minimum(places, frames - (1 + 1e-6)).clamp_min(0)


def sample(frames: Tensor, lengths: Tensor, places: Tensor, interpolation: Interpolation) -> Tensor:
    """The clips at `places`: (B, T, 736) float32, linearly interpolated between two frames.

    frames: (sum of lengths, 736) float32, the concatenated clips. lengths: (B,) int64. places: (B, T), see `positions`.
    interpolation: "reference" blends any two frames, also one with a missed hand (zeros) and one with the hand;
    "present" uses the frame that has a group if the other does not.
    """
    start = (lengths.cumsum(0) - lengths)[:, None]
    below = places.floor().long()
    above = torch.minimum(below + 1, lengths[:, None] - 1)
    share = (places - below).float().flatten()
    pairs = torch.stack([start + below, start + above], dim=-1).view(-1, 2)
    weights = torch.stack([1 - share, share], dim=-1)
    shape = (*places.shape, frames.shape[-1])
    if interpolation == "reference":
        return _blend(pairs, frames, weights).view(shape)
    seen = frames.view(-1, LANDMARKS, CHANNELS)[..., 3] != 0
    parts = []
    for rows in GROUPS.values():
        known = seen[:, rows].any(dim=1)[pairs]
        # If only one of the two frames has the group, it gets all the weight; if none has it, there is nothing to
        # blend.
        group_weights = torch.where(known.all(dim=1, keepdim=True), weights, known.float())
        part = frames[:, rows.start * CHANNELS : rows.stop * CHANNELS].contiguous()
        parts.append(_blend(pairs, part, group_weights))
    return torch.cat(parts, dim=-1).view(shape)


def _blend(pairs: Tensor, frames: Tensor, weights: Tensor) -> Tensor:
    # Gathers and sums in one pass; indexing twice and adding would pass over the memory five times.
    return embedding_bag(pairs, frames, per_sample_weights=weights.to(frames.dtype), mode="sum")
