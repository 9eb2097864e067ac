"""What is measured of a segmented nodule."""

from __future__ import annotations

import math

import numpy as np
import pytest
from medtrain_plugins.nodule.annotations.properties import measure_nodule, sphere_box, sphere_volume
from nodule_golden import CASES
from spec_functions import box_iou, half_open


def ball(radius: float, spacing: tuple[float, float, float], centre: tuple[float, float, float]) -> np.ndarray:
    grid = np.indices((40, 40, 40)).astype(float)
    away = sum(((grid[a] - centre[a]) * spacing[a]) ** 2 for a in range(3))
    return away <= radius**2


def test_published_case() -> None:
    case = CASES["nodule"]["properties"]
    mask = np.zeros((6, 6, 6), dtype=bool)
    mask[1:4, 2:5, 3:5] = True
    found = measure_nodule(mask, (2, 3, 4), case["inputs"]["spacing_zyx"])
    assert found is not None
    wanted = case["expected"]
    assert found.centre == tuple(wanted["center"]) and found.volume_voxels == wanted["volume_voxels"]
    assert found.volume_mm3 == pytest.approx(wanted["volume_mm3"], abs=1e-12)
    assert found.diameters_mm == pytest.approx(wanted["diameter_mm"], abs=1e-12)
    assert found.bbox == half_open(wanted["bbox_inclusive"])
    assert math.isnan(found.mean_hu) and found.confidence == 1


def test_a_ball_is_measured_as_one() -> None:
    spacing = (1.0, 0.5, 0.5)
    found = measure_nodule(ball(8, spacing, (20, 20, 20)), (20, 20, 20), spacing)
    assert found is not None
    assert found.equivalent_diameter_mm == pytest.approx(16, rel=0.02)
    assert found.longest_axial_diameter_mm == pytest.approx(16, rel=0.06)
    assert found.sphericity > 0.9
    rod = np.zeros((40, 8, 8), dtype=bool)
    rod[2:38, 3:5, 3:5] = True
    longish = measure_nodule(rod, (20, 4, 4), (1, 1, 1))
    assert longish is not None and longish.sphericity < 0.75


def test_the_truly_nearest_component_is_taken() -> None:
    mask = np.zeros((12, 12, 12), dtype=bool)
    mask[0, 0, 0] = True
    mask[8:10, 8:10, 8:10] = True
    found = measure_nodule(mask, (6, 7, 7.5), (1, 1, 1))
    assert found is not None and found.volume_voxels == 8
    # In mm: the slices are far apart.
    far = measure_nodule(mask, (3, 7, 7), (4, 0.1, 0.1), max_distance_mm=50)
    assert far is not None and far.volume_voxels == 1


def test_too_far_or_empty_is_none() -> None:
    mask = np.zeros((12, 12, 12), dtype=bool)
    assert measure_nodule(mask, (0, 0, 0), (1, 1, 1)) is None
    mask[11, 11, 11] = True
    assert measure_nodule(mask, (0, 0, 0), (1, 1, 1)) is None
    assert measure_nodule(mask, (30.2, 11, 11), (1, 1, 1), max_distance_mm=20) is not None


def test_only_faces_connect() -> None:
    mask = np.zeros((4, 4, 4), dtype=bool)
    mask[1, 1, 1] = mask[2, 2, 2] = True
    found = measure_nodule(mask, (1, 1, 1), (1, 1, 1))
    assert found is not None and found.volume_voxels == 1


def test_intensities_and_texture() -> None:
    mask = np.zeros((4, 4, 4))
    mask[1, 1, 1:3] = 0.8
    hu = np.full((4, 4, 4), -900.0)
    hu[1, 1, 1], hu[1, 1, 2] = 40.0, -500.0
    found = measure_nodule(mask, (1, 1, 1), (1, 1, 1), image_hu=hu)
    assert found is not None
    assert (found.mean_hu, found.std_hu, found.texture) == (-230.0, 270.0, 3.0)
    assert found.confidence == pytest.approx(0.8)


@pytest.mark.parametrize("name", CASES["box_iou"])
def test_box_iou(name: str) -> None:
    case = CASES["box_iou"][name]
    a, b = case["inputs"]["a"], case["inputs"]["b"]
    if name.startswith("inclusive"):
        a, b = half_open(a), half_open(b)
    assert box_iou(a, b) == pytest.approx(case["expected"], abs=1e-12)


def test_boxes_and_volumes_of_published_detections() -> None:
    case = CASES["formatter"]["basic"]
    given = case["inputs"]
    diameters = dict(zip(map(tuple, given["centers"]), given["diameters"], strict=True))
    for wanted in case["expected"]["detections"]:
        diameter = diameters[tuple(wanted["center"])]
        box = sphere_box(wanted["center"], diameter, given["spacing_zyx"], given["shape"])
        inclusive = list(zip(wanted["bbox_min"], wanted["bbox_max"], strict=True))
        assert box == half_open(inclusive)
        assert sphere_volume(diameter) == pytest.approx(wanted["volume_mm3"])
    assert sphere_box((0, 63, 5), 6.0, (1, 1, 1), (64, 64, 64)) == ((0, 4), (60, 64), (2, 9))
