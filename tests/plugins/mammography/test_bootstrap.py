"""The bootstrap of patients: what a replicate is, and what its limits are worth."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from medtrain_plugins.mammography.evaluation import bootstrap as module
from medtrain_plugins.mammography.evaluation.bootstrap import bootstrap, percentile_summary, replicate_counts
from medtrain_plugins.mammography.evaluation.survival import (
    Array,
    KaplanMeier,
    c_index_reference,
    c_index_td,
    risk_comparisons,
)
from survival_values import uno_c_index, yearly_auc

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "survival.json").read_text())


def cohort(patients: int, samples: int, seed: int) -> tuple[Array, Array, Array, Array]:
    """Patient, time, observed, risks of `samples` samples of each patient, who share her labels."""
    rng = np.random.default_rng(seed)
    times = np.repeat(rng.choice(5, patients, p=[0.1, 0.15, 0.15, 0.2, 0.4]), samples)
    observed = np.repeat((rng.random(patients) < 0.3).astype(np.int64), samples)
    risks = np.sort(rng.random((patients * samples, 5)) + 0.2 * observed[:, None], axis=1).round(2)
    return np.repeat(np.arange(patients), samples).astype(str).astype(object), times, observed, risks


def test_summary_of_the_reference_replicates() -> None:
    """The reference's own draws, scored by its own index, give its mean and limits."""
    from sklearn.utils import resample

    case = GOLDEN["bootstrap_c_index"]
    times, observed, risks = (
        np.array(case["inputs"][name]) for name in ("event_times", "event_observed", "predictions")
    )
    survival = KaplanMeier.fit(times, observed).survival
    state = np.random.RandomState(case["inputs"]["seed"])
    scores = []
    for _ in range(case["inputs"]["n_bootstrap"]):
        drawn = [resample(np.flatnonzero(observed == kind), random_state=state) for kind in (1, 0)]
        chosen = np.concatenate(drawn)
        scores.append(c_index_reference(times[chosen], observed[chosen], risks[chosen], survival))
    assert scores == pytest.approx(case["outputs"]["scores"], abs=1e-8)
    summary = percentile_summary(np.array(scores))
    assert summary["mean"] == pytest.approx(case["outputs"]["mean"], abs=1e-8)
    assert [summary["low"], summary["high"]] == pytest.approx(case["outputs"]["ci"], abs=1e-8)


def test_replicates_are_scored_as_if_their_samples_were_copied() -> None:
    patients, times, observed, risks = cohort(30, 2, 0)
    g = KaplanMeier.of_censoring(times, observed).survival
    scores = bootstrap(risk_comparisons(times, observed, risks, g), patients, observed, replicates=20, seed=3)
    (counts,) = replicate_counts(patients, observed, replicates=20, seed=3)
    for replicate in range(20):
        copies = np.repeat(np.arange(len(times)), counts[:, replicate].astype(int))
        copied = times[copies], observed[copies], risks[copies]
        values = [c_index_td(*copied, g), uno_c_index(*copied, g), *yearly_auc(*copied)]
        drawn = [series[replicate] for series in scores.values()]
        np.testing.assert_allclose(drawn, np.array(values, dtype=float), rtol=1e-12)


def test_patients_are_drawn_whole_and_by_group() -> None:
    patients, _, observed, _ = cohort(40, 3, 1)
    observed = observed.copy()
    observed[::3] = 0  # an exam before the window: a case's sample without an event
    (counts,) = replicate_counts(patients, observed, replicates=50, seed=0)
    assert counts.shape == (120, 50)
    whole = counts.reshape(40, 3, 50)
    assert (whole == whole[:, :1]).all()
    case = observed.reshape(40, 3).any(axis=1)
    assert 0 < case.sum() < 40
    assert (whole[case, 0].sum(axis=0) == case.sum()).all()
    assert (whole[~case, 0].sum(axis=0) == (~case).sum()).all()


def test_the_seed_decides() -> None:
    patients, times, observed, risks = cohort(50, 1, 2)
    pairs = risk_comparisons(times, observed, risks, np.ones(5))
    one, same, other = (bootstrap(pairs, patients, observed, 30, seed)["c_index"] for seed in (7, 7, 8))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_limits_of_copied_samples_are_as_wide_as_those_of_patients() -> None:
    """Four copies of every sample are no new knowledge: drawing samples instead of patients halves the interval."""
    patients, times, observed, risks = cohort(100, 1, 4)

    def width(copies: int, clustered: bool) -> float:
        t, e, r = (np.repeat(column, copies, axis=0) for column in (times, observed, risks))
        who = np.repeat(patients, copies) if clustered else np.arange(len(t)).astype(str)
        summary = percentile_summary(bootstrap(risk_comparisons(t, e, r, np.ones(5)), who, e, 1000, 0)["c_index"])
        return float(summary["high"] or 0) - float(summary["low"] or 0)

    single = width(1, clustered=True)
    assert width(4, clustered=True) == pytest.approx(single, rel=1e-9)
    assert width(4, clustered=False) == pytest.approx(single / 2, rel=0.15)


def test_limits_cover_the_truth() -> None:
    """About 95 of 100 intervals hold the value of the population (here 0.5: risks say nothing)."""
    covered = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        patients, times, observed, _ = cohort(80, 1, seed)
        pairs = {"c_index": risk_comparisons(times, observed, rng.random((80, 5)), np.ones(5))["c_index"]}
        summary = percentile_summary(bootstrap(pairs, patients, observed, 200, seed)["c_index"])
        covered += float(summary["low"] or 0) <= 0.5 <= float(summary["high"] or 0)
    assert 86 <= covered <= 100


def test_replicates_without_a_value_are_left_out_and_counted() -> None:
    summary = percentile_summary(np.array([np.nan, 0.4, 0.6, np.nan]))
    assert summary == {"mean": 0.5, "low": pytest.approx(0.405), "high": pytest.approx(0.595), "valid": 2}
    assert percentile_summary(np.full(3, np.nan)) == {"mean": None, "low": None, "high": None, "valid": 0}
    # One early case only: replicates without her have no AUC of the first year.
    times, observed = np.array([0, 2, 3, 3, *[4] * 16]), np.array([1, 1, 1, 1, *[0] * 16])
    risks = np.random.default_rng(0).random((20, 5))
    scores = bootstrap(risk_comparisons(times, observed, risks, np.ones(5)), np.arange(20), observed, 300, 0)
    missing = np.isnan(scores["auc_year_1"]).mean()
    assert missing == pytest.approx(0.75**4, abs=0.08)
    assert not np.isnan(scores["auc_year_5"]).any()


def test_blocks_bound_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    patients, times, observed, risks = cohort(50, 1, 5)
    monkeypatch.setattr(module, "BLOCK", 350)
    blocks = list(replicate_counts(patients, observed, 30, 0))
    assert [block.shape for block in blocks] == [(50, 7)] * 4 + [(50, 2)]
    scores = bootstrap(risk_comparisons(times, observed, risks, np.ones(5)), patients, observed, 30, 0)
    assert scores["c_index"].shape == (30,)


def test_two_thousand_replicates_are_quick() -> None:
    patients, times, observed, risks = cohort(400, 1, 6)
    start = time.process_time()
    scores = bootstrap(risk_comparisons(times, observed, risks, np.ones(5)), patients, observed, 2000, 0)
    assert len(scores) == 7 and len(scores["c_index"]) == 2000
    assert time.process_time() - start < 3
