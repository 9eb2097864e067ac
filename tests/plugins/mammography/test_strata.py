"""Strata and units: who is compared with whom, and what is too small."""

from __future__ import annotations

import numpy as np
import pytest
from medtrain.protocols.metric import Rows
from medtrain_plugins.mammography.cohort.layouts import CSAW_CANCER_TYPES, RACES
from medtrain_plugins.mammography.evaluation.strata import exam_rows, group_report, patient_rows, select, strata_report
from medtrain_plugins.mammography.evaluation.survival import c_index_td
from survival_values import yearly_auc

G = np.ones(5)


def rows(n: int = 300, seed: int = 0) -> Rows:
    rng = np.random.default_rng(seed)
    observed = (rng.random(n) < 0.3).astype(np.int64)
    return {
        "risk": np.sort(rng.random((n, 5)) + 0.2 * observed[:, None], axis=1).astype(np.float32),
        "event_time": rng.choice(5, n, p=[0.1, 0.15, 0.15, 0.2, 0.4]),
        "event_observed": observed,
        "patient_id": np.array([f"p{i // 2}" for i in range(n)], dtype=object),
        "density": rng.integers(1, 5, n),
        "race": rng.choice(3, n),
        "cancer_type": np.where(observed == 1, rng.choice([0, 1], n), -1),
    }


def test_density_and_race_are_scored_within_the_stratum() -> None:
    table = rows()
    table["density"][:5] = -1
    table["race"][:] = np.where(np.arange(300) < 290, 1, 0)
    report = strata_report(table, G, replicates=20, seed=0)
    assert list(report["density"]) == ["A", "B", "C", "D", "unknown"]
    assert list(report["race"]) == [RACES[0], RACES[1]]
    within = select(table, table["density"] == 2)
    group = report["density"]["B"]
    assert (group["n"], group["events"]) == (len(within["risk"]), int(within["event_observed"].sum()))
    expected = c_index_td(within["event_time"], within["event_observed"], within["risk"], G)
    assert group["metrics"]["c_index"]["value"] == pytest.approx(expected, abs=1e-14)
    assert group["metrics"]["c_index"]["low"] < expected < group["metrics"]["c_index"]["high"]


def test_cases_of_a_cancer_type_meet_all_controls() -> None:
    table = rows()
    report = strata_report(table, G, replicates=20, seed=0)["cancer_type"]
    assert list(report) == ["invasive", "non-invasive"]
    values = []
    for code, group in enumerate(report.values()):
        chosen = select(table, (table["event_observed"] == 0) | (table["cancer_type"] == code))
        expected = yearly_auc(chosen["event_time"], chosen["event_observed"], chosen["risk"])
        values.append(group["metrics"]["auc_year_5"]["value"])
        assert values[-1] == pytest.approx(expected[4], abs=1e-14)
        assert group["n"] - group["events"] == (table["event_observed"] == 0).sum()
    assert values[0] != values[1]


def test_names_of_cancer_types_are_the_cohorts() -> None:
    table = rows()
    report = strata_report(table, G, 5, 0, CSAW_CANCER_TYPES)["cancer_type"]
    assert list(report) == ["in situ", "unknown"]


def test_absent_columns_give_no_strata() -> None:
    table = {name: column for name, column in rows().items() if name not in ("race", "cancer_type")}
    assert list(strata_report(table, G, 5, 0)) == ["density"]


def test_small_strata_are_counted_with_the_reason() -> None:
    table = rows()
    table["race"][:] = 0
    table["race"][:3] = 2
    group = strata_report(table, G, 5, 0)["race"]["Asian"]
    assert group["n"] == 3 and group["metrics"] == {}
    assert "fewer than 5" in group["reason"]


def test_undefined_metrics_carry_their_reason() -> None:
    table = rows()
    table["event_time"] = np.where(table["event_observed"] == 1, np.maximum(table["event_time"], 1), 4)
    report = group_report(table, G, replicates=20, seed=0)
    first = report["metrics"]["auc_year_1"]
    assert first == {
        "value": None,
        "mean": None,
        "low": None,
        "high": None,
        "valid": 0,
        "reason": "no comparable pairs",
    }
    assert report["metrics"]["auc_year_2"]["reason"] is None


def test_exams_average_their_samples_and_patients_give_their_latest() -> None:
    table = {
        "patient_id": np.array(["a", "a", "a", "b", "b", "b"], dtype=object),
        "exam_id": np.array(["2014", "2012", "2014", "2014", "2015", "2015"], dtype=object),
        "risk": np.array([[0.2], [0.9], [0.4], [0.1], [0.6], [0.8]]) * np.ones((1, 5)),
        "event_time": np.array([1, 3, 1, 4, 4, 4]),
        "event_observed": np.array([1, 1, 1, 0, 0, 0]),
    }
    exams = exam_rows(table)
    found = {(p, e): r for p, e, r in zip(exams["patient_id"], exams["exam_id"], exams["risk"][:, 0], strict=True)}
    assert found == pytest.approx({("a", "2012"): 0.9, ("a", "2014"): 0.3, ("b", "2014"): 0.1, ("b", "2015"): 0.7})
    patients = patient_rows(exams)
    assert patients["exam_id"].tolist() == ["2014", "2015"]
    assert patients["risk"][:, 0] == pytest.approx([0.3, 0.7])
    assert patients["event_time"].tolist() == [1, 4]


def test_an_exam_with_a_cancer_in_one_breast_is_a_cases_exam() -> None:
    table = {
        "patient_id": np.array(["a", "a"], dtype=object),
        "exam_id": np.array(["2014", "2014"], dtype=object),
        "risk": np.full((2, 5), 0.5),
        "event_time": np.array([1, 3]),
        "event_observed": np.array([0, 1]),
    }
    exams = exam_rows(table)
    assert (exams["event_time"].tolist(), exams["event_observed"].tolist()) == ([3], [1])


def test_exams_and_patients_do_not_depend_on_the_order() -> None:
    table = rows()
    table["exam_id"] = np.array([f"{i % 7}" for i in range(300)], dtype=object)
    mixed = select(table, np.random.default_rng(1).permutation(300))
    for unit in (exam_rows, lambda table: patient_rows(exam_rows(table))):
        one, other = unit(table), unit(mixed)
        np.testing.assert_array_equal(one["patient_id"], other["patient_id"])
        np.testing.assert_array_equal(one["event_time"], other["event_time"])
        np.testing.assert_allclose(one["risk"], other["risk"], rtol=1e-12)
