"""From heatmaps to candidates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from medtrain_plugins.nodule.data.targets import make_targets
from medtrain_plugins.nodule.inference.peaks import Candidate, decode, find_peaks, suppress
from nodule_golden import CASES


@pytest.mark.parametrize("name", ["kernel3", "kernel5"])
def test_published_peaks(name: str) -> None:
    case = CASES["peaks"][name]
    heatmap = torch.zeros(case["inputs"]["shape"])
    for z, y, x, value in case["inputs"]["nonzero"]:
        heatmap[int(z), int(y), int(x)] = value
    zyx, confidence = find_peaks(heatmap, **case["params"])
    assert zyx.tolist() == case["expected"]["zyx"]
    np.testing.assert_allclose(confidence, case["expected"]["confidence"], atol=1e-7)
    assert len(find_peaks(heatmap, top_k=1, **case["params"])[0]) == 1


def test_a_flat_maximum_is_one_point() -> None:
    case = CASES["peaks"]["plateau"]
    heatmap = torch.full(case["inputs"]["shape"], case["inputs"]["constant"])
    zyx, _ = find_peaks(heatmap)
    assert len(zyx) == case["expected"] and zyx.tolist() == [[1, 1, 1]]
    heatmap = torch.zeros(5, 5, 8)
    heatmap[2, 2, 3:5] = 0.8
    assert find_peaks(heatmap)[0].tolist() == [[2, 2, 3.5]]


def test_a_shoulder_is_no_maximum() -> None:
    heatmap = torch.zeros(3, 3, 12)
    heatmap[1, 1, 2:8] = 0.5
    heatmap[1, 1, 8] = 0.9
    assert find_peaks(heatmap)[0].tolist() == [[1, 1, 8]]


def test_nothing_is_found_in_nothing() -> None:
    assert find_peaks(torch.zeros(4, 4, 4), min_confidence=0.0)[0].shape == (0, 3)
    assert decode({"heatmap": torch.zeros(1, 4, 4, 4)}, (1, 1, 1)) == []


@pytest.mark.parametrize("stride", [1, 2])
def test_targets_decode_to_what_they_were_made_from(stride: int) -> None:
    spacing, centres = (1.25, 0.8, 0.7), np.array([[6.3, 9.8, 20.4], [17.0, 22.6, 8.1]])
    made = make_targets(
        (24, 32, 32), centres, [[6.0, 7.0, 8.0], [12.0] * 3], [0.2, 0.9], spacing=spacing, stride=stride
    )
    outputs = {name: values.nan_to_num() for name, values in made.items()}
    found = decode(outputs, spacing, stride=stride)
    assert len(found) == 2
    for candidate in found:
        number = int(np.argmin(np.linalg.norm(centres - candidate.zyx, axis=1)))
        np.testing.assert_allclose(candidate.zyx, centres[number], atol=1e-4)
        assert candidate.triage[0] == pytest.approx([0.2, 0.9][number], abs=1e-5)
        assert candidate.diameter_mm == pytest.approx([336 ** (1 / 3), 12.0][number], rel=1e-4)


def test_values_are_means_weighted_by_the_heatmap() -> None:
    heatmap = torch.zeros(1, 3, 3, 3)
    heatmap[0, 1, 1, 1], heatmap[0, 1, 1, 2] = 0.9, 0.3
    triage = torch.zeros(1, 3, 3, 3)
    triage[0, 1, 1, 1], triage[0, 1, 1, 2] = 0.5, 0.1
    found = decode({"heatmap": heatmap, "triage": triage}, (1, 1, 1))
    assert found[0].triage[0] == pytest.approx((0.9 * 0.5 + 0.3 * 0.1) / 1.2)
    assert found[0].diameter_mm is None


def candidate(x: float, confidence: float, diameter: float) -> Candidate:
    return Candidate((0.0, 0.0, x), confidence, (diameter,) * 3, (confidence,))


def test_closer_than_the_larger_radius_is_the_same_nodule() -> None:
    near = [candidate(0, 0.5, 4), candidate(5, 0.9, 12), candidate(11.5, 0.4, 2)]
    assert [c.zyx[2] for c in suppress(near, (1, 1, 1))] == [5, 11.5]
    # In mm, not in voxels.
    assert len(suppress(near, (1, 1, 2))) == 3
    assert len(suppress([candidate(0, 0.5, 4), candidate(2, 0.4, 4)], (1, 1, 1))) == 2


def test_merging_moves_to_the_weighted_mean() -> None:
    merged = suppress([candidate(0, 0.2, 8), candidate(2, 0.6, 8)], (1, 1, 1), merge=True)
    assert len(merged) == 1 and merged[0].zyx[2] == pytest.approx(1.5) and merged[0].confidence == 0.6
    assert merged[0].triage[0] == pytest.approx(0.5)


def test_kernels_are_odd() -> None:
    with pytest.raises(ValueError, match="odd"):
        find_peaks(torch.zeros(2, 2, 2), kernel=2)
