"""Runs killed with SIGKILL at moments nobody chose, resumed, and compared byte for byte with one that was not."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.chaos

SETTINGS = [
    "optimization.num_epochs=6",
    "checkpoint.every_n_steps=2",
    "checkpoint.every_n_epochs=2",
    "data.batch_size=2",
    "toy_plugin.dropout=0.3",
    "toy_plugin.noise=0.2",
    "toy_plugin.shift=0.1",
    "toy_plugin.wait=0.03",
]
SMOOTH = ["optimization.ema_decay=0.9", "scheduler.name=plateau", "scheduler.patience=0", "scheduler.warmup_steps=3"]
FILES = ["last/model.safetensors", "last/state.safetensors", "history.jsonl", "best-fit/model.safetensors"]


def train(medtrain: Any, out: str, settings: list[str], first: str = "run") -> Any:
    target = ["--plugin", "toy_plugin", "--out", out] if first == "run" else [out]
    return medtrain.start("-m", "medtrain", first, *target, *[f"--set={s}" for s in settings], python=())


def kill(process: Any) -> None:
    process.kill()
    process.communicate()


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / "split-0" / name).read_bytes() for name in FILES}


def until_killed_or_done(process: Any, condition: Callable[[], bool]) -> bool:
    """Kill the process as soon as the condition holds; False when it ended first."""
    while process.poll() is None:
        if condition():
            kill(process)
            return True
        time.sleep(0.0005)
    return False


@pytest.mark.timeout(600)
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("more", [[], SMOOTH], ids=["plain", "ema-plateau"])
def test_killed_at_random_steps_and_while_writing(medtrain: Any, tmp_path: Path, workers: int, more: list[str]) -> None:
    settings = [*SETTINGS, *more, f"data.num_workers={workers}"]
    whole = train(medtrain, "whole", settings)
    assert whole.wait() == 0, whole.communicate()
    last = tmp_path / "killed" / "split-0" / "last"
    random.seed(workers + 2 * len(more))
    process = train(medtrain, "killed", settings)
    kills = int(until_killed_or_done(process, last.parent.is_dir))  # before there is any checkpoint
    process = train(medtrain, "killed", [], "resume")
    for moment in range(4):
        if moment == 3:  # in the middle of writing a checkpoint
            aside = last.with_name(".last.new")
            begun = time.monotonic()
            killed = until_killed_or_done(
                process, lambda begun=begun, aside=aside: time.monotonic() > begun + 3 and aside.is_dir()
            )
        else:
            while not last.is_dir() and process.poll() is None:
                time.sleep(0.01)
            before = (last / "checkpoint.json").stat().st_mtime_ns if last.is_dir() else 0
            delay = random.uniform(0.0, 0.4)

            def moved(before: int = before) -> bool:
                try:
                    return (last / "checkpoint.json").stat().st_mtime_ns != before
                except OSError:
                    return False

            if not until_killed_or_done_after(process, moved, delay):
                break
            killed = True
        kills += killed
        process = train(medtrain, "killed", [], "resume")
    assert process.wait() == 0, process.communicate()
    assert kills >= 4, "the run was over before it could be killed often enough"
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def until_killed_or_done_after(process: Any, condition: Callable[[], bool], delay: float) -> bool:
    """Wait for the condition, then a little longer, then kill; False when the process ended first."""
    while process.poll() is None:
        if condition():
            time.sleep(delay)
            if process.poll() is None:
                kill(process)
                return True
            return False
        time.sleep(0.001)
    return False
