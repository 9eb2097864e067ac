"""Every key of the section `data` reaches the split or the loaders."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from medtrain import Data
from medtrain.config import RunConfig
from medtrain.data import Loader
from medtrain.plugins import Plugins
from medtrain.training.loaders import make_loader
from toy_plugin import Vectors


class Rare(Vectors):
    """One of twenty has the label, and weighs as much as all others."""

    @property
    def classes(self) -> list[int]:
        return [int(i == 0) for i in range(len(self))]

    @property
    def weights(self) -> list[float]:
        return [float(i == 1) for i in range(len(self))]


def loader(group: str = "train", device: str = "cpu", **settings: Any) -> Loader:
    config = RunConfig.model_validate({"data": {"batch_size": 4, **settings}})
    split = Plugins.of([]).first_result(
        "split_data", config=config, data=Data(train=Rare(0, 22), validation=Vectors(40, 9))
    )
    world = SimpleNamespace(rank=0, size=1, device=torch.device(device))
    return make_loader(config, split, group, SimpleNamespace(world=world, augmentation=None))  # type: ignore[arg-type]


def test_batches() -> None:
    assert (loader(batch_size=5).global_batch, loader("validation", batch_size=5).global_batch) == (5, 5)
    other = {"batch_size": 5, "evaluation_batch_size": 3}
    assert (loader(**other).global_batch, loader("validation", **other).global_batch) == (5, 3)
    assert [len(loader()), len(loader(drop_last=True)), len(loader(max_batches=2))] == [6, 5, 2]
    assert len(loader("validation", drop_last=True, max_batches=1)) == 3


def test_the_order_of_training() -> None:
    assert loader(sampling="sequential").order(0) == list(range(22)) != loader().order(0)
    assert set(loader(sampling="weighted").order(0)) == {1}
    assert loader(sampling="class_balanced").order(0).count(0) > 3
    assert loader("validation", sampling="shuffle").order(0) == list(range(9))


def test_processes() -> None:
    assert loader().workers is None and loader("validation").workers is None
    fed = {"num_workers": 2, "prefetch_factor": 3, "persistent_workers": False, "pin_memory": False}
    ours = loader(device="cuda", **fed).workers
    assert (ours.num_workers, ours.prefetch_factor, ours.persistent_workers, ours.pin_memory) == (2, 3, False, False)
    plain = loader(device="cuda", num_workers=1).workers
    assert (
        plain.persistent_workers and plain.pin_memory and not loader(num_workers=1, pin_memory=True).workers.pin_memory
    )
    assert loader("validation", num_workers=2).workers.num_workers == 2
    assert loader("validation", num_workers=2, evaluation_num_workers=0).workers is None


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        ({}, {"train": 70, "validation": 20, "test": 10}),
        ({"validation_fraction": 0.4}, {"train": 50, "validation": 40, "test": 10}),
        ({"test_fraction": 0.3}, {"train": 50, "validation": 20, "test": 30}),
        ({"num_folds": 4, "test_fraction": 0.0}, {"train": 75, "validation": 25}),
    ],
)
def test_the_parts_of_one_dataset(settings: dict[str, Any], sizes: dict[str, int]) -> None:
    config = RunConfig.model_validate({"data": settings})
    split = Plugins.of([]).first_result("split_data", config=config, data=Data(whole=Vectors(0, 100)))
    assert {name: len(dataset) for name, dataset in split.groups.items()} == sizes
