"""Limits, p-values and AUC tests against brute force, hand numbers, scipy and what they promise over simulations."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from medtrain.statistics import bootstrap_p_value, delong, percentile_interval, resampled_clusters
from scipy.stats import binomtest, kstest, mannwhitneyu, norm


def by_definition(scores: Any, positive: Any) -> tuple[Any, Any]:
    """AUCs and their covariance from every single pair (DeLong et al. 1988, equations 2 to 6)."""
    cases, free = scores[:, positive], scores[:, ~positive]
    wins = (cases[:, :, None] > free[:, None, :]) + 0.5 * (cases[:, :, None] == free[:, None, :])
    return wins.mean(axis=(1, 2)), np.cov(wins.mean(axis=2)) / cases.shape[1] + np.cov(wins.mean(axis=1)) / free.shape[
        1
    ]


@pytest.mark.parametrize("digits", [1, 9])
def test_delong_is_what_all_pairs_give(digits: int) -> None:
    rng = np.random.default_rng(0)
    positive = rng.random(90) < 0.3
    scores = (rng.normal(size=(4, 90)) + np.array([[0], [0.5], [1], [2]]) * positive).round(digits)
    found = delong(scores, positive)
    auc, covariance = by_definition(scores, positive)
    np.testing.assert_allclose(found.auc, auc, rtol=1e-13)
    np.testing.assert_allclose(found.covariance, covariance, rtol=1e-11)
    for score, value in zip(scores, found.auc, strict=True):
        u = mannwhitneyu(score[positive], score[~positive]).statistic
        assert value == pytest.approx(u / positive.sum() / (~positive).sum(), abs=1e-14)
    test = found.test(3, 1)
    error = math.sqrt(covariance[3, 3] + covariance[1, 1] - 2 * covariance[3, 1])
    assert test.difference == pytest.approx(auc[3] - auc[1]) and test.standard_error == pytest.approx(error)
    assert test.p == pytest.approx(2 * norm.sf(abs(test.z)), rel=1e-10) and test.z == pytest.approx(
        test.difference / error
    )
    back = found.test(1, 3)
    assert (back.z, back.p) == (pytest.approx(-test.z), pytest.approx(test.p))


def test_delong_by_hand() -> None:
    """Cases 3, 1 against 2, 0: three of four pairs are right; placements 1, 1/2 of the cases, 1/2, 1 of the others."""
    found = delong(np.array([[3.0, 1.0, 2.0, 0.0]]), np.array([1, 1, 0, 0]))
    assert found.auc[0] == 0.75
    assert found.covariance[0, 0] == pytest.approx(0.125 / 2 + 0.125 / 2)


def test_copies_of_samples_are_no_new_knowledge() -> None:
    """Each patient four times: with her as a cluster the test stays what it was, without it is far too sure."""
    rng = np.random.default_rng(1)
    positive = rng.random(60) < 0.4
    scores = rng.normal(size=(2, 60)) + np.array([[0.3], [1.0]]) * positive
    once = delong(scores, positive).test(0, 1)
    patients = np.repeat(np.arange(60), 4)
    copies, truth = np.repeat(scores, 4, axis=1), np.repeat(positive, 4)
    clustered = delong(copies, truth, patients).test(0, 1)
    assert clustered.z == pytest.approx(once.z, rel=1e-9) and clustered.p == pytest.approx(once.p, rel=1e-9)
    assert abs(delong(copies, truth).test(0, 1).z) > 1.9 * abs(once.z)


def test_clusters_with_both_kinds_of_samples() -> None:
    """The sum over clusters, term by term as Obuchowski (1997) writes it."""
    rng = np.random.default_rng(2)
    cluster, positive = rng.integers(0, 15, 80), rng.random(80) < 0.5
    scores = rng.normal(size=(1, 80)).round(1) + 0.5 * positive
    wins = (scores[0, positive][:, None] > scores[0, ~positive]) + 0.5 * (
        scores[0, positive][:, None] == scores[0, ~positive]
    )
    m, n, auc = positive.sum(), (~positive).sum(), wins.mean()
    x = np.array([(wins.mean(axis=1) - auc)[cluster[positive] == c].sum() for c in range(15)])
    y = np.array([(wins.mean(axis=0) - auc)[cluster[~positive] == c].sum() for c in range(15)])
    i10, i01 = len(set(cluster[positive])), len(set(cluster[~positive]))
    s10, s01 = i10 / ((i10 - 1) * m) * (x * x).sum(), i01 / ((i01 - 1) * n) * (y * y).sum()
    s11 = 15 / 14 * (x * y).sum()
    found = delong(scores, positive, cluster).covariance[0, 0]
    assert found == pytest.approx(s10 / m + s01 / n + 2 * s11 / (m * n), rel=1e-12)


def test_equal_rankings_cannot_be_told_apart_and_good_from_bad_can() -> None:
    rng = np.random.default_rng(3)
    positive = np.arange(400) < 150
    strong, coin = rng.normal(size=400) + 2 * positive, rng.random(400)
    tested = delong(np.array([strong, np.exp(strong), coin]), positive)
    alike = tested.test(0, 1)
    assert alike.difference == 0 and math.isnan(alike.p) and alike.reason == "both tell the classes apart alike"
    assert tested.test(0, 2).p < 1e-12 and tested.test(2, 0).z < -7
    sure = delong(np.array([positive, 1 - positive]), positive).test(0, 1)
    assert sure.difference == 1 and math.isnan(sure.p) and "no variance" in sure.reason


@pytest.mark.parametrize(("positives", "reason"), [(0, "positive"), (1, "positive"), (9, "negative"), (10, "negative")])
def test_too_few_of_a_class_is_no_error(positives: int, reason: str) -> None:
    tested = delong(np.random.default_rng(0).random((2, 10)), np.arange(10) < positives)
    assert tested.test(0, 1).reason == f"fewer than two {reason} samples" and math.isnan(tested.test(0, 1).p)
    assert math.isnan(tested.auc[0]) == (positives in (0, 10))
    assert np.isnan(tested.covariance).all()


@pytest.mark.parametrize("clustered", [False, True])
def test_p_values_are_uniform_when_there_is_no_difference(clustered: bool) -> None:
    """Two equally good, correlated scores, 300 times over."""
    p_values = []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        patients = np.repeat(np.arange(150), 2 if clustered else 1)
        positive = (rng.random(150) < 0.4)[patients]
        shared = rng.normal(size=150)[patients] + positive
        own = rng.normal(size=(2, 150))[:, patients] + 0.3 * rng.normal(size=(2, len(patients)))
        tested = delong(shared + own, positive, patients if clustered else None)
        p_values.append(tested.test(0, 1).p)
    assert kstest(p_values, "uniform").pvalue > 0.01
    assert binomtest(int((np.array(p_values) < 0.05).sum()), 300, 0.05).pvalue > 0.01


def test_delong_is_quick() -> None:
    import time

    rng = np.random.default_rng(4)
    start = time.process_time()
    delong(rng.random((5, 50_000)), rng.random(50_000) < 0.1, rng.integers(0, 9000, 50_000)).test(0, 1)
    assert time.process_time() - start < 1.5


def test_bootstrap_p_values_by_hand() -> None:
    assert bootstrap_p_value(np.array([1.0] * 98 + [-1.0])) == pytest.approx(2 * 2 / 100)
    assert bootstrap_p_value(np.array([1.0] * 99)) == pytest.approx(2 / 100)  # never zero
    assert bootstrap_p_value(np.array([0.0] * 50)) == 1.0
    assert bootstrap_p_value(np.array([1.0] * 99 + [math.nan] * 50)) == pytest.approx(2 / 100)
    assert math.isnan(bootstrap_p_value(np.array([math.nan]))) and math.isnan(bootstrap_p_value(np.empty(0)))


def test_percentile_limits_leave_out_what_is_undefined() -> None:
    low, high, valid = percentile_interval(np.array([*np.arange(101.0), math.nan]))
    assert (low, high, valid) == (pytest.approx(2.5), pytest.approx(97.5), 101)
    assert math.isnan(percentile_interval(np.array([math.nan])).low)


def test_clusters_are_drawn_whole() -> None:
    clusters = np.array(["b", "a", "b", "c", "a", "b"])
    sizes = {"a": 2, "b": 3, "c": 1}
    drawn = list(resampled_clusters(clusters, 400, seed=5))
    for indices in drawn:
        copies = {name: [(indices == i).sum() for i in np.flatnonzero(clusters == name)] for name in sizes}
        assert all(len(set(many)) == 1 for many in copies.values())
        assert sum(many[0] for many in copies.values()) == 3
    assert np.mean([(indices == 3).sum() for indices in drawn]) == pytest.approx(1, abs=0.15)
    again = list(resampled_clusters(clusters, 400, seed=5))
    assert all((a == b).all() for a, b in zip(drawn, again, strict=True))
