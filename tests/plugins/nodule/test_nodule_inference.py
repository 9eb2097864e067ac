"""Sliding windows: golden grids and blends, equality with a whole pass, borders, eval mode, strides, calibration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from medtrain.errors import ConfigError, DataError
from medtrain_plugins.nodule.inference import sliding_window as inference
from medtrain_plugins.nodule.inference.calibration import Calibration
from medtrain_plugins.nodule.inference.sliding_window import (
    Blender,
    compute_maps,
    detect,
    find_candidates,
    slide,
    stride_of,
    window_grid,
    window_weights,
)
from medtrain_plugins.nodule.model.build import build_detector
from medtrain_plugins.nodule.model.heads import DetectorModel, DetectorOutput
from medtrain_plugins.nodule.options import InferenceOptions
from torch import Tensor, nn

GOLDEN = Path(__file__).parents[2] / "golden" / "nodule_inference.json"
CASES: list[dict[str, Any]] = json.loads(GOLDEN.read_text())


def cases(group: str) -> Any:
    chosen = [case for case in CASES if case["group"] == group]
    return pytest.mark.parametrize("case", chosen, ids=[case["id"] for case in chosen])


def options(**values: Any) -> InferenceOptions:
    return InferenceOptions.model_validate(values)


class Pointwise(nn.Module):
    """Translation-invariant: every voxel by itself, all heads."""

    output_stride = 1

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.mix = nn.Conv3d(1, 8, 1)
        self.norm = nn.BatchNorm3d(8)
        self.dropout = nn.Dropout(0.5)
        self.out = nn.Conv3d(8, 9, 1)

    def forward(self, image: Tensor) -> DetectorOutput:
        found = self.out(self.dropout(torch.relu(self.norm(self.mix(image)))))
        return DetectorOutput(found[:, :1], found[:, 1:4], found[:, 4:7], found[:, 7:8], found[:, 8:9])


@cases("sliding_window")
def test_golden_grids(case: dict[str, Any]) -> None:
    shape, window, wanted = case["inputs"]["shape"], case["params"]["window"], case["expected"]
    grid = window_grid(shape, window, case["params"]["stride"])
    assert list(map(list, zip(grid.before, grid.after, strict=True))) == wanted["pad_before_after"]
    padded = [size + a + b for size, a, b in zip(shape, grid.before, grid.after, strict=True)]
    assert padded == wanted["padded_shape"]
    assert (len(grid.starts), list(grid.starts[0]), list(grid.starts[-1])) == (
        wanted["n_windows"],
        wanted["first"],
        wanted["last"],
    )


@cases("blend_weights")
def test_golden_constant_weights(case: dict[str, Any]) -> None:
    weights = window_weights(case["inputs"]["window"], "constant")
    assert weights.min() == weights.max() == case["expected"]["max"]


@cases("blend")
def test_golden_blends(case: dict[str, Any]) -> None:
    window = case["inputs"]["window"]
    weights = torch.ones(window)
    if case["id"] == "blend.gaussian":
        # These weights are centred on n / 2 and a quarter wide; the way of blending is ours.
        lines = [torch.exp(-0.5 * ((torch.arange(n) - n / 2) / (0.25 * n)) ** 2) for n in window]
        weights = lines[0][:, None, None] * lines[1][:, None] * lines[2]
    blender = Blender(case["inputs"]["output"], weights)
    for part in case["inputs"]["windows"]:
        blender.add({"map": torch.full((1, *window), float(part["value"]))}, part["start"])
    weight = blender.weight[0, 0]
    wanted = torch.tensor(case["expected"]["weight_row"])
    torch.testing.assert_close(weight / weight.max(), wanted / wanted.max(), atol=1e-6, rtol=0)
    torch.testing.assert_close(
        blender.means()["map"][0, 0, 0], torch.tensor(case["expected"]["blended_row"]), atol=1e-6, rtol=0
    )


def test_gaussian_weights_are_symmetric_and_never_below_the_floor() -> None:
    from monai.data.utils import compute_importance_map

    for window in ((8, 6, 5), (4, 4, 4), (48, 40, 33)):
        weights = window_weights(window)
        torch.testing.assert_close(weights, weights.flip([0, 1, 2]))
        assert weights.min() >= 1e-3 and weights.max() <= 1.0
        theirs = compute_importance_map(window, mode="gaussian", sigma_scale=0.125)
        torch.testing.assert_close(weights, theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("border", [0.0, 0.5])
@pytest.mark.parametrize("blend", ["gaussian", "constant"])
@pytest.mark.parametrize("shape", [(21, 17, 30), (5, 6, 7), (16, 16, 16)])
def test_windows_equal_a_whole_pass(shape: tuple[int, int, int], blend: str, border: float) -> None:
    model, volume = Pointwise().eval(), torch.rand(shape)
    given = options(window=[8, 8, 12], blend=blend, border=border, batch_size=3)
    maps = compute_maps(model, volume, given)
    with torch.no_grad():
        whole = model(volume[None, None])
    for name in ("heatmap", "triage", "segmentation"):
        torch.testing.assert_close(maps[name], getattr(whole, name)[0].sigmoid(), atol=1e-5, rtol=0)
    for name in ("offset", "log_diameter"):
        torch.testing.assert_close(maps[name], getattr(whole, name)[0], atol=1e-5, rtol=0)
    assert maps["heatmap"].min() > 0  # the borders too


def test_the_same_as_monai_where_windows_coincide() -> None:
    from monai.inferers import sliding_window_inference

    torch.manual_seed(0)
    layer, image = nn.Conv3d(1, 2, 3, padding=1), torch.rand(1, 16, 16, 24)
    with torch.no_grad():
        ours = slide(lambda batch: {"features": layer(batch)}, image, (8, 8, 8))["features"]
        theirs = sliding_window_inference(image[None], (8, 8, 8), 2, layer, overlap=0.5, mode="gaussian")
    torch.testing.assert_close(ours, theirs[0], atol=1e-5, rtol=0)


def test_windows_beyond_the_border_see_air() -> None:
    seen: list[Tensor] = []

    def look(batch: Tensor) -> dict[str, Tensor]:
        seen.append(batch)
        return {"heatmap": batch}

    slide(look, torch.ones(1, 8, 8, 8), (8, 8, 8), border=0.5, pad_value=-7.0)
    windows = torch.cat(seen)
    assert set(windows.unique().tolist()) == {-7.0, 1.0}
    assert len(windows) == 27 and (windows[0, 0, :4] == -7).all()


def test_batches_are_of_the_given_size() -> None:
    sizes: list[int] = []

    def look(batch: Tensor) -> dict[str, Tensor]:
        sizes.append(len(batch))
        return {"heatmap": batch}

    slide(look, torch.ones(1, 16, 16, 16), (8, 8, 8), batch_size=5)
    assert sizes == [5] * 5 + [2]


def test_overlap_sets_how_many_windows_there_are() -> None:
    counts = []
    for overlap in (0.0, 0.5, 0.75):
        seen: list[Tensor] = []

        def look(batch: Tensor, seen: list[Tensor] = seen) -> dict[str, Tensor]:
            seen.append(batch)
            return {"heatmap": batch}

        slide(look, torch.ones(1, 16, 16, 16), (8, 8, 8), overlap=overlap)
        counts.append(sum(map(len, seen)))
    assert counts == [8, 27, 125]


class Counting(Pointwise):
    """Keeps the batches it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[Tensor] = []

    def forward(self, image: Tensor) -> DetectorOutput:
        self.batches.append(image)
        return super().forward(image)


