"""Shifted-window attention (Swin) on 2-D maps, channels last, as used by MammoRegNet.

Source: "Swin Transformer: hierarchical vision transformer using shifted windows", 2021. Two properties of the trained
network are kept, because its weights depend on them: padded tokens take part in attention, and if the map is smaller
than the window, the top-left part of the full window's position index is used.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

MASKED = -100.0


def window_partition(x: Tensor, window: tuple[int, int]) -> Tensor:
    """(B, H, W, C) -> (B * windows, window area, C); H and W are multiples of the window."""
    b, h, w, c = x.shape
    x = x.view(b, h // window[0], window[0], w // window[1], window[1], c)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, window[0] * window[1], c)


def window_reverse(windows: Tensor, window: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """The inverse of `window_partition`: (B * windows, window area, C) -> (B, H, W, C) with size = (H, W)."""
    h, w = size
    x = windows.view(-1, h // window[0], w // window[1], window[0], window[1], windows.shape[-1])
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, h, w, windows.shape[-1])


def shift_mask(size: tuple[int, int], window: tuple[int, int], shift: tuple[int, int], like: Tensor) -> Tensor:
    """Attention mask of a cyclically shifted map: 0 within a region, -100 between regions that are not neighbours.

    Output (windows, area, area), in the dtype and on the device of `like`.
    """

    def region(length: int, side: int, by: int) -> Tensor:
        position = torch.arange(length, device=like.device)
        if by == 0:
            return torch.zeros_like(position)
        return (position >= length - side).long() + (position >= length - by).long()

    rows, columns = (region(*axis) for axis in zip(size, window, shift, strict=True))
    regions = (rows.unsqueeze(1) * 3 + columns).view(1, *size, 1)
    regions = window_partition(regions, window).squeeze(-1)
    differ = regions.unsqueeze(1) != regions.unsqueeze(2)
    return torch.zeros(differ.shape, dtype=like.dtype, device=like.device).masked_fill_(differ, MASKED)


class WindowAttention(nn.Module):
    """Multi-head self-attention inside windows, with a learned bias per relative position.

    Input (windows, area, dim) with area at most window**2, mask (windows per image, area, area) or None.
    """

    relative_position_index: Tensor

    def __init__(self, dim: int, num_heads: int, window: int = 5) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        side = torch.arange(window)
        coordinates = torch.stack(torch.meshgrid(side, side, indexing="ij")).flatten(1)
        relative = coordinates.unsqueeze(2) - coordinates.unsqueeze(1) + window - 1
        self.register_buffer("relative_position_index", relative[0] * (2 * window - 1) + relative[1])
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        # Plain matrix products: fused kernels take at most 65,535 windows, a full-size pair has 70,000.
        windows, area, dim = x.shape
        qkv = self.qkv(x).view(windows, area, 3, self.num_heads, dim // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table[self.relative_position_index[:area, :area]].permute(2, 0, 1)
        attention = (q * self.scale) @ k.transpose(-2, -1) + bias
        if mask is not None:
            per_image = attention.view(-1, len(mask), self.num_heads, area, area)
            attention = (per_image + mask.unsqueeze(1)).view(attention.shape)
        x = attention.softmax(dim=-1).to(v.dtype) @ v
        out: Tensor = self.proj(x.transpose(1, 2).reshape(windows, area, dim))
        return out


class MLP(nn.Module):
    """Two linear layers with exact GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(dim, hidden)
        self.linear2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear2(F.gelu(self.linear1(x)))
        return out


class SwinBlock(nn.Module):
    """`x + attention(norm1(x))`, then `x + mlp(norm2(x))`, on maps (B, H, W, dim) of any size."""

    def __init__(self, dim: int, num_heads: int, window: int = 5, shift: int = 0, mlp_ratio: int = 4) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, num_heads, window)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim, dim * mlp_ratio)

    def attend(self, x: Tensor) -> Tensor:
        """Window attention of a normalised map (B, H, W, dim), padded to whole windows and cropped again."""
        _, height, width, _ = x.shape
        window = (min(self.window, height), min(self.window, width))
        shift = (
            self.shift if height > self.window else 0,
            self.shift if width > self.window else 0,
        )
        x = F.pad(x, (0, 0, 0, -width % window[1], 0, -height % window[0]))
        size = (x.shape[1], x.shape[2])
        if any(shift):
            x = x.roll((-shift[0], -shift[1]), dims=(1, 2))
            windows = self.attn(window_partition(x, window), shift_mask(size, window, shift, x))
            x = window_reverse(windows, window, size).roll(shift, dims=(1, 2))
        else:
            x = window_reverse(self.attn(window_partition(x, window)), window, size)
        return x[:, :height, :width]

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class SwinStage(nn.Module):
    """Blocks with and without shift, alternating, on maps (B, dim, H, W). Heads have 16 channels.

    Blocks whose input needs a gradient are recomputed in the backward pass instead of kept in memory.
    """

    def __init__(self, dim: int, depth: int = 4, window: int = 5, head_dim: int = 16) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            SwinBlock(dim, dim // head_dim, window, shift=0 if i % 2 == 0 else window // 2) for i in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        for block in self.blocks:
            if torch.is_grad_enabled() and x.requires_grad:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x.permute(0, 3, 1, 2)
