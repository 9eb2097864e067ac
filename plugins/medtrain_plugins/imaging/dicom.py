"""DICOM series as volumes: one series, slices in the order they lie in, geometry from positions and nothing else.

Files hold one slice or many (enhanced, multi-frame CT); each frame is a slice with a position, an orientation and a
rescaling of its own. What would put voxels in the wrong place is refused; what is odd is reported in the notes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from medtrain.errors import DataError, first_lines

from medtrain_plugins.imaging.pixels import NO_MARK, Unfit, decode, reading
from medtrain_plugins.imaging.volume import Volume, no_pixels

if TYPE_CHECKING:
    from pydicom import Dataset

Array = npt.NDArray[Any]

# Slices nearer than this (mm) are one slice twice.
_TWICE = 1e-3
# Of the slice distance: a larger hole is a gap; positions off the regular grid by less are rounded numbers.
_GAP, _JITTER = 1.5, 0.05
_TILT = 0.1  # degrees
_ALIKE = 1e-4  # of direction cosines; relative, of spacings
_SECONDARY_CAPTURES = "1.2.840.10008.5.1.4.1.1.7"  # pictures of a screen; the multi-frame classes begin with it as well
_AIR = -1000  # HU


@dataclass(frozen=True)
class Slice:
    """One frame of one file. position: (3,) mm, of the first pixel's centre. rows, columns: (3,) unit vectors along
    which the column index and the row index grow. spacing: of rows, of columns, mm.
    """

    path: Path
    frame: int
    instance: str
    modality: str
    size: tuple[int, int]
    position: Array
    rows: Array
    columns: Array
    spacing: tuple[float, float]
    slope: float
    intercept: float
    rescaled: bool
    thickness: float | None

    @property
    def label(self) -> str:
        return f"{self.path.name}, frame {self.frame + 1}" if self.frame else self.path.name


@dataclass
class Series:
    """The slices of one SeriesInstanceUID, in any order, and what their files say of it."""

    uid: str
    patient: str = ""
    study: str = ""
    modality: str = ""
    description: str = ""
    slices: list[Slice] | None = None
    paths: list[Path] | None = None
    instances: list[str] = field(default_factory=list)  # the SOPInstanceUID of each path


def read_folder(
    path: Path, *, series: str | None = None, force: bool = False, pixels: bool = True, interpolate: bool = True
) -> Volume:
    """The volume in a folder of DICOM files and the folders in it.

    series: which, needed when there are several. force: take files without the mark of DICOM as well.
    pixels: read them, not only the headers. interpolate: slices that are not evenly spaced, a gap among them, to a
    regular grid; else they are refused. Raises DataError.
    """
    files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    if not files:
        raise DataError(f"{path}: the folder is empty; name the folder of a DICOM series")
    found, others = group_series(files, force=force)
    images = {uid: one for uid, one in found.items() if one.slices}
    if not images:
        said = first_lines([f"{file.name}: {reason}" for file, reason in others], limit=5)
        unmarked = any(reason == NO_MARK for _, reason in others)
        hint = "\nFiles that lack the mark DICM and are DICOM all the same are read with force." if unmarked else ""
        raise DataError(f"{path}: no DICOM images among {len(files)} files\n{said}{hint}")
    if series is not None:
        if series not in images:
            raise DataError(f"{path}: has no series {series}; it has\n{_listed(images.values())}")
        chosen = images[series]
    elif len(images) > 1:
        raise DataError(
            f"{path}: several series in one folder: {len(images)} series; say which, or give each a folder of its own\n"
            + _listed(images.values())
        )
    else:
        chosen = next(iter(images.values()))
    left_out = [(file, reason) for file, reason in others if reason != "another series"]
    notes = []
    if left_out:
        notes.append(
            f"{len(left_out)} of {len(files)} files are not taken: "
            + "; ".join(f"{file.name} ({reason})" for file, reason in left_out[:3])
        )
    return _assemble(chosen, str(path), notes, pixels=pixels, interpolate=interpolate)


def read_series(
    files: Sequence[Path], *, force: bool = False, pixels: bool = True, interpolate: bool = True, where: str = ""
) -> Volume:
    """The volume in these files, which are of one series; arguments as in `read_folder`. Raises DataError."""
    where = where or str(files[0] if len(files) == 1 else files[0].parent)
    found, others = group_series(files, force=force)
    if len(found) != 1 or others:
        said = [f"{file.name}: {reason}" for file, reason in others]
        said += [f"series {one.uid}" for one in found.values()] if len(found) > 1 else []
        raise DataError(f"{where}: not the slices of one series\n{first_lines(said)}")
    return _assemble(next(iter(found.values())), where, [], pixels=pixels, interpolate=interpolate)


def group_series(files: Iterable[Path], *, force: bool = False) -> tuple[dict[str, Series], list[tuple[Path, str]]]:
    """The series among files, by UID, and each file that is no slice of one with the reason. Headers only."""
    found: dict[str, Series] = {}
    others: list[tuple[Path, str]] = []
    for file in files:
        try:
            with reading():
                header = _header(file, force)
                slices = list(_slices(file, header))
                uid = _text(header, "SeriesInstanceUID")
                if not uid:
                    raise Unfit("has no SeriesInstanceUID")
        except Unfit as problem:
            others.append((file, str(problem)))
            continue
        one = found.setdefault(uid, Series(uid, slices=[], paths=[]))
        one.patient = one.patient or _text(header, "PatientID")
        one.study = one.study or _text(header, "StudyInstanceUID")
        one.modality = one.modality or _text(header, "Modality")
        one.description = one.description or _text(header, "SeriesDescription")
        assert one.slices is not None and one.paths is not None
        one.slices += slices
        one.paths.append(file)
        one.instances.append(_text(header, "SOPInstanceUID"))
    return found, others


def _header(path: Path, force: bool) -> Dataset:
    from pydicom import dcmread

    header = dcmread(path, stop_before_pixels=True, force=force)
    if not header.get("SOPClassUID") and not header.get("Rows"):
        raise Unfit("not a DICOM file" if force else "not an image")
    return header


def _slices(path: Path, header: Dataset) -> Iterator[Slice]:
    if not header.get("Rows") or not header.get("Columns"):
        raise Unfit(f"no image ({_text(header, 'Modality') or 'unknown modality'})")
    if int(header.get("SamplesPerPixel") or 1) != 1:
        raise Unfit("a colour image")
    if "LOCALIZER" in list(map(str.upper, map(str, header.get("ImageType") or ()))):
        raise Unfit("no image of the volume: ImageType says LOCALIZER")
    storage = _text(header, "SOPClassUID")
    if storage == _SECONDARY_CAPTURES or storage.startswith(f"{_SECONDARY_CAPTURES}."):
        raise Unfit("no image of the volume: a secondary capture")
    frames = int(header.get("NumberOfFrames") or 1)
    shared = _first(header, "SharedFunctionalGroupsSequence")
    each = header.get("PerFrameFunctionalGroupsSequence")
    if frames > 1 and (each is None or len(each) != frames):
        raise Unfit(f"{frames} frames without positions of their own")
    for frame in range(frames):
        groups = [group for group in (each[frame] if each else None, shared) if group is not None]
        places = [header] + [
            item
            for name in (
                "PlanePositionSequence",
                "PlaneOrientationSequence",
                "PixelMeasuresSequence",
                "PixelValueTransformationSequence",
            )
            for group in groups
            if (item := _first(group, name)) is not None
        ]
        position = _numbers(places, "ImagePositionPatient", 3)
        orientation = _numbers(places, "ImageOrientationPatient", 6)
        spacing = _numbers(places, "PixelSpacing", 2)
        for value, name in (
            (position, "ImagePositionPatient"),
            (orientation, "ImageOrientationPatient"),
            (spacing, "PixelSpacing"),
        ):
            if value is None:
                raise Unfit(f"has no {name}")
        assert position is not None and orientation is not None and spacing is not None
        along_row, along_column = _unit_vectors(orientation)
        if spacing.min() <= 0:
            raise Unfit(f"PixelSpacing is {spacing.tolist()}")
        slope, intercept = _numbers(places, "RescaleSlope", 1), _numbers(places, "RescaleIntercept", 1)
        thickness = _numbers(places, "SpacingBetweenSlices", 1)
        thickness = thickness if thickness is not None else _numbers(places, "SliceThickness", 1)
        yield Slice(
            path,
            frame,
            _text(header, "SOPInstanceUID"),
            _text(header, "Modality"),
            (int(header.Rows), int(header.Columns)),
            position,
            along_row,
            along_column,
            (float(spacing[0]), float(spacing[1])),
            # One of them alone counts: without a slope it is 1.
            1.0 if slope is None else float(slope[0]),
            0.0 if intercept is None else float(intercept[0]),
            slope is not None or intercept is not None,
            None if thickness is None or thickness[0] <= 0 else float(thickness[0]),
        )


def _unit_vectors(orientation: Array) -> tuple[Array, Array]:
    """Along a row and along a column; they are written with few decimals, so lengths are made 1."""
    rows, columns = orientation[:3], orientation[3:]
    lengths = np.linalg.norm(rows), np.linalg.norm(columns)
    if min(lengths) < 0.5 or abs(rows @ columns) > 1e-2:
        raise Unfit(f"ImageOrientationPatient is {orientation.tolist()}")
    return rows / lengths[0], columns / lengths[1]


def _assemble(series: Series, where: str, notes: list[str], *, pixels: bool, interpolate: bool) -> Volume:
    slices = series.slices or []
    _refuse_mixture(slices, where)
    first = slices[0]
    normal = np.cross(first.rows, first.columns)
    slices = sorted(slices, key=lambda one: float(one.position @ normal))
    first = slices[0]
    along = np.array([float(one.position @ normal) for one in slices])
    _refuse_duplicates(slices, along, where)

    if len(slices) == 1:
        if first.thickness is None:
            raise DataError(f"{where}: a single slice without SliceThickness is no volume")
        notes.append(f"a single slice; {first.thickness:g} mm are taken for its thickness")
        step, count = normal * first.thickness, 1
        position_of = np.zeros(1)
    else:
        uneven = len(notes)
        step, position_of, count = _grid(slices, along, notes)
        if not interpolate and not np.array_equal(position_of, np.arange(len(slices))):
            raise DataError(f"{where}: the slices are not evenly spaced: {'; '.join(notes[uneven:])}")
        tilt = np.degrees(np.arccos(np.clip(step @ normal / np.linalg.norm(step), -1, 1)))
        if tilt > _TILT:
            notes.append(
                f"gantry tilt: slices are displaced along {tilt:.1f} degrees to their normal; the affine says so"
            )
    if not all(one.rescaled for one in slices):
        bare = sum(not one.rescaled for one in slices)
        notes.append(
            f"{bare} slices have neither RescaleSlope nor RescaleIntercept; their values are taken as they are"
        )
    if series.modality and series.modality != "CT":
        notes.append(f"Modality is {series.modality}, not CT: values are not HU")

    affine = np.eye(4)
    affine[:3, 0] = step
    affine[:3, 1] = first.columns * first.spacing[0]
    affine[:3, 2] = first.rows * first.spacing[1]
    affine[:3, 3] = first.position
    array = _pixels(slices, position_of, count, where) if pixels else no_pixels((count, *first.size))
    provenance = {
        "path": where,
        "format": "DICOM",
        "study": series.study,
        "modality": series.modality,
        "files": len(series.paths or []),
        # Along the first axis of the file's order; marks of readers name slices by UID.
        "slices": {one.instance: round(float(at), 6) for one, at in zip(slices, position_of, strict=True)},
    }
    return Volume.of_source(
        array, affine, series=series.uid, patient=series.patient, provenance=provenance, notes=tuple(notes)
    )


def _refuse_mixture(slices: Sequence[Slice], where: str) -> None:
    first = slices[0]
    for one in slices:
        for what, differs in (
            ("size", one.size != first.size),
            ("orientation", max(abs(one.rows - first.rows).max(), abs(one.columns - first.columns).max()) > _ALIKE),
            ("pixel spacing", not np.allclose(one.spacing, first.spacing, rtol=_ALIKE, atol=0)),
        ):
            if differs:
                raise DataError(
                    f"{where}: {first.label} and {one.label} of one series differ in {what}; move one kind (often the "
                    "localizer) elsewhere"
                )


def _refuse_duplicates(slices: Sequence[Slice], along: Array, where: str) -> None:
    twice = np.flatnonzero(np.diff(along) < _TWICE)
    if len(twice):
        said = [f"{slices[i].label} and {slices[i + 1].label} at {along[i]:.2f} mm" for i in twice.tolist()]
        raise DataError(
            f"{where}: {len(twice)} slices are there twice; remove the copies, or a second reconstruction\n"
            + first_lines(said)
        )


def _grid(slices: Sequence[Slice], along: Array, notes: list[str]) -> tuple[Array, Array, int]:
    """The step (3,) from slice to slice in mm, the place of each slice on the regular grid, and its length.

    Distances that are alike but for rounding are averaged, which keeps the last slice where it is. Others are told, and
    the slices keep their true places between those of the grid of the median distance.
    """
    first, last = slices[0], slices[-1]
    distances = np.diff(along)
    median = float(np.median(distances))
    gaps = np.flatnonzero(distances > _GAP * median)
    way = (last.position - first.position) / (along[-1] - along[0])
    even = (along[-1] - along[0]) / (len(slices) - 1)
    regular = np.arange(len(slices)) * even
    if not len(gaps) and np.abs(along - along[0] - regular).max() <= _JITTER * even:
        stray = _stray(slices, way, along)
        if stray > _JITTER * min(first.spacing):
            notes.append(f"slices are displaced sideways by up to {stray:.2f} mm from a straight line")
        return way * even, np.arange(len(slices), dtype=np.float64), len(slices)
    notes += [
        f"gap of {distances[gap]:.2f} mm between {slices[gap].label} and {slices[gap + 1].label}, where slices are "
        f"{median:.2f} mm apart; the voxels within are interpolated"
        for gap in gaps.tolist()
    ]
    rest = np.delete(distances, gaps)
    if rest.size and rest.max() - rest.min() > _JITTER * median:
        notes.append(
            f"slices are {rest.min():.2f} to {rest.max():.2f} mm apart; the volume is interpolated to {median:.2f} mm"
        )
    position_of = (along - along[0]) / median
    # Whole places are meant to be whole: then slices are copied, not interpolated.
    whole = np.rint(position_of)
    if np.abs(position_of - whole).max() <= _JITTER and len(np.unique(whole)) == len(whole):
        median = float((along[-1] - along[0]) / whole[-1])
        position_of = whole
    return way * median, position_of, int(np.floor(position_of[-1] + 1e-6)) + 1


def _stray(slices: Sequence[Slice], way: Array, along: Array) -> float:
    """How far, in mm, positions lie from the line between the first and the last."""
    straight = slices[0].position + (along - along[0])[:, None] * way
    return float(np.linalg.norm(np.stack([one.position for one in slices]) - straight, axis=1).max())


def _pixels(slices: Sequence[Slice], position_of: Array, count: int, where: str) -> Array:
    """(count, rows, columns): int16 when all values are whole numbers that fit, else float32."""
    whole = all(one.slope == int(one.slope) and one.intercept == int(one.intercept) for one in slices)
    stack: Array = np.empty((len(slices), *slices[0].size), dtype=np.int32 if whole else np.float64)
    decoded: tuple[Path, Array, Array | None] | None = None
    # Frames of one file follow each other, so that it is decoded once.
    for index in sorted(range(len(slices)), key=lambda i: (str(slices[i].path), slices[i].frame)):
        one = slices[index]
        if decoded is None or decoded[0] != one.path:
            decoded = one.path, *decode(one.path, where)
        _, frames, paddings = decoded
        raw = frames[one.frame] if frames.ndim == 3 else frames
        if raw.shape != one.size:
            raise DataError(f"{where}: {one.label}: pixels of the shape {raw.shape}, the header says {one.size}")
        values = raw.astype(stack.dtype) * stack.dtype.type(one.slope) + stack.dtype.type(one.intercept)
        if paddings is not None:
            padding = paddings[one.frame] if paddings.ndim == 3 else paddings
            darkest = _AIR if one.modality == "CT" else values[~padding].min(initial=values.max())
            values[padding] = np.minimum(values[padding], darkest)
        stack[index] = values
    if count == len(slices) and np.array_equal(position_of, np.arange(count)):
        return stack
    grid = np.arange(count, dtype=np.float64)
    upper = np.clip(np.searchsorted(position_of, grid, side="left"), 1, len(slices) - 1)
    lower = upper - 1
    weight = ((grid - position_of[lower]) / (position_of[upper] - position_of[lower])).clip(0, 1)[:, None, None]
    between = stack[lower] * (1 - weight) + stack[upper] * weight
    return np.asarray(np.rint(between) if whole else between)


def _numbers(places: Sequence[Dataset], keyword: str, count: int) -> Array | None:
    """The first value of a keyword among `places`, as `count` finite numbers; None where there is none."""
    for place in places:
        value = place.get(keyword)
        if value is None or value == "":
            continue
        values = np.atleast_1d(np.asarray(value, dtype=np.float64))
        if values.shape != (count,) or not np.isfinite(values).all():
            raise Unfit(f"{keyword} is {re.sub(r'[^0-9eE+., -]', '', str(value)) or value!r}")
        return values
    return None


def _first(dataset: Dataset, keyword: str) -> Any:
    items = dataset.get(keyword)
    return items[0] if items else None


def _text(dataset: Dataset, keyword: str) -> str:
    value = dataset.get(keyword)
    return "" if value is None else str(value).strip()


def _listed(series: Iterable[Series]) -> str:
    return first_lines(
        [
            f"{one.uid} ({one.modality or 'no modality'}, {len(one.slices or [])} slices"
            + (f", {one.description}" if one.description else "")
            + ")"
            for one in series
        ],
        limit=20,
    )
