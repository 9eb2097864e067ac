"""What the network is to say about a patch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from medtrain_plugins.nodule.data.targets import make_heatmap, make_targets, output_shape, sigma_of, to_input, to_output
from nodule_golden import CASES


@pytest.mark.parametrize("name", CASES["heatmap"])
def test_published_heatmaps(name: str) -> None:
    case = CASES["heatmap"][name]
    params: dict[str, Any] = {"normalize": True, "mode": "max", "spacing_zyx": [1.0] * 3} | case["params"]
    found = make_heatmap(
        case["inputs"]["shape"],
        case["inputs"]["centers_zyx"],
        params["spacing_zyx"],
        params["sigma_mm"],
        params["mode"],
        peak_at_one=params["normalize"],
    )
    np.testing.assert_allclose(found.ravel(), np.ravel(case["expected"]), atol=1e-6)


def test_every_nodule_has_one_peak_of_exactly_one() -> None:
    heatmap = make_heatmap((4, 4, 16), [[1.5, 1.5, 2.5], [2, 2, 9.3]], (1, 1, 1), 1.5)
    assert np.argwhere(heatmap == 1).tolist() == [[2, 2, 3], [2, 2, 9]]


def test_width_follows_the_diameter() -> None:
    assert [sigma_of(d) for d in (3.0, 12.0, 60.0)] == [1.0, 2.0, 4.0]
    small, large = (make_heatmap((1, 1, 9), [[0, 0, 4]], (1, 1, 1), sigma_of(d)) for d in (4, 18))
    assert large.sum() > 2 * small.sum()


def test_output_grid() -> None:
    assert output_shape((5, 6, 7), 2) == (3, 3, 4)
    # Output voxel 3 stands for input voxels 6 and 7.
    assert to_input([3, 3, 3], 2).tolist() == [6.5] * 3
    np.testing.assert_allclose(to_output(to_input([1.2, 3.4, 5.6], 2), 2), [1.2, 3.4, 5.6])


@pytest.mark.parametrize("stride", [1, 2])
def test_targets_give_the_centre_back(stride: int) -> None:
    centre = np.array([7.3, 4.9, 10.2])
    made = make_targets((16, 14, 18), [centre], [[6.0, 7.0, 8.0]], [0.4], spacing=(1.25, 0.7, 0.7), stride=stride)
    peak = np.argwhere(made["heatmap"][0].numpy() == 1)
    assert len(peak) == 1
    at = tuple(peak[0])
    offset = made["offset"][:, *at].numpy()
    assert (np.abs(offset) <= 0.5).all()
    np.testing.assert_allclose(to_input(peak[0] + offset, stride), centre, atol=1e-5)
    np.testing.assert_allclose(made["log_diameter"][:, *at].exp(), [6, 7, 8], rtol=1e-5)
    assert made["triage"].isfinite().sum() == 27 and made["offset"].isfinite().sum() == 81


def test_a_nodule_outside_leaves_a_tail_and_no_label() -> None:
    made = make_targets((8, 8, 8), [[-2, 4, 4]], [10.0])
    heatmap = made["heatmap"]
    assert 0 < float(heatmap.max()) < 1
    assert not made["offset"].isfinite().any() and not made["log_diameter"].isfinite().any()


def test_neighbours_share_voxels_by_distance() -> None:
    made = make_targets((8, 8, 8), [[4, 4, 2], [4, 4, 4]], [4.0, 9.0])
    logs = made["log_diameter"][0, 4, 4]
    assert math.exp(logs[1]) == pytest.approx(4) and math.exp(logs[5]) == pytest.approx(9)
    assert (made["heatmap"] == 1).sum() == 2


def test_what_is_unknown_is_nan() -> None:
    made = make_targets((8, 8, 8), [[4, 4, 4]], [-1.0], diameter_channels=1, ignore=[[1, 1, 1]], ignore_diameters=[2.0])
    assert not made["log_diameter"].isfinite().any() and made["log_diameter"].shape == (1, 8, 8, 8)
    assert made["offset"].isfinite().any() and not made["triage"].isfinite().any()
    assert made["heatmap"].isnan().sum() == 7 and made["heatmap"][0, 4, 4, 4] == 1


def test_an_empty_patch() -> None:
    made = make_targets((8, 6, 4), [], [], stride=2)
    assert made["heatmap"].shape == (1, 4, 3, 2) and not made["heatmap"].any()
