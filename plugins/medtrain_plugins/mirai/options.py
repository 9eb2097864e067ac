"""Options of the plugin `mirai`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from medtrain_plugins.mammography.options import RiskOptions


class MiraiOptions(RiskOptions):
    """`[plugins.mirai]`."""

    transformer_weights: str = Field(
        "", description="the transformer of Mirai (snapshot, state dict, safetensors, run); empty: from scratch"
    )
    hidden_dim: int = Field(512, ge=1, description="width of the transformer over images")
    num_layers: int = Field(1, ge=1, description="its layers")
    num_heads: int = Field(8, ge=1, description="its attention heads")
    dropout: float = Field(0.0, ge=0, lt=1, description="on attention weights and before the risk head")
    pool: Literal["Simple_AttentionPool", "GlobalMaxPool", "GlobalAvgPool"] = Field(
        "Simple_AttentionPool", description="how the images' vectors become one"
    )
    mask_prob: float = Field(0.0, ge=0, lt=1, description="share of training images replaced by a learned vector")
    finetune_encoder: bool = Field(True, description="false freezes the image encoder")
    min_views: int = Field(4, ge=1, le=4, description="views an exam must have; missing ones are left out of it")
    risk_factors: bool = Field(
        False, description="predict Mirai's 34 risk factors and use them; known ones from columns factor_<name>"
    )
    risk_factor_weight: float = Field(0.25, ge=0, description="of their cross-entropy in the loss")
    calibration: str = Field("", description="a file of `medtrain calibrate mirai`: scores are calibrated by it")

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> Self:
        if self.hidden_dim % self.num_heads:
            raise ValueError(f"hidden_dim {self.hidden_dim} is not a multiple of num_heads {self.num_heads}")
        return self
