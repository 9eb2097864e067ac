"""Resampling keeps the field of view, the values and the world."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from medtrain.errors import DataError, UsageError
from medtrain_plugins.imaging.volume import Volume
from medtrain_plugins.nodule.scans.resampling import resample, resampled_shape
from scan_files import rotation

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "nodule_data.json").read_text())


def volume(array: Any, spacing: tuple[float, float, float], turned: bool = False) -> Volume:
    affine = np.eye(4)
    affine[:3, :3] = ((rotation(10, 20, 30) if turned else np.eye(3)) * spacing[::-1])[:, ::-1]
    affine[:3, 3] = (-20, 30, -300)
    return Volume(np.asarray(array), affine)


@pytest.mark.parametrize(
    "case", [case for case in GOLDEN if case["id"].startswith("resample_shape")], ids=lambda c: c["id"]
)
def test_golden_shapes(case: dict[str, Any]) -> None:
    given = case["inputs"]
    spacing, target = given["spacing_xyz"][::-1], given["target_xyz"][::-1]
    assert list(resampled_shape(given["shape_zyx"], spacing, target, cover=False)) == case["expected"]
    covering = resampled_shape(given["shape_zyx"], spacing, target)
    exact = np.array(given["shape_zyx"]) * spacing / np.array(target)
    assert (covering >= exact - 1e-6).all() and (covering < exact + 1).all()


def test_golden_values_but_for_the_half_voxel_and_the_padding() -> None:
    case = next(case for case in GOLDEN if case["id"].startswith("resample.linear"))
    given = case["inputs"]
    array = np.array(given["volume"], dtype=np.float32).reshape(given["shape_zyx"])
    result = resample(volume(array, (2.0, 1.0, 1.0)), outside=None)
    assert list(result.shape) == case["expected"]["shape_zyx"]
    # Centres are a quarter of the old spacing from the old centres; the outermost keep the value of their voxel.
    old = np.array([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3])
    assert np.allclose(result.array[:, 0, 0], -100 + 60 * old)
    assert (result.array[-1] == array[-1]).all()  # no plane of padding


def test_the_faces_of_the_field_of_view_stay() -> None:
    scan = volume(np.zeros((9, 10, 11), np.int16), (2.5, 0.7, 0.7), turned=True)
    result = resample(scan, (1.0, 1.0, 1.0))
    assert result.to_world([[-0.5, -0.5, -0.5]])[0] == pytest.approx(scan.to_world([[-0.5, -0.5, -0.5]])[0])
    assert result.spacing == pytest.approx([1, 1, 1]) and result.shape == (23, 7, 8)
    assert np.allclose(result.direction, scan.direction)


@pytest.mark.parametrize("interpolation", ["linear", "bspline"])
def test_a_world_ramp_stays_where_it_is(interpolation: Any) -> None:
    scan = volume(np.zeros((12, 14, 16), np.float32), (2.0, 0.8, 0.8), turned=True)
    voxels = np.indices(scan.shape).reshape(3, -1).T
    ramp = (scan.to_world(voxels) @ [1.0, -2.0, 3.0]).reshape(scan.shape).astype(np.float32)
    result = resample(Volume(ramp, scan.affine), (1.0, 1.0, 1.0), interpolation)
    inner = np.indices(result.shape).reshape(3, -1).T
    at = scan.to_voxel(result.to_world(inner))
    inside = ((at > 3) & (at < np.array(scan.shape) - 4)).all(axis=1)
    expected = result.to_world(inner[inside]) @ [1.0, -2.0, 3.0]
    assert inside.sum() > 100
    assert np.abs(result.array.ravel()[inside] - expected).max() < (1e-3 if interpolation == "linear" else 0.6)


def test_beyond_the_scan_is_air() -> None:
    inside = resample(volume(np.full((5, 5, 5), 100, np.int16), (1.5, 1.5, 1.5)), (2.0, 2.0, 2.0))
    assert inside.shape == (4, 4, 4) and (inside.array == 100).all()  # the last centre is at 7 of 7.5 mm
    tall = resample(volume(np.full((4, 4, 4), 100, np.int16), (1.1, 1.0, 1.0)))
    assert tall.shape == (5, 4, 4) and (tall.array[4] == -1000).all() and (tall.array[:4] == 100).all()
    assert (resample(volume(np.full((4, 4, 4), 100, np.int16), (1.1, 1, 1)), outside=None).array == 100).all()


def test_types_and_ranges() -> None:
    random = np.random.default_rng(0).integers(-900, 900, (8, 8, 8)).astype(np.int16)
    for interpolation in ("nearest", "linear", "bspline"):
        result = resample(volume(random, (2, 1, 1)), (0.9, 0.9, 0.9), interpolation, outside=None).array  # type: ignore[arg-type]
        assert result.dtype == np.int16 and result.min() >= random.min() and result.max() <= random.max()
    mask = resample(volume(random > 0, (2, 1, 1)), (1.0, 1.0, 1.0)).array
    assert mask.dtype == np.bool_ and np.array_equal(mask, (random > 0).repeat(2, axis=0))


def test_the_same_spacing_changes_nothing() -> None:
    scan = volume(np.zeros((4, 4, 4), np.int16), (1.0, 1.0, 1.0), turned=True)
    assert resample(scan) is scan


@pytest.mark.parametrize("target", [(0, 1, 1), (1, 1), (1, 1, float("nan"))])
def test_spacings_that_are_none(target: Any) -> None:
    with pytest.raises(UsageError, match="spacing"):
        resample(volume(np.zeros((4, 4, 4)), (1, 1, 1)), target)


def test_spacings_in_the_wrong_unit_and_unknown_names() -> None:
    with pytest.raises(DataError, match="millimetres"):
        resample(volume(np.zeros((40, 40, 40), np.int16), (1000, 1000, 1000)))
    with pytest.raises(UsageError, match="cubic"):
        resample(volume(np.zeros((4, 4, 4)), (1, 1, 1)), interpolation="cubic")  # type: ignore[arg-type]
