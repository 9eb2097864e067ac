"""The demo of brain images: three folds at once on synthetic heads, and the same with diagnoses that mean nothing."""

from __future__ import annotations

import json
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest

FOLDS = 3


def predictions(run: Path, group: str) -> list[pd.DataFrame]:
    """What every fold said of a group."""
    return [pd.read_parquet(path) for path in sorted(run.glob(f"split-*/evaluation-{group}/predictions.parquet"))]


def balanced_accuracy(table: pd.DataFrame) -> tuple[float, int]:
    """By participant, whose sessions vote with their mean probability; and how many there are."""
    people = table.groupby("participant_id").agg(ill=("label", "first"), said=("probability_2", "mean"))
    hits = (people["said"] >= 0.5) == (people["ill"] == 1)
    return float(hits.groupby(people["ill"]).mean().mean()), len(people)


def when(fold: Path) -> tuple[float, float]:
    """When a fold was started, and when its last epoch was over."""
    started = datetime.fromisoformat((fold / "log.txt").read_text().split()[0])
    return started.timestamp(), (fold / "history.jsonl").stat().st_mtime


def permute(tree: Path, column: str) -> dict[str, str]:
    """Deal a column anew among the participants of a tree, in the tables of sessions too: value by participant."""
    table = pd.read_csv(tree / "participants.tsv", sep="\t", dtype=str)
    people, before = table["participant_id"], table[column]
    table[column] = np.random.default_rng(0).permutation(before)
    table.to_csv(tree / "participants.tsv", sep="\t", index=False)
    for name, value in zip(people, table[column], strict=True):
        path = tree / name / f"{name}_sessions.tsv"
        sessions = pd.read_csv(path, sep="\t", dtype=str)
        sessions.assign(**{column: value}).to_csv(path, sep="\t", index=False)
    assert 0.3 < (table[column] == before).mean() < 0.7
    return dict(zip(people, table[column], strict=True))


@pytest.mark.demos
@pytest.mark.timeout(600)
def test_the_demo_tells_patients_from_controls_in_three_folds_at_once_within_two_minutes(
    medtrain: Any, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    start = time.monotonic()
    medtrain("run", "--plugin", "brain", "--out", run, timeout=280)
    seconds = time.monotonic() - start
    starts, ends = zip(*map(when, run.glob("split-*")), strict=True)
    assert max(starts) < min(ends)

    # Everybody whom the folds held out, once; and the test group, whom no fold knew, by all folds together.
    found = json.loads(medtrain("eval", run, "--group", "validation", "--json").stdout.splitlines()[-1])
    held_out = predictions(run, "validation")
    people = [set(table["participant_id"]) for table in held_out]
    assert len(people) == FOLDS and sum(map(len, people)) == len(set.union(*people)) >= 40
    assert min(fold["balanced_accuracy"] for fold in found["folds"].values()) >= 0.9
    assert found["pooled"]["balanced_accuracy"] >= 0.9
    together = json.loads(medtrain("eval", run, "--json").stdout.splitlines()[-1])
    assert together["group"] == "test" and together["ensemble"]["balanced_accuracy"] >= 0.9
    tested = set(predictions(run, "test")[0]["participant_id"])
    assert len(tested) >= 40 and not tested & set.union(*people)
    assert seconds < 120

    # Saliency and prediction of one of the demo's own images.
    source = next((tmp_path.parent / "cache").rglob("sub-*_T1w.nii.gz"))
    done = medtrain("predict", run, source, "--json")
    row = json.loads(done.stdout.splitlines()[-1])["predictions"][0]
    assert row["predicted"] in ("CN", "AD")
    medtrain("saliency", "brain", run, source, "--out", tmp_path / "maps", "--method", "gradcam")
    image = nibabel.load(next((tmp_path / "maps").glob("*.nii.gz")))
    np.testing.assert_allclose(image.affine, nibabel.load(source).affine)


@pytest.mark.demos
@pytest.mark.timeout(600)
def test_where_diagnoses_are_permuted_the_demo_is_at_chance(medtrain: Any, tmp_path: Path) -> None:
    tree, run = tmp_path / "tree", tmp_path / "run"
    medtrain("data", "synth", "brain", "--out", tree, "--participants", 180)
    permuted = permute(tree, "diagnosis")
    medtrain("run", "--plugin", "brain", "--preset", "demo", "--images", tree, "--out", run, timeout=400)
    medtrain("eval", run, "--group", "validation")
    medtrain("eval", run)
    tested = predictions(run, "test")
    ensemble = tested[0].assign(probability_2=np.mean([table["probability_2"] for table in tested], axis=0))
    for held_out in (pd.concat(predictions(run, "validation")), ensemble):
        told = held_out["participant_id"].map(permuted)
        assert (held_out["label"] == (told == "AD")).all()
        value, people = balanced_accuracy(held_out)
        print(f"balanced accuracy {value:.3f} of {people} participants")
        assert people >= 60
        # Three standard deviations of as many coins as there are participants.
        assert abs(value - 0.5) < 3 * 0.5 / np.sqrt(people)
