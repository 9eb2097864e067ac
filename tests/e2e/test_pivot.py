"""The demo of `pivot` through the command line: held-out nodules are found, at their place and in their size."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

TINY = """
[data]
batch_size = {batch}
[computational]
device = "cpu"
[optimization]
num_epochs = 2
[plugins.pivot.sampling]
patch_size = [16, 16, 16]
patches_per_volume = 2
[plugins.pivot.model]
base_filters = 2
depth = 2
output_stride = 2
norm = "group"
[plugins.pivot.inference]
window = [32, 48, 48]
[plugins.pivot.evaluation]
loss_patches = 2
"""


@pytest.mark.acceptance
def test_two_processes_train_and_evaluate_as_one_does(medtrain: Any, tmp_path: Path) -> None:
    from medtrain_plugins.nodule.synthetic.synth import demo_manifest

    manifest = demo_manifest(tmp_path / "scans", 9, 0, shape=(32, 48, 48), spacing=(2.5, 2.5, 2.5))
    found = []
    for processes in (1, 2):
        config, out = tmp_path / f"{processes}.toml", tmp_path / f"run-{processes}"
        config.write_text(TINY.format(batch=4 // processes))
        medtrain("run", "--plugin", "pivot", "--config", config, "--data", manifest, "--nproc", processes, "--out", out)
        lines = (out / "split-0" / "history.jsonl").read_text().splitlines()
        found.append([json.loads(line) for line in lines])
    for one, two in zip(*found, strict=True):
        for name in ("train/loss", "validation/loss", "validation/detection_dice", "validation/cpm"):
            assert two[name] == pytest.approx(one[name], rel=1e-4), name


@pytest.mark.demos
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_demo_finds_held_out_nodules_within_five_minutes(medtrain: Any, tmp_path: Path, seed: int) -> None:
    out = tmp_path / "run"
    started = time.monotonic()
    medtrain(
        "run", "--plugin", "pivot", "--set", f"pivot.demo_seed={seed}", "--out", out, OMP_NUM_THREADS="2", timeout=1200
    )
    done = medtrain("eval", out, "--group", "test", "--json", OMP_NUM_THREADS="2", timeout=600)
    seconds = time.monotonic() - started
    values = json.loads(done.stdout.strip().splitlines()[-1])["metrics"]
    told = {name: values[name] for name in ("cpm", "untrained_cpm", "centre_error_median", "diameter_error_median")}
    print(f"\nseed {seed}: {told}, {seconds:.0f} s")
    table = pd.read_parquet(out / "split-0" / "evaluation-test" / "predictions.parquet")
    kinds = table["kind"].value_counts()
    assert kinds["nodule"] >= 40 and kinds["scan"] >= 15
    assert values["cpm"] >= 0.6 > 0.3 > values["untrained_cpm"]
    assert values["centre_error_median"] <= 2.0
    assert values["diameter_error_median"] <= 0.25
    assert seconds < 300
    page = (out / "split-0" / "evaluation-test" / "report.html").read_text()
    assert "Before training" in page
