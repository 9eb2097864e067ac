"""The plugin conforms, restarts the rate where it says, and stops overfitted runs, resumed ones too."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from medtrain import Data, Trainer
from medtrain.config import Layers, RunConfig
from medtrain.errors import ConfigError
from medtrain.maps import Maps
from medtrain.testing import ToyTask, ToyVolumes, assert_conforms
from medtrain_plugin_x import Options


@pytest.fixture
def labels_without_meaning() -> Data:
    """Volumes whose labels can be learned by heart only."""
    volumes = ToyVolumes(count=32, seed=1)
    volumes.labels = torch.randint(0, 2, (32,), generator=torch.Generator().manual_seed(2)).float()
    return Data(whole=volumes)


def configured(num_epochs: int, **options: Any) -> RunConfig:
    layers = Layers({"optimization": {"num_epochs": num_epochs, "learning_rate": 0.02}, "plugins": {"x": options}})
    layers.add({"checkpoint": {"every_n_epochs": 1}, "computational": {"device": "cpu"}}, "test")
    return layers.build({"x": Options})


def trainer(path: Path, config: RunConfig) -> Trainer:
    return Trainer(path, plugins=[ToyTask(), "x"], config=config)


def test_conforms() -> None:
    assert_conforms("x")


def test_the_rate_restarts_after_longer_and_longer_periods(tmp_path: Path) -> None:
    result = trainer(tmp_path / "run", configured(6, restart_every=1, stretch=2)).train()
    history = Maps.open(result.maps).split(0).history()
    steps = history[0]["step"]
    # Periods of 1, 2 and 4 epochs; a record tells the rate of its epoch's last step.
    places = [(epoch * steps - 1) / (length * steps) for length in (1, 2, 4) for epoch in range(1, length + 1)][:6]
    expected = [0.01 * (1 + math.cos(math.pi * place)) for place in places]
    assert [record["learning_rate"] for record in history] == pytest.approx(expected)


def test_the_floor_must_lie_below_the_rate(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"plugins\.x\.min_lr: 0\.02 is not below"):
        trainer(tmp_path / "run", configured(1, min_lr=0.02)).train()


def test_an_overfitted_run_ends_and_so_does_its_resume(tmp_path: Path, labels_without_meaning: Data) -> None:
    config = configured(60, max_gap=0.3, patience=3)
    stopped = trainer(tmp_path / "run", config).train(labels_without_meaning)
    history = Maps.open(stopped.maps).split(0).history()
    assert [record["generalisation_gap"] > 0.3 for record in history[-4:]] == [False, True, True, True]
    # Two of the three evaluations are behind this checkpoint: a plugin that forgot them would go on for longer.
    before_last = f"epoch-{stopped.epochs - 1:04d}"
    resumed = trainer(tmp_path / "run", config).resume(checkpoint=before_last, split=labels_without_meaning)
    assert resumed.epochs == stopped.epochs < 60
    assert Maps.open(stopped.maps).split(0).history() == history


def test_without_a_limit_the_gap_is_only_recorded(tmp_path: Path, labels_without_meaning: Data) -> None:
    result = trainer(tmp_path / "run", configured(20)).train(labels_without_meaning)
    last = Maps.open(result.maps).split(0).history()[-1]
    assert result.epochs == 20
    assert last["generalisation_gap"] == pytest.approx(last["validation/loss"] - last["train/loss"])
