"""Augmentation of whole exams, on the device: crop, shift and zoom, brightness and contrast, gamma, flip.

The settings are those of the LMV-Net benchmark. The benchmark sampled separately for every image, which added false
changes between prior and current exam and false differences between views. Here one draw is used for all images of a
sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from medtrain.errors import ConfigError, DataError


class ExamAugmentation:
    """A `medtrain.data.Augmentation` of the images under `image_keys`, float32 with values in [0, 1].

    Each is (B, 1, H, W), (B, V, 1, H, W) or (B, T, V, 1, H, W), with one B, H and W for all keys. In order:

    crop    a window of `crop_size` (fractions of height, width), anywhere, enlarged to H x W again;
    affine  vertical shift up to `max_shift` of the height, zoom by `scale` about the centre, zeros outside;
    jitter  brightness (b x) and contrast (c x + (1 - c) mean of that image) in random order, b and c within
            1 +- `brightness` and 1 +- `contrast`, each clamped to [0, 1]; the benchmark's saturation and hue
            are left out, they do nothing to one channel;
    gamma   gain * x ** exponent with `gain` and exponent from `gamma`, clamped to [0, 1];
    flip    left-right mirror; of the five risk models only LMV-Net flips, the others pass `flip_p=0`.

    `*_p` are their probabilities. Crop and affine are one bilinear resampling (the benchmark interpolates
    twice, once by nearest neighbour); so after a crop a shift uncovers what lies beside the window, and zeros
    only where the image ends.

    Samples are changed one by one: a sample comes out with the same bits whatever batch, process or position
    it is in (on CPU: for one number of threads), and as it went in, to the bit, if nothing was drawn for it.
    Computed in float32, under autocast too; nothing is read back from the device.

    Source: LMV-Net's published training chain (kornia `AugmentationSequential`), and kornia's definitions of
    brightness, contrast and gamma.
    """

    def __init__(
        self,
        image_keys: Sequence[str],
        *,
        crop_p: float = 0.2,
        crop_size: tuple[float, float] = (1946 / 2048, 1581 / 1664),
        affine_p: float = 0.5,
        max_shift: float = 0.1,
        scale: tuple[float, float] = (1.0, 1.1),
        jitter_p: float = 0.5,
        brightness: float = 0.4,
        contrast: float = 0.4,
        gamma_p: float = 0.5,
        gamma: tuple[float, float] = (0.8, 1.2),
        gain: tuple[float, float] = (0.9, 1.05),
        flip_p: float = 0.5,
    ) -> None:
        """Raises ConfigError naming the setting that is out of range."""
        if isinstance(image_keys, str) or not image_keys:
            raise ConfigError(f"augmentation: image_keys must list keys of the batch, not {image_keys!r}")
        chances = {"crop": crop_p, "affine": affine_p, "jitter": jitter_p, "gamma": gamma_p, "flip": flip_p}
        fractions = {"max_shift": max_shift, "brightness": brightness, "contrast": contrast}
        fractions.update({f"{name}_p": chance for name, chance in chances.items()})
        for name, value in fractions.items():
            if not 0 <= value <= 1:
                raise ConfigError(f"augmentation: {name} must lie in [0, 1], not {value}")
        if not all(0 < size <= 1 for size in crop_size):
            raise ConfigError(f"augmentation: crop_size must be two fractions in (0, 1], not {crop_size}")
        ranges: dict[str, tuple[float, float]] = {"scale": scale, "gamma": gamma, "gain": gain}
        for name, (low, high) in ranges.items():
            if not 0 < low <= high:
                raise ConfigError(f"augmentation: {name} must be 0 < low <= high, not ({low}, {high})")

        self.image_keys = tuple(image_keys)
        self.crop_size = crop_size
        choices = chances | {"contrast_first": 0.5}
        self._choices = tuple(choices)
        self._probability = torch.tensor([*choices.values()])
        # Per number drawn: the choice it belongs to, its value if that was not chosen, lowest, highest.
        numbers: dict[str, tuple[str, float, float, float]] = {
            "crop_top": ("crop", 0.0, 0.0, 1.0),  # 0: the window starts at the first row, 1: ends at the last
            "crop_left": ("crop", 0.0, 0.0, 1.0),
            "shift": ("affine", 0.0, -max_shift, max_shift),  # downwards, as a fraction of the height
            "scale": ("affine", 1.0, *scale),
            "brightness": ("jitter", 1.0, 1 - brightness, 1 + brightness),
            "contrast": ("jitter", 1.0, 1 - contrast, 1 + contrast),
            "exponent": ("gamma", 1.0, *gamma),
            "gain": ("gamma", 1.0, *gain),
        }
        self._numbers = tuple(numbers)
        self._choice_of_number = torch.tensor([self._choices.index(row[0]) for row in numbers.values()])
        self._neutral, self._low, highest = torch.tensor([row[1:] for row in numbers.values()]).unbind(1)
        self._width = highest - self._low

    def draw(self, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """What happens to one sample: a bool per choice, a float32 per number (neutral if not chosen), 0-dim.

        Takes the same 14 numbers from `generator` whatever the settings.
        """
        uniform = torch.rand(len(self._choices) + len(self._numbers), generator=generator)
        chosen = uniform[: len(self._choices)] < self._probability
        numbers = self._low + uniform[len(self._choices) :] * self._width
        numbers = torch.where(chosen[self._choice_of_number], numbers, self._neutral)
        return dict(zip((*self._choices, *self._numbers), (*chosen, *numbers), strict=True))

    def __call__(self, batch: dict[str, Any], draws: dict[str, torch.Tensor]) -> dict[str, Any]:
        """A new batch with new images; `batch` and its other entries are left alone.

        `draws`: those of `draw`, stacked to (B,), on the images' device. Raises DataError naming the key whose
        images are unusable.
        """
        images = [self._images(batch, key) for key in self.image_keys]
        size = images[0].shape[-2:]
        changed = [torch.empty_like(image) for image in images]
        for i in range(len(images[0])):
            draw = {name: values[i] for name, values in draws.items()}
            parts = [image[i].reshape(-1, *size) for image in images]
            exam = _retouch(self._resample(torch.cat(parts), draw), draw)
            for new, part in zip(changed, torch.split_with_sizes(exam, [*map(len, parts)]), strict=True):
                new[i] = part.view(new.shape[1:])
        return batch | dict(zip(self.image_keys, changed, strict=True))

    def _images(self, batch: dict[str, Any], key: str) -> torch.Tensor:
        """The images under `key`, after the checks that need no look at their values."""
        if key not in batch:
            raise DataError(f"augmentation: the batch has no images {key!r}; its keys are {', '.join(batch)}")
        image, first = batch[key], batch[self.image_keys[0]]
        if not isinstance(image, torch.Tensor) or image.dtype != torch.float32:
            found = image.dtype if isinstance(image, torch.Tensor) else type(image).__name__
            raise DataError(f"augmentation: images {key!r} must be float32 with values in [0, 1], not {found}")
        if image.dim() not in (4, 5, 6) or image.shape[-3] != 1:
            raise DataError(
                f"augmentation: images {key!r} must be (B, 1, H, W), (B, V, 1, H, W) or (B, T, V, 1, H, W), "
                f"not {tuple(image.shape)}"
            )
        if len(image) != len(first) or image.shape[-2:] != first.shape[-2:]:
            raise DataError(
                f"augmentation: all images must have one B, H and W, but {key!r} is {tuple(image.shape)} "
                f"and {self.image_keys[0]!r} is {tuple(first.shape)}"
            )
        return image

    def _resample(self, exam: torch.Tensor, draw: dict[str, torch.Tensor]) -> torch.Tensor:
        """`exam` (images, H, W) cropped, moved and zoomed by one bilinear lookup, then mirrored."""
        size = exam.shape[1:]
        crop_height, crop_width = (torch.where(draw["crop"], fraction, 1.0) for fraction in self.crop_size)
        # No rotation, no shear: rows and columns are looked up independently, so two vectors make the grid.
        rows = _source(size[0], crop_height, draw["crop_top"], draw["shift"], draw["scale"])
        columns = _source(size[1], crop_width, draw["crop_left"], 0.0, draw["scale"])
        grid = torch.stack((columns.expand(size), rows[:, None].expand(size)), dim=-1)
        # The images go in as channels of one picture: each place is worked out once for all of them.
        found = F.grid_sample(exam[None], grid[None], padding_mode="zeros", align_corners=False)[0]
        # Looking up every pixel at its own place would round: what is not moved keeps its bits, mirrored too.
        exam = torch.where(draw["crop"] | draw["affine"], found, exam)
        return torch.where(draw["flip"], exam.flip(-1), exam)


def _source(
    size: int, window: torch.Tensor, corner: torch.Tensor, shift: torch.Tensor | float, scale: torch.Tensor
) -> torch.Tensor:
    """Where along one axis each of `size` output pixels is looked up, (size,); the image spans -1 to 1.

    Undoes the shift by a fraction of the size, the scale about the centre, and the enlarged crop of the
    fraction `window` at `corner` (0 = first, 1 = last possible place), in this order.
    """
    centres = (2 * torch.arange(size, device=window.device) + 1) / size - 1
    before_affine = (centres - 2 * shift) / scale
    return window * before_affine + (1 - window) * (2 * corner - 1)


def _retouch(exam: torch.Tensor, draw: dict[str, torch.Tensor]) -> torch.Tensor:
    """`exam` (images, H, W) with brightness, contrast and gamma changed."""
    from kornia.enhance import (
        adjust_brightness_accumulative,
        adjust_contrast_with_mean_subtraction,
        adjust_gamma,
    )

    # What was not chosen has the factor or exponent 1 and changes nothing; so the random order needs no branch
    # either: contrast, brightness, contrast, with one contrast being 1.
    before = torch.where(draw["contrast_first"], draw["contrast"], 1.0)
    after = torch.where(draw["contrast_first"], 1.0, draw["contrast"])
    toned = exam.clamp(0, 1)[:, None]
    toned = adjust_contrast_with_mean_subtraction(toned, before)
    toned = adjust_brightness_accumulative(toned, draw["brightness"])
    toned = adjust_contrast_with_mean_subtraction(toned, after)
    toned = adjust_gamma(toned, draw["exponent"], draw["gain"])
    return torch.where(draw["jitter"] | draw["gamma"], toned[:, 0], exam)
