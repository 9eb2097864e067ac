"""Concordance indices, yearly AUCs and Kaplan-Meier curves, against the reference and against brute force."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from medtrain.errors import DataError
from medtrain.protocols.metric import Undefined
from medtrain_plugins.mammography.evaluation.survival import (
    Array,
    KaplanMeier,
    c_index_reference,
    c_index_td,
    risk_comparisons,
)
from survival_values import uno_c_index, yearly_auc

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "survival.json").read_text())


def golden_cohort() -> tuple[Array, Array, Array]:
    inputs = GOLDEN["yearly_auc"]["inputs"]
    return tuple(np.array(inputs[name]) for name in ("event_times", "event_observed", "predictions"))


def cohort(n: int, seed: int) -> tuple[Array, Array, Array]:
    """Random times with many ties, about 30% events, risks rounded so that they tie."""
    rng = np.random.default_rng(seed)
    times = rng.choice(5, n, p=[0.1, 0.15, 0.15, 0.2, 0.4])
    observed = (rng.random(n) < 0.3).astype(np.int64)
    risks = np.sort(rng.random((n, 5)) + 0.2 * observed[:, None], axis=1).round(1)
    return times, observed, risks


def brute_force(
    times: Array,
    observed: Array,
    risks: Array,
    weight: Callable[[int, int], float],
    column: Callable[[int, int], int],
    tau: int = 9,
) -> float:
    right = pairs = 0.0
    for i in range(len(times)):
        for j in range(len(times)):
            later = times[i] < times[j] or (times[i] == times[j] and not observed[j])
            if not observed[i] or not later or i == j or times[i] + 1 >= tau:
                continue
            w, y = weight(times[i], times[j]), column(times[i], times[j])
            pairs += w
            right += w * (float(risks[i, y] > risks[j, y]) + 0.5 * float(risks[i, y] == risks[j, y]))
    return right / pairs


@pytest.mark.parametrize("seed", range(5))
def test_c_index_td_is_the_sum_over_pairs(seed: int) -> None:
    times, observed, risks = cohort(60, seed)
    g = np.array([0.95, 0.9, 0.7, 0.6, 0.5])
    expected = brute_force(times, observed, risks, lambda ti, tj: g[tj] ** -2, lambda ti, tj: tj)
    assert c_index_td(times, observed, risks, g) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_unos_c_is_the_sum_over_pairs(seed: int) -> None:
    times, observed, risks = cohort(60, seed)
    g = np.array([0.95, 0.9, 0.7, 0.6, 0.5])
    expected = brute_force(times, observed, risks, lambda ti, tj: g[ti] ** -2, lambda ti, tj: 4, tau=5)
    assert uno_c_index(times, observed, risks, g) == pytest.approx(expected, rel=1e-12)


def test_unos_c_agrees_with_torchsurv() -> None:
    import torch
    from torchsurv.metrics.cindex import ConcordanceIndex
    from torchsurv.stats.ipcw import get_ipcw

    train_times, train_observed, _ = cohort(300, 1)
    times, observed, risks = cohort(200, 2)
    later = torch.tensor(times + 1.0, dtype=torch.float32)
    weights = get_ipcw(torch.tensor(train_observed).bool(), torch.tensor(train_times + 1.0).float(), later)
    event = torch.tensor(observed).bool()
    theirs = ConcordanceIndex()(torch.tensor(risks[:, 4]), event, later, weights, torch.tensor(5.0), instate=False)
    ours = uno_c_index(times, observed, risks, KaplanMeier.of_censoring(train_times, train_observed).survival)
    assert ours == pytest.approx(float(theirs), abs=2e-6)


def test_unos_c_agrees_with_scikit_survival() -> None:
    metrics = pytest.importorskip("sksurv.metrics", reason="scikit-survival is a cross-check only")
    from sksurv.util import Surv

    train_times, train_observed, _ = cohort(300, 1)
    times, observed, risks = cohort(200, 2)
    known, scored = (
        Surv.from_arrays(e.astype(bool), t + 1.0) for t, e in ((train_times, train_observed), (times, observed))
    )
    theirs = metrics.concordance_index_ipcw(known, scored, risks[:, 4], tau=5)[0]
    ours = uno_c_index(times, observed, risks, KaplanMeier.of_censoring(train_times, train_observed).survival)
    assert ours == pytest.approx(theirs, abs=1e-10)


def test_reference_c_index_only_on_request() -> None:
    case = GOLDEN["c_index_uninformative"]
    times, observed = (np.array(case["inputs"][name]) for name in ("event_times", "event_observed"))
    risks = np.tile(case["inputs"]["prediction_row"], (len(times), 1))
    survival = KaplanMeier.fit(times, observed).survival
    reference = c_index_reference(times, observed, risks, survival)
    assert reference == pytest.approx(case["outputs"]["reference_value"], abs=1e-8)
    g = KaplanMeier.of_censoring(times, observed).survival
    assert c_index_td(times, observed, risks, g) == case["outputs"]["correct_value"] == 0.5
    assert uno_c_index(times, observed, risks, g) == 0.5


def test_yearly_auc_of_the_reference() -> None:
    aucs = yearly_auc(*golden_cohort())
    assert aucs == pytest.approx(list(GOLDEN["yearly_auc"]["outputs"]["auc"].values()), abs=1e-8)


def test_yearly_auc_is_scikit_learns_and_torchmetrics() -> None:
    import torch
    from sklearn.metrics import roc_auc_score
    from torchmetrics.functional.classification import binary_auroc

    times, observed, risks = cohort(200, 3)
    for year, auc in enumerate(yearly_auc(times, observed, risks)):
        known = (times >= year) | (observed == 1)
        positive = (observed == 1) & (times <= year)
        assert auc == pytest.approx(roc_auc_score(positive[known], risks[known, year]), abs=1e-12)
        theirs = binary_auroc(torch.tensor(risks[known, year] / 2), torch.tensor(positive[known]).long())
        assert auc == pytest.approx(float(theirs), abs=1e-5)


def test_perfect_and_reversed_risks() -> None:
    times, observed = np.array([0, 1, 2, 4, 4]), np.array([1, 1, 1, 0, 0])
    risks = np.tile(np.array([0.9, 0.7, 0.5, 0.2, 0.1])[:, None], 5)
    g = np.ones(5)
    assert c_index_td(times, observed, risks, g) == uno_c_index(times, observed, risks, g) == 1.0
    assert c_index_td(times, observed, -risks, g) == uno_c_index(times, observed, -risks, g) == 0.0
    assert yearly_auc(times, observed, risks) == [1.0] * 5


def test_the_order_of_samples_changes_nothing() -> None:
    times, observed, risks = cohort(200, 4)
    g = KaplanMeier.of_censoring(times, observed).survival
    mixed = np.random.default_rng(0).permutation(200)
    assert c_index_td(times, observed, risks, g) == pytest.approx(
        c_index_td(times[mixed], observed[mixed], risks[mixed], g), abs=1e-14
    )
    assert yearly_auc(times, observed, risks) == pytest.approx(yearly_auc(times[mixed], observed[mixed], risks[mixed]))


def test_undefined_values_say_why() -> None:
    times, observed, risks = cohort(20, 5)
    never = np.zeros_like(observed)
    for value in (
        c_index_td(times, never, risks, np.ones(5)),
        uno_c_index(times, never, risks, np.ones(5)),
        *yearly_auc(times, never, risks),
    ):
        assert isinstance(value, Undefined) and math.isnan(value) and value.reason == "no comparable pairs"
    lost_early = KaplanMeier.of_censoring(np.array([0, 1, 1]), np.zeros(3, dtype=int)).survival
    assert lost_early.tolist() == pytest.approx([2 / 3, 0, 0, 0, 0])
    value = c_index_td(times, np.ones_like(observed), risks, lost_early)
    assert isinstance(value, Undefined) and "training group" in value.reason


def test_one_woman_has_no_pairs_and_an_empty_set_none_either() -> None:
    assert math.isnan(c_index_td(np.array([1]), np.array([1]), np.ones((1, 5)), np.ones(5)))
    empty = np.zeros(0, dtype=np.int64)
    assert math.isnan(c_index_td(empty, empty, np.zeros((0, 5)), np.ones(5)))


def test_times_outside_the_window_are_refused() -> None:
    with pytest.raises(DataError, match=r"1 event times are outside 0\.\.4 \(first: sample 1 has 5\)"):
        c_index_td(np.array([0, 5]), np.array([1, 0]), np.ones((2, 5)), np.ones(5))
    with pytest.raises(DataError, match="outside"):
        KaplanMeier.of_censoring(np.array([-2]), np.array([1]))


def test_kaplan_meier_and_its_limits_are_lifelines() -> None:
    from lifelines import KaplanMeierFitter

    times, observed, _ = cohort(150, 6)
    curve = KaplanMeier.fit(times, observed)
    theirs = KaplanMeierFitter().fit(times + 1, observed)
    years = np.arange(1, 6)
    np.testing.assert_allclose(curve.survival, theirs.predict(years), rtol=1e-10)
    limits = theirs.confidence_interval_survival_function_.loc[years].to_numpy().T
    np.testing.assert_allclose(np.stack(curve.interval()), limits, rtol=1e-5)


def test_censoring_is_what_happens_before_the_last_year() -> None:
    """Events come before censorings of the same year, and a full follow-up is no censoring."""
    times = np.array([0, 0, 1, 1, 2, 4, 4, 4])
    observed = np.array([1, 0, 0, 1, 0, 0, 0, 1])
    expected = np.cumprod([6 / 7, 4 / 5, 3 / 4, 1, 1])  # at risk: 8 - 1, 6 - 1, 4, 3, 3 - 1
    np.testing.assert_allclose(KaplanMeier.of_censoring(times, observed).survival, expected)


def test_large_cohorts_need_no_matrix_of_pairs() -> None:
    import tracemalloc

    times, observed, risks = cohort(20_000, 7)
    tracemalloc.start()
    names = risk_comparisons(times, observed, risks, np.ones(5))
    value = c_index_td(times, observed, risks, np.ones(5))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert next(iter(names)) == "c_index" and 0.5 < value < 1
    assert peak < 50e6  # a matrix of bytes would take 400e6
