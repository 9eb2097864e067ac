"""LMV-Net: the two views in turn; the registration network is not frozen, its flow is detached."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from .parts import Hazards, TimeEncoding, add_time, backbone, encode, resize_flow, warp
from .registration import MammoRegNet

DIM = 1536


class Processor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.mammo_reg_net = backbone(), MammoRegNet()
        self.positional_encoding = TimeEncoding()

    def forward(self, current: Tensor, previous: Tensor, years: Tensor) -> Tensor:
        f_cur, f_pri = encode(self.encoder, current), encode(self.encoder, previous)
        _, flow, _, _ = self.mammo_reg_net(current, previous)
        flow = resize_flow(flow.detach(), (f_cur.shape[2], f_cur.shape[3]))
        difference = torch.abs(f_cur - warp(f_pri, flow))
        return torch.cat([f_cur, f_pri, add_time(self.positional_encoding, difference, years)], dim=1)


class FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers = nn.Linear(DIM, 2 * DIM), nn.GELU(), nn.Dropout(0.3), nn.Linear(2 * DIM, DIM), nn.Dropout(0.3)
        self.net = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mha_self = nn.MultiheadAttention(DIM, 4, dropout=0.3, batch_first=True)
        self.mha_cross = nn.MultiheadAttention(DIM, 4, dropout=0.3, batch_first=True)
        self.norm1_cc, self.norm1_mlo = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.norm2_cc, self.norm2_mlo = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.ffn_cc, self.ffn_mlo = FeedForward(), FeedForward()
        self.dropout, self.drop_path = nn.Dropout(0.3), StochasticDepth(0.2, "row")

    def forward(self, cc: Tensor, mlo: Tensor) -> tuple[Tensor, Tensor]:
        att_cc = self.mha_self(cc, cc, cc)[0] + self.mha_cross(cc, mlo, mlo)[0]
        att_mlo = self.mha_self(mlo, mlo, mlo)[0] + self.mha_cross(mlo, cc, cc)[0]
        cc = self.norm1_cc(cc + self.drop_path(self.dropout(att_cc)))
        mlo = self.norm1_mlo(mlo + self.drop_path(self.dropout(att_mlo)))
        cc = self.norm2_cc(cc + self.drop_path(self.ffn_cc(cc)))
        mlo = self.norm2_mlo(mlo + self.drop_path(self.ffn_mlo(mlo)))
        return cc, mlo


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.longitudinal_feat_processor = Processor()
        self.cross_attn_blocks = nn.ModuleList([Block()])
        self.view_fc, self.cumulative_risk = nn.Linear(2 * DIM, DIM), Hazards(DIM)

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        views = []
        for view in ("cc", "mlo"):
            images = batch[f"current_image_{view}"], batch[f"previous_image_{view}"]
            features = self.longitudinal_feat_processor(*images, batch["time_gap"])
            views.append(features.flatten(2).transpose(1, 2))
        cc, mlo = views
        for block in self.cross_attn_blocks:
            cc, mlo = block(cc, mlo)
        cc, mlo = cc.mean(dim=1), mlo.mean(dim=1)
        return {
            "risk_multi": self.cumulative_risk(self.view_fc(torch.cat([cc, mlo], dim=1))),
            "risk_cc": self.cumulative_risk(cc),
            "risk_mlo": self.cumulative_risk(mlo),
        }
