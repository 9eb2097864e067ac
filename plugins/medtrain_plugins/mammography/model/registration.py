"""MammoRegNet: registers a prior mammogram to the current one, affine first, then level by level.

Source: the registration network of ImgFeatAlign, "Reconsidering explicit longitudinal mammography alignment for
enhanced breast cancer risk prediction", 2025. Module names, with their capitals, are those of trained checkpoints.
"""

from __future__ import annotations

import torch
from medtrain.errors import DataError
from torch import Tensor, nn
from torch.nn import functional as F

from medtrain_plugins.mammography.model.swin import SwinStage

STRIDE = 16


class ConvBlock(nn.Module):
    """Twice: 3x3 convolution, LeakyReLU(0.2), instance norm without parameters (norm after activation)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.Conv_1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
        self.Conv_2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.instance_norm(F.leaky_relu(self.Conv_1(x), 0.2))
        return F.instance_norm(F.leaky_relu(self.Conv_2(x), 0.2))


class Encoder(nn.Module):
    """Five levels of features: 8, 16, 32, 64, 128 channels at 1, 1/2, 1/4, 1/8, 1/16 of the resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_1 = ConvBlock(1, 8)
        self.conv_2 = ConvBlock(8, 16)
        self.conv_3 = ConvBlock(16, 32)
        self.conv_4 = ConvBlock(32, 64)
        self.conv_5 = ConvBlock(64, 128)

    def forward(self, x: Tensor) -> list[Tensor]:
        levels = [self.conv_1(x)]
        for block in (self.conv_2, self.conv_3, self.conv_4, self.conv_5):
            levels.append(block(F.avg_pool2d(levels[-1], 2)))
        return levels


