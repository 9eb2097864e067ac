"""Mirai: breast-cancer risk from the four views of one exam.

The steps are those of the paper: every image becomes one vector; a transformer compares the vectors, with their view,
side and time; a pool combines them into one; an additive-hazard head computes yearly risks. Optionally the pool also
predicts the classical risk factors, and the head uses them (known ones as given). Module names are those of trained
checkpoints.

Source: "Toward robust mammography-based models for breast cancer risk", 2021.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from medtrain.errors import ConfigError, DataError
from torch import Tensor, nn
from torch.nn import functional as F

from medtrain_plugins.mammography.model.backbone import OUT_CHANNELS, mirai_backbone
from medtrain_plugins.mammography.model.layers import Compat, CumulativeProbabilityLayer
from medtrain_plugins.mammography.model.risk_model import BaseRiskModel, Head, InputNorm, check_images
from medtrain_plugins.mirai.calibration import Calibration
from medtrain_plugins.mirai.risk_factors import RISK_FACTORS, WIDTH

POOLS = Literal["Simple_AttentionPool", "GlobalMaxPool", "GlobalAvgPool"]
N_YEARS = 5
N_IMAGES = 4  # images of an exam in checkpoints; the model accepts any number

# Rows of the embeddings: CC, MLO; right, left; ten time steps. One more row stands for an empty slot.
N_VIEWS, N_SIDES, N_TIMES = 2, 2, 10
EMBED_DIM = 32


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention over the images of an exam, with linear layers of its own before and after."""

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.query, self.key, self.value = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.aggregate_fc = nn.Linear(dim, dim)

    def forward(self, x: Tensor, present: Tensor | None) -> Tensor:
        query, key, value = (
            layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        mask = None if present is None else present[:, None, None, :]
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        out: Tensor = self.aggregate_fc(attended.transpose(1, 2).flatten(2))
        return out


class TransformerLayer(nn.Module):
    """Attention, then a feed-forward network as wide as its input, each added to its input and normalised."""

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.multihead_attention = MultiHeadAttention(dim, num_heads, dropout)
        self.layernorm_attn = nn.LayerNorm(dim)
        self.fc1, self.fc2 = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.layernorm_fc = nn.LayerNorm(dim)

    def forward(self, x: Tensor, present: Tensor | None) -> Tensor:
        x = self.layernorm_attn(self.multihead_attention(x, present) + x)
        out: Tensor = self.layernorm_fc(self.fc2(F.relu(self.fc1(x))) + x)
        return out


class Transformer(nn.Module):
    """Scales and shifts every image's vector by its view, time and side, followed by attention layers.

    x (B, N, dim); time_seq, view_seq, side_seq (B, N) int64; present (B, N) bool, or None if all are present. Output
    like x.
    """

    def __init__(self, dim: int, num_layers: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.time_embed = nn.Embedding(N_TIMES + 1, EMBED_DIM, padding_idx=N_TIMES)
        self.view_embed = nn.Embedding(N_VIEWS + 1, EMBED_DIM, padding_idx=N_VIEWS)
        self.side_embed = nn.Embedding(N_SIDES + 1, EMBED_DIM, padding_idx=N_SIDES)
        self.embed_add_fc = nn.Linear(3 * EMBED_DIM, dim)
        self.embed_scale_fc = nn.Linear(3 * EMBED_DIM, dim)
        self.num_layers = num_layers
        for layer in range(num_layers):
            self.add_module(f"transformer_layer_{layer}", TransformerLayer(dim, num_heads, dropout))

    def forward(
        self, x: Tensor, time_seq: Tensor, view_seq: Tensor, side_seq: Tensor, present: Tensor | None
    ) -> Tensor:
        place = [self.view_embed(view_seq), self.time_embed(time_seq), self.side_embed(side_seq)]
        embedding = torch.cat(place, dim=-1)
        x = self.embed_scale_fc(embedding) * x + self.embed_add_fc(embedding)
        for layer in range(self.num_layers):
            x = self.get_submodule(f"transformer_layer_{layer}")(x, present)
        return x


class Simple_AttentionPool(nn.Module):
    """The mean of the images' vectors (B, N, dim) -> (B, dim), weighted by a softmax over one score each."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.attention_fc = nn.Linear(dim, 1)

    def forward(self, x: Tensor, present: Tensor | None) -> Tensor:
        scores = self.attention_fc(x).squeeze(-1)
        if present is not None:
            scores = scores.masked_fill(~present, -torch.inf)
        pooled: Tensor = (scores.softmax(dim=1).unsqueeze(-1) * x).sum(dim=1)
        return pooled


class GlobalMaxPool(nn.Module):
    """The largest of the images' values (B, N, dim) -> (B, dim)."""

    def __init__(self, dim: int) -> None:
        super().__init__()

    def forward(self, x: Tensor, present: Tensor | None) -> Tensor:
        if present is not None:
            x = x.masked_fill(~present.unsqueeze(-1), -torch.inf)
        return x.amax(dim=1)


class GlobalAvgPool(nn.Module):
    """The plain mean of the images' vectors (B, N, dim) -> (B, dim)."""

    def __init__(self, dim: int) -> None:
        super().__init__()

    def forward(self, x: Tensor, present: Tensor | None) -> Tensor:
        if present is None:
            return x.mean(dim=1)
        there = present.unsqueeze(-1)
        return x.masked_fill(~there, 0.0).sum(dim=1) / there.sum(dim=1)


_POOLS: dict[str, type[nn.Module]] = {
    pool.__name__: pool for pool in (Simple_AttentionPool, GlobalMaxPool, GlobalAvgPool)
}


class RiskFactorPool(nn.Module):
    """Pools the images' vectors, predicts the risk factors from the result, and appends them to it.

    x (B, N, dim) -> pooled with factors (B, dim + 100), logits of the factors (B, 100). given (B, 100) and known (B,
    34), as in `risk_factors`, are the known factors, or None if none is known: they replace predictions.
    """

    entries: Tensor

    def __init__(self, internal_pool: nn.Module, dim: int) -> None:
        super().__init__()
        self.internal_pool = internal_pool
        for factor in RISK_FACTORS:
            self.add_module(f"{factor.name}_fc", nn.Linear(dim, factor.width))
        # The factor of each of the 100 numbers.
        entries = [number for number, factor in enumerate(RISK_FACTORS) for _ in range(factor.width)]
        self.register_buffer("entries", torch.tensor(entries), persistent=False)

    def forward(
        self, x: Tensor, present: Tensor | None, given: Tensor | None, known: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        hidden = self.internal_pool(x, present)
        logits = torch.cat([self.get_submodule(f"{factor.name}_fc")(hidden) for factor in RISK_FACTORS], dim=1)
        factors = risk_factor_probabilities(logits)
        if given is not None and known is not None:
            factors = torch.where(known[:, self.entries] > 0, given.to(factors.dtype), factors)
        return torch.cat([hidden, factors], dim=1), logits


def risk_factor_probabilities(logits: Tensor) -> Tensor:
    """Logits (B, 100) of the risk factors as probabilities: sigmoid of a binary one, softmax over categories."""
    parts = torch.split(logits, [factor.width for factor in RISK_FACTORS], dim=1)
    return torch.cat([part.sigmoid() if part.shape[1] == 1 else part.softmax(dim=1) for part in parts], dim=1)


class AllImageTransformer(nn.Module):
    """The aggregator: vectors of an exam's images -> cumulative risk logits.

    forward takes x (B, N, in_features), time_seq, view_seq, side_seq (B, N) int64, and optionally risk factors (see
    `RiskFactorPool`); it returns `logit` (B, 5), `transformer_hidden` (B, N, hidden_dim) and, with risk factors,
    `risk_factor_logits` (B, 100).

    An empty slot has view index 2. With compat="fixed" it takes no part in attention and pool; "reference" has no such
    mask. mask_prob: in training each image is replaced by a learned vector with this probability.
    """

    def __init__(
        self,
        in_features: int,
        hidden_dim: int,
        num_layers: int,
        num_heads: int,
        dropout: float = 0.0,
        pool: POOLS = "Simple_AttentionPool",
        mask_prob: float = 0.0,
        risk_factors: bool = False,
        compat: Compat = "fixed",
    ) -> None:
        super().__init__()
        if hidden_dim % num_heads:
            raise ConfigError(f"hidden_dim is {hidden_dim}, which {num_heads} attention heads cannot share equally")
        self.num_heads, self.mask_prob, self.risk_factors, self.compat = num_heads, mask_prob, risk_factors, compat
        self.projection_layer = nn.Linear(in_features, hidden_dim)
        self.mask_embedding = nn.Embedding(2, in_features, padding_idx=1)
        self.transformer = Transformer(hidden_dim, num_layers, num_heads, dropout)
        internal_pool = _POOLS[pool](hidden_dim)
        self.pool = RiskFactorPool(internal_pool, hidden_dim) if risk_factors else internal_pool
        self.dropout = nn.Dropout(dropout)
        pooled = hidden_dim + (WIDTH if risk_factors else 0)
        self.prob_of_failure_layer = CumulativeProbabilityLayer(pooled, N_YEARS)
        # In checkpoints, without influence on results.
        self.kept_images_vec = nn.Parameter(torch.ones(1, N_IMAGES, 1), requires_grad=False)
        self.fc = nn.Linear(pooled, N_YEARS).requires_grad_(False)
        self.pred_masked_img_fc = nn.Linear(hidden_dim, in_features).requires_grad_(False)
        if not mask_prob:
            self.mask_embedding.requires_grad_(False)

    def forward(
        self,
        x: Tensor,
        time_seq: Tensor,
        view_seq: Tensor,
        side_seq: Tensor,
        given: Tensor | None = None,
        known: Tensor | None = None,
    ) -> dict[str, Tensor]:
        filled = view_seq < N_VIEWS
        present = filled if self.compat == "fixed" else None
        if self.training and self.mask_prob:
            x = self._masked(x, filled)
        hidden = self.transformer(self.projection_layer(x), time_seq, view_seq, side_seq, present)
        outputs = {"transformer_hidden": hidden}
        if self.risk_factors:
            pooled, outputs["risk_factor_logits"] = self.pool(hidden, present, given, known)
        else:
            pooled = self.pool(hidden, present)
        outputs["logit"] = self.prob_of_failure_layer(self.dropout(F.relu(pooled)))
        return outputs

    def _masked(self, x: Tensor, filled: Tensor) -> Tensor:
        """x with images, but no empty slots, replaced at random."""
        kept = ~(filled & (torch.rand(filled.shape, device=x.device) < self.mask_prob))
        masked: Tensor = x * kept.unsqueeze(-1) + self.mask_embedding(kept.long())
        return masked


class MiraiModel(BaseRiskModel):
    """Mirai: 13,386,864 parameters, of which 13,120,615 are trained, 158 state-dict entries (226 with risk factors).

    forward(batch) reads `images` (B, N, 1, H, W) float32 in [0, 1], H and W multiples of 32; N is 4 in the cohorts
    (L_CC, L_MLO, R_CC, R_MLO), and may be any; `time_seq` (0), `view_seq` (CC 0, MLO 1), `side_seq` (right 0, left 1),
    each (B, N) int64; and, if given, `view_mask` (B, N) bool, False where an exam lacks an image. Such a slot has no
    influence on any other. Slots with view index 2 and no `view_mask` have none in eval mode; in training, their pixels
    are part of the statistics of batch norm. With risk factors also `risk_factors` (B, 100) and `risk_factors_known`
    (B, 34), if given. It returns `logit` (B, 5), `transformer_hidden` (B, N, hidden_dim); with risk factors
    `risk_factor_logits` and `predicted_risk_factors`, both (B, 100); with a calibration `calibrated_risk` (B, 5).

    hidden_dim, num_layers, num_heads, dropout, pool, mask_prob: of the aggregator. risk_factors: predict the classical
    risk factors and use them, known ones as given. compat: "reference" has no mask for empty slots. finetune_encoder:
    False freezes the image encoder. input_norm: "mirai" standardises images as the pretrained weights expect; "none"
    leaves [0, 1]. calibration: of the yearly risks; it makes `primary_risk` calibrated.

    Raises DataError for a batch that does not fit, ConfigError for a hidden_dim that the heads cannot share.
    """

    head_weights: ClassVar[dict[str, float]] = {"logit_output": 1.0}
    encoder_name: ClassVar[str] = "image_encoder"

    platt_slope: Tensor | None
    platt_intercept: Tensor | None

    def __init__(
        self,
        *,
        hidden_dim: int = 512,
        num_layers: int = 1,
        num_heads: int = 8,
        dropout: float = 0.0,
        pool: POOLS = "Simple_AttentionPool",
        mask_prob: float = 0.0,
        risk_factors: bool = False,
        compat: Compat = "fixed",
        finetune_encoder: bool = True,
        input_norm: InputNorm = "none",
        calibration: Calibration | None = None,
    ) -> None:
        super().__init__(input_norm)
        self.image_encoder = mirai_backbone()
        self.transformer = AllImageTransformer(
            OUT_CHANNELS, hidden_dim, num_layers, num_heads, dropout, pool, mask_prob, risk_factors, compat
        )
        if not finetune_encoder:
            self.freeze(self.encoder_name)
        for name, values in (
            ("platt_slope", calibration and calibration.slope),
            ("platt_intercept", calibration and calibration.intercept),
        ):
            self.register_buffer(name, None if values is None else torch.tensor(values), persistent=False)

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        check_images(batch, ["images"], "Mirai", (None,))
        images: Tensor = batch["images"]
        view_mask: Tensor | None = batch.get("view_mask")
        places = exam_places(batch, view_mask)
        outputs: dict[str, Tensor] = self.transformer(
            self.encode(images, view_mask), *places, batch.get("risk_factors"), batch.get("risk_factors_known")
        )
        if "risk_factor_logits" in outputs:
            outputs["predicted_risk_factors"] = risk_factor_probabilities(outputs["risk_factor_logits"].float())
        if self.platt_slope is not None and self.platt_intercept is not None:
            risk = outputs["logit"].sigmoid()
            outputs["calibrated_risk"] = (self.platt_slope * risk + self.platt_intercept).sigmoid()
        return outputs

    def encode(self, images: Tensor, view_mask: Tensor | None = None) -> Tensor:
        """Images (B, N, 1, H, W) -> the largest value of each feature map, (B, N, 512); zeros where view_mask is False.

        Only existing images run through the encoder, so that missing ones are not part of the statistics of batch norm.
        """
        flat = images.flatten(0, 1)
        # Not a pooling layer: the backward pass of the adaptive one has no deterministic version on CUDA.
        if view_mask is None:
            vectors = self.features(flat).amax(dim=(2, 3))
        else:
            there = view_mask.flatten()
            found = self.features(flat[there]).amax(dim=(2, 3))
            vectors = found.new_zeros(len(flat), OUT_CHANNELS)
            vectors[there] = found
        return vectors.view(*images.shape[:2], OUT_CHANNELS)

    @staticmethod
    def risk_heads(outputs: dict[str, Any], batch: dict[str, Any]) -> dict[str, Head]:
        """The one head."""
        return {"logit_output": (outputs["logit"], batch["target"], batch["y_mask"])}

    @staticmethod
    def primary_risk(outputs: dict[str, Any]) -> Tensor:
        """Probability of cancer within 1 to 5 years, (B, 5); calibrated if the model has a calibration."""
        if "calibrated_risk" in outputs:
            calibrated: Tensor = outputs["calibrated_risk"]
            return calibrated
        risk: Tensor = outputs["logit"].sigmoid()
        return risk


def exam_places(batch: dict[str, Any], view_mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """`time_seq`, `view_seq` and `side_seq` of a batch, each (B, N), those of missing images set to "empty slot".

    Raises DataError for missing keys, shapes other than that of the images, and an exam without any image.
    """
    wanted = tuple(batch["images"].shape[:2])
    keys = ("time_seq", "view_seq", "side_seq")
    if missing := [key for key in keys if key not in batch]:
        raise DataError(f"Mirai needs time, view and side of every image; the batch has no {', '.join(missing)}")
    shapes = {key: tuple(batch[key].shape) for key in keys}
    if view_mask is not None:
        shapes["view_mask"] = tuple(view_mask.shape)
    if wrong := [f"{key} {shape}" for key, shape in shapes.items() if shape != wanted]:
        raise DataError(f"the batch has {wanted[0]} exams of {wanted[1]} images, but {', '.join(wrong)}")
    time, view, side = (batch[key] for key in keys)
    if view_mask is None:
        return time, view, side
    if not bool(view_mask.any(dim=1).all()):
        raise DataError("an exam of the batch has no image at all; leave it out")
    empty = ~view_mask
    return time.masked_fill(empty, N_TIMES), view.masked_fill(empty, N_VIEWS), side.masked_fill(empty, N_SIDES)
