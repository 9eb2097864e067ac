"""The 184 landmarks of a frame: their groups, mirror partners, centring and scaling.

A frame is (184, 4): x, y, z, v of 6 pose, 136 face, 21 right-hand and 21 left-hand landmarks of MediaPipe. x and y are
fractions of the image, z is relative, v is the visibility (pose) or 1 (face, hands). A group that was not detected is
all zero, with v. "Adjusted" frames are centred and scaled group by group; "raw" ones are not.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Frames = npt.NDArray[Any]
Normalisation = Literal["adjusted", "raw", "unknown"]

LANDMARKS, CHANNELS = 184, 4
FEATURES = LANDMARKS * CHANNELS
MAX_SIGN = 502

GROUPS = {"pose": slice(0, 6), "face": slice(6, 142), "rh": slice(142, 163), "lh": slice(163, 184)}
POSE = (11, 12, 13, 14, 15, 16)  # shoulders, elbows, wrists; left, right of each
HAND_LANDMARKS = 21

# Points of MediaPipe's face mesh on the midline, and pairs of mirror images: together the contours (oval, lips, eyes,
# brows) and the irises. In a frame they are in ascending order.
_FACE_MIDDLE = (0, 10, 13, 14, 17, 152)
_FACE_PAIRS = """
    7-249 21-251 33-263 37-267 39-269 40-270 46-276 52-282 53-283 54-284 55-285 58-288 61-291 63-293 65-295 66-296
    67-297 70-300 78-308 80-310 81-311 82-312 84-314 87-317 88-318 91-321 93-323 95-324 103-332 105-334 107-336 109-338
    127-356 132-361 133-362 136-365 144-373 145-374 146-375 148-377 149-378 150-379 153-380 154-381 155-382 157-384
    158-385 159-386 160-387 161-388 162-389 163-390 172-397 173-398 176-400 178-402 181-405 185-409 191-415 234-454
    246-466 469-476 470-475 471-474 472-477
"""
_face_mirror = {point: point for point in _FACE_MIDDLE}
for _pair in _FACE_PAIRS.split():
    _left, _right = map(int, _pair.split("-"))
    _face_mirror |= {_left: _right, _right: _left}
FACE = tuple(sorted(_face_mirror))


def _mirror() -> tuple[int, ...]:
    face = [GROUPS["face"].start + FACE.index(_face_mirror[point]) for point in FACE]
    return (1, 0, 3, 2, 5, 4, *face, *range(163, 184), *range(142, 163))


# Row i of a mirrored frame shows the landmark of row MIRROR[i].
MIRROR = _mirror()

# Per group: the row that is moved to the origin, and the two rows whose distance becomes 1. The anchors of pose (the
# left shoulder) and face (a point of the lower eyelid) are those of all published keypoints.
ANCHORS = {"pose": 0, "face": 7, "rh": 142, "lh": 163}
_SCALES = {
    "pose": (0, 1),
    "face": (GROUPS["face"].start + FACE.index(474), GROUPS["face"].start + FACE.index(469)),
    "rh": (142 + 2, 142 + 17),
    "lh": (163 + 2, 163 + 17),
}


def present(frames: Frames, group: str) -> npt.NDArray[np.bool_]:
    """Whether the group was detected, by frame: (..., 184, 4) -> (...)."""
    found: npt.NDArray[np.bool_] = (frames[..., GROUPS[group], 3] != 0).any(axis=-1)
    return found


def adjust(frames: Frames) -> Frames:
    """Raw frames (..., 184, 4) with x, y, z of each detected group centred on its anchor and scaled, frame by frame.

    The scale is the distance of two landmarks in the xy plane, at least 1e-6. v does not change, missing groups stay
    zero.
    """
    adjusted = frames.copy()
    for group, rows in GROUPS.items():
        one, other = _SCALES[group]
        anchor = frames[..., ANCHORS[group], None, :3]
        scale = np.linalg.norm(frames[..., one, :2] - frames[..., other, :2], axis=-1)
        moved = (frames[..., rows, :3] - anchor) / np.maximum(scale, 1e-6)[..., None, None]
        adjusted[..., rows, :3] = np.where(present(frames, group)[..., None, None], moved, 0)
    return adjusted


def normalisation_of(frames: Frames) -> Normalisation:
    """The normalisation of a clip: "adjusted" if every detected group has its anchor at the origin, else "raw".

    "unknown" if nothing was detected in any frame.
    """
    rows = frames[..., list(ANCHORS.values()), :].reshape(-1, len(ANCHORS), CHANNELS)
    anchors = rows[rows[..., 3] != 0]
    if not len(anchors):
        return "unknown"
    return "raw" if anchors[:, :3].any() else "adjusted"
