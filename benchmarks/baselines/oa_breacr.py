"""OA-BreaCR: both images in turn, attention pooling, a flow from the attention maps, sampled ordinal embedding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .parts import TimeEncoding, encode, warp

DIM, CLASSES, SAMPLES = 512, 6, 50


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import resnet18

        self.model = nn.Sequential(*list(resnet18(weights=None).children())[:-2])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x)
        return out


class Pooling(nn.Module):
    def __init__(self, locations: int) -> None:
        super().__init__()
        self.attention_fc, self.norm = nn.Linear(DIM, 1), nn.LayerNorm(locations)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        b, _, h, w = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        scores = self.attention_fc(tokens)
        hidden = (F.softmax(scores, dim=1) * tokens).sum(dim=1)
        return hidden, self.norm(F.log_softmax(scores.squeeze(-1), dim=1)).view(b, 1, h, w)


class FlowBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(2, 2, 3, padding=1, bias=False), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Flow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block1, self.block2 = FlowBlock(), FlowBlock()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block2(self.block1(x))
        return out


class Latent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.log_var = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)


class Model(nn.Module):
    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.model, self.pooling = Encoder(), Pooling((size[0] // 32) * (size[1] // 32))
        self.flew, self.pos_encoding, self.POELatent = Flow(), TimeEncoding(), Latent()
        self.mlp = nn.Sequential(nn.Linear(3 * DIM, DIM), nn.Dropout(0.2), nn.GELU(), nn.Linear(DIM, DIM))
        self.dropout = nn.Dropout(0.1)
        self.final, self.final_single = nn.Linear(DIM, CLASSES), nn.Linear(DIM, CLASSES)
        self.difference_single = nn.Linear(DIM, CLASSES)

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        f_cur, f_pri = encode(self.model, batch["current_image"]), encode(self.model, batch["previous_image"])
        h_cur, att_cur = self.pooling(f_cur)
        h_pri, att_pri = self.pooling(f_pri)
        flow = self.flew(torch.cat([att_cur, att_pri], dim=1))
        h_diff, _ = self.pooling(torch.abs(f_cur - warp(f_pri, flow)))
        encoded = self.pos_encoding(h_diff.unsqueeze(0), batch["time_gap"]).squeeze(0)
        fused = self.mlp(torch.cat([h_cur, h_pri, encoded], dim=1))
        emb, log_var = self.POELatent.embed(fused), self.POELatent.log_var(fused)
        z = emb
        if self.training:
            z = emb + torch.exp(0.5 * log_var) * torch.randn(SAMPLES, *emb.shape)
        return {
            "final": self.final(self.dropout(z)),
            "current": self.final_single(h_cur),
            "prior": self.final_single(h_pri),
            "difference": self.difference_single(encoded),
            "emb_final": emb,
            "log_var_final": log_var,
            "flow_field": flow,
            "loss": 0.01 * (att_cur - warp(att_pri, flow)).square().mean(),
        }
