from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from medtrain_plugins.brain.data.combined import ArrayDataset
from medtrain_plugins.brain.evaluation.metrics import (
    ClassificationMetrics,
    ReconstructionMetrics,
    RegressionMetrics,
    SegmentationMetrics,
    image_rows,
)
from sklearn import metrics as reference
from torch.utils.data import default_collate


def rows_of(metric: Any, outputs: dict[str, Any], batch: dict[str, Any]) -> dict[str, Any]:
    count = len(next(iter(outputs.values())))
    found = {key: np.asarray(value) for key, value in metric.rows(outputs, batch).items()}
    return {"sample_id": np.array([f"s{i}" for i in range(count)], dtype=object), **found}


def drawn(classes: int, count: int = 60, seed: int = 0) -> tuple[dict[str, Any], dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(classes, (count,), generator=generator)
    logits = torch.randn(count, classes, generator=generator) + 1.2 * torch.nn.functional.one_hot(label, classes)
    # Equal scores, as early epochs give them.
    return {"logits": (logits * 4).round() / 4}, {"label": label}


@pytest.mark.parametrize("threshold", [0.5, 0.3])
def test_binary_scores_are_those_of_scikit_learn_at_the_threshold(threshold: float) -> None:
    outputs, batch = drawn(2)
    metric = ClassificationMetrics(["CN", "AD"], threshold)
    values = metric.compute(rows_of(metric, outputs, batch))
    truth, score = batch["label"].numpy(), outputs["logits"].softmax(1)[:, 1].numpy()
    said = (score >= threshold).astype(int)
    expected = {
        "balanced_accuracy": reference.balanced_accuracy_score(truth, said),
        "accuracy": reference.accuracy_score(truth, said),
        "sensitivity": reference.recall_score(truth, said),
        "specificity": reference.recall_score(truth, said, pos_label=0),
        "f1": reference.f1_score(truth, said),
        "mcc": reference.matthews_corrcoef(truth, said),
        "auc": reference.roc_auc_score(truth, score),
        "average_precision": reference.average_precision_score(truth, score),
    }
    assert tuple(values) == tuple(metric.names) == tuple(expected)
    assert values == pytest.approx(expected)


def test_multi_class_scores_are_macro_means() -> None:
    outputs, batch = drawn(4, seed=3)
    metric = ClassificationMetrics(list("abcd"))
    values = metric.compute(rows_of(metric, outputs, batch))
    truth, score = batch["label"].numpy(), outputs["logits"].softmax(1).double().numpy()
    said = score.argmax(1)
    each = np.eye(4, dtype=int)[truth]
    assert values["balanced_accuracy"] == pytest.approx(reference.balanced_accuracy_score(truth, said))
    assert values["sensitivity"] == pytest.approx(reference.recall_score(truth, said, average="macro"))
    assert values["specificity"] == pytest.approx(
        np.mean([reference.recall_score(truth != k, said != k) for k in range(4)])
    )
    assert values["f1"] == pytest.approx(reference.f1_score(truth, said, average="macro"))
    assert values["mcc"] == pytest.approx(reference.matthews_corrcoef(truth, said))
    # Rounding of float32 probabilities may part or join ties.
    assert values["auc"] == pytest.approx(reference.roc_auc_score(each, score, average="macro"), abs=2e-3)
    assert values["average_precision"] == pytest.approx(
        reference.average_precision_score(each, score, average="macro"), abs=5e-3
    )


def test_what_does_not_exist_is_undefined_and_says_why() -> None:
    metric = ClassificationMetrics(["CN", "AD"])
    outputs = {"logits": torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])}
    values = metric.compute(rows_of(metric, outputs, {"label": torch.zeros(3, dtype=torch.long)}))
    for name in ("balanced_accuracy", "sensitivity", "auc", "average_precision"):
        assert math.isnan(values[name])
        assert "class AD" in values[name].reason  # type: ignore[attr-defined]
    assert values["accuracy"] == values["specificity"] == pytest.approx(2 / 3)
    assert "one class" in values["mcc"].reason  # type: ignore[attr-defined]

    outputs["logits"][1] = torch.nan
    values = metric.compute(rows_of(metric, outputs, {"label": torch.tensor([0, 1, 0])}))
    assert all(math.isnan(value) and "s1" in value.reason for value in values.values())  # type: ignore[attr-defined]
    assert math.isnan(metric.compute({"sample_id": np.array([])})["auc"])


