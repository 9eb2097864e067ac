"""Hazard head, time encoding and feature-space warp against golden values, and which way things move."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from medtrain_plugins.mammography.model.layers import (
    ContinuousPosEncoding,
    CumulativeProbabilityLayer,
    feature_displacement,
    resize_flow,
    warp,
)
from medtrain_plugins.mammography.model.registration import spatial_transform
from torch.nn import functional as F
from torch.testing import assert_close

EXACT: dict[str, Any] = {"rtol": 1e-8, "atol": 1e-8}
SINGLE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}  # golden cases computed in float32


def test_cumulative_probability_layer(golden):
    case = golden("cumulative_probability_layer")
    layer = case.load_into(CumulativeProbabilityLayer(4))
    x = case.tensor("x")
    assert_close(layer.hazards(x), case.tensor("hazards"), **EXACT)
    assert_close(layer(x), case.tensor("logits"), **EXACT)
    assert_close(layer(x).sigmoid(), case.tensor("probs"), **EXACT)
    assert_close(CumulativeProbabilityLayer(4).triangular_mask.double(), case.tensor("triangular_mask"))


def test_risk_keeps_full_precision_under_autocast():
    layer = CumulativeProbabilityLayer(16)
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), layer.float()(x))
        assert layer(x.bfloat16()).dtype == torch.float32


def test_continuous_pos_encoding(golden):
    case = golden("continuous_pos_encoding")
    encoding = ContinuousPosEncoding(8).eval()
    times = case.tensor("times")
    rows = case.outputs["pe_rows"]
    expected = torch.tensor(list(rows.values()), dtype=torch.float32)
    assert_close(encoding.pe[[int(i) for i in rows]], expected, **SINGLE)
    out = encoding(torch.zeros(2, 8, 8), times)
    assert_close(out[0], case.tensor("encoding", torch.float32), **SINGLE)
    assert torch.equal(out[0], out[1])


def test_pos_encoding_takes_whole_years():
    encoding = ContinuousPosEncoding(8)
    assert torch.equal(encoding.encode(torch.tensor([1, 3])), encoding.encode(torch.tensor([1.0, 3.0])))


def test_warp_golden(golden):
    case = golden("spatial_transformer_common")
    assert_close(warp(case.tensor("x"), case.tensor("flow")), case.tensor("warped"), **SINGLE)


def test_registration_warp_golden(golden):
    case = golden("spatial_transformer_mammoregnet")
    x, flow = case.tensor("x"), case.tensor("flow")
    assert_close(spatial_transform(x, flow), case.tensor("warped"), **SINGLE)
    assert_close(warp(x, flow.flip(1)), case.tensor("warped"), **SINGLE)
    assert not torch.allclose(warp(x, flow), case.tensor("warped"))


def test_warp_equals_grid_sample_with_its_gradients():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 7, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    flow = 4 * torch.randn(2, 2, 7, 5, dtype=torch.float64, generator=generator)
    flow.requires_grad_()
    rows, columns = torch.meshgrid(torch.arange(7.0), torch.arange(5.0), indexing="ij")
    grid = torch.stack([columns + flow[:, 0], rows + flow[:, 1]], dim=-1)
    grid = 2 * grid / torch.tensor([4, 6]) - 1
    expected = F.grid_sample(x, grid, align_corners=True)
    out = warp(x, flow)
    assert_close(out, expected, **EXACT)
    weights = torch.randn(out.shape, dtype=torch.float64, generator=generator)
    ours = torch.autograd.grad((out * weights).sum(), [x, flow])
    theirs = torch.autograd.grad((expected * weights).sum(), [x, flow])
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a, b, **EXACT)


def test_warp_shows_a_flow_that_is_not_finite():
    flow = torch.zeros(1, 2, 4, 4)
    flow[0, 0, 1, 1] = torch.nan
    out = warp(torch.ones(1, 1, 4, 4), flow)
    assert out.isnan().sum() == 1


def test_resize_flow(golden):
    case = golden("resize_flow")
    height, width = case.inputs["target_hw"]
    assert_close(resize_flow(case.tensor("flow"), (height, width)), case.tensor("flow_resized"), **SINGLE)
    as_reference = feature_displacement(case.tensor("flow"), (height, width), "reference")
    assert_close(as_reference, case.tensor("flow_resized"), **SINGLE)


@pytest.mark.parametrize(("compat", "moved_to"), [("fixed", (4, 5)), ("reference", (6, 3))])
def test_rows_of_the_registration_flow_move_feature_rows(compat, moved_to):
    """A flow of +2 feature rows: the feature appears 2 rows further up, and in the reference 2 columns away."""
    stride = 32
    feature = torch.zeros(1, 1, 9, 8)
    feature[0, 0, 6, 5] = 1
    flow = torch.zeros(1, 2, 9 * stride, 8 * stride)
    flow[:, 0] = 2 * stride  # MammoRegNet: channel 0 = rows
    moved = warp(feature, feature_displacement(flow, (9, 8), compat))
    assert_close(moved[(0, 0, *moved_to)], torch.tensor(1.0))
    assert_close(moved.sum(), torch.tensor(1.0))


def test_displacement_scales_each_axis_by_its_own_ratio():
    flow = torch.ones(1, 2, 64, 96)
    fixed = feature_displacement(flow, (8, 24))
    assert_close(fixed[0, :, 0, 0], torch.tensor([24 / 96, 8 / 64]))
