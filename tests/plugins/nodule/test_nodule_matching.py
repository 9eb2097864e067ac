"""Which candidate finds which nodule."""

from __future__ import annotations

import math

import numpy as np
import pytest
from evaluation_cases import GOLDEN, names, one_scan
from medtrain_plugins.nodule.annotations.tables import Findings
from medtrain_plugins.nodule.evaluation.matching import Outcome, cap, match_fixed_radius, match_luna16
from spec_functions import centre_metrics, distances, match_centres

TP, FP = Outcome.TRUE_POSITIVE, Outcome.FALSE_POSITIVE


def nodules(*rows: tuple[str, float, float]) -> Findings:
    """Rows of scan, x, diameter."""
    return Findings.of([r[0] for r in rows], [[r[1], 0, 0] for r in rows], [r[2] for r in rows])


def marks(*rows: tuple[str, float, float]) -> Findings:
    """Rows of scan, x, score."""
    return Findings.of([r[0] for r in rows], [[r[1], 0, 0] for r in rows], score=[r[2] for r in rows])


def test_a_hit_lies_within_the_radius_and_not_on_its_border() -> None:
    found = match_luna16(nodules(("A", 0, 8)), marks(("A", 4.0, 0.9), ("A", 3.999, 0.1)), None, ["A"])
    assert found.outcome.tolist() == [FP, TP] and found.hit.tolist() == [1]


def test_the_most_suspicious_hit_finds_the_nodule_and_the_others_are_nothing() -> None:
    candidates = marks(("A", 0, 0.2), ("A", 1, 0.9), ("A", 2, 0.9), ("A", 3, 0.5))
    found = match_luna16(nodules(("A", 0, 10)), candidates, None, ["A"])
    assert found.hit.tolist() == [1] and found.duplicates == 3
    assert found.outcome.tolist() == [Outcome.DUPLICATE, TP, Outcome.DUPLICATE, Outcome.DUPLICATE]


def test_a_candidate_may_find_two_nodules() -> None:
    found = match_luna16(nodules(("A", 0, 10), ("A", 4, 10)), marks(("A", 2, 0.7), ("A", -3, 0.6)), None, ["A"])
    assert found.hit.tolist() == [0, 0] and found.duplicates == 1
    assert found.outcome.tolist() == [TP, Outcome.DUPLICATE]


def test_included_nodules_come_before_irrelevant_findings() -> None:
    excluded = nodules(("A", 0, 20), ("A", 40, -1))
    candidates = marks(("A", 1, 0.9), ("A", 8, 0.8), ("A", 44.9, 0.7), ("A", 45.0, 0.6), ("B", 0, 0.5))
    found = match_luna16(nodules(("A", 0, 6)), candidates, excluded, ["A", "B"])
    assert found.outcome.tolist() == [TP, Outcome.IGNORED, Outcome.IGNORED, FP, FP]


def test_a_nodule_without_a_measured_size_is_hit_within_5_mm() -> None:
    candidates = marks(("A", 4.9, 0.9), ("A", 5.1, 0.8))
    assert match_luna16(nodules(("A", 0, -1)), candidates, None, ["A"]).outcome.tolist() == [TP, FP]
    assert match_luna16(nodules(("A", 4.9, 0)), candidates, None, ["A"]).outcome.tolist() == [FP, FP]


def test_scans_that_are_not_evaluated_do_not_count() -> None:
    candidates = marks(("A", 0, 0.9), ("X", 0, 0.8))
    found = match_luna16(nodules(("X", 0, 8), ("A", 0, 8)), candidates, None, ["A", "B"])
    assert found.outcome.tolist() == [TP, Outcome.UNKNOWN_SERIES]
    assert found.nodules.tolist() == [1] and found.hit.tolist() == [0]


def test_the_cap_keeps_what_is_strictly_more_suspicious() -> None:
    scores = np.array([0.5, 0.9, 0.5, 0.7, 0.5])
    assert cap(scores, 2).tolist() == [False, True, False, True, False]
    assert cap(scores, 3).tolist() == [False, True, False, True, False]  # the third and fourth tie: both go
    assert cap(scores, 5).all() and cap(scores, None).all()
    assert not cap(np.full(4, 0.5), 3).any()
    found = match_luna16(nodules(("A", 0, 8)), marks(("A", 0, 0.1), ("A", 50, 0.9), ("B", 0, 0.2)), None, ["A", "B"], 1)
    assert found.outcome.tolist() == [Outcome.CAPPED, FP, FP]
    assert not found.found.any()


