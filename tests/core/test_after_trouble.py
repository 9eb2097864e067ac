"""After whatever went wrong the run directory opens, says what is there, and the same call can be repeated."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from medtrain import ComputationalConfig, EarlyStoppingCallback, OptimizationConfig, Split, SupervisedModel, Trainer
from medtrain.data.split import Part
from medtrain.errors import ConfigError, DataError, HookError, MedtrainError, Preempted
from medtrain.hookspecs import hookimpl
from medtrain.rundir.directory import Maps
from medtrain.testing import ToyVolumes
from torch import nn


class Halves:
    """Signals this process at a step, once."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_step_end(self, run: Any) -> None:
        if run.step == self.at:
            os.kill(os.getpid(), signal.SIGTERM)


class Breaks:
    """Fails at the start of an epoch, once."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    @hookimpl
    def on_epoch_start(self, run: Any) -> None:
        if run.epoch == self.epoch:
            raise RuntimeError("no power")


def halves() -> Split:
    volumes = ToyVolumes(24)
    return Split.of(Part(volumes, list(range(16))), Part(volumes, list(range(16, 24))))


def trainer(path: Path, callbacks: Any = (), **changes: Any) -> Trainer:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(512, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    optimization = OptimizationConfig.model_validate({"num_epochs": 3, **changes})
    return Trainer(path, SupervisedModel(net, nn.BCEWithLogitsLoss()), optimization=optimization, callbacks=callbacks)


def leaking() -> Split:
    volumes = ToyVolumes(24)
    return Split.of(Part(volumes, list(range(0, 24, 2))), Part(volumes, list(range(1, 24, 2))))


def empty() -> Split:
    return Split.of(Part(ToyVolumes(24), list(range(4))), Part(ToyVolumes(24), []))


@pytest.mark.parametrize(
    ("trouble", "error"),
    [
        (lambda made: made.train(leaking()), DataError),
        (lambda made: made.train(empty()), DataError),
        (lambda made: made.train(halves(), ComputationalConfig(gpu=7)), ConfigError),
        (lambda made: made.train(), MedtrainError),
        (lambda made: made.train(Split({})), DataError),
    ],
    ids=["leak", "empty validation", "no such GPU", "no data", "no train group"],
)
def test_a_refusal_leaves_the_way_free(
    tmp_path: Path, trouble: Callable[[Trainer], Any], error: type[Exception]
) -> None:
    made = trainer(tmp_path / "run")
    with pytest.raises(error):
        trouble(made)
    assert not (tmp_path / "run").exists()
    assert made.train(halves()).epochs == 3
    made.train(halves_of(1))
    with pytest.raises(DataError, match="participant"):
        made.train(Split(leaking().groups, index=2))
    assert [folder.status()["status"] for folder in Maps.open(tmp_path / "run").splits()] == ["completed"] * 2


def halves_of(index: int) -> Split:
    split = halves()
    split.index = index
    return split


def text_and_weights(run: Path) -> Any:
    last = run / "split-0" / "last"
    return (run / "split-0" / "history.jsonl").read_bytes(), (last / "model.safetensors").read_bytes()


@pytest.mark.parametrize("callback", [Breaks(0), Breaks(1), Halves(5)], ids=["epoch 0", "epoch 1", "mid-epoch"])
def test_the_same_call_goes_on(tmp_path: Path, callback: Any) -> None:
    with pytest.raises((HookError, Preempted)):
        trainer(tmp_path / "run", [callback]).train(feed(halves()))
    assert Maps.open(tmp_path / "run").split(0).status()["status"] in ("failed", "preempted")
    assert trainer(tmp_path / "run").train(feed(halves())).epochs == 3
    trainer(tmp_path / "whole").train(feed(halves()))
    assert text_and_weights(tmp_path / "run") == text_and_weights(tmp_path / "whole")


def feed(split: Split, **settings: Any) -> Split:
    split.build_train_loader(batch_size=4, **settings)
    return split


KILLED = """
import os, signal
import test_after_trouble as t
from medtrain.rundir import checkpoint

real, saves = checkpoint.write, []
def write(folder, made):
    saves.append(folder)
    if len(saves) == {save}:
        os.kill(os.getpid(), signal.SIGKILL) if {before} else None
        real(folder, made)
        os.kill(os.getpid(), signal.SIGKILL)
    real(folder, made)
checkpoint.write = write
t.trainer(t.Path("run")).train(t.feed(t.halves()))
"""


@pytest.mark.parametrize(("save", "before"), [(1, True), (2, True), (2, False)])
def test_killed_around_a_save(tmp_path: Path, save: int, before: bool) -> None:
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    code = KILLED.format(save=save, before=before)
    killed = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, check=False
    )
    assert killed.returncode == -9, killed.stderr
    assert Maps.open(tmp_path / "run").split(0).status()["status"] == "killed"
    assert trainer(tmp_path / "run").train(feed(halves())).epochs == 3
    trainer(tmp_path / "whole").train(feed(halves()))
    assert text_and_weights(tmp_path / "run") == text_and_weights(tmp_path / "whole")


@pytest.mark.parametrize(
    ("settings", "changes", "computational"),
    [
        ({"sampling_weights": [1.0] * 4 + [3.0] * 12}, {}, None),
        ({"num_workers": 2}, {}, None),
        ({"drop_last": True}, {"accumulation_steps": 2}, None),
        ({}, {"num_epochs": 12, "learning_rate": 0.3}, None),
        ({}, {}, ComputationalConfig(amp="bf16", deterministic=True)),
    ],
    ids=["weighted", "workers", "accumulation", "early stopping", "amp"],
)
def test_interrupted_is_uninterrupted(
    tmp_path: Path, settings: dict[str, Any], changes: dict[str, Any], computational: ComputationalConfig | None
) -> None:
    def train(name: str, *callbacks: Any) -> Any:
        stop = EarlyStoppingCallback("loss", patience=2)
        return trainer(tmp_path / name, [stop, *callbacks], **changes).train(feed(halves(), **settings), computational)

    try:
        whole = train("whole")
        with pytest.raises(Preempted):
            train("cut", Halves(5))
        assert train("cut").epochs == whole.epochs
        assert text_and_weights(tmp_path / "cut") == text_and_weights(tmp_path / "whole")
        if changes.get("num_epochs"):
            assert whole.epochs < 12
    finally:
        torch.use_deterministic_algorithms(False)


def test_the_tables_say_where_and_with_what(tmp_path: Path) -> None:
    """Every record has its epoch and step, the rate it trained with, and the last one its validation values."""
    torch.manual_seed(0)
    model = SupervisedModel(nn.Sequential(nn.Flatten(), nn.Linear(512, 1)), nn.BCEWithLogitsLoss())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Trainer(
        tmp_path / "run",
        model,
        optimization=OptimizationConfig(num_epochs=3, evaluation_interval=5),
        optimizer=optimizer,
        scheduler=torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.1),
    ).train(feed(halves()))
    history = Maps.open(tmp_path / "run").split(0).history()
    assert [(record["epoch"], record["step"]) for record in history] == [(0, 4), (1, 8), (2, 12)]
    assert [record["learning_rate"] for record in history] == pytest.approx([0.1, 0.01, 0.001])
    assert ["validation/loss" in record for record in history] == [False, False, True]
