"""FROC curves against golden cases and against the challenge's rules told slowly."""

from __future__ import annotations

import math
from typing import Any

import froc_oracle
import numpy as np
import pytest
from evaluation_cases import GOLDEN, as_tuples, names, one_scan, submission
from medtrain_plugins.nodule.annotations.tables import Findings
from medtrain_plugins.nodule.evaluation.evaluate import EvaluationSettings, evaluate_detections
from medtrain_plugins.nodule.evaluation.froc import (
    RATES,
    Marks,
    bootstrap_sensitivities,
    froc,
    interpolate,
    interval,
    mean_sensitivity,
)
from medtrain_plugins.nodule.evaluation.matching import match_fixed_radius, match_luna16

ONCE = EvaluationSettings(replicates=0)


def test_the_luna16_rule_on_three_scans() -> None:
    case = GOLDEN["target_froc.luna16_rule_three_scans"]
    rows: dict[str, list[Any]] = {"nodules_zyx_diameter": [], "irrelevant_zyx_diameter": [], "detections": []}
    for scan, inputs in case["inputs"].items():
        for kind, found in rows.items():
            found += [(scan, *row) for row in inputs[kind]]

    def table(kind: str, score: bool = False) -> Findings:
        last = [row[4] for row in rows[kind]]
        centres = [(x, y, z) for _, z, y, x, _ in rows[kind]]
        values = {"score": last} if score else {"diameter": last}
        return Findings.of([row[0] for row in rows[kind]], centres, **values)

    found = evaluate_detections(
        table("nodules_zyx_diameter"), table("detections", True), table("irrelevant_zyx_diameter"), list("ABC"), ONCE
    )
    expected = case["expected"]
    assert found.cpm == pytest.approx(expected["cpm"], abs=1e-12)
    assert found.sensitivities == pytest.approx(list(expected["sensitivity_at"].values()), abs=1e-12)
    assert found.curve.false_per_scan == pytest.approx(expected["curve_fppi"], abs=1e-12)
    assert found.curve.sensitivity == pytest.approx(expected["curve_sensitivity"], abs=1e-12)
    assert {key: found.counts[key] for key in ("nodules", "ignored", "duplicates")} == {
        key: expected[key] for key in ("nodules", "ignored", "duplicates")
    }
    marks = Marks.of(found.matching, found.candidates)
    assert marks.score[marks.true].tolist() == expected["true_positive_scores"]
    assert marks.score[~marks.true].tolist() == expected["false_positive_scores"]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("decimals", [None, 3, 1])
@pytest.mark.parametrize("max_marks", [None, 20])
def test_it_is_the_official_score(seed: int, decimals: int | None, max_marks: int | None) -> None:
    annotations, candidates, excluded, scans = submission(seed, decimals=decimals)
    expected = froc_oracle.score(
        as_tuples(annotations), as_tuples(candidates), as_tuples(excluded), scans, max_marks or -1
    )
    settings = EvaluationSettings(max_marks=max_marks, replicates=0)
    found = evaluate_detections(annotations, candidates, excluded, scans, settings)
    assert found.sensitivities == pytest.approx(expected["sensitivities"], abs=1e-12)
    assert found.cpm == pytest.approx(expected["cpm"], abs=1e-12)
    assert {name: found.counts[name] for name in expected["counts"]} == expected["counts"]
    values = bootstrap_sensitivities(Marks.of(found.matching, candidates), 10, seed)
    assert values == pytest.approx(froc_oracle.bootstrap(expected["vectors"], scans, 10, seed), abs=1e-12)


