"""Where training patches are cut out of a scan: the findings to include or avoid, and the random draw of a position.

Coordinates are as in `patches`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from medtrain.errors import ConfigError
from numpy.typing import ArrayLike, NDArray

from medtrain_plugins.nodule.annotations.tables import Findings
from medtrain_plugins.nodule.annotations.triage import HIGHEST, LOWEST, score_nodule
from medtrain_plugins.nodule.data.augmentation import SampledTransform
from medtrain_plugins.nodule.data.patches import patch_start
from medtrain_plugins.nodule.scans.manifest import ManifestRow, Nodule

TRIES = 64  # draws of a negative patch to find one without a nodule
LEAST_REACH_MM = 1.5  # smallest radius, also of findings of unknown size

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Sampling:
    """How patches are drawn.

    patch_size: z, y, x voxels. positive_fraction: share of patches placed at a nodule. jitter: largest distance of that
    nodule from the middle of its patch, along each axis, in half patches. hard_negative_fraction: share of the other
    patches placed at a false mark of an earlier run, in scans that have some. nodules_in_negatives: whether the other
    patches may contain a nodule by chance (it is then labelled). min_diameter, max_diameter: mm; other nodules are
    ignored by the loss and get no patches, also nodules of unknown size if a limit is set.
    """

    patch_size: tuple[int, int, int] = (96, 96, 96)
    positive_fraction: float = 0.5
    jitter: float = 0.75
    hard_negative_fraction: float = 0.0
    nodules_in_negatives: bool = False
    min_diameter: float = 0.0
    max_diameter: float | None = None

    def __post_init__(self) -> None:
        if len(self.patch_size) != 3 or min(self.patch_size) < 1:
            raise ConfigError(f"patch_size {list(self.patch_size)}: give three positive numbers of voxels, z, y, x")
        for name in ("positive_fraction", "jitter", "hard_negative_fraction"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise ConfigError(f"{name} {value}: give a share between 0 and 1")
        if self.min_diameter < 0 or (self.max_diameter is not None and self.max_diameter <= self.min_diameter):
            raise ConfigError(
                f"min_diameter {self.min_diameter}, max_diameter {self.max_diameter}: give 0 or more, and a larger one"
            )

    def wants(self, nodule: Nodule) -> bool:
        """Whether a nodule is a training target."""
        if self.min_diameter == 0 and self.max_diameter is None:
            return True
        if nodule.diameter_mm is None:
            return False
        return self.min_diameter <= nodule.diameter_mm and (
            self.max_diameter is None or nodule.diameter_mm <= self.max_diameter
        )


@dataclass(frozen=True, eq=False)
class ScanPoints:
    """The findings of a scan.

    centres: (N, 3) target nodules, diameters: (N,) mm, triage: (N,) in [0, 1], both NaN where unknown; labels: (N,)
    their values in the mask, 0 for none. ignored: (M, 3) findings that are neither target nor background (nodules of
    other sizes, irrelevant findings), with ignored_diameters and ignored_labels; the first `filtered` of them are
    nodules. false_marks: (H, 3). box: first and last + 1 voxel of the lungs, or of the scan, (2, 3).
    """

    shape: tuple[int, int, int]
    spacing: Floats
    centres: Floats
    diameters: Floats
    triage: Floats
    labels: Ints
    ignored: Floats
    ignored_diameters: Floats
    ignored_labels: Ints
    filtered: int
    box: Ints
    false_marks: Floats = field(default_factory=lambda: np.zeros((0, 3)))

    @classmethod
    def of(cls, row: ManifestRow, sampling: Sampling, false_marks: ArrayLike = ()) -> ScanPoints:
        """The findings of a prepared scan. false_marks: (H, 3) voxels, as from `find_false_marks`."""
        learned = [nodule for nodule in row.nodules if sampling.wants(nodule)]
        filtered = [nodule for nodule in row.nodules if not sampling.wants(nodule)]
        ignored = [*filtered, *row.irrelevant]
        return cls(
            row.shape,
            np.array(row.spacing, dtype=np.float64),
            _centres(learned),
            _diameters(learned),
            np.array([triage_target(nodule) for nodule in learned], dtype=np.float64),
            _labels(learned),
            _centres(ignored),
            _diameters(ignored),
            _labels(ignored),
            len(filtered),
            np.array(row.lung_box or ((0, 0, 0), row.shape), dtype=np.int64),
            np.asarray(false_marks, dtype=np.float64).reshape(-1, 3),
        )

    def nodules_near(self, start: Ints, size: Sequence[int], transform: SampledTransform | None = None) -> bool:
        """Whether a patch contains any part of a nodule of any size."""
        points = np.concatenate([self.centres, self.ignored[: self.filtered]])
        sizes = np.concatenate([self.diameters, self.ignored_diameters[: self.filtered]])
        if transform is not None and len(points):
            points, sizes = transform.moved(points - start) + start, sizes * transform.scale
        return bool(overlaps(points, sizes, self.spacing, start, size).any())


def overlaps(
    centres: Floats, diameters: Floats, spacing: Floats, start: Ints, size: Sequence[int]
) -> NDArray[np.bool_]:
    """Which findings (N, 3), (N,) mm reach into a patch, each as the box around its sphere: (N,) bool."""
    reach = np.where(diameters > 0, diameters / 2, LEAST_REACH_MM)[:, None] / spacing
    inside: NDArray[np.bool_] = np.all(
        (centres + reach >= start - 0.5) & (centres - reach <= start + np.asarray(size) - 0.5), axis=1
    )
    return inside


def draw_start(
    points: ScanPoints,
    sampling: Sampling,
    positive_chance: float,
    generator: np.random.Generator,
    transform: SampledTransform | None = None,
) -> Ints:
    """The first voxel of a random patch, inside the scan if that is large enough.

    positive_chance: probability of a patch placed at a nodule, in a scan with target nodules. Other patches contain no
    nodule, unless `nodules_in_negatives` is set, or `TRIES` draws find no position without one (for example in a scan
    hardly larger than a patch): then the nodule is labelled. transform: the transform of the patch; nodules count as
    inside or outside after it.
    """
    size = np.array(sampling.patch_size)
    if len(points.centres) and generator.random() < positive_chance:
        centre = points.centres[generator.integers(len(points.centres))]
        return _beside(centre, points, sampling, generator, transform)
    by_mark = len(points.false_marks) > 0 and generator.random() < sampling.hard_negative_fraction
    for _ in range(TRIES):
        if by_mark:
            mark = points.false_marks[generator.integers(len(points.false_marks))]
            start = _beside(mark, points, sampling, generator, transform)
        else:
            low, high = points.box
            start = _inside(patch_start(generator.uniform(low, high - 1), size), size, points.shape, generator)
        if sampling.nodules_in_negatives or not points.nodules_near(start, sampling.patch_size, transform):
            break
    return start


def positive_chances(scans: Sequence[ScanPoints], sampling: Sampling) -> tuple[float, float]:
    """The probability of a positive patch in scans with nodules, and the resulting share of positive patches.

    Scans without nodules give no positive patches, so the others give more. The share over all scans is
    `positive_fraction`, or the share of scans with nodules if that is smaller. All scans give the same number of
    patches.
    """
    able = sum(len(scan.centres) > 0 for scan in scans)
    if not able:
        return 0.0, 0.0
    chance = min(1.0, sampling.positive_fraction * len(scans) / able)
    return chance, chance * able / len(scans)


def find_false_marks(
    marks: Findings, rows: Iterable[ManifestRow], least_score: float | None = None
) -> dict[str, Floats]:
    """The marks of an earlier run that hit no nodule and no irrelevant finding: series -> (H, 3) voxels, z, y, x.

    marks: candidates with world coordinates (`read_findings(path, "candidates")`); those with scores below
    `least_score` are left out, and so are marks outside their scan. Scans without false marks are not in the result.
    """
    found: dict[str, Floats] = {}
    by_series: dict[str, list[int]] = {}
    for index, series in enumerate(marks.series):
        if least_score is None or marks.score is None or marks.score[index] >= least_score:
            by_series.setdefault(str(series), []).append(index)
    for row in rows:
        world = np.asarray(marks.xyz)[by_series.get(row.series, [])].reshape(-1, 3)
        if not len(world):
            continue
        geometry = row.geometry
        known = [*row.nodules, *row.irrelevant, *row.unplaced]
        false = geometry.contains(world)
        for finding in known:
            radius = max((finding.diameter_mm or 0.0) / 2, 2 * LEAST_REACH_MM)
            false &= np.linalg.norm(world - np.array(finding.world), axis=1) > radius
        if false.any():
            found[row.series] = geometry.to_voxel(world[false])
    return found


def ignore_mask(shape: Sequence[int], centres: Floats, diameters: Floats, spacing: Floats) -> NDArray[np.bool_]:
    """The voxels inside findings, as spheres: (M, 3) voxels and (M,) mm -> bool of `shape`."""
    mask = np.zeros(tuple(shape), dtype=np.bool_)
    for centre, diameter in zip(centres, diameters, strict=True):
        radius = diameter / 2 if diameter > 0 else LEAST_REACH_MM
        reach = radius / spacing
        low = np.maximum(np.ceil(centre - reach), 0).astype(int)
        high = np.minimum(np.floor(centre + reach).astype(int) + 1, shape)
        if (low >= high).any():
            continue
        z, y, x = (((np.arange(a, b) - c) * s) ** 2 for a, b, c, s in zip(low, high, centre, spacing, strict=True))
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        mask[box] |= z[:, None, None] + y[:, None] + x <= radius**2
    return mask


def triage_target(nodule: Nodule) -> float:
    """The target of a nodule's triage score, in [0, 1]; NaN without ratings."""
    if nodule.score is not None:
        return (nodule.score - LOWEST) / (HIGHEST - LOWEST)
    if nodule.malignancy is None:
        return float("nan")
    rated = {name: value for name in ("malignancy", "spiculation", "texture") if (value := getattr(nodule, name))}
    return score_nodule(rated, nodule.diameter_mm, nodule.growth).target