def test_parts_of_an_image_vote_softly_and_images_are_what_counts() -> None:
    metric = ClassificationMetrics(["CN", "AD"])
    probability = torch.tensor([0.9, 0.2, 0.3, 0.6, 0.7])
    outputs = {"logits": torch.stack([torch.log(1 - probability), torch.log(probability)], dim=1)}
    batch = {
        "label": torch.tensor([1, 0, 1, 0, 0]),
        "participant_id": ["b", "a", "b", "a", "a"],
        "session_id": ["M0", "M0", "M0", "M0", "M6"],
    }
    rows = rows_of(metric, outputs, batch)
    images = image_rows(rows, ("probability",))
    # b M0: (0.9 + 0.3) / 2, a M0: (0.2 + 0.6) / 2, a M6: 0.7
    np.testing.assert_allclose(images["probability"][:, 1], [0.6, 0.4, 0.7], rtol=1e-6)
    assert images["label"].tolist() == [1, 0, 0]
    values = metric.compute(rows)
    assert values["accuracy"] == pytest.approx(2 / 3)
    assert values["balanced_accuracy"] == pytest.approx((1 + 0.5) / 2)

    # A bootstrap that draws a participant twice counts her twice.
    twice = np.array([0, 2, 0, 2, 1, 3])
    images = image_rows({name: column[twice] for name, column in rows.items()}, ("probability",))
    np.testing.assert_allclose(images["probability"][:, 1], [0.6, 0.6, 0.4], rtol=1e-6)


def test_details_have_an_interval_around_each_value() -> None:
    outputs, batch = drawn(2, 80)
    batch |= {"participant_id": [f"p{i // 2}" for i in range(80)], "session_id": ["M0", "M6"] * 40}
    metric = ClassificationMetrics(["CN", "AD"])
    rows = rows_of(metric, outputs, batch)
    details, values = metric.details(rows, 0), metric.compute(rows)
    assert np.sum(details["confusion"]) == details["images"] == 80
    for name in metric.names:
        low, high = details["intervals"][name]
        assert low < values[name] < high
    assert metric.details(rows, 0) == details


def test_regression_scores_are_those_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    truth = generator.normal(70, 8, 50).astype(np.float32)
    said = (truth + generator.normal(1, 4, 50)).astype(np.float32)
    errors, agreement = RegressionMetrics("error"), RegressionMetrics("agreement")
    outputs, batch = {"prediction": torch.from_numpy(said)}, {"label": torch.from_numpy(truth)}
    values = errors.compute(rows_of(errors, outputs, batch)) | agreement.compute(rows_of(agreement, outputs, batch))
    assert values == pytest.approx(
        {
            "mae": reference.mean_absolute_error(truth, said),
            "rmse": reference.root_mean_squared_error(truth, said),
            "r2": reference.r2_score(truth, said),
            "pearson": np.corrcoef(truth, said)[0, 1],
        },
        rel=1e-5,
    )
    assert (errors.mode, agreement.mode) == ("min", "max")
    constant = rows_of(agreement, outputs, {"label": torch.ones(50)})
    assert "equal" in agreement.compute(constant)["r2"].reason  # type: ignore[attr-defined]


def boxes(*corners: tuple[int, int], size: int = 16) -> torch.Tensor:
    """One label per pair: voxels [start, stop) along every axis."""
    volume = torch.zeros(1, 1, size, size, size, dtype=torch.long)
    for number, (start, stop) in enumerate(corners, 1):
        volume[0, 0, start:stop, start:stop, start:stop] = number
    return volume


