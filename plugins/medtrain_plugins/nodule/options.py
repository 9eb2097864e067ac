"""Options of the plugin `pivot`: data, patches, network, losses, augmentation, inference, evaluation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from medtrain.config import SectionModel
from pydantic import Field, field_validator, model_validator

Range = tuple[float, float]
Task = Literal["heatmap", "offset", "log_diameter", "triage", "segmentation"]
Voxels = Annotated[int, Field(ge=1)]
Triple = tuple[Voxels, Voxels, Voxels]
TestTimeAugmentation = Literal["flip_x", "flip_y", "flip_z", "rotate_90"]


class SamplingOptions(SectionModel):
    """Training patches, drawn again in every epoch, and the grid of validation patches."""

    patch_size: Triple = Field((96, 96, 96), description="z, y, x voxels; a stage's own size goes first")
    stride: Triple | None = Field(
        None, description="z, y, x voxels between the validation patches of a scan; default: the patch size"
    )
    patches_per_volume: int = Field(16, ge=1, description="of each scan and epoch")
    positive_fraction: float = Field(0.5, ge=0, le=1, description="share of patches that are placed by a nodule")
    jitter: float = Field(0.75, ge=0, le=1, description="how far it may be from their middle, in half patches")
    nodules_in_negatives: bool = Field(False, description="whether the other patches may hold a nodule by chance")
    hard_negatives: Path | None = Field(
        None, description="candidates of an earlier run (CSV); other patches are placed by those that were wrong"
    )
    hard_negative_fraction: float = Field(0.5, ge=0, le=1, description="share of the other patches they get")
    hard_negative_score: float = Field(0.0, ge=0, le=1, description="candidates below it do not count")
    min_diameter: float = Field(0.0, ge=0, description="mm; smaller nodules are neither learnt nor background")
    max_diameter: float | None = Field(None, gt=0, description="mm; larger ones likewise; default: no limit")


class ModelOptions(SectionModel):
    """The network and its heads."""

    type: str = Field(
        "residual_unet",
        description="residual_unet, reference_unet, DynUNet or SegResNet (MONAI), or the dotted path of a class",
    )
    base_filters: int = Field(32, ge=1, description="of the finest level, doubled at each coarser one")
    depth: int = Field(4, ge=1, description="how often the image is halved")
    norm: Literal["instance", "group", "batch"] = Field("instance", description="normalisation layers")
    activation: Literal["relu", "leaky_relu", "elu", "silu"] = Field("leaky_relu", description="between layers")
    dropout: float = Field(0.0, ge=0, lt=1, description="of whole channels, in every block")
    output_stride: Literal[1, 2] = Field(1, description="2: maps of half the size; several times faster")
    deep_supervision: bool = Field(False, description="coarser heatmaps are trained too")
    gradient_checkpointing: bool = Field(False, description="less memory, a third more time")
    heads: list[Task] = Field(
        ["heatmap", "offset", "log_diameter", "triage"], description="outputs of the network; heatmap is required"
    )
    diameter_channels: Literal[1, 3] = Field(1, description="1: a sphere's diameter; 3: along z, y, x")
    options: dict[str, Any] = Field({}, description="further arguments of MONAI's networks or of your class")

    @field_validator("heads")
    @classmethod
    def _has_heatmap(cls, value: list[Task]) -> list[Task]:
        if "heatmap" not in value or len(set(value)) < len(value):
            raise ValueError("name each head once, heatmap among them: nodules are found by it")
        return value


class MiningOptions(SectionModel):
    """Hard negatives of the heatmap's loss, sample by sample."""

    enabled: bool = Field(False, description="only the negative voxels of largest loss count")
    neg_pos_ratio: float | None = Field(3.0, gt=0, description="most negatives per positive voxel; none: no limit")
    hardest_fraction: float = Field(1.0, gt=0, le=1, description="most negatives, as a share of the sample's")
    min_negatives: int = Field(100, ge=0, description="of samples with few or no positives")
    threshold: float = Field(0.5, ge=0, lt=1, description="targets above it are positives")


