"""A synthetic chest CT: body, ribs, spine, heart, lungs with branching vessels, and nodules in them.

Everything is drawn in millimetres on the grid of the scan; z, y, x run to the head, to the back and to the left.
Malignancy shows in the appearance of a nodule: malignant ones are spiculated and often part-solid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from medtrain.errors import UsageError
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Volume = NDArray[np.float32]

AIR, LUNG, FAT, TISSUE, BLOOD, BONE = -1000.0, -860.0, -100.0, 40.0, 50.0, 400.0
SOLID, GROUND_GLASS, CALCIFIED = 40.0, -550.0, 350.0
DIAMETERS_MM = (4.0, 20.0)
SMALL_MM = (1.5, 2.8)  # findings that are too small to be nodules
GAP_MM = 4.0  # between findings
SMALLEST = 32  # voxels along an axis
PLACES = 400  # positions tried for each finding


@dataclass(frozen=True)
class PhantomNodule:
    """A drawn nodule. centre: z, y, x in mm from the first voxel. Ratings from 1 to 5, as in LIDC.

    texture: 5 solid, 3 part-solid, 1 ground glass. relevant: False for findings that are too small to count.
    """

    centre: tuple[float, float, float]
    diameter_mm: float
    malignancy: float
    spiculation: float
    texture: float
    relevant: bool = True


@dataclass(frozen=True, eq=False)
class Phantom:
    """hu: (Z, Y, X) int16. spacing: z, y, x in mm. mask: uint8, 0, or 1 + the number of the nodule.

    lung_box: first and last + 1 voxel of the lungs, z, y, x.
    """

    hu: NDArray[np.int16]
    spacing: tuple[float, float, float]
    mask: NDArray[np.uint8]
    nodules: tuple[PhantomNodule, ...]
    lung_box: tuple[tuple[int, int, int], tuple[int, int, int]]


def make_phantom(
    generator: np.random.Generator,
    shape: Sequence[int] = (96, 128, 128),
    spacing: Sequence[float] = (1.25, 1.25, 1.25),
    nodules: int = 3,
    small: int = 1,
    noise_hu: float = 20.0,
) -> Phantom:
    """A phantom that fills its scan.

    nodules, small: their numbers, if there is room; small ones do not count as nodules. noise_hu: standard deviation;
    it varies from half to one and a half times this value between scans.
    """
    if len(shape) != 3 or min(shape) < SMALLEST or len(spacing) != 3 or min(spacing) <= 0:
        raise UsageError(
            f"a phantom of {list(shape)} voxels of {list(spacing)} mm: give three numbers each, z, y, x; at least "
            f"{SMALLEST} voxels, more than 0 mm"
        )
    chest = _Chest(generator, shape, spacing)
    chest.draw_body()
    chest.draw_vessels()
    drawn: list[PhantomNodule] = []
    for number in range(nodules + small):
        nodule = chest.place(_draw_nodule(generator, relevant=number < nodules), drawn)
        if nodule is not None:
            chest.draw_nodule(nodule, 1 + len(drawn) if nodule.relevant else 0)
            drawn.append(nodule)
    noise = generator.standard_normal(chest.hu.shape, dtype=np.float32)
    noise[:, :, 1:] += 0.5 * noise[:, :, :-1]  # reconstruction makes the noise of neighbours correlated
    chest.hu += noise * np.float32(noise_hu * generator.uniform(0.5, 1.5) / math.sqrt(1.25))
    hu = np.clip(np.rint(chest.hu), -1024, 3071).astype(np.int16)
    z, y, x = (float(step) for step in spacing)
    return Phantom(hu, (z, y, x), chest.mask, tuple(drawn), chest.lung_box())


def _draw_nodule(generator: np.random.Generator, relevant: bool) -> PhantomNodule:
    """Draws the properties of a nodule, without its position."""
    diameter = float(generator.uniform(*(DIAMETERS_MM if relevant else SMALL_MM)))
    if not relevant:
        return PhantomNodule((0.0, 0.0, 0.0), diameter, 1.0, 1.0, 5.0, relevant=False)
    malignancy = int(generator.integers(1, 6))
    spiculation = int(np.clip(malignancy + generator.integers(-1, 2), 1, 5))
    solid = generator.random() < (0.9 if malignancy <= 2 else 0.5)
    texture = 5.0 if solid else float(generator.choice([1.0, 3.0], p=[0.3, 0.7]))
    return PhantomNodule(
        (0.0, 0.0, 0.0), round(diameter, 3), float(malignancy), float(spiculation), texture, relevant=True
    )


class _Chest:
    """The scan while it is drawn."""

    def __init__(self, generator: np.random.Generator, shape: Sequence[int], spacing: Sequence[float]) -> None:
        self.generator = generator
        self.spacing = np.array(spacing, dtype=np.float64)
        self.extent = np.array(shape) * self.spacing
        self.axes = [(np.arange(n) * s).astype(np.float32) for n, s in zip(shape, self.spacing, strict=True)]
        self.hu = np.full(tuple(shape), AIR, dtype=np.float32)
        self.mask = np.zeros(tuple(shape), dtype=np.uint8)
        jitter = generator.uniform(0.95, 1.05, 8)
        z, y, x = self.extent
        self.middle = np.array([z / 2, y * 0.5, x * 0.5])
        self.body = np.array([0.42 * y * jitter[0], 0.47 * x * jitter[1]])  # half axes, y and x
        # Centre and half axes of the right lung and the left, which makes room for the heart.
        self.lungs = [
            (
                self.middle + np.array([0.02 * z * jitter[2], 0.0, side * 0.215 * x]),
                np.array([0.5 * z * jitter[3], 0.31 * y * jitter[4], width * x * jitter[5]]),
            )
            for side, width in ((-1, 0.165), (1, 0.155))
        ]
        self.heart = (
            self.middle + np.array([-0.2 * z, -0.1 * y, 0.09 * x]),
            np.array([0.22 * z * jitter[6], 0.17 * y, 0.16 * x * jitter[7]]),
        )

    def draw_body(self) -> None:
        """Draws the body, from the skin inwards."""
        z, y, x = (axis - m for axis, m in zip(self.axes, self.middle.astype(np.float32), strict=True))
        rim = np.sqrt((y[:, None] / self.body[0]) ** 2 + (x / self.body[1]) ** 2).astype(np.float32)  # 1 at the skin
        mm = float(self.body.mean())
        slice_hu = np.where(rim < 1, FAT, AIR) + (TISSUE - FAT) * _ramp((0.93 - rim) * mm)
        self.hu[:] = slice_hu.astype(np.float32)
        self._draw_ribs(rim, np.arctan2(y[:, None], x), z)
        for centre, half in self.lungs:
            self._blend(_ramp(self._depth(centre, half)), LUNG + float(self.generator.normal(0, 15)))
        lung = self.hu < -400
        lung &= (rim < 0.93)[None]
        # More blood and less air in the lower parts.
        self.hu += lung * (y / self.body[0] * 40)[None, :, None].astype(np.float32)
        self._blend(_ramp(self._depth(*self.heart)), BLOOD)
        spine = np.hypot(y[:, None] - 0.62 * self.body[0], x) - 0.13 * mm
        disc = 0.75 + 0.25 * np.sign(np.sin(2 * np.pi * z / 26))
        self.hu += (_ramp(-spine)[None] * (disc[:, None, None] * (BONE - TISSUE) * 0.7)).astype(np.float32)

    def _draw_ribs(self, rim: Volume, angle: Volume, z: Volume) -> None:
        ring = np.flatnonzero(((rim > 0.8) & (rim < 0.9)).ravel())
        # Ribs fall from the spine to the breastbone.
        height = z[:, None] + 0.12 * self.body[0] * np.sin(angle.ravel()[ring]) + self.generator.uniform(0, 24)
        flat = self.hu.reshape(len(z), -1)
        flat[:, ring] = np.where(np.mod(height, 24) < 8, BONE, flat[:, ring])

    def draw_vessels(self) -> None:
        """Draws a tree from each hilum; its branches look most similar to nodules."""
        for centre, half in self.lungs:
            inward = np.sign(self.middle[2] - centre[2])
            hilum = centre + np.array([0.0, 0.1 * half[1], 0.75 * inward * half[2]])
            for _ in range(6):
                direction = _unit(self.generator.normal(size=3) * [1.0, 0.8, 0.5] - [0, 0, inward * 0.9])
                self._grow(hilum, direction, 2.6, float(half.mean()) * 0.45, 4, (centre, half))

    def _grow(
        self,
        start: Floats,
        direction: Floats,
        radius: float,
        length: float,
        generations: int,
        lung: tuple[Floats, Floats],
    ) -> None:
        end = start + direction * length * self.generator.uniform(0.7, 1.2)
        if (((end - lung[0]) / lung[1]) ** 2).sum() > 0.95:
            return
        self._capsule(start, end, radius, BLOOD)
        if generations > 1:
            for _ in range(2):
                turned = _unit(direction + 0.6 * self.generator.normal(size=3))
                self._grow(end, turned, radius * 0.72, length * 0.75, generations - 1, lung)

    def place(self, nodule: PhantomNodule, others: Sequence[PhantomNodule]) -> PhantomNodule | None:
        """The nodule at a position in a lung, some at the pleura; None if there is no room."""
        radius = nodule.diameter_mm / 2
        for _ in range(PLACES):
            centre, half = self.lungs[self.generator.integers(2)]
            inner = half - radius * self.generator.uniform(0.7, 1.3)
            if (inner <= 0).any():
                continue
            at = centre + inner * self.generator.uniform(-1, 1, 3)
            inside = (((at - centre) / inner) ** 2).sum() <= 1
            apart = all(np.linalg.norm(at - other.centre) > radius + other.diameter_mm / 2 + GAP_MM for other in others)
            in_scan = (at >= radius).all() and (at <= self.extent - self.spacing - radius).all()
            heart = (((at - self.heart[0]) / (self.heart[1] + radius)) ** 2).sum() < 1
            if inside and apart and in_scan and not heart:
                z, y, x = at.tolist()
                return PhantomNodule(
                    (z, y, x),
                    nodule.diameter_mm,
                    nodule.malignancy,
                    nodule.spiculation,
                    nodule.texture,
                    nodule.relevant,
                )
        return None

    def draw_nodule(self, nodule: PhantomNodule, label: int) -> None:
        """Draws the nodule: a sphere with bumps of equal volume, and its spicules; label: in the mask."""
        centre, radius = np.array(nodule.centre), nodule.diameter_mm / 2
        hu = CALCIFIED if not nodule.relevant else SOLID if nodule.texture > 1 else GROUND_GLASS
        bumps = self.generator.normal(size=(3, 3)), self.generator.uniform(0, 2 * np.pi, 3)
        box, offsets = self._box(centre, radius * 1.4 + 2)
        distance = np.sqrt(sum(offset**2 for offset in offsets))
        wave = sum(
            np.sin(sum(k * offset for k, offset in zip(row, offsets, strict=True)) * (2 / radius) + phase)
            for row, phase in zip(*bumps, strict=True)
        )
        surface = radius * (1 + 0.03 * wave)
        depth = surface - distance
        outer = GROUND_GLASS if nodule.texture == 3 else hu
        self._lift(box, _ramp(depth), outer)
        if nodule.texture == 3:
            self._lift(box, _ramp(depth - 0.4 * radius), SOLID)
        if label:
            self.mask[box][depth > 0] = label
        for _ in range(int(max(nodule.spiculation - 2, 0) * 5)):
            direction = _unit(self.generator.normal(size=3))
            tip = centre + direction * radius * self.generator.uniform(1.35, 1.9)
            self._capsule(centre + direction * radius * 0.8, tip, 0.45, outer)

    def lung_box(self) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """First and last + 1 voxel of both lungs."""
        low = np.min([centre - half for centre, half in self.lungs], axis=0) / self.spacing
        high = np.max([centre + half for centre, half in self.lungs], axis=0) / self.spacing
        first = np.maximum(np.floor(low), 0).astype(int).tolist()
        last = np.minimum(np.ceil(high) + 1, self.hu.shape).astype(int).tolist()
        return (first[0], first[1], first[2]), (last[0], last[1], last[2])

    def _depth(self, centre: Floats, half: Floats) -> Volume:
        """The approximate depth of voxels inside an ellipsoid, in mm."""
        z, y, x = (((axis - c) / h) ** 2 for axis, c, h in zip(self.axes, centre, half, strict=True))
        outside = np.sqrt(z[:, None, None].astype(np.float32) + (y[:, None] + x).astype(np.float32))
        depth: Volume = (1 - outside) * np.float32(half.min())
        return depth

    def _blend(self, share: Volume, hu: float) -> None:
        self.hu += share * (np.float32(hu) - self.hu)

    def _lift(self, box: tuple[slice, ...], share: Floats, hu: float) -> None:
        """Raises the density, by a share of each voxel."""
        part = self.hu[box]
        np.maximum(part, part + share.astype(np.float32) * (np.float32(hu) - part), out=part)

    def _box(self, centre: Floats, reach: float | Floats) -> tuple[tuple[slice, ...], list[Floats]]:
        """The voxels around a point, and their distances from it along z, y and x in mm, to be broadcast."""
        low = np.maximum(np.floor((centre - reach) / self.spacing), 0).astype(int)
        high = np.minimum(np.ceil((centre + reach) / self.spacing).astype(int) + 1, self.hu.shape)
        high = np.maximum(high, low)
        offsets = [np.arange(a, b) * s - c for a, b, s, c in zip(low, high, self.spacing, centre, strict=True)]
        box = tuple(slice(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True))
        return box, [offsets[0][:, None, None], offsets[1][None, :, None], offsets[2][None, None]]

    def _capsule(self, start: Floats, end: Floats, radius: float, hu: float) -> None:
        """The share of each voxel in a tube with round ends."""
        along = end - start
        box, offsets = self._box((start + end) / 2, np.abs(along) / 2 + radius + 1)
        # From the middle: the nearest point of the axis is within half its length.
        nearest = sum(a * offset for a, offset in zip(along, offsets, strict=True)) / (along @ along)
        nearest = np.clip(nearest, -0.5, 0.5)
        squared = sum((offset - a * nearest) ** 2 for a, offset in zip(along, offsets, strict=True))
        # A tube thinner than a voxel fills a part of it.
        voxel = float(self.spacing.mean())
        filled = min(1.0, (2 * radius / voxel) ** 2)
        self._lift(box, filled * _ramp((max(radius, voxel / 2) - np.sqrt(squared)) / voxel), hu)


def _ramp(depth: NDArray) -> NDArray:  # type: ignore[type-arg]
    """From 0 outside to 1 inside, over one mm."""
    return np.clip(depth + 0.5, 0, 1)


def _unit(vector: Floats) -> Floats:
    length: Floats = vector / np.linalg.norm(vector)
    return length
