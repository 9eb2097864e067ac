"""A breast that looks like a mammogram: outline, parenchyma, ligaments, pectoral muscle, and a mass that grows.

It is drawn with the chest wall at column 0. All lengths are fractions of the image height, so every image size shows
the same breast. The texture is filtered noise with the power-law spectrum of mammograms (Burgess et al. 2001).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import fft, ndimage

Image = npt.NDArray[np.float32]

# Growth of a mass per year: its radius halves in about four years before diagnosis, its contrast more slowly.
RADIUS_GROWTH = 0.18
CONTRAST_GROWTH = 0.10


@dataclass(frozen=True)
class Shape:
    """Outline of one woman's breasts. depth: chest wall to nipple; reach: half height of the CC outline; nipple: its
    row; droop: from the nipple to the lower fold in MLO; axilla: depth at the top edge in MLO, relative to `depth`;
    muscle: (row, column) where the pectoral muscle's edge meets the chest wall and the top edge in MLO.
    """

    depth: float
    reach: float
    nipple: float
    droop: float
    axilla: float
    muscle: tuple[float, float]

    def border(self, view: str, rows: Image) -> Image:
        """Depth of the breast at each row (a fraction of the height; 0 outside)."""
        offset = rows - self.nipple
        if view == "CC":
            profile = _arc(offset / self.reach)
        else:
            upper = self.axilla + (1 - self.axilla) * _arc(offset / (self.nipple + 0.05))
            profile = np.where(offset < 0, upper, _arc(offset / self.droop))
        bump = 0.02 * np.exp(-((offset / 0.018) ** 2))
        return np.asarray(self.depth * profile + bump * (profile > 0), dtype=np.float32)


def _arc(offset: Image) -> Image:
    return np.asarray((1 - np.minimum(np.abs(offset), 1) ** 2.2) ** 0.5, dtype=np.float32)


@dataclass(frozen=True)
class Mass:
    """A spiculated mass. depth: of its centre, relative to the breast's at its row; row: of its centre, relative to the
    nipple, in CC and MLO; radius: at diagnosis; contrast: at diagnosis, in units of full scale; lobes: (amplitude,
    phase) of the outline's harmonics 2..5; spicules: their number; phase: of the first.
    """

    depth: float
    row: tuple[float, float]
    radius: float
    contrast: float
    lobes: npt.NDArray[np.float64]
    spicules: int
    phase: float

    def radius_before(self, years: float) -> float:
        """The radius `years` before diagnosis."""
        return float(self.radius * np.exp(-RADIUS_GROWTH * years))

    def centre(self, shape: Shape, view: str) -> tuple[float, float]:
        """(row, column) of its centre, as fractions of the height."""
        row = shape.nipple + self.row[0 if view == "CC" else 1]
        return row, float(self.depth * shape.border(view, np.array([row], dtype=np.float32))[0])

    def draw(self, shape: Shape, view: str, years: float, size: tuple[int, int]) -> Image:
        """The added brightness (H, W), `years` before diagnosis; exactly 0 beyond four radii."""
        rows, columns = grid(size)
        row, column = self.centre(shape, view)
        radius = self.radius_before(years)
        distance = np.hypot(rows - row, columns - column) / radius
        angle = np.arctan2(rows - row, columns - column)
        outline = 1 + sum(
            amplitude * np.sin(k * angle + phase) for k, (amplitude, phase) in enumerate(self.lobes, start=2)
        )
        body = 1 / (1 + np.exp(np.clip((distance - outline) / 0.14, -30, 30)))
        rays = np.clip(np.cos(self.spicules * (angle + self.phase) / 2), 0, 1) ** 8
        light = body + 0.55 * rays * np.exp(-distance / 1.2) * (distance > 0.5)
        contrast = self.contrast * np.exp(-CONTRAST_GROWTH * years)
        return np.asarray(contrast * np.minimum(light, 1) * (distance < 4), dtype=np.float32)


def grid(size: tuple[int, int]) -> tuple[Image, Image]:
    """Row (H, 1) and column (1, W) of pixel centres, as fractions of the height."""
    height, width = size
    rows, columns = ((np.arange(length) + 0.5) / height for length in (height, width))
    return rows[:, None].astype(np.float32), columns[None, :].astype(np.float32)


def texture(rng: np.random.Generator, size: tuple[int, int], slope: float, low: float = 1.0) -> Image:
    """Gaussian noise (H, W) of mean 0 and deviation 1 with amplitude ~ 1 / frequency^slope, flat below `low` cycles
    per image height.
    """
    height, width = size
    # With a border that is cut off: the noise of the transform is periodic, a breast is not.
    full = (fft.next_fast_len(height * 5 // 4, real=True), fft.next_fast_len(width * 5 // 4, real=True))
    white = rng.standard_normal(full, dtype=np.float32)
    frequency = np.hypot(
        fft.fftfreq(full[0], 1 / height)[:, None], fft.rfftfreq(full[1], 1 / height)[None, :], dtype=np.float32
    )
    spectrum = fft.rfft2(white) * np.maximum(frequency, low).astype(np.float32) ** -slope
    spectrum[0, 0] = 0
    field = fft.irfft2(spectrum, s=full)[:height, :width]
    return np.asarray(field / field.std(), dtype=np.float32)


@dataclass(frozen=True)
class Tissue:
    """The random fields of one breast in one view, each (H, W) of deviation 1: parenchyma, its grain, strands."""

    parenchyma: Image
    grain: Image
    strands: Image

    @classmethod
    def draw(cls, rng: np.random.Generator, size: tuple[int, int]) -> Tissue:
        parenchyma = texture(rng, size, 2.1, low=2.5)
        grain = texture(rng, size, 1.5, low=6.0)
        return cls(parenchyma, grain, strands=texture(rng, size, 2.4, low=4.0))

    def mixed(self, own: Tissue, share: float) -> Tissue:
        """These fields with `own` mixed in: correlation `share` with these, deviation kept."""
        rest = float(np.sqrt(1 - share**2))
        pairs = ((self.parenchyma, own.parenchyma), (self.grain, own.grain), (self.strands, own.strands))
        return Tissue(*(np.float32(share) * one + np.float32(rest) * other for one, other in pairs))


def breast(shape: Shape, view: str, tissue: Tissue, density: int) -> Image:
    """A breast (H, W) in [0, 1] without noise, 0 in the air. density: 1..4 = BI-RADS A..D."""
    size = (tissue.grain.shape[0], tissue.grain.shape[1])
    rows, columns = grid(size)
    border = shape.border(view, rows)
    slope = np.gradient(border[:, 0], 1 / size[0])[:, None]
    inside = (border - columns) / np.sqrt(1 + np.minimum(slope**2, 25))  # distance to the skin
    soft = 1.2 / size[0]
    cover = np.clip(inside / soft, 0, 1)
    thickness = np.clip(inside / 0.13, 0, 1) ** 0.5

    # Fibroglandular tissue fills a disc behind the nipple; density moves the threshold.
    across = (rows - shape.nipple) / (0.62 * shape.reach)
    along = (columns / np.maximum(shape.depth, 0.05) - 0.52) / 0.42
    disc = 1.7 * np.exp(-((across**2 + along**2) ** 1.5)) - 0.2
    gland = 1 / (1 + np.exp(-3.2 * (0.8 * tissue.parenchyma + 1.3 * disc - (1.65, 1.05, 0.45, -0.1)[density - 1])))
    ligaments = np.exp(-((tissue.strands / 0.13) ** 2))
    light = 0.15 + 0.30 * gland * (1 + 0.16 * tissue.grain) + 0.025 * tissue.grain + 0.09 * ligaments
    light = np.clip(light, 0.04, 1) * (0.30 + 0.70 * thickness)
    light += 0.10 * np.exp(-(((inside - 0.008) / 0.006) ** 2))  # skin line

    if view == "MLO":
        row, column = shape.muscle
        edge = 1 - rows / row - columns / column + 0.03 * tissue.parenchyma
        muscle = 1 / (1 + np.exp(np.clip(-edge / 0.02, -30, 30)))
        light = light * (1 - 0.65 * muscle) + muscle * (0.36 + 0.02 * tissue.grain)
    return np.asarray(np.clip(light, 0, 1) * cover, dtype=np.float32)


@dataclass(frozen=True)
class Exposure:
    """How one image was taken: position of the breast, detector, noise.

    affine: (2, 3) on (row, column) about the middle; bend: (2, H, W) further displacement in pixels; gain, offset: of
    the brightness; noise: (H, W) of deviation 1.
    """

    affine: npt.NDArray[np.float64]
    bend: npt.NDArray[np.float32]
    gain: float
    offset: float
    noise: Image

    @classmethod
    def draw(cls, rng: np.random.Generator, size: tuple[int, int]) -> Exposure:
        height = size[0]
        turn, shear = rng.normal(0, np.radians(1.5), 2)
        scale = 1 + rng.normal(0, 0.015, 2)
        shift = rng.normal(0, 0.012, 2) * height * np.array([1.0, 0.5])
        matrix = np.array([[scale[0], -turn], [turn + shear, scale[1]]])
        bend = np.stack([texture(rng, size, 3.0, low=1.5) for _ in range(2)]) * np.float32(0.008 * height)
        return cls(
            affine=np.column_stack([matrix, shift]),
            bend=bend,
            gain=float(1 + rng.normal(0, 0.04)),
            offset=float(rng.normal(0, 0.008)),
            noise=rng.standard_normal(size, dtype=np.float32),
        )

    def take(self, light: Image) -> npt.NDArray[np.uint16]:
        """The image (H, W) as 16-bit pixels; the air stays 0."""
        height, width = light.shape
        rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
        # Columns rotate about the chest wall, which stays at the edge of the detector.
        middle = np.array([height / 2, 0.0], dtype=np.float32)
        centred = np.stack([rows - middle[0], columns - middle[1]])
        moved: Any = np.einsum("ij,jhw->ihw", self.affine[:, :2].astype(np.float32), centred, optimize=False)
        moved += (middle + self.affine[:, 2].astype(np.float32))[:, None, None] + self.bend
        taken = ndimage.map_coordinates(light, moved, order=1, mode="reflect")
        cover = np.clip(taken / 0.03, 0, 1)
        taken = self.gain * taken + (self.offset + (0.004 + 0.012 * np.sqrt(taken)) * self.noise) * cover
        return np.asarray(np.rint(np.clip(taken, 0, 1) * 65535), dtype=np.uint16)
