"""The default backbone: a residual 3-D U-Net (Lee et al., 2017), which computes features for dense heads."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import pairwise
from typing import Literal

import torch
from medtrain.errors import ConfigError, DataError
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from medtrain_plugins.nodule.model.heads import begin_at_prior

Norm = Literal["instance", "group", "batch"]
Activation = Literal["relu", "leaky_relu", "elu", "silu"]
OutputStride = Literal[1, 2]

GROUPS = 8


def make_norm(name: Norm, channels: int) -> nn.Module:
    """A normalisation layer with scale and shift; group norm has up to 8 groups."""
    match name:
        case "instance":
            return nn.InstanceNorm3d(channels, affine=True)
        case "group":
            return nn.GroupNorm(math.gcd(GROUPS, channels), channels)
        case "batch":
            return nn.BatchNorm3d(channels)
    raise ConfigError(f"norm is {name!r}; there are instance, group, batch")


def make_activation(name: Activation) -> nn.Module:
    """An activation layer."""
    match name:
        case "relu":
            return nn.ReLU(inplace=True)
        case "leaky_relu":
            return nn.LeakyReLU(0.01, inplace=True)
        case "elu":
            return nn.ELU(inplace=True)
        case "silu":
            return nn.SiLU(inplace=True)
    raise ConfigError(f"activation is {name!r}; there are relu, leaky_relu, elu, silu")


class ResidualBlock(nn.Module):
    """Two 3 x 3 x 3 convolutions with norm, added to the input (through 1 x 1 x 1 where the channels differ)."""

    def __init__(
        self, in_channels: int, out_channels: int, norm: Norm, activation: Activation, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv3d(in_channels, out_channels, 3, padding=1, bias=False),
            make_norm(norm, out_channels),
            make_activation(activation),
        )
        self.dropout = nn.Dropout3d(dropout)
        self.second = nn.Sequential(
            nn.Conv3d(out_channels, out_channels, 3, padding=1, bias=False), make_norm(norm, out_channels)
        )
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv3d(in_channels, out_channels, kernel_size=1, bias=False)
        self.activation = make_activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.activation(self.second(self.dropout(self.first(x))) + self.shortcut(x))
        return out


class Up(nn.Module):
    """Double the size, halve the channels, join with the encoder's features of that size."""

    def __init__(self, channels: int, norm: Norm, activation: Activation, dropout: float) -> None:
        super().__init__()
        self.upsample = nn.ConvTranspose3d(2 * channels, channels, kernel_size=2, stride=2)
        self.block = ResidualBlock(2 * channels, channels, norm, activation, dropout)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        out: Tensor = self.block(torch.cat([skip, self.upsample(x)], dim=1))
        return out


class ResidualUNet(nn.Module):
    """(B, 1, D, H, W), each axis a multiple of 2^depth -> features (B, base_filters, D / s, H / s, W / s).

    base_filters: channels of the finest level, doubled at each coarser one. depth: halvings of the image in all.
    dropout: of whole channels, in every block. deep_supervision: heatmaps of the coarser decoder levels, finest first,
    follow the features in training. gradient_checkpointing: activations inside the blocks are computed again in the
    backward pass instead of kept. output_stride: 2 starts with a halving convolution (4 x 4 x 4, so that an output
    voxel is centred on its 2 x 2 x 2 input voxels) and never returns to full size: several times faster and smaller.
    """

    def __init__(
        self,
        in_channels: int = 1,
        base_filters: int = 32,
        depth: int = 4,
        *,
        norm: Norm = "instance",
        activation: Activation = "leaky_relu",
        dropout: float = 0.0,
        deep_supervision: bool = False,
        gradient_checkpointing: bool = False,
        output_stride: OutputStride = 1,
    ) -> None:
        super().__init__()
        if output_stride not in (1, 2):
            raise ConfigError(f"output_stride is {output_stride}; there are 1 and 2")
        levels = depth - (output_stride == 2)
        if levels < 1 or base_filters < 1:
            raise ConfigError(
                f"depth {depth} and base_filters {base_filters}: a U-Net halves at least once below its output stride "
                f"({output_stride}), so depth is at least {output_stride}, and has at least one filter"
            )
        if not 0 <= dropout < 1:
            raise ConfigError(f"dropout is {dropout}; it is a probability below 1")
        self.norm, self.depth, self.gradient_checkpointing = norm, depth, gradient_checkpointing
        widths = [base_filters * 2**level for level in range(levels + 1)]
        settings = (norm, activation, dropout)
        self.stem: nn.Module = nn.Identity()
        first = in_channels
        if output_stride == 2:
            self.stem = nn.Sequential(
                nn.Conv3d(in_channels, base_filters, kernel_size=4, stride=2, padding=1, bias=False),
                make_norm(norm, base_filters),
                make_activation(activation),
            )
            first = base_filters
        self.encoders = nn.ModuleList([ResidualBlock(first, widths[0], *settings)])
        self.downs = nn.ModuleList()
        for before, width in pairwise(widths):
            self.downs.append(nn.Conv3d(before, width, kernel_size=2, stride=2))
            self.encoders.append(ResidualBlock(width, width, *settings))
        self.ups = nn.ModuleList(Up(width, *settings) for width in reversed(widths[:-1]))
        coarser = widths[1:-1] if deep_supervision else []
        self.deep_heads = nn.ModuleList(nn.Conv3d(width, 1, kernel_size=1) for width in coarser)
        for head in self.deep_heads:
            assert isinstance(head, nn.Conv3d)
            begin_at_prior(head)

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        self._check_bottleneck(image)
        x = self.stem(image)
        skips = [x := self._run(self.encoders[0], x)]
        for down, encoder in zip(self.downs, self.encoders[1:], strict=True):
            skips.append(x := self._run(encoder, down(x)))
        skips.pop()
        coarse: list[Tensor] = []
        for up in self.ups:
            x = self._run(up, x, skips.pop())
            coarse.insert(0, x)
        if not (self.training and len(self.deep_heads)):
            return x
        deep = [head(values) for head, values in zip(self.deep_heads, coarse[1:], strict=True)]
        return (x, *deep)

    def _run(self, block: nn.Module, *inputs: Tensor) -> Tensor:
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            again: Tensor = checkpoint(block, *inputs, use_reentrant=False, context_fn=lambda: _once(block))
            return again
        out: Tensor = block(*inputs)
        return out

    def _check_bottleneck(self, image: Tensor) -> None:
        """Raises an error if the bottleneck has one value per channel, which cannot be normalised."""
        voxels = math.prod(length // 2**self.depth for length in image.shape[2:])
        if self.norm == "batch":
            voxels *= image.shape[0]
        if self.training and self.norm in ("batch", "instance") and voxels == 1:
            size = " x ".join(map(str, image.shape[2:]))
            raise DataError(
                f"patches of {size} voxels are one voxel after {self.depth} halvings, too few for {self.norm} norm in "
                "training; take larger patches, a smaller depth, or norm 'group'"
            )


def _once(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts of the forward pass and of its recomputation, in which batch norm must not count the batch again."""
    return nullcontext(), _statistics_at_rest(block)


@contextmanager
def _statistics_at_rest(block: nn.Module) -> Iterator[None]:
    norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm3d)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        if norm.num_batches_tracked is not None:
            # Batch norm counts in place: use a copy.
            norm.num_batches_tracked = norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, tracked) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, tracked
