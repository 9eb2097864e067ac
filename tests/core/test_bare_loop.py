"""A Trainer computes what a loop in plain PyTorch computes, to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from medtrain import ComputationalConfig, OptimizationConfig, Split, Trainer
from medtrain.rundir import Maps
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

RATE, DECAY = 0.01, 0.02
OPTIMIZERS: dict[str, tuple[Callable[..., torch.optim.Optimizer], dict[str, float]]] = {
    "SGD": (partial(torch.optim.SGD, lr=RATE, momentum=0.9, weight_decay=DECAY), {"momentum": 0.9}),
    "Adam": (partial(torch.optim.Adam, lr=RATE, weight_decay=DECAY), {}),
    "AdamW": (partial(torch.optim.AdamW, lr=RATE, weight_decay=DECAY), {}),
}


class Block(nn.Module):
    """Two convolutions with batch norm, around which the input goes unchanged."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.norm_1, self.norm_2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.norm_2(self.second(torch.relu(self.norm_1(self.first(x))))))


def small_resnet() -> nn.Module:
    torch.manual_seed(0)
    stem = [nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(
        *stem, Block(8), nn.MaxPool2d(2), Block(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    )


def images(count: int, seed: int) -> TensorDataset:
    """Noise, a little brighter in one of three channels: the label."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=generator)
    noise = torch.randn(count, 3, 8, 8, generator=generator)
    return TensorDataset(noise + nn.functional.one_hot(labels, 3)[:, :, None, None], labels)


def mean_loss(
    net: nn.Module, loss: nn.Module, loader: DataLoader[Any], optimizer: torch.optim.Optimizer | None = None
) -> float:
    """The mean over the samples of an epoch; with an optimizer it trains."""
    net.train(optimizer is not None)
    total = 0.0
    with torch.set_grad_enabled(optimizer is not None):
        for inputs, labels in loader:
            value = loss(net(inputs), labels)
            if optimizer is not None:
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
            total += value.item() * len(labels)
    return total / len(loader.dataset)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_equals_a_bare_loop(tmp_path: Path, name: str) -> None:
    """Losses of every epoch and the final weights; the last batch of both groups is smaller than the others.

    A validation batch has a power of two of samples: its mean times their number is then exact in float32 too.
    """
    make_optimizer, options = OPTIMIZERS[name]
    train, validation = DataLoader(images(19, seed=1), 4), DataLoader(images(10, seed=2), 4)
    net, loss = small_resnet(), nn.CrossEntropyLoss()
    asked = OptimizationConfig(num_epochs=3, optimizer=name, options=options, learning_rate=RATE, weight_decay=DECAY)
    made = Trainer(tmp_path / "run", small_resnet(), loss=loss, optimization=asked)
    path = made.train(Split.of(train, validation), ComputationalConfig(gpu=False)).maps
    folder = Maps.open(path).split(0)
    assert 'sampling = "sequential"' in folder.config_file.read_text()

    optimizer = make_optimizer(net.parameters())
    expected = [(mean_loss(net, loss, train, optimizer), mean_loss(net, loss, validation)) for _ in range(3)]
    assert [(record["train/loss"], record["validation/loss"]) for record in folder.history()] == expected
    weights, wanted = load_file(folder.checkpoint("last") / "model.safetensors"), net.state_dict()
    assert weights.keys() == wanted.keys()
    assert [key for key in wanted if not torch.equal(weights[key], wanted[key])] == []
    assert expected[-1][0] < expected[0][0]
