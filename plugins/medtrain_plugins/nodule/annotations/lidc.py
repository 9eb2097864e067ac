"""Readings of LIDC-IDRI: the marks of each radiologist, which marks are one nodule, and the consensus outline.

Armato SG et al., The Lung Image Database Consortium (LIDC) and Image Database Resource Initiative (IDRI): a completed
reference database of lung nodules on CT scans. Medical Physics 38(2), 2011.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from medtrain.errors import DataError

from medtrain_plugins.imaging.volume import Volume

Array = npt.NDArray[Any]
Kind = Literal["nodule", "small_nodule", "non_nodule"]

# XML tag -> our name.
CHARACTERISTICS = {
    "subtlety": "subtlety",
    "internalStructure": "internal_structure",
    "calcification": "calcification",
    "sphericity": "sphericity",
    "margin": "margin",
    "lobulation": "lobulation",
    "spiculation": "spiculation",
    "texture": "texture",
    "malignancy": "malignancy",
}
# Marks of one nodule are at most this far apart (mm), or the larger radius if that is more.
NEAREST_MM = 3.0


@dataclass(frozen=True)
class Outline:
    """A contour on one image: `points` (N, 2) pixel columns and rows. inclusion: False for a hole. z: mm, as stated."""

    instance: str
    z: float
    points: Array
    inclusion: bool = True


@dataclass(frozen=True)
class Mark:
    """One reader's mark: a nodule of 3 mm or more, outlined and described; a smaller nodule; or a non-nodule."""

    kind: Kind
    reader: str
    id: str
    outlines: tuple[Outline, ...]
    characteristics: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Reading:
    """All marks of all readers on one series."""

    series: str
    study: str
    marks: tuple[Mark, ...]
    path: str = ""


@dataclass(frozen=True, eq=False)
class ConsensusNodule:
    """One nodule by all its readers.

    world: (3,) x, y, z in mm, centre of the consensus voxels. readers: how many outlined it. voxels: (N, 3) indices in
    the volume's array. diameter_mm: of the sphere of equal volume. longest_axial_mm: largest distance of two voxels'
    centres in one slice of the consensus, plus a pixel. characteristics: medians. ids: of the marks.
    """

    world: Array
    readers: int
    voxels: Array
    diameter_mm: float
    longest_axial_mm: float
    characteristics: dict[str, float]
    ids: tuple[str, ...]


def read_lidc(path: str | Path) -> Reading:
    """Reads the XML of a CT reading, with or without name spaces.

    Entities and external references are refused. Raises DataError for other files, and for readings of radiographs.
    """
    from xml.etree.ElementTree import ParseError

    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import parse

    path = Path(path)
    try:
        root = parse(path, forbid_dtd=True).getroot()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except ParseError as error:
        raise DataError(f"{path}: is no XML ({error})") from None
    except DefusedXmlException as error:
        raise DataError(
            f"{path}: declares entities or a document type ({type(error).__name__}); it is not read"
        ) from None
    if _tag(root) not in ("LidcReadMessage", "IdriReadMessage"):
        raise DataError(f"{path}: its root is {_tag(root)!r}, not LidcReadMessage; is it a reading of LIDC-IDRI?")
    series = _find_text(root, "SeriesInstanceUid") or _find_text(root, "SeriesInstanceUID")
    if not series:
        what = (
            "a reading of radiographs"
            if next(_named(root, "CXRreadingSession"), None) is not None
            else "it names no SeriesInstanceUid"
        )
        raise DataError(f"{path}: {what}, so it belongs to no CT series")
    study = _find_text(root, "StudyInstanceUID") or _find_text(root, "StudyInstanceUid")
    marks: list[Mark] = []
    for number, session in enumerate(_named(root, "readingSession"), start=1):
        # Radiologists are anonymous in the public files: each session stands for one.
        reader = f"{number}:{_find_text(session, 'servicingRadiologistID') or 'anon'}"
        for element in session:
            if _tag(element) == "unblindedReadNodule":
                marks.append(_nodule(element, reader, path))
            elif _tag(element) == "nonNodule":
                marks.append(_non_nodule(element, reader, path))
    return Reading(series, study, tuple(marks), str(path))


