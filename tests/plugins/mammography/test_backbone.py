"""The Mirai backbone: keys and shapes of checkpoints, golden output."""

from __future__ import annotations

import torch
from medtrain_plugins.mammography.model.backbone import mirai_backbone
from torch.testing import assert_close


def test_keys_and_shapes_are_those_of_checkpoints(golden):
    state = mirai_backbone().state_dict()
    listed = {key: tuple(shape) for key, shape, _ in golden("formula_mirai_backbone").inputs["state_dict_keys"]}
    assert {key: tuple(tensor.shape) for key, tensor in state.items()} == listed
    assert len(state) == 120
    assert sum(p.numel() for p in mirai_backbone().parameters()) == 11_176_512


def test_golden_output(golden, formula_weights, formula_image):
    case = golden("formula_mirai_backbone")
    size = (case.inputs["B"], case.inputs["H"], case.inputs["W"])
    backbone = formula_weights(mirai_backbone()).double()
    with torch.no_grad():
        out = backbone(formula_image(0, *size).expand(-1, 3, -1, -1))
    assert list(out.shape) == case.outputs["shape"]
    expected = case.tensor("channels_0_100_200_511")
    assert_close(out[:, [0, 100, 200, 511]], expected, rtol=1e-8, atol=1e-8)
    assert_close(out.mean(), case.tensor("mean"), rtol=1e-8, atol=1e-8)
    assert_close(out.std(), case.tensor("std"), rtol=1e-8, atol=1e-8)


def test_fresh_backbone_keeps_the_scale_of_features():
    torch.manual_seed(0)
    with torch.no_grad():
        out = mirai_backbone()(torch.rand(4, 3, 64, 64))
    assert (out >= 0).all()
    assert 0.1 < out.std() < 10
