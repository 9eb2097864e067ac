"""Sizes, masks, malignancy, strata, average precision: what an evaluation says beside the curve."""

from __future__ import annotations

import math

import numpy as np
import pytest
from evaluation_cases import GOLDEN, submission
from medtrain.errors import ConfigError, DataError
from medtrain_plugins.nodule.annotations.tables import Findings
from medtrain_plugins.nodule.evaluation.accuracy import (
    mask_metrics,
    mask_score,
    relative_errors,
    size_metrics,
)
from medtrain_plugins.nodule.evaluation.evaluate import EvaluationSettings, diameter_strata, evaluate_detections
from medtrain_plugins.nodule.evaluation.malignancy import auc, calibration_curve, correlations
from medtrain_plugins.nodule.evaluation.precision import average_precision
from spec_functions import dice_to_iou, equivalent_diameter, iou_to_dice, mask_volume

ONCE = EvaluationSettings(replicates=0)


def test_volumes_and_diameters() -> None:
    case = GOLDEN["size.volume_diameter"]
    mask = np.zeros((4, 4, 4))
    mask.flat[: case["inputs"]["mask_voxels"]] = 1
    volume = mask_volume(mask, case["inputs"]["spacing"])
    assert volume == pytest.approx(case["expected"]["volume"], abs=1e-12)
    assert equivalent_diameter(volume) == pytest.approx(case["expected"]["diameter"], abs=1e-12)


def test_errors_of_sizes() -> None:
    case = GOLDEN["size.relative_error"]
    predicted, truth = case["inputs"]["predicted"], case["inputs"]["truth"]
    expected = [float(value) for value in case["expected"]]
    assert relative_errors(predicted, truth).tolist() == pytest.approx(expected, abs=1e-12)
    found = size_metrics(predicted[:4], truth[:4])
    assert found["mae"] == 2.0 and found["mean"] == -1.0 and found["rmse"] == pytest.approx(math.sqrt(30 / 4))
    assert found["std"] == pytest.approx(np.std([-1, 0, 2, -5])) and found["median"] == -0.5
    assert found["mean_relative"] == pytest.approx(np.mean([1 / 6, 0, 0.2, 0.2])) and found["count"] == 4
    with pytest.raises(DataError, match="matched pairs"):
        size_metrics([1.0], [1.0, 2.0])


def test_overlap_of_masks() -> None:
    expected = GOLDEN["seg_metric.dice_iou"]["expected"]
    a, b, empty = (np.zeros((4, 4, 4), dtype=np.uint8) for _ in range(3))
    a[0:2, 0:2, 0:2] = b[1:3, 0:2, 0:2] = 1
    assert mask_score(a, b) == pytest.approx((expected["dice"], expected["iou"]), abs=1e-12)
    assert mask_score(empty, empty).dice == expected["both_empty_dice"]
    assert mask_score(a, empty).dice == pytest.approx(expected["one_empty_dice"], abs=1e-12)
    assert dice_to_iou(0.8) == pytest.approx(expected["dice_to_iou_0.8"], abs=1e-12)
    assert iou_to_dice(0.5) == pytest.approx(expected["iou_to_dice_0.5"], abs=1e-12)
    with pytest.raises(DataError, match="shape"):
        mask_score(a, a[:2])
    wide = np.ones((2, 9, 9))
    found = mask_metrics({"A": mask_score(a, b), "B": mask_score(wide, wide)})  # cases of different shapes
    assert found["cases"] == 2 and found["mean_dice"] == pytest.approx((expected["dice"] + 1) / 2)


def test_correlations_and_auc() -> None:
    for name in ("correlation.spearman", "correlation.spearman_ties"):
        case = GOLDEN[name]
        found = correlations(case["inputs"]["x"], case["inputs"]["y"])
        assert found["spearman"] == pytest.approx(case["expected"], abs=1e-12)
    case = GOLDEN["correlation.pearson_p_value"]
    found = correlations(case["inputs"]["x"], case["inputs"]["y"])
    assert found["pearson_p"] == pytest.approx(case["corrected_expected"], abs=1e-12)
    assert correlations([1.0, 2.0, 3.0], [2.0, 4.0, 6.0])["pearson"] == pytest.approx(1.0)  # perfect, and no error
    assert math.isnan(correlations([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])["spearman_p"])
    case = GOLDEN["auc.with_tie"]
    assert auc(case["inputs"]["scores"], case["inputs"]["labels"]) == pytest.approx(case["expected"], abs=1e-12)
    assert math.isnan(auc([0.1, 0.2], [1, 1]))


