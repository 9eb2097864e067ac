"""Platt calibration: known lines are found again, ranks stay, files are strict."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from medtrain.errors import ConfigError, DataError
from medtrain_plugins.mammography.evaluation.survival import KaplanMeier, c_index_td, check_times, year_classes
from medtrain_plugins.mirai.calibration import Calibration, fit, known_outcomes, log_loss
from medtrain_plugins.mirai.model import MiraiModel
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch.testing import assert_close

SLOPE = np.array([3.0, 5.0, 8.0, 4.0, 6.0])
INTERCEPT = np.array([-4.0, -4.0, -5.0, -2.5, -3.0])


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Risks (N, 5), outcomes drawn from the lines above, and what is known of them."""
    rng = np.random.default_rng(0)
    risks = np.sort(rng.uniform(0.05, 0.95, (60_000, 5)), axis=1)
    target = (rng.random(risks.shape) < sigmoid(SLOPE * risks + INTERCEPT)).astype(float)
    return risks, target, (rng.random(risks.shape) < 0.7).astype(float)


def test_known_coefficients_are_found_again(drawn):
    risks, target, known = drawn
    calibration = fit(risks, target, known)
    np.testing.assert_allclose(calibration.slope, SLOPE, atol=0.25)
    np.testing.assert_allclose(calibration.intercept, INTERCEPT, atol=0.2)
    assert calibration.samples == tuple(int(n) for n in known.sum(axis=0))
    assert calibration.cases == tuple(int(n) for n in (target * known).sum(axis=0))
    mean = (calibration.apply(risks) * known).sum(axis=0) / known.sum(axis=0)
    np.testing.assert_allclose(mean, (target * known).sum(axis=0) / known.sum(axis=0), atol=1e-3)


def test_the_fit_is_that_of_an_independent_logistic_regression(drawn):
    risks, target, known = (values[:400] for values in drawn)
    calibration = fit(risks, target, known)
    for year in range(5):
        where = known[:, year] > 0
        p, cancer = risks[where, year], target[where, year] > 0
        cases, others = cancer.sum(), (~cancer).sum()
        soft = np.where(cancer, (cases + 1) / (cases + 2), 1 / (others + 2))
        model = LogisticRegression(C=1e12, tol=1e-10, max_iter=10_000)
        both = np.concatenate([p, p])[:, None]
        model.fit(both, np.repeat([1, 0], len(p)), sample_weight=np.concatenate([soft, 1 - soft]))
        assert calibration.slope[year] == pytest.approx(model.coef_[0, 0], rel=1e-3)
        assert calibration.intercept[year] == pytest.approx(model.intercept_[0], rel=1e-3)
        expected = model.predict_proba([[0.3]])[0, 1]
        assert calibration.apply(np.full((1, 5), 0.3))[0, year] == pytest.approx(expected, rel=1e-3)


def test_the_fit_improves_the_likelihood(drawn):
    risks, target, known = (values[:2000] for values in drawn)
    calibration = fit(risks, target, known)
    later = [values[2000:10_000] for values in drawn]
    assert (log_loss(calibration.apply(risks), target, known) < log_loss(risks, target, known)).all()
    assert (log_loss(calibration.apply(later[0]), *later[1:]) < log_loss(*later)).all()


def test_what_is_not_known_does_not_count(drawn):
    risks, target, known = (values[:500].copy() for values in drawn)
    before = fit(risks, target, known)
    target[known == 0] = 1 - target[known == 0]
    risks[known == 0] = 0.99
    assert fit(risks, target, known) == before


