from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest

FOLDS = 3


def folds_of(run: Path) -> list[pd.DataFrame]:
    """The validation predictions of every fold."""
    return [pd.read_parquet(path) for path in sorted(run.glob("split-*/evaluation-validation/predictions.parquet"))]


def train(medtrain: Any, out: Path, *arguments: str) -> list[pd.DataFrame]:
    medtrain("run", "--plugin", "brain", "--out", out, *arguments, timeout=280)
    for fold in range(FOLDS):
        medtrain("eval", out, "--group", "validation", "--split", fold)
    return folds_of(out)


def balanced_accuracy(tables: list[pd.DataFrame]) -> float:
    table = pd.concat(tables)
    said = table["probability_2"] >= 0.5
    return float(np.mean([(said == bool(k))[table["label"] == k].mean() for k in (0, 1)]))


@pytest.mark.demos
@pytest.mark.timeout(600)
def test_the_demo_tells_patients_from_controls_in_every_fold_within_two_minutes(medtrain: Any, tmp_path: Path) -> None:
    start = time.monotonic()
    medtrain("run", "--plugin", "brain", "--out", tmp_path / "run", timeout=280)
    seconds = time.monotonic() - start
    for fold in range(FOLDS):
        medtrain("eval", tmp_path / "run", "--group", "validation", "--split", fold)
    tables = folds_of(tmp_path / "run")
    assert len(tables) == FOLDS
    participants = [set(table["participant_id"]) for table in tables]
    assert sum(map(len, participants)) == len(set.union(*participants)) >= 40
    assert balanced_accuracy(tables) >= 0.9
    assert seconds < 120

    # Saliency and prediction of one of the demo's own images.
    source = next((tmp_path.parent / "cache").rglob("sub-*_T1w.nii.gz"))
    done = medtrain("predict", tmp_path / "run", source, "--json")
    row = json.loads(done.stdout.splitlines()[-1])["predictions"][0]
    assert row["predicted"] in ("CN", "AD")
    medtrain("saliency", "brain", tmp_path / "run", source, "--out", tmp_path / "maps", "--method", "gradcam")
    found = nibabel.load(next((tmp_path / "maps").glob("*.nii.gz")))
    np.testing.assert_allclose(found.affine, nibabel.load(source).affine)


@pytest.mark.demos
@pytest.mark.timeout(600)
def test_without_a_signal_the_demo_is_at_chance(medtrain: Any, tmp_path: Path) -> None:
    tables = train(medtrain, tmp_path / "run", "--set", "brain.demo_signal=none", "--set", "optimization.num_epochs=3")
    images = sum(map(len, tables))
    assert images >= 80
    # Two standard deviations of a coin, with two sessions of a participant counted as one.
    assert abs(balanced_accuracy(tables) - 0.5) < 2 * 0.5 / np.sqrt(images / 2) + 0.05
