"""Test-time augmentation: exact inverses of voxels, points, offsets and lengths; the average over views."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from medtrain.errors import ConfigError
from medtrain_plugins.nodule.inference.sliding_window import compute_maps
from medtrain_plugins.nodule.inference.tta import GENERATORS, View, make_views
from medtrain_plugins.nodule.model.build import build_detector
from medtrain_plugins.nodule.model.heads import DetectorOutput
from medtrain_plugins.nodule.options import InferenceOptions
from spec_functions import triple
from torch import Tensor, nn

ALL = ("flip_x", "flip_y", "flip_z", "rotate_90")
VIEWS = make_views(ALL)


def options(**values: Any) -> InferenceOptions:
    return InferenceOptions.model_validate(values)


def test_three_flips_make_eight_views_and_quarter_turns_sixteen() -> None:
    assert len(make_views(ALL[:3])) == 8
    assert len(VIEWS) == len(set(VIEWS)) == 16
    assert len(make_views(["rotate_90"])) == 4
    assert make_views([]) == [View()]
    assert make_views(ALL, 5) == [View(), *(GENERATORS[name] for name in ALL)]
    assert make_views(ALL, 8) == VIEWS[:8]
    with pytest.raises(ConfigError, match=r"did you mean 'flip_x'"):
        make_views(["flip_xx"])


def test_flips_and_turns_are_those_of_numpy() -> None:
    array = np.arange(60).reshape(3, 4, 5)
    values = torch.from_numpy(array)
    for name, wanted in {
        "flip_x": array[:, :, ::-1],
        "flip_y": array[:, ::-1],
        "flip_z": array[::-1],
        "rotate_90": np.rot90(array, axes=(1, 2)),
    }.items():
        np.testing.assert_array_equal(GENERATORS[name].apply(values).numpy(), wanted)


@pytest.mark.parametrize("view", VIEWS)
def test_inverses_are_exact(view: View) -> None:
    values = torch.arange(2 * 60).reshape(2, 3, 4, 5)
    seen = view.apply(values)
    assert tuple(seen.shape[1:]) == triple(view, (3, 4, 5))
    assert torch.equal(view.invert(seen), values)
    assert view.then(view.inverse) == view.inverse.then(view) == View()


def test_one_after_the_other_is_their_product() -> None:
    values = torch.arange(60).reshape(3, 4, 5)
    for first, second in itertools.product(VIEWS, repeat=2):
        assert torch.equal(first.then(second).apply(values), second.apply(first.apply(values)))


@pytest.mark.parametrize("view", VIEWS)
def test_points_go_along(view: View) -> None:
    values = torch.rand(3, 4, 5)
    for zyx in [(0, 1, 2), (2, 3, 4), (1, 0, 3)]:
        ((z, y, x),) = view.points([zyx], (3, 4, 5)).astype(int)
        assert view.apply(values)[z, y, x] == values[zyx]


@pytest.mark.parametrize("view", VIEWS)
def test_offsets_and_lengths_come_back_along_the_axes_of_the_scan(view: View) -> None:
    """A point between voxels, told from its view, is the same point."""
    shape, point, sizes = (6, 7, 8), np.array([2.3, 3.8, 5.4]), (3.0, 4.0, 5.0)
    seen = triple(view, shape)
    (there,) = view.points([point], shape)
    nearest = np.rint(there).astype(int)
    offset, length = torch.zeros(3, *seen), torch.zeros(3, *seen)
    z, y, x = nearest
    offset[:, z, y, x] = torch.from_numpy(there - nearest).float()
    length[:, z, y, x] = torch.tensor(triple(view, sizes))
    back = view.invert_maps({"offset": offset, "log_diameter": length, "heatmap": offset[:1]})
    ((vz, vy, vx),) = view.inverse.points([nearest], seen).astype(int)
    found = np.array([vz, vy, vx]) + back["offset"][:, vz, vy, vx].numpy()
    np.testing.assert_allclose(found, point, atol=1e-6)
    assert tuple(back["log_diameter"][:, vz, vy, vx].tolist()) == sizes


class Symmetric(nn.Module):
    """Commutes with every view: neighbours count alike; offsets are slopes."""

    output_stride = 1

    def forward(self, image: Tensor) -> DetectorOutput:
        smooth = nn.functional.avg_pool3d(image, 3, 1, 1)
        slopes = [(smooth.roll(-1, axis) - smooth.roll(1, axis)) / 2 for axis in (2, 3, 4)]
        widths = [image.roll(-1, axis) + image.roll(1, axis) for axis in (2, 3, 4)]
        return DetectorOutput(smooth, torch.cat(slopes, 1), torch.cat(widths, 1), image, image)


def test_views_of_a_symmetric_network_change_nothing() -> None:
    volume = torch.rand(9, 8, 8)
    plain = compute_maps(Symmetric(), volume, options(window=[9, 8, 8]))
    averaged = compute_maps(Symmetric(), volume, options(window=[9, 8, 8], tta=ALL))
    for name, values in plain.items():
        torch.testing.assert_close(averaged[name], values, atol=1e-5, rtol=0)


@pytest.mark.parametrize("stride", [1, 2])
def test_averaged_maps_turn_with_the_scan(stride: int) -> None:
    """Over the whole group of views every network is equivariant, odd sizes and output strides included."""
    torch.manual_seed(1)
    model = build_detector(base_filters=2, depth=2, output_stride=stride)  # type: ignore[arg-type]
    volume = torch.rand(8, 12, 12)
    given = options(window=[8, 12, 12], tta=ALL)
    maps = compute_maps(model, volume, given)
    for view in (VIEWS[1], VIEWS[4], VIEWS[-1]):
        turned = compute_maps(model, view.apply(volume), given)
        for name, values in view.invert_maps(turned).items():
            torch.testing.assert_close(values, maps[name], atol=1e-4, rtol=0)
    single = compute_maps(model, volume, options(window=[8, 12, 12]))
    assert (single["heatmap"] - maps["heatmap"]).abs().max() > 1e-6
    odd = compute_maps(model, volume[:7, :11, :9], given)
    assert list(odd["heatmap"].shape[1:]) == [-(-n // stride) for n in (7, 11, 9)]


def test_an_odd_scan_stays_in_place_at_stride_two() -> None:
    class Block(nn.Module):
        output_stride = 2

        def forward(self, image: Tensor) -> DetectorOutput:
            return DetectorOutput(20 * nn.functional.avg_pool3d(image, 2) - 10)

    volume = torch.zeros(9, 9, 9)
    volume[2:4, 4:6, 6:8] = 1
    heatmap = compute_maps(Block(), volume, options(window=[10], tta=ALL))["heatmap"][0]
    assert np.unravel_index(int(heatmap.argmax()), heatmap.shape) == (1, 2, 3)
    assert heatmap[1, 2, 3] > 0.99 and (heatmap > 0.5).sum() == 1