@pytest.mark.parametrize(
    ("change", "sizes"),
    [
        ({}, [2] * 13 + [1]),  # 27 windows, half of each in the next
        ({"overlap": 0.0}, [2] * 4),
        ({"border": 0.5}, [2] * 62 + [1]),
        ({"batch_size": 20}, [20, 7]),
        ({"window": [16]}, [1]),
        ({"window": [16], "tta": ["flip_x", "flip_y"]}, [1] * 4),
        ({"window": [16], "tta": ["flip_x", "flip_y"], "tta_count": 3}, [1] * 3),
    ],
)
def test_options_set_windows_batches_and_views(change: dict[str, Any], sizes: list[int]) -> None:
    model = Counting()
    compute_maps(model, torch.rand(16, 16, 16), options(**{"window": [8], **change}))
    assert [len(batch) for batch in model.batches] == sizes


def test_the_way_of_blending_is_the_one_asked_for() -> None:
    torch.manual_seed(0)
    layer, volume = nn.Conv3d(1, 1, 3, padding=1), torch.rand(12, 12, 12)
    maps = {
        way: compute_maps(layer, volume, options(window=[8], blend=way))["heatmap"] for way in ("gaussian", "constant")
    }
    with torch.no_grad():
        wanted = slide(lambda batch: {"heatmap": layer(batch).sigmoid()}, volume[None], (8, 8, 8), blend="constant")
    torch.testing.assert_close(maps["constant"], wanted["heatmap"])
    assert not torch.allclose(maps["gaussian"], maps["constant"], atol=1e-3)


