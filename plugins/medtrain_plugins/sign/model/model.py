"""The spatial-temporal transformer: word-level signs from the landmarks of 50 frames.

Each frame is four tokens (pose, face, right hand, left hand). A block attends first among the four tokens of a frame,
then along time within each token. The clip is pooled over tokens by their mean, and over time by learned weights.
Module names are those of trained checkpoints.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from medtrain.errors import DataError
from torch import Tensor, nn

from medtrain_plugins.sign.data.landmarks import CHANNELS, FEATURES, GROUPS
from medtrain_plugins.sign.data.sampling import Interpolation, positions, sample

MAX_FRAMES = 50


class GroupEmbedding(nn.Module):
    """Frames (B, T, 736) -> four tokens each, (B, T, 4, dim)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.part_embed = nn.Parameter(torch.empty(1, 1, len(GROUPS), dim))
        nn.init.trunc_normal_(self.part_embed, std=0.02)
        self.input_bn = nn.BatchNorm1d(FEATURES)
        for group, rows in GROUPS.items():
            self.add_module(f"{group}_proj", nn.Linear((rows.stop - rows.start) * CHANNELS, dim))
        self.layer_norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.input_bn(x.flatten(0, 1)).view(x.shape)
        tokens = [
            self.get_submodule(f"{group}_proj")(x[..., rows.start * CHANNELS : rows.stop * CHANNELS])
            for group, rows in GROUPS.items()
        ]
        return nn.functional.gelu(self.layer_norm(torch.stack(tokens, dim=2) + self.part_embed))


class PositionalEncoding(nn.Module):
    """Adds the fixed sinusoids of time, the same for the four tokens; their base is 1e5."""

    pe: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        time = torch.arange(MAX_FRAMES).float()[:, None]
        rates = torch.exp(-math.log(1e5) * torch.arange(0, dim, 2) / dim)
        waves = torch.stack([(time * rates).sin(), (time * rates).cos()], dim=-1)
        self.register_buffer("pe", waves.view(1, MAX_FRAMES, 1, dim))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pe[:, : x.shape[1]]


class Block(nn.Module):
    """Attention among tokens, then along time, then a feed-forward network: (B, T, 4, dim) in and out.

    The skip connection of the two attentions carries the normalised value, unlike in an ordinary pre-norm block.
    """

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.spatial_norm, self.temporal_norm, self.mlp_norm = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.spatial_attention = nn.MultiheadAttention(dim, heads, dropout=dropout, batch_first=True)
        self.temporal_attention = nn.MultiheadAttention(dim, heads, dropout=dropout, batch_first=True)
        self.mlp = nn.Sequential(
            nn.Linear(dim, 4 * dim),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(4 * dim, dim),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, time, tokens, dim = x.shape
        s = self.spatial_norm(x).view(batch * time, tokens, dim)
        s = s + self.spatial_attention(s, s, s, need_weights=False)[0]
        t = self.temporal_norm(s).view(batch, time, tokens, dim).transpose(1, 2).reshape(batch * tokens, time, dim)
        t = t + self.temporal_attention(t, t, t, need_weights=False)[0]
        t = t.view(batch, tokens, time, dim).transpose(1, 2)
        out: Tensor = t + self.mlp(self.mlp_norm(t))
        return out


class AttentionPool(nn.Module):
    """A weighted mean over time, its weights learned: (B, T, dim) -> (B, dim)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.attention_weights = nn.Sequential(nn.Linear(dim, dim // 2), nn.Tanh(), nn.Linear(dim // 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        weights: Tensor = self.attention_weights(x).softmax(dim=1)
        return (weights * x).sum(dim=1)


class SignTransformer(nn.Module):
    """Classes of signs from clips of landmarks.

    forward(batch) returns `logits` (B, num_classes). It reads `keypoints` (B, T, 736) float32, T at most 50. Without
    them, it samples that many frames from the middle of equal parts of each clip: `frames` (sum of lengths, 736)
    float32 and `length` (B,) int64.

    head_size, heads, layers: the width is head_size * heads. dropout: everywhere except before the classifier. Source:
    the transformer published for KArSL-502; with 502 classes, sizes t_4_2 to l_6_8 have 217,463 to 76,870,327
    parameters. Raises DataError for clips of the wrong shape.
    """

    def __init__(
        self,
        num_classes: int,
        head_size: int = 32,
        heads: int = 4,
        layers: int = 2,
        dropout: float = 0.5,
        *,
        frames: int = MAX_FRAMES,
        interpolation: Interpolation = "reference",
    ) -> None:
        super().__init__()
        dim = head_size * heads
        self.frames, self.interpolation = frames, interpolation
        self.embedding = GroupEmbedding(dim)
        self.pos_encoder = PositionalEncoding(dim)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(dim, heads, dropout) for _ in range(layers))
        self.attention_pool = AttentionPool(dim)
        self.fc = nn.Linear(dim, num_classes)

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        keypoints = batch.get("keypoints")
        if keypoints is None:
            lengths = batch["length"]
            keypoints = sample(batch["frames"], lengths, positions(lengths, self.frames), self.interpolation)
        return {"logits": self.logits(keypoints)}

    def logits(self, x: Tensor) -> Tensor:
        """Sampled clips (B, T, 736) -> logits (B, num_classes)."""
        if x.dim() != 3 or not 1 <= x.shape[1] <= MAX_FRAMES or x.shape[2] != FEATURES:
            raise DataError(
                f"clips have the shape {tuple(x.shape)}; the sign transformer takes (B, T, {FEATURES}) with 1 to "
                f"{MAX_FRAMES} frames T: sample longer clips first"
            )
        x = self.dropout(self.pos_encoder(self.embedding(x)))
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.fc(self.attention_pool(x.mean(dim=2)))
        return out
