"""MammoRegNet under the loop's contract: a batch of pairs in, both steps of the registration out."""

from __future__ import annotations

from typing import Any, Literal

from medtrain import TensorModel
from torch import Tensor, nn

PixelScale = Literal["unit", "raw"]

FIXED, MOVING = "current_image", "previous_image"
RAW = 65535  # the brightest 16-bit pixel


class PairRegistration(TensorModel):
    """`model(batch) -> dict` around a MammoRegNet; checkpoints contain only the MammoRegNet's state dict.

    forward(batch) registers `previous_image` to `current_image`, both (B, 1, H, W) float32 in [0, 1], H and W multiples
    of 16. It returns `warped` and `affined` (B, 1, H, W), the previous image after both steps and after the affine step
    alone; `flow` (B, 2, H, W) in pixels, **channel 0 = dy (rows)**: from each pixel of the current image to the same
    tissue in the previous one; `affine_para` (B, 6).

    pixel_scale: "raw" gives the network 16-bit values, 0 to 65535, as the published training code does; "unit" gives it
    [0, 1], as the risk models do.
    """

    def __init__(self, network: nn.Module, pixel_scale: PixelScale = "unit") -> None:
        super().__init__(network, input=FIXED, output="warped")
        self.scale = RAW if pixel_scale == "raw" else 1

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        fixed, moving = batch[FIXED] * self.scale, batch[MOVING] * self.scale
        warped, flow, affined, affine_para = self.module(fixed, moving)
        return {
            "warped": warped / self.scale,
            "flow": flow,
            "affined": affined / self.scale,
            "affine_para": affine_para,
        }
