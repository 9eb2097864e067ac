"""What several models share: image encoder, hazards, encoding of time, warp."""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock


def backbone() -> nn.Sequential:
    """ResNet-18 without pooling and classifier, as nine children."""
    stem = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False),
            bn1=nn.BatchNorm2d(64),
            relu=nn.ReLU(inplace=True),
            maxpool=nn.MaxPool2d(3, stride=2, padding=1),
        )
    )
    blocks, width = [], 64
    for planes in (64, 128, 256, 512):
        shortcut = None
        if planes != width:
            shortcut = nn.Sequential(nn.Conv2d(width, planes, 1, stride=2, bias=False), nn.BatchNorm2d(planes))
        blocks += [BasicBlock(width, planes, 1 if planes == width else 2, shortcut), BasicBlock(planes, planes)]
        width = planes
    return nn.Sequential(stem, *blocks)


def encode(encoder: nn.Module, image: Tensor) -> Tensor:
    """One image per sample (B, 1, H, W) -> features (B, 512, h, w)."""
    out: Tensor = encoder(image.expand(-1, 3, -1, -1))
    return out


class Hazards(nn.Module):
    """Cumulative hazards: (B, features) -> logits (B, 5)."""

    triangular_mask: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.hazard_fc = nn.Linear(features, 5)
        self.base_hazard_fc = nn.Linear(features, 1)
        self.register_buffer("triangular_mask", torch.tril(torch.ones(5, 5)).t())

    def forward(self, x: Tensor) -> Tensor:
        hazards = F.relu(self.hazard_fc(x)).unsqueeze(-1).expand(-1, -1, 5)
        return torch.sum(hazards * self.triangular_mask, dim=1) + self.base_hazard_fc(x)


class TimeEncoding(nn.Module):
    """Adds the encoding of years (B,) to every token (N, B, 512)."""

    pe: Tensor

    def __init__(self, dim: int = 512) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.1)
        position = torch.linspace(0, 5, 240).unsqueeze(1)
        factor = torch.exp(torch.arange(0, dim, 2).float() * (-math.log(10000.0) / dim))
        pe = torch.zeros(240, dim)
        pe[:, 0::2], pe[:, 1::2] = torch.sin(position * factor), torch.cos(position * factor)
        self.register_buffer("pe", pe)

    def forward(self, x: Tensor, years: Tensor) -> Tensor:
        t = years.float().clamp(0, 5) * 239 / 5
        below, above = t.floor().long(), t.ceil().long()
        share = (t - below).unsqueeze(1)
        out: Tensor = self.dropout(x + (1 - share) * self.pe[below] + share * self.pe[above])
        return out


def add_time(encoding: TimeEncoding, features: Tensor, years: Tensor) -> Tensor:
    """The encoding added to a map (B, C, h, w)."""
    b, c, h, w = features.shape
    tokens = encoding(features.view(b, c, h * w).permute(2, 0, 1), years)
    return tokens.permute(1, 2, 0).reshape(b, c, h, w)


def warp(x: Tensor, flow: Tensor) -> Tensor:
    """Features (B, C, h, w) sampled at the identity grid plus flow, channel 0 along x."""
    h, w = x.shape[-2:]
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, h), torch.linspace(-1, 1, w), indexing="ij")
    grid = torch.stack([columns + flow[:, 0] * 2 / (w - 1), rows + flow[:, 1] * 2 / (h - 1)], dim=-1)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=True)


def resize_flow(flow: Tensor, size: tuple[int, int]) -> Tensor:
    """From pixels of the image to pixels of the feature map."""
    h, w = flow.shape[-2:]
    resized = F.interpolate(flow, size=size, mode="bilinear", align_corners=True)
    return resized * torch.tensor([size[1] / w, size[0] / h]).view(1, 2, 1, 1)
