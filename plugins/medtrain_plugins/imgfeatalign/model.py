"""ImgFeatAlign: breast-cancer risk from one view of the current and the prior exam, aligned in feature space.

The steps are those of the paper: features of both images; the prior's features are moved by the deformation field
between the images; their difference, with the time between the exams; self-attention over all of them; hazards. Source:
"Reconsidering explicit longitudinal mammography alignment for enhanced breast cancer risk prediction", 2025. Module
names are those of trained checkpoints.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from medtrain_plugins.mammography.model.backbone import OUT_CHANNELS, mirai_backbone
from medtrain_plugins.mammography.model.layers import (
    Compat,
    ContinuousPosEncoding,
    CumulativeProbabilityLayer,
    feature_displacement,
    warp,
)
from medtrain_plugins.mammography.model.registration import MammoRegNet
from medtrain_plugins.mammography.model.risk_model import BaseRiskModel, Head, check_images

IMAGES = ("current_image", "previous_image")
HEADS = ("fused", "cur", "pri")


class AttentionLayer(nn.Module):
    """Self-attention and a feed-forward network, each added to its input and then normalised; tokens (T, B, dim)."""

    def __init__(self, dim: int, num_heads: int, dropout: float, ffn_ratio: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(dim, num_heads, dropout=dropout)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.ff = nn.Sequential(nn.Linear(dim, dim * ffn_ratio), nn.ReLU(), nn.Linear(dim * ffn_ratio, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.attn(x, x, x, need_weights=False)[0])
        out: Tensor = self.norm2(x + self.ff(x))
        return out


class RiskModel(nn.Module):
    """From feature maps of two exams to the logits of three heads.

    forward(f_cur, f_pri, f_aligned, f_diff, time_gap): current, prior, aligned prior and their difference, each (B,
    dim, h, w); years between the exams (B,). Returns (B, 5) each: `pred_fused` of aligned prior, difference and
    current exam, `pred_cur` of the current exam alone, `pred_pri` of the unaligned prior exam alone.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float, ffn_ratio: int) -> None:
        super().__init__()
        self.positional_encoding = ContinuousPosEncoding(dim)
        self.attention_layer = AttentionLayer(dim, num_heads, dropout, ffn_ratio)
        self.feature_projection = nn.Linear(dim, dim)
        self.head_fused = CumulativeProbabilityLayer(dim)
        self.head_cur = CumulativeProbabilityLayer(dim)
        self.head_pri = CumulativeProbabilityLayer(dim)

    def forward(
        self, f_cur: Tensor, f_pri: Tensor, f_aligned: Tensor, f_diff: Tensor, time_gap: Tensor
    ) -> dict[str, Tensor]:
        tokens = f_diff.flatten(2).permute(2, 0, 1)  # (h * w, B, dim), for the encoding
        diff = self.positional_encoding(tokens, time_gap).mean(dim=0)
        cur, pri, aligned = (f.mean(dim=(2, 3)) for f in (f_cur, f_pri, f_aligned))
        fused = self.attention_layer(torch.stack([aligned, diff, cur])).mean(dim=0)
        return {
            "pred_fused": self.head_fused(self.feature_projection(fused)),
            "pred_cur": self.head_cur(cur),
            "pred_pri": self.head_pri(pri),
        }


