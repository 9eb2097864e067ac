"""Options of the plugin `imgfeatalign`."""

from __future__ import annotations

from pydantic import Field, field_validator

from medtrain_plugins.mammography.options import RegistrationOptions, RiskOptions


class ImgFeatAlignOptions(RiskOptions, RegistrationOptions):
    """`[plugins.imgfeatalign]`."""

    num_heads: int = Field(8, ge=1, description="attention heads; they share 512 features")
    dropout: float = Field(0.1, ge=0, lt=1, description="on the attention weights")
    ffn_ratio: int = Field(4, ge=1, description="hidden width of the feed-forward network, in feature widths")
    finetune_encoder: bool = Field(False, description="true trains the image encoder too")

    @field_validator("num_heads")
    @classmethod
    def _divides_the_features(cls, heads: int) -> int:
        if 512 % heads:
            raise ValueError(f"must divide the 512 features, {heads} does not")
        return heads
