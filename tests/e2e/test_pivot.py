"""The demo of `pivot` through the command line: held-out nodules are found, at their place and in their size."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

pytestmark = [pytest.mark.demos, pytest.mark.timeout(1800)]


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
