"""ImgFeatAlign: encoder and registration network are frozen (their parameters want no gradient)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .parts import Hazards, TimeEncoding, add_time, backbone, encode, resize_flow, warp
from .registration import MammoRegNet

DIM = 512


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(DIM, 8, dropout=0.1)
        self.norm1, self.norm2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.ff = nn.Sequential(nn.Linear(DIM, 4 * DIM), nn.ReLU(), nn.Linear(4 * DIM, DIM))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.attn(x, x, x)[0])
        out: Tensor = self.norm2(x + self.ff(x))
        return out


class RiskModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.positional_encoding, self.attention_layer = TimeEncoding(), Attention()
        self.feature_projection = nn.Linear(DIM, DIM)
        self.head_fused, self.head_cur, self.head_pri = Hazards(DIM), Hazards(DIM), Hazards(DIM)

    def forward(
        self, f_cur: Tensor, f_pri: Tensor, f_aligned: Tensor, f_diff: Tensor, years: Tensor
    ) -> dict[str, Tensor]:
        f_diff = add_time(self.positional_encoding, f_diff, years)
        cur, pri, aligned, diff = (F.adaptive_avg_pool2d(f, 1).flatten(1) for f in (f_cur, f_pri, f_aligned, f_diff))
        fused = self.attention_layer(torch.stack([aligned, diff, cur])).mean(dim=0)
        return {
            "pred_fused": self.head_fused(self.feature_projection(fused)),
            "pred_cur": self.head_cur(cur),
            "pred_pri": self.head_pri(pri),
        }


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.mammo_reg_net = backbone().requires_grad_(False), MammoRegNet().requires_grad_(False)
        self.risk_model = RiskModel()

    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        current, previous = batch["current_image"], batch["previous_image"]
        f_cur, f_pri = encode(self.encoder, current), encode(self.encoder, previous)
        _, field, _, _ = self.mammo_reg_net(current, previous)
        field = field.detach()
        f_aligned = warp(f_pri, resize_flow(field, (f_cur.shape[2], f_cur.shape[3])))
        f_diff = torch.abs(f_cur - f_aligned)
        return {
            "risk_prediction": self.risk_model(f_cur, f_pri, f_aligned, f_diff, batch["time_gap"]),
            "deformation_field": field,
            "aligned_prior_feature": f_aligned,
            "prior_feature": f_pri,
            "current_feature": f_cur,
            "diff_feature": f_diff,
        }