@pytest.mark.parametrize("name", ["calibration.curve_10", "calibration.curve_5"])
def test_calibration_curves(name: str) -> None:
    case = GOLDEN[name]
    found = calibration_curve(case["inputs"]["scores"], case["inputs"]["labels"], case["params"]["bins"])
    expected = {key: np.array(values, dtype=float) for key, values in case["expected"].items()}
    assert found["mean_predicted"] == pytest.approx(expected["mean_pred"], abs=1e-12, nan_ok=True)
    assert found["frequency"] == pytest.approx(expected["freq"], abs=1e-12, nan_ok=True)
    assert found["count"] == expected["count"].tolist()
    assert found["ece"] == pytest.approx(float(expected["ece"]), abs=1e-12)
    with pytest.raises(DataError, match="probabilities"):
        calibration_curve([0.5, 7.0], [0, 1])


def test_average_precision() -> None:
    score, true = np.array([0.7, 0.9, 0.8]), np.array([True, True, False])
    assert average_precision(score, true, 2) == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert average_precision(score, true, 4) == pytest.approx((26 + 25 * 2 / 3) / 101)
    assert average_precision(np.zeros(0), np.zeros(0, dtype=bool), 3) == 0.0
    assert average_precision(np.full(2, 0.5), np.array([True, False]), 1) == pytest.approx(0.5)  # a tie comes together


def test_boxes_that_overlap_more_or_less() -> None:
    """Cubes of 10 mm, shifted by 5 mm along one axis: IoU 1/3. The third overlaps nothing, the fourth by 0.512."""
    annotations = Findings.of(["A", "A"], [[0, 0, 0], [100, 0, 0]], [10.0, 10.0])
    candidates = Findings.of(
        ["A"] * 4,
        [[5, 0, 0], [0, 0, 0], [50, 0, 0], [100, 0, 0]],
        [10.0, np.nan, 10.0, 8.0],
        score=[0.9, 0.8, 0.7, 0.6],
    )
    found = evaluate_detections(annotations, candidates, None, ["A"], ONCE).average_precision
    one_of_two = (51 * 1.0 + 50 * 0.5) / 101
    assert found["iou"]["0.3"] == pytest.approx(one_of_two)
    assert found["iou"]["0.35"] == found["iou"]["0.5"] == pytest.approx(51 * 0.25 / 101)
    assert found["iou_mean"] == pytest.approx((5 * one_of_two + 4 * 51 * 0.25 / 101) / 9)


def test_centres_and_sizes_are_those_of_found_nodules() -> None:
    annotations = Findings.of(["A", "A", "B"], [[0, 0, 0], [50, 0, 0], [0, 0, 0]], [10.0, 8.0, 6.0])
    candidates = Findings.of(
        ["B", "A", "A", "A"],
        [[0, 2, 0], [53, 0, 0], [0, 0, 1], [0, 0, 0]],
        [9.0, 4.0, 20.0, 11.0],
        [0.1, 0.9, 0.2, 0.8],
    )
    found = evaluate_detections(annotations, candidates, None, ["A", "B"], ONCE)
    assert found.centre == pytest.approx(
        {"count": 3, "mean_distance": 5 / 3, "median_distance": 2, "p95_distance": 2.9, "max_distance": 3}
    )
    assert found.size["count"] == 3 and found.size["mae"] == pytest.approx((1 + 4 + 3) / 3)
    assert found.size["median_relative"] == 0.5
    metrics = found.metrics()
    assert next(iter(metrics)) == "cpm" and metrics["centre_error_median"] == 2 and metrics["sensitivity_at_8"] == 1.0


