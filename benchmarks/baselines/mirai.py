"""Mirai: the four images of an exam in turn, then the aggregator."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .parts import Hazards, backbone, encode

DIM, HEADS = 512, 8


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        self.aggregate_fc = nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (f(x).view(b, n, HEADS, -1).transpose(1, 2) for f in (self.query, self.key, self.value))
        weights = F.softmax(q @ k.transpose(-2, -1) / math.sqrt(DIM / HEADS), dim=-1)
        out: Tensor = self.aggregate_fc((weights @ v).transpose(1, 2).reshape(b, n, DIM))
        return out


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.multihead_attention = Attention()
        self.layernorm_attn, self.layernorm_fc = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.fc1, self.fc2 = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layernorm_attn(self.multihead_attention(x) + x)
        out: Tensor = self.layernorm_fc(self.fc2(F.relu(self.fc1(x))) + x)
        return out


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.view_embed = nn.Embedding(3, 32, padding_idx=2)
        self.time_embed = nn.Embedding(11, 32, padding_idx=10)
        self.side_embed = nn.Embedding(3, 32, padding_idx=2)
        self.embed_scale_fc, self.embed_add_fc = nn.Linear(96, DIM), nn.Linear(96, DIM)
        self.transformer_layer_0 = Layer()

    def forward(self, x: Tensor, view: Tensor, time: Tensor, side: Tensor) -> Tensor:
        e = torch.cat([self.view_embed(view), self.time_embed(time), self.side_embed(side)], dim=-1)
        out: Tensor = self.transformer_layer_0(self.embed_scale_fc(e) * x + self.embed_add_fc(e))
        return out


class Pool(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention_fc = nn.Linear(DIM, 1)

    def forward(self, x: Tensor) -> Tensor:
        return (F.softmax(self.attention_fc(x), dim=1) * x).sum(dim=1)


class Aggregator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kept_images_vec = nn.Parameter(torch.ones(1, 4, 1), requires_grad=False)
        self.mask_embedding = nn.Embedding(2, DIM, padding_idx=1)
        self.projection_layer = nn.Linear(DIM, DIM)
        self.transformer, self.pool = Transformer(), Pool()
        self.fc, self.pred_masked_img_fc = nn.Linear(DIM, 5), nn.Linear(DIM, DIM)
        self.prob_of_failure_layer = Hazards(DIM)

    def forward(self, x: Tensor, view: Tensor, time: Tensor, side: Tensor) -> tuple[Tensor, Tensor]:
        kept = self.kept_images_vec.expand(len(x), -1, -1)
        x = x * kept + self.mask_embedding(kept.squeeze(-1).long())
        hidden = self.transformer(self.projection_layer(x), view, time, side)
        return self.prob_of_failure_layer(F.relu(self.pool(hidden))), hidden


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image_encoder, self.transformer = backbone(), Aggregator()

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        images = batch["images"]
        pooled = [
            F.adaptive_max_pool2d(encode(self.image_encoder, images[:, i]), 1).flatten(1)
            for i in range(images.shape[1])
        ]
        sequences = (batch[f"{name}_seq"] for name in ("view", "time", "side"))
        logit, hidden = self.transformer(torch.stack(pooled, dim=1), *sequences)
        return {"logit": logit, "transformer_hidden": hidden}
