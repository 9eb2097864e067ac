from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from brain_runs import SIZE, recorded, trained
from medtrain.errors import ConfigError, DataError
from medtrain.testing import check_plugin
from medtrain_plugins.brain.synth import synthesize


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bids") / "tree"
    synthesize(folder, 24, sessions=2, sites=2, size=SIZE, variant="trivial")
    return folder


def test_the_plugin_conforms() -> None:
    failed = [finding for finding in check_plugin("brain") if not finding.ok]
    assert not failed


def test_a_classifier_learns_is_evaluated_by_image_and_predicts(tree: Path, tmp_path: Path) -> None:
    trainer = trained(tmp_path / "run", tree, epochs=15, classes=["CN", "AD"])
    assert recorded(trainer).input_shape == [1, SIZE, SIZE, SIZE]
    result = trainer.evaluate("test")
    assert result.metrics["balanced_accuracy"] >= 0.9
    assert {"participant_id", "session_id", "label", "probability"} <= set(result.rows)
    folder = trainer.report(tmp_path / "report")
    assert {"brain_roc.png", "brain_confusion.png", "brain_calibration.png"} <= {p.name for p in folder.glob("plots/*")}

    table = trainer.predict(tree)
    assert len(table) == 48
    rows = {f"{p}_{s}": i for i, (p, s) in enumerate(zip(table["participant_id"], table["session_id"], strict=True))}
    said = table["probability_AD"].to_numpy()
    evaluated = result.rows["probability"][:, 1]
    np.testing.assert_allclose([said[rows[str(name)]] for name in result.rows["sample_id"]], evaluated, rtol=1e-4)
    one = trainer.predict(next(tree.glob("sub-*/ses-M000/anat/*T1w.nii.gz")))
    assert one["predicted"][0] in ("CN", "AD")
    assert one[["probability_CN", "probability_AD"]].sum(axis=1)[0] == pytest.approx(1)


def test_a_regression_answers_in_years(tree: Path, tmp_path: Path) -> None:
    trainer = trained(tmp_path / "run", tree, task="regression", label="age")
    # In the unit that the training group has, and no other.
    known = trainer.evaluate("train", details=False).rows["label"]
    assert recorded(trainer).label_scale == pytest.approx([known.mean(), known.std()], rel=1e-5)
    result = trainer.evaluate("test")
    assert result.metrics["mae"] < 20
    assert set(result.details["intervals"]) >= {"mae", "rmse"}
    assert "brain_scatter.png" in {path.name for path in trainer.report(tmp_path / "report").glob("plots/*")}
    assert 40 < trainer.predict(tree)["prediction"].mean() < 100


def test_mistakes_are_told_before_anything_is_written(tree: Path, tmp_path: Path) -> None:
    for options, error, said in (
        ({"network": "DenseNet12"}, ConfigError, "did you mean"),
        ({"label": "diagnose"}, DataError, "diagnos"),
        ({"class_weights": [1.0, 2.0, 3.0]}, ConfigError, "2 classes"),
    ):
        with pytest.raises(error, match=said):
            trained(tmp_path / "run", tree, **options)
        assert not (tmp_path / "run").exists()


def test_an_image_that_does_not_fit_is_named(tree: Path, tmp_path: Path) -> None:
    trainer = trained(tmp_path / "run", tree)
    nibabel.save(nibabel.Nifti1Image(np.zeros((40, 9, 9), dtype=np.float32), np.eye(4)), tmp_path / "odd.nii")
    with pytest.raises(DataError, match=r"odd\.nii.*does not fit"):
        trainer.predict(tmp_path / "odd.nii")
    assert torch.is_grad_enabled()
