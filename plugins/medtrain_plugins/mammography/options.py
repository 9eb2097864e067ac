"""Options that the plugins of the family share: the cohort, its images, the embedded demo, pretrained parts."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

STRIDE = 32  # of the encoders; importing it from `backbone` would import torch


class CohortOptions(BaseModel):
    """The cohort, and how its images are prepared."""

    model_config = ConfigDict(extra="forbid")

    layout: Literal["auto", "embed", "csaw"] = Field("auto", description="columns of the table")
    columns: dict[str, str] = Field({}, description="canonical column -> its name in the table")
    on_bad_rows: Literal["error", "drop"] = Field("error", description="refuse a cohort with bad rows, or drop them")
    image_size: tuple[int, int] | None = Field((2048, 1664), description="rows and columns to resize to")
    orientation: Literal["auto", "as_is", "mirai"] = Field(
        "auto", description="auto: mirai (chest wall right) when the encoder starts from Mirai weights"
    )
    augmentation: bool = Field(True, description="random crop, affine, brightness, contrast, gamma (LMV-Net: flip)")
    demo_patients: int = Field(0, ge=0, description="without data: women of a synthetic cohort; 0 needs data")
    demo_seed: int = Field(0, ge=0, description="seed of that cohort")
    demo_signal: Literal["growth", "change", "none"] = Field(
        "growth", description="sign of a later cancer in the demo's images"
    )

    @property
    def image_orientation(self) -> Literal["as_is", "mirai"]:
        """The orientation, `auto` resolved."""
        return "mirai" if self.orientation == "mirai" else "as_is"

    @field_validator("image_size")
    @classmethod
    def _fits_the_networks(cls, size: tuple[int, int] | None) -> tuple[int, int] | None:
        if size is not None and (size[0] % STRIDE or size[1] % STRIDE or min(size) <= 0):
            raise ValueError(f"rows and columns must be multiples of {STRIDE}, {size[0]} x {size[1]} are not")
        return size


class RiskOptions(CohortOptions):
    """Options of all risk models: the encoder's weights, optional published defects, and metrics."""

    encoder_weights: str = Field(
        "", description="Mirai snapshot, state dict or safetensors; 'none' trains the encoder from scratch"
    )
    input_norm: Literal["auto", "none", "mirai"] = Field(
        "auto", description="auto: mirai when the encoder starts from Mirai weights"
    )
    compat: Literal["fixed", "reference"] = Field(
        "fixed", description="reference: what the published code computes, its known errors included"
    )
    bootstrap_replicates: int = Field(2000, ge=0, description="replicates of the confidence intervals")

    @property
    def starts_from_mirai(self) -> bool:
        """Whether the encoder is initialised from Mirai weights, which need Mirai's input convention."""
        return self.encoder_weights not in ("", "none")

    @property
    def image_orientation(self) -> Literal["as_is", "mirai"]:
        """The orientation; `auto` is resolved by the origin of the encoder's weights."""
        if self.orientation != "auto":
            return self.orientation
        return "mirai" if self.starts_from_mirai else "as_is"

    @property
    def encoder_norm(self) -> Literal["none", "mirai"]:
        """The normalisation of the encoder's input, with `auto` resolved."""
        if self.input_norm != "auto":
            return self.input_norm
        return "mirai" if self.starts_from_mirai else "none"


class RegistrationOptions(BaseModel):
    """For models that align the prior exam."""

    registration: str = Field(
        "", description="weights of MammoRegNet (a file or a run directory); 'none' leaves the prior exam unaligned"
    )
