"""The losses of the tasks, and how they become one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from medtrain.errors import ConfigError, DataError
from medtrain_plugins.nodule.data.targets import make_targets
from medtrain_plugins.nodule.model import losses
from medtrain_plugins.nodule.model.detector_loss import MapLoss, NoduleLoss
from medtrain_plugins.nodule.model.mining import HardNegatives
from nodule_golden import CASES, close, tensor
from spec_functions import multiclass_focal
from torch import Tensor

BINARY = {k: v for k, v in CASES["focal"].items() if k.startswith("hard") or k.startswith("soft")}


@pytest.mark.parametrize("name", BINARY)
def test_focal(name: str) -> None:
    case = BINARY[name]
    params = {"reduction": "mean"} | case["params"]
    close(losses.focal(tensor(case, "logits"), tensor(case, "targets"), **params), case)


def test_focal_of_probabilities() -> None:
    case = CASES["focal"]["probabilities_extreme_none"]
    found = losses.focal(tensor(case, "probabilities"), tensor(case, "targets"), from_logits=False)
    close(found, case)


@pytest.mark.parametrize("name", ["multiclass_scalar_alpha_mean", "multiclass_vector_alpha_none"])
def test_focal_of_classes(name: str) -> None:
    case = CASES["focal"][name]
    labels = torch.tensor(case["inputs"]["labels"])
    close(multiclass_focal(tensor(case, "logits"), labels, **({"reduction": "mean"} | case["params"])), case)


def test_focal_gradient() -> None:
    case = CASES["focal"]["grad_wrt_logits_default"]
    logits = tensor(case, "logits")
    losses.focal(logits, tensor(case, "targets"), reduction="mean").backward()
    close(logits.grad, case)


@pytest.mark.parametrize("settings", [{"alpha": 1.5}, {"gamma": -1.0}])
def test_focal_refuses_settings(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="focal"):
        losses.focal(torch.zeros(2), torch.zeros(2), **settings)


@pytest.mark.parametrize("name", CASES["dice_loss"])
def test_dice(name: str) -> None:
    case = CASES["dice_loss"][name]
    params = dict(case["params"])
    reduction = params.pop("reduction", "mean")
    given = tensor(case, "logits" if "logits" in case["inputs"] else "probabilities")
    found = losses.reduce(losses.dice(given, tensor(case, "targets"), **params), reduction)
    if name.startswith("grad"):
        found.backward()
        found = given.grad
    close(found, case)


def test_dice_with_squares() -> None:
    p, y = torch.tensor([[[0.5, 0.25]]]), torch.tensor([[[1.0, 0.0]]])
    found = losses.dice(p, y, smooth=0.0, squared=True, from_logits=False)
    torch.testing.assert_close(found, torch.tensor([1 - 2 * 0.5 / (0.25 + 0.0625 + 1)]))


@pytest.mark.parametrize("name", CASES["bce"])
def test_bce(name: str) -> None:
    case = CASES["bce"][name]
    logits = tensor(case, "logits" if "logits" in case["inputs"] else "probabilities")
    params = {key: value for key, value in case["params"].items() if key == "pos_weight"}
    found = losses.bce(logits, tensor(case, "targets"), reduction="none" if "none" in name else "mean", **params)
    if name.startswith("grad"):
        found.backward()
        found = logits.grad
    close(found, case)


@pytest.mark.parametrize("name", CASES["weighted_bce"])
def test_weighted_bce(name: str) -> None:
    case = CASES["weighted_bce"][name]
    params = {"reduction": "mean"} | {k: v for k, v in case["params"].items() if v is not None}
    close(losses.weighted_bce(tensor(case, "logits"), tensor(case, "targets"), **params), case)


def test_weights_per_channel_reach_volumes() -> None:
    logits, target = torch.zeros(2, 2, 3, 3, 3), torch.ones(2, 2, 3, 3, 3)
    found = losses.weighted_bce(logits, target, pos_weight=[1.0, 3.0])
    torch.testing.assert_close(found[:, 1], 3 * found[:, 0])


@pytest.mark.parametrize("name", CASES["smooth_l1"])
def test_smooth_l1(name: str) -> None:
    case = CASES["smooth_l1"][name]
    params = {"reduction": "mean"} | case["params"]
    predictions = tensor(case, "predictions").requires_grad_()
    found = losses.smooth_l1(predictions, tensor(case, "targets"), **params)
    if name.startswith("grad"):
        found.backward()
        found = predictions.grad
    close(found, case)


def test_penalty_reduced_focal() -> None:
    soft, bare = CASES["target_focal"]["penalty_reduced_soft"], CASES["target_focal"]["no_peak_in_patch"]
    found = losses.penalty_reduced_focal(tensor(soft, "logits"), tensor(soft, "targets"))
    wanted = torch.tensor(soft["expected"]["per_voxel"], dtype=torch.float64)
    torch.testing.assert_close(found.detach(), wanted, atol=1e-12, rtol=0)
    for case in (soft, bare):
        total, weight = MapLoss()(tensor(case, "logits"), tensor(case, "targets"))
        assert float((total / weight.clamp(min=1)).detach()) == pytest.approx(case["expected"]["loss"], abs=1e-12)


def test_losses_stay_single_precision_inside_autocast() -> None:
    logits, target = torch.full((1, 1, 4), -12.0, dtype=torch.bfloat16), torch.zeros(1, 1, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for kind in ("penalty_reduced_focal", "focal", "bce", "dice"):
            total, weight = MapLoss(kind)(logits, target)
            assert total.dtype == torch.float32 and total.isfinite() and weight.dtype == torch.float32
        assert losses.smooth_l1(logits, target).dtype == torch.float32


# The detector's loss.

ORDER = ("segmentation", "heatmap", "log_diameter", "triage")
GUIDE = {"segmentation": "segmentation", "heatmap": "center", "log_diameter": "size", "triage": "triage"}


def published(case: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    volume, size, triage = "volume_shape", "size_shape", "triage_shape"
    outputs = {
        "segmentation": tensor(case, "segmentation_logits", volume),
        "heatmap": tensor(case, "center_logits", volume),
        "log_diameter": tensor(case, "size_pred", size),
        "triage": tensor(case, "triage_logits", triage),
    }
    batch = {
        "mask": tensor(case, "segmentation_target", volume),
        "heatmap": tensor(case, "center_target", volume),
        "log_diameter": tensor(case, "size_target", size),
        "triage": tensor(case, "triage_target", triage),
    }
    return outputs, batch


@pytest.mark.parametrize("name", CASES["multi_task"])
def test_published_sum_of_tasks(name: str) -> None:
    case = CASES["multi_task"][name]
    params = case["params"]
    weights = {
        task: params.get(key, 1.0)
        for task, key in zip(ORDER, ("seg_weight", "center_weight", "size_weight", "triage_weight"), strict=True)
    }
    triage = params.get("triage_loss_kwargs", {})
    loss = NoduleLoss(
        ORDER,
        heatmap=MapLoss("focal", **params.get("center_loss_kwargs", {})),
        segmentation=MapLoss("dice", **params.get("seg_loss_kwargs", {})),
        beta=params.get("size_loss_kwargs", {}).get("beta", 1.0),
        triage_pos_weight=triage.get("pos_weight", 1.0),
        triage_neg_weight=triage.get("neg_weight", 1.0),
        weights=weights,
    )
    outputs, batch = published(case)
    terms = {task: float((total / weight).detach()) for task, (total, weight) in loss(outputs, batch).items()}
    expected = case["expected"] if isinstance(case["expected"], dict) else {"total": case["expected"]}
    assert sum(terms.values()) == pytest.approx(expected["total"], abs=1e-12)
    for task in ORDER:
        if GUIDE[task] in expected:
            assert terms[task] == pytest.approx(expected[GUIDE[task]], abs=1e-12)


def sample(centres: list[list[float]], size: int = 12, **settings: Any) -> dict[str, Tensor]:
    made = make_targets((size,) * 3, centres, [6.0] * len(centres), [0.6] * len(centres), **settings)
    return made | {"mask": torch.zeros(1, size, size, size)}


def batch_of(*samples: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: torch.stack([each[key] for each in samples]) for key in samples[0]}


def outputs_for(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    names = {"segmentation": "mask"}
    return {
        task: torch.randn(batch[names.get(task, task)].shape, generator=generator).requires_grad_()
        for task in ("heatmap", "offset", "log_diameter", "triage", "segmentation")
    }


@pytest.mark.parametrize("mining", [None, HardNegatives(ratio=2, min_negatives=5)])
@pytest.mark.parametrize("kind", ["penalty_reduced_focal", "focal", "bce"])
def test_parts_of_a_batch_add_up_to_it(kind: Any, mining: HardNegatives | None) -> None:
    loss = NoduleLoss(heatmap=MapLoss(kind, mining=mining))
    batch = batch_of(sample([[4.2, 5.0, 6.1]]), sample([]), sample([[2, 2, 2], [9, 9, 8]]))
    outputs = outputs_for(batch)
    whole = loss(outputs, batch)
    parts = [
        loss({k: v[i : i + 1] for k, v in outputs.items()}, {k: v[i : i + 1] for k, v in batch.items()})
        for i in range(3)
    ]
    announced = loss.weights(batch)
    assert announced.keys() == whole.keys()
    for task, (total, weight) in whole.items():
        torch.testing.assert_close(total, torch.stack([part[task][0] for part in parts]).sum())
        assert float(weight) == sum(float(part[task][1]) for part in parts) == float(announced[task])


def test_without_nodules_the_terms_near_centres_are_zeros_with_graph() -> None:
    batch = batch_of(sample([]), sample([]))
    outputs = outputs_for(batch)
    terms = NoduleLoss()(outputs, batch)
    for task in ("offset", "log_diameter", "triage"):
        total, weight = terms[task]
        assert float(total.detach()) == 0 and float(weight) == 0
        total.backward()
        assert outputs[task].grad is not None and not outputs[task].grad.any()


def test_unknown_triage_and_ignored_findings_teach_nothing() -> None:
    made = make_targets((12,) * 3, [[4, 4, 4]], [6.0], None, ignore=[[9, 9, 9]], ignore_diameters=[4.0])
    batch = batch_of(made | {"mask": torch.zeros(1, 12, 12, 12)})
    outputs = outputs_for(batch)
    terms = NoduleLoss()(outputs, batch)
    (terms["triage"][0] + terms["heatmap"][0]).backward()
    assert not outputs["triage"].grad.any()
    gradient = outputs["heatmap"].grad[0, 0]
    assert gradient.isfinite().all() and not gradient[9, 9, 9] and not gradient[9, 9, 10] and gradient[9, 9, 4]


def test_soft_triage_labels_learn() -> None:
    batch = batch_of(sample([[5, 5, 5]]))
    outputs = outputs_for(batch)
    NoduleLoss()(outputs, batch)["triage"][0].backward()
    assert outputs["triage"].grad[0, 0, 5, 5, 5] != 0


def test_learned_weights_find_the_size_of_their_losses() -> None:
    batch = batch_of(sample([[5, 5, 5]]))
    outputs = outputs_for(batch)
    outputs["heatmap"] = torch.full_like(outputs["heatmap"], -3.0)
    log_variance = torch.zeros(5, requires_grad=True)
    optimizer = torch.optim.Adam([log_variance], lr=0.1)
    plain = {k: float((s / w).detach()) for k, (s, w) in NoduleLoss()(outputs, batch).items()}
    loss = NoduleLoss(weighting="learned")
    for _ in range(600):
        optimizer.zero_grad()
        terms = loss({**outputs, "log_variance": log_variance * 1}, batch)
        sum(total / weight for total, weight in terms.values()).backward()
        optimizer.step()
    # e^-s L + s is smallest at s = ln L.
    wanted = torch.tensor([plain[task] for task in ("heatmap", "offset", "log_diameter", "triage", "segmentation")])
    torch.testing.assert_close(log_variance.detach(), wanted.log(), atol=0.05, rtol=0)


def test_scheduled_weights() -> None:
    batch = batch_of(sample([[5, 5, 5]]))
    outputs = outputs_for(batch)
    loss = NoduleLoss(weighting="scheduled", schedule={"triage": [(2, 0.0), (6, 1.0)]})
    full = float(NoduleLoss()(outputs, batch)["triage"][0].detach())
    for epoch, factor in ((0, 0), (4, 0.5), (9, 1)):
        loss.set_epoch(epoch)
        assert float(loss(outputs, batch)["triage"][0].detach()) == pytest.approx(factor * full)


def test_deep_supervision_keeps_centres() -> None:
    batch = batch_of(sample([[4.2, 5.0, 6.1]]))
    outputs: dict[str, Any] = outputs_for(batch)
    outputs["deep_heatmaps"] = (torch.zeros(1, 1, 6, 6, 6), torch.zeros(1, 1, 3, 3, 3))
    loss = NoduleLoss(deep_levels=2)
    terms = loss(outputs, batch)
    assert terms.keys() == loss.weights(batch).keys() and float(terms["heatmap_2"][1]) == 1


def test_what_is_missing_is_named() -> None:
    batch = batch_of(sample([[5, 5, 5]]))
    outputs = outputs_for(batch)
    del batch["mask"]
    with pytest.raises(DataError, match="'mask'"):
        NoduleLoss()(outputs, batch)
    assert NoduleLoss(("heatmap", "offset"))(outputs, batch).keys() == {"heatmap", "offset"}
    with pytest.raises(ConfigError, match="did you mean 'triage'"):
        NoduleLoss(weights={"triag": 1.0})
    with pytest.raises(ConfigError, match="hard negatives"):
        MapLoss("dice", mining=HardNegatives())
