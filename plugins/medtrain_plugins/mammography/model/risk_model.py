"""The base of the family's risk models: heads, a score, an encoder, frozen parts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

import torch
from medtrain.errors import DataError
from torch import Tensor, nn

from medtrain_plugins.mammography.model.backbone import STRIDE

Head = tuple[Tensor, Tensor, Tensor]
InputNorm = Literal["none", "mirai"]

# The input that Mirai's weights were trained with: standardised 16-bit pixels.
MIRAI_MEAN, MIRAI_STD = 7047.99, 12005.5

PIXELS_AT_ONCE = 2**18


class BaseRiskModel(nn.Module, ABC):
    """`model(batch) -> dict` of outputs, heads for the loss, and one score per follow-up year.

    head_weights: name of a head -> its weight in the total loss. encoder_name, registration_name: the dotted names of
    the sub-networks that may be pretrained; "" without registration. input_norm: how images are normalised for the
    encoder.
    """

    head_weights: ClassVar[dict[str, float]]
    encoder_name: ClassVar[str]
    registration_name: ClassVar[str] = ""

    def __init__(self, input_norm: InputNorm = "none") -> None:
        super().__init__()
        self.input_norm = input_norm
        self._frozen: set[str] = set()

    @abstractmethod
    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Outputs by name, from a whole batch."""

    @staticmethod
    @abstractmethod
    def risk_heads(outputs: dict[str, Any], batch: dict[str, Any]) -> dict[str, Head]:
        """Heads by name: (logits (B, 5), target (B, 5), mask (B, 5), 1 where the year is known)."""

    @staticmethod
    @abstractmethod
    def primary_risk(outputs: dict[str, Any]) -> Tensor:
        """Cumulative risk within 1 to 5 years, (B, 5) float probabilities, for the metrics."""

    def features(self, images: Tensor) -> Tensor:
        """Grey images (N, 1, H, W) in [0, 1] -> the encoder's features (N, C, H/32, W/32)."""
        if self.input_norm == "mirai":
            images = (images * 65535 - MIRAI_MEAN) / MIRAI_STD
        learns = torch.is_grad_enabled() and self.encoder_name not in self._frozen
        if learns or self.get_submodule(self.encoder_name).training:  # batch norms see all images together
            features: Tensor = self.run(self.encoder_name, images.expand(-1, 3, -1, -1))
            return features
        return torch.cat([self.run(self.encoder_name, part.expand(-1, 3, -1, -1)) for part in in_turn(images)])

    def flow(self, current: Tensor, previous: Tensor) -> Tensor:
        """The flow of the registration network, (N, 2, H, W) in pixels, channel 0 = rows.

        It points from each pixel of the current images to the same tissue in the previous ones.
        """
        pairs = zip(in_turn(current), in_turn(previous), strict=True)
        return torch.cat([self.run(self.registration_name, *pair)[1] for pair in pairs])

    def freeze(self, name: str) -> None:
        """Freezes a sub-network: no gradients, and always in eval mode, whatever `train` sets.

        In train mode its batch norms would still collect statistics, and change it without gradients.
        """
        self.get_submodule(name).requires_grad_(False).eval()
        self._frozen.add(name)

    def run(self, name: str, *inputs: Tensor) -> Any:
        """The output of a sub-network; a frozen one runs without autograd."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and name not in self._frozen):
            return self.get_submodule(name)(*inputs)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for name in self._frozen:
            self.get_submodule(name).eval()
        return self


def in_turn(images: Tensor) -> tuple[Tensor, ...]:
    """Applies a network to some images (N, 1, H, W) at a time, large ones one by one, to save memory.

    The result of an image must not depend on the others, and there must be no backward pass.
    """
    height, width = images.shape[-2:]
    parts: tuple[Tensor, ...] = torch.split(images, max(1, PIXELS_AT_ONCE // (height * width)))
    return parts


def check_images(batch: dict[str, Any], keys: Sequence[str], model: str, leading: tuple[int | None, ...] = ()) -> None:
    """Raises DataError unless the batch has images of one shape (B, *leading, 1, H, W), sides multiples of 32.

    model: the name in messages. leading: sizes of the dimensions between batch and channel, None for any.
    """
    wanted = ", ".join(["B", *("N" if size is None else str(size) for size in leading), "1, H, W"])
    missing = [key for key in keys if key not in batch]
    if missing:
        raise DataError(f"{model} needs the images {', '.join(keys)} ({wanted}); the batch has no {', '.join(missing)}")
    shapes = {key: tuple(batch[key].shape) for key in keys}
    shape = shapes[keys[0]]
    expected = (None, *leading, 1, None, None)
    fits = len(shape) == len(expected) and all(w in (None, s) for w, s in zip(expected, shape, strict=True))
    if len(set(shapes.values())) > 1 or not fits:
        listing = ", ".join(f"{key} {found}" for key, found in shapes.items())
        raise DataError(f"{model} needs images of one shape ({wanted}); the batch has {listing}")
    height, width = shape[-2:]
    if height % STRIDE or width % STRIDE:
        raise DataError(
            f"images are {height} x {width} pixels, but {model} needs height and width to be multiples of "
            f"{STRIDE} (its features are that much coarser): resize or pad them, for example to "
            f"{-(-height // STRIDE) * STRIDE} x {-(-width // STRIDE) * STRIDE}"
        )
