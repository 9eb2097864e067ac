"""Calibration of scores: the best values, their file, and what cannot be calibrated."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from evaluation_cases import GOLDEN
from medtrain.errors import ConfigError, DataError
from medtrain_plugins.common.calibration import log_loss, logit, sigmoid
from medtrain_plugins.nodule.inference.calibration import Calibration, fit

METHODS = ("temperature", "platt", "isotonic")


def detections(count: int = 4000, slope: float = 0.5, intercept: float = -1.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are too sure of themselves by 1 / slope, and shifted."""
    random = np.random.default_rng(0)
    logits = random.normal(0, 3, count)
    return logits, (random.random(count) < sigmoid(slope * logits + intercept)).astype(float)


def test_the_best_temperature() -> None:
    case = GOLDEN["calibration.temperature"]
    found = fit(case["inputs"]["logits"], case["inputs"]["labels"], "temperature")
    assert found.temperature == pytest.approx(case["corrected_expected"], abs=1e-5)
    assert found.temperature == pytest.approx(case["expected"], abs=0.01)  # where the search of another stopped early
    assert found.intercept == 0 and (found.samples, found.positives) == (12, 6)


def test_platt_finds_slope_and_intercept() -> None:
    logits, labels = detections()
    found = fit(logits, labels, "platt")
    assert found.slope == pytest.approx(0.5, abs=0.04) and found.intercept == pytest.approx(-1.0, abs=0.1)
    best = log_loss(found.slope * logits + found.intercept, labels)
    for slope, intercept in ((1.02, 0), (0.98, 0), (1, 0.05), (1, -0.05)):
        assert best < log_loss(slope * found.slope * logits + found.intercept + intercept, labels)
    assert best < log_loss(fit(logits, labels, "temperature").slope * logits, labels) < log_loss(logits, labels)


def test_isotonic_is_the_best_rising_step_function() -> None:
    found = fit([1.0, 2.0, 3.0, 3.0, 4.0, 5.0], [0, 1, 0, 0, 1, 1], "isotonic")
    assert found.apply([0.0, 1.0, 2.0, 3.0, 4.0, 9.0]) == pytest.approx([0, 0, 1 / 3, 1 / 3, 1, 1])
    assert found.apply(3.5) == pytest.approx(2 / 3)
    from sklearn.isotonic import IsotonicRegression

    logits, labels = detections(500)
    other = IsotonicRegression(out_of_bounds="clip").fit(logits, labels)
    at = np.linspace(-12, 12, 1001)
    assert fit(logits, labels, "isotonic").apply(at) == pytest.approx(other.predict(at), abs=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_the_file_says_it_all(tmp_path: Path, method: str) -> None:
    logits, labels = detections(300)
    found = fit(logits, labels, method)  # type: ignore[arg-type]
    found.write(tmp_path / "calibration.json")
    again = Calibration.read(tmp_path / "calibration.json")
    assert again == found and (again.apply(logits) == found.apply(logits)).all()
    assert (np.diff(found.apply(np.sort(logits))) >= 0).all()
    assert found.apply_to_probabilities(sigmoid(logits)) == pytest.approx(found.apply(logits), abs=1e-6)
    assert found.apply(logits.reshape(3, 100)).shape == (3, 100)
    told = json.loads((tmp_path / "calibration.json").read_text())
    assert told["format"] == "medtrain-score-calibration" and told["version"] == 1 and told["method"] == method


@pytest.mark.parametrize("method", METHODS)
def test_perfect_scores_stay_finite(method: str) -> None:
    found = fit([-3.0, -2.0, 2.0, 3.0], [0, 0, 1, 1], method)  # type: ignore[arg-type]
    assert np.isfinite(found.apply([-1000.0, 0.0, 1000.0])).all()


@pytest.mark.parametrize(
    ("logits", "labels", "method", "said"),
    [
        ([0.1, 0.2], [1, 1], "platt", "2 of 2 detections are nodules"),
        ([2.0, 1.0, -1.0, -2.0], [0, 0, 1, 1], "platt", "a higher score does not go with more nodules"),
        ([0.1, np.inf], [0, 1], "temperature", "finite scores"),
        ([0.1, 0.3], [0, 0.5], "isotonic", "outcomes of 0 or 1"),
        ([0.1], [0, 1], "platt", "1 scores for 2 outcomes"),
    ],
)
def test_what_cannot_be_calibrated(logits: list[float], labels: list[float], method: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        fit(logits, labels, method)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"method": "platt", "slope": -1}',
        '{"method": "platt", "slope": NaN}',
        '{"method": "isotonic"}',
        '{"method": "isotonic", "logits": [1, 0], "probabilities": [0, 1]}',
        '{"method": "platt", "extra": 1}',
    ],
)
def test_files_that_are_no_calibration(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(ConfigError, match=r"c\.json: not a calibration"):
        Calibration.read(tmp_path / "c.json")
    with pytest.raises(ConfigError, match="cannot be read"):
        Calibration.read(tmp_path / "missing.json")


def test_logits_of_probabilities() -> None:
    assert sigmoid(logit([0.25, 0.5])) == pytest.approx([0.25, 0.5]) and np.isfinite(logit([0.0, 1.0])).all()
