"""LMV-Net: breast-cancer risk from two views (CC, MLO) of the current and the prior exam.

The steps are those of the paper: features of the four images; the prior is aligned to the current exam by a
registration network; their difference, with the time between the exams; self- and cross-attention of the two views;
hazards. Module names are those of trained checkpoints.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from medtrain.errors import ConfigError
from torch import Tensor, nn

from medtrain_plugins.mammography.model.backbone import OUT_CHANNELS, STRIDE, mirai_backbone
from medtrain_plugins.mammography.model.layers import (
    Compat,
    ContinuousPosEncoding,
    CumulativeProbabilityLayer,
    feature_displacement,
    warp,
)
from medtrain_plugins.mammography.model.registration import MammoRegNet
from medtrain_plugins.mammography.model.risk_model import BaseRiskModel, Head, InputNorm, check_images

IMAGES = ("current_image_cc", "current_image_mlo", "previous_image_cc", "previous_image_mlo")


class FeedForward(nn.Module):
    """Linear, GELU, dropout, Linear, dropout on the last dimension."""

    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(dim, hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, dim),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


class DualStreamBlock(nn.Module):
    """Each view attends to itself and to the other one; the views share the attention layers only.

    Maps (B, dim, h, w) of CC and MLO in, the same out. The other view is always the block's input.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float, drop_path: float, ffn_ratio: int) -> None:
        super().__init__()
        from torchvision.ops import StochasticDepth

        self.mha_self = nn.MultiheadAttention(dim, num_heads, dropout=dropout, batch_first=True)
        self.mha_cross = nn.MultiheadAttention(dim, num_heads, dropout=dropout, batch_first=True)
        self.norm1_cc, self.norm1_mlo = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.norm2_cc, self.norm2_mlo = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.ffn_cc = FeedForward(dim, dim * ffn_ratio, dropout)
        self.ffn_mlo = FeedForward(dim, dim * ffn_ratio, dropout)
        self.dropout = nn.Dropout(dropout)
        self.drop_path = StochasticDepth(drop_path, mode="row")

    def forward(self, f_cc: Tensor, f_mlo: Tensor) -> tuple[Tensor, Tensor]:
        cc, mlo = f_cc.flatten(2).transpose(1, 2), f_mlo.flatten(2).transpose(1, 2)
        # Both views in one call of the shared attention. Without attention weights: at full size they are 3328 x 3328
        # per head, and fused attention never forms them.
        views, others = torch.cat([cc, mlo]), torch.cat([mlo, cc])
        attention = self.mha_self(views, views, views, need_weights=False)[0]
        attention = attention + self.mha_cross(views, others, others, need_weights=False)[0]
        att_cc, att_mlo = self.drop_path(self.dropout(attention)).chunk(2)
        cc, mlo = self.norm1_cc(cc + att_cc), self.norm1_mlo(mlo + att_mlo)
        cc = self.norm2_cc(cc + self.drop_path(self.ffn_cc(cc)))
        mlo = self.norm2_mlo(mlo + self.drop_path(self.ffn_mlo(mlo)))
        return cc.transpose(1, 2).view(f_cc.shape), mlo.transpose(1, 2).view(f_mlo.shape)


class LongitudinalFeatProcessor(nn.Module):
    """The modules that compute features of a pair of exams, with the key names of checkpoints; `LMVNet` runs them."""

    def __init__(self, registration: bool) -> None:
        super().__init__()
        self.encoder = mirai_backbone()
        if registration:
            self.mammo_reg_net = MammoRegNet()
        self.positional_encoding = ContinuousPosEncoding(OUT_CHANNELS)


