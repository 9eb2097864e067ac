"""The masked cross-entropy and its sum over risk heads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from medtrain.errors import ConfigError
from medtrain_plugins.mammography.model.losses import MultiHeadBCE, masked_bce
from torch import Tensor

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "survival.json").read_text())


def tensors(case: str) -> dict[str, Tensor]:
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in GOLDEN[case]["inputs"].items()}


def total(terms: dict[str, tuple[Tensor, Tensor]]) -> Tensor:
    return torch.stack([value / weight for value, weight in terms.values()]).sum()


def test_masked_bce_and_its_gradient() -> None:
    case = tensors("masked_bce")
    logits = case["logits"].requires_grad_()
    value, weight = masked_bce(logits, case["target"], case["mask"])
    loss = value / weight
    loss.backward()
    assert loss.item() == pytest.approx(GOLDEN["masked_bce"]["outputs"]["loss"], rel=1e-6)
    expected = torch.tensor(GOLDEN["masked_bce"]["outputs"]["grad"], dtype=torch.float64)
    torch.testing.assert_close(logits.grad, expected, rtol=1e-4, atol=1e-6)


def test_an_empty_mask_is_a_zero_with_graph() -> None:
    logits = torch.randn(3, 5, requires_grad=True)
    value, weight = masked_bce(logits, torch.ones(3, 5), torch.zeros(3, 5))
    value.backward()
    assert (value.item(), weight.item()) == (0.0, 0.0)
    assert logits.grad is not None and not logits.grad.any()


def test_half_precision_logits_are_summed_in_single() -> None:
    logits = torch.full((2000, 5), 0.5, dtype=torch.bfloat16)
    value, _ = masked_bce(logits, torch.zeros(2000, 5), torch.ones(2000, 5))
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(10_000 * 0.974077, rel=1e-5)


def imgfeatalign_heads(
    outputs: dict[str, Tensor], batch: dict[str, Tensor]
) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    prior = (batch["target_prior"], batch["y_mask_prior"])
    now = (batch["target"], batch["y_mask"])
    return {"fused": (outputs["fused"], *now), "cur": (outputs["cur"], *now), "pri": (outputs["pri"], *prior)}


def imgfeatalign() -> tuple[MultiHeadBCE, dict[str, Tensor], dict[str, Tensor]]:
    case = tensors("multi_head_loss_imgfeatalign")
    batch = {"target": case["target"], "y_mask": case["mask"]}
    batch |= {"target_prior": case["target_prior"], "y_mask_prior": case["mask_prior"]}
    loss = MultiHeadBCE(imgfeatalign_heads, {"fused": 1.0, "cur": 0.2, "pri": 0.2}, {"pri": "y_mask_prior"})
    return loss, case, batch


def test_imgfeatalign_total() -> None:
    loss, case, batch = imgfeatalign()
    expected = GOLDEN["multi_head_loss_imgfeatalign"]["outputs"]["loss"]
    assert total(loss(case, batch)).item() == pytest.approx(expected, rel=1e-6)


def test_weights_are_known_before_the_forward_pass() -> None:
    loss, case, batch = imgfeatalign()
    terms = loss(case, batch)
    assert {name: weight.item() for name, weight in loss.weights(batch).items()} == {
        name: weight.item() for name, (_, weight) in terms.items()
    }
    assert terms["fused"][1] != terms["pri"][1]


def lmv_heads(outputs: dict[str, Tensor], batch: dict[str, Tensor]) -> dict[str, Any]:
    return {name: (outputs[f"risk_{name}"], batch["target"], batch["y_mask"]) for name in ("multi", "cc", "mlo")}


def test_three_heads_on_the_same_labels_by_hand() -> None:
    """The loss of LMV-Net, written out entry by entry, and cut in two: sums and weights add up."""
    torch.manual_seed(0)
    outputs = {name: torch.randn(6, 5, dtype=torch.float64) for name in ("risk_multi", "risk_cc", "risk_mlo")}
    batch = {"target": torch.randint(0, 2, (6, 5)), "y_mask": torch.randint(0, 2, (6, 5))}
    loss = MultiHeadBCE(lmv_heads, {"multi": 1.0, "cc": 0.2, "mlo": 0.2})
    expected = 0.0
    for name, weight in loss.head_weights.items():
        p = torch.sigmoid(outputs[f"risk_{name}"])
        entries = -(batch["target"] * p.log() + (1 - batch["target"]) * (1 - p).log())
        expected += weight * (entries * batch["y_mask"]).sum().item() / batch["y_mask"].sum().item()
    whole = loss(outputs, batch)
    assert total(whole).item() == pytest.approx(expected, rel=1e-12)
    parts = [
        loss({k: v[part] for k, v in outputs.items()}, {k: v[part] for k, v in batch.items()})
        for part in (slice(0, 1), slice(1, 6))
    ]
    for name, (value, weight) in whole.items():
        torch.testing.assert_close(sum(part[name][0] for part in parts), value)
        assert sum(part[name][1] for part in parts) == weight


def test_a_head_without_a_weight_is_an_error() -> None:
    batch = {"target": torch.zeros(1, 5), "y_mask": torch.ones(1, 5)}
    outputs = {name: torch.zeros(1, 5) for name in ("risk_multi", "risk_cc", "risk_mlo")}
    with pytest.raises(ConfigError, match=r"risk head 'mlo' .*did you mean 'mlo_'"):
        MultiHeadBCE(lmv_heads, {"multi": 1.0, "cc": 0.2, "mlo_": 0.2})(outputs, batch)
