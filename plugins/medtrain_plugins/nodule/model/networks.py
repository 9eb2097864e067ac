"""The 3-D U-Net of Çiçek et al. (MICCAI 2016) with four linear heads: the network of published PIVOT settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from medtrain.errors import CheckpointError
from torch import Tensor, nn
from torch.nn import functional

from medtrain_plugins.nodule.model.heads import DetectorOutput, check_volume


class ConvBlock(nn.Sequential):
    """Twice: 3 x 3 x 3 convolution, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Conv3d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm3d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv3d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm3d(out_channels),
            nn.ReLU(inplace=True),
        )


class UNet3D(nn.Module):
    """(B, in_channels, D, H, W) -> (B, out_channels, D, H, W), any size from 2^depth voxels per axis.

    base_filters: channels of the first level, doubled at each of the `depth` further ones.
    """

    def __init__(self, in_channels: int = 1, out_channels: int = 32, base_filters: int = 32, depth: int = 4) -> None:
        super().__init__()
        widths = [base_filters * 2**level for level in range(depth + 1)]
        self.depth = depth
        self.encoders = nn.ModuleList(
            ConvBlock(before, width) for before, width in zip([in_channels, *widths], widths[:-1], strict=False)
        )
        self.pool = nn.MaxPool3d(2)
        self.bottleneck = ConvBlock(widths[-2] if depth else in_channels, widths[-1])
        self.upsamplers = nn.ModuleList(
            nn.ConvTranspose3d(2 * width, width, kernel_size=2, stride=2) for width in reversed(widths[:-1])
        )
        self.decoders = nn.ModuleList(ConvBlock(2 * width, width) for width in reversed(widths[:-1]))
        self.final = nn.Conv3d(base_filters, out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        check_volume(x, 2**self.depth, "the U-Net", self.depth)
        skips = []
        for encoder in self.encoders:
            x = encoder(x)
            skips.append(x)
            x = self.pool(x)
        x = self.bottleneck(x)
        for upsample, decoder, skip in zip(self.upsamplers, self.decoders, reversed(skips), strict=True):
            x = upsample(x)
            if x.shape[2:] != skip.shape[2:]:
                x = functional.interpolate(x, size=skip.shape[2:], mode="trilinear", align_corners=False)
            x = decoder(torch.cat([skip, x], dim=1))
        features: Tensor = self.final(x)
        return features


class ReferenceUNet(nn.Module):
    """The U-Net and its heads: 22,579,494 parameters, 126 state-dict entries with the defaults.

    Size and triage are means over the whole patch, so all nodules of a patch share them. It is kept for published
    settings and weights; prefer another network.
    """

    output_stride = 1
    deep_levels = 0
    tasks = ("heatmap", "log_diameter", "triage", "segmentation")

    def __init__(self, in_channels: int = 1, base_filters: int = 32, depth: int = 4) -> None:
        super().__init__()
        self.backbone = UNet3D(in_channels, base_filters, base_filters, depth)
        self.segmentation_head = nn.Conv3d(base_filters, 1, kernel_size=1)
        self.center_head = nn.Conv3d(base_filters, 1, kernel_size=1)
        self.size_head = nn.Conv3d(base_filters, 3, kernel_size=1)
        self.triage_head = nn.Conv3d(base_filters, 1, kernel_size=1)

    def heads(self, image: Tensor) -> dict[str, Tensor]:
        """image (B, C, D, H, W) -> logits `segmentation`, `center` (B, 1, D, H, W), `triage` (B, 1, 1, 1, 1), and
        `size` (B, 3, 1, 1, 1) mm."""
        features = self.backbone(image)
        return {
            "segmentation": self.segmentation_head(features),
            "center": self.center_head(features),
            "size": self.size_head(features).mean(dim=(2, 3, 4), keepdim=True),
            "triage": self.triage_head(features).mean(dim=(2, 3, 4), keepdim=True),
        }

    def forward(self, image: Tensor) -> DetectorOutput:
        """The same as dense maps, as of any other network; size and triage are constant."""
        found = self.heads(image)
        size = (-1, -1, *image.shape[2:])
        # Smooth and positive; nearly the identity from about 3 mm.
        log_diameter = functional.softplus(found["size"].float()).log()
        return DetectorOutput(
            heatmap=found["center"],
            offset=None,
            log_diameter=log_diameter.expand(size),
            triage=found["triage"].expand(size),
            segmentation=found["segmentation"],
        )


def import_reference_state(state: Mapping[str, Any], model: ReferenceUNet) -> dict[str, Tensor]:
    """The state dict of the same architecture with other names, renamed to those of `model`.

    Entries are matched in the order of their layers: convolutions with their batch norm, transposed convolutions, and
    the 1 x 1 x 1 ones, heads by their name (seg, center / centre, size, triage). Raises CheckpointError if they do not
    fit.
    """
    own = model.state_dict()
    given, wanted = _by_kind(state), _by_kind(own)
    renamed: dict[str, Tensor] = {}
    for kind, names in wanted.items():
        others = given.get(kind, [])
        if len(others) != len(names):
            raise CheckpointError(f"these weights have {len(others)} entries of {kind}, the network has {len(names)}")
        for name, other in zip(names, others, strict=True):
            if own[name].shape != state[other].shape:
                raise CheckpointError(
                    f"weights {other!r} have shape {tuple(state[other].shape)}, {name!r} of the network has "
                    f"{tuple(own[name].shape)}; base_filters and depth must be those of the weights"
                )
            renamed[name] = state[other]
    if extra := sorted(set(given) - set(wanted)):
        raise CheckpointError(f"these weights have entries that the network has not: {given[extra[0]][0]!r}")
    return {name: renamed[name] for name in own}


HEADS = {"seg": "segmentation head", "cent": "center head", "size": "size head", "triage": "triage head"}


def _by_kind(state: Mapping[str, Any]) -> dict[str, list[str]]:
    """Names of the entries in order, by the kind of layer they belong to."""
    kinds: dict[str, list[str]] = {}
    for name, value in state.items():
        layer, _, what = name.rpartition(".")
        weight = state.get(f"{layer}.weight")
        if weight is None or not isinstance(value, Tensor):
            raise CheckpointError(f"the weights have an entry {name!r} that is part of no layer of this network")
        if weight.dim() == 1:
            kind = "batch norm"
        else:
            kind = {1: "the last layer", 2: "upsampling"}.get(weight.shape[-1], "convolutions")
        if kind == "the last layer":
            kind = next((head for part, head in HEADS.items() if part in layer.lower()), kind)
        kinds.setdefault(f"{kind} ({what})", []).append(name)
    return kinds
