"""Where patches are cut out of scans."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from medtrain.errors import ConfigError
from medtrain_plugins.nodule.annotations.tables import Findings
from medtrain_plugins.nodule.data.patches import cut, grid_starts, patch_start
from medtrain_plugins.nodule.data.sampling import (
    Sampling,
    ScanPoints,
    draw_start,
    find_false_marks,
    ignore_mask,
    positive_chances,
)
from medtrain_plugins.nodule.scans.manifest import ManifestRow, Nodule
from medtrain_plugins.nodule.scans.resampling import AIR

CASES = json.loads((Path(__file__).parents[2] / "golden" / "nodule_patches.json").read_text())


def a_nodule(voxel: tuple[float, float, float], diameter: float | None = 6.0, **more: Any) -> Nodule:
    z, y, x = voxel
    return Nodule(id=f"{voxel}", world=(x, y, z), voxel=voxel, diameter_mm=diameter, **more)


def a_row(*nodules: Nodule, shape: tuple[int, int, int] = (60, 70, 80), **more: Any) -> ManifestRow:
    affine = ((0, 0, 1, 0), (0, 1, 0, 0), (1, 0, 0, 0), (0, 0, 0, 1))
    given = {"image": "none.npy", "checksum": "", "series": "1.2", "patient": "p", **more}
    return ManifestRow(shape=shape, spacing=(1, 1, 1), affine=affine, nodules=nodules, **given)


def contains(start: Any, size: Any, point: Any) -> bool:
    at = np.asarray(point) - start
    return bool(((at >= -0.5) & (at < np.asarray(size) - 0.5)).all())


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_patches_are_those_of_the_golden_cases(case: dict[str, Any]) -> None:
    volume = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    size = case["params"]["patch_size"]
    patch = cut(volume, patch_start(case["inputs"]["center_zyx"], size), size, case["params"]["pad_value"])
    np.testing.assert_array_equal(patch.ravel(), case["expected"])


def test_outside_of_the_scan_is_air() -> None:
    patch = cut(np.zeros((4, 4, 4), dtype=np.int16), np.array([-1, 0, 2]), (4, 4, 4))
    assert patch.dtype == np.int16
    assert (patch[0] == AIR).all() and (patch[:, :, 2:] == AIR).all() and (patch[1:, :, :2] == 0).all()
    assert (cut(np.zeros((4, 4, 4)), np.array([9, 9, 9]), (2, 2, 2)) == AIR).all()


@pytest.mark.parametrize(("shape", "stride"), [((20, 33, 16), (8, 16, 16)), ((40, 9, 17), (16, 5, 1))])
def test_grids_cover_every_voxel_and_stay_in_the_scan(shape: tuple[int, ...], stride: tuple[int, ...]) -> None:
    seen = np.zeros(shape, dtype=int)
    starts = grid_starts(shape, (16, 16, 16), stride)
    assert len(np.unique(starts, axis=0)) == len(starts)
    for z, y, x in starts:
        seen[z : z + 16, y : y + 16, x : x + 16] += 1
    assert seen.all()
    assert (starts + 16 <= np.maximum(shape, 16)).all()


def test_a_smaller_stride_gives_more_patches_and_gaps_are_refused() -> None:
    assert len(grid_starts((64, 64, 64), (32, 32, 32), (16, 16, 16))) > len(
        grid_starts((64, 64, 64), (32, 32, 32), (32, 32, 32))
    )
    with pytest.raises(ConfigError, match="stride"):
        grid_starts((64, 64, 64), (32, 32, 32), (33, 32, 32))


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.5, 0.6, 1.0])
def test_the_positive_fraction_is_honoured_also_when_some_scans_have_no_nodules(fraction: float) -> None:
    sampling = Sampling((16, 16, 16), positive_fraction=fraction)
    nodules = [a_nodule((30, 35, 40)), a_nodule((12, 20, 60))]
    rows = [a_row(*nodules), a_row(*nodules), a_row()]
    scans = [ScanPoints.of(row, sampling) for row in rows]
    chance, expected = positive_chances(scans, sampling)
    assert expected == pytest.approx(min(fraction, 2 / 3))
    generator = np.random.default_rng(0)
    positive = 0
    for index in range(1500):
        start = draw_start(scans[index % 3], sampling, chance, generator)
        positive += any(contains(start, (16, 16, 16), nodule.voxel) for nodule in rows[index % 3].nodules)
    assert positive / 1500 == pytest.approx(expected, abs=0.04)


def test_patches_without_nodules_hold_no_part_of_one_unless_they_may() -> None:
    row = a_row(a_nodule((30, 35, 40), 20.0))
    held = {}
    for allowed in (False, True):
        sampling = Sampling((24, 24, 24), nodules_in_negatives=allowed)
        points, generator = ScanPoints.of(row, sampling), np.random.default_rng(1)
        starts = [draw_start(points, sampling, 0.0, generator) for _ in range(200)]
        held[allowed] = sum(points.nodules_near(start, sampling.patch_size) for start in starts)
    assert held[False] == 0
    assert held[True] > 20


def test_nodules_of_a_stage_left_out_are_not_aimed_at_but_avoided_and_ignored() -> None:
    sampling = Sampling((16, 16, 16), positive_fraction=1.0, min_diameter=10, max_diameter=15)
    small, right, large, unknown = (
        a_nodule((10, 10, 10), 5.0),
        a_nodule((30, 30, 30), 12.0),
        a_nodule((50, 50, 50), 16.0),
        a_nodule((50, 10, 70), None),
    )
    points = ScanPoints.of(a_row(small, right, large, unknown, irrelevant=(a_nodule((10, 60, 60), None),)), sampling)
    np.testing.assert_array_equal(points.centres, [[30, 30, 30]])
    assert points.ignored.shape == (4, 3) and points.filtered == 3
    generator = np.random.default_rng(0)
    for _ in range(50):
        assert contains(draw_start(points, sampling, 1.0, generator), (16, 16, 16), (30, 30, 30))
    negatives = [draw_start(points, sampling, 0.0, generator) for _ in range(100)]
    assert not any(contains(start, (16, 16, 16), small.voxel) for start in negatives)
    everything = ScanPoints.of(a_row(small, unknown), Sampling())
    assert len(everything.centres) == 2, "without a range, nodules of unknown size are learnt"


def test_jitter_moves_nodules_off_the_middle_and_keeps_them_in_the_patch() -> None:
    row = a_row(a_nodule((30, 35, 40)))
    for jitter, spread in ((0.0, 0), (0.5, 6), (1.0, 12)):
        sampling = Sampling((24, 24, 24), jitter=jitter)
        points, generator = ScanPoints.of(row, sampling), np.random.default_rng(2)
        offsets = np.array([[30, 35, 40] - draw_start(points, sampling, 1.0, generator) - 12 for _ in range(300)])
        assert np.abs(offsets).max() <= spread
        assert np.abs(offsets).max() >= spread - 2
        assert (offsets >= -12).all() and (offsets <= 11).all()


def test_patches_lie_in_the_scan_and_around_one_that_is_smaller() -> None:
    sampling = Sampling((32, 32, 32))
    points = ScanPoints.of(a_row(a_nodule((1, 2, 78)), shape=(20, 70, 80)), sampling)
    generator = np.random.default_rng(0)
    for chance in (0.0, 1.0):
        starts = np.array([draw_start(points, sampling, chance, generator) for _ in range(100)])
        assert (starts[:, 1:] >= 0).all() and (starts[:, 1:] + 32 <= [70, 80]).all()
        assert starts[:, 0].min() == -12 and starts[:, 0].max() == 0


def test_negatives_come_from_the_lungs() -> None:
    sampling = Sampling((8, 8, 8))
    points = ScanPoints.of(a_row(lung_box=((20, 20, 20), (40, 40, 40))), sampling)
    generator = np.random.default_rng(0)
    starts = np.array([draw_start(points, sampling, 0.0, generator) for _ in range(200)])
    assert (starts + 4 >= 20).all() and (starts + 4 <= 40).all()


def test_false_marks_are_those_that_hit_nothing_and_are_sampled_by_their_share() -> None:
    row = a_row(a_nodule((30, 35, 40), 10.0), irrelevant=(a_nodule((10, 10, 10), None),))
    world = [[40, 35, 33], [10, 10, 10], [70, 60, 50], [70, 60, 49], [500, 0, 0], [5, 5, 5]]
    marks = Findings.of(["1.2"] * 5 + ["other"], world, score=[0.9, 0.9, 0.9, 0.1, 0.9, 0.9])
    false = find_false_marks(marks, [row])
    assert false.keys() == {"1.2"}
    np.testing.assert_allclose(false["1.2"], [[50, 60, 70], [49, 60, 70]])
    assert len(find_false_marks(marks, [row], least_score=0.5)["1.2"]) == 1
    shares = []
    for fraction in (0.0, 0.5, 1.0):
        sampling = Sampling((8, 8, 8), hard_negative_fraction=fraction)
        points, generator = ScanPoints.of(row, sampling, false["1.2"]), np.random.default_rng(0)
        starts = [draw_start(points, sampling, 0.0, generator) for _ in range(300)]
        shares.append(np.mean([contains(start, (8, 8, 8), (49.5, 60, 70)) for start in starts]))
    assert shares[0] < 0.05 and shares[1] == pytest.approx(0.5, abs=0.1) and shares[2] == 1


def test_what_is_ignored_is_the_sphere_in_mm() -> None:
    mask = ignore_mask((10, 20, 20), np.array([[5.0, 10, 10]]), np.array([8.0]), np.array([2.0, 1.0, 1.0]))
    assert mask[5, 10, 6] and mask[3, 10, 10] and mask[5, 14, 10]
    assert not mask[5, 10, 5] and not mask[2, 10, 10] and not mask[3, 11, 10]
    volume = mask.sum() * 2.0
    assert volume == pytest.approx(4 / 3 * np.pi * 4**3, rel=0.1)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"positive_fraction": 1.5}, "positive_fraction"),
        ({"jitter": -1}, "jitter"),
        ({"patch_size": (0, 8, 8)}, "patch_size"),
        ({"min_diameter": 5, "max_diameter": 5}, "max_diameter"),
    ],
)
def test_settings_out_of_range_are_named(settings: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        Sampling(**settings)