def _beside(
    centre: Floats,
    points: ScanPoints,
    sampling: Sampling,
    generator: np.random.Generator,
    transform: SampledTransform | None,
) -> Ints:
    """A patch that contains a point at a random offset from its middle."""
    size = np.array(sampling.patch_size)
    # One voxel before the border, so that rounding keeps the point inside.
    farthest = sampling.jitter * np.maximum(size / 2 - 1, 0)
    offset = generator.uniform(-farthest, farthest)
    if transform is not None:
        middle = (size - 1) / 2
        offset = transform.sources((middle + offset)[None])[0] - middle
    start = patch_start(centre - offset, size)
    inside = _inside(start, size, points.shape, generator)
    if transform is not None:
        seen = transform.moved((centre - inside)[None])[0]
        if (seen < -0.5).any() or (seen >= size - 0.5).any():
            return start
    return inside


def _inside(start: Ints, size: Ints, shape: Sequence[int], generator: np.random.Generator) -> Ints:
    """The patch moved into the scan; along axes where the patch is larger, to a random position around the scan."""
    room = np.asarray(shape) - size
    around = generator.integers(np.minimum(room, 0), 1)
    return np.where(room >= 0, np.clip(start, 0, np.maximum(room, 0)), around)


def _centres(nodules: Sequence[Nodule]) -> Floats:
    return np.array([nodule.voxel for nodule in nodules], dtype=np.float64).reshape(-1, 3)


def _diameters(nodules: Sequence[Nodule]) -> Floats:
    return np.array([nodule.diameter_mm or np.nan for nodule in nodules], dtype=np.float64)


def _labels(nodules: Sequence[Nodule]) -> Ints:
    return np.array([nodule.label or 0 for nodule in nodules], dtype=np.int64)
