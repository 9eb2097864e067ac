"""The embedded demo learns what is there, and nothing where there is nothing. Prints a table; `nox -s demos`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from cohorts import permute_labels

pytestmark = [pytest.mark.demos, pytest.mark.timeout(1200)]


def last_line(output: str) -> Any:
    return json.loads(output.strip().splitlines()[-1])


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("kind", ["lesion", "permuted", "no-lesion"])
def test_c_index_of_the_held_out_women(medtrain: Any, tmp_path: Path, seed: int, kind: str) -> None:
    cohort = tmp_path / "cohort"
    lesion = "--no-lesion" if kind == "no-lesion" else "--lesion"
    medtrain("data", "synth", "mammography", "--seed", seed, "--out", cohort, lesion)
    if kind == "permuted":
        permute_labels(cohort, seed)
    options = ["--plugin", "lmv_net", "--preset", "demo", "--data", cohort, "--out", "run", "--json"]
    started = time.monotonic()
    medtrain("run", *options, OMP_NUM_THREADS="2", timeout=900)
    seconds = time.monotonic() - started
    evaluation = last_line(medtrain("eval", "run", "--json", OMP_NUM_THREADS="2", timeout=300).stdout)
    metrics = json.loads((tmp_path / "run" / "split-0" / "evaluation-test" / "metrics.json").read_text())
    events = metrics["details"]["units"]["sample"]["events"]
    c_index = evaluation["metrics"]["c_index"]
    low, high = evaluation["intervals"]["c_index"]
    print(f"\nseed {seed} {kind:9} C-index {c_index:.3f} ({low:.3f} to {high:.3f}), {events} events, {seconds:.0f} s")
    if kind != "permuted":
        assert events >= 40
    if kind == "lesion":
        assert c_index >= 0.70
    else:
        assert c_index <= 0.58


def test_without_data_the_demo_is_trained(medtrain: Any, tmp_path: Path) -> None:
    started = time.monotonic()
    result = medtrain("run", "--plugin", "lmv_net", "--out", "run", OMP_NUM_THREADS="2", timeout=900)
    seconds = time.monotonic() - started
    print(f"\n{result.stdout}\n{seconds:.0f} s")
    assert result.stdout.startswith("No data given: training the embedded demo")
    for told in ("c_index", "auc_year_5", "Run directory", "medtrain eval run --group test"):
        assert told in result.stdout
    assert (tmp_path / "run" / "split-0" / "best-c_index" / "model.safetensors").is_file()
