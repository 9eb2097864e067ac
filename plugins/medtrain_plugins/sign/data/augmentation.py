"""Augmentation of whole clips, on the device: mirror image, rotation, zoom, shift, and random frame times.

The settings are those of published training. A clip is changed before it is sampled, so that interpolation between a
missing and a detected hand uses the changed frames.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from medtrain_plugins.sign.data.landmarks import ANCHORS, CHANNELS, GROUPS, LANDMARKS, MIRROR
from medtrain_plugins.sign.data.sampling import Interpolation, positions, sample

FlipMode = Literal["corrected", "reference"]

_CHOICES = ("flip", "affine", "angle", "scale", "shift_x", "shift_y")
_HANDS_EXCHANGED = (*range(142), *range(163, 184), *range(142, 163))


class ClipAugmentation:
    """A `medtrain.data.Augmentation` of clips: `frames`, `length` and `adjusted` of a batch become `keypoints`.

    In order, one draw for all frames and landmarks of a clip:

    flip    with `flip_p`: the mirror image, see `mirror`;
    affine  with `affine_p`: x and y of what was detected are rotated by up to `max_angle` degrees either way, scaled
            by a factor in `scale`, moved by up to `max_shift` along each axis; z and v stay;
    times   `count` frames, each drawn from the middle `jitter` of one of `count` equal parts of the clip.

    Missing groups stay zero. Computed in float32, under autocast too; nothing is read back from the device.
    """

    def __init__(
        self,
        count: int = 50,
        interpolation: Interpolation = "reference",
        *,
        jitter: float = 0.8,
        flip_p: float = 0.5,
        affine_p: float = 0.5,
        flip_mode: FlipMode = "corrected",
        max_angle: float = 15.0,
        scale: tuple[float, float] = (0.85, 1.15),
        max_shift: float = 0.1,
    ) -> None:
        self.count, self.interpolation = count, interpolation
        self.jitter, self.flip_p, self.affine_p, self.flip_mode = jitter, flip_p, affine_p, flip_mode
        self.max_angle, self.scale, self.max_shift = max_angle, scale, max_shift

    def draw(self, generator: torch.Generator) -> dict[str, Tensor]:
        """`uniform` (6 + count,) in [0, 1): the choices, then the times; the same number for all settings."""
        return {"uniform": torch.rand(len(_CHOICES) + self.count, generator=generator)}

    def __call__(self, batch: dict[str, Any], draws: dict[str, Tensor]) -> dict[str, Any]:
        """The batch with `keypoints` (B, count, 736) float32 in place of `frames`."""
        lengths = batch["length"]
        frames = batch["frames"].view(-1, LANDMARKS, CHANNELS)
        chosen = dict(zip(_CHOICES, draws["uniform"].unbind(dim=1), strict=False))

        def of_clip(values: Tensor) -> Tensor:
            """The values drawn for a clip, repeated for each of its frames."""
            return values.repeat_interleave(lengths, dim=0, output_size=len(frames))

        frames = mirror_where(of_clip(chosen["flip"] < self.flip_p), frames, all(batch["adjusted"]), self.flip_mode)
        move_(frames, *map(of_clip, self.movement(chosen)))

        places = positions(lengths, self.count, 0.5 + self.jitter * (draws["uniform"][:, len(_CHOICES) :] - 0.5))
        keypoints = sample(frames.flatten(1), lengths, places, self.interpolation)
        return {**{key: value for key, value in batch.items() if key != "frames"}, "keypoints": keypoints}

    def movement(self, chosen: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Rotation with scale, and shift, as complex numbers (B,); 1 and 0 where no affine change was chosen."""
        applied = (chosen["affine"] < self.affine_p).float()
        low, high = self.scale
        scale = 1 + applied * (low + chosen["scale"] * (high - low) - 1)
        angle = applied * (2 * chosen["angle"] - 1) * math.radians(self.max_angle)
        across, down = ((2 * chosen[name] - 1) * self.max_shift * applied for name in ("shift_x", "shift_y"))
        return torch.polar(scale, angle), torch.complex(across, down)


def mirror_where(flip: Tensor, frames: Tensor, adjusted: bool, mode: FlipMode = "corrected") -> Tensor:
    """A copy of frames (N, 184, 4), mirrored where `flip` (N,) is True; see `mirror`."""
    if frames.is_cuda:  # selecting these frames by index would have to wait for the device
        return torch.where(flip[:, None, None], mirror(frames, adjusted, mode), frames)
    which = flip.nonzero()[:, 0]
    return frames.index_copy(0, which, mirror(frames[which], adjusted, mode))


def mirror(frames: Tensor, adjusted: bool, mode: FlipMode = "corrected") -> Tensor:
    """The mirror image of frames (N, 184, 4).

    adjusted: whether they are centred and scaled, or in image coordinates. "corrected": every landmark is exchanged
    with its partner on the other side, x becomes -x (1 - x in image coordinates), and pose and face of adjusted frames
    are centred on their anchor again, which is now another landmark. Applied twice it is the identity. "reference", as
    published models were trained: x becomes -x and the hands are exchanged, while the landmarks of pose and face are
    not.
    """
    partners = torch.tensor(MIRROR if mode == "corrected" else _HANDS_EXCHANGED, device=frames.device)
    mirrored = frames.index_select(1, partners)
    mirrored[..., 0] *= -1
    if mode == "reference":
        return mirrored
    if not adjusted:
        for rows, seen in _seen(mirrored):
            mirrored[:, rows, 0] += seen[:, None]
        return mirrored
    for group in ("pose", "face"):
        mirrored[:, GROUPS[group], :3] -= mirrored[:, ANCHORS[group], None, :3].clone()
    return mirrored


def move_(frames: Tensor, factor: Tensor, shift: Tensor) -> None:
    """Moves detected groups of frames (N, 184, 4) in place: x + iy becomes factor (x + iy) + shift."""
    xy = torch.view_as_complex(frames.view(-1, LANDMARKS, 2, 2)[:, :, 0])
    xy *= factor[:, None]
    for rows, seen in _seen(frames):
        xy[:, rows] += (seen * shift)[:, None]


def _seen(frames: Tensor) -> list[tuple[slice, Tensor]]:
    """Rows of each group, and 1 for frames in which it was detected, else 0."""
    detected = frames[..., 3] != 0
    return [(rows, detected[:, rows].any(dim=1).to(frames.dtype)) for rows in GROUPS.values()]
