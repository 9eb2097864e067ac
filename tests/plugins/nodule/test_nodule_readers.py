"""Every format of one scan gives one volume; what would misplace voxels is refused or told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from medtrain.errors import DataError
from medtrain_plugins.nodule.scans.sources import find_sources
from medtrain_plugins.nodule.scans.volume import read_geometry, read_volume
from scan_files import phantom, rotation, texts, write_dicom, write_itk, write_multiframe, write_nifti

SPACING, ORIGIN = (0.7, 0.65, 2.5), (-171.2, 133.05, -298.3875)
DIRECTIONS = {
    "straight": np.eye(3),
    "negative x and y": np.diag([-1.0, -1.0, 1.0]),
    "feet first": np.diag([-1.0, 1.0, -1.0]),
    "coronal": np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]),
    "sagittal": np.array([[0.0, 0, -1], [1, 0, 0], [0, -1, 0]]),
    "oblique": rotation(12, -7, 20),
    "oblique and turned": rotation(12, -7, 20) @ np.diag([-1.0, -1.0, 1.0]),
    "at 45 degrees": rotation(0, 0, 45),
}
VOXELS = np.array([[0, 0, 0], [5, 6, 7], [2.5, 0.25, 3.75], [-1, 9, 2]])


@pytest.mark.parametrize("name", DIRECTIONS)
def test_one_phantom_in_every_format(tmp_path: Path, name: str) -> None:
    array, direction = phantom(), DIRECTIONS[name]
    geometry = (SPACING, ORIGIN, direction)
    volumes = {
        "mhd": read_volume(write_itk(tmp_path / "s.mhd", array, *geometry)),
        "mha": read_volume(write_itk(tmp_path / "s.mha", array, *geometry)),
        "nrrd": read_volume(write_itk(tmp_path / "s.nrrd", array, *geometry)),
        "nii": read_volume(write_nifti(tmp_path / "s.nii", array, *geometry)),
        "nii.gz": read_volume(write_nifti(tmp_path / "s.nii.gz", array, *geometry)),
        "dicom": read_volume(write_dicom(tmp_path / "d", array, *geometry)),
        "multi-frame": read_volume(write_multiframe(tmp_path / "m" / "all.dcm", array, *geometry)),
    }
    first = volumes["mhd"]
    # The truth, from the numbers the files were written with.
    step = (direction * SPACING)[:, ::-1]
    truth = np.indices(array.shape).reshape(3, -1).T @ step.T + ORIGIN
    at = np.rint(first.to_voxel(truth)).astype(int)
    assert np.abs(first.to_voxel(truth) - at).max() < 1e-6
    assert (first.array[tuple(at.T)] == array.ravel()).all()
    assert (np.diag(first.direction[::-1]) > 0).all()  # to the head, to the back, to the left
    for kind, volume in volumes.items():
        assert volume.array.dtype == np.int16 and np.array_equal(volume.array, first.array), kind
        assert np.abs(volume.to_world(VOXELS) - first.to_world(VOXELS)).max() < 1e-6, kind
        world = volume.to_world(VOXELS)
        assert np.abs(volume.to_world(volume.to_voxel(world)) - world).max() < 1e-6


def test_single_precision_of_nifti_1_is_read_as_it_was_written(tmp_path: Path) -> None:
    array = phantom()
    volume = read_volume(write_nifti(tmp_path / "s.nii", array, SPACING, ORIGIN, DIRECTIONS["feet first"], version=1))
    truth = read_volume(write_itk(tmp_path / "s.mhd", array, SPACING, ORIGIN, DIRECTIONS["feet first"]))
    assert np.array_equal(volume.array, truth.array)
    far = np.array([[400.0, 511, 511]])
    assert np.abs(volume.to_world(far) - truth.to_world(far)).max() < 1e-6


def test_headers_alone_give_the_geometry(tmp_path: Path) -> None:
    array, geometry = phantom(), (SPACING, ORIGIN, DIRECTIONS["oblique and turned"])
    for path in (
        write_itk(tmp_path / "s.mhd", array, *geometry),
        write_nifti(tmp_path / "s.nii", array, *geometry),
        write_dicom(tmp_path / "d", array, *geometry),
    ):
        whole, headers = read_volume(path), read_geometry(path)
        assert headers.shape == whole.shape and np.allclose(headers.affine, whole.affine, atol=1e-12)
        assert not headers.array.any()


def test_what_a_dicom_series_says_of_itself(tmp_path: Path) -> None:
    volume = read_volume(write_dicom(tmp_path, phantom(), SPACING, ORIGIN))
    assert (volume.series, volume.patient) == ("1.2.3", "P7") and volume.notes == ()
    assert volume.spacing == pytest.approx([2.5, 0.65, 0.7])  # not the SliceThickness of 9 mm
    assert volume.provenance["slices"]["1.2.3.7.4"] == 4


def test_an_intercept_without_a_slope_counts(tmp_path: Path) -> None:
    def drop(index: int, dataset: Any) -> None:
        del dataset.RescaleSlope

    assert np.array_equal(read_volume(write_dicom(tmp_path, phantom(), change=drop)).array, phantom())


def test_no_rescaling_at_all_is_told(tmp_path: Path) -> None:
    def drop(index: int, dataset: Any) -> None:
        del dataset.RescaleSlope, dataset.RescaleIntercept

    volume = read_volume(write_dicom(tmp_path, phantom(), change=drop))
    assert np.array_equal(volume.array, phantom() + 1024) and "6 slices have neither RescaleSlope" in volume.notes[0]


def test_fractional_slopes_of_each_slice(tmp_path: Path) -> None:
    def slope(index: int, dataset: Any) -> None:
        dataset.RescaleSlope = str(1 + index / 4)

    volume = read_volume(write_dicom(tmp_path, phantom(), change=slope))
    expected = (phantom().astype(float) + 1024) * (1 + np.arange(6) / 4)[:, None, None] - 1024
    assert volume.array.dtype == np.float32 and np.allclose(volume.array, expected)


def test_a_gap_is_told_and_later_slices_stay_where_they_are(tmp_path: Path) -> None:
    array = phantom((10, 7, 8))
    volume = read_volume(write_dicom(tmp_path, array, SPACING, ORIGIN, change=lambda index, _: index not in (4, 5)))
    assert len(volume.notes) == 1 and "gap of 7.50 mm between" in volume.notes[0]
    assert volume.shape == (10, 7, 8) and volume.spacing[0] == pytest.approx(2.5)
    there = [0, 1, 2, 3, 6, 7, 8, 9]
    assert np.array_equal(volume.array[there], array[there])
    between = (2 * array[3].astype(float) + array[6]) / 3
    assert np.abs(volume.array[4] - between).max() <= 0.5


def test_uneven_distances_are_told_and_interpolated(tmp_path: Path) -> None:
    places = np.array([0, 1, 2, 3, 4.25, 5.25, 6.25, 7.25])
    ramp = (places[:, None, None] * 100 + np.zeros((8, 5, 5))).astype(np.int16)

    def move(index: int, dataset: Any) -> None:
        dataset.ImagePositionPatient = texts([0, 0, places[index]])

    volume = read_volume(write_dicom(tmp_path, ramp, change=move))
    assert "slices are 1.00 to 1.25 mm apart" in volume.notes[0]
    assert volume.array[:, 0, 0].tolist() == [0, 100, 200, 300, 400, 500, 600, 700]


def test_rounded_positions_do_not_drift(tmp_path: Path) -> None:
    def rounded(index: int, dataset: Any) -> None:
        dataset.ImagePositionPatient = texts([0, 0, round(index * 0.625, 2)])

    volume = read_volume(write_dicom(tmp_path, phantom((65, 4, 4)), (1, 1, 0.625), change=rounded))
    assert volume.notes == () and volume.to_world([[64, 0, 0]])[0, 2] == pytest.approx(40.0, abs=1e-9)
    assert np.array_equal(volume.array, phantom((65, 4, 4)))


def test_gantry_tilt_is_told_and_in_the_affine(tmp_path: Path) -> None:
    step = np.array([0, 2.5 * np.tan(np.radians(15)), 2.5])
    volume = read_volume(write_dicom(tmp_path, phantom(), SPACING, ORIGIN, step=step))
    assert "gantry tilt" in volume.notes[0] and "15.0 degrees" in volume.notes[0]
    assert np.abs(volume.to_world([[5, 0, 0]])[0] - (np.array(ORIGIN) + 5 * step)).max() < 1e-9


def test_slices_that_are_there_twice(tmp_path: Path) -> None:
    write_dicom(tmp_path, phantom())
    (tmp_path / "copy.dcm").write_bytes((tmp_path / "slice003.dcm").read_bytes())
    with pytest.raises(DataError, match=r"1 slices are there twice.*\n.*copy.dcm"):
        read_volume(tmp_path)


def test_mixed_series_ask_which(tmp_path: Path) -> None:
    one, other = phantom(seed=1), phantom((9, 7, 8), seed=2)
    write_dicom(tmp_path, one, series="1.1", names="a{}.dcm")
    write_dicom(tmp_path, other, series="1.2", names="b{}.dcm")
    with pytest.raises(DataError) as error:
        read_volume(tmp_path)
    assert "2 series; say which" in str(error.value) and "1.2 (CT, 9 slices)" in str(error.value)
    assert np.array_equal(read_volume(tmp_path, series="1.2").array, other)
    with pytest.raises(DataError, match=r"has no series 1\.3"):
        read_volume(tmp_path, series="1.3")


@pytest.mark.parametrize(
    ("keyword", "value", "said"),
    [
        ("ImageOrientationPatient", ["1", "0", "0", "0", "0", "-1"], "differ in orientation"),
        ("PixelSpacing", ["2", "2"], "differ in pixel spacing"),
        ("ImagePositionPatient", None, "has no ImagePositionPatient"),
    ],
)
def test_a_slice_unlike_the_others(tmp_path: Path, keyword: str, value: Any, said: str) -> None:
    def change(index: int, dataset: Any) -> None:
        if index == 2 and value is None:
            delattr(dataset, keyword)
        elif index == 2:
            setattr(dataset, keyword, value)

    write_dicom(tmp_path, phantom(), change=change)
    if value is None:  # left out, told, and the hole it leaves as well
        notes = " ".join(read_volume(tmp_path).notes)
        assert said in notes and "gap" in notes
    else:
        with pytest.raises(DataError, match=said):
            read_volume(tmp_path)


def test_files_without_the_mark_are_dicom_only_by_force(tmp_path: Path) -> None:
    write_dicom(tmp_path, phantom(), preamble=False)
    with pytest.raises(DataError, match="lacks the mark DICM"):
        read_volume(tmp_path)
    assert np.array_equal(read_volume(tmp_path, force=True).array, phantom())


def test_other_files_in_the_folder_are_told(tmp_path: Path) -> None:
    write_dicom(tmp_path, phantom())
    (tmp_path / "readme.txt").write_text("x" * 300)
    volume = read_volume(tmp_path)
    assert np.array_equal(volume.array, phantom()) and "1 of 7 files are not taken: readme.txt" in volume.notes[0]


def test_files_cut_short(tmp_path: Path) -> None:
    for path in (
        write_dicom(tmp_path / "d", phantom()) / "slice002.dcm",
        write_nifti(tmp_path / "s.nii", phantom(), SPACING, ORIGIN, np.eye(3)),
        write_nifti(tmp_path / "s.nii.gz", phantom(), SPACING, ORIGIN, np.eye(3)),
        write_itk(tmp_path / "s.mha", phantom()),
    ):
        path.write_bytes(path.read_bytes()[:-90])
        with pytest.raises(DataError):
            read_volume(path.parent if path.suffix == ".dcm" else path)


@pytest.mark.parametrize("name", ["missing.nii", "empty", "picture.jpg", "bad.mhd", "bad.nii"])
def test_what_is_no_scan(tmp_path: Path, name: str) -> None:
    if name == "empty":
        (tmp_path / name).mkdir()
    elif name != "missing.nii":
        (tmp_path / name).write_bytes(b"no scan at all " * 40)
    with pytest.raises(DataError, match=name):
        read_volume(tmp_path / name)


def test_a_nifti_without_geometry_or_with_a_fourth_axis(tmp_path: Path) -> None:
    import nibabel

    nibabel.save(nibabel.Nifti1Image(phantom(), None), tmp_path / "none.nii")
    with pytest.raises(DataError, match="neither qform nor sform"):
        read_volume(tmp_path / "none.nii")
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4, 2), np.int16), np.eye(4)), tmp_path / "four.nii")
    with pytest.raises(DataError, match="4 axes"):
        read_volume(tmp_path / "four.nii")


def test_localizers_and_captures_of_the_screen_are_left_out(tmp_path: Path) -> None:
    write_dicom(tmp_path / "d", phantom())

    def localizer(index: int, dataset: Any) -> None:
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]

    def capture(index: int, dataset: Any) -> None:
        dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"

    write_dicom(tmp_path / "d", phantom()[:1], change=localizer, names="l{}.dcm")
    write_dicom(tmp_path / "d", phantom()[:1], change=capture, names="c{}.dcm")
    volume = read_volume(tmp_path / "d")
    assert volume.shape == phantom().shape
    assert "l0.dcm (no image of the volume: ImageType says LOCALIZER)" in volume.notes[0]
    assert "c0.dcm (no image of the volume: a secondary capture)" in volume.notes[0]


@pytest.mark.parametrize("written", [63536, -2000])
@pytest.mark.parametrize("limit", [None, 63540])
def test_padding_is_air(tmp_path: Path, written: int, limit: int | None) -> None:
    def pad(index: int, dataset: Any) -> None:
        stored = dataset.pixel_array.copy()
        stored[0, 0], stored[0, 1] = 63536, 63540
        dataset.PixelData = stored.tobytes()
        dataset.add_new("PixelPaddingValue", "US" if written > 0 else "SS", written)
        if limit is not None:
            dataset.PixelPaddingRangeLimit = limit

    array = read_volume(write_dicom(tmp_path / "d", phantom(), change=pad)).array
    assert (array[:, 0, 0] == -1000).all()
    assert (array[:, 0, 1] == (62516 if limit is None else -1000)).all()
    assert np.array_equal(array[:, 1:], phantom()[:, 1:])


def test_a_series_in_two_folders_is_one_scan_and_a_copy_of_it_is_not_taken(tmp_path: Path) -> None:
    def half(first: bool) -> Any:
        return lambda index, dataset: (index < 3) == first

    for name, change in (("a", half(True)), ("b", half(False)), ("copy", half(True))):
        write_dicom(tmp_path / name, phantom(), change=change)
    sources, left_out = find_sources(tmp_path)
    assert [(source.label, len(source.files)) for source in sources] == [("a and b", len(phantom()))]
    assert np.array_equal(sources[0].read().array, phantom())
    assert [(one.source, one.kind) for one in left_out] == [("copy", "duplicate")]
