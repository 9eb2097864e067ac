"""The report of a risk model: what its tables say, what its figures draw, and that they can be saved."""

from __future__ import annotations

import io
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from medtrain.protocols.metric import Array, Evaluation
from medtrain_plugins.mammography.evaluation.metrics import RiskMetrics
from medtrain_plugins.mammography.evaluation.plots import calibration_figure, incidence_figure, risk_sections, roc_curve
from survival_values import yearly_auc


def evaluation(n: int = 240, events: float = 0.3, details: bool = True) -> Evaluation:
    rng = np.random.default_rng(0)
    observed = (rng.random(n) < events).astype(np.int64)
    rows: dict[str, Array] = {
        "sample_id": np.array([f"s{i}" for i in range(n)], dtype=object),
        "risk": np.sort(rng.random((n, 5)) * 0.5 + 0.15 * observed[:, None], axis=1).astype(np.float32),
        "event_time": rng.integers(0, 5, n),
        "event_observed": observed,
        "patient_id": np.array([f"p{i // 2}" for i in range(n)], dtype=object),
        "density": rng.integers(1, 5, n),
    }
    metric = RiskMetrics(lambda outputs: outputs, rows["event_time"], observed, replicates=20)
    return Evaluation("test", dict(metric.compute(rows)), rows, details=metric.details(rows, 0) if details else {})


def test_sections_of_a_finished_model() -> None:
    sections = {section.title: section for section in risk_sections(evaluation())}
    assert list(sections) == ["Discrimination", "Calibration and follow-up", "Strata"]
    figures = {stem: figure for section in sections.values() for stem, figure in section.figures.items()}
    assert list(figures) == ["risk_roc", "risk_distribution", "risk_calibration", "risk_groups", "risk_strata"]
    for figure in figures.values():
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=50)
        assert len(png.getvalue()) > 3000
    units = sections["Discrimination"].tables["By unit (value and 95% limits)"]
    assert units.loc["sample", "n"] == 240
    score = evaluation().details["units"]["sample"]["metrics"]["c_index"]
    expected = f"{score['value']:.3f} ({score['low']:.3f} to {score['high']:.3f})"
    assert units.loc["sample", "C-index"] == expected
    assert list(sections["Strata"].tables["Breast density"].index) == ["A", "B", "C", "D"]


def test_sections_during_training_have_no_intervals() -> None:
    plain = evaluation(details=False)
    first, second = risk_sections(plain)
    assert first.tables["All samples"].loc["sample", "C-index"] == f"{plain.metrics['c_index']:.3f}"
    assert set(second.figures) == {"risk_calibration", "risk_groups"}


@pytest.mark.parametrize(("n", "events"), [(40, 0.0), (12, 1.0), (3, 0.5)])
def test_small_and_one_sided_groups_can_be_drawn(n: int, events: float) -> None:
    for section in risk_sections(evaluation(n, events)):
        for figure in section.figures.values():
            figure.savefig(io.BytesIO(), format="png", dpi=30)


def test_nothing_to_draw() -> None:
    assert risk_sections(Evaluation("test", rows={"sample_id": np.array([], dtype=object)})) == []
    broken = evaluation()
    broken.rows["risk"][0, 0] = np.nan
    assert risk_sections(broken) == []


def test_the_roc_curve_encloses_the_auc() -> None:
    rng = np.random.default_rng(1)
    cases, free = rng.random(40).round(1) + 0.2, rng.random(90).round(1)
    x, y = roc_curve(cases, free)
    area = sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in pairwise(zip(x, y, strict=True)))
    risks = np.tile(np.concatenate([cases, free])[:, None], 5)
    observed = np.repeat([1, 0], [40, 90])
    assert area == pytest.approx(yearly_auc(np.where(observed, 0, 4), observed, risks)[0], abs=1e-12)
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)


def test_calibration_points_are_groups_mean_risk_and_incidence() -> None:
    """Complete follow-up, so that the observed incidence is a share one can count."""
    rng = np.random.default_rng(2)
    risk = rng.random((200, 5)).astype(np.float32)
    observed = (rng.random(200) < risk[:, 4]).astype(np.int64)
    rows = {"risk": risk, "event_observed": observed, "event_time": np.full(200, 4)}
    axes = calibration_figure(rows).axes[4]
    (line,) = [line for line in axes.get_lines() if len(line.get_xdata()) == 5 and line.get_linestyle() == "-"]
    groups = np.array_split(np.argsort(risk[:, 4]), 5)
    np.testing.assert_allclose(line.get_xdata(), [risk[group, 4].mean() for group in groups], rtol=1e-5)
    np.testing.assert_allclose(line.get_ydata(), [observed[group].mean() for group in groups], rtol=1e-9)


def test_equal_risks_are_one_group() -> None:
    data = evaluation()
    data.rows["risk"][:] = 0.3
    (line,) = incidence_figure(data.rows).axes[0].get_lines()
    assert line.get_label() == "all (n = 240)"


def test_pyplot_is_not_used() -> None:
    code = "import sys, medtrain_plugins.mammography.evaluation.plots; print('matplotlib.pyplot' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