class UpSample(nn.Module):
    """Doubles the resolution and halves the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.up_conv = nn.ConvTranspose2d(channels, channels // 2, kernel_size=2, stride=2)
        self.norm = nn.LayerNorm(channels // 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.up_conv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return out


class RegHead(nn.Module):
    """3x3 convolution to a residual flow (B, 2, H, W); starts near the zero displacement."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reg_head = nn.Conv2d(channels, 2, kernel_size=3, padding=1)
        nn.init.normal_(self.reg_head.weight, std=1e-5)
        assert self.reg_head.bias is not None
        nn.init.zeros_(self.reg_head.bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.reg_head(x)
        return out


def affine_grid(affine_para: Tensor, size: torch.Size) -> Tensor:
    """Sampling grid (B, H, W, 2), (x, y) in [-1, 1], of the matrices [I|0] + affine_para.view(2, 3).

    Runs outside autocast: coordinates in bfloat16 would be wrong by several pixels.
    """
    with torch.autocast(affine_para.device.type, enabled=False):
        identity = torch.eye(2, 3, dtype=affine_para.dtype, device=affine_para.device)
        return F.affine_grid(affine_para.view(-1, 2, 3) + identity, list(size), align_corners=True)


def pixel_grid(size: tuple[int, int], like: Tensor) -> Tensor:
    """Row and column of every pixel, (2, H, W), in the dtype and on the device of `like`."""
    sides = [torch.arange(side, dtype=like.dtype, device=like.device) for side in size]
    return torch.stack(torch.meshgrid(sides, indexing="ij"))


class AffineHead(nn.Module):
    """Features (B, C, H, W) -> affine parameters (B, 6) and the flow (B, 2, H, W) they stand for.

    Parameters are differences from the identity in (-1, 1), in normalised coordinates (x, y).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.affine_head_1 = nn.Linear(channels, channels // 2, bias=False)
        self.affine_head_2 = nn.Linear(channels // 2, 6, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        height, width = x.shape[-2:]
        with torch.autocast(x.device.type, enabled=False):
            pooled = x.to(self.affine_head_1.weight.dtype).mean(dim=(2, 3))
            para = torch.tanh(self.affine_head_2(F.relu(self.affine_head_1(pooled))))
            grid = affine_grid(para, x.shape).flip(-1).permute(0, 3, 1, 2)
            last = torch.tensor([height - 1, width - 1], dtype=para.dtype, device=para.device).view(2, 1, 1)
            return para, (grid / 2 + 0.5) * last - pixel_grid((height, width), para)


def spatial_transform(x: Tensor, flow: Tensor) -> Tensor:
    """An image sampled where a flow points: `out[i, j] = x[i + dy, j + dx]`, bilinear, zero outside.

    x (B, C, H, W); flow (B, 2, H, W) in pixels, **channel 0 = dy (rows), channel 1 = dx (columns)**: the
    reverse order of `medtrain_plugins.mammography.layers.warp`, and one fused operation for full-size images.
    """
    height, width = x.shape[-2:]
    last = torch.tensor([height - 1, width - 1], dtype=flow.dtype, device=flow.device).view(2, 1, 1)
    grid = 2 * ((pixel_grid((height, width), flow) + flow) / last - 0.5)
    return _sample(x, grid.permute(0, 2, 3, 1).flip(-1))


def affine_transform(x: Tensor, affine_para: Tensor) -> Tensor:
    """An image (B, C, H, W) sampled with affine parameters (B, 6), see `AffineHead`."""
    return _sample(x, affine_grid(affine_para, x.shape))


def _sample(x: Tensor, grid: Tensor) -> Tensor:
    # The dtype of the grid is used: under autocast features may be bfloat16, coordinates never are.
    return F.grid_sample(x.to(grid.dtype), grid, mode="bilinear", padding_mode="zeros", align_corners=True)


def upsample_flow(flow: Tensor) -> Tensor:
    """A flow (B, 2, H, W) in pixels at twice the resolution, (B, 2, 2H, 2W)."""
    return F.interpolate(flow * 2, scale_factor=2, mode="bilinear", align_corners=True)


class Decoder(nn.Module):
    """Estimates the flow from coarse to fine; level l has 16 * 2**(l - 1) channels at 1 / 2**(l - 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.backdim_5, self.trans_5 = nn.Conv2d(256, 256, 1), SwinStage(256)
        self.backdim_4, self.trans_4 = nn.Conv2d(256, 128, 1), SwinStage(128)
        self.backdim_3, self.trans_3 = nn.Conv2d(128, 64, 1), SwinStage(64)
        self.backdim_2, self.trans_2 = nn.Conv2d(64, 32, 1), SwinStage(32)
        self.conv_1 = ConvBlock(32, 16)
        self.upsample_4, self.upsample_3 = UpSample(256), UpSample(128)
        self.upsample_2, self.upsample_1 = UpSample(64), UpSample(32)
        self.reghead_5 = AffineHead(256)
        self.reghead_4, self.reghead_3 = RegHead(128), RegHead(64)
        self.reghead_2, self.reghead_1 = RegHead(32), RegHead(16)

    def forward(self, fixed: list[Tensor], moving: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Features of both images, fine to coarse -> flow (B, 2, H, W) and affine parameters (B, 6)."""
        fix1, fix2, fix3, fix4, fix5 = fixed
        mov1, mov2, mov3, mov4, mov5 = moving

        x = self.trans_5(self.backdim_5(torch.cat([fix5, mov5], dim=1)))
        affine_para, flow = self.reghead_5(x)

        up = upsample_flow(flow)
        x = torch.cat([fix4, self.upsample_4(x), spatial_transform(mov4, up)], dim=1)
        x = self.trans_4(self.backdim_4(x))
        flow = self.reghead_4(x) + up

        up = upsample_flow(flow)
        x = torch.cat([fix3, self.upsample_3(x), spatial_transform(mov3, up)], dim=1)
        x = self.trans_3(self.backdim_3(x))
        flow = self.reghead_3(x) + up

        up = upsample_flow(flow)
        x = torch.cat([fix2, self.upsample_2(x), spatial_transform(mov2, up)], dim=1)
        x = self.trans_2(self.backdim_2(x))
        flow = self.reghead_2(x) + up

        up = upsample_flow(flow)
        x = self.conv_1(torch.cat([fix1, self.upsample_1(x), spatial_transform(mov1, up)], dim=1))
        return self.reghead_1(x) + up, affine_para


class MammoRegNet(nn.Module):
    """Registration network: 4,836,136 parameters, 282 state-dict entries.

    forward(fixed, moving): images (B, 1, H, W) of float pixels in [0, 1], H and W multiples of 16. Returns
    `(warped, flow, affined, affine_para)`: the moving image sampled with the flow (B, 1, H, W); the flow (B,
    2, H, W) in pixels, channel 0 = rows; the moving image after the affine step alone; its parameters (B, 6).

    Raises DataError for images of different shapes, or with sides that are not multiples of 16.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Encoder = Encoder()
        self.Decoder = Decoder()

    def forward(self, fixed: Tensor, moving: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        check_pair(fixed, moving)
        # One pass for both images: the encoder does not mix samples.
        levels = [level.chunk(2) for level in self.Encoder(torch.cat([fixed, moving]))]
        flow, affine_para = self.Decoder([fix for fix, _ in levels], [mov for _, mov in levels])
        warped = spatial_transform(moving, flow)
        return warped, flow, affine_transform(moving, affine_para), affine_para


def check_pair(fixed: Tensor, moving: Tensor) -> None:
    """Raises DataError unless both are (B, 1, H, W) of one shape, with sides that are multiples of 16."""
    if fixed.shape != moving.shape or fixed.ndim != 4 or fixed.shape[1] != 1:
        raise DataError(
            f"MammoRegNet registers two batches of one-channel images of the same shape (B, 1, H, W); "
            f"fixed is {tuple(fixed.shape)}, moving is {tuple(moving.shape)}"
        )
    height, width = fixed.shape[-2:]
    if height % STRIDE or width % STRIDE:
        raise DataError(
            f"images are {height} x {width} pixels, but MammoRegNet needs height and width to be multiples "
            f"of {STRIDE}: resize or pad them, for example to "
            f"{-(-height // STRIDE) * STRIDE} x {-(-width // STRIDE) * STRIDE}"
        )
