"""Options that every risk model of the family shares: the cohort, its images, the embedded demo."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class CohortOptions(BaseModel):
    """Where samples come from and how images are prepared."""

    model_config = ConfigDict(extra="forbid")

    layout: Literal["auto", "embed", "csaw"] = Field("auto", description="columns of the table")
    columns: dict[str, str] = Field({}, description="canonical column -> its name in the table")
    on_bad_rows: Literal["error", "drop"] = Field("error", description="refuse a cohort with bad rows, or drop them")
    image_size: tuple[int, int] | None = Field((2048, 1664), description="rows and columns to resize to")
    orientation: Literal["auto", "as_is", "mirai"] = Field(
        "auto", description="auto: mirai (chest wall right) when the encoder starts from Mirai weights"
    )
    augmentation: bool = Field(True, description="random crop, affine, brightness, contrast, gamma, flip")
    bootstrap_replicates: int = Field(2000, ge=0, description="replicates of the confidence intervals")
    demo_patients: int = Field(0, ge=0, description="without data: women of a synthetic cohort; 0 needs data")
    demo_seed: int = Field(0, ge=0, description="seed of that cohort")
    encoder_weights: str = Field(
        "", description="Mirai snapshot, state dict or safetensors; 'none' trains the encoder from scratch"
    )

    @property
    def starts_from_mirai(self) -> bool:
        """Whether the encoder is initialised from Mirai weights, which want Mirai's input convention."""
        return self.encoder_weights not in ("", "none")

    @property
    def image_orientation(self) -> Literal["as_is", "mirai"]:
        """The orientation, `auto` resolved."""
        if self.orientation != "auto":
            return self.orientation
        return "mirai" if self.starts_from_mirai else "as_is"