def test_rates_on_vertical_steps_are_the_official_ones() -> None:
    """111 false positives in 888 scans are 0.125 per scan, or a rounding error more: that decides a nodule."""
    scans = [f"s{i}" for i in range(888)]
    random = np.random.default_rng(0)
    for total in (7200, 7301, 7777, 8123):
        score = np.sort(random.random(total))[::-1]
        at = [int(rate * 888) for rate in RATES]
        # A nodule is found right after as many false positives as each rate allows, at the same place on the axis.
        nodule_scores = [(score[n - 1] + score[n]) / 2 for n in at]
        candidates = Findings.of(
            [scans[i % 888] for i in range(total)] + scans[:7],
            [[500.0, 0, 0]] * total + [[0.0, 0, 0]] * 7,
            score=[*score, *nodule_scores],
        )
        annotations = Findings.of(scans[:7], [[0.0, 0, 0]] * 7, [6.0] * 7)
        expected = froc_oracle.score(as_tuples(annotations), as_tuples(candidates), [], scans)
        assert (
            evaluate_detections(annotations, candidates, None, scans, ONCE).sensitivities == expected["sensitivities"]
        )


def test_the_bootstrap_looks_as_far_as_it_must() -> None:
    """The most suspicious marks all lie in one scan, which a resample may take several times, or not at all."""
    annotations, marked, excluded, scans = submission(3, scans=12, nodules=20, marks=4000)
    assert marked.score is not None
    candidates = Findings.of(marked.series, marked.xyz, score=marked.score + (marked.series == "1.2.0"))
    matching = match_luna16(annotations, candidates, excluded, scans)
    marks = Marks.of(matching, candidates)
    expected = froc_oracle.score(as_tuples(annotations), as_tuples(candidates), as_tuples(excluded), scans)
    found = bootstrap_sensitivities(marks, 50, seed=5)
    assert found == pytest.approx(froc_oracle.bootstrap(expected["vectors"], scans, 50, 5), abs=1e-12)


def test_equal_seeds_give_equal_intervals_around_the_value() -> None:
    annotations, candidates, excluded, scans = submission(1)
    first, again, other = (
        evaluate_detections(annotations, candidates, excluded, scans, EvaluationSettings(replicates=100, seed=seed))
        for seed in (0, 0, 1)
    )
    assert first.intervals == again.intervals != other.intervals
    low, high = first.intervals["cpm"]
    assert low < first.cpm < high
    assert set(first.intervals) == {"cpm", "0.125", "0.25", "0.5", "1", "2", "4", "8"}


def test_limits_are_order_statistics() -> None:
    values = np.random.default_rng(0).permutation(1000) / 1000.0
    assert interval(values) == (0.025, 0.975)
    assert interval(np.append(values, np.nan)) == (0.025, 0.975)
    assert all(math.isnan(limit) for limit in interval(np.array([np.nan])))


def test_undefined_and_empty_cases() -> None:
    none = Findings.of([], [], score=[])
    nodule = Findings.of(["A"], [[0, 0, 0]], [8.0])
    far = Findings.of(["A", "B"], [[90, 0, 0], [0, 0, 0]], score=[0.9, 0.8])
    for candidates in (none, far):
        found = evaluate_detections(nodule, candidates, None, ["A", "B"], EvaluationSettings(replicates=20))
        assert found.sensitivities == [0.0] * 7 and found.cpm == 0.0
    assert any("no candidate hits a nodule" in note for note in found.notes)
    hit = Findings.of(["A"], [[1, 0, 0]], score=[0.9])
    assert evaluate_detections(nodule, hit, None, ["A", "B"], ONCE).sensitivities == [1.0] * 7
    nothing = evaluate_detections(Findings.of([], [], []), far, None, ["A", "B"], EvaluationSettings(replicates=20))
    assert math.isnan(nothing.cpm) and math.isnan(nothing.intervals["cpm"][0])
    assert any("no nodule is annotated" in note for note in nothing.notes)


@pytest.mark.parametrize("name", names("froc_curve"))
def test_curves_of_a_fixed_radius(name: str) -> None:
    case = GOLDEN[name]
    annotations, candidates, scans = one_scan(case)
    matching = match_fixed_radius(annotations, candidates, scans, case["params"].get("max_distance", 10.0))
    curve = froc(Marks.of(matching, candidates), "fixed_radius")
    for point in case["expected"]:
        index = int(np.flatnonzero(curve.thresholds >= point["threshold"])[-1])
        assert curve.sensitivity[index] == pytest.approx(point["sensitivity"], abs=1e-12)
        assert curve.false_per_scan[index] == pytest.approx(point["fppi"], abs=1e-12)
        assert (curve.true_positives[index], curve.false_positives[index]) == (point["tp"], point["fp"])
        assert len(matching.nodules) - curve.true_positives[index] == point["fn"]