class LossOptions(SectionModel):
    """One term per head; `optimization` minimises their weighted sum."""

    heatmap: Literal["penalty_reduced_focal", "focal", "bce", "dice"] = Field(
        "penalty_reduced_focal", description="loss of the heatmap"
    )
    alpha: float = Field(0.25, ge=0, le=1, description="focal: weight of the positive class")
    gamma: float = Field(2.0, ge=0, description="focal: how little easy voxels count")
    penalty_alpha: float = Field(2.0, ge=0, description="penalty_reduced_focal: how little easy voxels count")
    penalty_beta: float = Field(4.0, ge=0, description="penalty_reduced_focal: how little voxels near a centre count")
    pos_weight: float = Field(1.0, gt=0, description="bce: weight of the positive part")
    smooth: float = Field(1.0, gt=0, description="dice: added above and below")
    squared_pred: bool = Field(False, description="dice: squares in the denominator")
    segmentation: Literal["dice", "focal", "bce"] = Field(
        "dice", description="loss of the segmentation, if there is one"
    )
    beta: float = Field(1.0, gt=0, description="smooth L1 of offsets and diameters: where it becomes linear")
    triage_pos_weight: float = Field(1.0, gt=0, description="weight of the positive part of the triage loss")
    triage_neg_weight: float = Field(1.0, gt=0, description="weight of its negative part")
    weights: dict[Task, float] = Field({}, description="factor of each head's term; default 1")
    weighting: Literal["fixed", "learned", "scheduled"] = Field(
        "fixed", description="learned: by uncertainty (Kendall et al., 2018); scheduled: see schedule"
    )
    schedule: dict[Task, list[tuple[float, float]]] = Field(
        {}, description="scheduled: [epoch, factor] points of a head, straight lines between"
    )
    hard_negative_mining: MiningOptions = Field(default_factory=MiningOptions, description="of the heatmap's loss")  # type: ignore[arg-type]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if any(weight < 0 for weight in self.weights.values()):
            raise ValueError("weights must not be negative")
        if (self.weighting == "scheduled") != bool(self.schedule):
            raise ValueError("a schedule belongs to weighting 'scheduled', which needs one")
        if self.hard_negative_mining.enabled and self.heatmap == "dice":
            raise ValueError("hard negatives are chosen by the loss of each voxel, which dice does not have")
        return self


def _probability(default: float) -> Any:
    return Field(default, ge=0, le=1, description="of each training patch")