@pytest.mark.parametrize(("where", "wanted"), [("device", "meta"), ("cpu", "cpu")])
def test_maps_are_summed_where_asked(monkeypatch: pytest.MonkeyPatch, where: str, wanted: str) -> None:
    told: dict[str, Any] = {}

    def no_windows(*_: Any, **settings: Any) -> dict[str, Tensor]:  # this machine may have but one device
        told.update(settings)
        return {}

    monkeypatch.setattr(inference, "slide", no_windows)
    given = options(window=[8], accumulate_on=where)
    compute_maps(Pointwise(), torch.rand(8, 8, 8), given, device=torch.device("meta"))
    assert (told["device"].type, told["accumulate_on"].type) == ("meta", wanted)


def test_faint_peaks_count_from_the_least_confidence_on() -> None:
    maps = {"heatmap": torch.zeros(1, 5, 5, 5)}
    maps["heatmap"][0, 2, 2, 2] = 0.03
    assert [len(find_candidates(maps, (1, 1, 1), options(min_confidence=least))) for least in (0.02, 0.05)] == [1, 0]


def test_kernel_and_merge_decide_what_is_one_candidate() -> None:
    heatmap = torch.zeros(1, 9, 9, 15)
    heatmap[0, 4, 4, 4], heatmap[0, 4, 4, 6] = 0.8, 0.4
    maps = {"heatmap": heatmap, "log_diameter": torch.full_like(heatmap, 0.5)}
    assert len(find_candidates(maps, (1, 1, 1), options())) == 2
    assert len(find_candidates(maps, (1, 1, 1), options(kernel=5))) == 1
    maps["log_diameter"] += 2.0
    assert [one.zyx[2] for one in find_candidates(maps, (1, 1, 1), options())] == [4.0]
    (merged,) = find_candidates(maps, (1, 1, 1), options(merge=True))
    assert merged.zyx[2] == pytest.approx((0.8 * 4 + 0.4 * 6) / 1.2, abs=1e-5)


def test_eval_mode_is_enforced_and_every_part_left_as_it_was() -> None:
    model = Pointwise().train()
    model.norm.eval()  # a frozen part
    statistics = model.norm.running_mean.clone()  # type: ignore[union-attr]
    volume = torch.rand(9, 9, 9)
    first, second = (compute_maps(model, volume, options(window=[8])) for _ in range(2))
    torch.testing.assert_close(first["heatmap"], second["heatmap"], atol=0, rtol=0)
    assert model.training and model.dropout.training and not model.norm.training
    torch.testing.assert_close(model.norm.running_mean, statistics, atol=0, rtol=0)


