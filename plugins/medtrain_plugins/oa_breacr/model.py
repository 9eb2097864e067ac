"""OA-BreaCR: time to breast cancer from a mammogram and the same view of the previous exam.

The steps are those of the paper: features of both images; an attention map of each; the prior is moved so that the
attention maps match; its difference from the current exam, with the time between the exams; the three are fused into an
embedding with an uncertainty. Module names are those of trained checkpoints.

Source: "Ordinal learning: longitudinal attention alignment model for predicting time to future breast cancer events
from mammograms", 2024.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medtrain_plugins.mammography.model.backbone import STRIDE
from medtrain_plugins.mammography.model.layers import ContinuousPosEncoding, warp
from medtrain_plugins.mammography.model.risk_model import BaseRiskModel, Head, check_images
from medtrain_plugins.oa_breacr.encoder import resnet_encoder
from medtrain_plugins.oa_breacr.options import ImageNorm

N_CLASSES = 6  # cancer in year 1 to 5, none within five years

# Head -> the batch keys of its labels.
CURRENT = ("years_to_cancer", "years_to_last_followup")
PRIOR = ("years_to_cancer_prior", "years_to_last_followup_prior")
HEAD_LABELS = {"final": CURRENT, "current": CURRENT, "prior": PRIOR, "difference": CURRENT}

# Mean and standard deviation of the three channels.
NORMS: dict[ImageNorm, tuple[tuple[float, float], ...]] = {
    "none": ((0.0, 1.0),) * 3,
    "half": ((0.5, 0.5),) * 3,
    "imagenet": ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225)),
}


class AttentionPool(nn.Module):
    """Features (B, C, h, w) -> their mean by attention (B, C), and the attention (B, 1, h, w), standardised logarithms.

    size: (h, w) of the maps that the layer norm has one weight and bias each for. On maps of another size these are
    interpolated: reasonable near that size, but not the same as training at the other size.
    """

    def __init__(self, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size
        self.attention_fc = nn.Linear(channels, 1)
        self.norm = nn.LayerNorm(size[0] * size[1])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        size = (x.shape[-2], x.shape[-1])
        tokens = x.flatten(2).transpose(1, 2)
        log_attention = self.attention_fc(tokens).squeeze(2).log_softmax(dim=1)
        hidden = torch.einsum("bn,bnc->bc", log_attention.exp(), tokens)
        weight, bias = self.norm_at(size)
        attention = F.layer_norm(log_attention, log_attention.shape[1:], weight, bias, self.norm.eps)
        return hidden, attention.view(-1, 1, *size)

    def norm_at(self, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Weight and bias (h * w,) of the layer norm for maps of a size."""
        if size == self.size:
            return self.norm.weight, self.norm.bias
        maps = torch.stack([self.norm.weight, self.norm.bias]).view(1, 2, *self.size)
        weight, bias = F.interpolate(maps, size, mode="bilinear", align_corners=False)[0].flatten(1)
        return weight, bias


class ConvBlock(nn.Module):
    """3x3 convolution, batch norm, ReLU on two channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, kernel_size=3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class FlowHead(nn.Module):
    """Attention of both exams (B, 2, h, w) -> flow (B, 2, h, w) in feature pixels, channel 0 = dx, never negative."""

    def __init__(self) -> None:
        super().__init__()
        self.block1, self.block2 = ConvBlock(), ConvBlock()

    def forward(self, x: Tensor) -> Tensor:
        flow: Tensor = self.block2(self.block1(x))
        return flow


class GaussianEmbedding(nn.Module):
    """(B, dim) -> mean and logarithm of the variance, (B, dim) each."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.embed, self.log_var = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.embed(x), self.log_var(x)