def cluster_marks(
    marks: Sequence[Mark], centres: Array, radii: Array, distance: float | None = None
) -> list[list[int]]:
    """Groups of marks (indices) of one nodule: at most one mark per reader, nearest pairs joined first.

    centres: (N, 3) mm. radii: (N,) mm. distance: the largest distance between two centres in mm; None: the larger of
    both radii, at least 3 mm.
    """
    groups = {index: [index] for index in range(len(marks))}
    group_of = list(range(len(marks)))
    gaps = np.linalg.norm(centres[:, None] - centres[None], axis=-1) if len(marks) else np.zeros((0, 0))
    pairs = sorted((float(gaps[i, j]), i, j) for i in range(len(marks)) for j in range(i))
    for gap, i, j in pairs:
        most = distance if distance is not None else max(float(radii[i]), float(radii[j]), NEAREST_MM)
        one, other = groups[group_of[i]], groups[group_of[j]]
        if gap > most or one is other or {marks[k].reader for k in one} & {marks[k].reader for k in other}:
            continue
        gone = group_of[j]
        one += other
        for k in other:
            group_of[k] = group_of[i]
        del groups[gone]
    return [sorted(group) for group in groups.values()]


def consensus(
    reading: Reading, volume: Volume, *, agreement: float = 0.5, distance: float | None = None
) -> tuple[list[ConsensusNodule], list[str]]:
    """The nodules of 3 mm or more on a volume read from the DICOM series of the reading; and notes.

    agreement: the share of a nodule's readers whose outlines must include a voxel. Raises DataError when the volume is
    of another series.
    """
    _refuse_other_series(reading, volume)
    notes: list[str] = []
    drawn: list[tuple[Mark, Array]] = []
    for mark in reading.marks:
        if mark.kind != "nodule":
            continue
        voxels = mark_voxels(mark, volume, notes)
        if len(voxels):
            drawn.append((mark, voxels))
        else:
            notes.append(f"{mark.id} of reader {mark.reader}: outlines no voxel of the scan")
    cell = float(abs(np.linalg.det(volume.affine[:3, :3])))
    centres = np.array([volume.to_world(voxels.mean(axis=0)) for _, voxels in drawn]).reshape(-1, 3)
    radii = np.array([_diameter(len(voxels), cell) / 2 for _, voxels in drawn])
    found = []
    for group in cluster_marks([mark for mark, _ in drawn], centres, radii, distance):
        indices, counts = np.unique(np.concatenate([drawn[i][1] for i in group]), axis=0, return_counts=True)
        agreed = indices[counts >= agreement * len(group) - 1e-9]
        ids = tuple(drawn[i][0].id for i in group)
        if not len(agreed):
            notes.append(
                f"{', '.join(ids)}: no voxel that {agreement:.0%} of {len(group)} readers agree on; all are taken"
            )
            agreed = indices
        found.append(
            ConsensusNodule(
                volume.to_world(agreed.mean(axis=0)),
                len(group),
                agreed,
                _diameter(len(agreed), cell),
                _longest_axial(agreed, volume),
                _medians([drawn[i][0].characteristics for i in group]),
                ids,
            )
        )
    return found, notes


def mark_centres(reading: Reading, volume: Volume, kind: Kind) -> Array:
    """Centres, (N, 3) world mm, of the marks of one kind (means of their points) on the given images."""
    _refuse_other_series(reading, volume)
    places = volume.provenance.get("slices", {})
    centres = []
    for mark in reading.marks:
        points = [
            (places[outline.instance], row, column)
            for outline in mark.outlines
            if outline.instance in places
            for column, row in outline.points
        ]
        if mark.kind == kind and points:
            centres.append(volume.to_world(_from_source(np.mean(points, axis=0), volume)))
    return np.array(centres).reshape(-1, 3)


def mark_voxels(mark: Mark, volume: Volume, notes: list[str] | None = None) -> Array:
    """The voxels (N, 3) within a mark's outlines, indices in the volume's array.

    Outlines run around the nodule; their own pixels are outside. They are drawn on the slice of their image, found by
    UID. If the outlines are too narrow to contain a pixel, the mark has the pixels of the outlines.
    """
    import cv2

    places = volume.provenance.get("slices", {})
    sources = [source for source, _ in volume.order]
    size = np.array(volume.shape)[np.argsort(sources)]
    inside: dict[int, Array] = {}
    lines: dict[int, Array] = {}
    for outline in sorted(mark.outlines, key=lambda one: not one.inclusion):
        if outline.instance not in places:
            if notes is not None:
                notes.append(f"{mark.id} of reader {mark.reader}: image {outline.instance} is not in the series")
            continue
        at = round(places[outline.instance])
        points = np.rint(outline.points).astype(np.int32)[:, None]
        filled, edge = np.zeros((2, size[1], size[2]), dtype=np.uint8)
        cv2.fillPoly(filled, [points], 1)
        cv2.polylines(edge, [points], True, 1)
        core = (filled > 0) & (edge == 0)
        slice_ = inside.setdefault(at, np.zeros(filled.shape, dtype=bool))
        line = lines.setdefault(at, np.zeros(filled.shape, dtype=bool))
        if outline.inclusion:
            slice_ |= core
            line |= edge > 0
        else:
            slice_ &= ~core
    chosen = inside if any(image.any() for image in inside.values()) else lines
    found = [
        np.column_stack([np.full(image.sum(), at), *np.nonzero(image)]) for at, image in chosen.items() if image.any()
    ]
    if not found:
        return np.zeros((0, 3), dtype=np.int64)
    return np.rint(_from_source(np.concatenate(found), volume)).astype(np.int64)


