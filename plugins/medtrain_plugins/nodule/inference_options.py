"""How a network goes over a whole scan, and what becomes a candidate: the options `[plugins.pivot.inference]`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from medtrain.config import SectionModel
from pydantic import Field, field_validator, model_validator

Augmentation = Literal["flip_x", "flip_y", "flip_z", "rotate_90"]


class InferenceOptions(SectionModel):
    """Windows, views of the scan, and the reading of peaks."""

    window: list[Annotated[int, Field(ge=1)]] = Field(
        [], description="voxels of a window, one number or z, y, x; default: the patch size of training"
    )
    overlap: float = Field(0.5, ge=0, lt=1, description="of neighbouring windows, as a share of the window")
    border: float = Field(
        0.0, ge=0, le=0.5, description="windows reach at least this share of a window beyond the scan; 0.5 costs most"
    )
    blend: Literal["gaussian", "constant"] = Field("gaussian", description="weight of a window's voxels")
    batch_size: int = Field(2, ge=1, description="windows that go through the network together")
    accumulate_on: Literal["cpu", "device"] = Field(
        "cpu", description="where the maps of the scan are summed; a GPU is faster, and needs 40 bytes a voxel"
    )
    lungs_only: bool = Field(False, description="leave out windows without lung; needs a scan in HU")
    tta: list[Augmentation] = Field(
        [], description="average over flips and quarter turns of axial slices, and their combinations"
    )
    tta_count: int | None = Field(
        None, ge=1, description="views at most, the scan itself included; simple ones first; default: all"
    )
    kernel: int = Field(3, ge=1, description="a peak is highest within this cube; odd")
    min_confidence: float = Field(0.05, ge=0, le=1, description="least height of a peak, before calibration")
    top_k: int | None = Field(200, ge=1, description="peaks at most")
    merge: bool = Field(False, description="candidates within one nodule: their weighted mean instead of the highest")
    threshold: float = Field(0.0, ge=0, le=1, description="least score of a candidate, after calibration")
    calibration: Path | None = Field(
        None,
        description="JSON file of `medtrain calibrate pivot`; default: calibration.json in the split's folder, if any",
    )

    @field_validator("calibration", mode="before")
    @classmethod
    def _none_when_empty(cls, value: Any) -> Any:
        # So that --set can take back what a run was configured with: TOML has no null.
        return None if value == "" else value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if len(self.window) not in (0, 1, 3):
            raise ValueError("window: give one number, or three for z, y, x")
        if self.kernel % 2 == 0:
            raise ValueError("kernel must be odd: a peak has as many neighbours before it as behind it")
        return self