@pytest.mark.parametrize("stride", [1, 2])
def test_real_networks_of_both_strides(stride: int) -> None:
    torch.manual_seed(0)
    model = build_detector(base_filters=4, depth=2, output_stride=stride)  # type: ignore[arg-type]
    volume = np.random.default_rng(0).random((19, 24, 21))
    assert stride_of(model) == stride_of(DetectorModel(model)) == stride
    maps = compute_maps(model, volume, options(overlap=0.3), window=(16, 16, 16))
    reduced = [-(-size // stride) for size in volume.shape]
    for name in ("heatmap", "offset", "log_diameter", "triage"):
        assert list(maps[name].shape[1:]) == reduced
    assert maps["segmentation"].shape[1:] == volume.shape
    wrapped = compute_maps(DetectorModel(model), volume, options(overlap=0.3), window=(16, 16, 16))
    for name, values in maps.items():
        torch.testing.assert_close(values, wrapped[name], atol=0, rtol=0)


class Blob(nn.Module):
    """Finds what is bright; at stride 2 in blocks of 2 x 2 x 2 voxels."""

    def __init__(self, output_stride: int = 1) -> None:
        super().__init__()
        self.output_stride = output_stride

    def forward(self, image: Tensor) -> DetectorOutput:
        reduced = nn.functional.avg_pool3d(image, self.output_stride)
        return DetectorOutput(60 * reduced - 30, None, torch.full_like(reduced, float(np.log(6.0))))


@pytest.mark.parametrize("stride", [1, 2])
def test_candidates_lie_where_the_bright_spots_are(stride: int) -> None:
    volume = np.zeros((24, 30, 26), dtype=np.float32)
    places = [(4, 6, 8), (18, 22, 14)]
    for (z, y, x), value in zip(places, (1.0, 0.5), strict=True):
        volume[z : z + 2, y : y + 2, x : x + 2] = value
    found = detect(Blob(stride), volume, (1, 1, 1), options(min_confidence=0.3), window=(16, 16, 16))
    assert [one.zyx for one in found] == [pytest.approx(tuple(n + 0.5 for n in place)) for place in places]
    assert found[0].diameter_mm == pytest.approx(6.0)
    assert len(detect(Blob(stride), volume, (1, 1, 1), options(threshold=0.99), window=(16, 16, 16))) == 1
    assert len(detect(Blob(stride), volume, (1, 1, 1), options(top_k=1), window=(16, 16, 16))) == 1


def test_only_windows_with_lung_are_looked_at() -> None:
    inside = np.zeros((32, 16, 16), dtype=bool)
    inside[26:, 4:, 4:] = True
    volume = torch.rand(32, 16, 16)
    model = Pointwise()
    part = compute_maps(model, volume, options(window=[8]), inside=inside)["heatmap"]
    whole = compute_maps(model, volume, options(window=[8]))["heatmap"]
    assert (part[0, :20] == 0).all()
    torch.testing.assert_close(part[0][torch.from_numpy(inside)], whole[0][torch.from_numpy(inside)], atol=1e-6, rtol=0)
    nothing = compute_maps(model, volume, options(window=[8]), inside=np.zeros_like(inside))["heatmap"]
    torch.testing.assert_close(nothing, whole)


def test_calibration_changes_scores_before_the_threshold(tmp_path: Path) -> None:
    maps = {"heatmap": torch.zeros(1, 9, 9, 9)}
    maps["heatmap"][0, 2, 2, 2], maps["heatmap"][0, 6, 6, 6] = 0.8, 0.6
    path = tmp_path / "calibration.json"
    Calibration(method="platt", slope=1.0, intercept=-1.0).write(path)
    plain = find_candidates(maps, (1, 1, 1), options())
    calibrated = find_candidates(maps, (1, 1, 1), options(calibration=path))
    wanted = [1 / (1 + np.exp(1) * (1 - one.confidence) / one.confidence) for one in plain]
    assert [one.confidence for one in calibrated] == pytest.approx(wanted)
    assert len(find_candidates(maps, (1, 1, 1), options(calibration=path, threshold=0.5))) == 1


def test_autocast_is_used() -> None:
    seen: list[torch.dtype] = []

    class Look(Pointwise):
        def forward(self, image: Tensor) -> DetectorOutput:
            found = super().forward(image)
            seen.append(found.heatmap.dtype)
            return found

    maps = compute_maps(Look(), torch.rand(8, 8, 8), options(window=[8]), amp=torch.bfloat16)
    assert seen == [torch.bfloat16] and maps["heatmap"].dtype == torch.float32


def test_a_plain_network_is_a_heatmap() -> None:
    maps = compute_maps(nn.Conv3d(1, 1, 1), torch.rand(8, 8, 8), options(window=[8]))
    assert list(maps) == ["heatmap"] and 0 < maps["heatmap"].min() <= maps["heatmap"].max() < 1


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(DataError, match="three axes"):
        compute_maps(Pointwise(), torch.rand(8, 8), options(window=[8]))
    with pytest.raises(ConfigError, match="window"):
        compute_maps(Pointwise(), torch.rand(8, 8, 8), options())
    with pytest.raises(ConfigError, match="output stride"):
        compute_maps(nn.Conv3d(1, 1, 3), torch.rand(8, 8, 8), options(window=[8]))
    with pytest.raises(ValueError, match="odd"):
        options(kernel=4)
