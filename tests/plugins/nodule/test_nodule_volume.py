"""Voxels and the world."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from medtrain.errors import DataError
from medtrain_plugins.imaging.volume import Geometry, Volume
from scan_files import phantom, rotation

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "nodule_data.json").read_text())


def from_source_order(volume: Volume, array: np.ndarray) -> np.ndarray:
    """The inverse of `Volume.to_source_order`."""
    turned = np.transpose(array, [source for source, _ in volume.order])
    return turned[tuple(slice(None, None, -1 if flipped else 1) for _, flipped in volume.order)]


def affine(
    direction: np.ndarray, spacing: tuple[float, float, float], origin: tuple[float, float, float]
) -> np.ndarray:
    made = np.eye(4)
    made[:3, :3], made[:3, 3] = direction * spacing, origin
    return made


@pytest.mark.parametrize("seed", range(4))
def test_there_and_back(seed: int) -> None:
    random = np.random.default_rng(seed)
    flips = np.diag(random.choice([-1.0, 1.0], 3))
    geometry = Geometry(
        (300, 512, 512), affine(rotation(*random.uniform(-180, 180, 3)) @ flips, (2.5, 0.7, 0.7), (-200, 150, 1900))
    )
    voxel = random.uniform(-50, 600, (200, 3))
    assert np.abs(geometry.to_voxel(geometry.to_world(voxel)) - voxel).max() < 1e-9
    world = random.uniform(-2000, 2000, (200, 3))
    assert np.abs(geometry.to_world(geometry.to_voxel(world)) - world).max() < 1e-6
    assert geometry.spacing == pytest.approx([2.5, 0.7, 0.7])


def test_the_formula() -> None:
    direction, spacing, origin = rotation(5, 6, 7)[:, ::-1] * -1, (2.5, 0.7, 0.8), (1.0, 2.0, 3.0)
    geometry = Geometry((9, 9, 9), affine(direction, spacing, origin))
    world = np.array([10.0, -20.0, 30.0])
    expected = np.diag(1 / np.array(spacing)) @ np.linalg.inv(direction) @ (world - origin)
    assert geometry.to_voxel(world[None])[0] == pytest.approx(expected)
    assert geometry.direction == pytest.approx(direction) and geometry.origin == pytest.approx(origin)


def test_distances_follow_the_spacing_of_z_y_x() -> None:
    case = next(case for case in GOLDEN if case["id"] == "distance.zyx_spacing")
    geometry = Geometry((9, 9, 9), affine(rotation(10, 20, 30), tuple(case["inputs"]["spacing_zyx"]), (1, 2, 3)))
    ends = geometry.to_world([case["inputs"]["p"], case["inputs"]["q"]])
    assert np.linalg.norm(ends[0] - ends[1]) == pytest.approx(case["expected"], abs=case["atol"])


def test_turning_to_the_canonical_axes_loses_nothing() -> None:
    array = phantom((4, 5, 6))
    for columns in ((2, 1, 0), (0, 1, 2), (1, 2, 0)):
        for flip in (np.diag([1.0, 1, 1]), np.diag([-1.0, 1, -1]), np.diag([1.0, -1, 1])):
            source = affine((rotation(8, -9, 10) @ flip)[:, columns], (1.5, 0.7, 0.9), (10, 20, 30))
            volume = Volume.of_source(array, source)
            assert np.array_equal(volume.to_source_order(volume.array), array)
            assert np.array_equal(from_source_order(volume, array), volume.array)
            assert volume.source_affine() == pytest.approx(source)
            assert (np.diag(volume.direction[::-1]) > 0.9).all()


def test_inside_and_outside() -> None:
    geometry = Geometry((10, 20, 30), affine(np.eye(3)[:, ::-1], (2.0, 1.0, 1.0), (0, 0, 0)))
    # World x, y, z: the faces are half a voxel out.
    assert geometry.contains([[-0.5, -0.5, -1], [29.5, 19.5, 19], [-0.6, 0, 0], [0, 0, 19.1]]).tolist() == [1, 1, 0, 0]
    assert geometry.contains([[-3, 0, 0], [0, 0, 21]], margin=3).tolist() == [True, True]
    assert geometry.contains([[1, 5, 5], [5, 5, 5]], margin=-3).tolist() == [False, True]


def test_values_are_kept_exactly_in_the_smallest_type() -> None:
    for values, dtype in (
        (np.array([-1024.0, 3071.0, 5.0, 0.0]), np.int16),
        (np.array([0.5, 1.0, 2.0, 3.0]), np.float32),
        (np.array([0, 40000, 1, 2], dtype=np.uint16), np.float32),
        (np.array([np.nan, 1, 2, 3]), np.float32),
    ):
        volume = Volume.of_source(values.reshape(1, 2, 2), np.eye(4)[[2, 1, 0, 3]])
        assert volume.array.dtype == dtype and np.array_equal(volume.array.ravel(), values, equal_nan=True)


@pytest.mark.parametrize("bad", [np.zeros((4, 4)), np.full((4, 4), np.nan), np.diag([1.0, 1, 0, 1])])
def test_an_affine_that_places_nothing(bad: np.ndarray) -> None:
    with pytest.raises(DataError, match="no place in the patient"):
        Volume.of_source(phantom(), bad)
