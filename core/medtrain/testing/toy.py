"""A complete task in a few lines, on synthetic 3-D volumes: for trying plugins and for tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from medtrain.hookspecs import hookimpl
from medtrain.protocols.dataset import Data
from medtrain.protocols.metric import BatchMetric
from medtrain.protocols.model import TensorModel


class ToyVolumes:
    """Small 3-D volumes with a bright cube whose strength is the label; two volumes per participant.

    Samples: `image` float32 (1, size, size, size), `label` float32 (1,), `sample_id`, `participant_id`.
    """

    deterministic = True

    def __init__(self, count: int = 24, size: int = 8, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.count, self.size, self.seed = count, size, seed
        self.labels = (torch.arange(count) // 2 % 2).float()
        self.images = torch.randn(count, 1, size, size, size, generator=generator)
        quarter = size // 4
        inner = slice(quarter, size - quarter)
        self.images[:, :, inner, inner, inner] += self.labels.view(-1, 1, 1, 1, 1)
        self.sample_ids = [f"volume-{i:03d}" for i in range(count)]
        self.participants = [f"sub-{i // 2:03d}" for i in range(count)]
        self.strata = [int(label) for label in self.labels]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "image": self.images[index],
            "label": self.labels[index].view(1),
            "sample_id": self.sample_ids[index],
            "participant_id": self.participants[index],
        }


class ToyTask:
    """A small 3-D network on `ToyVolumes`: the floor under a plugin that is not a whole task.

    On the command line: `medtrain run --plugin medtrain.testing:ToyTask --plugin NAME`.
    """

    def __init__(self, count: int = 24) -> None:
        self.count = count

    @hookimpl
    def build_data(self) -> Data:
        return Data(whole=ToyVolumes(self.count))

    @hookimpl
    def build_model(self) -> nn.Module:
        layers = [nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool3d(2), nn.Flatten(), nn.Linear(32, 1)]
        return TensorModel(nn.Sequential(*layers))

    @hookimpl
    def build_loss(self) -> Any:
        return lambda outputs, batch: nn.functional.binary_cross_entropy_with_logits(outputs["logits"], batch["label"])

    @hookimpl
    def build_metrics(self) -> list[Any]:
        return [BatchMetric("accuracy", _accuracy, "logits", "label")]


def _accuracy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return ((logits > 0) == (labels > 0.5)).float().mean()