class FlipOptions(SectionModel):
    """Mirrors, each axis on its own."""

    probability: float = Field(0.5, ge=0, le=1, description="of each training patch, for each axis")
    axes: tuple[int, ...] = Field((0, 1, 2), description="of z, y, x, those that may be mirrored")

    @field_validator("axes")
    @classmethod
    def _known(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if set(value) - {0, 1, 2} or len(set(value)) < len(value):
            raise ValueError("name axes out of 0 (z), 1 (y), 2 (x), each once")
        return value


class QuarterTurnOptions(SectionModel):
    """Turns by 90, 180 or 270 degrees, in planes where patch and voxels are square."""

    probability: float = _probability(0.0)


class RotationOptions(SectionModel):
    """Turns about all three axes, of the patient in mm."""

    probability: float = _probability(0.5)
    max_angle: float = Field(15.0, ge=0, le=180, description="degrees about each axis, either way")


class ScaleOptions(SectionModel):
    """Enlarges or shrinks; diameters change along."""

    probability: float = _probability(0.5)
    scale_range: Range = Field((0.9, 1.1), description="smallest and largest factor")

    @field_validator("scale_range")
    @classmethod
    def _ordered(cls, value: Range) -> Range:
        return _range(value, positive=True)


class TranslationOptions(SectionModel):
    """Shifts by fractions of voxels and more."""

    probability: float = _probability(0.0)
    max_shift: float = Field(4.0, ge=0, description="voxels along each axis, either way")


class ElasticOptions(SectionModel):
    """Bends (Simard et al., ICDAR 2003): smoothed random displacements."""

    probability: float = _probability(0.2)
    alpha: float = Field(10.0, ge=0, description="factor of the displacements, before smoothing up to 1 voxel")
    sigma: float = Field(3.0, ge=1, description="standard deviation of the smoothing in voxels")


class NoiseOptions(SectionModel):
    """Gaussian noise."""

    probability: float = _probability(0.3)
    noise_std: float = Field(0.01, ge=0, description="standard deviation, in values of the network's input")


class BlurOptions(SectionModel):
    """Gaussian blur."""

    probability: float = _probability(0.0)
    sigma_range: Range = Field((0.25, 1.0), description="smallest and largest standard deviation in voxels")

    @field_validator("sigma_range")
    @classmethod
    def _ordered(cls, value: Range) -> Range:
        return _range(value)


class GammaOptions(SectionModel):
    """Raises the input's values to a power, within their range."""

    probability: float = _probability(0.0)
    gamma_range: Range = Field((0.8, 1.25), description="smallest and largest exponent")

    @field_validator("gamma_range")
    @classmethod
    def _ordered(cls, value: Range) -> Range:
        return _range(value, positive=True)


class IntensityOptions(SectionModel):
    """Factor and offset of the input's values."""

    probability: float = _probability(0.0)
    factor_range: Range = Field((0.9, 1.1), description="smallest and largest factor")
    max_offset: float = Field(0.05, ge=0, description="added, either way")

    @field_validator("factor_range")
    @classmethod
    def _ordered(cls, value: Range) -> Range:
        return _range(value)


class SliceThicknessOptions(SectionModel):
    """Thicker slices, as of another scan protocol: averages along z, interpolated back."""

    probability: float = _probability(0.0)
    thickness_range: Range = Field((2.0, 5.0), description="smallest and largest thickness in mm")

    @field_validator("thickness_range")
    @classmethod
    def _ordered(cls, value: Range) -> Range:
        return _range(value, positive=True)


class AugmentationOptions(SectionModel):
    """Random changes of training patches. Each has a probability; 0 switches it off."""

    enabled: bool = Field(True, description="false: none of them")
    random_flip: FlipOptions = Field(default_factory=FlipOptions)  # type: ignore[arg-type]
    random_rotate90: QuarterTurnOptions = Field(default_factory=QuarterTurnOptions)
    random_rotation: RotationOptions = Field(default_factory=RotationOptions)  # type: ignore[arg-type]
    random_scale: ScaleOptions = Field(default_factory=ScaleOptions)  # type: ignore[arg-type]
    random_translation: TranslationOptions = Field(default_factory=TranslationOptions)  # type: ignore[arg-type]
    elastic_deformation: ElasticOptions = Field(default_factory=ElasticOptions)  # type: ignore[arg-type]
    slice_thickness: SliceThicknessOptions = Field(default_factory=SliceThicknessOptions)  # type: ignore[arg-type]
    random_blur: BlurOptions = Field(default_factory=BlurOptions)  # type: ignore[arg-type]
    random_gamma: GammaOptions = Field(default_factory=GammaOptions)  # type: ignore[arg-type]
    random_intensity: IntensityOptions = Field(default_factory=IntensityOptions)  # type: ignore[arg-type]
    random_noise: NoiseOptions = Field(default_factory=NoiseOptions)  # type: ignore[arg-type]


class InferenceOptions(SectionModel):
    """Windows, test-time augmentation, and how peaks become candidates."""

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
    tta: list[TestTimeAugmentation] = Field(
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
        # TOML has no null: an empty text lets --set remove the run's value.
        return None if value == "" else value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if len(self.window) not in (0, 1, 3):
            raise ValueError("window: give one number, or three for z, y, x")
        if self.kernel % 2 == 0:
            raise ValueError("kernel must be odd: a peak has as many neighbours before it as behind it")
        return self


class EvaluationOptions(SectionModel):
    """How whole scans are evaluated, in training and afterwards."""

    detection_every: int = Field(
        1, ge=1, description="evaluations between two in which whole scans are searched; the loss comes each time"
    )
    loss_patches: int = Field(
        8, ge=0, description="patches of each scan's grid for the loss, those with nodules first; 0: no loss"
    )
    protocol: Literal["luna16", "fixed_radius"] = Field("luna16", description="when a candidate hits a nodule")
    max_distance: float = Field(10.0, gt=0, description="fixed_radius: mm")
    max_marks: int | None = Field(None, ge=1, description="candidates of a scan that count at most")
    replicates: int = Field(1000, ge=0, description="resamples of the scans for the intervals of a finished model")
    centre_tolerance: float = Field(2.0, gt=0, description="mm; centre_accuracy: share of found nodules within it")
    size_tolerance: float = Field(0.25, gt=0, description="size_accuracy: share with diameters as near, relatively")
    high_risk: float = Field(0.5, gt=0, lt=1, description="triage from which a nodule is of high risk, for the AUC")
    untrained: bool = Field(False, description="evaluate the network as it was before training too, to compare with")


class PivotOptions(SectionModel):
    """`[plugins.pivot]`."""

    train_data: Path | None = Field(None, description="manifest or folder of the training scans, instead of data.table")
    validation_data: Path | None = Field(None, description="the same of the validation scans")
    test_data: Path | None = Field(None, description="the same of the test scans")
    annotations: Path | None = Field(
        None, description="table of nodules (LUNA16); default: annotations.csv in the folder of the scans"
    )
    excluded: Path | None = Field(
        None, description="table of irrelevant findings; default: annotations_excluded.csv there"
    )
    prepared: Path | None = Field(
        None, description="where scans that are not prepared yet are kept; default: the cache"
    )
    fold: int | None = Field(None, ge=0, description="of a manifest with folds: the fold that is held out")
    spacing: tuple[float, float, float] | None = Field(
        None, description="z, y, x in mm of the voxels; default: that of the prepared scans, 1 mm where none are yet"
    )
    window: tuple[float, float] = Field(
        (-1000.0, 400.0), description="HU that become 0 and 1; what is beyond is clipped"
    )
    sampling: SamplingOptions = Field(default_factory=SamplingOptions, description="patches")  # type: ignore[arg-type]
    sigma_mm: float | None = Field(
        None, gt=0, description="width of the heatmap's peaks; default: a sixth of the diameter, 1 to 4 mm"
    )
    model: ModelOptions = Field(default_factory=ModelOptions, description="network")  # type: ignore[arg-type]
    loss: LossOptions = Field(default_factory=LossOptions, description="losses")  # type: ignore[arg-type]
    augmentation: AugmentationOptions = Field(default_factory=AugmentationOptions, description="of training patches")  # type: ignore[arg-type]
    evaluation: EvaluationOptions = Field(default_factory=EvaluationOptions, description="evaluation")  # type: ignore[arg-type]
    inference: InferenceOptions = Field(
        default_factory=InferenceOptions,  # type: ignore[arg-type]
        description="windows over a scan, and its peaks",
    )
    demo_scans: int = Field(0, ge=0, description="without data: synthetic scans; 0 needs data")
    demo_seed: int = Field(0, ge=0, description="seed of these scans")

    @field_validator("window")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not value[0] < value[1]:
            raise ValueError("the first number must be below the second")
        return value

    @field_validator("spacing")
    @classmethod
    def _positive(cls, value: tuple[float, float, float] | None) -> tuple[float, float, float] | None:
        if value is not None and min(value) <= 0:
            raise ValueError("give three positive numbers, z, y, x")
        return value

    @property
    def voxel_mm(self) -> tuple[float, float, float]:
        """z, y, x in mm of the voxels that the network sees."""
        return self.spacing or (1.0, 1.0, 1.0)

    @property
    def stride(self) -> Triple:
        """Voxels between validation patches, z, y, x."""
        return self.sampling.stride or self.sampling.patch_size


def _range(value: Range, positive: bool = False) -> Range:
    low, high = value
    if not (math.isfinite(low) and math.isfinite(high)) or low > high or low < 0 or (positive and low == 0):
        raise ValueError(f"give the smallest and the largest, both {'above' if positive else 'at least'} 0")
    return value
