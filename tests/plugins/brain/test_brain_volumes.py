"""Volumes: what nibabel and pydicom bring along, and files that are damaged."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from medtrain.errors import DataError
from medtrain_plugins.brain.data.volumes import (
    orient,
    read_dicom,
    read_header,
    read_stored,
    read_volume,
    same_place,
    scale,
)
from pydicom.data import get_testdata_file

BUNDLED = Path(nibabel.__file__).parent / "tests" / "data"
GENERATOR = np.random.default_rng(0)


@pytest.mark.parametrize(
    "name",
    [
        "anatomical.nii",
        "functional.nii",
        "example4d.nii.gz",
        "example_nifti2.nii.gz",
        "standard.nii.gz",
        "reoriented_anat_moved.nii",
        "resampled_anat_moved.nii",
        "test.mgz",
        "tiny.mnc",
    ],
)
def test_bundled_volumes_read_as_nibabel_reads_them(name: str) -> None:
    volume, reference = read_volume(BUNDLED / name), nibabel.load(BUNDLED / name)
    assert volume.array.dtype == np.float32
    np.testing.assert_allclose(volume.array, reference.get_fdata(), rtol=1e-6, equal_nan=True)
    np.testing.assert_allclose(volume.affine, reference.affine)
    if name.endswith((".nii", ".nii.gz")):
        header = read_header(BUNDLED / name)
        assert header.shape == reference.shape and header.affine_problem() is None
        np.testing.assert_allclose(header.affine, reference.affine)


@pytest.mark.parametrize(
    ("name", "shape", "low", "high", "spacing"),
    [
        ("CT_small.dcm", (128, 128, 1), -896, 1167, (0.661468, 0.661468, 5)),
        ("MR_small.dcm", (64, 64, 1), 127, 2145, (0.3125, 0.3125, 0.8)),
    ],
)
def test_dicom_slices_in_units_of_the_modality(
    name: str, shape: tuple[int, ...], low: float, high: float, spacing: tuple[float, ...]
) -> None:
    volume = read_volume(str(get_testdata_file(name)))
    assert volume.array.shape == shape
    assert (volume.array.min(), volume.array.max()) == (low, high)
    np.testing.assert_allclose(np.linalg.norm(volume.affine[:3, :3], axis=0), spacing)


def test_a_dicom_series_is_ordered_by_place_and_its_gaps_are_found(tmp_path: Path) -> None:
    import pydicom

    dataset = pydicom.dcmread(str(get_testdata_file("MR_small.dcm")))
    position = [float(value) for value in dataset.ImagePositionPatient]
    pixels = dataset.pixel_array.copy()
    for number, place in enumerate([2, 0, 1]):
        dataset.PixelData = (pixels + place).tobytes()
        dataset.ImagePositionPatient = [position[0], position[1], position[2] + 3 * place]
        dataset.save_as(tmp_path / f"{number}.dcm")
    volume = read_dicom(tmp_path)
    assert volume.array.shape == (64, 64, 3)
    np.testing.assert_array_equal(np.diff(volume.array, axis=2), 1)
    assert np.linalg.norm(volume.affine[:3, 2]) == pytest.approx(3)
    np.testing.assert_allclose(volume.affine[:3, 3], [-position[0], -position[1], position[2]])
    dataset.ImagePositionPatient = [position[0], position[1], position[2] + 12]
    dataset.save_as(tmp_path / "9.dcm")
    with pytest.raises(DataError, match="not evenly spaced"):
        read_dicom(tmp_path)
    shutil.copy(str(get_testdata_file("CT_small.dcm")), tmp_path / "ct.dcm")
    with pytest.raises(DataError, match="several series"):
        read_dicom(tmp_path)


@pytest.mark.parametrize("dtype", ["uint8", "int16", ">i2", "uint16", "float32", "float64"])
@pytest.mark.parametrize("name", ["image.nii", "image.nii.gz"])
def test_every_stored_type_reads_as_by_nibabel(tmp_path: Path, dtype: str, name: str) -> None:
    array = (GENERATOR.random((5, 6, 7)) * 200).astype(dtype)
    image = nibabel.Nifti1Image(array, np.diag([2.0, 3.0, 4.0, 1.0]))
    if dtype.startswith(">"):
        image = nibabel.Nifti1Image(array, np.eye(4), image.header.as_byteswapped(">"))
    if dtype == "uint8":
        image.header.set_slope_inter(0.5, -3)
    nibabel.save(image, tmp_path / name)
    stored, header = read_stored(tmp_path / name)
    np.testing.assert_allclose(scale(stored, header), nibabel.load(tmp_path / name).get_fdata(), rtol=1e-6)
    again, _ = read_stored(tmp_path / name, header)
    np.testing.assert_array_equal(stored, again)


def _save(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


def test_cut_files_are_found_by_their_header_alone(tmp_path: Path) -> None:
    noise = (GENERATOR.random((16, 16, 16)) * 30000).astype(np.int16)
    plain, packed = _save(tmp_path / "a.nii", noise), _save(tmp_path / "b.nii.gz", noise)
    for path in (plain, packed):
        read_header(path)
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(DataError, match=r"cut short.*copy it again"):
            read_header(path)
        with pytest.raises(DataError, match="cut short"):
            read_stored(path)


def test_a_gzip_of_several_members_is_whole(tmp_path: Path) -> None:
    path = _save(tmp_path / "a.nii", np.arange(1000, dtype=np.int16).reshape(10, 10, 10))
    content = path.read_bytes()
    several = tmp_path / "b.nii.gz"
    several.write_bytes(gzip.compress(content[:700]) + gzip.compress(content[700:]))
    assert read_header(several).shape == (10, 10, 10)
    np.testing.assert_array_equal(read_volume(several).array, read_volume(path).array)


def test_a_changed_byte_is_found_when_it_is_read(tmp_path: Path) -> None:
    path = _save(tmp_path / "a.nii.gz", (GENERATOR.random((16, 16, 16)) * 30000).astype(np.int16))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        read_volume(path)


def test_what_is_no_nifti_is_named(tmp_path: Path) -> None:
    for name, content in (("text.nii", b"hello, this is a text"), ("text.nii.gz", gzip.compress(b"no" * 400))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name}.*not a NIfTI file"):
            read_header(tmp_path / name)
    (tmp_path / "empty.nii.gz").write_bytes(b"")
    with pytest.raises(DataError, match="empty"):
        read_header(tmp_path / "empty.nii.gz")
    with pytest.raises(DataError, match="cannot be read"):
        read_header(tmp_path / "absent.nii.gz")
    complex_numbers = _save(tmp_path / "c.nii", np.zeros((3, 3, 3), np.complex64))
    with pytest.raises(DataError, match="numbers are needed"):
        read_header(complex_numbers)


def test_dimensions_and_affines_are_judged(tmp_path: Path) -> None:
    series = read_header(_save(tmp_path / "4d.nii", np.zeros((3, 4, 5, 6), np.int16)))
    assert "4 dimensions (3, 4, 5, 6), 3 are wanted" in str(series.problem(3))
    assert series.problem(4) is None
    single = read_header(_save(tmp_path / "4d1.nii", np.zeros((3, 4, 5, 1), np.int16)))
    assert single.problem(3) is None and single.spatial(3) == (3, 4, 5)
    flat = np.diag([1.0, 1, 0, 1])
    image = nibabel.Nifti1Image(np.zeros((3, 4, 5), np.int16), None)
    image.header.set_sform(flat, code=1)
    nibabel.save(image, tmp_path / "flat.nii")
    assert "degenerate" in str(read_header(tmp_path / "flat.nii").problem())
    image.header.set_sform(np.full((4, 4), np.nan), code=1)
    nibabel.save(image, tmp_path / "nan.nii")
    assert "not finite" in str(read_header(tmp_path / "nan.nii").problem())


def test_turned_axes_show_the_same_places() -> None:
    image = nibabel.load(BUNDLED / "reoriented_anat_moved.nii")
    array = np.asarray(image.dataobj)[:, ::-1].transpose(2, 0, 1)
    affine = image.affine @ np.array([[0, 1, 0, 0], [0, 0, -1, array.shape[2] - 1], [1, 0, 0, 0], [0, 0, 0, 1]])
    turned, reference = orient(array, affine), nibabel.as_closest_canonical(nibabel.Nifti1Image(array, affine))
    np.testing.assert_array_equal(turned.array, np.asarray(reference.dataobj))
    np.testing.assert_allclose(turned.affine, reference.affine)
    assert same_place(turned.affine, reference.affine)
    moved = turned.affine.copy()
    moved[0, 3] += 1
    assert not same_place(turned.affine, moved)


@pytest.mark.parametrize("tag", ["PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient"])
def test_a_dicom_file_that_does_not_say_where_it_lies_is_refused(tmp_path: Path, tag: str) -> None:
    import pydicom

    dataset = pydicom.dcmread(str(get_testdata_file("MR_small.dcm")))
    delattr(dataset, tag)
    dataset.save_as(tmp_path / "slice.dcm")
    for path in (tmp_path / "slice.dcm", tmp_path):
        with pytest.raises(DataError, match=rf"slice.dcm: has no {tag}"):
            read_volume(path)


def test_a_tilted_gantry_is_in_the_affine(tmp_path: Path) -> None:
    import pydicom

    dataset = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
    x, y, z = (float(value) for value in dataset.ImagePositionPatient)
    for number in range(4):
        dataset.ImagePositionPatient = [x, y + 0.7 * number, z + 2 * number]
        dataset.SOPInstanceUID = f"1.2.{number}"
        dataset.save_as(tmp_path / f"{number}.dcm")
    np.testing.assert_allclose(read_dicom(tmp_path).affine @ [0, 0, 3, 1], [-x, -y - 2.1, z + 6, 1])


@pytest.mark.parametrize(("unit", "said"), [("meter", "in metres"), ("micron", "in micrometres"), ("unknown", None)])
def test_lengths_that_are_not_in_millimetres_are_refused(tmp_path: Path, unit: str, said: str | None) -> None:
    image = nibabel.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4))
    image.header.set_xyzt_units(unit)
    nibabel.save(image, tmp_path / "image.nii")
    if said is None:
        assert read_header(tmp_path / "image.nii").problem() is None
        return
    with pytest.raises(DataError, match=said):
        read_header(tmp_path / "image.nii")