def _from_source(points: Array, volume: Volume) -> Array:
    """Indices (..., 3) in the file's order -> in the volume's array."""
    turned = np.stack([points[..., source] for source, _ in volume.order], axis=-1)
    flipped = np.array([flip for _, flip in volume.order])
    return np.asarray(np.where(flipped, np.array(volume.shape) - 1 - turned, turned))


def _refuse_other_series(reading: Reading, volume: Volume) -> None:
    if reading.series != volume.series:
        raise DataError(f"{reading.path}: reads series {reading.series}, the scan is {volume.series or 'of no series'}")
    if not volume.provenance.get("slices"):
        raise DataError(f"{reading.path}: outlines are on DICOM images; read the scan from its DICOM series")


def _diameter(count: int, cell: float) -> float:
    """Of the sphere of `count` voxels of `cell` mm3."""
    return float((6 * count * cell / np.pi) ** (1 / 3))


def _longest_axial(voxels: Array, volume: Volume) -> float:
    from scipy.spatial.distance import pdist

    pixel = float(volume.spacing[1:].max())
    longest = 0.0
    for z in np.unique(voxels[:, 0]):
        plane = volume.to_world(voxels[voxels[:, 0] == z])
        longest = max(longest, float(pdist(_rim(plane)).max()) if len(plane) > 1 else 0.0)
    return longest + pixel


def _rim(points: Array) -> Array:
    """The points that can be farthest apart: the ends of each line."""
    if len(points) < 500:
        return points
    from scipy.spatial import ConvexHull, QhullError

    centred = points - points.mean(axis=0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:2]
    try:
        return np.asarray(points[ConvexHull(centred @ axes.T).vertices])
    except QhullError:
        return points


def _medians(all_: Sequence[dict[str, int]]) -> dict[str, float]:
    names = sorted({name for one in all_ for name in one})
    return {name: float(np.median([one[name] for one in all_ if name in one])) for name in names}


def _nodule(element: Any, reader: str, path: Path) -> Mark:
    outlines = tuple(_outlines(element, "edgeMap", path))
    scores: dict[str, int] = {}
    for described in _named(element, "characteristics"):
        for item in described:
            name, value = CHARACTERISTICS.get(_tag(item)), (item.text or "").strip()
            # Some readers left a 0 for what they did not rate.
            if name and value.isdecimal() and int(value) > 0:
                scores[name] = int(value)
    outlined = any(len(outline.points) > 1 for outline in outlines)
    kind: Kind = "nodule" if outlined else "small_nodule"
    return Mark(kind, reader, _find_text(element, "noduleID") or "nodule", outlines, scores)


def _non_nodule(element: Any, reader: str, path: Path) -> Mark:
    outlines = tuple(_outlines(element, "locus", path, around=(element,)))
    return Mark("non_nodule", reader, _find_text(element, "nonNoduleID") or "non-nodule", outlines)


def _outlines(element: Any, point: str, path: Path, around: Sequence[Any] | None = None) -> Iterator[Outline]:
    for roi in around if around is not None else _named(element, "roi"):
        try:
            points = [
                (float(_find_text(one, "xCoord")), float(_find_text(one, "yCoord"))) for one in _named(roi, point)
            ]
            z = float(_find_text(roi, "imageZposition") or "nan")
        except ValueError as error:
            raise DataError(f"{path}: a coordinate is no number ({error})") from None
        if points:
            inclusion = _find_text(roi, "inclusion").upper() != "FALSE"
            yield Outline(_find_text(roi, "imageSOP_UID"), z, np.array(points, dtype=np.float64), inclusion)


def _tag(element: Any) -> str:
    """The name of an element without its name space."""
    return str(element.tag).rsplit("}", 1)[-1]


def _named(element: Any, name: str) -> Iterator[Any]:
    return (one for one in element.iter() if _tag(one) == name)


def _find_text(element: Any, name: str) -> str:
    return next(((one.text or "").strip() for one in _named(element, name) if (one.text or "").strip()), "")
