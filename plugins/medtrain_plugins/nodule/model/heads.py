"""The output of every detector, its heads, and the detector in the form the training loop uses."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from medtrain import TensorModel
from medtrain.errors import ConfigError, DataError
from torch import Tensor, nn
from torch.nn import functional

TASKS = ("heatmap", "offset", "log_diameter", "triage", "segmentation")
PRIOR = 0.01  # initial probability of the heatmap that a voxel is a centre
USUAL_MM = 8.0  # initial diameter in mm

Layer = Callable[[int], nn.Module]


class DetectorOutput(NamedTuple):
    """The maps of a batch, on the output grid (d, h, w) of `targets`; None for heads that are switched off.

    heatmap (B, 1, d, h, w) logits of nodule centres. offset (B, 3, ...) zyx output voxels, within 0.5. log_diameter
    (B, 1 or 3, ...) ln mm, zyx. triage (B, K, ...) logits. segmentation (B, 1, D, H, W) logits at the image's size.
    deep_heatmaps: in training with deep supervision, heatmaps at 2, 4, ... times the output stride.
    """

    heatmap: Tensor
    offset: Tensor | None = None
    log_diameter: Tensor | None = None
    triage: Tensor | None = None
    segmentation: Tensor | None = None
    deep_heatmaps: tuple[Tensor, ...] = ()


class DenseHeads(nn.Module):
    """Heads with a value at every voxel: 3 x 3 x 3 convolution, norm, activation, 1 x 1 x 1 convolution.

    tasks: the heads, out of `TASKS`; always with `heatmap`. features (B, C, d, h, w) -> maps by task; offsets are 0.5
    tanh of the output. The heatmap starts at a probability of 1 %, diameters at 8 mm.
    """

    def __init__(
        self,
        channels: int,
        norm: Layer,
        activation: Callable[[], nn.Module],
        tasks: Sequence[str] = TASKS,
        diameter_channels: int = 3,
        triage_channels: int = 1,
    ) -> None:
        super().__init__()
        check_tasks(tasks)
        if diameter_channels not in (1, 3):
            raise ConfigError(f"diameter_channels is {diameter_channels}; diameters are 1 (a sphere's) or 3 (zyx)")
        sizes = {"heatmap": 1, "offset": 3, "log_diameter": diameter_channels, "triage": triage_channels}
        self.heads = nn.ModuleDict()
        for task in (task for task in TASKS if task in tasks):
            last = nn.Conv3d(channels, sizes.get(task, 1), kernel_size=1)
            self.heads[task] = nn.Sequential(
                nn.Conv3d(channels, channels, 3, padding=1, bias=False), norm(channels), activation(), last
            )
            assert last.bias is not None
            if task == "heatmap":
                begin_at_prior(last)
            elif task == "log_diameter":
                nn.init.constant_(last.bias, math.log(USUAL_MM))

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        maps = {task: head(features) for task, head in self.heads.items()}
        if "offset" in maps:
            maps["offset"] = 0.5 * torch.tanh(maps["offset"])
        return maps


class DenseDetector(nn.Module):
    """A network that computes features, with dense heads: image (B, 1, D, H, W) -> `DetectorOutput`.

    backbone: (B, 1, D, H, W) -> (B, channels, D / s, H / s, W / s), s the output stride; with deep supervision, a tuple
    of those and of coarser heatmaps. heads: None if the backbone's one channel is the heatmap. divisor: images are
    padded at their ends to multiples of it, by repeating the border, and the maps are cropped. smallest: the smallest
    number of voxels per axis.
    """

    def __init__(
        self,
        backbone: nn.Module,
        heads: DenseHeads | None,
        *,
        output_stride: int = 1,
        divisor: int = 1,
        smallest: int = 1,
        deep_levels: int = 0,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = heads
        self.output_stride, self.divisor, self.smallest = output_stride, divisor, smallest
        self.deep_levels = deep_levels
        self.tasks: tuple[str, ...] = ("heatmap",) if heads is None else tuple(heads.heads)

    def forward(self, image: Tensor) -> DetectorOutput:
        check_volume(image, self.smallest, "the network", int(math.log2(self.smallest)))
        size = [int(length) for length in image.shape[2:]]
        padding = [-length % self.divisor for length in size]
        padded = image
        if any(padding):
            padded = functional.pad(image, [n for p in reversed(padding) for n in (0, p)], mode="replicate")
        features = self.backbone(padded)
        deep: tuple[Tensor, ...] = ()
        if isinstance(features, tuple) and self.deep_levels:
            features, deep = features[0], features[1:]
        self._check(features, padded)
        maps = {"heatmap": features} if self.heads is None else self.heads(features)
        if "segmentation" in maps and self.output_stride > 1:
            # Output voxels stand for blocks of input voxels, as with align_corners=False.
            maps["segmentation"] = functional.interpolate(
                maps["segmentation"], size=padded.shape[2:], mode="trilinear", align_corners=False
            )
        strides = {task: 1 if task == "segmentation" else self.output_stride for task in maps}
        cropped = {task: _crop(values, size, strides[task]) for task, values in maps.items()}
        deep = tuple(_crop(values, size, self.output_stride * 2 ** (n + 1)) for n, values in enumerate(deep))
        return DetectorOutput(**cropped, deep_heatmaps=deep)

    def _check(self, features: Any, image: Tensor) -> None:
        """The user's own network may return anything."""
        if not isinstance(features, Tensor):
            raise ConfigError(
                f"the network {type(self.backbone).__name__} returns {type(features).__name__}; it must take and "
                "return a tensor"
            )
        wanted = [math.ceil(length / self.output_stride) for length in image.shape[2:]]
        if list(features.shape[2:]) != wanted or (self.heads is None and features.shape[1] != 1):
            raise ConfigError(
                f"the network {type(self.backbone).__name__} makes {tuple(features.shape)} of an image "
                f"{tuple(image.shape)}; maps of {' x '.join(map(str, wanted))} voxels are expected"
            )