def as_logits(labels: torch.Tensor, classes: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(labels[:, 0], classes).movedim(-1, 1).float() * 10


def test_overlap_of_shifted_boxes_and_of_empty_ones() -> None:
    metric = SegmentationMetrics(["background", "hippocampus"])
    truth = torch.cat([boxes((2, 8)), boxes(), boxes()])
    said = torch.cat([boxes((3, 9)), boxes(), boxes((0, 2))])
    rows = rows_of(metric, {"logits": as_logits(said, 2)}, {"mask": truth})
    inside = 5**3 / 6**3
    np.testing.assert_allclose(rows["dice"][:, 0], [inside, np.nan, 0.0], rtol=1e-6)
    np.testing.assert_allclose(rows["iou"][:, 0], [5**3 / (2 * 6**3 - 5**3), np.nan, 0.0], rtol=1e-6)
    values = metric.compute(rows)
    assert values["dice"] == pytest.approx(inside / 2)
    details = metric.details(rows, 0)
    assert details["overlap_undefined"]["dice"] == {"hippocampus": 1}
    empty = metric.compute(rows_of(metric, {"logits": as_logits(said[1:2], 2)}, {"mask": truth[1:2]}))
    assert "hippocampus" in empty["dice"].reason  # type: ignore[attr-defined]


def test_surface_distances_are_in_the_unit_of_the_spacing() -> None:
    metric = SegmentationMetrics(["background", "a", "b"], "surface")
    truth, said = boxes((2, 6), (9, 13)), boxes((2, 6), (11, 15))
    batch = {"mask": truth}
    values = metric.compute(rows_of(metric, {"logits": as_logits(said, 3)}, batch))
    assert values["hausdorff95_a"] == values["surface_distance_a"] == 0
    assert 2 <= values["hausdorff95_b"] <= 2 * math.sqrt(3) + 1e-6
    assert values["hausdorff95"] == pytest.approx(values["hausdorff95_b"] / 2)
    wide = metric.compute(rows_of(metric, {"logits": as_logits(said, 3)}, batch | {"spacing": torch.full((1, 3), 3.0)}))
    assert wide["hausdorff95_b"] == pytest.approx(3 * values["hausdorff95_b"], rel=1e-5)
    # As samples of a dataset bring it.
    brought = ArrayDataset(torch.zeros(1, 1, 16, 16, 16), masks=truth, spacing=[3, 3, 3])
    again = metric.compute(rows_of(metric, {"logits": as_logits(said, 3)}, default_collate([brought[0]])))
    assert again["hausdorff95_b"] == wide["hausdorff95_b"]
    # Nothing predicted: there is no surface to measure from, and it says so.
    missed = metric.compute(rows_of(metric, {"logits": as_logits(boxes(), 3)}, batch))
    assert "both drawn and predicted" in missed["hausdorff95"].reason  # type: ignore[attr-defined]


def test_reconstruction_scores() -> None:
    image = torch.rand(2, 1, 12, 12, 12)
    image[0, 0, 0, 0, 0], image[0, 0, 0, 0, 1] = 0, 2
    similarity, error = ReconstructionMetrics("similarity"), ReconstructionMetrics("error")
    outputs = {"reconstruction": image.clone()}
    outputs["reconstruction"][0] += 0.1
    rows = rows_of(similarity, outputs, {"image": image}) | rows_of(error, outputs, {"image": image})
    assert rows["mse"][0] == pytest.approx(0.01, rel=1e-4)
    assert rows["psnr"][0] == pytest.approx(10 * math.log10(4 / 0.01), rel=1e-4)
    assert math.isinf(rows["psnr"][1])
    assert rows["ssim"][1] == pytest.approx(1, abs=1e-5)
    assert rows["ssim"][0] < 1
    assert similarity.compute(rows)["psnr"] == pytest.approx(rows["psnr"][0])
    flat = torch.ones(1, 1, 12, 12, 12)
    values = similarity.compute(rows_of(similarity, {"reconstruction": flat}, {"image": flat}))
    assert math.isnan(values["ssim"])