def test_many_pairs_go_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    annotations = Findings.of(["A"] * 50, random.uniform(-40, 40, (50, 3)), random.uniform(3, 20, 50))
    candidates = Findings.of(["A"] * 300, random.uniform(-40, 40, (300, 3)), score=random.random(300))
    whole = match_luna16(annotations, candidates, annotations, ["A"])
    monkeypatch.setattr("medtrain_plugins.nodule.evaluation.matching.PAIRS_AT_ONCE", 700)
    parts = match_luna16(annotations, candidates, annotations, ["A"])
    assert whole.found.any() and (whole.hit == parts.hit).all() and (whole.outcome == parts.outcome).all()


@pytest.mark.parametrize("name", names("froc_match"))
def test_a_fixed_radius(name: str) -> None:
    case = GOLDEN[name]
    annotations, candidates, scans = one_scan(case)
    found = match_fixed_radius(annotations, candidates, scans, case["params"].get("max_distance", 10.0))
    assert (found.outcome == TP).tolist() == case["expected"]["is_tp"]
    nodule_of = {hit: nodule for nodule, hit in enumerate(found.hit.tolist()) if hit >= 0}
    assert [nodule_of.get(mark, -1) for mark in range(len(candidates))] == case["expected"]["gt_index"]


def test_a_fixed_radius_takes_the_nearest_free_nodule_and_includes_its_border() -> None:
    annotations = nodules(("A", 0, 4), ("A", 6, 4), ("B", 0, 4))
    candidates = marks(("A", 2, 0.9), ("A", 1, 0.8), ("A", 0, 0.7), ("B", 10, 0.1))
    found = match_fixed_radius(annotations, candidates, ["A", "B"], 10.0)
    assert found.hit.tolist() == [0, 1, 3] and found.outcome.tolist() == [TP, TP, FP, TP]


def test_some_scans_alone() -> None:
    annotations = nodules(("A", 0, 8), ("B", 0, 8), ("C", 0, 8))
    candidates = marks(("A", 0, 0.9), ("B", 50, 0.8), ("C", 0, 0.7), ("X", 0, 0.6))
    found = match_luna16(annotations, candidates, None, ["A", "B", "C"]).restricted(np.array([False, True, True]))
    assert found.scans == ("B", "C") and found.nodule_scan.tolist() == [0, 1] and found.hit.tolist() == [-1, 2]
    unknown = Outcome.UNKNOWN_SERIES
    assert found.outcome.tolist() == [unknown, FP, TP, unknown] and found.candidate_scan.tolist() == [-1, 0, 1, -1]


def test_distances_are_in_mm() -> None:
    case = GOLDEN["distance.zyx_spacing"]
    spacing = np.array(case["inputs"]["spacing_zyx"])
    points = (np.array(case["inputs"][key]) * spacing for key in "pq")
    assert distances(*points)[0, 0] == pytest.approx(case["expected"], abs=1e-12)


@pytest.mark.parametrize("name", names("center_match"))
def test_the_closest_pair_comes_first(name: str) -> None:
    case = GOLDEN[name]
    spacing = np.array(case["params"]["spacing"] or [1, 1, 1])
    predicted, truth = (np.array(case["inputs"][key]) * spacing for key in ("predictions", "ground_truth"))
    found = match_centres(predicted, truth, case["params"]["max_distance"])
    assert [tuple(pair) for pair in found] == [
        (pair["pred"], pair["gt"], pytest.approx(float(pair["distance"]), abs=1e-12)) for pair in case["expected"]
    ]


@pytest.mark.parametrize("name", names("center_metrics"))
def test_how_near_centres_are(name: str) -> None:
    case = GOLDEN[name]
    spacing = np.array(case["params"]["spacing"] or [1, 1, 1])
    predicted, truth = (np.array(case["inputs"][key]) * spacing for key in ("predictions", "ground_truth"))
    found = centre_metrics(match_centres(predicted, truth, case["params"]["max_distance"]))
    for name, value in case["expected"].items():
        renamed = name.replace("unmatched_preds", "unmatched_predictions").replace("unmatched_gts", "unmatched_truths")
        assert found[renamed] == pytest.approx(value, abs=1e-12)


def test_no_points_have_no_distances() -> None:
    found = centre_metrics(match_centres([], []))
    assert found["num_matched"] == 0 and math.isnan(found["mean_distance"]) and math.isnan(found["recall"])
    assert centre_metrics(match_centres([], [[0, 0, 0]]))["recall"] == 0.0
