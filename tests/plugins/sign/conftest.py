"""Small runs of the sign plugin."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from medtrain import Trainer
from medtrain.config import Layers
from medtrain.plugins import Plugins

TINY = ("karsl.model_size=t_1_1", "karsl.frames=8", "optimization.num_epochs=2", "data.batch_size=8")


def sign_config(folder: Path | None, *assignments: str) -> Any:
    layers = Layers()
    layers.add({"run": {"plugins": ["karsl"]}, "computational": {"device": "cpu"}}, "test")
    if folder is not None:
        layers.add({"data": {"table": str(folder)}}, "test")
    for assignment in assignments:
        layers.add_assignment(assignment, ["karsl"])
    return layers.build(Plugins.of(["karsl"]).options())


@pytest.fixture
def config() -> Callable[..., Any]:
    """`config(folder, "karsl.signs=1-3")` is a validated configuration of the plugin."""
    return sign_config


@pytest.fixture
def trainer(tmp_path: Path) -> Callable[..., Trainer]:
    """`trainer("run", folder, "karsl.signs=1-3")` trains a tiny model for two epochs."""

    def make(name: str, folder: Path, *assignments: str) -> Trainer:
        return Trainer(tmp_path / name, config=sign_config(folder, *TINY, *assignments))

    return make
