"""Layers that the longitudinal risk models share: hazard head, time encoding, feature-space warp."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Compat = Literal["fixed", "reference"]


class CumulativeProbabilityLayer(nn.Module):
    """Additive-hazard head: features -> one cumulative risk logit per follow-up year.

    `logit_t = base_hazard(x) + sum_{s <= t} relu(hazard_s(x))`, so risk never falls with time. The output is a logit;
    its sigmoid is the probability of cancer within t + 1 years.

    Input (B, features), output (B, years) in the dtype of the weights. The head leaves autocast: in bfloat16
    many patients would share one risk, and ties cost C-index.

    Source: "Toward robust mammography-based models for breast cancer risk" (Mirai), 2021.
    """

    triangular_mask: Tensor

    def __init__(self, in_features: int, years: int = 5) -> None:
        super().__init__()
        self.hazard_fc = nn.Linear(in_features, years)
        self.base_hazard_fc = nn.Linear(in_features, 1)
        self.register_buffer("triangular_mask", torch.ones(years, years).tril().t().contiguous())

    def hazards(self, x: Tensor) -> Tensor:
        """Non-negative yearly hazards (B, years)."""
        return F.relu(self.hazard_fc(x))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.hazard_fc.weight.dtype)
            logits: Tensor = self.base_hazard_fc(x) + self.hazards(x) @ self.triangular_mask
            return logits


class ContinuousPosEncoding(nn.Module):
    """Adds a sinusoidal encoding of the time between two exams to every token.

    A table of `num_steps` rows covers 0 to `max_time` years; values between rows are interpolated linearly, values
    outside are clamped. Input tokens (N, B, dim) and times (B,) in years, of any real dtype; output like the tokens.

    Source: the monthly encoding of OA-BreaCR ("Ordinal learning: longitudinal attention alignment model for
    predicting time to future breast cancer events from mammograms", 2024), on a continuous axis in years.
    """

    pe: Tensor

    def __init__(self, dim: int, drop: float = 0.1, max_time: float = 5.0, num_steps: int = 240) -> None:
        super().__init__()
        self.dropout = nn.Dropout(drop)
        self.max_time = max_time
        position = torch.linspace(0, max_time, num_steps).unsqueeze(1)
        div_term = torch.exp(torch.arange(0, dim, 2).float() * (-math.log(10000.0) / dim))
        pe = torch.zeros(num_steps, dim)
        pe[:, 0::2] = torch.sin(position * div_term)
        pe[:, 1::2] = torch.cos(position * div_term)
        self.register_buffer("pe", pe)

    def encode(self, times: Tensor) -> Tensor:
        """The encoding (B, dim) of times (B,) in years."""
        last = len(self.pe) - 1
        step = times.to(self.pe.dtype).clamp(0, self.max_time) * (last / self.max_time)
        lower = step.floor().long().clamp(0, last)
        upper = step.ceil().long().clamp(0, last)
        return torch.lerp(self.pe[lower], self.pe[upper], (step - lower).unsqueeze(1))

    def forward(self, x: Tensor, times: Tensor) -> Tensor:
        out: Tensor = self.dropout(x + self.encode(times))
        return out


def warp(x: Tensor, flow: Tensor) -> Tensor:
    """Feature maps sampled where `flow` points: `out[i, j] = x[i + dy, j + dx]`, bilinear, zero outside the
    map.

    x (B, C, h, w); flow (B, 2, h, w) in pixels of that map, **channel 0 = dx (columns), channel 1 = dy
    (rows)**. Output (B, C, h, w), in the wider of the two dtypes. A flow that is not finite gives a result
    that is not finite.

    Equal to `grid_sample` (zeros, align_corners=True) up to rounding, but made of `gather`: the backward pass
    of `grid_sample` on CUDA has no deterministic version, that of `gather` has one.
    """
    height, width = x.shape[-2:]
    column = torch.arange(width, device=flow.device, dtype=flow.dtype) + flow[:, 0]
    row = torch.arange(height, device=flow.device, dtype=flow.dtype).unsqueeze(1) + flow[:, 1]
    left, top = column.floor(), row.floor()
    right_share, bottom_share = column - left, row - top
    pixels = x.flatten(2)

    def corner(rows: Tensor, columns: Tensor, share: Tensor) -> Tensor:
        inside = (rows >= 0) & (rows <= height - 1) & (columns >= 0) & (columns <= width - 1)
        index = rows.long().clamp(0, height - 1) * width + columns.long().clamp(0, width - 1)
        values = pixels.gather(2, index.flatten(1).unsqueeze(1).expand(-1, x.shape[1], -1))
        return values.view(x.shape) * (share * inside).unsqueeze(1)

    return (
        corner(top, left, (1 - bottom_share) * (1 - right_share))
        + corner(top, left + 1, (1 - bottom_share) * right_share)
        + corner(top + 1, left, bottom_share * (1 - right_share))
        + corner(top + 1, left + 1, bottom_share * right_share)
    )


def resize_flow(flow: Tensor, size: tuple[int, int]) -> Tensor:
    """A displacement field at another resolution: interpolated, with converted pixels.

    flow (B, 2, H, W), **channel 0 = dx, channel 1 = dy** in pixels of (H, W); size (h, w). Output (B, 2, h,
    w) in pixels of (h, w): bilinear with align_corners=True, then dx times w/W and dy times h/H.
    """
    height, width = flow.shape[-2:]
    resized = F.interpolate(flow, size=size, mode="bilinear", align_corners=True)
    return torch.cat([resized[:, :1] * (size[1] / width), resized[:, 1:] * (size[0] / height)], dim=1)


def feature_displacement(flow: Tensor, size: tuple[int, int], compat: Compat = "fixed") -> Tensor:
    """The flow of MammoRegNet as a displacement for `warp`.

    flow (B, 2, H, W) of the registration network, **channel 0 = dy (rows)**, in image pixels; size (h, w) of
    the feature map. Output (B, 2, h, w), channel 0 = dx, in feature pixels. `compat="reference"` reproduces
    published results that were computed without exchanging the channels, which displaces features along the
    wrong axis.
    """
    return resize_flow(flow if compat == "reference" else flow.flip(1), size)
