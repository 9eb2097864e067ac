"""Risk models compared: one cohort of exams for all, one weight, the same draws, tests that hold what they promise."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from medtrain.errors import DataError
from medtrain.statistics import delong
from medtrain_plugins.mammography.evaluation.bootstrap import bootstrap, percentile_summary
from medtrain_plugins.mammography.evaluation.compare import compare_risks
from medtrain_plugins.mammography.evaluation.metrics import RiskMetrics
from medtrain_plugins.mammography.evaluation.survival import (
    Array,
    KaplanMeier,
    c_index_reference,
    c_index_td,
    risk_comparisons,
)
from medtrain_plugins.results.compare import ComparedRuns, compare_runs, write_comparison
from medtrain_plugins.results.evaluations import EvaluatedRun
from survival_values import uno_c_index, yearly_auc

Rows = dict[str, Any]


class Cohort:
    """Women with one to three exams; cancer in one breast. What a run scores of it is up to the test."""

    def __init__(self, women: int = 120, seed: int = 0, events: float = 0.4) -> None:
        self.rng = np.random.default_rng(seed)
        case = self.rng.random(women) < events
        self.exams = []
        for woman in range(women):
            exams = int(self.rng.integers(1, 4))
            last = int(self.rng.integers(0, 5))
            for exam in range(exams):
                self.exams.append((f"p{woman:03d}", f"e{exam}", min(4, last + exams - 1 - exam), bool(case[woman])))

    def rows(self, signal: float, sides: str = "LR", seed: int = 1, kept: Any = None) -> Rows:
        """Risks of every breast (`sides`), or of whole exams (""); `kept` says which exams."""
        rng = np.random.default_rng(seed)
        columns: dict[str, list[Any]] = {name: [] for name in ("p", "e", "t", "o", "risk", "side")}
        for number, (patient, exam, year, case) in enumerate(self.exams):
            if kept is not None and not kept(number):
                continue
            for side in sides or "-":
                # The cancer is in the left breast; the right one is followed as long.
                observed = case and side != "R"
                time_, risk = (year if observed or not case else 4), signal * case + rng.normal()
                for name, value in zip(columns, (patient, exam, time_, observed, risk, side), strict=True):
                    columns[name].append(value)
        steps = np.array(columns["risk"])[:, None] + np.cumsum(rng.random((len(columns["p"]), 5)) * 0.2, axis=1)
        ids = [f"{p}-{e}-{s}" for p, e, s in zip(columns["p"], columns["e"], columns["side"], strict=True)]
        rows = {
            "sample_id": np.array(ids, dtype=object),
            "risk": (1 / (1 + np.exp(-steps))).astype(np.float32),
            "event_time": np.array(columns["t"], dtype=np.int64),
            "event_observed": np.array(columns["o"], dtype=np.int64),
            "patient_id": np.array(columns["p"], dtype=object),
            "exam_id": np.array(columns["e"], dtype=object),
        }
        if sides:
            rows["laterality"] = np.array(columns["side"], dtype=object)
        return rows


def metric(n: int = 50, seed: int = 9) -> RiskMetrics:
    rng = np.random.default_rng(seed)
    return RiskMetrics(lambda outputs: outputs, rng.integers(0, 5, n), rng.integers(0, 2, n), 50)


def compared(tables: dict[str, Rows], replicates: int = 60, **metrics: RiskMetrics) -> Any:
    return compare_risks(tables, {run: metrics.get(run, metric()) for run in tables}, 3, replicates)


def unit(comparison: Any, name: str) -> Any:
    return next(unit for unit in comparison.units if unit.name == name)


def test_different_samples_of_one_cohort_end_on_the_same_exams() -> None:
    cohort = Cohort()
    tables = {
        "breasts": cohort.rows(1.0),
        "exams": cohort.rows(1.0, sides="", seed=2, kept=lambda i: i % 5),
        "views": cohort.rows(0.0, seed=3, kept=lambda i: i % 7),
    }
    result = compared(tables)
    shared = [exam for i, exam in enumerate(cohort.exams) if i % 5 and i % 7]
    women = {patient for patient, *_ in shared}
    assert unit(result, "exam").counts == {
        "exams": len(shared),
        "patients": len(women),
        "exams_with_cancer": sum(case for *_, case in shared),
    }
    latest = {patient: case for patient, _, _, case in shared}
    assert unit(result, "patient").counts == {"patients": len(women), "patients_with_cancer": sum(latest.values())}
    assert result.facts["exams_common"] == len(shared)
    assert result.facts["exams_scored"]["breasts"] == len(cohort.exams)
    for name in ("exam", "patient"):
        differences = {(d.first, d.second): d for d in unit(result, name).differences["c_index"]}
        assert list(differences) == [("breasts", "exams"), ("breasts", "views"), ("exams", "views")]
        assert differences["breasts", "views"].p < 0.05 and differences["exams", "views"].value > 0


def test_values_and_limits_are_those_of_the_functions() -> None:
    cohort = Cohort(80, seed=4)
    tables = {"a": cohort.rows(0.8, sides="", seed=1), "b": cohort.rows(0.8, sides="", seed=2)}
    result = compared(tables, replicates=40)
    g = metric().censoring
    exams = unit(result, "exam")
    order = np.argsort([f"{p}\0{e}" for p, e in zip(tables["a"]["patient_id"], tables["a"]["exam_id"], strict=True)])
    draws = {}
    for run, rows in tables.items():
        times, observed, risk = (rows[name][order] for name in ("event_time", "event_observed", "risk"))
        scores = {name: of[run] for name, of in exams.scores.items()}
        assert scores["c_index"].value == pytest.approx(c_index_td(times, observed, risk, g), rel=1e-12)
        assert scores["c_index_uno"].value == pytest.approx(uno_c_index(times, observed, risk, g), rel=1e-12)
        aucs = yearly_auc(times, observed, risk)
        assert [scores[f"auc_year_{year}"].value for year in range(1, 6)] == pytest.approx(aucs, rel=1e-12)
        draws[run] = bootstrap(risk_comparisons(times, observed, risk, g), rows["patient_id"][order], observed, 40, 3)
        summary = percentile_summary(draws[run]["c_index"])
        assert (scores["c_index"].low, scores["c_index"].high) == pytest.approx((summary["low"], summary["high"]))
    summary = percentile_summary(draws["a"]["auc_year_4"] - draws["b"]["auc_year_4"])
    (difference,) = exams.differences["auc_year_4"]
    assert (difference.low, difference.high) == pytest.approx((summary["low"], summary["high"]))
    # DeLong of the last year by exam, women as clusters.
    known = (observed == 1) | (times == 4)
    both = np.array([rows["risk"][order][known, 4] for rows in tables.values()])
    tested = delong(both, observed[known] == 1, tables["a"]["patient_id"][order][known].astype(str)).test(0, 1)
    assert exams.differences["auc_year_5"][0].tests["DeLong"] == tested
    assert tested.difference == pytest.approx(exams.differences["auc_year_5"][0].value, abs=1e-12)


def test_an_exam_has_the_mean_risk_of_its_samples() -> None:
    cohort = Cohort(40, seed=5)
    breasts = cohort.rows(0.5)
    whole = cohort.rows(0.5, sides="")
    whole["risk"] = breasts["risk"].reshape(-1, 2, 5).mean(axis=1)
    (difference,) = unit(compared({"breasts": breasts, "whole": whole}), "exam").differences["c_index"]
    assert difference.value == 0 and difference.p == 1 and difference.low == difference.high == 0


def test_one_run_and_itself_differ_by_nothing() -> None:
    rows = Cohort(60, seed=6).rows(0.5)
    result = compared({"a": rows, "b": {name: column.copy() for name, column in rows.items()}})
    for part in result.units:
        for (difference,) in part.differences.values():
            assert difference.value == 0 and difference.p == 1
        (auc,) = part.differences["auc_year_5"]
        assert math.isnan(auc.tests["DeLong"].p) and "alike" in auc.tests["DeLong"].reason


def test_the_weights_are_those_of_the_largest_training_group() -> None:
    tables = {"a": Cohort(60).rows(0.5), "b": Cohort(60).rows(0.5, sides="")}
    small, large = metric(30, 1), metric(300, 2)
    result = compared(tables, 5, a=small, b=large)
    assert result.facts["censoring"] == {
        "run": "b",
        "training_samples": 300,
        "by_year": large.censoring.tolist(),
    }
    swapped = compared(tables, 5, a=large, b=small)
    assert swapped.facts["censoring"]["run"] == "a"
    assert unit(result, "exam").scores == unit(swapped, "exam").scores


def test_a_coin_scores_one_half_and_a_good_model_beats_it() -> None:
    scores = []
    for seed in range(25):
        result = compared({"coin": Cohort(60, seed=seed).rows(0.0, seed=seed)}, 100)
        scores.append(unit(result, "patient").scores["c_index"]["coin"])
    values = [score.value for score in scores]
    assert np.mean(values) == pytest.approx(0.5, abs=4 * np.std(values) / math.sqrt(25))
    assert 0.02 < np.std(values) < 0.15
    assert sum(score.low < 0.5 < score.high for score in scores) >= 20
    cohort = Cohort(300, seed=1)
    result = compared({"good": cohort.rows(2.5), "coin": cohort.rows(0.0, seed=8)}, 200)
    (difference,) = unit(result, "patient").differences["auc_year_5"]
    assert difference.p == pytest.approx(2 / 201) and difference.tests["DeLong"].p < 1e-10


def test_under_the_null_bootstrap_and_delong_reject_one_time_in_twenty() -> None:
    p_values: dict[str, list[float]] = {"bootstrap": [], "DeLong": []}
    for seed in range(60):
        cohort = Cohort(80, seed=seed)
        tables = {run: cohort.rows(0.7, sides="", seed=seed * 2 + i + 100) for i, run in enumerate("ab")}
        (difference,) = unit(compared(tables, 150), "exam").differences["auc_year_5"]
        p_values["bootstrap"].append(difference.p)
        p_values["DeLong"].append(difference.tests["DeLong"].p)
    for values in p_values.values():
        assert (np.array(values) < 0.05).mean() < 0.15
        assert 0.3 < (np.array(values) < 0.5).mean() < 0.7
    assert np.corrcoef(p_values["bootstrap"], p_values["DeLong"])[0, 1] > 0.95


def test_other_labels_of_the_same_breasts_are_refused_by_name() -> None:
    cohort = Cohort(30, seed=7)
    a, b = cohort.rows(0.5), cohort.rows(0.5, sides="")
    b["event_time"] = b["event_time"].copy()
    b["event_time"][4] = (b["event_time"][4] + 1) % 5
    patient, exam = b["patient_id"][4], b["exam_id"][4]
    with pytest.raises(
        DataError, match=rf"1 exams have other labels in a than in b(.|\n)*patient {patient}, exam {exam}: "
    ):
        compared({"a": a, "b": b})


def test_exams_scored_in_part_with_other_labels_are_left_out_and_counted() -> None:
    cohort = Cohort(60, seed=8)
    whole, healthy_side = cohort.rows(0.5, sides=""), cohort.rows(0.5, sides="LR")
    seen = np.ones(len(healthy_side["sample_id"]), dtype=bool)
    lost = [i for i, (*_, case) in enumerate(cohort.exams) if case][:6]
    quiet = [i for i, (*_, case) in enumerate(cohort.exams) if not case][:4]
    seen[[2 * i for i in lost + quiet]] = False  # the left breast was not scored
    result = compared({"whole": whole, "sides": {name: column[seen] for name, column in healthy_side.items()}})
    assert result.facts["exams_left_out_for_labels_of_one_breast"] == 6
    assert unit(result, "exam").counts["exams"] == len(cohort.exams) - 6
    assert "6 more were left out" in result.sections[0].text


def test_what_cannot_be_compared_is_said() -> None:
    rows = Cohort(20).rows(0.5)
    with pytest.raises(DataError, match="b: its predictions have no exam_id"):
        compared({"a": rows, "b": {name: column for name, column in rows.items() if name != "exam_id"}})
    broken = {**rows, "risk": rows["risk"].copy()}
    broken["risk"][3, 1] = np.nan
    with pytest.raises(DataError, match=r"b: the risks of 1 samples are not finite \(first: p0"):
        compared({"a": rows, "b": broken})
    other = {**rows, "patient_id": np.array([f"q{p}" for p in rows["patient_id"]], dtype=object)}
    with pytest.raises(DataError, match="there is no exam that all runs scored"):
        compared({"a": rows, "b": other})


def test_without_events_everything_is_undefined_with_a_reason(tmp_path: Path) -> None:
    cohort = Cohort(30, events=0.0)
    tables = {"a": cohort.rows(0.5), "b": cohort.rows(0.1, sides="")}
    result = compared(tables)
    for part in result.units:
        for name, scores in part.scores.items():
            assert all(math.isnan(score.value) and score.reason == "no comparable pairs" for score in scores.values())
            (difference,) = part.differences[name]
            assert math.isnan(difference.p) and difference.reason == "a: no comparable pairs"
        assert "positive" in part.differences["auc_year_1"][0].tests["DeLong"].reason
    runs = [
        EvaluatedRun(
            name,
            tmp_path / name,
            {"plugins": ["x"], "status": "completed", "checkpoint": "last", "step": 1, "samples": len(tables[name])},
            [metric()],
            tables[name],
            None,
        )
        for name in tables
    ]
    write_comparison(tmp_path / "out", ComparedRuns("test", 0, 60, runs, [result], []))
    told = json.loads((tmp_path / "out" / "comparison.json").read_text())
    score = told["comparisons"][0]["units"]["patient"]["scores"]["c_index"]["a"]
    assert score["value"] is None and score["reason"] == "no comparable pairs"
    assert (tmp_path / "out" / "plots" / "compared_roc.png").is_file()


def test_the_roc_panels_show_every_run() -> None:
    cohort = Cohort(80)
    result = compared({"one": cohort.rows(1.0), "two": cohort.rows(0.2, sides="")})
    (figure,) = result.sections[0].figures.values()
    panel = figure.axes[4]
    texts = [text.get_text() for text in panel.get_legend().get_texts()]
    value = unit(result, "patient").scores["auc_year_5"]["one"].value
    assert texts[0] == f"one {value:.2f}" and texts[1].startswith("two ")


def test_through_the_runs_of_a_trainer(tmp_path: Path) -> None:
    """Two finished runs on disk: the metric is rebuilt from what the run recorded of its training group."""
    cohort = Cohort(50, seed=2)
    for name, rows in {"a": cohort.rows(1.0), "b": cohort.rows(0.2)}.items():
        write_run(tmp_path / name, rows)
    result = compare_runs([tmp_path / "a", tmp_path / "b"], replicates=20)
    told = result.to_json()["comparisons"][0]
    assert told["censoring"]["training_samples"] == 4
    assert told["units"]["patient"]["scores"]["c_index"]["a"]["value"] is not None
    assert told["units"]["exam"]["differences"]["auc_year_3"][0]["tests"]["DeLong"]["p"] is not None


def write_run(folder: Path, rows: Rows) -> None:
    """A run directory as LMV-Net leaves it, as far as a comparison reads it."""
    from medtrain.config import Layers
    from medtrain.plugins import Plugins
    from medtrain.rundir.directory import Maps
    from medtrain.rundir.evaluation_files import predictions
    from medtrain.rundir.files import write_json

    layers = Layers()
    layers.add({"run": {"plugins": ["lmv_net"]}}, "test")
    config = layers.build(Plugins.of(["lmv_net"]).options())
    split = Maps.create(folder, config.to_toml(), [{"name": "lmv_net"}], {}).split(0)
    split.path.mkdir()
    about = {"layout": "embed", "train_outcomes": {"event_times": [0, 2, 4, 4], "event_observed": [1, 1, 0, 0]}}
    split.write_membership({"test": {"samples": rows["sample_id"].tolist(), "participants": []}}, "", about)
    split.write_status("completed")
    split.evaluation("test").mkdir()
    facts = {"checkpoint": "last", "epoch": 1, "step": 3, "samples": len(rows["sample_id"])}
    write_json(split.evaluation("test") / "metrics.json", facts)
    predictions(rows).to_parquet(split.evaluation("test") / "predictions.parquet", index=False)


def test_five_runs_and_two_thousand_replicates_take_seconds() -> None:
    cohort = Cohort(400)
    tables = {f"run {i}": cohort.rows(0.5, seed=i) for i in range(5)}
    start = time.process_time()
    result = compared(tables, 2000)
    assert unit(result, "exam").scores["c_index"]["run 0"].valid == 2000
    assert time.process_time() - start < 30


def test_the_reference_index_is_reported_on_demand() -> None:
    cohort = Cohort(80, seed=3)
    rows = cohort.rows(0.0)
    n: Array = np.array([0, 1, 4, 4])
    plain = RiskMetrics(lambda outputs: outputs, n, n < 2)
    reference = RiskMetrics(lambda outputs: outputs, n, n < 2, reference=True)
    assert reference.names == (*plain.names, "c_index_reference") and "c_index_reference" not in RiskMetrics.names
    values = reference.compute(rows)
    assert {name: values[name] for name in plain.names} == plain.compute(rows)
    survival = KaplanMeier.fit(rows["event_time"], rows["event_observed"]).survival
    expected = c_index_reference(rows["event_time"], rows["event_observed"], rows["risk"], survival)
    assert values["c_index_reference"] == expected
    # A model that says nothing, its risks only rising with the years: this index takes it for a good one.
    rows["risk"] = np.tile(np.linspace(0.1, 0.5, 5, dtype=np.float32), (len(rows["risk"]), 1))
    values = reference.compute(rows)
    assert values["c_index"] == 0.5 and values["c_index_reference"] > 0.8
    rows["event_observed"][:] = 0
    assert math.isnan(reference.compute(rows)["c_index_reference"])
    # Runs of both kinds can be compared, by the values that mean something.
    result = compare_risks({"a": rows, "b": rows}, {"a": plain, "b": reference}, 0, 2)
    assert "c_index_reference" not in unit(result, "exam").scores