class LMVNet(BaseRiskModel):
    """Longitudinal multi-view risk model: 58,524,526 parameters (53,688,390 trainable), 434 state-dict
    entries.

    forward(batch) reads `current_image_cc`, `current_image_mlo`, `previous_image_cc`, `previous_image_mlo`,
    each (B, 1, H, W) float32 in [0, 1], H and W multiples of 32, and `time_gap` (B,) in years; it returns the
    cumulative logits `risk_multi`, `risk_cc`, `risk_mlo`, each (B, 5).

    registration: the network that aligns the prior exam; it is frozen, its weights come from a file
    (`load_registration`). "none" does not align the prior, and has no such network. compat: "reference" moves features
    along the wrong axis as published checkpoints were trained and scored; "fixed" does not. align_prior: use the
    aligned prior in the features, as in the paper, instead of the unaligned one, as trained checkpoints expect.
    finetune_encoder: False freezes the image encoder. input_norm: "mirai" standardises the encoder's input as the
    pretrained Mirai weights expect; "none" leaves [0, 1]. The registration network always gets [0, 1].

    The encoder runs once over all images of a batch. In eval mode, this is the same as running each set of images. In
    train mode, batch norm shares its statistics over both exams and views (4B images, updated once per step), so that
    differences between exams never come from normalisation.

    Raises DataError for images of the wrong shape, ConfigError for a feature_dim that does not fit the encoder.
    """

    head_weights: ClassVar[dict[str, float]] = {"multi": 1.0, "cc": 0.2, "mlo": 0.2}
    encoder_name: ClassVar[str] = "longitudinal_feat_processor.encoder"
    registration_name: ClassVar[str] = "longitudinal_feat_processor.mammo_reg_net"

    def __init__(
        self,
        *,
        registration: Literal["mammo_reg_net", "none"] = "mammo_reg_net",
        compat: Compat = "fixed",
        feature_dim: int = 3 * OUT_CHANNELS,
        num_heads: int = 4,
        num_blocks: int = 1,
        dropout: float = 0.3,
        drop_path: float = 0.2,
        ffn_ratio: int = 2,
        align_prior: bool = False,
        finetune_encoder: bool = True,
        input_norm: InputNorm = "none",
    ) -> None:
        super().__init__(input_norm)
        if feature_dim != 3 * OUT_CHANNELS:
            raise ConfigError(
                f"feature_dim is {feature_dim}, but current, prior and difference of the image encoder's "
                f"{OUT_CHANNELS} channels make {3 * OUT_CHANNELS}"
            )
        self.registration, self.compat = registration, compat
        self.align_prior = align_prior
        self.longitudinal_feat_processor = LongitudinalFeatProcessor(registration == "mammo_reg_net")
        self.cross_attn_blocks = nn.ModuleList(
            DualStreamBlock(feature_dim, num_heads, dropout, drop_path, ffn_ratio) for _ in range(num_blocks)
        )
        self.view_fc = nn.Linear(2 * feature_dim, feature_dim)
        self.cumulative_risk = CumulativeProbabilityLayer(feature_dim)
        if registration == "mammo_reg_net":
            self.freeze(self.registration_name)
        if not finetune_encoder:
            self.freeze(self.encoder_name)

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        check_images(batch, IMAGES, "LMV-Net")
        # The two views of an exam are one batch from here on: CC first, then MLO.
        current = torch.cat([batch["current_image_cc"], batch["current_image_mlo"]])
        previous = torch.cat([batch["previous_image_cc"], batch["previous_image_mlo"]])
        time_gap = batch["time_gap"].repeat(2)

        f_long = self.longitudinal_features(current, previous, time_gap)
        f_cc, f_mlo = f_long.chunk(2)
        for block in self.cross_attn_blocks:
            f_cc, f_mlo = block(f_cc, f_mlo)
        cc, mlo = f_cc.mean(dim=(2, 3)), f_mlo.mean(dim=(2, 3))
        multi = self.view_fc(torch.cat([cc, mlo], dim=1))
        return {
            "risk_multi": self.cumulative_risk(multi),
            "risk_cc": self.cumulative_risk(cc),
            "risk_mlo": self.cumulative_risk(mlo),
        }

    def longitudinal_features(self, current: Tensor, previous: Tensor, time_gap: Tensor) -> Tensor:
        """Images (N, 1, H, W) of both exams and years between them (N,) -> features (N, 1536, H/32, W/32)."""
        # First, so that the registration's full-size maps are freed before the encoder's are kept for the backward
        # pass.
        displacement = self.displacement(current, previous)
        f_cur, f_pri = self.features(torch.cat([current, previous])).chunk(2)
        f_aligned = f_pri if displacement is None else warp(f_pri, displacement)
        difference = (f_cur - f_aligned).abs()
        tokens = difference.flatten(2).permute(2, 0, 1)  # (h * w, N, 512), for the encoding
        tokens = self.longitudinal_feat_processor.positional_encoding(tokens, time_gap)
        f_diff = tokens.permute(1, 2, 0).view(f_cur.shape)
        return torch.cat([f_cur, f_aligned if self.align_prior else f_pri, f_diff], dim=1)

    def displacement(self, current: Tensor, previous: Tensor) -> Tensor | None:
        """The displacement from current features to the same tissue in the prior's, (N, 2, h, w); None: no
        displacement.
        """
        if self.registration == "none":
            return None
        size = (current.shape[-2] // STRIDE, current.shape[-1] // STRIDE)
        return feature_displacement(self.flow(current, previous), size, self.compat)

    @staticmethod
    def risk_heads(outputs: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Head]:
        """The fused head and one per view; all share target and mask."""
        names = ("multi", "cc", "mlo")
        return {name: (outputs[f"risk_{name}"], batch["target"], batch["y_mask"]) for name in names}

    @staticmethod
    def primary_risk(outputs: dict[str, Tensor]) -> Tensor:
        """Probability of cancer within 1 to 5 years by the fused head, (B, 5)."""
        return outputs["risk_multi"].sigmoid()
