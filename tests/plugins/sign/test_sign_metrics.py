"""Top-1, top-5, macro F1, signers, confusions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from medtrain.protocols.metric import Undefined
from medtrain_plugins.sign.evaluation.metrics import SignMetrics, confusion_matrix, per_class
from medtrain_plugins.sign.model.loss import ClassLoss
from sklearn.metrics import f1_score, precision_recall_fscore_support, top_k_accuracy_score


def rows_of(logits: torch.Tensor, labels: list[int], signers: list[int] | None = None, signs: Any = None) -> Any:
    metric = SignMetrics(signs or range(1, logits.shape[1] + 1), (1, 2))
    batch = {
        "label": torch.tensor(labels),
        "sign": torch.tensor([metric.signs[label] for label in labels]),
        "signer": torch.tensor(signers or [1] * len(labels)),
    }
    rows = {key: value.numpy() for key, value in metric.rows({"logits": logits}, batch).items()}
    return metric, rows | {"sample_id": np.array([f"clip {i}" for i in range(len(labels))], dtype=object)}


def hot(predicted: list[int], classes: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(predicted), classes).float()


def test_values_are_those_of_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 9, (300,), generator=generator)
    logits = torch.randn(300, 12, generator=generator) + 1.5 * torch.nn.functional.one_hot(labels, 12)
    signers = torch.randint(1, 3, (300,), generator=generator)
    metric, rows = rows_of(logits, labels.tolist(), signers.tolist())
    values = metric.compute(rows)
    predicted = logits.argmax(dim=1)
    assert list(values) == metric.names
    assert values["top1"] == pytest.approx((predicted == labels).float().mean().item())
    assert values["top5"] == pytest.approx(top_k_accuracy_score(labels, logits, k=5, labels=range(12)))
    assert values["macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro"))
    mine = signers == 2
    assert values["top1_signer_02"] == pytest.approx((predicted == labels)[mine].float().mean().item())
    scores = precision_recall_fscore_support(labels, predicted, labels=range(12), zero_division=0)
    for name, wanted in zip(("precision", "recall", "f1", "support"), scores, strict=True):
        assert per_class(rows, 12)[name] == pytest.approx(wanted)
    assert metric.details(rows, 0)["weighted_f1"] == pytest.approx(f1_score(labels, predicted, average="weighted"))


def test_absent_classes_do_not_shift_the_names_of_others() -> None:
    # Of signs 1, 4, 7, 9, 12 only 7 and 12 occur, and one 12 is taken for 9.
    metric, rows = rows_of(hot([2, 2, 3, 4, 4], 5), [2, 2, 4, 4, 4], signs=(1, 4, 7, 9, 12))
    details = metric.details(rows, 0)
    assert details["confusions"] == [{"sign": 12, "predicted": 9, "clips": 1}]
    by_sign = {row["sign"]: row for row in details["signs"]}
    assert by_sign[7]["f1"] == 1 and by_sign[7]["support"] == 2
    assert by_sign[12]["recall"] == pytest.approx(2 / 3) and by_sign[1]["support"] == 0
    assert confusion_matrix(rows, 5).shape == (5, 5)
    assert metric.compute(rows)["macro_f1"] == pytest.approx((1 + 0 + 0.8) / 3)


def test_no_error_is_no_failure() -> None:
    metric, rows = rows_of(hot([0, 1, 2], 3), [0, 1, 2])
    assert metric.details(rows, 0)["confusions"] == []
    assert metric.compute(rows)["top1"] == 1


def test_equal_logits_are_no_hits() -> None:
    metric, rows = rows_of(torch.zeros(10, 20), [19] * 10)
    values = metric.compute(rows)
    assert values["top1"] == values["top5"] == 0
    assert (rows["predicted"] == 0).all()


def test_what_is_undefined_says_why() -> None:
    metric, rows = rows_of(hot([0, 1], 3), [0, 1])
    missing = metric.compute(rows)["top1_signer_02"]
    assert isinstance(missing, Undefined) and missing.reason == "no clips of signer 2"
    metric, rows = rows_of(torch.full((2, 3), math.nan), [0, 1])
    diverged = metric.compute(rows)["top1"]
    assert isinstance(diverged, Undefined) and "clip 0" in diverged.reason
    assert "not finite" in metric.details(rows, 0)["reason"]


def test_the_loss_is_the_mean_over_clips_in_float32() -> None:
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    wanted = -logits.log_softmax(dim=1)[range(6), labels].mean()
    assert torch.allclose(ClassLoss()({"logits": logits}, {"label": labels}), wanted)
    half = ClassLoss()({"logits": logits.bfloat16()}, {"label": labels})
    assert half.dtype == torch.float32
    smooth = ClassLoss(0.1)({"logits": logits}, {"label": labels})
    assert torch.allclose(smooth, 0.9 * wanted - 0.1 * logits.log_softmax(dim=1).mean(dim=1).mean())
