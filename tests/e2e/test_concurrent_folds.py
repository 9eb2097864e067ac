"""Folds of one run on the command line: trained at once, interrupted, gone on with, evaluated, compared."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.acceptance
TOY = "medtrain.testing:ToyTask"
FOLDS = ("--set", "data.num_folds=3", "--set", "run.concurrent_splits=3")


def last_line(output: str) -> Any:
    return json.loads(output.strip().splitlines()[-1])


def test_three_folds_at_once(medtrain: Any, tmp_path: Path) -> None:
    asked = ["run", "--plugin", TOY, *FOLDS, "--epochs", "2", "--json"]
    told = last_line(medtrain(*asked, "--out", "run").stdout)
    assert told["status"] == "completed" and [split["status"] for split in told["splits"]] == ["completed"] * 3
    values = [split["best"]["value"] for split in told["splits"]]
    assert abs(told["best_metric"]["value"] - sum(values) / 3) < 1e-9
    starts = [json.loads((tmp_path / "run" / f"split-{i}" / "split.json").read_text())["groups"] for i in range(3)]
    assert len({tuple(groups["validation"]["samples"]) for groups in starts}) == 3
    assert "already holds a run whose 3 splits are complete" in medtrain(*asked, "--out", "run", code=2).stderr

    # The job of an array trains one of them, to the same weights.
    medtrain(*asked, "--out", "array", "--split", "1")
    weights = Path("split-1") / "last" / "model.safetensors"
    assert (tmp_path / "array" / weights).read_bytes() == (tmp_path / "run" / weights).read_bytes()

    pooled = last_line(medtrain("eval", "run", "--group", "validation", "--json").stdout)
    assert pooled["pooled"]["accuracy"] >= 0 and pooled["ensemble"] is None
    assert pooled["spread"]["accuracy"]["folds"] == 3
    tested = last_line(medtrain("eval", "run", "--json").stdout)
    assert tested["ensemble"] is not None and "share samples" in tested["notes"]["pooled"]
    assert (tmp_path / "run" / "folds-test" / "report.html").is_file()
    assert last_line(medtrain("runs", "verify", "run", "--json").stdout)["status"] == "sound"

    medtrain("run", "--plugin", TOY, *FOLDS, "--epochs", "1", "--quiet", "--out", "other")
    compared = medtrain("runs", "compare", "run", "other", "--group", "validation", "--replicates", "50", "--json")
    assert len(last_line(compared.stdout)["comparisons"][0]["units"]["sample"]["differences"]["accuracy"]) == 1

    damaged = tmp_path / "run" / "split-2" / "last" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-4])
    assert "DAMAGED  split-2/last: " in medtrain("runs", "verify", "run", code=3).stdout


def test_folds_that_were_asked_to_leave_go_on_with_the_same_command(medtrain: Any, tmp_path: Path) -> None:
    asked = ["run", "--plugin", TOY, *FOLDS, "--epochs", "400", "--quiet", "--out", "run"]
    process = medtrain.start(*asked)
    deadline = time.monotonic() + 100
    while len(list(tmp_path.glob("run/split-*/history.jsonl"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 75, errors
    statuses = [json.loads(path.read_text())["status"] for path in sorted(tmp_path.glob("run/split-*/status.json"))]
    assert statuses == ["preempted"] * 3
    told = last_line(medtrain(*asked, "--json", timeout=250).stdout)
    assert [split["epoch"] for split in told["splits"]] == [400] * 3
    for index in range(3):
        assert "resumed at epoch" in (tmp_path / "run" / f"split-{index}" / "log.txt").read_text()