class OABreaCR(BaseRiskModel):
    """Ordinal, attention-aligned risk model: 12,767,907 parameters at 2048 x 1664, 151 state-dict entries (resnet18).

    forward(batch) reads `current_image` and `previous_image`, (B, 1, H, W) float32 in [0, 1], H and W multiples of 32,
    and `time_gap` (B,) in years. It returns logits over six classes, cancer in year 1 to 5 or none: `final` (max_t, B,
    6) while training with `use_sto`, else (B, 6), and `current`, `prior`, `difference` (B, 6); the embedding's
    `emb_final` and `log_var_final` (B, C), only with `use_poe`; `flow_field` (B, 2, h, w), channel 0 = dx, in feature
    pixels; and `loss`, a scalar: the misalignment of the attention maps.

    arch: the encoder, a residual network of torchvision. img_size: the image size of the attention pool's layer norm,
    so a property of a checkpoint; for images of another size it is interpolated (see `AttentionPool`). use_poe: embed
    as a Gaussian. Without it, the fused features are classified directly. use_sto: train on `max_t` samples of that
    Gaussian, drawn from torch's generator. Eval mode always uses its mean, so that an image pair has one risk.
    registration_weight: the factor in `loss`. input_norm: "imagenet" and "half" ((x - 0.5) / 0.5) standardise the
    encoder's input; "none" leaves [0, 1].

    The encoder runs once over the images of both exams. In eval mode, this is the same as image by image; in train mode
    its batch norm shares its statistics over both. After it, nothing runs in reduced precision: coordinates would be
    wrong by half a pixel, and many patients would share one risk.

    Raises DataError for images of the wrong shape.
    """

    head_weights: ClassVar[dict[str, float]] = {"final": 1.0, "current": 0.2, "prior": 0.2, "difference": 0.2}
    encoder_name = "model.model"

    def __init__(
        self,
        *,
        arch: str = "resnet18",
        img_size: tuple[int, int] = (2048, 1664),
        use_poe: bool = True,
        use_sto: bool = True,
        max_t: int = 50,
        registration_weight: float = 0.01,
        input_norm: ImageNorm = "none",
    ) -> None:
        super().__init__()
        self.use_poe, self.use_sto, self.max_t = use_poe, use_sto, max_t
        self.registration_weight, self.image_norm = registration_weight, input_norm
        encoder, channels = resnet_encoder(arch)
        self.model = nn.ModuleDict({"model": encoder})
        self.pooling = AttentionPool(channels, (img_size[0] // STRIDE, img_size[1] // STRIDE))
        self.flew = FlowHead()
        self.pos_encoding = ContinuousPosEncoding(channels)
        self.mlp = nn.Sequential(
            nn.Linear(3 * channels, channels), nn.Dropout(0.2), nn.GELU(), nn.Linear(channels, channels)
        )
        self.POELatent = GaussianEmbedding(channels)
        self.dropout = nn.Dropout(0.1)
        self.final = nn.Linear(channels, N_CLASSES)
        self.final_single = nn.Linear(channels, N_CLASSES)
        self.difference_single = nn.Linear(channels, N_CLASSES)
        if not use_poe:
            self.freeze("POELatent")  # checkpoints have it nevertheless

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        check_images(batch, ("current_image", "previous_image"), "OA-BreaCR")
        features = self.features(torch.cat([batch["current_image"], batch["previous_image"]]))
        with torch.autocast(features.device.type, enabled=False):
            f_cur, f_pri = features.to(self.final.weight.dtype).chunk(2)
            return self.compare(f_cur, f_pri, batch["time_gap"])

    def features(self, images: Tensor) -> Tensor:
        """Images (N, 1, H, W) in [0, 1] -> the encoder's features (N, C, H/32, W/32)."""
        channels = [(images - mean) / std for mean, std in NORMS[self.image_norm]]
        features: Tensor = self.run(self.encoder_name, torch.cat(channels, dim=1))
        return features

    def compare(self, f_cur: Tensor, f_pri: Tensor, time_gap: Tensor) -> dict[str, Tensor]:
        """Outputs from the features of both exams (B, C, h, w) and the years between them (B,)."""
        h_cur, att_cur = self.pooling(f_cur)
        h_pri, att_pri = self.pooling(f_pri)
        flow = self.flew(torch.cat([att_cur, att_pri], dim=1))
        misalignment = (att_cur - warp(att_pri, flow)).square().mean()

        h_diff, _ = self.pooling((f_cur - warp(f_pri, flow)).abs())
        h_diff = self.pos_encoding(h_diff.unsqueeze(0), time_gap).squeeze(0)
        fused = self.mlp(torch.cat([h_cur, h_pri, h_diff], dim=1))
        return {
            **self.classify(fused),
            "current": self.final_single(h_cur),
            "prior": self.final_single(h_pri),
            "difference": self.difference_single(h_diff),
            "flow_field": flow,
            "loss": self.registration_weight * misalignment,
        }

    def classify(self, fused: Tensor) -> dict[str, Tensor]:
        """`final`, and with the Gaussian its parameters, from the fused features (B, C)."""
        if not self.use_poe:
            return {"final": self.final(fused)}
        emb, log_var = self.POELatent(fused)
        latent = emb
        if self.use_sto and self.training:
            noise = torch.randn(self.max_t, *emb.shape, dtype=emb.dtype, device=emb.device)
            latent = emb + (log_var / 2).exp() * noise
        return {"final": self.final(self.dropout(latent)), "emb_final": emb, "log_var_final": log_var}

    @staticmethod
    def risk_heads(outputs: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Head]:
        """Heads by name: logits (.., B, 6), 0-based year of the cancer (B,), years of follow-up from 1 (B,)."""
        return {name: (outputs[name], batch[year], batch[followup]) for name, (year, followup) in HEAD_LABELS.items()}

    @staticmethod
    def primary_risk(outputs: dict[str, Tensor]) -> Tensor:
        """Probability of cancer within 1 to 5 years, (B, 5), without graph: from the mean of `final` over samples."""
        logits = outputs["final"].detach()
        logits = logits.reshape(-1, *logits.shape[-2:]).mean(dim=0)
        return logits.softmax(dim=1)[:, :-1].cumsum(dim=1).clamp(max=1)
