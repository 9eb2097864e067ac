"""MammoRegNet, its parts and its training losses against golden values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from medtrain.errors import DataError
from medtrain_plugins.mammography.model import registration_losses as losses
from medtrain_plugins.mammography.model.registration import AffineHead, MammoRegNet, affine_transform, upsample_flow
from medtrain_plugins.mammography.model.swin import SwinBlock, SwinStage, WindowAttention, shift_mask
from torch.testing import assert_close

EXACT: dict[str, Any] = {"rtol": 1e-8, "atol": 1e-8}


def test_affine_head(golden):
    case = golden("affine_head")
    para, flow = case.load_into(AffineHead(4))(case.tensor("x"))
    assert_close(para, case.tensor("affine_para"), **EXACT)
    assert_close(flow, case.tensor("flow"), **EXACT)


def test_affine_transform(golden):
    case = golden("affine_transformer")
    warped = affine_transform(case.tensor("x"), case.tensor("affine_para"))
    assert_close(warped, case.tensor("warped"), rtol=1e-4, atol=1e-5)  # computed in float32


def test_upsample_flow(golden):
    case = golden("resize_transformer")
    assert_close(upsample_flow(case.tensor("flow")), case.tensor("up"), **EXACT)


def test_window_attention(golden):
    case = golden("window_attention")
    attention = WindowAttention(8, 2, window=3)
    index = case.tensor("relative_position_index", torch.int64)
    assert torch.equal(attention.relative_position_index, index)
    case.load_into(attention)
    x, mask = case.tensor("x"), case.tensor("mask")
    assert_close(attention(x, mask), case.tensor("y"), **EXACT)
    assert_close(attention(x), case.tensor("y_nomask"), **EXACT)
    assert torch.equal(shift_mask((6, 6), (3, 3), (1, 1), x), mask)


def test_swin_block_on_a_padded_map(golden):
    case = golden("swin_block_padded")
    x = case.tensor("x")
    assert_close(case.load_into(SwinBlock(4, 2, shift=2))(x), case.tensor("y"), **EXACT)
    assert not torch.allclose(case.load_into(SwinBlock(4, 2, shift=0))(x), case.tensor("y"))


def test_recomputed_blocks_have_the_same_gradients():
    torch.manual_seed(0)
    stage = SwinStage(32, depth=2).double()
    x = torch.randn(1, 32, 7, 6, dtype=torch.float64)

    def gradients(x: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad(stage(x).square().sum(), list(stage.parameters())))

    plain = gradients(x)
    for a, b in zip(plain, gradients(x.clone().requires_grad_()), strict=True):
        assert torch.equal(a, b)


def test_losses(golden):
    case = golden("registration_losses")
    fixed, moved, flow = case.tensor("fixed"), case.tensor("moved"), case.tensor("flow")
    assert_close(losses.normalised_cross_correlation(fixed, moved), case.tensor("ncc"), **EXACT)
    assert_close(losses.smoothness(flow).mean(), case.tensor("grad"), **EXACT)
    penalty = losses.FOLDING_WEIGHT * losses.folding(flow, "reference").sum()
    assert_close(penalty, case.tensor("njd"), **EXACT)
    assert_close(losses.regularisation(flow, "reference"), case.tensor("regu"), **EXACT)
    assert not torch.isclose(losses.folding(flow), losses.folding(flow, "reference")).any()


def test_jacobian_of_a_linear_flow_is_its_determinant():
    rows, columns = torch.meshgrid(torch.arange(5.0), torch.arange(6.0), indexing="ij")
    flow = torch.stack([0.5 * rows + 0.2 * columns, 0.1 * rows - 0.3 * columns]).unsqueeze(0)
    expected = (1 + 0.5) * (1 - 0.3) - 0.2 * 0.1
    assert_close(losses.jacobian_determinant(flow), torch.full((1, 4, 5), expected))
    assert losses.folding(flow) == 0
    mirrored = torch.stack([torch.zeros_like(rows), -2 * columns]).unsqueeze(0)
    assert_close(losses.folding(mirrored), torch.tensor([20.0]))
    both = torch.cat([flow, mirrored])
    assert losses.folded_share(both).tolist() == [0, 1]
    for of_pair in (losses.smoothness, losses.folding):
        assert_close(of_pair(both), torch.cat([of_pair(flow), of_pair(mirrored)]))


def test_constant_images_correlate_with_nothing():
    assert losses.normalised_cross_correlation(torch.ones(1, 1, 4, 4), torch.rand(1, 1, 4, 4)) == 0


def test_correlation_of_pairs_is_that_of_each_pair_alone():
    torch.manual_seed(0)
    fixed, moved = torch.rand(2, 1, 6, 5, dtype=torch.float64), torch.rand(2, 1, 6, 5, dtype=torch.float64)
    moved[1] = 3 * fixed[1] - 7  # neither scale nor offset matter
    found = losses.correlation(fixed, moved)
    for b in range(2):
        expected = torch.corrcoef(torch.stack([fixed[b].flatten(), moved[b].flatten()]))[0, 1]
        assert_close(found[b], expected, rtol=1e-6, atol=1e-6)
    assert not torch.isclose(found.mean(), losses.normalised_cross_correlation(fixed, moved))


def test_keys_and_shapes_are_those_of_checkpoints(golden):
    network = MammoRegNet()
    listed = {key: tuple(shape) for key, shape, _ in golden("formula_mammoregnet").inputs["state_dict_keys"]}
    assert {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()} == listed
    assert len(listed) == 282
    assert sum(p.numel() for p in network.parameters()) == 4_836_136


def test_golden_output(golden, formula_weights, formula_image):
    case = golden("formula_mammoregnet")
    size = (case.inputs["B"], case.inputs["H"], case.inputs["W"])
    network = formula_weights(MammoRegNet()).double()
    with torch.no_grad():
        warped, flow, affined, para = network(formula_image(0, *size), formula_image(1, *size))
    for name, found in {"flow": flow, "warped": warped, "affined": affined}.items():
        assert_close(found[..., ::16, ::16], case.tensor(f"{name}_sample"), **EXACT)
    assert_close(para, case.tensor("affine_para"), **EXACT)
    assert_close(flow.mean(), case.tensor("flow_mean"), **EXACT)
    assert_close(flow.abs().max(), case.tensor("flow_abs_max"), **EXACT)


def test_autocast_keeps_coordinates_in_full_precision(formula_weights, formula_image):
    network = formula_weights(MammoRegNet())
    fixed, moving = (formula_image(s, 1, 80, 48).float() for s in (0, 1))
    with torch.no_grad():
        flow = network(fixed, moving)[1]
        with torch.autocast("cpu", torch.bfloat16):
            rough = network(fixed, moving)[1]
    assert rough.dtype == torch.float32
    assert (rough - flow).abs().mean() < 0.1 * flow.abs().mean()


@pytest.mark.parametrize(
    ("fixed", "moving", "message"),
    [
        ((1, 1, 40, 48), (1, 1, 40, 48), "multiples of 16.* 48 x 48"),
        ((1, 1, 32, 48), (1, 1, 32, 32), "same shape"),
        ((1, 3, 32, 32), (1, 3, 32, 32), "one-channel"),
    ],
)
def test_images_that_do_not_fit_are_named(fixed, moving, message):
    with pytest.raises(DataError, match=message):
        MammoRegNet()(torch.zeros(fixed), torch.zeros(moving))
