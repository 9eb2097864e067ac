"""Synthetic clips: what they are, and that they can be learned, or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from medtrain.errors import UsageError
from medtrain_plugins.sign.data.formats import open_clips
from medtrain_plugins.sign.data.landmarks import present
from medtrain_plugins.sign.data.synth import synthesize


def test_clips_are_as_published_ones(tmp_path: Path) -> None:
    counts = synthesize(tmp_path / "a", [2, 5], 6, seed=1)
    opened = open_clips(tmp_path / "a")
    index = opened.index
    assert counts["clips"] == len(index) == 36 and set(index["sign"]) == {2, 5} and set(index["signer"]) == {1, 2, 3}
    assert index["length"].between(13, 34).all() and index["length"].nunique() > 5
    assert (index["split"] == "test").mean() == pytest.approx(1 / 3)
    assert set(index["normalisation"]) == {"adjusted"} and index["finite"].all()
    lost = np.concatenate([~present(clip.frames, "rh") for clip in opened])
    assert 0.02 < lost.mean() < 0.25


def test_equal_seeds_give_equal_files(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        synthesize(tmp_path / name, [1], 2, seed=seed)
    a, b, c = ((tmp_path / name / "frames.npy").read_bytes() for name in "abc")
    assert a == b != c


def test_paths_are_smooth_and_a_signs_own(tmp_path: Path) -> None:
    synthesize(tmp_path / "raw", [1, 2], 6, missing=0, adjusted=False, dtype="float32")
    opened = open_clips(tmp_path / "raw")
    assert set(opened.index["normalisation"]) == {"raw"}
    wrists = {}
    for clip in opened:
        path = clip.frames[:, 5, :2]
        assert np.abs(np.diff(path, axis=0)).max() < 0.2
        grid = np.linspace(0, 1, 20)
        wrists[clip.sample_id] = np.stack([np.interp(grid, np.linspace(0, 1, len(path)), v) for v in path.T])
    one, other = ([v for k, v in wrists.items() if f"/{sign:04d}/" in k] for sign in (1, 2))
    within = np.mean([np.abs(a - b).mean() for a in one for b in one])
    between = np.mean([np.abs(a - b).mean() for a in one for b in other])
    assert between > 2 * within


def test_without_signal_clips_of_a_sign_are_no_more_alike(tmp_path: Path) -> None:
    synthesize(tmp_path / "none", [1, 2], 8, signal="none", missing=0, adjusted=False)
    means = {1: [], 2: []}  # type: dict[int, list[Any]]
    for clip in open_clips(tmp_path / "none"):
        means[clip.sign].append(clip.frames[:, 4:6, :2].mean(axis=0))
    spread = [np.std(values, axis=0).mean() for values in means.values()]
    gap = np.abs(np.mean(means[1], axis=0) - np.mean(means[2], axis=0)).mean()
    assert gap < min(spread)


@pytest.mark.acceptance
def test_the_command(tmp_path: Path, medtrain: Any) -> None:
    said = medtrain("data", "synth", "karsl", "--out", "clips", "--signs", "1-3", "--clips", 3, "--raw").stdout
    assert "27 clips" in said and "3 signs by 3 signers" in said
    assert set(open_clips(tmp_path / "clips").index["normalisation"]) == {"raw"}
    medtrain("data", "synth", "karsl", "--out", "clips", code=2)
    medtrain("data", "prepare", "karsl", "--source", "clips", "--out", "own", "--adjusted", "--signs", "1-2")
    assert len(open_clips(tmp_path / "own").index) == 18
    with pytest.raises(UsageError, match="too few"):
        synthesize(tmp_path / "few", [1], 1)


def best(medtrain: Any, *arguments: Any) -> Any:
    said = medtrain("run", "--plugin", "karsl", "--out", "demo", "--json", "--quiet", *arguments, timeout=600).stdout
    return json.loads(said.splitlines()[-1])


@pytest.mark.demos
def test_the_demo_learns_and_the_control_does_not(medtrain: Any) -> None:
    result = best(medtrain)
    assert result["best_metric"]["name"] == "top1" and result["best_metric"]["value"] >= 0.9
    assert result["seconds"] < 120
    tested = json.loads(medtrain("eval", "demo", "--json").stdout.splitlines()[-1])["metrics"]
    assert tested["top1"] >= 0.9 and tested["macro_f1"] >= 0.9


@pytest.mark.demos
def test_noise_stays_at_chance(medtrain: Any) -> None:
    best(medtrain, "--set", "karsl.demo_signal=none")
    tested = json.loads(medtrain("eval", "demo", "--json").stdout.splitlines()[-1])["metrics"]
    # 240 clips of 20 signs: 5 % by chance, twice that is more than three standard deviations away.
    assert tested["top1"] < 0.1 and tested["loss"] > 2.5
