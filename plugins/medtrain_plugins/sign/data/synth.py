"""Synthetic clips: hands move along smooth paths, one path per sign, and are sometimes not detected.

A sign is drawn once: the paths of both wrists, rotation of hands, bending of fingers, one hand or both. A signer is
drawn once: size, position, tempo, reach. A clip adds its length, a little timing and noise, and frames in which a hand
was not detected. With the signal `none` every clip has its own path, independent of its sign, so nothing can be
learned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from medtrain.errors import UsageError

from medtrain_plugins.sign.data.container import Clip, write_container
from medtrain_plugins.sign.data.landmarks import CHANNELS, FACE, GROUPS, LANDMARKS, MIRROR, Frames, adjust

Signal = Literal["signs", "none"]
SHORTEST, LONGEST = 13, 34
MEAN_LOST = 3  # mean length in frames of a gap without a detected hand
NOISE = 0.003  # noise of a coordinate, in image widths
HARMONICS = 3
EXTRACTOR = "synthetic"


@dataclass(frozen=True)
class Motion:
    """A sign. Smooth functions of time in [0, 1] as Fourier coefficients (functions, harmonics, 2), with means.

    The functions: x and y of the right and the left wrist, rotation of each hand, bending of ten fingers.
    """

    mean: Frames
    waves: Frames
    two_handed: bool

    @classmethod
    def draw(cls, generator: np.random.Generator) -> Motion:
        means = [generator.uniform(-0.12, 0.12, 4), generator.uniform(-0.8, 0.8, 2), generator.uniform(0.1, 0.9, 10)]
        sizes = np.concatenate([np.full(4, 0.1), np.full(2, 0.5), np.full(10, 0.3)])
        waves = generator.normal(size=(16, HARMONICS, 2)) / np.arange(1, HARMONICS + 1)[:, None]
        return cls(np.concatenate(means), waves * sizes[:, None, None], bool(generator.random() < 0.5))

    def at(self, time: Frames) -> Frames:
        """The functions at times (L,): (16, L)."""
        angles = 2 * np.pi * np.arange(1, HARMONICS + 1)[:, None] * time
        waves = np.stack([np.sin(angles), np.cos(angles) - 1], axis=1)
        values: Frames = self.mean[:, None] + np.einsum("fhk,hkl->fl", self.waves, waves)
        return values


@dataclass(frozen=True)
class Signer:
    """The properties of a signer: size and position in the image, reach and tempo."""

    size: float
    place: Frames
    reach: float
    tempo: float

    @classmethod
    def draw(cls, generator: np.random.Generator) -> Signer:
        return cls(
            generator.uniform(0.9, 1.1),
            np.array([0.5, 0.55]) + generator.uniform(-0.03, 0.03, 2),
            generator.uniform(0.85, 1.15),
            generator.uniform(0.8, 1.25),
        )


def synthesize(
    out: Path,
    signs: Sequence[int],
    clips: int = 12,
    seed: int = 0,
    *,
    signers: int = 3,
    signal: Signal = "signs",
    missing: float = 0.1,
    adjusted: bool = True,
    dtype: Literal["float32", "float16"] = "float16",
) -> dict[str, int]:
    """Writes `clips` clips of each sign by each signer, a third of them (rounded up) as `test`.

    Equal seeds give equal files. missing: share of frames in which a signing hand is not detected. adjusted: centred
    and scaled as published keypoints are, else in image coordinates. Raises UsageError if `out` is not empty.
    """
    if clips < 2:
        raise UsageError(f"{clips} clips of a sign by a signer are too few: one to train on and one to test are needed")
    made = _clips(signs, clips, seed, signers, signal, missing, adjusted)
    about = {"extractor": EXTRACTOR, "seed": seed, "signal": signal, "missing": missing}
    index = write_container(out, made, about, dtype)
    return {"clips": len(index), "frames": int(index["length"].sum()), "signs": len(signs), "signers": signers}


def _clips(
    signs: Sequence[int], clips: int, seed: int, signers: int, signal: Signal, missing: float, adjusted: bool
) -> Iterator[Clip]:
    people = [Signer.draw(np.random.default_rng([seed, 1, signer])) for signer in range(1, signers + 1)]
    for sign in signs:
        motion = Motion.draw(np.random.default_rng([seed, 2, sign]))
        for signer, person in enumerate(people, 1):
            for number in range(clips):
                generator = np.random.default_rng([seed, 3, sign, signer, number])
                moved = motion if signal == "signs" else Motion.draw(generator)
                frames = record(moved, person, generator, missing)
                name = f"{signer:02d}_{signer:02d}_{sign:04d}_({number:02d})_c"
                split = "test" if number >= clips - -(-clips // 3) else "train"
                yield Clip(name, sign, signer, split, adjust(frames) if adjusted else frames)


def record(motion: Motion, signer: Signer, generator: np.random.Generator, missing: float = 0.1) -> Frames:
    """One clip (L, 184, 4) float64 in image coordinates."""
    length = int(np.clip(round(generator.normal(23, 5) / signer.tempo), SHORTEST, LONGEST))
    time = np.linspace(0, 1, length) ** generator.uniform(0.85, 1.15) + generator.uniform(-0.03, 0.03)
    values = motion.at(time)
    frames = np.zeros((length, LANDMARKS, CHANNELS))
    # The signer's left is on the right of the image.
    wrists = np.stack([values[:4:2], values[1:4:2]], axis=-1) * signer.reach + np.array([[[-0.13, 0.1]], [[0.13, 0.1]]])
    frames[:, GROUPS["pose"], :2] = _body(wrists)
    frames[:, GROUPS["face"], :2] = _FACE_SHAPE * [0.09, 0.12] + [0, -0.27]
    for number, group in enumerate(("rh", "lh")):
        hand = _hand(values[4 + number], values[6 + 5 * number : 11 + 5 * number], left=number == 1)
        frames[:, GROUPS[group], :2] = wrists[number][:, None] + 0.07 * hand
    frames[..., :2] = frames[..., :2] * signer.size + signer.place
    frames[..., :3] += generator.normal(scale=NOISE, size=(length, LANDMARKS, 3))
    frames[..., 3] = 1
    frames[:, GROUPS["pose"], 3] = generator.uniform(0.9, 1, (length, 6))
    frames[_lost(length, missing, generator), GROUPS["rh"]] = 0
    frames[_lost(length, missing, generator) if motion.two_handed else slice(None), GROUPS["lh"]] = 0
    return frames


def _body(wrists: Frames) -> Frames:
    """Shoulders, elbows and wrists (L, 6, 2); left before right."""
    right, left = wrists
    points = np.zeros((len(right), 6, 2))
    points[:, 0], points[:, 1] = [0.13, -0.05], [-0.13, -0.05]
    points[:, 2], points[:, 3] = (points[:, 0] + left) / 2 + [0.06, 0.08], (points[:, 1] + right) / 2 + [-0.06, 0.08]
    points[:, 4], points[:, 5] = left, right
    return points


def _hand(turn: Frames, bend: Frames, left: bool) -> Frames:
    """A hand around its wrist (L, 21, 2): five fingers with four joints that spread and bend. bend: (5, L)."""
    points = np.zeros((len(turn), 21, 2))
    for finger in range(5):
        spread = (finger - 2) * 0.3 * (1 if left else -1)
        for joint in range(4):
            reach = 0.45 + 0.2 * joint * (1 - bend[finger] * 0.8)
            angle = turn + spread + 0.25 * joint * bend[finger] * (1 if left else -1)
            points[:, 1 + 4 * finger + joint] = np.stack([reach * np.sin(angle), -reach * np.cos(angle)], axis=-1)
    return points


def _lost(length: int, share: float, generator: np.random.Generator) -> Any:
    """Frames in which a hand is not detected: gaps of a few frames, this share of them on average."""
    starts = generator.random(length) < share / MEAN_LOST
    return np.convolve(starts, np.ones(MEAN_LOST), mode="full")[:length] > 0


def _face_shape() -> Frames:
    """Points (136, 2) of a symmetric face in [-1, 1]^2."""
    generator = np.random.default_rng(502)
    points = np.zeros((len(FACE), 2))
    start = GROUPS["face"].start
    for row in range(len(FACE)):
        partner = MIRROR[start + row] - start
        if row == partner:
            points[row] = 0, generator.uniform(-1, 1)
        elif row < partner:
            x, y = generator.uniform(0.1, 1), generator.uniform(-1, 1)
            points[row], points[partner] = (-x, y), (x, y)
    return points


_FACE_SHAPE = _face_shape()
