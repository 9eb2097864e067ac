"""Prepared scans: a `.npy` of voxels that can be memory-mapped, a `.json` beside it, and the manifest of all scans.

The manifest is JSON lines: one row per scan, with its geometry, its nodules and its group of the split.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from medtrain.errors import DataError, first_lines
from medtrain.rundir import replace_file, sha256
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from medtrain_plugins.imaging.volume import Geometry, Volume

Array = npt.NDArray[Any]
Triple = tuple[float, float, float]
Score = float | None

MANIFEST = "manifest.jsonl"
SPLITS = ("train", "validation", "test", "")
_STRICT = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Nodule(BaseModel):
    """An annotated nodule.

    world: centre, x, y, z in mm (LPS). voxel: the same in the prepared array, z, y, x, continuous. diameter_mm: None
    where no reader measured it. readers: how many marked it; None where unknown. Characteristics are medians over the
    readers on the scales of LIDC, 1 to 5 (1 to 6 for two of them). score: triage score, real-valued, 1 to 10, where the
    source has one or a malignancy. label: its value in the row's mask.
    """

    model_config = _STRICT

    id: str
    world: Triple
    voxel: Triple
    diameter_mm: float | None = Field(default=None, gt=0)
    readers: int | None = Field(default=None, ge=1)
    longest_axial_mm: float | None = Field(default=None, gt=0)
    subtlety: Score = None
    internal_structure: Score = None
    calcification: Score = None
    sphericity: Score = None
    margin: Score = None
    lobulation: Score = None
    spiculation: Score = None
    texture: Score = None
    malignancy: Score = None
    growth: str | None = None
    score: float | None = Field(default=None, ge=1, le=10)
    label: int | None = Field(default=None, ge=1)


class ManifestRow(BaseModel):
    """A prepared scan.

    image: path of the array (Z, Y, X), int16 HU; in the file relative to it, once read absolute. spacing: z, y, x in
    mm. affine: (4, 4), z, y, x -> world. checksum: SHA-256 of the image file. split: "" without a split; fold: the
    number of the fold that holds the scan out, in a manifest with folds. irrelevant: findings whose candidates count
    neither as true nor as false. unplaced: annotations outside the scan, which training does not use. mask: path of an
    array like the image, uint8: 0, or the label of a nodule. lungs: the same for the lungs, bool; lung_box: first and
    last + 1 index of the lungs, z, y, x.
    """

    model_config = _STRICT

    image: str
    checksum: str
    series: str = Field(min_length=1)
    patient: str = Field(min_length=1)
    source: str = ""
    shape: tuple[int, int, int]
    spacing: Triple
    affine: tuple[tuple[float, float, float, float], ...]
    split: Literal["train", "validation", "test", ""] = ""
    fold: int | None = Field(default=None, ge=0)
    subset: int | None = Field(default=None, ge=0)
    nodules: tuple[Nodule, ...] = ()
    irrelevant: tuple[Nodule, ...] = ()
    unplaced: tuple[Nodule, ...] = ()
    lungs: str | None = None
    mask: str | None = None
    lung_box: tuple[tuple[int, int, int], tuple[int, int, int]] | None = None
    notes: tuple[str, ...] = ()

    @field_validator("affine")
    @classmethod
    def _square(cls, value: tuple[tuple[float, ...], ...]) -> tuple[tuple[float, ...], ...]:
        if len(value) != 4 or abs(np.linalg.det(np.array(value)[:3, :3])) < 1e-9:
            raise ValueError("the affine is no invertible 4 x 4 matrix")
        return value

    @property
    def geometry(self) -> Geometry:
        """The geometry of the prepared array."""
        return Geometry(self.shape, np.array(self.affine, dtype=np.float64))

    def open(self) -> Array:
        """The voxels (Z, Y, X), int16 HU, memory-mapped read-only: only used parts are read. Raises DataError."""
        return open_array(Path(self.image), self.shape)


def read_manifest(path: str | Path, *, verify: bool = False) -> list[ManifestRow]:
    """The rows of a manifest (or of the one in a folder), with absolute paths.

    verify: compare the checksum of every image. Raises DataError that names unusable lines, repeated series, patients
    in two groups of the split, and missing images.
    """
    path = Path(path)
    if path.is_dir():
        path = path / MANIFEST
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); make it with `medtrain data prepare nodule`"
        ) from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8 text, so it is no manifest") from None
    rows, problems = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = ManifestRow.model_validate_json(line)
        except ValidationError as error:
            problems += [
                f"{path.name}:{number}: {'.'.join(map(str, one['loc'])) or 'row'}: {one['msg']}"
                for one in error.errors()
            ]
            continue
        rows.append(row.model_copy(update=_absolute(row, path.parent.resolve())))
    problems += _contradictions(rows)
    if not rows and not problems:
        problems.append("it has no rows")
    if verify:
        problems += [
            f"{row.image}: is not the file that was prepared (its checksum differs)"
            for row in rows
            if Path(row.image).is_file() and sha256(Path(row.image)) != row.checksum
        ]
    if problems:
        raise DataError(f"{path}: {len(problems)} problems\n{first_lines(problems)}")
    return rows


def write_manifest(path: Path, rows: Iterable[ManifestRow]) -> str:
    """Writes rows, complete or not at all, with paths relative to the manifest; returns the SHA-256 of the file."""
    folder = path.parent.resolve()
    lines = [row.model_copy(update=_relative(row, folder)).model_dump_json(exclude_defaults=True) for row in rows]
    text = "".join(line + "\n" for line in lines)
    write_file(path, text.encode())
    return hashlib.sha256(text.encode()).hexdigest()


def write_prepared(path: Path, volume: Volume, extra: dict[str, Any] | None = None) -> str:
    """Writes a volume as `.npy` and, last, its `.json`, each complete or not at all; returns the array's SHA-256.

    extra: further entries of the `.json`.
    """
    with _replaced(path) as aside:
        with aside.open("wb") as file:
            np.lib.format.write_array(file, np.ascontiguousarray(volume.array), allow_pickle=False)
        checksum = sha256(aside)
    told = {
        "shape": list(volume.shape),
        "affine": volume.affine.tolist(),
        "spacing": volume.spacing.tolist(),
        "series": volume.series,
        "patient": volume.patient,
        "notes": list(volume.notes),
        "provenance": dict(volume.provenance),
        "checksum": checksum,
        **(extra or {}),
    }
    write_file(sidecar(path), (json.dumps(told, allow_nan=False) + "\n").encode())
    return checksum


def read_sidecar(path: Path) -> dict[str, Any]:
    """The `.json` that `write_prepared` wrote beside an array. Raises DataError."""
    beside = sidecar(path)
    try:
        told = json.loads(beside.read_text(encoding="utf-8"))
        np.array(told["affine"], dtype=np.float64).reshape(4, 4)
    except OSError as error:
        raise DataError(f"{path}: its geometry, {beside.name}, cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{beside}: is no description of a prepared scan; prepare it again") from None
    return dict(told)


def read_prepared(path: Path) -> Volume:
    """A prepared scan with memory-mapped voxels. Raises DataError."""
    told = read_sidecar(path)
    z, y, x = told["shape"]
    return Volume(
        open_array(path, (z, y, x)),
        np.array(told["affine"], dtype=np.float64),
        str(told.get("series", "")),
        str(told.get("patient", "")),
        dict(told.get("provenance", {})),
        tuple(told.get("notes", ())),
    )


def open_array(path: Path, shape: tuple[int, int, int]) -> Array:
    """An array on disk, memory-mapped read-only; raises DataError for another shape."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: cannot be read ({error}); prepare the scan again") from None
    if array.shape != tuple(shape):
        raise DataError(f"{path}: has the shape {array.shape}, {tuple(shape)} was prepared; prepare the scan again")
    return np.asarray(array)


