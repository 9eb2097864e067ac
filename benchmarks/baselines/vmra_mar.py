"""VMRA-MaR: the images of all visits in turn, a state-space network over the visits, asymmetry of the breasts.

The encoder is frozen (its parameters want no gradient).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from .parts import Hazards, backbone, encode

DIM, INNER, STATE, RANK, SCANS = 512, 1024, 16, 32, 4


def selective_scan(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """u, delta (B, K*D, L), a (K*D, N), b, c (B, K, N, L), d (K*D,) -> (B, K*D, L), one step after the other."""
    b = b.repeat_interleave(u.shape[1] // b.shape[1], dim=1)
    c = c.repeat_interleave(u.shape[1] // c.shape[1], dim=1)
    state, steps = torch.zeros(len(u), *a.shape), []
    for i in range(u.shape[2]):
        gain = torch.exp(delta[:, :, i, None] * a)
        state = gain * state + delta[:, :, i, None] * b[..., i] * u[:, :, i, None]
        steps.append((state * c[..., i]).sum(-1))
    return torch.stack(steps, dim=2) + d[None, :, None] * u


class SS2D(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.in_proj = nn.Linear(DIM, 2 * INNER, bias=False)
        self.conv2d = nn.Conv2d(INNER, INNER, 3, padding=1, groups=INNER)
        self.x_proj_weight = nn.Parameter(torch.empty(SCANS, RANK + 2 * STATE, INNER))
        self.dt_projs_weight = nn.Parameter(torch.empty(SCANS, INNER, RANK))
        self.dt_projs_bias = nn.Parameter(torch.empty(SCANS, INNER))
        self.A_logs = nn.Parameter(torch.empty(SCANS * INNER, STATE))
        self.Ds = nn.Parameter(torch.empty(SCANS * INNER))
        self.out_norm, self.out_proj = nn.LayerNorm(INNER), nn.Linear(INNER, DIM, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x, z = self.in_proj(x).chunk(2, dim=-1)
        x = F.silu(self.conv2d(x.permute(0, 3, 1, 2)))
        n, _, h, w = x.shape
        length = h * w
        by_row, by_column = x.flatten(2), x.transpose(2, 3).flatten(2)
        ways = torch.stack([by_row, by_column], dim=1)
        ways = torch.cat([ways, ways.flip(-1)], dim=1)
        dt, b, c = torch.einsum("bkdl,kcd->bkcl", ways, self.x_proj_weight).split([RANK, STATE, STATE], dim=2)
        dt = torch.einsum("bkrl,kdr->bkdl", dt, self.dt_projs_weight)
        delta = F.softplus(dt.reshape(n, -1, length) + self.dt_projs_bias.view(-1, 1))
        y = selective_scan(ways.reshape(n, -1, length), delta, -torch.exp(self.A_logs), b, c, self.Ds)
        y = y.view(n, SCANS, INNER, length)
        y = y[:, :2] + y[:, 2:].flip(-1)
        y = y[:, 0] + y[:, 1].view(n, INNER, w, h).transpose(2, 3).reshape(n, INNER, length)
        y = self.out_norm(y.transpose(1, 2).view(n, h, w, INNER))
        out: Tensor = self.out_proj(y * F.silu(z))
        return out


class VSB(nn.Module):
    def __init__(self, drop_path: float) -> None:
        super().__init__()
        self.ln_1, self.linear, self.self_attention = nn.LayerNorm(DIM), nn.Linear(2 * DIM, DIM), SS2D()
        self.drop_path = StochasticDepth(drop_path, "row")

    def forward(self, x: Tensor, hidden: Tensor | None) -> Tensor:
        u = self.ln_1(x)
        if hidden is not None:
            u = self.linear(torch.cat([u, self.ln_1(hidden)], dim=-1))
        out: Tensor = x + self.drop_path(self.self_attention(u.unsqueeze(1)).squeeze(1))
        return out


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.VSBs = nn.ModuleList([VSB(0.0), VSB(0.1)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = cell = torch.zeros_like(x)
        z = self.VSBs[1](self.VSBs[0](x, hidden), None)
        gate = torch.sigmoid(z)
        cell = gate * (cell + torch.tanh(z))
        return gate * torch.tanh(cell), cell


class Sampler(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Cell()])


class VMRNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.Downsample, self.Upsample = Sampler(), Sampler()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        tokens, _ = self.Downsample.layers[0](x)
        hidden, _ = self.Upsample.layers[0](tokens)
        return tokens, torch.sigmoid(hidden)


class SAD(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cc_stretch_params, self.mlo_stretch_params = nn.Parameter(torch.ones(DIM)), nn.Parameter(torch.ones(DIM))
        self.learned_asym_mean, self.learned_asym_std = (nn.Parameter(torch.tensor(v)) for v in (2000.0, 300.0))

    def pair(self, left: Tensor, right: Tensor, stretch: Tensor) -> tuple[Tensor, Tensor]:
        stretch = stretch.view(1, -1, 1, 1)
        h, w = left.shape[-2:]
        kernel = (max(h // 5, 1), max(w // 5, 1))
        heat = F.max_pool2d(torch.abs(left * stretch - right.flip(-1) * stretch), kernel, stride=kernel)
        heat = torch.linalg.vector_norm(heat, dim=1)
        score, place = heat.flatten(1).max(dim=1)
        return score, torch.stack([place // heat.shape[2], place % heat.shape[2]], dim=1).float()

    def forward(self, maps: Tensor, view_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scores, coords, valid = [], [], []
        for t in range(maps.shape[1]):
            raw, places, there = [], [], []
            for (i, j), stretch in (((0, 1), self.cc_stretch_params), ((2, 3), self.mlo_stretch_params)):
                score, place = self.pair(maps[:, t, i], maps[:, t, j], stretch)
                raw.append(score)
                places.append(place)
                there.append(view_mask[:, t, i] & view_mask[:, t, j])
            score, place, has = torch.stack(raw, 1), torch.stack(places, 1), torch.stack(there, 1)
            normal = torch.sigmoid((score - self.learned_asym_mean) / self.learned_asym_std.abs().clamp_min(1e-6))
            scores.append((normal * has).sum(1) / has.sum(1).clamp_min(1))
            best = score.masked_fill(~has, -math.inf).argmax(1)
            any_pair = has.any(1)
            coords.append(place[torch.arange(len(place)), best] * any_pair[:, None])
            valid.append(any_pair)
        return torch.stack(scores, 1), torch.stack(coords, 1), torch.stack(valid, 1)


def track(scores: Tensor, coords: Tensor, valid: Tensor, exam_mask: Tensor, window: int) -> Tensor:
    valid = valid & exam_mask
    weights = valid.float()
    near = torch.linalg.vector_norm(coords[:, 1:] - coords[:, :-1], dim=-1) <= 0.4 * window
    near = (near & valid[:, 1:] & valid[:, :-1]).float()
    weights = weights + F.pad(near, (1, 0)) + F.pad(near, (0, 1))
    return ((weights * scores).sum(1) / weights.sum(1).clamp_min(1)).unsqueeze(1)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = backbone().requires_grad_(False)
        self.vmrnn, self.sad, self.ahl = VMRNN(), SAD(), Hazards(DIM + 1)

    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        images = batch["images"]
        visits, views = images.shape[1:3]
        maps = torch.stack(
            [
                torch.stack([encode(self.image_encoder, images[:, t, v]) for v in range(views)], dim=1)
                for t in range(visits)
            ],
            dim=1,
        )
        tokens = maps.amax(dim=(-2, -1)).mean(dim=2)
        latent, output = self.vmrnn(tokens)
        feature = latent.mean(dim=1)
        scores, coords, valid = self.sad(maps, batch["view_mask"])
        r_aa = track(scores, coords, valid, batch["exam_mask"], max(maps.shape[-2:]))
        logit = self.ahl(torch.cat([feature, r_aa], dim=1))
        return {
            "logit": logit,
            "probs": torch.sigmoid(logit),
            "temporal_feature": feature,
            "temporal_output": output,
            "latent_tokens": latent,
            "r_aa": r_aa,
            "asymmetry_scores": scores,
            "asymmetry_coords": coords,
            "coord_valid": valid,
        }
