"""Readings of LIDC-IDRI: name spaces, kinds of marks, readers who mean one nodule, what they agree on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from medtrain.errors import DataError
from medtrain_plugins.imaging.volume import Volume
from medtrain_plugins.nodule.annotations.lidc import cluster_marks, consensus, mark_centres, read_lidc
from medtrain_plugins.nodule.scans.volume import read_volume
from scan_files import write_dicom

SERIES = "1.2.3"


def roi(z: int, points: list[tuple[int, int]], inclusion: str = "TRUE") -> str:
    edges = "".join(f"<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>" for x, y in points)
    return (
        f"<roi><imageZposition>{z}.0</imageZposition><imageSOP_UID>{SERIES}.7.{z}</imageSOP_UID>"
        f"<inclusion>{inclusion}</inclusion>{edges}</roi>"
    )


def ring(x: int, y: int, half: int) -> list[tuple[int, int]]:
    """The outline around the square of pixels within `half - 1` of a centre."""
    return [
        (x - half, y - half),
        (x + half, y - half),
        (x + half, y + half),
        (x - half, y + half),
        (x - half, y - half),
    ]


def nodule(name: str, rois: str, malignancy: int | None = None) -> str:
    scores = (
        "" if malignancy is None else f"<malignancy>{malignancy}</malignancy><internalStructure>1</internalStructure>"
    )
    described = f"<characteristics>{scores}</characteristics>" if scores else ""
    return f"<unblindedReadNodule><noduleID>{name}</noduleID>{described}{rois}</unblindedReadNodule>"


def write(path: Path, *sessions: str, namespace: str = ' xmlns="http://www.nih.gov"', series: str = SERIES) -> Path:
    body = "".join(
        f"<readingSession><servicingRadiologistID>anon</servicingRadiologistID>{marks}</readingSession>"
        for marks in sessions
    )
    header = f"<ResponseHeader><SeriesInstanceUid>{series}</SeriesInstanceUid></ResponseHeader>"
    path.write_text(f'<?xml version="1.0"?><LidcReadMessage{namespace}>{header}{body}</LidcReadMessage>')
    return path


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    array = np.zeros((10, 40, 50), np.int16)
    return read_volume(
        write_dicom(tmp_path_factory.mktemp("scan"), array, (0.5, 0.5, 2.0), (10, 20, -30), np.diag([1, 1, 1]))
    )


FOUR = (
    nodule("a", roi(3, ring(20, 10, 4)) + roi(4, ring(20, 10, 4)), 5)
    + "<nonNodule><nonNoduleID>no</nonNoduleID><imageZposition>6</imageZposition>"
    f"<imageSOP_UID>{SERIES}.7.6</imageSOP_UID><locus><xCoord>40</xCoord><yCoord>30</yCoord></locus></nonNodule>",
    nodule("b", roi(3, ring(20, 10, 3)), 2) + nodule("tiny", roi(8, [(30, 30)])),
    nodule("c", roi(3, ring(21, 10, 3)), 3),
    nodule("other", roi(3, ring(40, 30, 3)), 1),
)


@pytest.mark.parametrize("namespace", ["", ' xmlns="http://www.nih.gov"', ' xmlns:x="http://www.nih.gov/idri"'])
def test_name_spaces_and_the_three_kinds_of_marks(tmp_path: Path, namespace: str) -> None:
    reading = read_lidc(write(tmp_path / "r.xml", *FOUR, namespace=namespace))
    assert reading.series == SERIES
    assert [mark.kind for mark in reading.marks] == [
        "nodule",
        "non_nodule",
        "nodule",
        "small_nodule",
        "nodule",
        "nodule",
    ]
    assert len({mark.reader for mark in reading.marks}) == 4
    assert reading.marks[0].characteristics == {"malignancy": 5, "internal_structure": 1}


def test_consensus_of_the_readers(tmp_path: Path, scan: Volume) -> None:
    found, notes = consensus(read_lidc(write(tmp_path / "r.xml", *FOUR)), scan)
    assert notes == [] and [one.readers for one in found] == [3, 1]
    first = found[0]
    assert first.characteristics == {"malignancy": 3, "internal_structure": 1} and first.ids == ("a", "b", "c")
    # On slice 3: 7 x 7, 5 x 5 and, one pixel to the right, 5 x 5; two of three agree on columns 18 to 23.
    assert {tuple(voxel) for voxel in first.voxels.tolist()} == {(3, y, x) for y in range(8, 13) for x in range(18, 24)}
    assert first.world == pytest.approx([10 + 20.5 * 0.5, 20 + 10 * 0.5, -30 + 3 * 2])
    assert first.diameter_mm == pytest.approx((6 * 30 * 0.5 / np.pi) ** (1 / 3))
    assert first.longest_axial_mm == pytest.approx(np.hypot(5, 4) * 0.5 + 0.5)


def test_small_marks_and_no_nodules_have_places(tmp_path: Path, scan: Volume) -> None:
    reading = read_lidc(write(tmp_path / "r.xml", *FOUR))
    assert mark_centres(reading, scan, "non_nodule") == pytest.approx(np.array([[30.0, 35, -18]]))
    assert mark_centres(reading, scan, "small_nodule") == pytest.approx(np.array([[25.0, 35, -14]]))


def test_the_same_voxels_when_slices_run_to_the_feet(tmp_path: Path, scan: Volume) -> None:
    path = write(tmp_path / "r.xml", *FOUR)
    turned = read_volume(
        write_dicom(
            tmp_path / "d", np.zeros((10, 40, 50), np.int16), (0.5, 0.5, 2.0), (10, 20, -30), np.diag([-1, 1, -1])
        )
    )
    assert turned.order[0][1] and turned.order[2][1]
    one, other = consensus(read_lidc(path), scan)[0][0], consensus(read_lidc(path), turned)[0][0]
    # Columns and slices run the other way from the same first pixel.
    assert other.world == pytest.approx(np.array([10, 20, -30]) + (one.world - [10, 20, -30]) * [-1, 1, -1])


def test_holes_and_outlines_without_inside(tmp_path: Path, scan: Volume) -> None:
    hollow = nodule("h", roi(5, ring(20, 20, 6), "TRUE") + roi(5, ring(20, 20, 3), "FALSE"), 3)
    thin = nodule("t", roi(7, [(5, 5), (6, 5)]), 3)
    found, _ = consensus(read_lidc(write(tmp_path / "r.xml", hollow, thin)), scan)
    assert len(found[0].voxels) == 11 * 11 - 5 * 5
    assert found[1].voxels.tolist() == [[7, 5, 5], [7, 5, 6]]


def test_one_reader_has_one_mark_in_a_nodule() -> None:
    reading = FOUR[0]
    assert reading
    from medtrain_plugins.nodule.annotations.lidc import Mark

    marks = [Mark("nodule", reader, str(i), ()) for i, reader in enumerate("aabb")]
    centres = np.array([[0.0, 0, 0], [2, 0, 0], [0.5, 0, 0], [2.2, 0, 0]])
    assert sorted(cluster_marks(marks, centres, np.full(4, 5.0))) == [[0, 2], [1, 3]]
    assert sorted(cluster_marks(marks, centres, np.full(4, 5.0), distance=0.3)) == [[0], [1, 3], [2]]


def test_marks_on_images_that_are_not_there_are_told(tmp_path: Path, scan: Volume) -> None:
    lost = nodule("a", roi(3, ring(20, 10, 4)) + roi(77, ring(20, 10, 4)), 5)
    found, notes = consensus(read_lidc(write(tmp_path / "r.xml", lost)), scan)
    assert len(found[0].voxels) == 49 and "1.2.3.7.77 is not in the series" in notes[0]


def test_another_series_and_a_scan_without_images(tmp_path: Path, scan: Volume) -> None:
    with pytest.raises(DataError, match=r"reads series 9\.9"):
        consensus(read_lidc(write(tmp_path / "r.xml", *FOUR, series="9.9")), scan)
    bare = Volume(scan.array, scan.affine, SERIES)
    with pytest.raises(DataError, match="DICOM"):
        consensus(read_lidc(write(tmp_path / "s.xml", *FOUR)), bare)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('<!DOCTYPE a [<!ENTITY x "y">]><LidcReadMessage>&x;</LidcReadMessage>', "document type"),
        ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><LidcReadMessage/>', "document type"),
        ("<html/>", "its root is 'html'"),
        ("<LidcReadMessage/>", "no SeriesInstanceUid"),
        ("<IdriReadMessage><CXRreadingSession/></IdriReadMessage>", "radiographs"),
        ("<LidcReadMessage>", "is no XML"),
    ],
)
def test_what_is_no_reading(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "r.xml").write_text(text)
    with pytest.raises(DataError, match=said):
        read_lidc(tmp_path / "r.xml")