class DetectorModel(TensorModel):
    """A detector under the loop's contract: batch["image"] (B, 1, D, H, W) -> the maps by name, without those that are
    switched off. Checkpoints contain the detector's own state dict.

    learned_weights: adds `log_variance` (T,), one trained number per task of the detector (Kendall et al., CVPR 2018),
    by which the loss weights the tasks. They are parameters of the detector, so optimizers and checkpoints include
    them.
    """

    def __init__(self, detector: nn.Module, learned_weights: bool = False) -> None:
        super().__init__(detector, "image", "heatmap")
        if learned_weights and not hasattr(detector, "log_variance"):
            detector.register_parameter("log_variance", nn.Parameter(torch.zeros(len(detector.tasks))))  # type: ignore[arg-type]

    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        found = self.module(batch["image"])
        outputs = {name: value for name, value in found._asdict().items() if value is not None}
        if not outputs["deep_heatmaps"]:
            del outputs["deep_heatmaps"]
        if (log_variance := getattr(self.module, "log_variance", None)) is not None:
            # A view, so that DDP finds the parameter in the model's output.
            outputs["log_variance"] = log_variance * 1
        return outputs


def begin_at_prior(layer: nn.Conv3d) -> None:
    """Sets the bias so that the layer starts at the prior probability of a centre."""
    assert layer.bias is not None
    nn.init.constant_(layer.bias, -math.log((1 - PRIOR) / PRIOR))


def check_tasks(tasks: Sequence[str]) -> None:
    """Raises ConfigError for unknown heads, or if the heatmap is missing."""
    if unknown := [task for task in tasks if task not in TASKS]:
        raise ConfigError(f"there is no head {unknown[0]!r}; there are {', '.join(TASKS)}")
    if "heatmap" not in tasks:
        raise ConfigError("the head 'heatmap' cannot be left out: nodules are found by it")


def check_volume(image: Tensor, smallest: int, who: str, depth: int) -> None:
    """Raises DataError for images that are not (B, C, D, H, W), or are too small for `depth` halvings."""
    if image.dim() != 5:
        raise DataError(f"{who} takes images (B, 1, D, H, W), not {tuple(image.shape)}")
    if min(image.shape[2:]) < smallest:
        size = " x ".join(map(str, image.shape[2:]))
        raise DataError(
            f"{who} halves its input {depth} times and needs at least {smallest} voxels along every axis, the image "
            f"has {size}; take larger patches or a smaller depth"
        )


def _crop(values: Tensor, size: Sequence[int], stride: int) -> Tensor:
    z, y, x = (math.ceil(length / stride) for length in size)
    return values[:, :, :z, :y, :x]
