"""Options of the plugin `lmv_net`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from medtrain_plugins.mammography.options import CohortOptions


class LMVNetOptions(CohortOptions):
    """`[plugins.lmv_net]`."""

    registration: str = Field(
        "", description="weights of MammoRegNet (a file or a run directory); 'none' leaves the prior exam unaligned"
    )

    compat: Literal["fixed", "reference"] = Field("fixed", description="reference: the published feature warp")
    num_blocks: int = Field(1, ge=1, description="dual-stream attention blocks")
    num_heads: int = Field(4, ge=1, description="attention heads")
    dropout: float = Field(0.3, ge=0, lt=1, description="in attention and feed-forward network")
    drop_path: float = Field(0.2, ge=0, lt=1, description="stochastic depth")
    ffn_ratio: int = Field(2, ge=1, description="hidden width of the feed-forward network, in feature widths")
    align_prior: bool = Field(False, description="aligned prior features in the fusion, not only in the difference")
    finetune_encoder: bool = Field(True, description="false freezes the image encoder")
    input_norm: Literal["auto", "none", "mirai"] = Field(
        "auto", description="auto: mirai when the encoder starts from Mirai weights"
    )

    @property
    def encoder_norm(self) -> Literal["none", "mirai"]:
        """What the encoder's input is normalised by, `auto` resolved."""
        if self.input_norm != "auto":
            return self.input_norm
        return "mirai" if self.starts_from_mirai else "none"

    @field_validator("image_size")
    @classmethod
    def _fits_the_network(cls, size: tuple[int, int] | None) -> tuple[int, int] | None:
        if size is not None and (size[0] % 32 or size[1] % 32):
            raise ValueError(f"rows and columns must be multiples of 32, {size[0]} x {size[1]} are not")
        return size
