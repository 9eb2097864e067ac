"""MammoRegNet: both images through the encoder, an affine step, then flow from coarse to fine with window attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

WINDOW = 5


class ConvBlock(nn.Module):
    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.Conv_1, self.Conv_2 = nn.Conv2d(i, o, 3, padding=1), nn.Conv2d(o, o, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        for convolution in (self.Conv_1, self.Conv_2):
            x = F.instance_norm(F.leaky_relu(convolution(x), 0.2))
        return x


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for level, (i, o) in enumerate([(1, 8), (8, 16), (16, 32), (32, 64), (64, 128)], start=1):
            self.add_module(f"conv_{level}", ConvBlock(i, o))

    def forward(self, x: Tensor) -> list[Tensor]:
        levels = []
        for level, block in enumerate(self.children()):
            x = block(F.avg_pool2d(x, 2) if level else x)
            levels.append(x)
        return levels


def partition(x: Tensor, wh: int, ww: int) -> Tensor:
    b, h, w, c = x.shape
    x = x.view(b, h // wh, wh, w // ww, ww, c)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, wh * ww, c)


def unpartition(x: Tensor, wh: int, ww: int, b: int, h: int, w: int) -> Tensor:
    x = x.view(b, h // wh, w // ww, wh, ww, -1)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, -1)


def attention_mask(h: int, w: int, wh: int, ww: int, sh: int, sw: int) -> Tensor:
    """-100 between the nine regions of a shifted map."""
    regions, count = torch.zeros(1, h, w, 1), 0
    for rows in (slice(-wh), slice(-wh, -sh), slice(-sh, None)) if sh else (slice(None),):
        for columns in (slice(-ww), slice(-ww, -sw), slice(-sw, None)) if sw else (slice(None),):
            regions[:, rows, columns] = count
            count += 1
    windows = partition(regions, wh, ww).squeeze(-1)
    return (windows.unsqueeze(1) != windows.unsqueeze(2)) * -100.0


class WindowAttention(nn.Module):
    relative_position_index: Tensor

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * WINDOW - 1) ** 2, heads))
        rows, columns = torch.meshgrid(torch.arange(WINDOW), torch.arange(WINDOW), indexing="ij")
        rows, columns = rows.flatten(), columns.flatten()
        dy, dx = (p[:, None] - p[None, :] + WINDOW - 1 for p in (rows, columns))
        self.register_buffer("relative_position_index", dy * (2 * WINDOW - 1) + dx)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        attention = (q * self.scale) @ k.transpose(-2, -1)
        index = self.relative_position_index[:n, :n].reshape(-1)
        attention = attention + self.relative_position_bias_table[index].view(n, n, -1).permute(2, 0, 1)
        if mask is not None:
            attention = attention.view(-1, len(mask), self.heads, n, n) + mask[None, :, None]
            attention = attention.view(-1, self.heads, n, n)
        out: Tensor = self.proj((attention.softmax(dim=-1) @ v).transpose(1, 2).reshape(b, n, c))
        return out


class MLP(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear2(F.gelu(self.linear1(x)))
        return out


class Block(nn.Module):
    def __init__(self, dim: int, shifted: bool) -> None:
        super().__init__()
        self.shifted = shifted
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn, self.mlp = WindowAttention(dim, dim // 16), MLP(dim)

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, _ = x.shape
        wh, ww = min(WINDOW, h), min(WINDOW, w)
        sh, sw = (WINDOW // 2 if self.shifted and side > WINDOW else 0 for side in (h, w))
        y = F.pad(self.norm1(x), (0, 0, 0, -w % ww, 0, -h % wh))
        ph, pw = y.shape[1:3]
        mask = None
        if sh or sw:
            y = torch.roll(y, (-sh, -sw), dims=(1, 2))
            mask = attention_mask(ph, pw, wh, ww, sh, sw)
        y = unpartition(self.attn(partition(y, wh, ww), mask), wh, ww, b, ph, pw)
        if sh or sw:
            y = torch.roll(y, (sh, sw), dims=(1, 2))
        x = x + y[:, :h, :w]
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class Stage(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(dim, shifted=i % 2 == 1) for i in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if x.requires_grad else block(x)
        return x.permute(0, 3, 1, 2)


class UpSample(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.up_conv, self.norm = nn.ConvTranspose2d(dim, dim // 2, 2, stride=2), nn.LayerNorm(dim // 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.up_conv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return out


class RegHead(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reg_head = nn.Conv2d(dim, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.reg_head(x)
        return out


def pixels(h: int, w: int) -> Tensor:
    """Row and column of each pixel, (1, 2, h, w)."""
    return torch.stack(torch.meshgrid(torch.arange(h).float(), torch.arange(w).float(), indexing="ij"))[None]


def affine_grid(delta: Tensor, size: torch.Size) -> Tensor:
    return F.affine_grid(delta.view(-1, 2, 3) + torch.eye(2, 3), list(size), align_corners=True)


class AffineHead(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.affine_head_1 = nn.Linear(dim, dim // 2, bias=False)
        self.affine_head_2 = nn.Linear(dim // 2, 6, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h, w = x.shape[-2:]
        delta = torch.tanh(self.affine_head_2(F.relu(self.affine_head_1(x.mean(dim=(2, 3))))))
        grid = affine_grid(delta, x.shape)[..., [1, 0]].permute(0, 3, 1, 2)
        scale = torch.tensor([h - 1.0, w - 1.0]).view(1, 2, 1, 1)
        return delta, (grid / 2 + 0.5) * scale - pixels(h, w)


def sample(x: Tensor, flow: Tensor) -> Tensor:
    """Channel 0 of the flow is rows."""
    h, w = x.shape[-2:]
    at = pixels(h, w) + flow
    grid = torch.stack([2 * (at[:, 1] / (w - 1) - 0.5), 2 * (at[:, 0] / (h - 1) - 0.5)], dim=-1)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=True)


def double(flow: Tensor) -> Tensor:
    return F.interpolate(2 * flow, scale_factor=2, mode="bilinear", align_corners=True)


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for level, dim in ((5, 256), (4, 128), (3, 64), (2, 32)):
            self.add_module(f"backdim_{level}", nn.Conv2d(256 if level == 5 else 2 * dim, dim, 1))
            self.add_module(f"trans_{level}", Stage(dim))
            self.add_module(f"upsample_{level - 1}", UpSample(dim))
            self.add_module(f"reghead_{level}", AffineHead(dim) if level == 5 else RegHead(dim))
        self.conv_1, self.reghead_1 = ConvBlock(32, 16), RegHead(16)

    def forward(self, fixed: list[Tensor], moving: list[Tensor]) -> tuple[Tensor, Tensor]:
        x = self.trans_5(self.backdim_5(torch.cat([fixed[4], moving[4]], dim=1)))
        delta, flow = self.reghead_5(x)
        for level in (4, 3, 2, 1):
            up = double(flow)
            x = getattr(self, f"upsample_{level}")(x)
            x = torch.cat([fixed[level - 1], x, sample(moving[level - 1], up)], dim=1)
            if level > 1:
                x = getattr(self, f"trans_{level}")(getattr(self, f"backdim_{level}")(x))
            else:
                x = self.conv_1(x)
            flow = getattr(self, f"reghead_{level}")(x) + up
        return flow, delta


class MammoRegNet(nn.Module):
    """(fixed, moving) -> (warped, flow, affined, affine parameters)."""

    def __init__(self) -> None:
        super().__init__()
        self.Encoder, self.Decoder = Encoder(), Decoder()

    def forward(self, fixed: Tensor, moving: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        flow, delta = self.Decoder(self.Encoder(fixed), self.Encoder(moving))
        affined = F.grid_sample(moving, affine_grid(delta, moving.shape), align_corners=True)
        return sample(moving, flow), flow, affined, delta
