"""Models as the loop sees them: `model(batch) -> dict`, whatever they are wrapped in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class TensorModel(nn.Module):
    """A plain network (tensor in, tensor out) under the loop's contract.

    module: the network. input: the batch key it takes. output: the key its result gets.
    Checkpoints hold the plain network's state dict.
    """

    def __init__(self, module: nn.Module, input: str = "image", output: str = "logits") -> None:
        super().__init__()
        self.module, self.input, self.output = module, input, output

    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {self.output: self.module(batch[self.input])}


def unwrap(model: nn.Module) -> nn.Module:
    """The network whose weights are saved: without DDP, torch.compile and `TensorModel`."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return unwrap(model.module)
    if hasattr(model, "_orig_mod"):
        compiled: nn.Module = model._orig_mod  # type: ignore[assignment]
        return unwrap(compiled)
    return unwrap(model.module) if isinstance(model, TensorModel) else model


def training_mode(model: nn.Module) -> None:
    """Train mode, except for parts that are frozen whole: their statistics and dropout rest too."""
    model.train()
    if all(parameter.requires_grad for parameter in model.parameters()):
        return
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode, then back to what it was."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def move_batch(value: Any, device: torch.device, memory_format: torch.memory_format | None = None) -> Any:
    """A batch on the device, its images (4-D, or 5-D volumes) in the given memory format."""
    if isinstance(value, torch.Tensor):
        value = value.to(device, non_blocking=True)
        dim = {None: 0, torch.channels_last: 4, torch.channels_last_3d: 5}[memory_format]
        return value.to(memory_format=memory_format) if value.dim() == dim and memory_format else value
    if isinstance(value, dict):
        return {key: move_batch(item, device, memory_format) for key, item in value.items()}
    return value
