"""The triage score."""

from __future__ import annotations

import pytest
from medtrain.errors import DataError
from medtrain_plugins.nodule.annotations.triage import risk_group, score_nodule, score_of, summarize_triage
from nodule_golden import CASES

CORRECTED = {name: case for name, case in CASES["triage_score"].items() if case["corrected"]}
PUBLISHED = {name: case for name, case in CASES["triage_score"].items() if not case["corrected"]}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_scores_round_to_even(name: str) -> None:
    case = PUBLISHED[name]
    given, wanted = case["inputs"], case["expected"]
    found = score_nodule(given["characteristics"], given.get("diameter_mm"), given.get("growth_category"), "half_even")
    assert found.score == wanted["score"] and round(found.base) == wanted["base_score"]
    parts = ("size_adjustment", "spiculation_bonus", "ground_glass_bonus", "growth_bonus")
    assert [found.size, found.spiculation, found.ground_glass, found.growth] == [wanted[part] for part in parts]
    # Only exact halves differ.
    usual = score_nodule(given["characteristics"], given.get("diameter_mm"), given.get("growth_category"))
    assert usual.score == found.score or (usual.value % 1 == 0.5 and usual.score == found.score + 1)


@pytest.mark.parametrize("name", CORRECTED)
def test_parts_add_up(name: str) -> None:
    case = CORRECTED[name]
    found = score_nodule(case["inputs"]["characteristics"], case["inputs"].get("diameter_mm"))
    assert found.score == case["expected"]["score"] and found.ground_glass == case["expected"]["ground_glass_bonus"]
    if "base_score" in case["expected"]:
        assert found.base == case["expected"]["base_score"]
    assert found.value == found.base + found.size + found.spiculation + found.ground_glass + found.growth


def test_target_is_real_valued() -> None:
    assert score_nodule({"Malignancy": 3}).target == pytest.approx(0.5)
    assert score_nodule({"malignancy": 5}, 30.0).target == 1 and score_nodule({"malignancy": 1}, 2.0).target == 0
    assert score_of(0.5) == 5.5


def test_a_missing_malignancy_is_an_error() -> None:
    with pytest.raises(DataError, match="malignancy"):
        score_nodule({"texture": 5})


def test_groups() -> None:
    assert [risk_group(p) for p in (0.7, 0.69, 0.3, 0.29)] == ["high", "medium", "medium", "low"]
    wanted = CASES["formatter"]["basic"]["expected"]["summary"]
    assert summarize_triage([0.3, 0.75]) == wanted
    assert summarize_triage([])["max_triage_score"] is None
