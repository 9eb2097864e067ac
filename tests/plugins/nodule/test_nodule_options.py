"""Every option of `pivot` that concerns network, loss and evaluation changes what it says it does."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from medtrain.errors import ConfigError
from medtrain.protocols.metric import Rows, Undefined
from medtrain_plugins.nodule.data.targets import make_targets
from medtrain_plugins.nodule.evaluation.metrics import DetectionMetric, metrics_of
from medtrain_plugins.nodule.evaluation.rows import COLUMNS, NUMBERS, SUMS, evaluate_rows
from medtrain_plugins.nodule.model.from_options import build_loss, build_model
from medtrain_plugins.nodule.options import EvaluationOptions, PivotOptions
from pivot_runs import merged, options_of
from pydantic import ValidationError
from torch import nn

NET = {"model": {"base_filters": 4, "depth": 2}}
IMAGE = torch.linspace(0, 1, 16**3).reshape(1, 1, 16, 16, 16).sin()


class GuideDetector(nn.Module):
    """A tensor in, a tensor out."""

    def __init__(self, in_channels: int = 1, out_channels: int = 1, width: int = 3) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv3d(in_channels, width, 3, padding=1), nn.ReLU(), nn.Conv3d(width, out_channels, 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layers(x)
        return out


def outputs_of(*changes: dict[str, Any]) -> dict[str, Any]:
    torch.manual_seed(0)
    return dict(build_model(options_of(NET, *changes)).train()({"image": IMAGE}))


def parameters(*changes: dict[str, Any]) -> int:
    return sum(p.numel() for p in build_model(options_of(NET, *changes)).parameters())


def kinds(*changes: dict[str, Any]) -> set[str]:
    return {type(module).__name__ for module in build_model(options_of(NET, *changes)).modules()}


def test_filters_and_depth_size_the_network() -> None:
    assert parameters({"model": {"base_filters": 8}}) > 3 * parameters()
    assert parameters({"model": {"depth": 3}}) > 3 * parameters()


@pytest.mark.parametrize(
    ("key", "value", "layer"),
    [
        ("norm", "group", "GroupNorm"),
        ("norm", "batch", "BatchNorm3d"),
        ("norm", "instance", "InstanceNorm3d"),
        ("activation", "relu", "ReLU"),
        ("activation", "elu", "ELU"),
        ("activation", "silu", "SiLU"),
        ("activation", "leaky_relu", "LeakyReLU"),
        ("type", "reference_unet", "ReferenceUNet"),
        ("type", "DynUNet", "DynUNet"),
        ("type", "SegResNet", "SegResNet"),
    ],
)
def test_network_norm_and_activation_are_those_named(key: str, value: str, layer: str) -> None:
    assert layer in kinds({"model": {key: value}})


def test_reference_network_follows_filters_and_depth() -> None:
    model = build_model(options_of({"model": {"type": "reference_unet", "base_filters": 16, "depth": 3}}))
    assert sum(p.numel() for p in model.parameters()) == 1_401_622


def test_a_class_of_the_users_is_found_by_its_dotted_path_and_takes_options() -> None:
    path = f"{GuideDetector.__module__}.GuideDetector"
    model = build_model(options_of({"model": {"type": path, "options": {"width": 5}}}))
    assert model.module.backbone.layers[0].out_channels == 5
    outputs = model({"image": IMAGE})
    assert outputs.keys() == {"heatmap"} and outputs["heatmap"].shape == IMAGE.shape
    # The heads that it has not cost nothing.
    assert build_loss(options_of({"model": {"type": path}}), model.module).tasks == ("heatmap",)


def test_an_unknown_network_is_named() -> None:
    with pytest.raises(ConfigError, match="residual_unet"):
        build_model(options_of({"model": {"type": "residual_net"}}))


def test_dropout_drops_channels() -> None:
    model = build_model(options_of(NET, {"model": {"dropout": 0.5}})).train()
    a, b = (model({"image": IMAGE})["heatmap"] for _ in range(2))
    assert not torch.equal(a, b)
    plain = build_model(options_of(NET)).train()
    assert torch.equal(plain({"image": IMAGE})["heatmap"], plain({"image": IMAGE})["heatmap"])


def test_output_stride_halves_the_maps() -> None:
    assert outputs_of()["heatmap"].shape[2:] == (16, 16, 16)
    assert outputs_of({"model": {"output_stride": 2}})["heatmap"].shape[2:] == (8, 8, 8)


def test_deep_supervision_adds_terms_to_the_loss() -> None:
    deep = {"model": {"depth": 3, "deep_supervision": True}}
    assert "deep_heatmaps" in outputs_of(deep) and "deep_heatmaps" not in outputs_of({"model": {"depth": 3}})
    model = build_model(options_of(NET, deep))
    assert build_loss(options_of(NET, deep), model.module).deep_levels == 2


def test_gradient_checkpointing_keeps_fewer_activations_and_the_same_gradient() -> None:
    kept, gradients = [], []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = build_model(options_of(NET, {"model": {"gradient_checkpointing": checkpointing}})).train()
        numbers = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal numbers
            numbers += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model({"image": IMAGE})["heatmap"].square().mean()
        kept.append(numbers)
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert kept[1] < 0.7 * kept[0]
    torch.testing.assert_close(gradients[0], gradients[1])


def test_heads_and_diameter_channels() -> None:
    assert outputs_of().keys() == {"heatmap", "offset", "log_diameter", "triage"}
    chosen = outputs_of({"model": {"heads": ["heatmap", "segmentation", "log_diameter"], "diameter_channels": 3}})
    assert chosen.keys() == {"heatmap", "segmentation", "log_diameter"}
    assert chosen["log_diameter"].shape[1] == 3 and outputs_of()["log_diameter"].shape[1] == 1
    with pytest.raises(ValidationError, match="heatmap"):
        options_of({"model": {"heads": ["offset"]}})


def batch_and_outputs() -> tuple[dict[str, Any], dict[str, Any]]:
    """A nodule with a soft triage label, a mask, and outputs that are wrong everywhere, in two samples."""
    one = make_targets((16, 16, 16), [[7.3, 8.0, 6.8]], [6.0], [0.7], ignore=[[2.0, 2.0, 2.0]], ignore_diameters=[3.0])
    none = make_targets((16, 16, 16), np.zeros((0, 3)), [], np.zeros((0, 1)))
    generator = torch.Generator().manual_seed(0)
    batch = {name: torch.stack([one[name], none[name]]) for name in one}
    if batch["log_diameter"].shape[1] == 3:
        batch["log_diameter"] = batch["log_diameter"][:, :1]
    batch["mask"] = (batch["heatmap"].nan_to_num() > 0.3).float()
    outputs = {
        name: torch.randn(values.shape, generator=generator) - 1 for name, values in batch.items() if name != "mask"
    }
    outputs["segmentation"] = torch.randn(batch["mask"].shape, generator=generator)
    outputs["log_variance"] = torch.linspace(0.5, 1.5, 5)
    return batch, outputs


HEADS = {"model": {"heads": ["heatmap", "offset", "log_diameter", "triage", "segmentation"]}}


def terms(changes: dict[str, Any], epoch: int = 0) -> dict[str, tuple[float, float]]:
    options = options_of(HEADS, {"loss": changes})
    model = nn.Module()
    model.tasks = tuple(options.model.heads)  # type: ignore[assignment]
    loss = build_loss(options, model)
    loss.set_epoch(epoch)
    batch, outputs = batch_and_outputs()
    return {name: (float(total), float(weight)) for name, (total, weight) in loss(outputs, batch).items()}


MINED = {"heatmap": "bce", "hard_negative_mining": {"enabled": True, "min_negatives": 4}}


@pytest.mark.parametrize(
    ("base", "change", "term"),
    [
        ({}, {"heatmap": "focal"}, "heatmap"),
        ({}, {"heatmap": "bce"}, "heatmap"),
        ({}, {"heatmap": "dice"}, "heatmap"),
        ({"heatmap": "focal"}, {"alpha": 0.75}, "heatmap"),
        ({"heatmap": "focal"}, {"gamma": 1.0}, "heatmap"),
        ({}, {"penalty_alpha": 1.0}, "heatmap"),
        ({}, {"penalty_beta": 2.0}, "heatmap"),
        ({"heatmap": "bce"}, {"pos_weight": 5.0}, "heatmap"),
        ({"heatmap": "dice"}, {"smooth": 10.0}, "heatmap"),
        ({"heatmap": "dice"}, {"squared_pred": True}, "heatmap"),
        ({}, {"segmentation": "focal"}, "segmentation"),
        ({}, {"segmentation": "bce"}, "segmentation"),
        ({}, {"smooth": 10.0}, "segmentation"),
        ({}, {"beta": 0.1}, "offset"),
        ({}, {"beta": 0.1}, "log_diameter"),
        ({}, {"triage_pos_weight": 3.0}, "triage"),
        ({}, {"triage_neg_weight": 3.0}, "triage"),
        ({}, {"weights": {"triage": 0.3}}, "triage"),
        ({}, {"weights": {"log_diameter": 0.5}}, "log_diameter"),
        ({}, {"weighting": "learned"}, "heatmap"),
        ({}, {"weighting": "scheduled", "schedule": {"triage": [(0, 0.2), (10, 1.0)]}}, "triage"),
        ({"heatmap": "bce"}, {"hard_negative_mining": {"enabled": True}}, "heatmap"),
        (MINED, {"hard_negative_mining": {"neg_pos_ratio": 20.0}}, "heatmap"),
        (MINED, {"hard_negative_mining": {"hardest_fraction": 0.0005}}, "heatmap"),
        (MINED, {"hard_negative_mining": {"min_negatives": 50}}, "heatmap"),
        (MINED, {"hard_negative_mining": {"threshold": 0.05}}, "heatmap"),
    ],
)
def test_each_option_of_the_loss_changes_its_own_term(base: dict[str, Any], change: dict[str, Any], term: str) -> None:
    before, after = terms(base), terms(merged(base, change))
    assert before.keys() == after.keys() == set(HEADS["model"]["heads"])
    assert after[term] != before[term]
    shared = {"smooth": 2, "squared_pred": 2, "beta": 2, "weighting": 5}.get(next(iter(change)), 1)
    if next(iter(change)) != "weighting" or change["weighting"] != "learned":
        assert sum(after[name] != before[name] for name in after) <= shared


def test_triage_learns_from_soft_labels() -> None:
    total, weight = terms({})["triage"]
    assert total > 0 and weight == 27


def test_scheduled_weights_move_with_the_epochs() -> None:
    scheduled = {"weighting": "scheduled", "schedule": {"triage": [(0, 0.0), (10, 1.0)]}}
    values = [terms(scheduled, epoch)["triage"][0] for epoch in (0, 5, 10, 20)]
    assert values[0] == 0 and values[1] == pytest.approx(values[3] / 2) and values[2] == pytest.approx(values[3])


def test_learned_weights_are_parameters_of_the_network() -> None:
    names = dict(build_model(options_of(NET, {"loss": {"weighting": "learned"}})).named_parameters())
    assert any("log_variance" in name for name in names)
    assert not any("log_variance" in name for name, _ in build_model(options_of(NET)).named_parameters())


@pytest.mark.parametrize(
    "loss",
    [
        {"weighting": "scheduled"},
        {"schedule": {"triage": [(0, 1)]}},
        {"weights": {"triage": -1}},
        {"weights": {"malignancy": 1}},
        {"heatmap": "dice", "hard_negative_mining": {"enabled": True}},
        {"hard_negative_mining": {"enabled": True, "neg_pos_ratio": 0}},
        {"no_such": 1},
    ],
)
def test_losses_that_cannot_be_are_refused(loss: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        options_of({"loss": loss})


def table(*rows: dict[str, Any]) -> Rows:
    """The table of an evaluation from its rows."""
    columns: Rows = {}
    for name in COLUMNS:
        text = name not in (*NUMBERS, *SUMS)
        cells = [row.get(name, "" if text else math.nan) for row in rows]
        columns[name] = np.array(cells, dtype=object if text else np.float64)
    return columns


def scan(name: str, *rows: dict[str, Any], **sums: float) -> list[dict[str, Any]]:
    return [
        {"sample_id": f"{name}/{n}", "series": name, **row} for n, row in enumerate([{"kind": "scan", **sums}, *rows])
    ]


def nodule(x: float, diameter: float = 10.0, triage: float = math.nan) -> dict[str, Any]:
    return {"kind": "nodule", "x": x, "y": 0.0, "z": 0.0, "diameter_mm": diameter, "triage": triage}


def mark(x: float, score: float, diameter: float = 10.0, triage: float = math.nan) -> dict[str, Any]:
    return {"kind": "candidate", "x": x, "y": 0.0, "z": 0.0, "score": score, "diameter_mm": diameter, "triage": triage}


ROWS = table(
    *scan(
        "a",
        nodule(0, triage=0.9),
        nodule(100, triage=0.4),
        mark(1, 0.9, 11, 0.8),
        mark(94, 0.8, 9),
        mark(300, 0.95),
        heatmap_overlap=1.0,
        heatmap_total=4.0,
    ),
    *scan(
        "b",
        nodule(0, triage=0.2),
        mark(3, 0.7, 14, 0.3),
        heatmap_overlap=2.0,
        heatmap_total=4.0,
        mask_overlap=3.0,
        mask_total=4.0,
    ),
)


def values_of(rows: Rows = ROWS, **changes: Any) -> dict[str, float]:
    options = PivotOptions.model_validate({"evaluation": changes})
    return {name: value for metric in metrics_of(options) for name, value in metric.compute(rows).items()}


def test_values_of_a_table_by_hand() -> None:
    values = values_of()
    # Two of three found; one of the others is 6 mm off a nodule of radius 5.
    assert values["sensitivity_at_8"] == pytest.approx(2 / 3)
    assert values["centre_error_median"] == pytest.approx(2.0) and values["centre_error_mean"] == pytest.approx(2.0)
    assert values["diameter_error_median"] == pytest.approx(0.25)
    assert values["centre_accuracy"] == 0.5 and values["size_accuracy"] == 0.5
    assert values["triage_error"] == pytest.approx(0.1) and values["triage_auc"] == 1.0
    assert values["detection_dice"] == pytest.approx(3 / 8) and values["segmentation_dice"] == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ({"protocol": "fixed_radius"}, "sensitivity_at_8"),
        ({"max_marks": 1}, "sensitivity_at_8"),
        ({"centre_tolerance": 4.0}, "centre_accuracy"),
        ({"size_tolerance": 0.5}, "size_accuracy"),
        ({"high_risk": 0.95}, "triage_auc"),
    ],
)
def test_each_option_of_the_evaluation_changes_a_value(change: dict[str, Any], value: str) -> None:
    before, after = values_of()[value], values_of(**change)[value]
    assert after != before or math.isnan(after) != math.isnan(before)


def test_the_fixed_radius_is_an_option() -> None:
    near = values_of(protocol="fixed_radius", max_distance=2.0)["sensitivity_at_8"]
    assert near == pytest.approx(1 / 3) and values_of(protocol="fixed_radius")["sensitivity_at_8"] == 1.0


def test_intervals_come_from_as_many_resamples_as_asked() -> None:
    metric = DetectionMetric(EvaluationOptions.model_validate({"replicates": 50}))
    low, high = metric.details(ROWS, seed=0)["intervals"]["cpm"]
    assert 0 <= low <= metric.compute(ROWS)["cpm"] <= high <= 1
    none = DetectionMetric(EvaluationOptions.model_validate({"replicates": 0}))
    assert none.details(ROWS, seed=0)["intervals"] == {}


def test_what_is_undefined_says_why() -> None:
    empty = table(*scan("a", mark(0, 0.5)))
    values = values_of(empty)
    cpm = values["cpm"]
    assert isinstance(cpm, Undefined) and "no nodule" in cpm.reason
    missed = values_of(table(*scan("a", nodule(0), mark(50, 0.5))))
    assert missed["cpm"] == 0 and isinstance(missed["centre_error_median"], Undefined)


def test_candidates_never_find_nodules_of_other_scans() -> None:
    rows = table(*scan("a", nodule(0)), *scan("b", mark(0, 0.9)))
    assert values_of(rows)["cpm"] == 0
    assert evaluate_rows(rows, EvaluationOptions.model_validate({})).counts["false_positives"] == 1
