"""Small runs of the plugin `brain`, for several test files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medtrain import Trainer
from medtrain.config import Layers, RunConfig
from medtrain.plugins import Plugins
from medtrain.rundir.directory import Maps

SIZE = 16


def configured(tree: Path, epochs: int = 1, **options: Any) -> RunConfig:
    layers = Layers()
    layers.add(
        {
            "run": {"plugins": ["brain"]},
            "data": {"images": str(tree), "batch_size": 8, "test_fraction": 0.25},
            "optimization": {"num_epochs": epochs, "learning_rate": 2e-3},
            "computational": {"device": "cpu"},
            "plugins": {"brain": {"network_options": {"hidden": [8, 4]}, **options}},
        },
        "test",
    )
    return layers.build(Plugins.of(["brain"]).options())


def trained(path: Path, tree: Path, epochs: int = 1, **options: Any) -> Trainer:
    trainer = Trainer(path, plugins=["brain"], config=configured(tree, epochs, **options))
    trainer.train()
    return Trainer.from_maps(path)


def recorded(trainer: Trainer) -> Any:
    """The options as they were completed, of the first split."""
    assert trainer.path is not None
    return trainer.config_of(Maps.open(trainer.path).split(0)).options("brain")