def test_strata_add_up() -> None:
    diameter = np.array([2.9, 3.0, 4.999, 5.0, 10.0, 20.0, 20.1, -1.0])
    assert diameter_strata(diameter).tolist() == [
        "below 3 mm",
        *("3 to 5 mm", "3 to 5 mm"),
        "5 to 10 mm",
        *("10 to 20 mm", "10 to 20 mm"),
        "above 20 mm",
        "not measured",
    ]
    annotations, candidates, excluded, scans = submission(4)
    folds = {uid: f"subset{i % 2}" for i, uid in enumerate(scans)}
    found = evaluate_detections(annotations, candidates, excluded, scans, ONCE, subsets=folds)
    for kind in ("diameter", "subset"):
        assert sum(row["nodules"] for row in found.strata[kind]) == found.counts["nodules"]
        assert sum(row["found"] for row in found.strata[kind]) == found.counts["true_positives"]
    weighted = sum(row["nodules"] * np.array(list(row["sensitivity"].values())) for row in found.strata["diameter"])
    assert weighted / found.counts["nodules"] == pytest.approx(found.sensitivities, abs=1e-9)
    half = scans[::2]
    alone = evaluate_detections(annotations, candidates, excluded, half, ONCE)
    assert found.strata["subset"][0]["cpm"] == pytest.approx(alone.cpm) and alone.cpm != found.cpm
    assert found.strata["subset"][0]["scans"] == len(half)


def test_operating_points_are_thresholds_one_can_use() -> None:
    annotations, candidates, excluded, scans = submission(6, decimals=2)
    found = evaluate_detections(annotations, candidates, excluded, scans, ONCE)
    assert found.candidates.score is not None
    for row in found.operating_points:
        assert row["false_positives_per_scan"] <= row["rate"] + 1e-9
        kept = found.candidates.score >= row["threshold"]
        of_candidates = Findings.of(candidates.series[kept], candidates.xyz[kept], score=candidates.score[kept])  # type: ignore[index]
        again = evaluate_detections(annotations, of_candidates, excluded, scans, ONCE).counts
        assert again["true_positives"] == row["true_positives"] and again["false_positives"] == row["false_positives"]


def test_malignancy_of_found_nodules() -> None:
    truth, told = [1.0, 0.0, 1.0, 0.0, 1.0], [0.9, 0.2, 0.4, 0.6, np.nan]
    centres = [[50.0 * i, 0, 0] for i in range(5)]
    annotations = Findings.of(["A"] * 5, centres, [9.0] * 5, malignancy=truth)
    candidates = Findings.of(["A"] * 5, centres, score=[0.5] * 5, malignancy=told)
    found = evaluate_detections(annotations, candidates, None, ["A"], ONCE).triage
    assert found is not None and found["nodules"] == 4 and found["malignant"] == 2 and found["auc"] == 0.75
    assert found["calibration"]["ece"] == pytest.approx((0.1 + 0.2 + 0.6 + 0.6) / 4)
    graded = Findings.of(["A"] * 5, centres, [9.0] * 5, malignancy=[5.0, 1, 4, 2, 3])
    unset = evaluate_detections(graded, candidates, None, ["A"], ONCE)
    assert unset.triage is not None and "auc" not in unset.triage
    assert any("malignant_from" in note for note in unset.notes)
    grades = Findings.of(["A"] * 5, centres, score=[0.5] * 5, malignancy=[9.0, 2, 4, 6, 1])
    cut = evaluate_detections(graded, grades, None, ["A"], EvaluationSettings(replicates=0, malignant_from=4))
    assert cut.triage is not None and cut.triage["auc"] == pytest.approx(5 / 6) and "calibration" not in cut.triage
    assert any("no probability" in note for note in cut.notes)


def test_settings_are_checked() -> None:
    for wrong in ({"protocol": "luna17"}, {"max_distance": 0.0}, {"confidence": 1.0}, {"max_marks": 0}):
        with pytest.raises(ConfigError):
            EvaluationSettings(**wrong)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no scan"):
        evaluate_detections(Findings.of([], [], []), Findings.of([], [], score=[]))