def survival(seed: int, n: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Risks (N, 5) that mean something, event times and whether they were observed (N,)."""
    rng = np.random.default_rng(seed)
    hazard = rng.uniform(0, 0.3, n)
    risks = 1 - (1 - hazard[:, None]) ** np.arange(1, 6)
    event, lost = rng.geometric(hazard) - 1, rng.integers(0, 10, n)
    return risks.astype(np.float32), np.minimum(np.minimum(event, lost), 4), (event <= np.minimum(lost, 4)).astype(int)


def yearly_auc(event_times, event_observed, risks):
    times, observed = check_times(event_times, event_observed)
    by_year = [year_classes(times, observed, year) for year in range(risks.shape[1])]
    return [roc_auc_score(cases[cases | free], risks[cases | free, y]) for y, (cases, free) in enumerate(by_year)]


def test_auc_and_c_index_of_a_year_stay():
    risks, times, observed = survival(0)
    calibrated = fit(risks, *known_outcomes(times, observed)).apply(risks)
    assert not np.allclose(calibrated, risks, atol=0.01)
    censoring = KaplanMeier.of_censoring(times, observed).survival
    assert yearly_auc(times, observed, calibrated) == pytest.approx(yearly_auc(times, observed, risks), abs=1e-12)
    assert c_index_td(times, observed, calibrated, censoring) == pytest.approx(
        c_index_td(times, observed, risks, censoring), abs=1e-12
    )


def test_a_case_stays_known_after_her_cancer():
    target, known = known_outcomes([1, 1, 4], [1, 0, 0])
    assert target.tolist() == [[0, 1, 1, 1, 1], [0] * 5, [0] * 5]
    assert known.tolist() == [[1] * 5, [1, 1, 0, 0, 0], [1] * 5]


def test_perfect_separation_has_a_finite_line():
    risks = np.repeat(np.linspace(0.1, 0.9, 40)[:, None], 5, axis=1)
    calibration = fit(risks, risks > 0.5, np.ones_like(risks))
    found = calibration.apply(risks)
    assert np.isfinite(calibration.slope).all()
    assert 0 < found.min() < 0.1 < 0.9 < found.max() < 1


def test_what_cannot_be_calibrated_is_named():
    risks, times, observed = survival(1)
    target, known = known_outcomes(times, observed)
    with pytest.raises(DataError, match=r"year 1 cannot be calibrated: of .* 0 are cases"):
        fit(risks, np.zeros_like(target), known)
    constant = risks.copy()
    constant[:, 2] = 0.25
    with pytest.raises(DataError, match=r"year 3 cannot be calibrated: all .* the risk 0\.25"):
        fit(constant, target, known)
    with pytest.raises(DataError, match="a higher risk does not go with more cancers"):
        fit(1 - risks, target, known)
    with pytest.raises(DataError, match="not finite"):
        fit(np.full_like(risks, np.nan), target, known)


def test_the_file_is_strict(tmp_path):
    risks, times, observed = survival(2)
    calibration = fit(risks, *known_outcomes(times, observed))
    path = tmp_path / "calibration.json"
    calibration.write(path)
    assert Calibration.read(path) == calibration
    values = json.loads(path.read_text())
    assert values["format"] == "medtrain-platt" and values["version"] == 1 and values["plugin"] == "mirai"

    def refused(text: str, match: str) -> None:
        path.write_text(text)
        with pytest.raises(ConfigError, match=match):
            Calibration.read(path)

    refused("{", "not valid JSON")
    refused(json.dumps(values | {"version": 2}), "version")
    refused(json.dumps(values | {"slope": values["slope"][:4]}), "slope")
    refused(json.dumps(values | {"slope": [-1.0, *values["slope"][1:]]}), r"slope\.0")
    refused(json.dumps(values | {"intercept": [float("nan")] * 5}), "intercept")
    refused(json.dumps(values | {"surplus": 1}), "surplus")
    refused("[1]", "not a calibration")
    with pytest.raises(ConfigError, match="cannot be read"):
        Calibration.read(tmp_path / "none.json")


def test_the_model_scores_by_it():
    calibration = Calibration(slope=SLOPE, intercept=INTERCEPT, samples=(9,) * 5, cases=(3,) * 5)
    torch.manual_seed(0)
    plain = MiraiModel().eval()
    calibrated = MiraiModel(calibration=calibration).eval()
    calibrated.load_state_dict(plain.state_dict())  # the same entries: the lines are no weights
    batch = {
        "images": torch.rand(3, 4, 1, 32, 32),
        "time_seq": torch.zeros(3, 4, dtype=torch.int64),
        "view_seq": torch.tensor([[0, 1, 0, 1]] * 3),
        "side_seq": torch.tensor([[1, 1, 0, 0]] * 3),
    }
    with torch.no_grad():
        before, outputs = plain(batch), calibrated(batch)
    assert torch.equal(outputs["logit"], before["logit"])
    expected = calibration.apply(MiraiModel.primary_risk(before).numpy())
    assert_close(MiraiModel.primary_risk(outputs), torch.from_numpy(expected).float())
