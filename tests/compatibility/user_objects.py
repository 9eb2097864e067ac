"""What a Python user brings along: data, networks, losses, metrics and callbacks, by public names of medtrain only."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from medtrain import Run, Schedule, TensorModel, hookimpl
from torch import nn


class Volumes:
    """Small volumes whose brightness is the label, two sessions of each participant; noise is drawn anew every time."""

    def __init__(self, count: int = 24, first: int = 0, noise: float = 0.1) -> None:
        self.count, self.first, self.noise = count, first, noise
        self.deterministic = noise == 0
        generator = torch.Generator().manual_seed(first + 1)
        numbers = range(first, first + count)
        self.labels = (torch.tensor(numbers) // 2 % 2).float()
        self.images = torch.randn(count, 1, 4, 4, 4, generator=generator) + 0.3 * self.labels.view(-1, 1, 1, 1, 1)
        self.sample_ids = [f"volume-{number:03d}" for number in numbers]
        self.participants = [f"sub-{number // 2:03d}" for number in numbers]
        self.sessions = [f"ses-{number % 2 + 1}" for number in numbers]
        self.classes = [int(label) for label in self.labels]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = self.images[index] + self.noise * torch.rand(1, 4, 4, 4)
        return {"image": image, "label": self.labels[index].view(1), "sample_id": self.sample_ids[index]}


class Pairs:
    """The same as tuples, without names."""

    def __init__(self, count: int = 24, first: int = 0) -> None:
        self.count, self.first = count, first
        self.volumes = Volumes(count, first)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        sample = self.volumes[index]
        return sample["image"], sample["label"]


class Network(nn.Module):
    """Batch norm, dropout, and a parameter that belongs to no layer."""

    def __init__(self, width: int = 4, dropout: float = 0.3) -> None:
        super().__init__()
        self.width, self.dropout = width, dropout
        self.scale = nn.Parameter(torch.ones(1))
        layers = [nn.Flatten(), nn.Linear(64, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*layers, nn.Linear(width, 1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.layers(image) * self.scale


def make_network() -> nn.Module:
    """A fresh one for every split."""
    torch.manual_seed(5)
    return TensorModel(Network(width=3))


def accuracy(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return ((prediction > 0) == (target > 0.5)).float().mean()


def two_terms(outputs: dict[str, Any], batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    logits = outputs["logits"]
    entropy = nn.functional.binary_cross_entropy_with_logits(logits, batch["label"])
    return {"entropy": entropy, "size": 0.01 * (logits**2).mean()}


class TwoTerms:
    """The same as an object."""

    def __init__(self, size: float = 0.02) -> None:
        self.size = size

    def __call__(self, outputs: dict[str, Any], batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        terms = two_terms(outputs, batch)
        return {**terms, "size": self.size * terms["size"]}


class Brier:
    """A metric of the user's own."""

    names = ("brier",)
    mode = "min"

    def rows(self, outputs: dict[str, Any], batch: dict[str, Any]) -> dict[str, Any]:
        return {"probability": torch.sigmoid(outputs["logits"])[:, 0], "label": batch["label"][:, 0]}

    def compute(self, rows: dict[str, Any]) -> dict[str, float]:
        return {"brier": float(((rows["probability"].astype(np.float64) - rows["label"]) ** 2).mean())}


class Drift:
    """A callback with state: how far the weights have gone, epoch by epoch, as a value of the history."""

    def __init__(self) -> None:
        self.total = 0.0
        self.before: float | None = None

    def on_epoch_end(self, run: Run) -> None:
        size = sum(float(parameter.detach().double().norm()) for parameter in run.model.parameters())
        self.total += abs(size - (size if self.before is None else self.before))
        self.before = size
        run.metrics["drift"] = self.total

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total, "before": self.before}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.total, self.before = state["total"], state["before"]


class Shift:
    """Adds one number per sample."""

    def draw(self, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {"shift": 0.1 * torch.randn(1, generator=generator)}

    def __call__(self, batch: dict[str, Any], draws: dict[str, torch.Tensor]) -> dict[str, Any]:
        return {**batch, "image": batch["image"] + draws["shift"].view(-1, 1, 1, 1, 1)}


class Plugin:
    """A plugin given as an object: a schedule and an augmentation."""

    def __init__(self, gamma: float = 0.9) -> None:
        self.gamma = gamma

    @hookimpl
    def build_scheduler(self, optimizer: torch.optim.Optimizer) -> Schedule:
        return Schedule(torch.optim.lr_scheduler.ExponentialLR(optimizer, self.gamma), interval="step")

    @hookimpl
    def build_augmentation(self) -> Any:
        return Shift()
