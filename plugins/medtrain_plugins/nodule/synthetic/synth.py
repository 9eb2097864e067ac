"""Synthetic chest CT with nodules: as the files of a challenge, or as prepared scans for training."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from medtrain.errors import UsageError
from numpy.typing import NDArray

from medtrain_plugins.imaging.volume import Volume
from medtrain_plugins.nodule.annotations.luna16 import score_of_nodule
from medtrain_plugins.nodule.scans.manifest import (
    MANIFEST,
    ManifestRow,
    Nodule,
    write_file,
    write_manifest,
    write_prepared,
)
from medtrain_plugins.nodule.synthetic.phantom import Phantom, PhantomNodule, make_phantom

Split = Literal["train", "validation", "test"]
SHAPE = (96, 128, 128)
SPACING_MM = (1.5, 0.8, 0.8)
DEMO_SPACING_MM = (1.25, 1.25, 1.25)
MOST_OBLIQUE = 12.0  # degrees
# Every third scan is oblique, every fourth has reversed axes in its file.
OBLIQUE, FLIPPED = 3, 4
SUBSETS = 10
NODULES = (2, 3, 4)  # in turn
RATINGS = ("malignancy", "spiculation", "texture")
TABLE = ("seriesuid", "coordX", "coordY", "coordZ", "diameter_mm")


@dataclass(frozen=True, eq=False)
class SyntheticScan:
    """A phantom and its position in the world. affine: (4, 4), voxel z, y, x -> world x, y, z in mm (LPS)."""

    number: int
    series: str
    patient: str
    split: Split
    phantom: Phantom
    affine: NDArray[np.float64]

    @property
    def volume(self) -> Volume:
        return Volume(self.phantom.hu, self.affine, self.series, self.patient, {"generator": "phantom"})

    def world(self, nodule: PhantomNodule) -> NDArray[np.float64]:
        """Its centre, (3,), x, y, z in mm."""
        voxel = np.array(nodule.centre) / self.phantom.spacing
        return self.affine[:3, :3] @ voxel + self.affine[:3, 3]


def make_scans(
    scans: int,
    seed: int = 0,
    *,
    shape: Sequence[int] = SHAPE,
    spacing: Sequence[float] = SPACING_MM,
    nodules: Sequence[int] = NODULES,
    noise_hu: float = 20.0,
) -> Iterator[SyntheticScan]:
    """Scans of one patient each, in memory; equal seeds give equal scans. Only the split depends on their number.

    shape, spacing: z, y, x, voxels and mm. nodules: numbers of nodules of the scans, in turn. Half of the scans are for
    training, a sixth for validation, a third for the test. Every third is oblique by up to 12 degrees.
    """
    if scans < 1:
        raise UsageError(f"{scans} scans: at least one is needed")
    for number in range(scans):
        generator = np.random.default_rng([seed, number])
        phantom = make_phantom(generator, shape, spacing, nodules[number % len(nodules)], noise_hu=noise_hu)
        affine = np.eye(4)
        angle = generator.uniform(4, MOST_OBLIQUE) if number % OBLIQUE == 2 else 0.0
        direction = _turned(generator.normal(size=3), angle)
        # Columns are those of z, y, x; the direction's those of x, y, z.
        affine[:3, :3] = direction[:, ::-1] * np.asarray(spacing, dtype=np.float64)
        affine[:3, 3] = np.round(generator.uniform(-250, 50, 3), 1)
        series = f"2.25.{((seed + 1) * 100_000 + number) * 10**9 + int(generator.integers(10**9))}"
        yield SyntheticScan(number, series, f"phantom-{seed}-{number:04d}", _split_of(number, scans), phantom, affine)


def synthesize(out: Path, scans: int = 40, seed: int = 0, **settings: Any) -> dict[str, int]:
    """Write scans as MetaImage files with the tables of LUNA16; returns counts. settings: of `make_scans`.

    subset0 to subset9 contain `<series>.mhd` and `.raw`; every fourth file has reversed axes. Tables: annotations.csv,
    annotations_excluded.csv (findings too small to count, diameter -1), seriesuids.csv, characteristics.csv
    (annotations with malignancy, spiculation and texture), patients.csv (series, patient, subset, split). Equal seeds
    give equal files. Raises UsageError when `out` is not empty.
    """
    if out.is_dir() and any(out.iterdir()):
        raise UsageError(f"{out} is not empty; name a new folder")
    tables: dict[str, list[list[Any]]] = {
        "annotations": [list(TABLE)],
        "annotations_excluded": [list(TABLE)],
        "characteristics": [[*TABLE, *RATINGS]],
        "patients": [["seriesuid", "patient", "subset", "split"]],
        "seriesuids": [],
    }
    for scan in make_scans(scans, seed, **settings):
        folder = out / f"subset{scan.number % SUBSETS}"
        folder.mkdir(parents=True, exist_ok=True)
        _write_image(folder / f"{scan.series}.mhd", scan)
        tables["seriesuids"].append([scan.series])
        tables["patients"].append([scan.series, scan.patient, scan.number % SUBSETS, scan.split])
        for nodule in scan.phantom.nodules:
            at = [scan.series, *(repr(float(value)) for value in scan.world(nodule))]
            if not nodule.relevant:
                tables["annotations_excluded"].append([*at, -1])
                continue
            tables["annotations"].append([*at, nodule.diameter_mm])
            ratings = [getattr(nodule, name) for name in RATINGS]
            tables["characteristics"].append([*at, nodule.diameter_mm, *ratings])
    for name, lines in tables.items():
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(lines)
        write_file(out / f"{name}.csv", text.getvalue().encode())
    return {
        "scans": scans,
        "nodules": len(tables["annotations"]) - 1,
        "irrelevant": len(tables["annotations_excluded"]) - 1,
    }


def demo_manifest(folder: Path, scans: int = 48, seed: int = 0, **settings: Any) -> Path:
    """Writes prepared scans with masks; returns the path of the manifest, which is written last.

    settings: of `make_scans`; by default, voxels are cubes of 1.25 mm.
    """
    rows = []
    for scan in make_scans(scans, seed, **{"spacing": DEMO_SPACING_MM, **settings}):
        image, mask = folder / f"{scan.series}.npy", folder / f"{scan.series}.mask.npy"
        checksum = write_prepared(image, scan.volume)
        content = io.BytesIO()
        np.lib.format.write_array(content, scan.phantom.mask, allow_pickle=False)
        write_file(mask, content.getvalue())
        z, y, x = scan.phantom.hu.shape
        found = [_nodule(scan, number) for number in range(len(scan.phantom.nodules))]
        relevant = [nodule.relevant for nodule in scan.phantom.nodules]
        rows.append(
            ManifestRow(
                image=str(image.resolve()),
                checksum=checksum,
                series=scan.series,
                patient=scan.patient,
                source="phantom",
                shape=(z, y, x),
                spacing=scan.phantom.spacing,
                affine=scan.affine.tolist(),
                split=scan.split,
                subset=scan.number % SUBSETS,
                nodules=tuple(one for one, counts in zip(found, relevant, strict=True) if counts),
                irrelevant=tuple(one for one, counts in zip(found, relevant, strict=True) if not counts),
                mask=str(mask.resolve()),
                lung_box=scan.phantom.lung_box,
            )
        )
    write_manifest(folder / MANIFEST, rows)
    return folder / MANIFEST


def _nodule(scan: SyntheticScan, number: int) -> Nodule:
    drawn = scan.phantom.nodules[number]
    z, y, x = (np.array(drawn.centre) / scan.phantom.spacing).tolist()
    left, back, head = scan.world(drawn).tolist()
    ratings = {name: getattr(drawn, name) for name in RATINGS} if drawn.relevant else {}
    return Nodule(
        id=f"{scan.series}-{number + 1}",
        world=(left, back, head),
        voxel=(z, y, x),
        diameter_mm=drawn.diameter_mm,
        score=score_of_nodule({**ratings, "diameter_mm": drawn.diameter_mm}),
        label=number + 1 if drawn.relevant else None,
        **ratings,
    )


def _split_of(number: int, scans: int) -> Split:
    training, validation = round(scans / 2), round(scans / 6)
    return "train" if number < training else "validation" if number < training + validation else "test"


def _turned(axis: NDArray[np.float64], degrees: float) -> NDArray[np.float64]:
    """A rotation about an axis, (3, 3) (Rodrigues)."""
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.deg2rad(degrees)
    turn: NDArray[np.float64] = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * (cross @ cross)
    return turn


def _write_image(path: Path, scan: SyntheticScan) -> None:
    import SimpleITK as sitk

    array, affine = scan.phantom.hu, scan.affine.copy()
    for axis in (1, 2) if scan.number % FLIPPED == 3 else ():
        affine[:3, 3] += affine[:3, axis] * (array.shape[axis] - 1)
        affine[:3, axis] *= -1
        array = np.flip(array, axis)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image = sitk.GetImageFromArray(np.ascontiguousarray(array))
    image.SetSpacing(spacing[::-1].tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((affine[:3, :3] / spacing)[:, ::-1].ravel().tolist())
    sitk.WriteImage(image, str(path))
