"""Options of the plugin `oa_breacr`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from medtrain_plugins.mammography.options import STRIDE, RiskOptions

Arch = Literal[
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
]
Distance = Literal[
    "BhattacharyyaDistance",
    "HellingerDistance",
    "WassersteinDistance",
    "GeodesicDistance",
    "ForwardKLDistance",
    "ReverseKLDistance",
    "JDistance",
]
ImageNorm = Literal["none", "imagenet", "half"]


class OABreaCROptions(RiskOptions):
    """`[plugins.oa_breacr]`."""

    arch: Arch = Field("resnet18", description="the encoder, a residual network of torchvision")
    encoder_weights: str = Field(
        "", description="'imagenet' (torchvision downloads them), a file, or 'none' to train the encoder from scratch"
    )
    input_norm: Literal["auto", "none", "imagenet", "half"] = Field(  # type: ignore[assignment]
        "auto", description="half: (x - 0.5) / 0.5; auto: imagenet when the encoder starts from pretrained weights"
    )
    img_size: tuple[int, int] | None = Field(
        None, description="image size that the attention's layer norm is made for; default: image_size"
    )
    use_poe: bool = Field(True, description="probabilistic ordinal embedding: a Gaussian per sample, and its loss")
    use_sto: bool = Field(True, description="train on samples of that Gaussian instead of its mean")
    max_t: int = Field(50, ge=1, description="samples per image pair")
    distance: Distance = Field("JDistance", description="between the Gaussians of two samples")
    alpha: float = Field(1e-5, ge=0, description="weight of the Gaussians' divergence from the standard one")
    beta: float = Field(1e-4, ge=0, description="weight of the ordinal triplets")
    margin: float = Field(2.0, ge=0, description="of the triplets")
    bce_weight: float = Field(2.0, ge=0, description="weight of the cross-entropy over classes")
    mean_weight: float = Field(0.2, ge=0, description="weight of the expected class's squared error")
    variance_weight: float = Field(0.05, ge=0, description="weight of the predicted classes' variance")
    class_weights: tuple[float, float, float, float, float, float] | None = Field(
        None, description="weights of years 1 to 5 and of no cancer in the mean and variance terms; default: equal"
    )
    registration_weight: float = Field(0.01, ge=0, description="weight of the attention maps' misalignment")

    @property
    def starts_from_mirai(self) -> bool:
        """Never: images keep their orientation, unless `orientation` changes it."""
        return False

    @property
    def encoder_norm(self) -> ImageNorm:  # type: ignore[override]
        """The normalisation of the encoder's input, with `auto` resolved."""
        if self.input_norm != "auto":
            return self.input_norm
        return "none" if self.encoder_weights in ("", "none") else "imagenet"

    @property
    def pool_size(self) -> tuple[int, int]:
        """`img_size`, resolved."""
        return self.img_size or self.image_size or (2048, 1664)

    @field_validator("img_size")
    @classmethod
    def _fits_the_pool(cls, size: tuple[int, int] | None) -> tuple[int, int] | None:
        if size is not None and (size[0] % STRIDE or size[1] % STRIDE or min(size) <= 0):
            raise ValueError(f"rows and columns must be multiples of {STRIDE}, {size[0]} x {size[1]} are not")
        return size