class ImgFeatAlign(BaseRiskModel):
    """Risk model with image-based feature alignment: 19,436,922 parameters (3,424,274 trainable), 432 state-dict
    entries.

    forward(batch) reads `current_image`, `previous_image`, (B, 1, H, W) float32 in [0, 1], H and W multiples of 32, and
    `time_gap` (B,) in years. It returns `risk_prediction`, the cumulative logits `pred_fused`, `pred_cur`, `pred_pri`,
    (B, 5) each; `deformation_field` (B, 2, H, W), the registration's flow in pixels, **channel 0 = dy**; and the
    features `current_feature`, `prior_feature`, `aligned_prior_feature`, `diff_feature` (B, 512, H/32, W/32), the
    difference before the time is added to it.

    registration: the network that aligns the prior exam; it is frozen, its weights come from a file
    (`load_registration`). "none" does not align the prior: zero deformation, no such network. compat: "reference" moves
    features along the wrong axis as published checkpoints were trained and scored; "fixed" does not. finetune_encoder:
    True trains the image encoder too (14,600,786 trainable parameters). input_norm: "mirai" standardises the encoder's
    input as the pretrained Mirai weights expect; "none" leaves [0, 1]. The registration network always gets [0, 1].

    The encoder runs once over both exams. In eval mode and with a frozen encoder, this makes no difference. A trained
    encoder shares the statistics of its batch norms over both exams, so that differences never come from normalisation.

    Raises DataError for images of the wrong shape.
    """

    head_weights: ClassVar[dict[str, float]] = {"fused": 1.0, "cur": 0.2, "pri": 0.2}
    encoder_name: ClassVar[str] = "encoder"
    registration_name: ClassVar[str] = "mammo_reg_net"

    def __init__(
        self,
        *,
        registration: Literal["mammo_reg_net", "none"] = "mammo_reg_net",
        compat: Compat = "fixed",
        num_heads: int = 8,
        dropout: float = 0.1,
        ffn_ratio: int = 4,
        finetune_encoder: bool = False,
        input_norm: Literal["none", "mirai"] = "none",
    ) -> None:
        super().__init__(input_norm)
        self.registration, self.compat = registration, compat
        self.encoder = mirai_backbone()
        if registration == "mammo_reg_net":
            self.mammo_reg_net = MammoRegNet()
            self.freeze(self.registration_name)
        self.risk_model = RiskModel(OUT_CHANNELS, num_heads, dropout, ffn_ratio)
        if not finetune_encoder:
            self.freeze(self.encoder_name)

    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        check_images(batch, IMAGES, "ImgFeatAlign")
        current, previous = batch["current_image"], batch["previous_image"]
        # First, so that the registration's full-size maps are freed before the encoder's are kept for the backward
        # pass.
        flow = self.deformation_field(current, previous)
        f_cur, f_pri = self.features(torch.cat([current, previous])).chunk(2)
        f_aligned = self.align(f_pri, flow)
        f_diff = (f_cur - f_aligned).abs()
        return {
            "risk_prediction": self.risk_model(f_cur, f_pri, f_aligned, f_diff, batch["time_gap"]),
            "deformation_field": flow,
            "aligned_prior_feature": f_aligned,
            "prior_feature": f_pri,
            "current_feature": f_cur,
            "diff_feature": f_diff,
        }

    def deformation_field(self, current: Tensor, previous: Tensor) -> Tensor:
        """The flow from each pixel of the current image to the same tissue in the prior, (B, 2, H, W), no graph."""
        if self.registration == "none":
            # An expanded zero: the field is as large as both images, and is often not used.
            return current.new_zeros(1).expand(len(current), 2, *current.shape[-2:])
        return self.flow(current, previous)

    def align(self, f_pri: Tensor, flow: Tensor) -> Tensor:
        """Features of the prior exam, moved to the same tissue in the current exam."""
        if self.registration == "none":
            return f_pri
        size = (f_pri.shape[-2], f_pri.shape[-1])
        return warp(f_pri, feature_displacement(flow, size, self.compat))

    @staticmethod
    def risk_heads(outputs: dict[str, Any], batch: dict[str, Any]) -> dict[str, Head]:
        """The fused head and that of the current exam by the current labels; that of the prior exam by its own."""
        fused, cur, pri = (outputs["risk_prediction"][f"pred_{name}"] for name in HEADS)
        return {
            "fused": (fused, batch["target"], batch["y_mask"]),
            "cur": (cur, batch["target"], batch["y_mask"]),
            "pri": (pri, batch["target_prior"], batch["y_mask_prior"]),
        }

    @staticmethod
    def primary_risk(outputs: dict[str, Any]) -> Tensor:
        """Probability of cancer within 1 to 5 years by the fused head, (B, 5)."""
        risk: Tensor = outputs["risk_prediction"]["pred_fused"].sigmoid()
        return risk
