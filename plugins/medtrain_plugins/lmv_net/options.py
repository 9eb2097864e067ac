"""Options of the plugin `lmv_net`."""

from __future__ import annotations

from pydantic import Field

from medtrain_plugins.mammography.options import RegistrationOptions, RiskOptions


class LMVNetOptions(RegistrationOptions, RiskOptions):
    """`[plugins.lmv_net]`."""

    num_blocks: int = Field(1, ge=1, description="dual-stream attention blocks")
    num_heads: int = Field(4, ge=1, description="attention heads")
    dropout: float = Field(0.3, ge=0, lt=1, description="in attention and feed-forward network")
    drop_path: float = Field(0.2, ge=0, lt=1, description="stochastic depth")
    ffn_ratio: int = Field(2, ge=1, description="hidden width of the feed-forward network, in feature widths")
    align_prior: bool = Field(False, description="aligned prior features in the fusion, not only in the difference")
    finetune_encoder: bool = Field(True, description="false freezes the image encoder")
