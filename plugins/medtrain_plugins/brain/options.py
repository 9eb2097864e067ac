"""Options of the plugin `brain`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from medtrain.config import SectionModel
from pydantic import Field, field_validator, model_validator

Triple = tuple[int, int, int]
LOSSES = {
    "classification": ("cross_entropy", "focal"),
    "regression": ("mse", "l1", "huber"),
    "segmentation": ("dice_ce", "dice", "cross_entropy"),
    "reconstruction": ("mse", "l1", "ssim"),
}


class ExtractionOptions(SectionModel):
    """Which parts of a volume are samples."""

    kind: Literal["image", "patch", "slice", "roi"] = Field("image", description="whole image, or which part of it")
    size: Triple | None = Field(None, description="patch: voxels along each axis; one number for all")
    overlap: Triple = Field((0, 0, 0), description="patch: voxels that neighbours share along each axis")
    padding: Literal["none", "constant", "edge", "reflect"] = Field(
        "constant", description="patch: what lies beyond the border; none: the last patch of an axis is moved inside"
    )
    padding_value: float = Field(0.0, description="patch: value of constant padding")
    direction: Literal[0, 1, 2] = Field(2, description="slice: the axis that slices are perpendicular to")
    slices: list[int] = Field([], description="slice: only these; default: all")
    discarded: list[int] = Field([], description="slice: all but these")
    borders: tuple[int, int] = Field((0, 0), description="slice: how many are left out at both ends of the axis")
    squeeze: bool = Field(True, description="slice: samples of two dimensions, without the axis of length 1")
    boxes: dict[str, tuple[int, int, int, int, int, int]] = Field(
        {}, description="roi: first voxel and end (exclusive) along each axis, by name: [i0, i1, j0, j1, k0, k1]"
    )
    mask: str = Field("", description="roi: NIfTI file; the box around each of its labels is a region")
    margin: int = Field(0, ge=0, description="roi: voxels added around the boxes of a mask")

    @field_validator("size", "overlap", mode="before")
    @classmethod
    def _for_all_axes(cls, value: Any) -> Any:
        return (value,) * 3 if isinstance(value, int) else value

    @field_validator("borders", mode="before")
    @classmethod
    def _for_both_ends(cls, value: Any) -> Any:
        return (value, value) if isinstance(value, int) else value

    @model_validator(mode="after")
    def _complete(self) -> ExtractionOptions:
        if self.kind == "patch":
            if self.size is None or min(self.size) < 1:
                raise ValueError("patches need a size of at least 1 voxel, such as size = 32")
            if any(not 0 <= shared < length for shared, length in zip(self.overlap, self.size, strict=True)):
                raise ValueError(f"the overlap {self.overlap} must be smaller than the size {self.size} of a patch")
        if self.kind == "roi" and bool(self.boxes) == bool(self.mask):
            raise ValueError("regions are given either by boxes or by a mask")
        return self


class InferenceOptions(SectionModel):
    """Inference on whole images."""

    window: list[int] = Field(
        [], description="sliding window, voxels by axis or one number for all; empty: the image at once"
    )
    overlap: float = Field(0.5, ge=0, lt=1, description="of neighbouring windows")
    blend: Literal["gaussian", "constant"] = Field("gaussian", description="weight of a window's voxels")
    batch_size: int = Field(4, ge=1, description="windows or slices at a time")
    slice_axis: int | None = Field(
        None, ge=0, le=2, description="a 2-D network sees volumes slice by slice across this axis, also in training"
    )
    flips: list[int] = Field(
        [], description="test-time augmentation: average over all mirror images along these axes (0, 1, 2)"
    )

    @model_validator(mode="after")
    def _sound(self) -> InferenceOptions:
        if any(size < 1 for size in self.window):
            raise ValueError("a window has at least one voxel along every axis")
        if not set(self.flips) <= {0, 1, 2} or len(set(self.flips)) < len(self.flips):
            raise ValueError("flips are different axes out of 0, 1, 2")
        return self


class BrainOptions(SectionModel):
    """`[plugins.brain]`. `input_shape` and `classes` are completed from the data, `class_weights` and `label_scale`
    from the training group alone, and recorded with the split."""

    # The cohort: data.table is the BIDS or CAPS folder.
    task: Literal["classification", "regression", "segmentation", "reconstruction"] = Field(
        "classification", description="what is learnt from an image"
    )
    file_type: str | dict[str, Any] = Field(
        "T1w", description="images to read: a preset's name, or a table of its parts"
    )
    masks: str | dict[str, Any] = Field(
        "Segmentation", description="segmentation: the masks to read, given like file_type"
    )
    label: str = Field("diagnosis", description="column of the participants' or sessions' tables to predict")
    stratify: list[str] = Field([], description="columns the groups are balanced in; default: the classes")
    exclude: Literal["strict", "skip"] = Field(
        "strict", description="sessions that cannot be used: an error, or left out and listed"
    )
    canonical: bool = Field(False, description="turn the axes of all images to the right, front and up")
    non_finite: Literal["error", "zero"] = Field("error", description="voxels that are NaN or infinite")
    cache: Literal["none", "memory", "disk"] = Field("memory", description="where transformed images are kept")
    cache_dir: Path | None = Field(None, description="folder of cache = 'disk'; default: medtrain's cache")
    extraction: ExtractionOptions = Field(
        default_factory=ExtractionOptions,  # type: ignore[arg-type]
        description="patches, slices or regions as samples instead of whole images",
    )
    transforms: list[str | dict[str, Any]] = Field([], description="MONAI transforms of every image, in order")
    augmentations: list[str | dict[str, Any]] = Field(
        [], description="random MONAI transforms of training images, in order"
    )
    demo_participants: int = Field(0, ge=0, description="without data: participants of a synthetic cohort")
    demo_seed: int = Field(0, ge=0, description="its seed")
    demo_size: int = Field(32, ge=12, description="voxels of its images along each axis")

    # The network.
    network: str = Field("Conv5_FC3", description="Conv5_FC3, or a network of MONAI by its class name")
    network_options: dict[str, Any] = Field({}, description="arguments of the network, over those the data settle")
    input_shape: list[int] = Field([], description="of one image: channels, then voxels by axis; empty: from the data")
    classes: list[str] = Field(
        [], description="of the classes, or of the masks' labels with the background first; empty: from the data"
    )

    standardize: bool = Field(
        True, description="what the network sees has mean 0 and spread 1; false for images in units of their own"
    )

    # Loss and metrics.
    loss: str = Field("", description="empty: cross_entropy, mse, dice_ce, mse by task; others: see the documentation")
    class_weights: list[float] | Literal["balanced"] = Field(
        [], description="of the cross-entropy, by class; balanced: inverse to their frequency in training"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="of the cross-entropy of classification")
    label_scale: list[float] = Field(
        [],
        description="regression: mean and spread the network learns its target in; empty: those in training",
    )
    threshold: float = Field(0.5, gt=0, lt=1, description="two classes: probability from which the second one is said")
    surface_metrics: bool = Field(True, description="segmentation: also distances between surfaces, which take time")
    output_dir: Path | None = Field(
        None, description="where predict writes images; default: the folder predictions of the split"
    )
    inference: InferenceOptions = Field(
        default_factory=InferenceOptions,  # type: ignore[arg-type]
        description="whole images: windows, slices, mirror images",
    )

    @model_validator(mode="after")
    def _loss_of_the_task(self) -> BrainOptions:
        if self.loss and self.loss not in LOSSES[self.task]:
            raise ValueError(f"loss {self.loss!r} is not one of {self.task}: {', '.join(LOSSES[self.task])}")
        if self.label_scale and (len(self.label_scale) != 2 or self.label_scale[1] <= 0):
            raise ValueError("label_scale is two numbers, the mean and a spread above 0")
        return self

    @property
    def loss_name(self) -> str:
        """The name of the loss, or the task's default."""
        return self.loss or LOSSES[self.task][0]