def sidecar(path: Path) -> Path:
    """The path of the `.json` beside a prepared array."""
    return path.with_suffix(".json")


def write_file(path: Path, content: bytes) -> None:
    """Writes a file, complete or not at all. Raises DataError."""
    with _replaced(path) as aside:
        aside.write_bytes(content)


@contextmanager
def _replaced(path: Path) -> Iterator[Path]:
    """`replace_file` in a folder that is made when needed. Raises DataError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path) as aside:
            yield aside
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from error


_PATHS = ("image", "lungs", "mask")


def _absolute(row: ManifestRow, folder: Path) -> dict[str, Any]:
    return _with_paths(row, lambda name: str(folder / name))


def _relative(row: ManifestRow, folder: Path) -> dict[str, Any]:
    def relative(name: str) -> str:
        path = Path(name)
        return str(path.relative_to(folder)) if path.is_relative_to(folder) else name

    return _with_paths(row, relative)


def _with_paths(row: ManifestRow, change: Any) -> dict[str, Any]:
    return {name: change(value) for name in _PATHS if (value := getattr(row, name)) is not None}


def _contradictions(rows: list[ManifestRow]) -> list[str]:
    problems = []
    series: set[str] = set()
    side: dict[str, tuple[str, int | None]] = {}
    for row in rows:
        if row.series in series:
            problems.append(f"series {row.series} is there more than once")
        series.add(row.series)
        if side.setdefault(row.patient, (row.split, row.fold)) != (row.split, row.fold):
            problems.append(f"patient {row.patient} is on two sides of the split")
        if not Path(row.image).is_file():
            problems.append(f"{row.image}: no such file")
    return problems
