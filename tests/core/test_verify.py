"""What `runs verify` finds, and what a damaged run directory still tells."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from medtrain import Trainer
from medtrain.rundir.directory import Maps
from medtrain_plugins.results.verify import verify


@pytest.fixture
def run(toy_run: Callable[..., Path]) -> Path:
    path = toy_run()
    trainer = Trainer.from_maps(path)
    trainer.evaluate("test")
    trainer.report()
    return path


def problems(run: Path) -> dict[str, str]:
    return {one.what: one.problem for one in verify(run) if one.problem}


def test_a_sound_run_has_no_problem_and_everything_is_looked_at(run: Path) -> None:
    assert problems(run) == {}
    looked_at = {one.what for one in verify(run)}
    assert {
        "config.toml",
        "environment.json",
        "split-0/split.json",
        "split-0/history.jsonl",
        "split-0/last",
    } <= looked_at
    assert {"split-0/config.toml", "split-0/setup.json", "split-0/evaluation-test/predictions.csv"} <= looked_at


@pytest.mark.parametrize(
    ("name", "what", "problem"),
    [
        ("config.toml", "config.toml", "changed since the run was made"),
        ("split-0/config.toml", "split-0/config.toml", "changed since the index was written"),
        ("split-0/last/model.safetensors", "split-0/last", "damaged: model.safetensors"),
        ("split-0/split.json", "split-0/split.json", "members are not those of its checksum"),
        ("split-0/history.jsonl", "split-0/history.jsonl", "the epochs are"),
        ("split-0/evaluation-test/metrics.json", "split-0/evaluation-test/metrics.json", "changed since"),
    ],
)
def test_damage_is_named(run: Path, name: str, what: str, problem: str) -> None:
    file = run / name
    if name.endswith("split.json"):
        recorded = json.loads(file.read_text())
        recorded["groups"]["train"]["samples"].pop()
        file.write_text(json.dumps(recorded))
    elif name.endswith("jsonl"):
        file.write_text("".join(file.read_text().splitlines(keepends=True)[1:]))
    else:
        file.write_bytes(file.read_bytes() + b"\n#")
    assert problem in problems(run)[what]


@pytest.mark.parametrize("name", ["split-0/evaluation-test/predictions.csv", "split-0/config.toml"])
def test_losses_are_named(run: Path, name: str) -> None:
    (run / name).unlink()
    assert problems(run) == {name: "the index lists it, it is gone"}


def test_a_directory_with_holes_still_opens_and_tells_what_is_there(run: Path) -> None:
    for name in ("index.json", "split-0/status.json", "split-0/setup.json", "split-0/timing.jsonl", "environment.json"):
        (run / name).unlink()
    maps = Maps.open(run)
    assert maps.split(0).status() == {"status": "unknown"} and len(maps.split(0).history()) == 2
    assert Trainer.from_maps(run).evaluate("test").metrics
    assert problems(run) == {"environment.json": "missing"}