@pytest.mark.parametrize("name", names("froc_summary"))
def test_sensitivities_of_a_fixed_radius(name: str) -> None:
    case = GOLDEN[name]
    annotations, candidates, scans = one_scan(case)
    matching = match_fixed_radius(annotations, candidates, scans, case["params"].get("max_distance", 10.0))
    curve = froc(Marks.of(matching, candidates), "fixed_radius")
    x, y = curve.false_per_scan[1:], curve.sensitivity[1:]
    if "thresholds" in case["params"]:
        at = [int(np.flatnonzero(curve.thresholds[1:] >= t)[-1]) for t in case["params"]["thresholds"]]
        x, y = x[at], y[at]
    found = interpolate(x, y, RATES, "fixed_radius")
    assert found == pytest.approx(list(case["expected"]["sensitivity_at"].values()), abs=1e-12)
    assert mean_sensitivity(found) == pytest.approx(case["expected"]["average"], abs=1e-12)


def test_interpolation() -> None:
    case = GOLDEN["froc_interp.five_points"]
    x, y = (np.array([point[key] for point in case["inputs"]["points"]]) for key in ("fppi", "sensitivity"))
    rates = [float(rate) for rate in case["expected"]]
    assert interpolate(x, y, rates, "fixed_radius") == pytest.approx(list(case["expected"].values()), abs=1e-12)
    at_step = rates.index(1.0)
    assert interpolate(x, y, rates, "luna16")[at_step] == 0.8
    low, high = GOLDEN["froc_interp.subset_range"]["params"]["fppi_range"]
    mean = mean_sensitivity(interpolate(x, y, RATES, "fixed_radius"), within=(low, high))
    assert mean == pytest.approx(GOLDEN["froc_interp.subset_range"]["expected"], abs=1e-12)
    first = GOLDEN["froc_interp.first_point_at_4"]
    for convention in ("luna16", "fixed_radius"):
        value = interpolate(np.array([4.0]), np.array([0.6]), [0.125], convention)  # type: ignore[arg-type]
        assert value[0] == pytest.approx(first["corrected_expected"], abs=1e-12)


@pytest.mark.parametrize("protocol", ["luna16", "fixed_radius"])
def test_detections_in_the_wrong_scan_find_nothing(protocol: Any) -> None:
    case = GOLDEN["froc_pipeline.every_detection_in_the_wrong_scan"]
    scans = list(case["inputs"])
    truth = [case["inputs"][scan]["ground_truth"][0] for scan in scans]
    marks = [case["inputs"][scan]["detections"][0] for scan in scans]
    annotations = Findings.of(scans, truth, [8.0, 8.0])
    candidates = Findings.of(scans, [mark[:3] for mark in marks], score=[mark[3] for mark in marks])
    found = evaluate_detections(
        annotations, candidates, None, scans, EvaluationSettings(protocol=protocol, replicates=0)
    )
    assert found.cpm == case["corrected_expected"]["average_sensitivity"]
    assert found.centre["count"] == 0


def test_corners_draw_the_same_curve() -> None:
    annotations, candidates, excluded, scans = submission(2, decimals=2)
    curve = froc(Marks.of(match_luna16(annotations, candidates, excluded, scans), candidates))
    corners = curve.corners()
    assert len(corners) < len(curve.thresholds)
    at = np.linspace(0, curve.false_per_scan[-1], 777)
    drawn = np.interp(at, curve.false_per_scan[corners], curve.sensitivity[corners])
    assert drawn == pytest.approx(np.interp(at, curve.false_per_scan, curve.sensitivity), abs=1e-9)
